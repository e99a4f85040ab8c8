"""Two daemons of one instance: the active collector and its standby, with a database and a NATS server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.cluster import create_streams
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.mariadb import Database


@contextlib.asynccontextmanager
async def collector(
    folder: Path, database: Database, url: str, environ: Mapping[str, str] | None = None, **settings: Any
) -> AsyncIterator[Daemon]:
    """A daemon with `[cluster]`; not started. `environ`: what else it finds in its environment."""
    await asyncio.to_thread(folder.mkdir)
    options = {"cluster__url": url, "cluster__instance": "dc1", **settings}
    found = Daemon(folder, environ, database__url=database.url, **options)
    try:
        yield found
    finally:
        await found.close()


@contextlib.asynccontextmanager
async def pair(
    folder: Path,
    database: Database,
    url: str,
    environs: Sequence[Mapping[str, str] | None] = (None, None),
    **settings: Any,
) -> AsyncIterator[tuple[Daemon, Daemon]]:
    """An active collector that is ready, and its standby. `environs`: what else each finds in its environment.

    Servers without TLS get the streams.
    """
    if not url.startswith("tls://"):
        await create_streams(url, settings.get("cluster__replicas", 1))
    async with (
        collector(folder / "one", database, url, environs[0], **settings) as active,
        collector(folder / "two", database, url, environs[1], **settings) as standby,
    ):
        await active.start()
        await standby.start(ready=False)
        await eventually(lambda: has_role(standby, "standby"))
        yield active, standby


async def cluster_part(daemon: Daemon) -> dict[str, Any]:
    """The part `cluster` of readiness."""
    part: dict[str, Any] = (await daemon.get("/health/ready"))[1]["parts"]["cluster"]
    return part


async def has_role(daemon: Daemon, role: str) -> bool:
    return bool((await cluster_part(daemon))["role"] == role)


async def is_active(daemon: Daemon) -> bool:
    """True if the daemon holds the lease and has read the tables."""
    return (await daemon.get("/health/ready"))[0] == 200
