"""Gateways in the test's own process, and websockets of their clients."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from correlator.config import loading
from correlator.config.schema import Cluster, Config
from correlator.daemon import Process
from correlator.gateway.app import Gateway
from correlator.gateway.fleet import SHARE
from tests.support.daemon import Daemon
from tests.support.eventually import PATIENCE

OF_A_DAEMON = ("DATABASE__TIMEZONE", "MQTT__INSTANCE", "STATE__DIRECTORY")
"""The settings of `Daemon` that a gateway does not read."""


def config(url: str) -> Config:
    environ = {"CORRELATOR_CLUSTER__URL": url, "CORRELATOR_HTTP__LISTEN": "127.0.0.1:0"}
    return loading.load(None, environ, gateway=True)


class RunningGateway:
    """A gateway that runs. `url`: where it listens. `reload(**http)` replaces settings of its listener."""

    def __init__(self, gateway: Gateway, url: str, session: aiohttp.ClientSession, reload: Callable[..., None]) -> None:
        self.gateway, self.url, self._session, self.reload = gateway, url, session, reload

    async def get(self, path: str, headers: Mapping[str, str] | None = None, **query: Any) -> tuple[int, Any]:
        async with self._session.get(f"{self.url}{path}", params=query, headers=headers) as answer:
            return answer.status, orjson.loads(await answer.read() or b"null")

    async def job(self, name: str, base: str = "") -> Any:
        """The document of a job, by any ID; None for any other answer."""
        status, body = await self.get(f"{base}/api/v1/jobs/{name}")
        return body if status == 200 else None


@contextlib.asynccontextmanager
async def running(
    url: str, cluster: Cluster | None = None, *, read: bool = True, share: int = SHARE, **http: Any
) -> AsyncIterator[RunningGateway]:
    """A gateway of the cluster at `url`, from the moment it has read the stream, or listens if not `read`.

    `cluster`: its settings, if they have more than the URL. `share`: see `Fleet`. `http`: settings of its listener.
    """
    stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
    settings = config(url)
    settings = replace(settings, cluster=cluster or settings.cluster, http=replace(settings.http, **http))
    gateway = Gateway(settings, share=share)
    loaded = [settings]
    process = Process(settings, lambda: loaded[-1], ready.set_result, stop, asyncio.Event())

    def reload(**http: Any) -> None:
        loaded.append(replace(loaded[-1], http=replace(loaded[-1].http, **http)))
        process.reload_requested.set()

    task = asyncio.create_task(gateway.run(process))
    try:
        async with asyncio.timeout(PATIENCE), aiohttp.ClientSession() as session:
            served = asyncio.ensure_future(gateway.supervisor.served.wait())
            await asyncio.wait([task, ready if read else served], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                await task
            yield RunningGateway(gateway, gateway.supervisor.url, session, reload)
    finally:
        stop.set()
        await task


class GatewayProcess(Daemon):
    """`correlator gateway` as its unit runs it: without a home, a directory for state, or settings of a daemon."""

    def __init__(self, folder: Path, url: str, **environ: str) -> None:
        folder.mkdir()
        super().__init__(folder, environ, cluster__url=url)
        for name in ("HOME", "STATE_DIRECTORY", *(f"CORRELATOR_{key}" for key in OF_A_DAEMON)):
            self.environ.pop(name, None)
        self.command = "gateway"


@contextlib.asynccontextmanager
async def gateway_process(folder: Path, url: str, **environ: str) -> AsyncIterator[GatewayProcess]:
    """A gateway that has read the stream."""
    process = GatewayProcess(folder, url, **environ)
    try:
        await process.start()
        yield process
    finally:
        await process.close()
