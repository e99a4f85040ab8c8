"""One fault: appliance, database, broker and daemon with a proxy before each server, watching clients, and the oracle.

Each test is one fault: it begins with `fault_run`, and breaks something in a block of `FaultRun.fault`, or while
`Traffic` writes, and ends with `FaultRun.verdict`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.daemon import Daemon
from tests.support.eventually import PATIENCE, eventually
from tests.support.faults.oracle import Finding, Oracle, judged
from tests.support.faults.proxy import Proxy
from tests.support.faults.traffic import Line, RetryingWriter, Traffic
from tests.support.faults.watchers import MqttWatcher, WebsocketWatcher
from tests.support.mariadb import Database
from tests.support.mosquitto import Mosquitto
from tests.support.verdicts import Table

SLOW_TRAFFIC = {"pause": 0.6}
"""Traffic of some 30 rows a second, for faults that last: the oracle checks each row."""

RECOVERS_WITHIN = 90.0
SETTLES_WITHIN = 45.0
"""Seconds after the last commit, including the second reading of ended jobs (30 s)."""

_numbers = itertools.count(1)


VERDICTS = Table("faults", "fault", "recovery, s", "rows", "lost", "twice", "MQTT again", "fresh row, ms")
"""Recovery: from the end of the fault; fresh: of one row when all is quiet. docs/guarantees.md has the highest figures
of those of each peer."""


@dataclass
class FaultRun:
    """The parts of one run."""

    database: Database
    to_database: Proxy
    to_broker: Proxy
    daemon: Daemon
    reader: WebsocketWatcher
    listener: MqttWatcher
    traffic: Traffic
    oracle: Oracle

    async def goes_on(self, rows: int = 40, *, within: float = PATIENCE) -> None:
        """So many more rows are committed."""
        wanted = len(self.traffic.acknowledged) + rows
        await eventually(lambda: len(self.traffic.acknowledged) >= wanted, within=within)

    async def receives(self, line: Line) -> None:
        """Wait until the client has that line."""
        await eventually(lambda: line.number in self.reader.received_at, every=0.001)

    async def arrives(self, lines: int = 20) -> None:
        """So many more lines come to the reader."""
        wanted = len(self.reader.lines) + lines
        await eventually(lambda: len(self.reader.lines) >= wanted)

    async def health(self) -> dict[str, Any]:
        """What readiness says: `ready`, `degraded`, `parts`."""
        body: dict[str, Any] = (await self.daemon.get("/health/ready"))[1]
        return body

    async def degraded(self, part: str) -> None:
        """The daemon says that `part` is not well."""

        async def says_so() -> bool:
            health = await self.health()
            found = health["parts"][part]
            return bool(health["degraded"]) and not (found.get("state") == "live" or found.get("ok") is True)

        await eventually(says_so)

    async def well(self) -> None:
        """The daemon is ready and nothing of it degraded, and both watchers are connected."""

        async def is_well() -> bool:
            health = await self.health()
            return health["ready"] and not health["degraded"] and self.reader.connected and self.listener.connected

        await eventually(is_well, within=RECOVERS_WITHIN)

    async def recovered(self) -> float:
        """Seconds from now until a row committed now has come to the reader, and its event to the broker."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with self.traffic.writer() as writer:

            async def new_job_arrives() -> bool:
                # A client that was away does not get older lines: each attempt writes a row of its own.
                await eventually(
                    self._both_connected,
                )
                job_id, row, number = await self._probe(writer)
                event = (row, "job.started", job_id)
                await eventually(lambda: number in self.reader.received_at and event in self.listener.events)
                return True

            await eventually(new_job_arrives, within=RECOVERS_WITHIN)
            await self.well()
            return loop.time() - began

    def _both_connected(self) -> bool:
        assert self.reader.connected, f"the reader is away:\n{self.daemon.log()[-2000:]}"
        assert self.listener.connected, "the MQTT client is away"
        return True

    @asynccontextmanager
    async def fault(self, name: str) -> AsyncIterator[None]:
        """What the block does happens while rows are written. Then the run has to recover, and is judged."""
        async with self.traffic.running():
            await self.arrives()
            yield
            recovery = await self.recovered()
        await self.verdict(name, recovery)

    async def fresh(self) -> float:
        """Seconds from the commit of a row until the reader has it."""
        loop = asyncio.get_running_loop()
        async with self.traffic.writer() as writer:
            job_id, _, _ = await self._probe(writer)
            await eventually(lambda: job_id in self.reader.jobs)
            line = self.traffic.line("INFO", "fresh", job_id=job_id)
            await self.traffic.commit(writer, [line])
            began = loop.time()
            await self.receives(line)
            return max(0.0, self.reader.received_at[line.number] - began)

    async def verdict(self, fault: str, recovery: float) -> None:
        """Judge, once all that was begun has ended, and hold it against the promise."""
        found = await judged(self.oracle, within=SETTLES_WITHIN)
        fresh = await self.fresh()
        if found.clean:
            found = await judged(self.oracle, within=SETTLES_WITHIN)
        again = sum(count - 1 for (row, _, _), count in self.listener.events.items() if row is not None)
        VERDICTS.add(fault, recovery, found.rows, len(found.lost), self.reader.twice, again, round(1000 * fresh))
        self._hold(found)

    def _hold(self, found: Finding) -> None:
        assert not found.wrong, "\n".join([*found.wrong[:10], self.daemon.log()[-2000:]])
        assert not found.lost
        assert self.reader.twice == 0, f"{self.reader.twice} log lines were sent twice"
        assert "Traceback" not in self.daemon.log(), self.daemon.log()[-4000:]

    async def quiet(self) -> None:
        """All that was committed has come everywhere, before anything is broken."""
        found = await judged(self.oracle, within=SETTLES_WITHIN)
        assert found.clean, found.wrong[:10]

    async def _probe(self, writer: RetryingWriter) -> tuple[str, int, int]:
        """A job that begins: (its id, the id of its first row, the number of that)."""
        job_id = await self.traffic.job(writer)
        line = self.traffic.line("INFO", "Job started", {"job_id": job_id})
        return job_id, await self.traffic.commit(writer, [line]), line.number


