"""What the daemon could not see makes no job stalled, late or overdue, and no such event follows the job's end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

from correlator.forecast.estimate import ROUGH_BELOW
from tests.support.appliance import Appliance, connected
from tests.support.bulk_rows import ago
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.faketime import environment, needs_faketime, set_clock
from tests.support.faults.proxy import Proxy
from tests.support.listener import ENDS, Listener
from tests.support.mariadb import Database
from tests.support.mosquitto import Mosquitto

TOOK = 10.0
"""Seconds that an earlier run took, or a little longer."""

STALLED_AFTER = 6.0
LATENESS = {"job.late", "job.overdue"}
SILENCE = {"job.stalled", "job.recovered"}


class Jobs:
    """Jobs on an appliance: each writes a row once a second until it ends, or is silent from the begin on."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance
        self._lock = asyncio.Lock()
        self.running: dict[str, None] = {}

    async def history(self, daemon: Daemon) -> None:
        """Earlier runs, as many as an announcement needs."""
        for n in range(ROUGH_BELOW + 2):
            job_id = await self._appliance.job(f"run-{n}", started_at=ago(seconds=TOOK))
            assert (await daemon.get(f"/api/v1/jobs/{job_id}?wait=5"))[0] == 200
            await self._appliance.end(job_id)

        async def learned() -> bool:
            status, body = await daemon.get("/api/v1/operations/failover/unified-live-failover")
            return status == 200 and body["runs"] == ROUGH_BELOW + 2

        await eventually(learned)

    async def begin(self, name: str, **columns: Any) -> str:
        async with self._lock:
            job_id = await self._appliance.job(name, **columns)
            await self._appliance.log("Job started", job_id=job_id)
        self.running[job_id] = None
        return job_id

    async def begin_and_die(self) -> str:
        """Begin a job that is silent from then on. No earlier run is like it, so that it is never late."""
        dead = await self.begin("dead", operation="unlike-others")
        self.running.pop(dead)
        return dead

    async def end(self, *job_ids: str) -> None:
        async with self._lock:
            for job_id in job_ids:
                self.running.pop(job_id, None)
                await self._appliance.end(job_id)
                await self._appliance.log("Job completed", job_id=job_id)

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """All that run write a row each second."""

        async def write() -> None:
            while True:
                for job_id in list(self.running):
                    async with self._lock:
                        if job_id in self.running:
                            await self._appliance.log("it goes on", job_id=job_id)
                await asyncio.sleep(1.0)

        task = asyncio.create_task(write())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def at_work(daemon: Daemon, database: Database, broker: Mosquitto) -> AsyncIterator[tuple[Jobs, Listener]]:
    """A daemon that has read earlier runs, new jobs for it, and what the broker delivers of them."""
    try:
        await daemon.start()
        listener = Listener()
        async with connected(database) as connection, listener.listening(broker, database.name):
            jobs = Jobs(Appliance(connection))
            await jobs.history(daemon)
            yield jobs, listener
    finally:
        await daemon.close()


async def is_judged(daemon: Daemon) -> bool:
    _, ready = await daemon.get("/health/ready")
    part = ready["parts"]["database"]
    assert (part["judged_at"] is None) <= (not part["ok"]), part
    return bool(part["ok"])


async def test_a_cut_of_the_database_connection_causes_no_false_alarm_and_hides_no_true_one(
    database: Database, mosquitto: Mosquitto, tmp_path: Path
):
    async with Proxy(database.server.port) as proxy:
        daemon = Daemon(
            tmp_path,
            database__url=database.url.replace(f":{database.server.port}/", f":{proxy.port}/"),
            database__query_timeout="2s",
            database__connect_timeout="2s",
            jobs__stalled_after=f"{STALLED_AFTER:.0f}s",
            mqtt__url=mosquitto.url,
            mqtt__instance=database.name,
        )
        async with at_work(daemon, database, mosquitto) as (jobs, events):
            dead = await jobs.begin_and_die()
            async with jobs.writing():
                for _ in range(2):  # Two generations of jobs that take as long as any before the cut.
                    some = [await jobs.begin(f"before-{n}") for n in range(5)]
                    await asyncio.sleep(TOOK - 3)
                    await jobs.end(*some)
                await eventually(lambda: events.kinds(dead, "job.stalled"))
                some = [await jobs.begin(f"ends-in-it-{n}") for n in range(10)]
                await asyncio.sleep(2)
                proxy.black_hole()
                await asyncio.sleep(TOOK - 5)
                await jobs.end(*some)
                late = [await jobs.begin(f"begins-in-it-{n}") for n in range(10)]
                await asyncio.sleep(2)
                proxy.heal()
                proxy.reset()
                await eventually(lambda: is_judged(daemon))
                await asyncio.sleep(1)
                await jobs.end(*late)
                await eventually(lambda: all(events.kinds(job_id, *ENDS) for job_id in late))
            assert await daemon.stop() == 0
            await daemon.start()
            await eventually(lambda: is_judged(daemon))
            last = await jobs.begin("last")
            await jobs.end(last)
            await eventually(lambda: events.kinds(last, *ENDS))
            assert (await daemon.job(dead))["stalled"]
        alarms = [(e["job_id"], e["kind"]) for e in events.events if e["kind"] in LATENESS | SILENCE]
        assert alarms == [(dead, "job.stalled")]
        assert events.after_ends() == []


@needs_faketime
async def test_a_host_whose_clock_is_wrong_alarms_as_one_whose_clock_is_right(
    database: Database, mosquitto: Mosquitto, tmp_path: Path
):
    stamp = tmp_path / "clock"
    daemon = Daemon(
        tmp_path,
        environment(stamp, "+2h"),
        database__url=database.url,
        jobs__stalled_after=f"{STALLED_AFTER:.0f}s",
        mqtt__url=mosquitto.url,
        mqtt__instance=database.name,
    )
    async with at_work(daemon, database, mosquitto) as (jobs, events):
        dead = await jobs.begin_and_die()
        async with jobs.writing():
            for offset in ("-2h", "+0", "+2h"):  # It is wrong from the start, and is set while jobs run.
                usual = [await jobs.begin(f"usual-{n}{offset}") for n in range(3)]
                await eventually(lambda some=usual: _have_forecasts(daemon, some))  # type: ignore[misc]
                set_clock(stamp, offset)
                await asyncio.sleep(TOOK - 5)
                await jobs.end(*usual)
            late = [await jobs.begin(f"late-{n}") for n in range(3)]
            await eventually(lambda: all(events.kinds(job_id, "job.overdue") for job_id in late))
            await eventually(lambda: events.kinds(dead, "job.stalled"))
            took = time.time() - datetime.fromisoformat((await daemon.job(late[0]))["started_at"]).timestamp()
            assert took < 4 * TOOK, "it was announced long after the end of its forecast"
            await jobs.end(*late)
            await eventually(lambda: all(events.kinds(job_id, *ENDS) for job_id in late))
    alarms = {(e["job_id"], e["kind"]) for e in events.events if e["kind"] in {"job.overdue", *SILENCE}}
    assert alarms == {(dead, "job.stalled"), *((job_id, "job.overdue") for job_id in late)}
    assert {e["job_id"] for e in events.events if e["kind"] == "job.late"} <= {*late}
    assert events.after_ends() == []


async def _have_forecasts(daemon: Daemon, job_ids: list[str]) -> bool:
    return all([(await daemon.job(job_id))["forecast"] is not None for job_id in job_ids])
