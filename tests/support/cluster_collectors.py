"""Collectors that answer gateways over NATS from MariaDB, without writing into the stream."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from correlator.jobs.index import Index
from correlator.pipeline.pipeline import LocalHub
from correlator.sinks.cluster.gateway_requests import GatewayRequests
from tests.support.archive_queries import archive_of
from tests.support.background import in_background
from tests.support.cluster import connected
from tests.support.mariadb import MariaDB
from tests.support.source_databases import MariaDBOriginal, Original


@contextlib.asynccontextmanager
async def collector(url: str, instance: str, appliance: Original) -> AsyncIterator[LocalHub]:
    """A collector without jobs in memory: everything has left it."""
    async with archive_of(appliance) as archive, connected(url, instance) as connection:
        hub = LocalHub(Index(), archive)
        async with in_background(GatewayRequests(connection, instance).run(hub)):
            yield hub


@contextlib.asynccontextmanager
async def appliances(mariadb: MariaDB, count: int) -> AsyncIterator[list[Original]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(MariaDBOriginal.make(mariadb, "aiomysql", rolled_back=False))
            for _ in range(count)
        ]