@asynccontextmanager
async def fault_run(
    folder: Path,
    database: Database,
    broker: Mosquitto,
    *,
    traffic: dict[str, Any] | None = None,
    login: tuple[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    **settings: Any,
) -> AsyncIterator[FaultRun]:
    """A daemon over an empty schema, ready and watched.

    `settings` and `environment` are the daemon's, `traffic` is the writers', `login` is the MQTT client's.
    """
    instance = f"faults-{next(_numbers)}"
    async with Proxy(database.server.port) as to_database, Proxy(broker.port) as to_broker:
        defaults = {
            "database__url": f"mysql://correlator@127.0.0.1:{to_database.port}/{database.name}",
            "database__query_timeout": "2s",
            "database__connect_timeout": "2s",
            "mqtt__url": f"mqtt://127.0.0.1:{to_broker.port}",
            "mqtt__instance": instance,
        }
        async with (
            Daemon(folder, environment, **(defaults | settings)) as daemon,
            WebsocketWatcher(daemon.url) as reader,
            MqttWatcher(broker.port, instance, login) as listener,
        ):
            writers = Traffic(database, **(traffic or {}))
            oracle = Oracle(database, daemon, reader, listener, writers)
            run = FaultRun(database, to_database, to_broker, daemon, reader, listener, writers, oracle)
            await run.well()
            yield run


async def burn(database: Database, count: int) -> None:
    """Ids of the log that no row will ever have."""
    async with database.connect(autocommit=False) as connection, connection.cursor() as cursor:
        await cursor.executemany("INSERT INTO log_events (level, message) VALUES (%s, %s)", [("INFO", "")] * count)
        await connection.rollback()
