"""Readers come back all at once: each gets what it asked for, and nobody waits for them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.acceptance.faults.stage import staged
from tests.acceptance.faults.watchers import Reader
from tests.servers import Database, Mosquitto, eventually
from tests.subscriptions import same

STORM = 500


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_a_storm_of_readers(database: Database, mosquitto: Mosquitto, tmp_path: Path):
    async with staged(tmp_path, database, mosquitto) as stage:
        readers = [Reader(stage.daemon.url) for _ in range(STORM)]
        try:
            async with stage.traffic.running():
                await stage.arrives()
                for _ in range(3):
                    await asyncio.gather(*(reader.__aenter__() for reader in readers))
                    await eventually(lambda: all(reader.connected for reader in readers), within=60)
                    await asyncio.gather(*(reader.__aexit__(None, None, None) for reader in readers))
                await asyncio.gather(*(reader.__aenter__() for reader in readers))
                recovery = await stage.recovered()
                await eventually(lambda: all(reader.connected for reader in readers), within=60)
            await stage.verdict(f"readers: {STORM} come back at once, 4 times", recovery)
            for reader in readers:
                assert reader.jobs.keys() == stage.reader.jobs.keys()
                assert all(same(job, stage.reader.jobs[i]) for i, job in reader.jobs.items())
                assert (reader.twice, reader.dropped) == (0, 0)
        finally:
            await asyncio.gather(*(reader.__aexit__(None, None, None) for reader in readers), return_exceptions=True)
