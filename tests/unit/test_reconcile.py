"""The polls of the tables continue after an outage where they stopped: no change is missed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

from correlator.errors import Away, SourceUnavailable
from correlator.jobs.sizes import Sizes
from correlator.model.facts import MAX_STEPS, Reading
from correlator.model.published import Outcome
from correlator.model.rows import JobRecord, LegacyRecord
from correlator.ops.event_loop import Heartbeats
from correlator.pipeline.hub import WaitingIds
from correlator.pipeline.source_status import SourcePart
from correlator.sources.db import zones
from correlator.sources.db.queries import Queries
from correlator.sources.db.sqlite import SQLiteDatabase
from correlator.sources.follow import Follower
from correlator.sources.tables import legacy
from correlator.sources.tables.reconcile import (
    BEHIND,
    READ_TOGETHER,
    SEEK_GROWTH,
    STEPS_TOGETHER,
    ZONES_AT_ONCE,
    Absent,
    Cadence,
    Reconcile,
)
from correlator.sources.tail import Tail
from tests.support.background import in_background
from tests.support.eventually import eventually
from tests.support.held import held
from tests.support.source_databases import RecordingPipeline, RecordingSession, SQLiteOriginal, open_queries
from tests.support.yardstick import assert_costs


class Tables:
    """Stands for `Queries` on an appliance without jobs; its clock counts, and it keeps the marks of the polls."""

    def __init__(self) -> None:
        self.schema = SimpleNamespace(has=lambda table, *_: table == "job_tracking")
        self.lost: frozenset[str] = frozenset()
        self.marks: list[str] = []
        self.on_read: Callable[[Sequence[str]], None] = lambda _: None
        """Gets the IDs of the jobs that are read together."""
        self.zone = zones.fixed(0)
        self._hours = itertools.count()

    def lost_of(self, table: str) -> tuple[str, ...]:
        return ()

    def micros(self, timestamp: str) -> int:
        return Queries.micros(timestamp)

    async def clock(self, session: Any, back: float) -> str:
        return f"2026-01-01 {next(self._hours):02}:00:00"

    async def active_ids(self, session: Any) -> set[str]:
        return set()

    async def clock_and_active_count(self, session: Any, back: float) -> tuple[str, int]:
        return await self.clock(session, back), 0

    async def active_since(self, session: Any, since: str) -> dict[str, int]:
        return {}

    async def newest_since(self, session: Any, since: str, column: str, limit: int) -> list[tuple[str, int | None]]:
        return []

    async def ids_since(self, session: Any, since: str, *columns: str) -> set[str]:
        self.marks.append(since)
        return set()

    async def jobs_by_id(self, session: Any, ids: Sequence[str]) -> dict[str, JobRecord]:
        self.on_read(ids)
        return {}

    async def children_of(self, session: Any, ids: Sequence[str]) -> dict[str, Any]:
        return {}


def quiet_feed(live: Heartbeats) -> SimpleNamespace:
    """A feed that knows no job."""
    known = SimpleNamespace(
        active=set,
        joblog_ids=list,
        away=list,
        needs_reading=bool,
        is_new=bool,
        is_in_memory=bool,
        reading=lambda _: None,
    )
    status = SimpleNamespace(
        part_answered=lambda _: None, tables_read=lambda _: None, database_time=lambda *_: None, clock=lambda: 0
    )
    return SimpleNamespace(known=known, waiting_ids=WaitingIds(lambda _: False), live=live, status=status)


@contextlib.asynccontextmanager
async def following(reconcile: Reconcile, tables: Tables, feed: Any, session: Any = None) -> AsyncIterator[None]:
    """Follow on one connection until the block ends."""
    queries: Any = tables
    async with in_background(reconcile.follow(queries, session, feed)):
        yield


async def test_the_first_poll_after_an_outage_covers_the_time_since_the_last_one():
    """Each round reports the time of the database, by no query of its own: the double's clock counts its queries."""
    tables, reconcile = Tables(), Reconcile(interval=0.01)
    feed, reported = quiet_feed(Heartbeats()), list[int]()
    feed.status.database_time = lambda at, took: reported.append(at)

    async def connection(polls: int) -> None:
        wanted = len(tables.marks) + polls
        async with following(reconcile, tables, feed):
            await eventually(lambda: len(tables.marks) >= wanted)

    await connection(3)
    assert reported[:3] == [Queries.micros(f"2026-01-01 0{n}:01:01") for n in (1, 2, 3)]
    before = len(tables.marks)
    assert tables.marks == sorted(tables.marks)
    last_began = int(tables.marks[-1][11:13]) + 1  # the mark of this poll is the next hour's
    await connection(1)
    assert int(tables.marks[before][11:13]) == last_began


