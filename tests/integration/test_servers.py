"""The servers that other tests rely on: they start, die, freeze and come back, and hold what a replay wrote."""

import asyncio
import os
import sys

import aiomqtt
import pymysql
import pytest

from tests.support.eventually import PATIENCE, eventually
from tests.support.mariadb import ROLLED_BACK, MariaDB
from tests.support.mosquitto import Mosquitto
from tests.support.paths import REPOSITORY
from tests.support.replay import MariaDBReplayer, expected, rolled_back
from tests.support.servers import SHARES, ServerError, free_port


async def test_a_replay_into_mariadb_ends_as_expected(database, mixed):
    async with MariaDBReplayer.connect(database) as replayer:
        await replayer.replay(mixed)
        assert await replayer.tables() == expected(mixed)


async def test_a_replay_into_a_rolled_back_schema_ends_as_expected(rolled_back_database, mixed):
    async with MariaDBReplayer.connect(rolled_back_database) as replayer:
        await replayer.replay(rolled_back(mixed))
        assert await replayer.tables() == expected(rolled_back(mixed))


async def test_a_replay_at_the_recorded_pace_lasts_as_long_as_the_recording(database, mixed):
    loop = asyncio.get_running_loop()
    early = [transaction for transaction in mixed if transaction.at < 2]
    start = loop.time()
    async with MariaDBReplayer.connect(database) as replayer:
        await replayer.replay(early, speed=2.0)
        assert loop.time() - start > 0.95
        assert await replayer.tables() == expected(early)


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


async def test_a_killed_mariadb_comes_back_on_its_port_with_what_was_committed(own_mariadb):
    database = await own_mariadb.create_schema()
    port, pid = own_mariadb.port, own_mariadb.pid
    async with database.connect() as connection, connection.cursor() as cursor:
        await cursor.execute("INSERT INTO log_events (level, message) VALUES ('INFO', 'kept')")
        own_mariadb.kill()
        with pytest.raises(pymysql.OperationalError):
            await cursor.execute("SELECT 1")
    with pytest.raises(pymysql.OperationalError):
        await database.run("SELECT 1")
    own_mariadb.start()
    assert own_mariadb.port == port
    assert own_mariadb.pid != pid
    assert await database.run("SELECT message FROM log_events") == [("kept",)]


async def test_a_paused_mariadb_answers_nothing_until_it_is_resumed(own_mariadb):
    async with own_mariadb.connect() as connection, connection.cursor() as cursor:
        own_mariadb.pause()
        asked = asyncio.create_task(cursor.execute("SELECT 1"))
        done, _ = await asyncio.wait({asked}, timeout=0.3)
        assert not done
        own_mariadb.resume()
        assert await asyncio.wait_for(asked, PATIENCE) == 1


async def test_a_paused_mariadb_stops(own_mariadb):
    own_mariadb.pause()
    own_mariadb.stop()
    with pytest.raises(ServerError, match="not running"):
        own_mariadb.pause()


async def test_mariadb_accepts_a_time_zone_and_arguments():
    with MariaDB("--auto-increment-increment=3", time_zone="+05:30") as server:
        database = await server.create_schema()
        assert await database.run("SELECT @@time_zone, @@auto_increment_increment") == [("+05:30", 3)]


async def test_a_killed_broker_comes_back_on_its_port_and_has_forgotten_retained_messages(own_mosquitto):
    port, pid = own_mosquitto.port, own_mosquitto.pid
    async with aiomqtt.Client("127.0.0.1", port) as client:
        await client.publish("a", "1", qos=1, retain=True)
    own_mosquitto.kill()
    with pytest.raises(aiomqtt.MqttError):
        async with aiomqtt.Client("127.0.0.1", port):
            pass
    own_mosquitto.start()
    assert own_mosquitto.port == port
    assert own_mosquitto.pid != pid
    async with aiomqtt.Client("127.0.0.1", port) as client:
        await client.subscribe("#", qos=1)
        await client.publish("b", "2", qos=1)
        assert [str((await anext(client.messages)).topic)] == ["b"]


async def test_a_broker_with_persistence_keeps_retained_messages():
    with Mosquitto(persistence=True) as broker:
        async with aiomqtt.Client("127.0.0.1", broker.port) as client:
            await client.publish("a", "1", qos=1, retain=True)
        broker.stop()
        broker.start()
        async with aiomqtt.Client("127.0.0.1", broker.port) as client:
            await client.subscribe("#", qos=1)
            message = await asyncio.wait_for(anext(client.messages), PATIENCE)
            assert (str(message.topic), message.payload) == ("a", b"1")


async def test_a_broker_with_users_refuses_others():
    with Mosquitto(users={"correlator": "secret"}) as broker:
        async with aiomqtt.Client("127.0.0.1", broker.port, username="correlator", password="secret"):
            pass
        with pytest.raises(aiomqtt.MqttError, match=r"[Nn]ot authori[sz]ed"):
            async with aiomqtt.Client("127.0.0.1", broker.port):
                pass


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
