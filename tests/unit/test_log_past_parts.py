"""How the log's past is read: in parts that the database can give within its deadline."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, call

import pytest

from correlator.errors import SourceUnavailable
from correlator.jobs.index import Index
from correlator.model.published import Outcome
from correlator.model.rows import LogRow
from correlator.ops import metrics
from correlator.pipeline.appliance_clock import ApplianceClock
from correlator.pipeline.source_status import SourceStatus
from correlator.sources.follow import Follower
from correlator.sources.tables.reconcile import Reconcile
from correlator.sources.tail import RECENT, BatchSize, Past, Tail

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
                feed,  # type: ignore[arg-type]
                lambda _: None,
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


async def test_a_failed_read_of_the_past_is_repeated_on_a_new_session_and_ends_no_other(monkeypatch):
    monkeypatch.setattr("correlator.tasks.Backoff.next", lambda _: 0.0)
    database, tail = Sessions(), Tail()
    tail.past = Past.between(0, LAST)

    async def read_past(*_: Any) -> None:
        if database.opened < 3:
            raise SourceUnavailable("no answer within 10 s")
        tail.past = None

    monkeypatch.setattr(Tail, "read_past", lambda _, *given: read_past(*given))
    follower, feed = Follower(database, tail, Reconcile(interval=0.1)), Feed()  # type: ignore[arg-type]
    await follower._past(SimpleNamespace(), feed, lambda: None)  # type: ignore[arg-type]
    assert (database.opened, database.open_now) == (3, 0)
    assert feed.status.past_failed.mock_calls == [call("no answer within 10 s")] * 2


async def test_a_past_that_no_session_can_be_opened_for_shows_in_readiness_log_and_metric(monkeypatch, caplog):
    monkeypatch.setattr("correlator.tasks.Backoff.next", lambda _: 0.0)
    tail, feed = Tail(), Feed()
    feed.status = status = SourceStatus(Index(), ApplianceClock(lambda: 0))
    tail.past = Past.between(0, LAST)
    seen, failed = [], metrics.SOURCE_FAILURES._value.get()

    class Full(Sessions):
        async def open(self) -> Sessions:
            seen.append(status.describe_database()["loading"])
            if len(seen) == 4:
                tail.past = None
            raise SourceUnavailable("too many connections")

    await Follower(Full(), tail, Reconcile(interval=0.1))._past(SimpleNamespace(), feed, lambda: None)  # type: ignore[arg-type]
    assert seen == [{"done": 0, "total": LAST}] * 4
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert metrics.SOURCE_FAILURES._value.get() - failed == 4