async def test_a_zone_that_changes_in_each_answer_has_all_jobs_read_again_once_in_a_while():
    class Moving(Tables):
        async def clock_and_active_count(self, session: Any, back: float) -> tuple[str, int]:
            self.zone.changes += 1
            return await super().clock_and_active_count(session, back)

    everything, count = [f"j{n}" for n in range(40)], 0

    def on_read(ids: Sequence[str]) -> None:
        nonlocal count
        count += len(ids) == len(everything)

    feed = quiet_feed(Heartbeats())
    feed.known.joblog_ids = lambda: everything
    feed.advance_clock, feed.readings = (lambda: 1), (lambda _: Outcome())
    tables, others = Moving(), Moving()
    tables.on_read = others.on_read = on_read
    async with following(Reconcile(interval=0.001), tables, feed):
        await eventually(lambda: tables.zone.changes >= 12)
    assert count == 1 + ZONES_AT_ONCE
    async with following(Reconcile(interval=0.001, zone_every=0.0), others, feed):
        await eventually(lambda: count >= 12)


async def test_after_a_time_without_a_complete_reading_all_active_jobs_are_read_first():
    found: list[str] = []

    class Active(Tables):
        async def active_ids(self, session: Any) -> set[str]:
            return {"j"}

    reconcile, tables, feed = Reconcile(interval=60.0), Active(), quiet_feed(Heartbeats())
    tables.on_read = found.extend
    feed.known.active = lambda: {"j"}
    feed.known.silent_for = lambda *_: 1_000_000.0
    feed.advance_clock, feed.readings = (lambda: 1), (lambda _: Outcome())
    async with following(reconcile, tables, feed):
        await eventually(lambda: tables.marks)
    assert found == ["j"]


async def test_an_idle_poll_asks_for_no_stamps_and_of_failover_jobs_for_ids_alone(tmp_path):
    recorded, feed, reconcile, follower = (
        RecordingSession(),
        RecordingPipeline(),
        Reconcile(interval=0.01),
        legacy.Legacy(),
    )
    asked = recorded.queries
    with contextlib.closing(SQLiteOriginal(tmp_path / "appliance.db", rolled_back=False)) as original:
        async with open_queries(original.source()) as (queries, session):
            for _ in range(2):  # The first poll of a round reads a part of all rows too.
                asked.clear()
                await follower.poll(queries, recorded(session), feed, "2026-01-01 00:00:00")
            assert [sql.partition(" WHERE")[0] for sql, _ in asked] == ["SELECT id FROM failover_jobs"]
            async with in_background(reconcile.follow(queries, recorded, feed)):
                await eventually(lambda: len(asked) >= 10)  # more than the first poll asks
                asked.clear()
                await eventually(lambda: len(asked) >= 6)
                assert len({sql for sql, _ in asked}) == 2, "the clock with a number, and new times"
                await original.job("j")
                await eventually(lambda: any("updated_at >=" in sql for sql, _ in asked))


