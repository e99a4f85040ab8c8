"""A source at work: every committed row once, in whatever order ids become visible, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from datetime import UTC, datetime, timedelta

import pytest

from correlator.errors import OtherDatabase, SourceUnavailable
from correlator.jobs.sizes import Sizes
from correlator.pipeline.queries import FindLines, JobQuery, LineQuery, LogLines
from correlator.pipeline.source_status import SourceStatus
from correlator.sources.archive.archive import DatabaseArchive
from correlator.sources.follow import Follower
from correlator.sources.tables.legacy import Legacy
from correlator.sources.tables.reconcile import Reconcile
from correlator.sources.tail import Tail
from correlator.tasks import end_tasks
from tests.support.appliance import now
from tests.support.archive_queries import archive_of, names
from tests.support.bulk_rows import ago
from tests.support.eventually import eventually
from tests.support.source_databases import (
    LyingDatabase,
    RecordingPipeline,
    SQLiteOriginal,
    open_queries,
    running_follower,
)


def once(received) -> bool:
    return len(received.ids) == len(set(received.ids))


async def test_rows_before_and_after_the_start_are_read_once(either_original):
    original = either_original
    for number in range(5):
        await original.log(f"old {number}")
    async with running_follower(original.source()) as (received, _):
        await received.receives("old 4")
        for number in range(5):
            await original.log(f"new {number}")
        await received.receives("new 4")
        assert received.messages == [f"old {n}" for n in range(5)] + [f"new {n}" for n in range(5)]


async def test_a_first_start_reads_the_history_by_the_clock_of_the_database(original, monkeypatch):
    for message, minutes in (("too old", 90), ("old", 30)):
        await original.log(message, ts=ago(minutes=minutes))
    host = time.time
    monkeypatch.setattr(time, "time", lambda: host() + 7200)
    async with running_follower(original.source(), history=3600.0) as (received, _):
        await original.log("new")
        await received.receives("new")
        assert received.messages == ["old", "new"]


async def test_in_a_cluster_no_other_database_is_followed_than_that_of_the_checkpoint(original):
    """A backup of it has some of its jobs; another appliance, or an empty one, has none."""
    names = [await original.job(f"j{number:03}") for number in range(3)]
    async with running_follower(original.source()) as (received, tail):
        await received.receives()
        assert tail.cursor().sample == tuple(names)
    for expected, same in (((), True), (("of a later job", "j001"), True), (("of another appliance",), False)):
        follower = Follower(original.source(), Tail(), Reconcile())
        follower.expect(expected)
        received = RecordingPipeline()
        running = asyncio.create_task(follower.run(received))
        await eventually(lambda: running.done() or received.status.tables_loaded.is_set())  # noqa: B023
        assert running.done() is not same
        if not same:
            assert [type(error) for error in causes(running.exception())] == [OtherDatabase]
            assert not len(received.known.joblog_ids())
        await end_tasks({running})


def causes(error):
    return (
        [cause for one in error.exceptions for cause in causes(one)] if isinstance(error, ExceptionGroup) else [error]
    )


async def test_rows_that_are_committed_below_the_head_are_read_when_they_become_visible(original):
    async with (
        running_follower(original.source()) as (received, tail),
        original.transaction() as slow,
        original.transaction() as slower,
    ):
        first = await slower.log("slower")
        second = await slow.log("slow")
        third = await original.log("quick")
        assert first < second < third
        await received.receives("quick")
        assert received.messages == ["quick"]
        assert len(tail.gaps.newest(100)) == 2
        await slow.commit()
        await received.receives("slow")
        assert received.messages == ["quick", "slow"]
        await slower.commit()
        await received.receives("slower")
        assert received.messages == ["quick", "slow", "slower"]
        await eventually(lambda: not tail.gaps.open)


async def test_a_row_whose_transaction_outlasts_the_grace_is_read_after_its_commit_only(one_mariadb):
    async with (
        running_follower(one_mariadb.source(), grace=0.2) as (received, tail),
        one_mariadb.transaction() as slow,
    ):
        await slow.log("slow")
        await one_mariadb.log("quick")
        await received.receives("quick")
        await eventually(lambda: tail.gaps.oldest(time.monotonic()) > 3 * 0.2)
        assert received.messages == ["quick"]
        assert len(tail.gaps.newest(100)) == 1
        await slow.commit()
        await received.receives("slow")
        assert received.messages == ["quick", "slow"]


async def test_rows_after_a_truncate_are_new_also_if_the_last_one_read_was_of_the_future(original):
    later = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%d %H:%M:%S.%f")
    async with running_follower(original.source()) as (received, _):
        await original.log("restored", ts=(datetime.now(UTC) - timedelta(hours=1)).strftime("%Y-%m-%d %H:%M:%S.%f"))
        await original.log("of the future", ts=later)
        await received.receives("of the future")
        await original.truncate_log()
        await original.log("restored again", ts=(datetime.now(UTC) - timedelta(hours=1)).strftime("%Y-%m-%d %H:%M:%S"))
        for number in range(3):
            await original.log(f"new {number}")
        await received.receives("restored again", "new 0", "new 1", "new 2")
        assert received.followed == ["restored", "of the future", "new 0", "new 1", "new 2"]
        assert received.errors == []


PRECISIONS = ("datetime(0)", "datetime(3)", "datetime(6)", "timestamp(6)")


async def test_other_times_of_rows_repeat_nothing_whether_a_person_or_a_precision_changed_them(mariadb_original):
    original = mariadb_original
    later = "UPDATE log_events SET ts = ts + INTERVAL 7 MINUTE"
    changes = [*(f"ALTER TABLE log_events MODIFY ts {kind} NOT NULL" for kind in PRECISIONS), later]
    async with running_follower(original.source()) as (received, _):
        for number in range(20):
            await original.log(f"old {number}")
        await received.receives("old 19")
        for number, change in enumerate(changes):
            await original.run(change)
            await original.log(f"new {number}")
            await received.receives(f"new {number}")
        assert received.messages == [*(f"old {n}" for n in range(20)), *(f"new {n}" for n in range(len(changes)))]


async def test_a_log_that_is_emptied_and_refilled_repeats_nothing(original):
    async with running_follower(original.source()) as (received, tail):
        rows = [{"id": n, "message": f"old {n}", "level": "INFO", "ts": now(micros=True)} for n in range(1, 21)]
        for row in rows:
            await original.insert("log_events", **row)
        await received.receives("old 20")
        await original.truncate_log()
        await eventually(lambda: tail.gaps.head == 0)
        for row in rows:
            await original.insert("log_events", **row)
        await original.log("new")
        await received.receives("new")
        await eventually(lambda: len(received.came_back) == 20)
        assert received.messages == [*(f"old {n}" for n in range(1, 21)), "new"]


async def test_the_log_of_a_job_that_runs_again_after_it_left_memory_is_read_again(original):
    began, ended = ago(hours=30), ago(hours=29)
    await original.job("j", status="failed", started_at=began, completed_at=ended)
    for number in range(3):
        await original.log(f"of before {number}", job_id="j", level="WARN", ts=ago(hours=2))
    async with running_follower(original.source(), collect_returned=0.0) as (received, _):
        await received.receives("of before 2")
        await eventually(lambda: not received.known.active())
        assert received.view("j") is None
        await original.run("UPDATE job_tracking SET status = 'running', completed_at = NULL WHERE id = 'j'")
        await eventually(lambda: (view := received.view("j")) is not None and view.warnings == 3)
        assert received.followed == []


def judged(status: SourceStatus) -> str:
    """What it says of the database now: the pipeline judges it every second."""
    status.judge()
    return status.problem


async def test_tables_that_cannot_be_used_are_not_called_an_unreachable_database(one_mariadb, caplog):
    async with running_follower(one_mariadb.source(), check_every=0.1) as (received, _):
        status = received.status
        await eventually(lambda: status.database == "live")
        await one_mariadb.run("RENAME TABLE job_steps TO elsewhere")
        await eventually(lambda: status.problem.startswith("a table of the database is not read: job_steps"))
        await one_mariadb.run("ALTER TABLE log_events CHANGE message text VARCHAR(999)")
        await eventually(lambda: judged(status).startswith("the database answers, and cannot be followed: "))
    assert "unreachable" not in caplog.text


async def test_rows_stay_the_same_when_the_deletion_of_their_job_clears_their_column(original):
    async with running_follower(original.source()) as (received, _):
        await original.job("u1")
        await original.log("its row", job_id="u1")
        await received.receives("its row")
        await original.run("DELETE FROM job_tracking WHERE id = 'u1'")
        assert await original.run("SELECT job_id FROM log_events") in ([(None,)], ((None,),))
        await original.log("another")
        await received.receives("another")
        assert received.messages == ["its row", "another"]


async def test_rows_that_name_their_job_in_another_case_belong_to_it_live_and_in_its_log(one_mariadb):
    """The foreign key of the column compares by its collation, which ignores case."""
    await one_mariadb.job("u0")
    await one_mariadb.log("it warned", job_id="U0", level="WARN")
    async with running_follower(one_mariadb.source()) as (received, _):
        await one_mariadb.job("u1", started_at=now())
        for name in ("U0", "U1"):
            await one_mariadb.log("Job failed", job_id=name, level="ERROR")
        await eventually(lambda: [counts(received, name) for name in ("u0", "u1")] == [(1, 1), (0, 1)])
        assert sorted(received.known.joblog_ids()) == ["u0", "u1"]
    async with archive_of(one_mariadb) as archive:
        page = await archive.lines(LogLines(names("u1"), None, 10, LineQuery()))
    assert [line.message for line in page.lines] == ["Job failed"]


def counts(received: RecordingPipeline, job_id: str) -> tuple[int, int] | None:
    """The warnings and errors of a job."""
    view = received.view(job_id)
    return (view.warnings, view.errors) if view is not None else None


async def test_a_connection_that_the_server_ends_costs_no_row(mariadb_original):
    name = mariadb_original.tables.name
    async with running_follower(mariadb_original.source()) as (received, _), mariadb_original.transaction() as slow:
        await slow.log("committed during the reset")
        await mariadb_original.log("before")
        await received.receives("before")
        for (thread,) in await mariadb_original.run(
            "SELECT id FROM information_schema.processlist WHERE user = 'correlator' AND db = %s", name
        ):
            with contextlib.suppress(Exception):  # it may have gone with another
                await mariadb_original.run(f"KILL {thread}")
        await slow.commit()
        await mariadb_original.log("after")
        await received.receives("committed during the reset", "after")
        assert received.errors
        assert once(received)


async def test_writers_that_commit_late_and_roll_back_lose_nothing(original):
    chance = random.Random(2)
    committed: list[int] = []

    async def write(pauses: list[float], fates: list[bool]) -> None:
        for pause, kept in zip(pauses, fates, strict=True):
            async with original.transaction(step=chance.choice((1, 1, 3))) as transaction:
                ids = [await transaction.log("x") for _ in range(chance.randint(1, 5))]
                await asyncio.sleep(pause)
                if kept:
                    await transaction.commit()
                    committed.extend(ids)
                else:
                    await transaction.rollback()

    async with running_follower(original.source(), grace=1.0) as (received, tail):
        await asyncio.gather(
            *(
                write([chance.random() * 0.15 for _ in range(6)], [chance.random() > 0.1 for _ in range(6)])
                for _ in range(8)
            )
        )
        await eventually(lambda: set(committed) <= set(received.ids))
        assert sorted(received.ids) == sorted(committed)
        await eventually(lambda: not tail.gaps.open)  # ids that are three apart or rolled back are not awaited for ever


async def test_nothing_is_ever_said_to_the_server_but_questions(mariadb_original):
    """By the server's own log of statements. SET concerns the session, SHOW and SELECT read."""
    name = mariadb_original.tables.name
    await mariadb_original.run("SET GLOBAL log_output = 'TABLE'")
    await mariadb_original.run("SET GLOBAL general_log = ON")
    try:
        async with (
            running_follower(mariadb_original.source(zone=None)) as (received, _),
            mariadb_original.transaction() as slow,
        ):
            await slow.log("late")
            await mariadb_original.job("u1")
            await mariadb_original.log("row", attrs='{"job_id":"u1"}')
            await received.receives("row")
            await slow.commit()
            await received.receives("late")
    finally:
        await mariadb_original.run("SET GLOBAL general_log = OFF")
        await mariadb_original.run("SET GLOBAL log_output = 'FILE'")
    statements = await mariadb_original.run(
        "SELECT command_type, CONVERT(argument USING utf8mb4) FROM mysql.general_log"
        " WHERE user_host LIKE '%%correlator%%' AND thread_id IN"
        " (SELECT thread_id FROM mysql.general_log WHERE argument LIKE %s)",
        f"%correlator@% on {name} %",
    )
    await mariadb_original.run("TRUNCATE mysql.general_log")
    kinds = {kind for kind, _ in statements}
    assert {"Connect", "Query"} <= kinds <= {"Connect", "Query", "Quit"}
    words = {re.split(r"\s", text.lstrip(), maxsplit=1)[0].upper() for kind, text in statements if kind == "Query"}
    # The end of the follower may end a query that still runs.
    assert words - {"KILL"} == {"SELECT", "SHOW", "SET"}
    settings = {text for kind, text in statements if kind == "Query" and text.upper().startswith("SET")}
    assert all(re.match(r"SET (SESSION|AUTOCOMMIT|NAMES) ?", s, re.IGNORECASE) for s in settings), settings
    assert not any("FOR UPDATE" in text.upper() or "LOCK IN" in text.upper() for _, text in statements)


