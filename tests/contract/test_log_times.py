"""Where in the log times are: what is read for it, what is certain, and what is said if it is not; in MariaDB."""

from __future__ import annotations

import functools
import tracemalloc
from datetime import UTC, datetime
from typing import Any

import pytest

from correlator.pipeline.queries import LineQuery, LogLines
from correlator.sources.db import log_times
from correlator.sources.db.log_times import LogTimes
from tests.support.archive_queries import archive_of, names
from tests.support.eventually import PATIENCE
from tests.support.source_databases import RecordingSession, open_queries

MINUTE, DAY = 60_000_000, 86_400_000_000
FIRST = datetime(2026, 3, 1, tzinfo=UTC)
BEGIN = round(FIRST.timestamp()) * 1_000_000


async def a_row_a_minute(original: Any, count: int, *, times: str = "") -> None:
    """Rows 1 to `count`, one a minute. `times`: the expression of others, of the row `seq`."""
    ts = times or f"'{FIRST:%Y-%m-%d %H:%M}' + INTERVAL seq MINUTE"
    await original.run(f"INSERT INTO log_events (id, level, message, ts) SELECT seq, 'INFO', 'm', {ts} FROM"
                       f" seq_1_to_{count}")  # fmt: skip


class Asked:
    """Asks over one session, which records the queries."""

    def __init__(self, queries: Any, session: Any) -> None:
        self._queries = queries
        self.session = RecordingSession(session)

    async def __call__(self, question: Any) -> Any:
        return await question(self._queries.log_clock, self.session)

    @property
    def blocks(self) -> int:
        """How many blocks were read."""
        asked = zip(self.session.queries, self.session.rows, strict=True)
        return sum(rows for (sql, _), rows in asked if "MIN(ts)" in sql)


@functools.cache
def at(minute: float) -> int:
    return BEGIN + round(minute * MINUTE)


async def test_a_recent_period_is_found_exactly_and_of_a_long_log_only_its_end_is_read(one_mariadb):
    await a_row_a_minute(one_mariadb, 60_000)
    async with open_queries(one_mariadb.source()) as (queries, session):
        ask, times = Asked(queries, session), LogTimes(block=256, unsettled=2_000)
        span = await times.span(ask, at(55_000), at(55_010), 60)
        assert (span.first, span.certain) == (55_000, True)
        assert span.last is not None
        assert 55_009 <= span.last < 55_010 + 256
        assert ask.blocks * 256 < 20_000
        read = ask.blocks
        assert (await times.span(ask, at(60_001), None, 60)).first == 60_001
        assert ask.blocks == read
        old = await times.span(ask, at(10), at(11), 60)
        assert (old.first, old.certain, old.known) == (10, True, 1.0)
        assert 0.9 <= ask.blocks * 256 / 60_000 < 1.2


async def test_what_was_written_after_the_clock_fell_back_for_years_hides_nothing(one_mariadb):
    await a_row_a_minute(one_mariadb, 200_000)
    await one_mariadb.run("INSERT INTO log_events (id, level, message, ts) SELECT 200000 + seq, 'INFO', 'm',"
                          " '2000-01-01' + INTERVAL seq SECOND FROM seq_1_to_60000")  # fmt: skip
    async with open_queries(one_mariadb.source()) as (queries, session):
        span = await LogTimes().span(Asked(queries, session), at(190_000), at(190_001), 60)
    assert (span.first, span.last, span.certain) == (190_000, None, True)


async def test_a_span_that_takes_too_long_is_not_certain_and_the_next_ones_go_on(one_mariadb):
    # Up to row 30000 the clock was 20 hours ahead: a binary search takes those rows for the begin of that time.
    behind = "INTERVAL seq + IF(seq <= 30000, 1200, 0) MINUTE"
    await a_row_a_minute(one_mariadb, 60_000, times=f"'{FIRST:%Y-%m-%d %H:%M}' + {behind}")
    async with open_queries(one_mariadb.source()) as (queries, session):
        ask, times = Asked(queries, session), LogTimes(block=256, unsettled=1000)
        first = await times.span(ask, at(30_500), at(30_600), 0.0)
        assert not first.certain
        assert 0.0 < first.known < 1.0
        known = [first.known]
        while not (span := await times.span(ask, at(30_500), at(30_600), 0.0)).certain:
            known.append(span.known)
        assert known == sorted(set(known))
        assert span.first == 29_300
    job = names("u1", started=0)
    times = LogTimes(block=256, fresh=PATIENCE)  # else what was learned a second ago is learned again
    async with archive_of(one_mariadb, times=times, times_within=0.0) as archive:
        asked = LogLines(type(job)("u1", (), frozenset(), at(30_500), at(30_600)), None, 10, LineQuery())
        reasons = [(await archive.lines(asked)).reason for _ in range(2)]
        while (reason := (await archive.lines(asked)).reason) is not None:
            reasons.append(reason)
    assert reasons[0] is not None
    assert "its clock was set back" in reasons[0]


async def test_a_log_that_begins_again_is_learned_anew(one_mariadb):
    await a_row_a_minute(one_mariadb, 5_000)
    async with open_queries(one_mariadb.source()) as (queries, session):
        ask, times = Asked(queries, session), LogTimes(block=64, unsettled=500, fresh=0.0, again=0.0)
        assert (await times.span(ask, at(1_000), None, 60)).first == 1_000
        await one_mariadb.truncate_log()
        later = f"'{FIRST:%Y-%m-%d %H:%M}' + INTERVAL seq + 10000 MINUTE"
        for count in (100, 6_000):  # fewer rows than there were, and more
            await one_mariadb.run("DELETE FROM log_events")
            await a_row_a_minute(one_mariadb, count, times=later)
            assert (await times.span(ask, at(10_050), None, 60)).first == 50
            assert (await times.span(ask, at(1_000), None, 60)).first == 1


@pytest.mark.parametrize("step", [1, 1_000])
async def test_memory_is_bounded_by_larger_blocks_whichever_ids_there_are(one_mariadb, step):
    await a_row_a_minute(one_mariadb, 20_000)
    if step > 1:
        await one_mariadb.run(f"UPDATE log_events SET id = id * {step} ORDER BY id DESC")
    async with open_queries(one_mariadb.source()) as (queries, session):
        tracemalloc.start()
        try:
            times = LogTimes(block=8, max_blocks=100)
            span = await times.span(Asked(queries, session), at(5_000), at(5_001), 60)
            own = tracemalloc.Filter(inclusive=True, filename_pattern=log_times.__file__)
            kept = sum(one.size for one in tracemalloc.take_snapshot().filter_traces([own]).traces)
        finally:
            tracemalloc.stop()
    assert (span.first, span.certain) == (1 + 4_999 * step, True)
    assert kept < 40_000, "bytes of 100 blocks; 2,500 blocks of eight rows take ten times as much"