async def test_queries_that_use_their_whole_timeout_count_as_progress():
    now = 0.0
    live, stuck = Heartbeats(lambda: now), []

    class Slow(Tables):
        async def clock_and_active_count(self, session: Any, back: float) -> tuple[str, int]:
            await session.query("")
            return await super().clock_and_active_count(session, back)

        async def ids_since(self, session: Any, since: str, *columns: str) -> set[str]:
            for _ in range(5):
                await session.query("")
            return await super().ids_since(session, since, *columns)

    async def query(sql: str, args: object = ()) -> list[Any]:
        nonlocal now
        now += 9.9
        stuck.append(live.stuck())
        return []

    async def nothing() -> None: ...

    async def opened(*, dirty: bool = False) -> Any:
        return SimpleNamespace(query=query, close=nothing)

    database, tables = SimpleNamespace(open=opened), Slow()
    follower: Any = Follower(database, Tail(), Reconcile(interval=0.01), patience=35.0)
    follower._loaded = {SourcePart.JOBS}
    async with in_background(follower._jobs(tables, quiet_feed(live))):
        await eventually(lambda: len(stuck) > 20)
    assert not any(stuck)


async def test_the_rest_after_a_slow_poll_of_failover_jobs_counts_as_progress():
    """A poll of four seconds is followed by a rest that is longer than the patience with a task."""
    polls, beats = list[None](), list[None]()

    class Resting(legacy.Legacy):
        async def poll(self, *_: object) -> None:
            polls.append(None)
            self._next = time.monotonic() + 60.0

    queries, feed = Tables(), quiet_feed(Heartbeats())
    resting: Any = Resting(interval=0.01).follow(queries, None, feed, lambda: beats.append(None))  # type: ignore[arg-type]
    async with in_background(resting):
        await eventually(lambda: len(beats) >= 5)
    assert len(polls) == 1


async def test_after_a_restart_what_runs_and_is_new_is_read_before_what_had_ended():
    ended = {f"ended-{n}" for n in range(2 * BEHIND)}
    found: list[set[str]] = []
    reconcile, tables, feed = Reconcile(interval=0.01), Tables(), quiet_feed(Heartbeats())

    class Restarted(Tables):
        async def active_ids(self, session: Any) -> set[str]:
            return {"running", "new", "ended-5"}  # the last one goes on

        async def newest_since(self, session: Any, since: str, column: str, limit: int) -> list[tuple[str, int | None]]:
            return [("ended-6", 1), ("ended meanwhile", 2)]

    def on_read(ids: Sequence[str]) -> None:
        assert len(ids) <= READ_TOGETHER
        if "ended-7" in ids and failing:
            raise failing.pop()
        found[-1].update(ids)

    async def run(work: Coroutine[Any, Any, None]) -> None:
        found.append(set())
        await work

    async def until_read(again: bool) -> None:
        task = asyncio.create_task(reconcile.follow(tables, None, feed))  # type: ignore[arg-type]
        await eventually(lambda: task.done() or feed.status.well)
        assert task.done() is not again
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, SourceUnavailable):
            await task

    failing = [SourceUnavailable("slow", Away.SLOW, "job_tracking")]
    tables = Restarted()
    tables.on_read = on_read
    feed.known.joblog_ids = lambda: [*ended, "running"]
    feed.known.has_ended = feed.known.is_in_memory = lambda i: i in ended
    feed.known.silent_for = lambda *_: 0.0
    feed.advance_clock, feed.readings = (lambda: 1), (lambda _: Outcome())
    feed.status.well, feed.status.restored_jobs = False, True
    feed.status.read_again = lambda part: setattr(feed.status, "well", part is SourcePart.JOBS)
    await run(reconcile.load(tables, None, feed))  # type: ignore[arg-type]
    assert found == [{"running", "new", "ended-5", "ended meanwhile"}]
    assert not feed.status.well
    await run(until_read(again=False))  # A query that fails is one that follows again.
    await run(until_read(again=True))
    assert ended - {"ended-5"} <= found[1] | found[2]


