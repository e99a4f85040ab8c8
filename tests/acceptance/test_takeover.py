"""Two collectors of one appliance: one follows and publishes, the other takes over and goes on where it was."""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from correlator.cluster import keys, streams
from correlator.cluster.connection import Connection, seq_of
from correlator.cluster.fence import put
from correlator.cluster.lease import Lease
from tests.support.appliance import Appliance, connected
from tests.support.background import in_background
from tests.support.cluster import connected as to_nats
from tests.support.cluster import create_streams, never_silent, settings
from tests.support.cluster_harness import read_stream
from tests.support.collectors import cluster_part, collector, has_role, is_active, pair
from tests.support.daemon import Daemon
from tests.support.eventually import PATIENCE, eventually
from tests.support.listener import Listener
from tests.support.mariadb import Database, MariaDB
from tests.support.mosquitto import Mosquitto
from tests.support.nats import Nats

REFUSAL = "this daemon is the standby of dc1: ask the active one, on {}"


async def shows(daemon: Daemon, job_id: str, status: str) -> bool:
    job = await daemon.job(job_id)
    return job is not None and job["status"] == status


async def follows(daemon: Daemon, holder: str) -> bool:
    """True if the daemon is the standby of that holder of the lease."""
    part = await cluster_part(daemon)
    return (part["role"], part.get("active")) == ("standby", holder)


async def counters(server: MariaDB) -> dict[str, int]:
    """Connections and statements that the server has counted, without those of this question."""
    found = await server.run("SHOW GLOBAL STATUS WHERE Variable_name IN ('Connections', 'Com_select')")
    return {name: int(value) for name, value in found}


async def test_a_standby_asks_the_database_nothing_and_says_that_it_is_one(
    tmp_path: Path, own_mariadb: MariaDB, nats: Nats
):
    database = await own_mariadb.create_schema()
    await create_streams(nats.url)
    async with to_nats(nats.url) as connection:
        lease = Lease(connection, connection, settings(nats.url))
        await lease.acquire()
        async with in_background(lease.hold()), collector(tmp_path / "one", database, nats.url) as standby:
            before = await counters(own_mariadb)
            await standby.start(ready=False)
            await eventually(lambda: follows(standby, lease.holder))
            assert (await standby.get("/health/ready"))[0] == 503
            for path in ("jobs", "jobs/nobody?wait=5", "jobs?status=completed", "operations", "stream"):
                status, body = await standby.get(f"/api/v1/{path}")
                assert (status, body["detail"]) == (503, REFUSAL.format(platform.node())), path
            assert standby.session is not None
            async with standby.session.ws_connect("/ws") as ws:
                await ws.send_json({"type": "hello", "version": 1})
                closed = await ws.receive(timeout=PATIENCE)
                assert (closed.data, closed.extra) == (1013, REFUSAL.format(platform.node())[:123])
            await asyncio.sleep(2)
            after = await counters(own_mariadb)
            assert after["Connections"] - before["Connections"] == 1
            assert after["Com_select"] == before["Com_select"]
            assert await standby.stop() == 0


async def test_a_reload_of_a_standby_is_checked_at_once_and_outlasts_each_loss_of_the_lease(
    tmp_path: Path, database: Database, nats: Nats
):
    file = tmp_path / "correlator.toml"
    file.write_text("")
    receiver = '[[webhooks]]\nname = "tickets"\nurl = "https://tickets.example/"\n'

    async def posts() -> bool:
        return "webhooks" in (await daemon.get("/health/ready"))[1]["parts"]

    await create_streams(nats.url)
    async with to_nats(nats.url) as connection:
        lease = Lease(connection, connection, settings(nats.url))
        await lease.acquire()
        holding = asyncio.create_task(lease.hold())
        async with collector(tmp_path / "one", database, nats.url) as daemon:
            daemon.arguments = ("--config", str(file))
            await daemon.start(ready=False)
            await eventually(lambda: follows(daemon, lease.holder))
            file.write_text("[log]\nlevl = 1")
            os.kill(daemon.pid, signal.SIGHUP)
            await eventually(lambda: "did you mean log.level?" in daemon.log())
            file.write_text(receiver)
            os.kill(daemon.pid, signal.SIGHUP)
            await eventually(lambda: "the configuration was reloaded" in daemon.log())
            assert await follows(daemon, lease.holder)
            holding.cancel()
            await asyncio.wait([holding])
            await lease.release()
            await eventually(posts)
            owner = keys.owner("dc1")
            found = await connection.last(keys.STATE, owner)
            assert found is not None
            await put(connection, owner, b"{}", expected=seq_of(found))
            await eventually(lambda: daemon.log().count("this process is the active collector") == 2)
            await eventually(posts)