async def test_of_the_ended_legacy_rows_a_start_reads_the_newest_and_a_few_at_once(original, monkeypatch):
    row = {"vm_id": "vm-1", "job_type": "live", "source_vm_name": "pg", "created_at": now(), "updated_at": now()}
    for number in range(60):
        status = "completed" if number % 6 else "snapshotting"
        await original.insert("failover_jobs", job_id=f"legacy-{number}", status=status, **row)
    received, sizes = RecordingPipeline(), list[int]()
    follower = Legacy(max_jobs=20)
    async with open_queries(original.source(), limits=Sizes(metadata=400_000, error=100_000)) as (queries, session):
        read = queries.legacy_where

        async def counted(*args):
            rows = await read(*args)
            sizes.append(len(rows))
            return rows

        monkeypatch.setattr(queries, "legacy_where", counted)
        await follower.load(queries, session, received)
    known = {record.job_id for record in received.known.legacy_rows()}
    unfinished = {f"legacy-{n}" for n in range(0, 60, 6)}
    ended = [f"legacy-{n}" for n in range(60) if n % 6]
    assert known == unfinished | {*ended[-20:]}
    assert max(sizes) <= 8
    assert received.hub.published.newest_removed > 0


async def test_a_legacy_job_that_ended_leaves_when_its_row_is_deleted(original):
    row = {"vm_id": "vm-1", "job_type": "live", "status": "failed", "source_vm_name": "pg"}
    row |= dict.fromkeys(("created_at", "updated_at", "completed_at"), now())
    await original.insert("failover_jobs", job_id="unified-1", **row)
    received, follower = RecordingPipeline(), Legacy()
    async with open_queries(original.source()) as (queries, session):
        mark = await queries.clock(session, 60)
        await follower.poll(queries, session, received, mark)
        received.decide_legacy((), ["unified-1"])
        assert received.known.legacy_rows() != received.known.unsettled_legacy() == []
        await original.run("DELETE FROM failover_jobs")
        await Legacy().poll(queries, session, received, mark)
    assert received.known.legacy_rows() == []


