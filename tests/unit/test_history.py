"""Reading the earlier runs: it survives failures, waits for the tail and for readiness, and leaves time to others."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from correlator.errors import SourceUnavailable
from correlator.jobs.index import Index
from correlator.model.published import Outcome
from correlator.model.rows import LogRow
from correlator.ops import metrics
from correlator.ops.event_loop import Heartbeats
from correlator.pipeline.source_status import ApplianceClock, SourceStatus
from correlator.sources.follow import Follower
from correlator.sources.reset_markers import RECENT
from correlator.sources.tables.history import History
from correlator.sources.tables.reconcile import LATE_COMMIT, Reconcile
from correlator.sources.tail import BatchSize, Past, Tail
from correlator.tasks import Backoff
from tests.support.earlier_runs import HistoryFeed, ended_job, insert, read_history, read_with
from tests.support.eventually import PATIENCE
from tests.support.metric_values import value
from tests.support.pipeline_harness import PipelineHarness
from tests.support.source_databases import SQLiteOriginal, open_queries
from tests.support.there import there


@pytest.fixture
async def original(tmp_path: Path) -> AsyncIterator[SQLiteOriginal]:
    """Three operations of 25 runs each; some failed."""
    with contextlib.closing(SQLiteOriginal(tmp_path / "appliance.db", rolled_back=False)) as made:
        await insert(
            made,
            "job_tracking",
            [
                ended_job(f"u{n}", n + 1, ("failover", f"op-{n % 3}"), "failed" if n % 10 == 0 else "completed")
                for n in range(75)
            ],
        )
        yield made


class Failing:
    """A session that fails at its n-th query."""

    def __init__(self, session: Any, n: int) -> None:
        self.session = session
        self.left = n

    async def query(self, sql: str, args: Sequence[object] = ()) -> Sequence[tuple[Any, ...]]:
        self.left -= 1
        if self.left < 0:
            raise SourceUnavailable("gone away")
        rows: Sequence[tuple[Any, ...]] = await self.session.query(sql, args)
        return rows

    async def close(self) -> None:
        await self.session.close()


async def test_a_failure_at_any_query_costs_no_run_and_repeats_none(original):
    began = time.time_ns() // 1_000_000_000
    whole = await read_history(original)
    second, after = divmod(there(whole.cutoff) + 1, 1_000_000)
    assert after == 0
    assert began <= second + LATE_COMMIT <= time.time(), "what may not be committed yet is left to the tail"
    failures = 0
    async with open_queries(original.source()) as (queries, session):
        for n in range(2, 8):  # the beginning alone needs two queries
            feed, history = HistoryFeed(), History()
            while not feed.done:
                try:
                    await read_with(queries, Failing(session, n), feed, history)
                except SourceUnavailable:
                    failures += 1
            assert {run.end: run for run in feed.runs} == {run.end: run for run in whole.runs}
            assert len(feed.runs) == 75
    assert failures > 6


async def test_no_query_begins_while_the_tail_has_something_to_catch_up_with(original):
    asked, free = [], asyncio.Event()
    asked_at_turns: asyncio.Queue[int] = asyncio.Queue()
    feed, history = HistoryFeed(), History()

    class Counted(Failing):
        async def query(self, sql: str, args: Sequence[object] = ()) -> Sequence[tuple[Any, ...]]:
            asked.append(sql)
            return await super().query(sql, args)

    async def turn() -> None:
        asked_at_turns.put_nowait(len(asked))
        await free.wait()
        free.clear()

    async with open_queries(original.source()) as (queries, session):
        reading = asyncio.create_task(read_with(queries, Counted(session, 1_000), feed, history, turn))
        counts = []
        async with asyncio.timeout(PATIENCE):
            for _ in range(3):
                counts.append(await asked_at_turns.get())
                free.set()
        assert counts == [2, 4, 6], "the beginning; a slice of the walk and its end; VMs and steps of the first runs"
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading


async def test_after_each_slice_half_of_its_time_passes_without_a_query(original):
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    class Slow(Failing):
        async def query(self, sql: str, args: Sequence[object] = ()) -> Sequence[tuple[Any, ...]]:
            await asyncio.sleep(0.01)
            return await super().query(sql, args)

    feed = await read_history(original, session=lambda opened: Slow(opened, 1_000), history=History(pause=pause))
    assert len(pauses) == 1 + len(feed.calls), "the walk fits into one slice"
    assert min(pauses) >= 0.01, "of two queries of 0.01 s"


class Sessions:
    """A database that opens sessions, and counts those that are open."""

    def __init__(self) -> None:
        self.opened = self.open_now = 0

    async def open(self) -> Sessions:
        self.opened += 1
        self.open_now += 1
        return self

    async def close(self) -> None:
        self.open_now -= 1


class Reading:
    """A history that fails twice, then ends."""

    position = 0

    def __init__(self) -> None:
        self.wanted, self.failures = True, 0

    async def read(self, *_: object) -> None:
        if self.failures < 2:
            self.failures += 1
            raise SourceUnavailable("no answer within 10 s")
        self.wanted = False


def follower_of(database: Sessions, reading: Reading) -> tuple[Follower, SimpleNamespace]:
    status = SourceStatus(Index(), ApplianceClock(lambda: 0))
    feed = SimpleNamespace(status=status, live=Heartbeats(), history_wanted=lambda: reading.wanted)
    parts: Any = {"database": database, "tail": Tail(), "reconcile": Reconcile(), "earlier": reading}
    return Follower(**parts, retry=at_once), feed


def at_once() -> Backoff:
    """Failed reads are tried again without a delay."""
    return Backoff(uniform=lambda: 0.0)


async def test_the_history_is_read_once_and_when_the_daemon_is_ready_and_a_failed_read_is_repeated(caplog):
    database, reading = Sessions(), Reading()
    follower, feed = follower_of(database, reading)
    running = asyncio.create_task(follower._earlier_runs(SimpleNamespace(), feed))  # type: ignore[arg-type]
    await asyncio.sleep(0.15)
    assert database.opened == 0
    feed.status.loading = False
    with caplog.at_level(logging.WARNING):
        await running
    assert (database.opened, reading.failures) == (3, 2)
    assert [r.message for r in caplog.records] == [
        "the history that forecasts need cannot be read, and is tried again: no answer within 10 s"
    ]
    await follower._earlier_runs(SimpleNamespace(), feed)  # type: ignore[arg-type]
    assert database.opened == 3


def test_running_jobs_are_known_by_operation():
    made = PipelineHarness()
    made.read("a", operation="live")
    made.read("b", operation="test", job_type=None)
    made.read("c", "completed", operation="cleanup")
    assert made.index.known.running() == {("failover", "live"): ["a"], ("", "test"): ["b"]}


# -- How the log's past is read: in parts that the database can give within its deadline


LAST = 2_500


class HeavyLog:
    """Rows of which no more than `most` come within the deadline."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.asked: list[int] = []

    def _answer(self, ids: range, limit: int) -> list[LogRow]:
        self.asked.append(limit)
        if min(limit, len(ids)) > self.most:
            raise SourceUnavailable("no answer within 10 s")
        return [LogRow(i, "text", i) for i in ids[:limit]]

    async def light_rows_from(self, _: Any, first: int, limit: int, *, last: int, after: int) -> list[LogRow]:
        return self._answer(range(first, last + 1), limit)

    async def light_rows_upto(self, _: Any, last: int, limit: int) -> list[LogRow]:
        return self._answer(range(last, 0, -1), limit)


