"""One fault of a cluster: three NATS servers, an active collector and its standby, a gateway, and the oracle.

Each test is one fault: it begins with `cluster_run`, breaks something while `Traffic` writes, and ends with
`ClusterRun.verdict`, which compares what the gateway shows and the stream has with the tables.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from correlator.cluster import keys, streams
from correlator.cluster.connection import ClusterUnavailable
from tests.support.client_fold import Document
from tests.support.cluster import connected
from tests.support.cluster_harness import read_stream
from tests.support.collectors import pair
from tests.support.daemon import Daemon
from tests.support.eventually import PATIENCE, eventually
from tests.support.expected_jobs import differences
from tests.support.faults.fault_run import SLOW_TRAFFIC
from tests.support.faults.oracle import KINDS
from tests.support.faults.traffic import Traffic
from tests.support.faults.watchers import WebsocketWatcher
from tests.support.gateways import gateway_process
from tests.support.mariadb import Database
from tests.support.nats import Nats, NatsCluster
from tests.support.replay import MariaDBReplayer, Tables
from tests.support.subscriptions import Truth, documents, plain
from tests.support.verdicts import Table

SETTLES_WITHIN = 120.0
"""Seconds after the last commit until all is equal, including the second reading of ended jobs."""


VERDICTS = Table("faults of a cluster", "fault", "recovery, s", "rows", "lost", "twice", "false", "lines twice")
"""Recovery: until the gateway shows a new job; rows: lifecycle rows, of which each is to be one event; false: events
without a row, as JobLog loses none here; lines twice: log lines that a client of the gateway got again."""


@dataclass
class ClusterRun:
    """The parts of one run. `watcher`: a websocket client of the gateway."""

    nats: Nats | NatsCluster
    database: Database
    active: Daemon
    standby: Daemon
    gateway: Daemon
    watcher: WebsocketWatcher
    traffic: Traffic
    without_rows: set[str] = field(default_factory=set)
    """The jobs that have no row in the log, as those of `recovered`: their events have none."""
    false: list[Document] = field(default_factory=list)
    """The events that `events` found without a row last."""

    async def goes_on(self, rows: int = 40) -> None:
        """Wait until so many more rows are committed."""
        wanted = len(self.traffic.acknowledged) + rows
        await eventually(lambda: len(self.traffic.acknowledged) >= wanted)

    async def recovered(self, within: float = 90.0) -> float:
        """Return the seconds from now until a job that is committed now has come to the client of the gateway."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with self.traffic.writer() as writer:
            job_id = await self.traffic.job(writer)
            self.without_rows.add(job_id)
            await eventually(lambda: job_id in self.watcher.jobs, within=within)
        return loop.time() - began

    async def leader(self, stream: str = keys.STATE) -> Nats:
        """The NATS server that leads the stream."""
        async with connected(self.nats.url, role="doctor") as connection:
            info = await streams.info(connection, stream)
        assert info is not None
        assert isinstance(self.nats, NatsCluster)
        return self.nats.named(info["cluster"]["leader"])

    async def verdict(
        self, fault: str, recovery: float, *, within: float = SETTLES_WITHIN, without: AbstractSet[int] | None = None
    ) -> None:
        """Judge the run once nothing is written any more, and note it for the table.

        `without`: events that NATS has lost.
        """
        async with MariaDBReplayer.connect(self.database) as replayer:
            tables = await replayer.tables()
        due = lifecycle_rows(tables) - (without or set())

        async def settled() -> bool:
            shown = await documents(self.gateway)
            found = differences(tables, shown)
            assert not found, found[:5]
            apart = sorted(self.watcher.jobs.keys() ^ shown.keys())
            assert not apart, f"only the gateway or its client has {apart[:5]}"
            for job_id in [i for i, held in self.watcher.jobs.items() if plain(held) != plain(shown[i])]:
                # The forecast of a running job goes on while the pages are read.
                now, held = await self.gateway.job(job_id), self.watcher.jobs[job_id]
                assert plain(held) == plain(now), f"the client of the gateway has {held}, not {now}"
            assert due <= set(await self.events()), f"{len(due - set(await self.events()))} events are missing"
            return True

        try:
            await eventually(settled, within=within, every=0.5)
        finally:
            events = await self.events()
            false = events.pop(None, 0)
            twice = sum(count - 1 for count in events.values())
            VERDICTS.add(fault, recovery, len(due), len(due - set(events)), twice, false, self.watcher.twice)
        assert (twice, false, self.watcher.twice) == (0, 0, 0), self.false
        logs = [await asyncio.to_thread(one.log) for one in (self.active, self.standby, self.gateway)]
        assert not [log[-4000:] for log in logs if "Traceback" in log]

    async def events(self) -> Counter[int | None]:
        """How often each event is in the stream; None: those without a row. Asks again while there is no answer."""

        async def read() -> tuple[list[Any]]:
            try:
                async with connected(self.nats.url, role="doctor") as connection:
                    return (await read_stream(connection, keys.EVENTS, "cor.v1.dc1.event.>"),)
            except ClusterUnavailable as error:
                raise AssertionError("the stream of events was not read") from error

        (stored,) = await eventually(read, every=0.5)
        own = [payload for _, headers, payload in stored if headers.get("Nats-Msg-Id", "").startswith("dc1:")]
        found = [orjson.loads(payload) for payload in own]
        now = datetime.now(UTC).isoformat()

        def needs_a_row(event: Document) -> bool:
            """A job may take longer than all earlier ones. One that is late in the future is so by a wrong clock."""
            is_late = event["kind"] in ("job.late", "job.overdue") and event["at"] <= now
            return event["job_id"] not in self.without_rows and not is_late

        self.false = [e for e in found if e["event_id"] is None and needs_a_row(e)]
        return Counter([e["event_id"] for e in found if e["event_id"] is not None] + [None] * len(self.false))


def lifecycle_rows(tables: Tables) -> set[int]:
    """The rows that are events."""
    rows = tables["log_events"]
    return {i for i in Truth(tables, {}).lines() if str(rows[i]["message"]).lower() in KINDS}


async def takeovers(run: ClusterRun) -> int:
    """How often a collector took the lease."""
    logs = [await asyncio.to_thread(daemon.log) for daemon in (run.active, run.standby)]
    return sum(log.count("this process is the active collector") for log in logs)


@asynccontextmanager
async def cluster_run(
    folder: Path, database: Database, nats: Nats | NatsCluster, *, link: str = "", **settings: Any
) -> AsyncIterator[ClusterRun]:
    """A cluster at work, without traffic yet. `link`: where its collectors connect, in place of NATS itself."""
    replicas = 3 if isinstance(nats, NatsCluster) else 1
    async with (
        pair(folder, database, link or nats.url, cluster__replicas=replicas, **settings) as (active, standby),
        gateway_process(folder / "gateway", nats.url) as gateway,
        WebsocketWatcher(gateway.url) as watcher,
    ):
        await eventually(lambda: watcher.connected, within=PATIENCE)
        yield ClusterRun(
            nats, database, active, standby, gateway, watcher, Traffic(database, pause=SLOW_TRAFFIC["pause"])
        )