async def test_the_rows_of_failover_jobs_that_wait_for_their_owner_are_bounded(caplog):
    class Orphans(Tables):
        limits = Sizes()
        dialect = SQLiteDatabase.dialect

        async def last_legacy_id(self, session: Any) -> int:
            return 100

        async def legacy_where(self, session: Any, where: str, *_: Any) -> list[LegacyRecord]:
            return [LegacyRecord(n, f"nobody-{n}") for n in range(1, 101)]

    async def query(sql: str, args: object = ()) -> list[Any]:
        return []

    applied: list[LegacyRecord] = []
    feed = SimpleNamespace(
        known=SimpleNamespace(legacy_rows=list, is_unsettled=lambda _: False, is_undecided=lambda _: True),
        legacy=lambda rows, _, past: applied.extend(rows),
        decide_legacy=lambda *_: None,
    )

    async def away(*, dirty: bool = False) -> Any:
        raise SourceUnavailable("away")

    follower, orphans = legacy.Legacy(max_searched=10), Orphans()
    await follower.load(orphans, SimpleNamespace(query=query), feed)  # type: ignore[arg-type]
    assert len(applied) == 100
    with caplog.at_level(logging.INFO):
        async with in_background(follower.search(SimpleNamespace(open=away), orphans, feed)):  # type: ignore[arg-type]
            await eventually(lambda: caplog.messages)
    assert caplog.messages[0].startswith("the owners of 10 rows of failover_jobs cannot be searched for")


def test_a_start_takes_as_long_for_each_undecided_row_of_failover_jobs_however_many_there_are():
    """Each is judged by itself: with a look at all those before it, ten times the rows took a hundred times as long."""

    class Undecided(Tables):
        limits, dialect, count = Sizes(metadata=2_000_000, error=1_000_000), SQLiteDatabase.dialect, 0

        async def last_legacy_id(self, session: Any) -> int:
            return self.count

        async def legacy_where(self, session: Any, where: str, *_: Any) -> list[LegacyRecord]:
            found = re.search(r"id > (\d+) ORDER BY id LIMIT (\d+)", where)
            first, most = map(int, found.groups()) if found is not None else (0, 0)
            return [LegacyRecord(n, f"nobody-{n}") for n in range(first + 1, min(first + most, self.count) + 1)]

    async def query(sql: str, args: object = ()) -> list[Any]:
        return []

    async def load(count: int) -> None:
        tables, feed = Undecided(), RecordingPipeline()
        tables.count = count
        await legacy.Legacy().load(tables, SimpleNamespace(query=query), feed)  # type: ignore[arg-type]
        assert len(feed.known.legacy_rows()) == count

    assert_costs(25, lambda: asyncio.run(load(300)), lambda: asyncio.run(load(3_000)))


async def test_a_job_whose_steps_are_slow_holds_up_no_other_and_is_read_by_itself():
    """Together they take too long. After that, the slow one is read after all others, and by itself."""

    class Uncommitted(Tables):
        def __init__(self) -> None:
            super().__init__()
            self.schema = SimpleNamespace(has=lambda *_: True)
            self.read: list[list[str]] = []

        async def steps_of(self, session: Any, starts: Sequence[str], *, briefly: bool) -> dict[str, Any]:
            self.read.append(list(starts))
            assert briefly is (len(starts) > 1)
            if "j1" in starts:
                if briefly:
                    raise SourceUnavailable("slow", Away.SLOW, "job_steps")
                await asyncio.sleep(0.05)
            return {}

    tables, feed, found = Uncommitted(), quiet_feed(Heartbeats()), list[Reading]()
    feed.advance_clock = lambda: 1

    def readings(some: Iterable[Reading]) -> Outcome:
        found.extend(some)
        return Outcome()

    feed.readings, reconcile = readings, Reconcile(slow_alone=0.04)

    async def read() -> list[list[str]]:
        tables.read, found[:] = [], []
        await reconcile._read(tables, None, feed, ["j0", "j1", "j2"])  # type: ignore[arg-type]
        assert sorted(one.job_id for one in found if one.steps is not None) == ["j0", "j1", "j2"]
        return tables.read

    assert await read() == [["j0", "j1", "j2"], ["j0"], ["j1"], ["j2"]]
    assert await read() == [["j0", "j2"], ["j1"]]


