"""A checkpoint belongs to its database, not to the way in which that is reached."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.mariadb import MariaDB


@pytest.fixture
async def left(own_mariadb: MariaDB, tmp_path: Path) -> MariaDB:
    """A server whose job and log line a daemon at 127.0.0.1 has saved."""
    database = await own_mariadb.create_schema("migratekit_oma")
    await database.run(
        "INSERT INTO job_tracking (id, operation, job_type, status, started_at) VALUES"
        " ('11111111-2222-3333-4444-555555555555', 'o', 'failover', 'running', NOW())",
        "INSERT INTO log_events (level, message, ts) VALUES ('INFO', 'a row', NOW(6))",
    )
    async with Daemon(tmp_path, database__url=database.url) as daemon:
        await daemon.saved()
        assert await daemon.stop() == 0
    return own_mariadb


def set_aside(folder: Path) -> list[Path]:
    return [*(folder / "state").glob("*.unusable-*")]


@pytest.mark.parametrize("way", ["localhost", "socket"])
async def test_another_way_to_the_same_database_keeps_the_checkpoint(left: MariaDB, tmp_path: Path, way: str) -> None:
    url = f"mysql://correlator@localhost:{left.port}/migratekit_oma"
    settings = {"database__unix_socket": left.socket} if way == "socket" else {}
    async with Daemon(tmp_path, database__url=url, **settings) as daemon:
        assert (await daemon.get("/health/ready"))[1]["ready"]
        assert "set aside" not in daemon.log()
    assert set_aside(tmp_path) == []


async def test_until_the_database_answers_at_its_new_url_nothing_is_decided(left: MariaDB, tmp_path: Path) -> None:
    left.stop()
    daemon = Daemon(tmp_path, database__url=f"mysql://correlator@localhost:{left.port}/migratekit_oma")
    try:
        await daemon.start(ready=False)
        await eventually(lambda: "unreachable" in daemon.log())
        assert set_aside(tmp_path) == []
        left.start()
        await daemon.until()
        assert set_aside(tmp_path) == []
        left.stop()
        assert await daemon.stop() == 0
    finally:
        await daemon.close()


async def test_the_checkpoint_of_another_appliance_is_set_aside(left: MariaDB, tmp_path: Path) -> None:
    """Its schema has the same name."""
    with MariaDB() as other:
        database = await other.create_schema("migratekit_oma")
        async with Daemon(tmp_path, database__url=database.url) as daemon:
            assert "it is of the database at mysql://correlator@127.0.0.1" in daemon.log()
            assert (await daemon.get("/api/v1/jobs"))[1]["jobs"] == []
    assert len(set_aside(tmp_path)) == 1
