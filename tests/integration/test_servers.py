"""The servers that other tests rely on: they start, die, freeze and come back, and hold what a replay wrote."""

import asyncio
import os
import sys

import pymysql
import pytest

from tests.support.eventually import eventually
from tests.support.mariadb import ROLLED_BACK
from tests.support.mosquitto import Mosquitto
from tests.support.paths import REPOSITORY
from tests.support.servers import SHARES, ServerError, free_port


async def test_a_rolled_back_schema_lacks_the_columns_and_their_indexes(rolled_back_database):
    for table, absent in ROLLED_BACK.items():
        columns = {row[0] for row in await rolled_back_database.run(f"SHOW COLUMNS FROM {table}")}
        indexed = {row[4] for row in await rolled_back_database.run(f"SHOW INDEX FROM {table}")}
        assert columns
        assert not columns & set(absent)
        assert indexed <= columns


async def test_the_correlators_account_reads_the_four_tables_and_no_more(database):
    async with database.connect(user="correlator") as connection, connection.cursor() as cursor:
        await cursor.execute("SELECT COUNT(*) FROM log_events")
        assert await cursor.fetchone() == (0,)
        with pytest.raises(pymysql.OperationalError, match="INSERT command denied"):
            await cursor.execute("INSERT INTO log_events (level, message) VALUES ('INFO', 'x')")
        with pytest.raises(pymysql.OperationalError, match="CREATE command denied"):
            await cursor.execute("CREATE TABLE other (id INT)")


async def test_a_port_is_given_once_and_to_one_process_at_a_time():
    code = "from tests.support.servers import free_port\nfor _ in range(150): print(free_port())"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code), cwd=REPOSITORY, stdout=asyncio.subprocess.PIPE
    )
    ours = {free_port() for _ in range(150)}
    out, _ = await process.communicate()
    theirs = {int(port) for port in out.split()}
    assert (len(ours), len(theirs)) == (150, 150)
    assert {port % SHARES for port in ours}.isdisjoint(port % SHARES for port in theirs)


def test_closing_a_server_ends_its_process_and_removes_its_folder():
    with Mosquitto() as broker:
        pid, folder = broker.pid, broker.folder
        assert folder.is_dir()
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_server_that_cannot_start_shows_its_log():
    with pytest.raises(ServerError, match="nonsense"), Mosquitto("nonsense yes"):
        pass


async def test_eventually_waits_for_a_true_value_and_reports_the_last_one():
    values = iter([0, 0, 3])
    assert await eventually(lambda: next(values)) == 3

    async def refused():
        raise ConnectionRefusedError("nobody there")

    with pytest.raises(AssertionError, match="nobody there"):
        await eventually(refused, within=0.1)
    with pytest.raises(AssertionError, match=r"last value: \[\]"):
        await eventually(list, within=0.1)


async def test_eventually_does_not_wait_for_a_condition_that_hangs():
    async with asyncio.timeout(60):
        with pytest.raises(AssertionError, match="TimeoutError"):
            await eventually(asyncio.Event().wait, within=0.1)