# -- Jobs that are silent are read rarely, and never too rarely; a sign of life is enough to be read at once


JOBS = {f"job-{n}" for n in range(1_000)}
LONG_SILENT = 100_000.0


def polls(cadence: Cadence, jobs: set[str], first: int, last: int) -> list[list[str]]:
    """What is due at each second."""
    return [cadence.due(jobs, lambda _: LONG_SILENT, float(now), 120.0) for now in range(first, last)]


def test_jobs_that_are_gone_are_looked_for_often_at_first_and_whenever_another_goes():
    absent, found, away = Absent(1.0), [], ["a"]
    for second in range(600):
        if second == 300:
            away.append("b")
        if absent.is_due(away, float(second)):
            found.append(second)
    assert found[:5] == [0, 1, 2, 3, 4]
    assert found[found.index(300) :][:3] == [300, 301, 302]
    assert max(later - one for one, later in itertools.pairwise(found)) <= 600 / SEEK_GROWTH
    assert not absent.is_due([], 700.0)


def test_each_silent_job_is_read_within_the_longest_interval():
    """Evenly: no second has three times as many as it would have if all had the same."""
    cadence = Cadence(1.0)
    for first in (0, 121, 242):
        read = polls(cadence, JOBS, first, first + 121)
        assert {i for found in read for i in found} == JOBS
        assert sum(map(len, read)) <= 1.1 * len(JOBS)
        assert max(map(len, read)) < 3 * len(JOBS) / 120


def test_a_touched_job_is_read_at_the_next_poll_and_then_every_second_for_a_while():
    cadence = Cadence(1.0)
    polls(cadence, JOBS, 0, 130)
    cadence.touch(["job-7", "unknown"], 130.5)
    assert all("job-7" in found for found in polls(cadence, JOBS, 131, 141))
    polls(cadence, set(), 141, 300)
    assert held(cadence) < 90 * len(JOBS), "bytes of empty tables: no name and no time of jobs that have ended"
    assert not cadence.lively(300.0)


def test_the_interval_grows_with_the_silence():
    cadence = Cadence(1.0)
    alive = [t for t in range(5_000) if cadence.due({"a"}, lambda _: 0.0, float(t), 120.0)]
    gaps = [b - a for a, b in itertools.pairwise(alive)]
    assert gaps == sorted(gaps)
    assert (gaps[1], gaps[-1]) == (1, 120)
    assert len(alive) < 100


async def test_no_call_applies_more_steps_than_it_may(tmp_path):
    feed, steps = RecordingPipeline(), list[list[int]]()

    def counted(readings: Iterable[Reading]) -> Outcome:
        found = list(readings)
        steps.append([len(one.steps or ()) for one in found])
        return feed.hub.readings(found)

    feed.readings = counted
    with contextlib.closing(SQLiteOriginal(tmp_path / "appliance.db", rolled_back=False)) as original:
        for n in range(20):
            await original.job(f"u{n:02}")
        await original.run(
            "INSERT INTO job_steps (job_id, name, seq, status, started_at) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL"
            f" SELECT i + 1 FROM n WHERE i < {STEPS_TOGETHER + 1}) SELECT id, 's', i, 'running', '2026-03-01 10:00:00'"
            " FROM job_tracking, n WHERE i <= CASE id WHEN 'u05' THEN 9000 WHEN 'u06' THEN 9000 ELSE 300 END"
        )
        async with open_queries(original.source()) as (queries, session):
            await Reconcile().load(queries, session, feed)
    assert sorted(n for part in steps for n in part) == [300] * 18 + [MAX_STEPS] * 2
    assert max(map(sum, steps)) <= STEPS_TOGETHER
    assert len(steps) < 10
