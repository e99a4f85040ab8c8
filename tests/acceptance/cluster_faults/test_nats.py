"""NATS servers break: gateways catch up, nothing is lost, and each event is in the stream once.

The parts by themselves are in `test_cluster_sink.py`, `test_gateway.py` and `test_ordered_consumer.py` in
`tests/integration/`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest

from correlator.cluster import keys, streams
from correlator.cluster.connection import ClusterUnavailable, Connection, Refused
from correlator.gateway.fleet import OFFLINE_AFTER
from tests.support.cluster import connected, create_streams
from tests.support.collectors import has_role
from tests.support.daemon import correlator
from tests.support.eventually import eventually
from tests.support.faults.cluster_run import cluster_run, lifecycle_rows, takeovers
from tests.support.gateways import running
from tests.support.mariadb import Database
from tests.support.nats import Nats, NatsCluster
from tests.support.replay import MariaDBReplayer
from tests.support.stream_writer import StreamWriter

pytestmark = pytest.mark.timeout(400)

UNKNOWN = (
    "the stream is being read",
    "no sign of life of the collector has come since the cluster can be read and written",
)
"""Why a gateway knows nothing of an appliance: it has to read that of jobs again, or that of signs of life alone."""


FROZEN_WITHIN = 20.0
"""Seconds without a change at a gateway after a server of NATS has hung and the active collector has been killed.

NATS's servers need up to 9 s to elect a leader in its place.
"""


async def test_leader_and_active_collector_killed(database: Database, nats_cluster: NatsCluster, tmp_path: Path):
    async with cluster_run(tmp_path, database, nats_cluster) as run:
        async with run.traffic.running():
            await run.goes_on()
            leader = await run.leader()
            await asyncio.gather(asyncio.to_thread(leader.kill), run.active.kill())
            recovery = await run.recovered()
            await run.goes_on()
            await asyncio.to_thread(leader.start)
            await run.active.start(ready=False)
            await run.goes_on()
        await run.verdict("NATS: leader killed with the active collector", recovery)


@pytest.mark.long
async def test_two_servers_of_three_killed(database: Database, nats_cluster: NatsCluster, tmp_path: Path):
    """Nothing can be written, and all say so: the collector, its doctor, and the gateway."""
    async with cluster_run(tmp_path, database, nats_cluster) as run:
        async with run.traffic.running():
            await run.goes_on()
            for server in nats_cluster.servers[1:]:
                await asyncio.to_thread(server.kill)

            async def is_reported() -> bool:
                parts = (await run.active.get("/health/ready"))[1]["parts"]
                assert not parts["cluster"]["ok"]
                assert str(parts["checkpoint"]["error"]).startswith("the checkpoint cannot be written to the cluster: ")
                return bool((await run.gateway.get("/health/ready"))[1]["parts"]["database"]["state"] == "stale")

            await eventually(is_reported)
            async with connected(nats_cluster.servers[0].url, role="doctor") as connection:
                for stream in (keys.STATE, keys.ALIVE):
                    await eventually(partial(is_without_leader, connection, stream))
            _, said, _ = await correlator(run.active, "doctor")
            assert f"{keys.STATE} has no leader" in said
            assert f"no lease can be taken or renewed: most servers of {keys.STATE}, {keys.ALIVE}" in said
            (shown,) = (await run.gateway.get("/api/v1/instances"))[1]["instances"]
            assert shown["online"] is None
            assert shown["error"].partition(": ")[0] in UNKNOWN
            assert "checkpoint: the checkpoint cannot be written to the cluster: " in said
            assert not re.search(r"NATS refuses \d", said), "as if permissions were missing"
            for server in nats_cluster.servers[1:]:
                await asyncio.to_thread(server.start)
            recovery = await run.recovered()
            await run.goes_on()
        await run.verdict("NATS: two of three killed", recovery)
        await run.active.saved()  # It is the active one still, and reports no failure of its checkpoint.
        assert await takeovers(run) == 1


@pytest.mark.long
async def test_a_gateway_at_the_last_server_calls_no_collector_offline_that_cannot_write(nats_cluster: NatsCluster):
    left, *others = nats_cluster.servers
    async with connected(left.url) as connection:
        await streams.create(connection, 3)
        dc1 = StreamWriter(connection, "dc1")
        await dc1.begin()
        await dc1.alive()

        async def leads() -> bool:
            """This server leads the stream and has the gateway's consumer, which then sends heartbeats for ever."""
            stream = (await connection.api(f"STREAM.INFO.{keys.ALIVE}"))["cluster"]["leader"]
            if stream != left.name:
                await connection.api(f"STREAM.LEADER.STEPDOWN.{keys.ALIVE}", {"placement": {"preferred": left.name}})
                return False
            for name in (await connection.api(f"CONSUMER.NAMES.{keys.ALIVE}"))["consumers"]:
                consumer = await connection.api(f"CONSUMER.INFO.{keys.ALIVE}.{name}")
                if consumer["cluster"]["leader"] == left.name:
                    return True
                await connection.api(f"CONSUMER.DELETE.{keys.ALIVE}.{name}")
            return False

        async with running(left.url) as gateway:

            async def online() -> bool | None:
                (one,) = (await gateway.get("/api/v1/instances"))[1]["instances"]
                return bool(one["online"]) if one["online"] is not None else None

            async def renewed() -> bool:
                with contextlib.suppress(ClusterUnavailable, Refused):
                    await dc1.alive()
                return await online() is True

            async def is_offline() -> bool:
                return await online() is False

            await eventually(leads, every=0.5)
            await eventually(renewed)
            assert await leads()
            for server in others:
                await asyncio.to_thread(server.kill)
            end = asyncio.get_running_loop().time() + 3 * OFFLINE_AFTER
            said = set()
            while asyncio.get_running_loop().time() < end:
                said.add(await online())
                await asyncio.sleep(0.1)
            assert said == {True, None}
            for server in others:
                await asyncio.to_thread(server.start)
            await eventually(renewed)
            await eventually(is_offline)  # It could write, and does not.