async def filled(original) -> None:
    """Rows in each table: of a job that runs and one that has ended, with steps and lines."""
    legacy = {"vm_id": "vm-1", "job_type": "live", "source_vm_name": "pg", "created_at": now(), "updated_at": now()}
    for job_id, status in (("u-1", "running"), ("u-2", "completed")):
        ended = {"completed_at": now()} if status == "completed" else {}
        await original.job(job_id, status=status, started_at=ago(minutes=1), metadata='{"vm_name": "pg"}', **ended)
        await original.insert(
            "job_steps", job_id=job_id, name="copy", seq=1, status=status, started_at=now(micros=True)
        )
        await original.insert("failover_jobs", job_id=f"old-{job_id}", status="completed", **legacy)
        for n in range(3):
            await original.log(f"{job_id} line {n}", job_id=job_id, attrs='{"percent": 5}')


@pytest.mark.parametrize("seed", range(2))
async def test_no_type_of_a_value_that_the_database_answers_ends_the_source(tmp_path, seed):
    with contextlib.closing(SQLiteOriginal(tmp_path / "appliance.db", rolled_back=False)) as original:
        await filled(original)
        lying = LyingDatabase(original.source(), random.Random(seed), lies=0.0)
        async with running_follower(lying) as (received, _):
            lying.lies = 0.2
            await eventually(lambda: len(lying.told) >= 100)
            lying.lies = 0.0
            await original.log("after all of it")
            await received.receives("after all of it")