async def test_a_stopped_active_hands_over_at_once_and_events_reach_the_broker_once_over_a_kill(
    tmp_path: Path, database: Database, appliance: Appliance, nats: Nats, mosquitto: Mosquitto
):
    options: dict[str, Any] = {"mqtt__url": mosquitto.url, "mqtt__instance": "takeover-1"}
    listener = Listener()

    def arrived() -> list[tuple[str, str]]:
        return [(event["kind"], event["job_id"]) for event in listener.events]

    async with (
        listener.listening(mosquitto, "takeover-1"),
        to_nats(nats.url) as connection,
        pair(tmp_path, database, nats.url, **options) as (active, standby),
    ):
        assert "connected to the broker" in active.log()
        assert "connected to the broker" not in standby.log()
        first = await appliance.job()
        await appliance.log("Job started", job_id=first)
        await eventually(lambda: ("job.started", first) in arrived())
        assert await active.stop() == 0
        async with never_silent(connection):
            await eventually(lambda: is_active(standby))
        assert await shows(standby, first, "running")
        await active.start(ready=False)
        await eventually(lambda: has_role(active, "standby"))
        assert await is_active(standby)

        await standby.saved()
        await standby.kill()
        second = await appliance.job()
        await appliance.log("Job started", job_id=second)
        await appliance.end(first)
        await appliance.log("Job completed successfully", job_id=first)
        wanted = [("job.started", first), ("job.started", second), ("job.completed", first)]
        await eventually(lambda: set(wanted) <= set(arrived()))
        await asyncio.sleep(1)
        assert sorted(event for event in arrived() if event in wanted) == sorted(wanted)


async def test_a_suspended_active_that_continues_gets_nothing_stored(
    tmp_path: Path, database: Database, appliance: Appliance, nats: Nats
):
    """Its successor is suspended meanwhile, so that whatever were stored would be its own."""
    async with (
        to_nats(nats.url, role="doctor") as connection,
        pair(tmp_path, database, nats.url) as (active, standby),
    ):
        job_id = await appliance.job()
        await eventually(lambda: shows(active, job_id, "running"))
        os.kill(active.pid, signal.SIGSTOP)
        for n in range(20):  # The former active finds all of this to write when it continues.
            await appliance.job(f"ext-{n}")
        await eventually(lambda: is_active(standby))
        await eventually(lambda: shows(standby, "ext-19", "running"))
        await asyncio.sleep(2)
        os.kill(standby.pid, signal.SIGSTOP)
        try:
            before = await positions(connection)
            os.kill(active.pid, signal.SIGCONT)
            await eventually(lambda: _was_superseded(active))
            await asyncio.sleep(0.5)
            assert await positions(connection) == before
        finally:
            os.kill(standby.pid, signal.SIGCONT)
            os.kill(active.pid, signal.SIGCONT)


async def _was_superseded(daemon: Daemon) -> bool:
    return "another collector is active" in await asyncio.to_thread(daemon.log)


async def positions(connection: Connection) -> dict[str, int]:
    """The last sequence of each stream that is kept."""
    found: dict[str, int] = {}
    for name in (keys.STATE, keys.CHECKPOINT, keys.EVENTS):
        info = await streams.info(connection, name)
        assert info is not None
        found[name] = info["state"]["last_seq"]
    return found


async def test_a_collector_without_nats_waits_and_stops_when_it_is_asked(
    tmp_path: Path, database: Database, nats: Nats
):
    await asyncio.to_thread(nats.kill)
    async with collector(tmp_path / "one", database, nats.url) as waiting:
        await waiting.start(ready=False)
        part = await cluster_part(waiting)
        assert (part["ok"], part["connected"], part["role"]) == (False, False, "standby")
        assert part["error"].startswith("waiting for the lease of dc1, following and publishing nothing until then: ")
        status, body = await waiting.get("/api/v1/jobs")
        assert (status, body["detail"]) == (503, REFUSAL.partition("ask")[0] + "ask the active one, or try again")
        await asyncio.to_thread(nats.start)
        missing = (
            "KV_cor, KV_cor_alive, KV_cor_checkpoint, cor_events do not exist: create with correlator cluster create"
        )
        await eventually(lambda: says(waiting, missing))
        await create_streams(nats.url)
        await eventually(lambda: is_active(waiting))
        await asyncio.to_thread(nats.kill)
        await eventually(lambda: _is_disconnected(waiting))
        assert await is_active(waiting)  # Without NATS the active goes on for its own clients.
        assert await waiting.stop() == 0


async def says(daemon: Daemon, text: str) -> bool:
    return text in str((await cluster_part(daemon)).get("error"))


async def _is_disconnected(daemon: Daemon) -> bool:
    return not (await cluster_part(daemon))["connected"]


