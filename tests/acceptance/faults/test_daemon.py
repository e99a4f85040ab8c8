"""The daemon breaks: it continues where it was, and each event is published at least once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from correlator.state.checkpoint import VERSION
from tests.support.earlier_build import earlier_build
from tests.support.eventually import eventually
from tests.support.faketime import environment, needs_faketime, set_clock
from tests.support.faults.fault_run import SLOW_TRAFFIC, fault_run
from tests.support.mariadb import Database
from tests.support.mosquitto import Mosquitto


@pytest.mark.timeout(600)
@pytest.mark.parametrize("times", [3, pytest.param(50, marks=pytest.mark.long)])
async def test_killed_at_random_points(times: int, database: Database, mosquitto: Mosquitto, tmp_path: Path):
    rnd = random.Random(times)
    async with fault_run(tmp_path, database, mosquitto, traffic=SLOW_TRAFFIC) as run:
        recoveries = []
        async with run.traffic.running():
            for _ in range(times):
                await run.goes_on(rnd.randint(1, 60))
                assert await run.daemon.kill() == -signal.SIGKILL
                await eventually(lambda: run.listener.state() == "offline")
                await run.daemon.start()
                recoveries.append(await run.recovered())
        await run.verdict(f"daemon: kill -9 at {times} random points", max(recoveries))


async def test_killed_while_events_are_pending_and_a_transaction_is_open(
    database: Database, mosquitto: Mosquitto, tmp_path: Path
):
    async with fault_run(tmp_path, database, mosquitto, traffic=SLOW_TRAFFIC) as run, run.traffic.writer() as writer:
        async with run.traffic.running():
            await run.arrives()
            job_id = await run.traffic.job(writer)
            messages = ("Job started", "one", "two")
            late = [run.traffic.line("WARN", message, {"job_id": job_id}) for message in messages]
            committing = asyncio.create_task(run.traffic.commit(writer, late, hold=4.0))
            run.to_broker.black_hole()
            await run.goes_on(30)
            await run.daemon.saved()
            await run.daemon.kill()
            run.to_broker.heal()
            await run.daemon.start()
            recovery = await run.recovered()
            await committing
        await run.verdict("daemon: kill -9, events pending and a transaction open", recovery)


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_upgraded_and_back_and_upgraded_again(database: Database, mosquitto: Mosquitto, tmp_path: Path):
    """Each version goes on from the checkpoint of the other one; so both have the same form."""
    earlier = await asyncio.to_thread(earlier_build, tmp_path / "earlier")
    assert earlier.form == VERSION
    async with fault_run(tmp_path, database, mosquitto, traffic=SLOW_TRAFFIC, environment=earlier.environ) as run:
        recoveries = []
        async with run.traffic.running():
            for environ in ({}, earlier.environ, {}):
                await run.arrives()
                assert await run.daemon.stop() == 0
                await run.goes_on()
                run.daemon.becomes(environ)
                await run.daemon.start()
                recoveries.append(await run.recovered())
        await run.verdict("daemon: upgraded, the version before installed again, upgraded", max(recoveries))
        repeated = sum(count - 1 for (row, _, _), count in run.listener.events.items() if row is not None)
        assert repeated == 0, "an orderly stop leaves nothing to send again, whichever version follows"
        starts = re.findall(r"correlator (\S+) follows", run.daemon.log())
        assert (len(starts), starts[0] == starts[2], starts[1] == starts[3]) == (4, True, True)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "correlator-faults", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.long
@pytest.mark.skipif(os.getuid() != 0, reason="mounts a file system")
async def test_full_disk(database: Database, mosquitto: Mosquitto, tmp_path: Path, small: Path):
    async with fault_run(tmp_path, database, mosquitto, state__directory=small) as run:
        async with run.traffic.running():
            await run.arrives()
            with contextlib.suppress(OSError), (small / "filling").open("wb", buffering=0) as filling:
                while filling.write(b"\0" * 4096):
                    pass
            await run.degraded("checkpoint")
            await run.goes_on(400)
            (small / "filling").unlink()
            recovery = await run.recovered()
            await run.goes_on()
            # What could not be written then is written now: a crash goes back to it.
            await run.daemon.saved()
            await run.daemon.kill()
            await run.goes_on()
            await run.daemon.start()
            recovery = max(recovery, await run.recovered())
        await run.verdict("daemon: disk full, then killed", recovery)


@pytest.mark.long
@needs_faketime
@pytest.mark.parametrize("jump", ["+2h", "-2h", "-3d"])
async def test_the_clock_jumps(jump: str, database: Database, mosquitto: Mosquitto, tmp_path: Path):
    stamp = tmp_path / "clock"
    async with fault_run(tmp_path, database, mosquitto, environment=environment(stamp)) as run:
        async with run.traffic.running():
            await run.arrives()
            set_clock(stamp, jump)
            await run.arrives(200)
            set_clock(stamp, "+0")
            recovery = await run.recovered()
            await run.goes_on()
        await run.verdict(f"daemon: the clock jumps by {jump} and back", recovery)
