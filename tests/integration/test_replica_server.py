"""A database that is a replica: readiness and doctor say how far it is behind, and that its replication has stopped."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiomysql
import pytest

from correlator.sources.db.mariadb import Address, MariaDBDatabase
from correlator.sources.db.session import Replication
from tests.support.daemon import Daemon, correlator
from tests.support.eventually import PATIENCE, eventually
from tests.support.mariadb import Database, MariaDB


class Pair:
    """A primary with the tables of an appliance, and a replica of it."""

    def __init__(self, primary: Database, replica: MariaDB) -> None:
        self.primary, self.replica = primary, replica

    async def write(self, message: str) -> None:
        await self.primary.run(f"INSERT INTO log_events (level, message, ts) VALUES ('INFO', '{message}', NOW(6))")

    async def arrived(self, message: str) -> bool:
        sql = f"SELECT 1 FROM {self.primary.name}.log_events WHERE message = '{message}'"
        try:
            return bool(await self.replica.run(sql))
        except aiomysql.Error:  # the table has not arrived
            return False


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    first, second = MariaDB("--log-bin=b", "--server-id=1"), MariaDB("--server-id=2", "--relay-log=r")
    try:
        await asyncio.gather(asyncio.to_thread(first.start), asyncio.to_thread(second.start))
        ((file, position, *_),) = await first.run("SHOW MASTER STATUS")
        database = await first.create_schema()
        await first.run("CREATE USER copies@'%'", "GRANT REPLICATION SLAVE ON *.* TO copies@'%'")
        await second.run(
            f"CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT={first.port}, MASTER_USER='copies',"
            f" MASTER_LOG_FILE='{file}', MASTER_LOG_POS={position}, MASTER_USE_GTID=no,"
            " MASTER_SSL_VERIFY_SERVER_CERT=0",
            "START SLAVE",
        )
        made = Pair(database, second)
        await made.write("first")
        await eventually(lambda: made.arrived("first"))
        yield made
    finally:
        first.close()
        second.close()


def url_of(pair: Pair) -> str:
    return f"mysql://correlator@127.0.0.1:{pair.replica.port}/{pair.primary.name}"


async def part(daemon: Daemon) -> Any:
    return (await daemon.get("/health/ready"))[1]["parts"]["database"]


async def of_doctor(daemon: Daemon) -> Any:
    _, report, _ = await correlator(daemon, "doctor", "-o", "json")
    return {check["name"]: check for check in json.loads(report)["checks"]}.get("database.replica")


@pytest.mark.filterwarnings("ignore:RESET SLAVE is implicitly")
@pytest.mark.parametrize("driver", ["aiomysql", "asyncmy"])
async def test_a_replica_says_what_it_is_and_with_the_right_how_far_it_is_behind(pair: Pair, driver: str) -> None:
    async def seen(server: MariaDB) -> Replication | None:
        address = Address(port=server.port, database=pair.primary.name)
        database = MariaDBDatabase(address, driver=driver, connect_timeout=PATIENCE)  # type: ignore[arg-type]
        session = await database.open()
        try:
            return await database.replication(session)
        finally:
            await session.close()

    assert await seen(pair.primary.server) is None
    assert await seen(pair.replica) == Replication(running=True)
    await pair.replica.run("GRANT REPLICA MONITOR ON *.* TO correlator@'%'")
    assert await seen(pair.replica) == Replication(running=True, behind=0.0)
    for thread in ("SQL_THREAD", "IO_THREAD"):
        await pair.replica.run(f"STOP SLAVE {thread}")
        assert await seen(pair.replica) == Replication(running=False)
        await pair.replica.run("START SLAVE")
    await pair.replica.run("STOP SLAVE", "RESET SLAVE ALL")
    assert await seen(pair.replica) is None


async def test_a_replica_that_has_stopped_is_not_live_without_lag(pair: Pair, tmp_path: Path) -> None:
    async with Daemon(tmp_path, database__url=url_of(pair)) as daemon:
        assert (await part(daemon))["ok"]
        check = await of_doctor(daemon)
        assert (check["status"], "REPLICA MONITOR" in str(check["detail"])) == ("ok", True), check
        await pair.replica.run("STOP SLAVE SQL_THREAD")
        await pair.write("second")

        async def behind() -> Any:
            found = await part(daemon)
            return found["lag_seconds"] > 0 and "its replication has stopped" in str(found["error"]) and not found["ok"]

        await eventually(behind)
        check = await of_doctor(daemon)
        assert (check["status"], check["summary"]) == ("failure", "replication has stopped"), check
        assert "START REPLICA;" in str(check["fix"])
        await pair.replica.run("START SLAVE SQL_THREAD")

        async def well() -> bool:
            found = await part(daemon)
            return bool(found["ok"]) and found["lag_seconds"] == 0.0

        await eventually(well)


async def test_a_replica_that_became_the_primary_is_not_behind(pair: Pair, tmp_path: Path) -> None:
    async with Daemon(tmp_path, database__url=url_of(pair)) as daemon:
        await pair.replica.run("STOP SLAVE")

        async def stopped() -> bool:
            found = await part(daemon)
            assert "stopped" in str(found["error"]), found
            return True

        await eventually(stopped)

        async def written() -> bool:
            insert = "INSERT INTO log_events (level, message, ts) VALUES ('INFO', 'x', NOW(6))"
            await pair.replica.run(insert, database=pair.primary.name)
            return bool((await part(daemon))["ok"])

        await eventually(written, every=1.0)