@pytest.mark.long
async def test_each_server_frozen_in_turn_as_the_active_collector_is_killed(
    database: Database, nats_cluster: NatsCluster, tmp_path: Path
):
    async with cluster_run(tmp_path, database, nats_cluster) as run:
        recoveries = []
        async with run.traffic.running():
            for server in nats_cluster.servers:
                await run.goes_on()
                active = run.active if await has_role(run.active, "active") else run.standby
                await asyncio.to_thread(server.pause)
                try:
                    await active.kill()
                    recoveries.append(await run.recovered())
                finally:
                    server.resume()
                await asyncio.to_thread(nats_cluster.wait)
                await active.start(ready=False)
        await run.verdict("NATS: each server frozen with the active collector killed", max(recoveries))
        assert max(recoveries) < FROZEN_WITHIN


@pytest.mark.long
@pytest.mark.skipif(os.getuid() != 0, reason="mounts file systems")
async def test_the_disk_of_the_only_server_is_full(database: Database, tmp_path: Path):
    nats = Nats()
    with contextlib.ExitStack() as stack:
        stack.callback(nats.close)
        mount(nats, stack)
        stack.callback(nats.stop)
        await asyncio.to_thread(nats.start)
        async with cluster_run(tmp_path, database, nats) as run:

            async def reports(*, late: bool) -> bool:
                ready = [await one.get("/health/ready") for one in (run.active, run.gateway)]
                (shown,) = (await run.gateway.get("/api/v1/instances"))[1]["instances"]
                part = ready[0][1]["parts"]["cluster"]
                assert [(status, found["degraded"]) for status, found in ready] == [(200, late)] * 2
                # A single server keeps the signs of life on its disk too.
                assert (shown["online"], shown["lag_seconds"] > 5) == (not late, late)
                assert (part["unwritten_seconds"] > 5) is late
                assert ("are not in the cluster: " in str(part.get("error"))) is late
                assert ("disk is full" in str(part.get("error")) or "storage" in str(part.get("error"))) is late
                return True

            async with run.traffic.running():
                await run.goes_on()
                filling = nats.folder / "js" / "filling"
                await asyncio.to_thread(fill, filling)
                await eventually(lambda: reports(late=True))
                filling.unlink()
                await asyncio.to_thread(nats.stop)
                await asyncio.to_thread(nats.start)
                recovery = await run.recovered()
                await run.goes_on()
            await run.verdict("NATS: disk of the only server full", recovery)
            await eventually(lambda: reports(late=False))


@pytest.mark.long
@pytest.mark.parametrize("older", [False, True], ids=["lost", "older copy"])
async def test_store_lost_or_an_older_copy_of_it_back_with_a_standby(
    database: Database, nats: Nats, tmp_path: Path, older: bool
):
    """The holder of the lease stays active, and writes all that is missing: its standby can take over."""
    what, files, copy = (
        "older copy of its store back" if older else "store lost",
        nats.folder / "js",
        nats.folder / "copy",
    )
    async with cluster_run(tmp_path, database, nats) as run:
        async with run.traffic.running():
            await run.goes_on(100)
            if older:
                await asyncio.to_thread(nats.stop)
                await asyncio.to_thread(shutil.copytree, files, copy)
                await asyncio.to_thread(nats.start)
                await run.goes_on(100)
        await run.verdict(f"NATS: {what}: before", await run.recovered())
        async with MariaDBReplayer.connect(database) as replayer:
            before = lifecycle_rows(await replayer.tables())
        await asyncio.to_thread(nats.kill)
        await asyncio.to_thread(shutil.rmtree, files)
        if older:
            await asyncio.to_thread(copy.rename, files)
        await asyncio.to_thread(nats.start)
        await create_streams(nats.url)
        kept = before & set(await run.events()) if older else set()
        assert kept < before
        recovery = await run.recovered()
        assert await has_role(run.active, "active")
        assert await takeovers(run) == 1
        await run.active.saved()
        await run.active.kill()
        recovery = max(recovery, await run.recovered())
        again = before & set(await run.events()) - kept
        await run.verdict(f"NATS: {what}, and active killed", recovery, without=before)
        assert not again


async def is_without_leader(connection: Connection, stream: str) -> bool:
    """True if `stream` answers that no server leads it."""
    with contextlib.suppress(ClusterUnavailable, Refused):  # Refused as temporarily unavailable, at first.
        return not ((await streams.info(connection, stream)) or {})["cluster"].get("leader")
    return False


def mount(server: Nats, stack: contextlib.ExitStack) -> None:
    """Give the server a small file system for its streams."""
    folder = server.folder / "js"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "correlator-faults", str(folder)], check=True)
    stack.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as filling:
        while filling.write(bytes(4096)):
            pass