async def test_two_appliances_under_one_name_never_follow_each_other_and_both_say_so(
    tmp_path: Path, two_databases: tuple[Database, Database], nats: Nats
):
    ours, others = two_databases
    async with connected(ours) as one, connected(others) as other:
        job_id, foreign = await Appliance(one).job(), await Appliance(other).job()
    async with (
        pair(tmp_path, ours, nats.url) as (active, standby),
        collector(tmp_path / "other", others, nats.url, jobs__max_jobs=5) as stranger,
    ):
        await eventually(lambda: shows(active, job_id, "running"))
        await active.saved()
        await stranger.start(ready=False)

        async def says_so() -> bool:
            part, of_active = await cluster_part(stranger), await cluster_part(active)
            return part.get("other_database") is True and "follows another database" in (of_active["error"] or "")

        await eventually(says_so)
        assert "follow another database" in (await cluster_part(stranger))["error"]
        assert (await active.get("/health/ready"))[1]["degraded"] is True
        async with to_nats(nats.url, role="doctor") as connection:

            async def gateways_know() -> bool:
                found = await connection.last(keys.ALIVE, keys.alive("dc1"))
                return found is not None and "follows another database" in (orjson.loads(found.data)["warning"] or "")

            await eventually(gateways_know)
        await eventually(lambda: _differs(stranger, {"jobs.max_jobs": "20000 there, 5 here"}))
        await active.kill()
        await eventually(lambda: shows(standby, job_id, "running"))
        await standby.saved()
        await standby.kill()  # Without an owner it would take the lease 3 s later.
        await active.start()
        assert await shows(active, job_id, "running")
        assert await active.job(foreign) is None
        assert "is the active collector" not in stranger.log()
        assert "never takes the lease of dc1: the collectors of this instance follow another database" in stranger.log()


async def _differs(daemon: Daemon, settings: dict[str, str]) -> bool:
    return (await cluster_part(daemon)).get("differing") == settings


@pytest.mark.long
@pytest.mark.timeout(400)
async def test_a_takeover_by_a_collector_with_other_limits_publishes_no_event_again(
    tmp_path: Path, database: Database, appliance: Appliance, nats: Nats
):
    """None of the jobs has a log row, so each event is found in the tables, five seconds after its transition."""
    for n in range(200):
        times = f"UTC_TIMESTAMP() - INTERVAL {n // 10 + 1} HOUR"
        await appliance.run(
            "INSERT INTO job_tracking (id, operation, job_type, status, owner, started_at, completed_at) VALUES"
            f" (%s, 'unified-live-failover', 'failover', 'completed', 'system', {times}, {times})",
            f"old-{n}",
        )
    happened: set[tuple[str, str]] = set()
    few: dict[str, Any] = {"jobs__retention": "1800s", "jobs__max_jobs": 5}

    async def happen(daemon: Daemon, count: int) -> None:
        """Let jobs begin and end; return when all their events are in the stream, and no other ones."""
        jobs = [await appliance.job() for _ in range(count)]
        await eventually(lambda: shows(daemon, jobs[-1], "running"))
        for job_id in jobs:
            await appliance.end(job_id)
        happened.update((kind, job_id) for kind in ("job.started", "job.completed") for job_id in jobs)
        await eventually(published)

    async def published() -> bool:
        found = [
            orjson.loads(payload) for _, _, payload in await read_stream(reader, keys.EVENTS, "cor.v1.dc1.event.>")
        ]
        events = [(event["kind"], event["job_id"]) for event in found]
        assert set(events) <= happened
        assert len(events) == len(set(events))
        return set(events) == happened

    await create_streams(nats.url)
    async with (
        to_nats(nats.url, role="doctor") as reader,
        collector(tmp_path / "few", database, nats.url, **few) as one,
        collector(tmp_path / "many", database, nats.url) as other,
    ):
        await one.start()
        await other.start(ready=False)
        for active, standby in ((one, other), (other, one)):
            await eventually(lambda: has_role(standby, "standby"))  # noqa: B023
            await happen(active, 20)
            await active.saved()
            await active.kill()
            await eventually(lambda: is_active(standby))  # noqa: B023
            await happen(standby, 1)
            await active.start(ready=False)


@pytest.mark.long
@pytest.mark.timeout(400)
async def test_the_takeover_takes_less_than_five_seconds(tmp_path: Path, database: Database, nats: Nats):
    """Ten times in turn: the active is killed, and becomes the standby of its successor."""
    took: list[float] = []
    async with connected(database) as raw, pair(tmp_path, database, nats.url) as both:
        appliance: Any = Appliance(raw)
        active, standby = both
        for _ in range(10):
            await active.saved()
            await active.kill()
            began = time.monotonic()
            job_id = await appliance.job()
            await eventually(lambda: shows(standby, job_id, "running"), every=0.02)  # noqa: B023
            took.append(round(time.monotonic() - began, 2))
            await active.start(ready=False)
            await eventually(lambda: has_role(active, "standby"))  # noqa: B023
            active, standby = standby, active
    assert max(took) < 5.0, sorted(took)