async def test_a_value_of_another_type_is_named_and_the_rest_goes_on(tmp_path):
    with contextlib.closing(SQLiteOriginal(tmp_path / "appliance.db", rolled_back=False)) as original:
        await filled(original)
        lying = LyingDatabase(original.source(), random.Random(1), lies=0.0)

        def answer(sql, rows):
            return [(*row[:2], "soon", *row[3:]) for row in rows] if "FROM log_events WHERE id >=" in sql else rows

        async with running_follower(lying) as (received, _):
            lying.answer = answer
            await original.log("one more")
            await eventually(lambda: "the server answered what log_events.ts cannot be" in " ".join(received.errors))
            await original.job("u-3")
            await eventually(lambda: received.view("u-3"))
            lying.answer = lying.lie
            await received.receives("one more")


@pytest.mark.parametrize("seed", range(2))
async def test_no_type_of_a_value_that_the_database_answers_fails_a_request_otherwise(tmp_path, seed):
    with contextlib.closing(SQLiteOriginal(tmp_path / "appliance.db", rolled_back=False)) as original:
        await filled(original)
        lying = LyingDatabase(original.source(), random.Random(seed), lies=0.0)
        archive, logical_time = DatabaseArchive(lying, page_within=1.0, jobs_within=1.0), lambda: 7
        asked = names("u-1", external=("ext",), steps=(1,))
        questions = (
            lambda: archive.find("u-1", logical_time),
            lambda: archive.find("nobody", logical_time),
            lambda: archive.find("old-u-1", logical_time),
            lambda: archive.is_context("c"),
            lambda: archive.page(JobQuery(), None, 10, logical_time, lambda _: False),
            lambda: archive.page(JobQuery(text="u"), None, 10, logical_time, lambda _: False),
            lambda: archive.lines(LogLines(asked, None, 10, LineQuery())),
            lambda: archive.lines(LogLines(asked, None, 10, LineQuery("WARN"), before=100)),
            lambda: archive.find_lines(FindLines(10, LineQuery(text="line"))),
        )
        try:
            while len(lying.told) < 150:
                for ask in questions:
                    lying.lies = 0.2
                    with contextlib.suppress(SourceUnavailable):
                        await ask()
                    lying.lies = 0.0
            for ask in questions:
                await ask()
        finally:
            await archive.close()
