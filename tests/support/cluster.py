"""Connections of tests to a private NATS server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from correlator.cluster import keys, streams
from correlator.cluster.connection import Connection, Fenced, seq_of
from correlator.cluster.fence import put
from correlator.config.schema import Cluster, NatsUrl, Replicas
from tests.support.background import in_background
from tests.support.eventually import PATIENCE


def settings(url: str, instance: str = "dc1", replicas: Replicas = 1) -> Cluster:
    return Cluster(url=NatsUrl.parse(url), instance=instance, replicas=replicas)


@contextlib.asynccontextmanager
async def connected(url: str, instance: str = "dc1", role: str = "collector") -> AsyncIterator[Connection]:
    """A connection that runs until the block ends."""
    async with running(Connection(settings(url, instance), role)) as connection:
        yield connection


async def create_streams(url: str, replicas: Replicas = 1, credentials_file: Path | None = None) -> None:
    """Create the streams as `correlator cluster create` does, on servers without roles."""
    cluster = replace(settings(url), credentials_file=credentials_file)
    async with running(Connection(cluster, "provisioner")) as connection:
        await streams.create(connection, replicas)


@contextlib.asynccontextmanager
async def running(connection: Connection) -> AsyncIterator[Connection]:
    """Connect, and stay connected until the block ends."""
    async with in_background(connection.run()):
        await connection.connect(PATIENCE)
        yield connection


async def handled(connection: Connection) -> None:
    """Wait until the server has handled all that was sent before, such as a subscription.

    A request waits behind it in the same buffer. `Client.flush` does not: it writes its ping past that buffer.
    """
    await streams.info(connection, keys.STATE)


@contextlib.asynccontextmanager
async def never_silent(connection: Connection, instance: str = "dc1") -> AsyncIterator[None]:
    """Write the alive key again and again, as it is: until the block ends, no standby takes the lease by silence."""
    async with in_background(_renew(connection, keys.alive(instance))):
        yield


async def _renew(connection: Connection, alive: str) -> None:
    while True:
        found = await connection.last(keys.ALIVE, alive)
        if found is not None:
            with contextlib.suppress(Fenced):  # somebody else wrote it meanwhile
                await put(connection, alive, found.data, expected=seq_of(found))
        await asyncio.sleep(0.2)
