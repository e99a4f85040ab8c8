"""A first start: what the tables say is served at once, however long the log is, and the log's past completes it."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tests.support.appliance import Appliance, connected, now
from tests.support.daemon import HELLO, Daemon
from tests.support.eventually import eventually
from tests.support.faults.proxy import Proxy
from tests.support.listener import Listener
from tests.support.mariadb import Database

JOBS = 50

SLOW = 100_000
"""Bytes a second of a connection over which ten thousand rows of the log take several seconds."""


async def history(database: Database, rows: int) -> list[str]:
    """`JOBS` running jobs, and `rows` rows of the log that belong to them in turn; every tenth is a warning."""
    ids = [str(uuid.uuid5(uuid.NAMESPACE_OID, f"past-{n}")) for n in range(JOBS)]
    async with connected(database) as connection:
        appliance = Appliance(connection)
        for number, job_id in enumerate(ids):
            await appliance.job(f"gui-past-{number}", id=job_id)
        cases = " ".join(f"WHEN {n} THEN '{job_id}'" for n, job_id in enumerate(ids))
        await appliance.run(
            "INSERT INTO log_events (level, message, attrs, ts)"
            " SELECT IF(seq DIV %s %% 10 = 0, 'WARN', 'INFO'), CONCAT('row ', seq),"
            f" CONCAT('{{\"job_id\":\"', CASE seq %% %s {cases} END, '\"}}'),"
            " UTC_TIMESTAMP(6) - INTERVAL 2 HOUR + INTERVAL seq * 1000 MICROSECOND"
            f" FROM seq_0_to_{rows - 1}",
            JOBS,
            JOBS,
        )
    return ids


@contextlib.asynccontextmanager
async def slow_start(folder: Path, database: Database, **settings: Any) -> AsyncIterator[tuple[Daemon, Proxy]]:
    """A daemon without a checkpoint over a slow connection: it is ready long before it has read the log's past.

    However fast the machine is. `heal` the proxy, and the rest is read at once.
    """
    async with Proxy(database.server.port) as proxy:
        proxy.rate = SLOW
        url = f"mysql://correlator@127.0.0.1:{proxy.port}/{database.name}"
        daemon = Daemon(folder, database__url=url, **settings)
        try:
            await daemon.start(complete=False, within=120)
            assert not await complete(daemon)
            yield daemon, proxy
        finally:
            await daemon.close()


async def complete(daemon: Daemon) -> bool:
    return "loading" not in (await daemon.get("/health/ready"))[1]["parts"]["database"]


async def test_documents_are_served_before_the_past_is_read_and_end_equal_to_the_log_over_a_kill(
    tmp_path: Path, database: Database
):
    rows = 50_000
    ids = await history(database, rows)
    async with slow_start(tmp_path, database) as (daemon, proxy):
        part = (await daemon.get("/health/ready"))[1]["parts"]["database"]
        known = await daemon.job("gui-past-0")
        assert (known["status"], known.get("counts_complete")) == ("running", False)
        assert 0 <= part["loading"]["done"] < part["loading"]["total"] == rows
        async with daemon.socket(HELLO) as socket, connected(database) as connection:
            await socket.snapshot(jobs=[ids[0]], logs="INFO")
            appliance = Appliance(connection)
            await appliance.log("news", attrs={"job_id": ids[0]})
            line = await socket.until("log")
            assert line["message"] == "news", "what was there before is no news"
            assert (await daemon.job(ids[1]))["counts_complete"] is False

        async def rows_read() -> int:
            return int((await daemon.get("/health/ready"))[1]["parts"]["database"]["loading"]["done"])

        await eventually(rows_read)
        await daemon.saved()
        await daemon.kill()
        await daemon.start(complete=False)
        await eventually(rows_read)  # it goes on where it was, and is not complete for a moment before either
        assert (await daemon.job(ids[0]))["counts_complete"] is False
        proxy.heal()
        await eventually(lambda: complete(daemon), within=120)
        for number, job_id in enumerate(ids):
            shown = await daemon.job(job_id)
            assert "counts_complete" not in shown
            assert shown["warnings"] == rows // JOBS // 10
            last = "news" if number == 0 else f"row {rows - JOBS + number}"
            assert shown["last_message"]["text"] == last


async def test_only_what_happens_after_the_start_is_announced(tmp_path: Path, database: Database, mosquitto: Any):
    ids = await history(database, 30_000)
    instance, listener = f"first-{uuid.uuid4()}", Listener()
    async with connected(database) as connection, listener.listening(mosquitto, instance):
        appliance, events = Appliance(connection), listener.events
        for job_id in ids[:2]:
            await appliance.log("Job started", attrs={"job_id": job_id}, ts=now(micros=True))
        await appliance.end(ids[1])
        await appliance.log("Job completed", job_id=ids[1])
        settings = {"mqtt__url": mosquitto.url, "mqtt__instance": instance}
        async with slow_start(tmp_path, database, **settings) as (daemon, proxy):
            await appliance.end(ids[0])
            expected = [("job.completed", await appliance.log("Job completed", job_id=ids[0]))]
            other = await appliance.job("gui-new")
            expected.append(("job.started", await appliance.log("Job started", attrs={"job_id": other})))
            proxy.heal()
            await eventually(lambda: complete(daemon))
            # What the tables show without a row is announced after a grace: this is the last such transition.
            await appliance.end(other)
            await eventually(lambda: any(e["job_id"] == other and e["event_id"] is None for e in events))
            assert sorted((e["kind"], e["event_id"]) for e in events if e["event_id"] is not None) == sorted(expected)
            assert len(events) == len(expected) + 1
