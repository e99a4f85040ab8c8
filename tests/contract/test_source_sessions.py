"""A session on MariaDB: what the server says of it, what it cannot do, and how every call on it ends in time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from functools import partial

import msgspec
import pytest

from correlator.errors import Away, SourceUnavailable
from correlator.model.persisted import Cursor
from correlator.pipeline.source_status import SourcePart
from correlator.sources.db.mariadb import Address, MariaDBDatabase, MariaDBSession
from correlator.sources.db.session import TABLES, Schema, rows_of
from correlator.sources.tables.reconcile import Reconcile
from correlator.tasks import TURN
from tests.support.eventually import PATIENCE, eventually
from tests.support.servers import free_port
from tests.support.source_databases import Original, RecordingPipeline, open_queries, opened, running_follower
from tests.support.yardstick import turns_of_another_task

HOSTILE = {
    "autocommit": "OFF",
    "sql_mode": "'ANSI_QUOTES,NO_BACKSLASH_ESCAPES,STRICT_ALL_TABLES'",
    "max_statement_time": "0",
    "time_zone": "'-03:00'",
    "sql_select_limit": "3",
    "max_join_size": "1",
    "init_connect": "'SET autocommit = 0, sql_mode = \"ANSI_QUOTES\", sql_select_limit = 2, NAMES latin1'",
}
"""Globals that a session of ours must not be led by; init_connect is run for whoever has no privileges.

