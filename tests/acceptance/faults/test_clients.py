"""Clients that reconnect all at once: each gets what it asked for, and no other waits for them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.faults.fault_run import fault_run
from tests.support.faults.watchers import WebsocketWatcher
from tests.support.mariadb import Database
from tests.support.mosquitto import Mosquitto
from tests.support.subscriptions import same

STORM = 500


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_a_storm_of_clients(database: Database, mosquitto: Mosquitto, tmp_path: Path):
    async with fault_run(tmp_path, database, mosquitto) as run:
        readers = [WebsocketWatcher(run.daemon.url) for _ in range(STORM)]
        try:
            async with run.traffic.running():
                await run.arrives()
                for _ in range(3):
                    await asyncio.gather(*(reader.__aenter__() for reader in readers))
                    await eventually(lambda: all(reader.connected for reader in readers))
                    await asyncio.gather(*(reader.__aexit__(None, None, None) for reader in readers))
                await asyncio.gather(*(reader.__aenter__() for reader in readers))
                recovery = await run.recovered()
                await eventually(lambda: all(reader.connected for reader in readers))
            await run.verdict(f"clients: {STORM} reconnect at once, 4 times", recovery)
            for reader in readers:
                assert reader.jobs.keys() == run.reader.jobs.keys()
                assert all(same(job, run.reader.jobs[i]) for i, job in reader.jobs.items())
                assert (reader.twice, reader.dropped) == (0, 0)
        finally:
            await asyncio.gather(*(reader.__aexit__(None, None, None) for reader in readers), return_exceptions=True)
