"""The daemon ends, however it ends, and goes on where it was."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from correlator.jobs.index import Index
from correlator.model.facts import Reading
from correlator.model.persisted import Cursor
from correlator.model.rows import JobRecord, StepRecord
from correlator.state.checkpoint import Changes
from correlator.state.checkpoint_file import Checkpoint
from tests.support.appliance import Appliance, connected
from tests.support.daemon import HELLO, Daemon
from tests.support.eventually import PATIENCE, eventually
from tests.support.listener import Listener
from tests.support.mariadb import Database, MariaDB
from tests.support.mosquitto import Mosquitto
from tests.support.servers import free_port
from tests.support.yardstick import interpreter, processor_seconds


@contextlib.asynccontextmanager
async def daemon(folder: Path, database: Database, **settings: Any) -> AsyncIterator[Daemon]:
    found = Daemon(folder, database__url=database.url, **settings)
    try:
        yield found
    finally:
        await found.close()


async def test_a_restart_without_a_database_serves_what_was_known_as_stale(tmp_path: Path, own_mariadb: MariaDB):
    database = await own_mariadb.create_schema()
    async with daemon(tmp_path, database) as running:
        async with connected(database) as connection:
            appliance = Appliance(connection)
            job_id = await appliance.job("gui-1", metadata='{"vm_name": "pgtest2"}')
            await appliance.step(job_id, 1, "validation")
            deleted = await appliance.job("gui-2")
        await running.start()
        before = await running.job("gui-1")
        assert await running.stop() == 0
        await asyncio.to_thread(own_mariadb.stop)
        await running.start()
        code, ready = await running.get("/health/ready")
        assert (code, ready["degraded"]) == (200, True)
        assert ready["parts"]["database"]["state"] in ("stale", "down")
        known = await running.job("gui-1")
        assert {**known, "rev": 0} == {**before, "rev": 0}
        async with running.socket(HELLO) as socket:
            jobs, _ = await socket.snapshot(jobs=["gui-1"])
            assert jobs.keys() == {job_id}
            assert (await socket.until("status"))["source"] in ("stale", "down")
        await asyncio.to_thread(own_mariadb.start)
        async with connected(database) as connection:
            appliance = Appliance(connection)
            await appliance.end(job_id)
            await appliance.run("DELETE FROM job_tracking WHERE id = %s", deleted)
        await eventually(lambda: _is(running, "gui-1", "completed"))
        await eventually(lambda: _is(running, "gui-2", None))


async def test_twenty_thousand_jobs_are_served_soon_after_a_start_without_a_database(tmp_path: Path):
    url = f"mysql://correlator@127.0.0.1:{free_port()}/migratekit_oma"
    index, stamp = Index(), time.time_ns() // 1000
    ids = [str(uuid.UUID(int=n)) for n in range(20_000)]
    for first in range(0, len(ids), 500):
        index.apply([_reading(index, job_id, stamp) for job_id in ids[first : first + 500]], stamp)
    checkpoint = Checkpoint(tmp_path / "state" / "checkpoint.sqlite", url)
    checkpoint.open()
    jobs = index.persistence
    checkpoint.write(Changes(time.time(), Cursor(1), index.state(), {i: jobs.get(i) for i in jobs.changed()}, {}))
    checkpoint.close()
    took, yardstick = [], []
    for _ in range(2):
        yardstick.append(await asyncio.to_thread(interpreter))
        running = Daemon(tmp_path, database__url=url)
        try:
            await running.start(within=2 * PATIENCE)
            known = await running.job("gui-" + ids[-1])
            took.append(processor_seconds(running.pid))
            assert (known["job_id"], known["status"], len(known["steps"])) == (ids[-1], "completed", 8)
            assert (await running.get("/health/ready"))[1]["degraded"]
            assert await running.stop() == 0
        finally:
            await running.close()
    assert min(took) < 8 * min(yardstick), (took, yardstick)


def _reading(index: Index, job_id: str, at: int) -> Reading:
    steps = tuple(StepRecord(int(job_id[-12:], 16) * 10 + n, f"step-{n}", n, "completed", at, at) for n in range(8))
    record = JobRecord(job_id, status="completed", external_job_id=f"gui-{job_id}", started_at=at, completed_at=at)
    return Reading(job_id, index.advance_clock(), record, steps)


async def test_events_are_announced_once_though_the_server_lost_its_last_commits(
    tmp_path: Path, database: Database, mosquitto: Mosquitto
):
    async with (
        connected(database) as connection,
        daemon(tmp_path, database, mqtt__url=mosquitto.url, mqtt__instance="back-1") as running,
    ):
        appliance, listener = Appliance(connection), Listener()
        async with listener.listening(mosquitto, "back-1"):
            await running.start()
            ids = []
            for n in range(60):
                job_id = await appliance.job(f"gui-{n}")
                ids.append(await appliance.log("Job started", attrs={"job_id": job_id}))
            await eventually(lambda: {e["event_id"] for e in listener.events} == set(ids))
            assert await running.stop() == 0
            kept = ids[19]
            await appliance.run("DELETE FROM log_events WHERE id > %s", kept)
            await appliance.run(f"ALTER TABLE log_events AUTO_INCREMENT = {kept + 1}")
            listener.events.clear()
            new = set()
            for n in range(3):
                job_id = await appliance.job(f"new-{n}")
                new.add((job_id, await appliance.log("Job started", attrs={"job_id": job_id})))
            assert max(i for _, i in new) <= ids[-1], "the ids of those rows have come again"
            await running.start()
            await eventually(lambda: {(e["job_id"], e["event_id"]) for e in listener.events} >= new)
            await asyncio.sleep(3)  # a check for a reset, and the rows that it would read
            assert {(e["job_id"], e["event_id"]) for e in listener.events} == new
            assert len(listener.events) == len(new)


async def test_a_damaged_checkpoint_is_set_aside_and_its_folder_belongs_to_one_daemon(
    tmp_path: Path, database: Database
):
    file = tmp_path / "state" / "checkpoint.sqlite"
    async with (
        connected(database) as connection,
        daemon(tmp_path, database) as running,
        daemon(tmp_path, database) as second,
    ):
        await Appliance(connection).job("gui-1")
        await running.start()
        assert await running.stop() == 0
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        await running.start()
        assert (await running.job("gui-1"))["status"] == "running"
        assert len(list(file.parent.glob("checkpoint.sqlite.unusable-*"))) == 1
        assert "set aside" in running.log()
        await second.launch()
        await eventually(lambda: "in use by another correlator" in second.log())
        assert "Traceback" not in running.log() + second.log()


async def test_a_state_directory_that_cannot_be_written_stops_nothing(tmp_path: Path, database: Database):
    (tmp_path / "file").write_text("")
    async with (
        connected(database) as connection,
        daemon(tmp_path, database, state__directory=tmp_path / "file" / "state") as running,
    ):
        await Appliance(connection).job("gui-1")
        await running.start()
        assert (await running.job("gui-1"))["status"] == "running"
        _, ready = await running.get("/health/ready")
        assert (ready["ready"], ready["degraded"], ready["parts"]["checkpoint"]["ok"]) == (True, True, False)
        assert running.log().count("cannot be written") == 1


async def _is(running: Daemon, name: str, status: str | None) -> bool:
    job = await running.job(name)
    return bool((job and job["status"]) == status)