The isolation is REPEATABLE READ by default, under which a tail sees nothing new.
"""


@pytest.fixture
async def hostile(mariadb_original):
    """An appliance on a server with other ideas."""
    before = {name: (await mariadb_original.run(f"SELECT @@global.{name}"))[0][0] for name in HOSTILE}
    try:
        for name, value in HOSTILE.items():
            await mariadb_original.run(f"SET GLOBAL {name} = {value}")
        yield mariadb_original
    finally:
        for name, value in before.items():
            await mariadb_original.run(f"SET GLOBAL {name} = %s", value)


@pytest.mark.parametrize("dirty", [False, True], ids=["clean", "dirty"])
async def test_a_session_has_the_expected_settings_whatever_the_server_s_globals(hostile, dirty):
    session = await hostile.source(query_timeout=4.0).open(dirty=dirty)
    (found,) = await session.query(
        "SELECT @@autocommit, @@tx_isolation, @@tx_read_only, @@max_statement_time, @@sql_mode, @@time_zone,"
        " @@character_set_client, @@character_set_results, @@collation_connection,"
        " @@sql_select_limit, @@sql_big_selects, @@global.tx_isolation"
    )
    level = "READ-UNCOMMITTED" if dirty else "READ-COMMITTED"
    texts = ("utf8mb4", "utf8mb4", "utf8mb4_general_ci")
    assert found == (1, level, 1, 3.6, "", "+00:00", *texts, (1 << 64) - 1, 1, "REPEATABLE-READ")
    await session.close()


async def test_no_answer_is_cut_and_no_text_damaged_whatever_the_server_s_globals(hostile):
    jobs = {f"\u00fc\u20ac\U0001f600-{n}" for n in range(5)}
    for job_id in jobs:
        await hostile.job(job_id)
    async with running_follower(hostile.source()) as (received, _):
        for job_id in jobs:
            await hostile.log(f"of {job_id}", job_id=job_id)
        await received.receives(*(f"of {job_id}" for job_id in jobs))
        assert {job.job_id for job in received.hub.published.all()} == jobs


async def test_a_session_that_does_not_stay_as_it_was_set_is_refused(mariadb_original, monkeypatch):
    asked = MariaDBSession.query

    async def lossy(self, sql, args=()):
        # As behind a proxy that keeps what a session sets to itself.
        return () if "ISOLATION LEVEL" in sql else await asked(self, sql, args)

    monkeypatch.setattr(MariaDBSession, "query", lossy)
    with pytest.raises(SourceUnavailable, match=r"sessions do not stay as they are set: .*REPEATABLE-READ"):
        await mariadb_original.source().open()


@pytest.mark.parametrize("dirty", [False, True], ids=["clean", "dirty"])
async def test_a_session_cannot_write_even_where_its_account_may(mariadb_original, dirty):
    tables = mariadb_original.tables
    root = Address(port=tables.server.port, database=tables.name, user="root")
    session = await mariadb_original.source(address=root).open(dirty=dirty)
    with pytest.raises(SourceUnavailable, match="READ ONLY transaction"):
        await session.query("INSERT INTO log_events (level, message) VALUES ('INFO', 'x')")
    assert await mariadb_original.run("SELECT COUNT(*) FROM log_events") == ((0,),)


async def test_each_question_sees_what_was_committed_until_then_and_only_dirty_ones_see_more(mariadb_original):
    source = mariadb_original.source()
    clean, dirty = await source.open(), await source.open(dirty=True)
    count = "SELECT COUNT(*) FROM log_events"

    async def seen() -> tuple[int, int]:
        return (await clean.query(count))[0][0], (await dirty.query(count))[0][0]

    assert await seen() == (0, 0)
    await mariadb_original.log("one")
    assert await seen() == (1, 1)
    async with mariadb_original.transaction() as transaction:
        await transaction.log("two")
        assert await seen() == (1, 2)
        await transaction.rollback()
        assert await seen() == (1, 1)
        await transaction.log("three")
        await transaction.commit()
        assert await seen() == (2, 2)
    await clean.close()
    await dirty.close()


async def test_the_server_ends_a_statement_that_exceeds_the_query_timeout(mariadb_original):
    session = await opened(mariadb_original.source(query_timeout=10.0))
    with pytest.raises(SourceUnavailable, match="max_statement_time exceeded"):  # and not: no answer within 10 s
        await session.query("SELECT SLEEP(100)")
    assert await rows_of(session, tuple[int], "SELECT 1") == [(1,)], "the connection is as before"
    await session.close()


async def test_steps_that_a_transaction_has_not_committed_yet_do_not_stop_those_of_other_jobs(mariadb_original):
    """InnoDB walks over all of them in each query. The jobs together take longer than a part of the query timeout."""
    many, few = [f"many-{n}" for n in range(4)], [f"few-{n}" for n in range(20)]
    for job_id in (*many, *few):
        await mariadb_original.job(job_id)
        await mariadb_original.insert("job_steps", job_id=job_id, seq=1, name=f"of {job_id}")
    received, took = RecordingPipeline(), float("inf")
    async with (
        mariadb_original.tables.connect(autocommit=False) as connection,
        connection.cursor() as cursor,
        open_queries(mariadb_original.source(query_timeout=60.0)) as (queries, session),
    ):
        for job_id in many:
            new = f"SELECT '{job_id}', seq + 1, 'new' FROM seq_1_to_20000"
            await cursor.execute(f"INSERT INTO job_steps (job_id, seq, name) {new}")
        for _ in range(5):
            began = time.monotonic()
            await queries.steps_of(session, {"many-0": None})
            took = min(took, time.monotonic() - began)
        await session.query(f"SET SESSION max_statement_time = {8 * took}")  # A ninth of it is too little for all four.
        with pytest.raises(SourceUnavailable, match="max_statement_time exceeded"):
            await queries.steps_of(session, dict.fromkeys(many), briefly=True)
        await Reconcile().load(queries, session, received)
    found = {job.job_id: len(job.view.steps) for job in received.hub.published.all()}
    assert found == dict.fromkeys((*many, *few), 1)


async def connections(original) -> int:
    ((count,),) = await original.run(
        "SELECT COUNT(*) FROM information_schema.processlist WHERE user = 'correlator' AND db = %s",
        original.tables.name,
    )
    return int(count)


async def test_a_cancelled_question_closes_its_connection_which_is_never_used_again(mariadb_original):
    session = await mariadb_original.source(query_timeout=10 * PATIENCE).open()
    assert await connections(mariadb_original) == 1
    asked = asyncio.create_task(session.query("SELECT SLEEP(300), 'the answer of another question'"))
    await eventually(lambda: sleeping(mariadb_original))
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    with pytest.raises(SourceUnavailable, match="closed"):
        await session.query("SELECT 1")
    await eventually(lambda: gone(mariadb_original))


async def sleeping(original) -> bool:
    found = await original.run(
        "SELECT 1 FROM information_schema.processlist WHERE db = %s AND info LIKE 'SELECT SLEEP%%'",
        original.tables.name,
    )
    return bool(found)


async def gone(original) -> bool:
    return await connections(original) == 0


async def test_questions_asked_at_once_on_one_session_get_their_own_answers(mariadb_original):
    session = await mariadb_original.source().open()
    answers = await asyncio.gather(*(session.query(f"SELECT {n}, SLEEP(0.001)") for n in range(30)))
    assert [a[0][0] for a in answers] == list(range(30))
    await session.close()


class Spins(BaseException):
    """Ends a loop that never awaits: no deadline could."""


async def test_an_answer_of_many_rows_lets_other_tasks_run_all_the_while(mariadb_original):
    numbers = "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 300)"
    session = await opened(mariadb_original.source(query_timeout=PATIENCE))
    try:
        async with turns_of_another_task() as longest:
            rows = await rows_of(session, tuple[int], f"{numbers} SELECT a.i FROM n AS a, n AS b")
    finally:
        await session.close()
    assert len(rows) == 90_000
    assert longest() < 8 * TURN, f"{longest() * 1000:.0f} ms"


class Answering:
    """A connection that answers what a session sets, and nothing else."""

    def __init__(self, number):
        self.number = number
        self.sql = ""

    def thread_id(self):
        return self.number

    def cursor(self):
        return self

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        pass

    async def execute(self, sql, _):
        self.sql = sql
        if "log_events" in sql:
            await asyncio.Event().wait()

    async def fetchall(self):
        return [("autocommit", "ON")] if self.sql.startswith("SHOW SESSION VARIABLES") else []

    def close(self):
        pass


async def test_abandoned_connections_are_forgotten_if_the_connection_that_kills_them_dies(driver):
    attempts, closed = list[int](), list[int]()

    class DeadConnection:
        def cursor(self):
            attempts.append(1)
            if len(attempts) > 100:
                raise Spins
            raise ConnectionResetError("Not connected")

        def close(self):
            closed.append(len(closed) + 1)
            raise AttributeError("the transport is gone")

    connections = [Answering(7), Answering(8), Answering(9), Answering(10)]

    async def connect(*_, **__):
        return connections.pop() if connections else DeadConnection()

    source = MariaDBDatabase(Address(), driver=driver, connect=connect)
    sessions = [await source.open() for _ in range(4)]
    for times, some, tried in (1, sessions[:3], 3), (2, sessions[3:], 4):
        asking = [asyncio.create_task(session.query("SELECT 1 FROM log_events")) for session in some]
        await asyncio.sleep(0)
        for task in asking:
            task.cancel()
        await asyncio.wait(asking)
        await eventually(partial(closed.__contains__, times))
        assert len(attempts) == tried


@pytest.mark.filterwarnings("error")
async def test_a_frozen_server_fails_every_call_within_its_deadline(mariadb_original):
    source = mariadb_original.source(connect_timeout=0.3, query_timeout=0.4)
    session = await opened(source)
    server = mariadb_original.tables.server
    server.pause()
    try:
        asked = session.query("SELECT 1"), session.query("SELECT 2"), source.open()
        first, *_, anew = failures = await asyncio.gather(*asked, return_exceptions=True)
    finally:
        server.resume()
    assert {type(failure) for failure in failures} == {SourceUnavailable}
    assert "no answer within 0.4 s" in str(first)
    assert "no connection within 0.3 s" in str(anew)
    await (await opened(source)).close()


@contextlib.asynccontextmanager
async def passing(port: int, count: int, *, hangs_up: bool) -> AsyncIterator[int]:
    """The port of a peer in between, which passes `count` bytes of the server on and then hangs up, or is silent."""
    over = asyncio.Event()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, questions = await asyncio.open_connection("127.0.0.1", port)

        async def upstream() -> None:
            with contextlib.suppress(OSError):
                while piece := await reader.read(4096):
                    questions.write(piece)

        task = asyncio.create_task(upstream())
        left = count
        while left > 0 and (piece := await answers.read(left)):
            writer.write(piece)
            left -= len(piece)
        if not hangs_up:
            await over.wait()
        task.cancel()
        questions.close()
        writer.close()

    async with await asyncio.start_server(pass_on, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        over.set()


@pytest.mark.parametrize("hangs_up", [True, False], ids=["cut", "silent"])
async def test_a_connection_that_breaks_anywhere_while_it_is_made_fails_in_time_and_leaves_nothing(
    mariadb_original, hangs_up
):
    tables = mariadb_original.tables

    async def ask_on(port: int) -> None:
        address = Address(port=port, database=tables.name)
        session = await mariadb_original.source(address=address, connect_timeout=0.2, query_timeout=0.2).open()
        while True:
            await session.query("SELECT 1")

    for count in (0, 60, 100, 150, 1000):
        async with passing(tables.server.port, count, hangs_up=hangs_up) as port, asyncio.timeout(PATIENCE):
            with pytest.raises(SourceUnavailable):
                await ask_on(port)
    await eventually(lambda: gone(mariadb_original))


WRONG = (
    ({"password": "s3cret"}, r"Access denied for user 'correlator'.*\(1045\)"),
    ({"user": "nobody"}, r"Access denied for user 'nobody'.*\(1045\)"),
    ({"database": "nowhere"}, r"Access denied .* 'nowhere' \(1044\)"),
    ({"user": "root", "database": "nowhere"}, r"Unknown database 'nowhere' \(1049\)"),
    ({"unix_socket": "/nowhere/socket"}, r"/nowhere/socket.*No such file or directory"),
)


async def test_what_is_wrong_with_an_address_is_said_without_its_password(mariadb_original):
    tables = mariadb_original.tables
    for wrong, says in WRONG:
        address = Address(**{"port": tables.server.port, "database": tables.name, **wrong})
        with pytest.raises(SourceUnavailable, match=says) as failed:
            await mariadb_original.source(address=address).open()
        assert "s3cret" not in str(failed.value) + repr(address)


async def test_a_refused_connection_is_reported_at_once(driver):
    with pytest.raises(SourceUnavailable, match=r"[Cc]onnect call failed"):  # and not: no connection within 5 s
        await MariaDBDatabase(Address(port=free_port()), driver=driver).open()


async def test_a_unix_socket_leads_to_the_server(mariadb_original):
    tables = mariadb_original.tables
    address = Address(port=1, database=tables.name, unix_socket=str(tables.server.socket))
    session = await mariadb_original.source(address=address).open()
    assert await session.query("SELECT USER()") == [("correlator@localhost",)]
    await session.close()


async def test_a_revoked_right_is_noticed_while_the_tables_are_idle(one_mariadb):
    """No job runs, so no query names job_steps: the regular check of the schema notices it."""
    name = one_mariadb.tables.name
    async with running_follower(one_mariadb.source(), check_every=0.1, check_lost_every=0.1) as (received, _):
        assert received.hub.readiness["tables"]()["ok"]
        await one_mariadb.run(f"REVOKE SELECT ON `{name}`.job_steps FROM correlator@'%'")
        try:
            # So soon that it is back before the tables have been read without it.
            await eventually(lambda: received.hub.readiness["tables"]()["missing"] == ["job_steps"], every=0.0)
        finally:
            await one_mariadb.run(f"GRANT SELECT ON `{name}`.job_steps TO correlator@'%'")
        await eventually(lambda: received.hub.readiness["tables"]()["ok"])


async def without_attrs(original: Original, received: RecordingPipeline) -> None:
    """A row that is read before the log loses its attrs, and one that is read without them."""
    await original.log("before", attrs='{"n": 1}')
    await received.receives("before")
    await original.run("ALTER TABLE log_events RENAME COLUMN attrs TO away")
    await eventually(lambda: received.status.describe_tables()["missing"] == ["log_events.attrs"])
    await original.log("meanwhile", away='{"n": 2}')
    await received.receives("meanwhile")


async def test_a_table_that_is_away_only_while_the_schema_is_read_is_noticed_soon(one_mariadb, monkeypatch):
    read, found = MariaDBDatabase.schema, list[Schema]()
    rights = f"SELECT ON `{one_mariadb.tables.name}`.job_steps"

    async def schema(self, session):
        if not found:
            await one_mariadb.run(f"REVOKE {rights} FROM correlator@'%'")
        found.append(await read(self, session))
        await one_mariadb.run(f"GRANT {rights} TO correlator@'%'")
        return found[-1]

    monkeypatch.setattr(MariaDBDatabase, "schema", schema)
    async with running_follower(one_mariadb.source(), check_every=0.1, check_lost_every=0.1):
        await eventually(lambda: [one.has("job_steps") for one in found[:2]] == [False, True])


async def test_rows_wait_for_a_column_and_are_read_again_once_it_is_back(one_mariadb):
    """While attrs is away, rows wait for a while; those that were then read without it are read again with it."""
    every = {"check_every": 0.1, "check_lost_every": 0.1}
    source = one_mariadb.source()
    async with running_follower(source, wait_for_columns=0.5, **every) as (received, _):
        await without_attrs(one_mariadb, received)
        assert [r.attrs for r in received.received if r.message == "meanwhile"] == [None]
        assert received.status.describe_database()["state"] == "stale"
        await one_mariadb.run("ALTER TABLE log_events RENAME COLUMN away TO attrs")
        await eventually(lambda: received.received[-1].attrs == '{"n": 2}')
        await one_mariadb.log("after", attrs='{"n": 3}')
        await received.receives("after")
        assert [(r.message, r.attrs) for r in received.received] == [
            ("before", '{"n": 1}'),
            ("meanwhile", None),
            ("meanwhile", '{"n": 2}'),
            ("after", '{"n": 3}'),
        ]
        await eventually(lambda: received.status.describe_database()["state"] == "live")


async def test_a_column_that_was_dropped_for_good_is_no_longer_missed_but_one_not_granted_is(one_mariadb):
    tables, settings = one_mariadb.tables.name, {"check_every": 0.1, "check_lost_every": 0.1, "give_up_after": 1.0}
    async with running_follower(one_mariadb.source(), **settings) as (received, _):
        granted = ", ".join(column for column in TABLES["job_steps"] if column != "error_message")
        await one_mariadb.run(f"REVOKE SELECT ON `{tables}`.job_steps FROM correlator@'%'")
        await one_mariadb.run(f"GRANT SELECT ({granted}) ON `{tables}`.job_steps TO correlator@'%'")
        missing = ["job_steps.error_message"]
        await eventually(lambda: received.status.describe_tables()["missing"] == missing)
        await one_mariadb.run("ALTER TABLE job_tracking DROP COLUMN owner")
        await eventually(lambda: "job_tracking.owner" in received.status.describe_tables()["missing"])
        await eventually(lambda: [*received.status.describe_tables()["states"]] == ["job_steps"])
        assert received.status.describe_tables()["missing"] == missing
        await one_mariadb.run(f"GRANT SELECT ON `{tables}`.job_steps TO correlator@'%'")
        await eventually(lambda: received.status.describe_database()["state"] == "live")


@pytest.mark.parametrize("back", ["before", "after"])
async def test_rows_that_were_read_without_a_column_are_read_again_after_a_restart_too(one_mariadb, back):
    settings = {"check_every": 0.1, "check_lost_every": 0.1, "wait_for_columns": 0.1}
    async with running_follower(one_mariadb.source(), **settings) as (received, tail):
        await without_attrs(one_mariadb, received)
    cursor = msgspec.msgpack.decode(msgspec.msgpack.encode(tail.cursor()), type=Cursor)
    if back == "before":
        await one_mariadb.run("ALTER TABLE log_events RENAME COLUMN away TO attrs")
    async with running_follower(one_mariadb.source(), cursor, **settings) as (received, _):
        if back == "after":
            await one_mariadb.log("later", away='{"n": 3}')
            await received.receives("later")
            await one_mariadb.run("ALTER TABLE log_events RENAME COLUMN away TO attrs")
            await eventually(lambda: not received.status.describe_tables()["missing"])
        await one_mariadb.log("after", attrs='{"n": 4}')
        await received.receives("after")
    late = [None, '{"n": 3}'] if back == "after" else []
    assert [r.attrs for r in received.received] == [*late[:1], '{"n": 2}', *late[1:], '{"n": 4}']


async def test_the_rows_that_are_read_again_are_bounded(one_mariadb):
    every = {"check_every": 0.1, "check_lost_every": 0.1}
    few = {"max_read_again": 3}
    async with running_follower(one_mariadb.source(), None, few, wait_for_columns=0.0, **every) as (received, _):
        await one_mariadb.run("ALTER TABLE log_events RENAME COLUMN attrs TO away")
        await eventually(lambda: received.status.describe_tables()["missing"] == ["log_events.attrs"])
        for number in range(8):
            await one_mariadb.log(f"row {number}")
        await received.receives("row 7")
        await one_mariadb.run("ALTER TABLE log_events RENAME COLUMN away TO attrs")
        await eventually(lambda: received.messages.count("row 7") == 2)
        await one_mariadb.log("after")
        await received.receives("after")
        assert received.messages == [f"row {n}" for n in range(8)] + [f"row {n}" for n in (5, 6, 7)] + ["after"]


async def test_a_failing_table_does_not_stop_the_log_and_its_retries_are_few(one_mariadb):
    connections = "SHOW GLOBAL STATUS LIKE 'Connections'"
    await one_mariadb.run("SET foreign_key_checks = 0")
    async with running_follower(one_mariadb.source()) as (received, _):
        await one_mariadb.run("ALTER TABLE failover_jobs DISCARD TABLESPACE")
        await eventually(lambda: "failover_jobs" in received.status.describe_tables()["states"])
        (before,) = await one_mariadb.run(connections)
        for number in range(50):
            await one_mariadb.log(f"row {number}")
            await received.receives(f"row {number}")
            await asyncio.sleep(0.02)
        states = received.status.describe_tables()["states"]
        assert [(table, state["state"]) for table, state in states.items()] == [("failover_jobs", "failing")]
        (after,) = await one_mariadb.run(connections)
        assert int(after[1]) - int(before[1]) < 20
    await one_mariadb.run("DROP TABLE failover_jobs")


async def test_a_late_row_s_table_is_well_again_once_no_id_is_missing(original):
    async with running_follower(original.source()) as (received, _):
        received.status.part_failed(SourcePart.LATE_ROWS, SourceUnavailable("locked", Away.LOCKED, "log_events"))
        await eventually(lambda: received.status.describe_tables()["ok"])
