"""Clients that ask again as soon as they have a reply."""

from __future__ import annotations

from pathlib import Path

from tests.support.mariadb import Database
from tests.support.storms import storms


async def test_clients_that_repeat_small_requests_delay_neither_rows_nor_probes(database: Database, tmp_path: Path):
    async with storms(tmp_path, database, jobs=100) as run:
        await run.verdict(
            "10 connections, resolve",
            "tests.support.storm_clients:lists",
            connections=10,
            path="/api/v1/resolve/gui-{n}",
            seconds=3,
        )
