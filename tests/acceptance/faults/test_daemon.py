"""The daemon breaks: it goes on where it was, and each event is told at least once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.faults.stage import LEISURELY, for_a_while, staged
from tests.servers import Database, Mosquitto, eventually

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), Path("/none"))


@pytest.mark.parametrize("times", [3, pytest.param(50, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
async def test_killed_at_random_points(times: int, database: Database, mosquitto: Mosquitto, tmp_path: Path):
    rnd = random.Random(times)
    async with staged(tmp_path, database, mosquitto, traffic=LEISURELY if times > 3 else {}) as stage:
        recoveries = []
        async with stage.traffic.running():
            for _ in range(times):
                await stage.goes_on(rnd.randint(1, 60 if times > 3 else 200))
                assert await stage.daemon.kill() == -signal.SIGKILL
                await eventually(lambda: stage.listener.state() == "offline")
                await stage.daemon.start()
                recoveries.append(await stage.recovered())
        await stage.verdict(f"daemon: kill -9 at {times} random points", max(recoveries))


async def test_killed_while_events_are_owed_and_a_transaction_is_open(
    database: Database, mosquitto: Mosquitto, tmp_path: Path
):
    async with staged(tmp_path, database, mosquitto, traffic=LEISURELY) as stage, stage.traffic.hand() as hand:
        async with stage.traffic.running():
            await stage.arrives()
            job_id = await stage.traffic.job(hand)
            told = ("Job started", "one", "two")
            late = [stage.traffic.line("WARN", message, {"job_id": job_id}) for message in told]
            committing = asyncio.create_task(stage.traffic.commit(hand, late, hold=4.0))
            stage.to_broker.black_hole()
            await stage.goes_on(30)
            await stage.saved()
            await stage.daemon.kill()
            stage.to_broker.heal()
            await stage.daemon.start()
            recovery = await stage.recovered()
            await committing
        await stage.verdict("daemon: kill -9, events owed and a transaction open", recovery)


@pytest.mark.long
async def test_restarted(database: Database, mosquitto: Mosquitto, tmp_path: Path):
    async with staged(tmp_path, database, mosquitto) as stage:
        recoveries = []
        async with stage.traffic.running():
            for _ in range(5):
                await stage.arrives()
                assert await stage.daemon.stop() == 0
                await eventually(lambda: stage.listener.state() == "offline")
                await stage.goes_on()
                await stage.daemon.start()
                recoveries.append(await stage.recovered())
        await stage.verdict("daemon: SIGTERM and start, 5 times", max(recoveries))
        told = sum(count - 1 for (row, _, _), count in stage.listener.events.items() if row is not None)
        assert told == 0, "a farewell in time leaves nothing to tell again"


@pytest.mark.long
async def test_frozen(database: Database, mosquitto: Mosquitto, tmp_path: Path):
    # Not more rows than fit the 1 MiB of lines that wait for a reader: beyond it they are dropped, and that is told.
    async with staged(tmp_path, database, mosquitto, traffic=LEISURELY) as stage:
        async with stage.traffic.running():
            await stage.arrives()
            stage.daemon.signal(signal.SIGSTOP)
            try:
                await eventually(lambda: stage.listener.state() == "offline", within=30)
                await for_a_while(20)
            finally:
                stage.daemon.signal(signal.SIGCONT)
            recovery = await stage.recovered()
        await stage.verdict("daemon: frozen (SIGSTOP) for 30 s", recovery)


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
    async with staged(tmp_path, database, mosquitto, state__directory=small) as stage:
        async with stage.traffic.running():
            await stage.arrives()
            with contextlib.suppress(OSError), (small / "filling").open("wb", buffering=0) as filling:
                while filling.write(b"\0" * 4096):
                    pass
            await stage.degraded("checkpoint")
            await stage.goes_on(400)
            (small / "filling").unlink()
            recovery = await stage.recovered()
            await stage.goes_on()
            # What could not be written then is written now: a crash goes back to it.
            await stage.saved()
            await stage.daemon.kill()
            await stage.goes_on()
            await stage.daemon.start()
            recovery = max(recovery, await stage.recovered())
        await stage.verdict("daemon: disk full, then killed", recovery)


@pytest.mark.long
@pytest.mark.skipif(not FAKETIME.exists(), reason="libfaketime is not installed")
@pytest.mark.parametrize("jump", ["+2h", "-2h", "-3d"])
async def test_the_clock_jumps(jump: str, database: Database, mosquitto: Mosquitto, tmp_path: Path):
    stamp = tmp_path / "clock"
    stamp.write_text("+0")
    clock = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(stamp),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    async with staged(tmp_path, database, mosquitto, environment=clock) as stage:
        async with stage.traffic.running():
            await stage.arrives()
            stamp.write_text(jump)
            await stage.arrives(200)
            stamp.write_text("+0")
            recovery = await stage.recovered()
            await stage.goes_on()
        await stage.verdict(f"daemon: the clock jumps by {jump} and back", recovery)
