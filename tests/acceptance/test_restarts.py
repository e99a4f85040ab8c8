"""The daemon ends, however it ends, and goes on where it was."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tests.support.appliance import Appliance, connected
from tests.support.daemon import HELLO, Daemon
from tests.support.eventually import eventually
from tests.support.listener import Listener
from tests.support.mariadb import Database, MariaDB
from tests.support.mosquitto import Mosquitto


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


async def test_a_state_directory_that_cannot_be_written_stops_nothing(tmp_path: Path, database: Database):
    (tmp_path / "file").write_text("")
    async with daemon(tmp_path, database, state__directory=tmp_path / "file" / "state") as running:
        await running.start()
        _, ready = await running.get("/health/ready")
        assert (ready["ready"], ready["degraded"], ready["parts"]["checkpoint"]["ok"]) == (True, True, False)
        assert running.log().count("cannot be written") == 1


async def _is(running: Daemon, name: str, status: str | None) -> bool:
    job = await running.job(name)
    assert (job and job["status"]) == status, job
    return True