class Feed:
    def __init__(self) -> None:
        self.ids: list[int] = []
        self.status: Any = Mock(spec=SourceStatus)
        self.live = Heartbeats()

    def past(self, rows: list[LogRow]) -> Outcome:
        self.ids += [row.id for row in rows]
        return Outcome()

    def show_past(self) -> bool:
        return False


async def test_a_past_of_heavy_rows_is_read_in_smaller_parts_and_each_row_once():
    log, feed, past = HeavyLog(60), Feed(), Past.between(0, LAST)
    missed: list[int] = []
    batch = BatchSize(quick=0.0)

    async def turn() -> None:
        pass

    for connection in range(10):
        try:
            await past.read(
                SimpleNamespace(light_rows_from=log.light_rows_from, rows_in=None),  # type: ignore[arg-type]
                None,  # type: ignore[arg-type]
                feed.past,  # type: ignore[arg-type]
                lambda after, ids, last: missed.extend(set(range(after + 1, last + 1)) - set(ids)),
                turn,
                batch,
            )
            break
        except SourceUnavailable:
            assert connection < 6, "each failure halves what is asked for"
    assert feed.ids == list(range(1, LAST + 1))
    assert (missed, past.at) == ([], LAST)


async def test_a_first_start_on_heavy_newest_rows_succeeds_after_a_few_attempts():
    log, tail = HeavyLog(60), Tail()

    async def ids(*_: Any) -> int:
        return LAST

    queries: Any = SimpleNamespace(light_rows_upto=log.light_rows_upto, last_id=ids, first_since=ids)
    for _ in range(6):
        with pytest.raises(SourceUnavailable):
            await tail.begin(queries, None, 0)  # type: ignore[arg-type]
        if log.asked[-1] <= 120:
            break
    assert log.asked[0] <= RECENT
    await tail.begin(queries, None, 0)  # type: ignore[arg-type]
    assert (tail.started, tail.gaps.head) == (True, LAST)


async def test_a_past_that_cannot_be_read_shows_in_readiness_log_and_metric_and_is_repeated(monkeypatch, caplog):
    tail, feed = Tail(), Feed()
    feed.status = status = SourceStatus(Index(), ApplianceClock(lambda: 0))
    tail.past = Past.between(0, LAST)
    seen, failed = [], value(metrics.SOURCE_FAILURES)

    class Full(Sessions):
        """It opens no session at first; then the first reads fail."""

        async def open(self) -> Sessions:
            seen.append(status.describe_database()["loading"])
            if len(seen) <= 2:
                raise SourceUnavailable("too slow")
            return await super().open()

    async def read_past(*_: Any) -> None:
        if len(seen) <= 4:
            raise SourceUnavailable("too slow")
        tail.past = None

    monkeypatch.setattr(Tail, "read_past", lambda _, *given: read_past(*given))
    database = Full()
    follower = Follower(database, tail, Reconcile(interval=0.1), retry=at_once)  # type: ignore[arg-type]
    await follower._past(SimpleNamespace(), feed)  # type: ignore[arg-type]
    assert seen == [{"done": 0, "total": LAST}] * 5
    assert (database.opened, database.open_now) == (3, 0)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert value(metrics.SOURCE_FAILURES) - failed == 4
