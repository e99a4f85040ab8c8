"""Log lines while the clock of the log was set back and forward: as a reader of the whole table finds them."""

from __future__ import annotations

import random

import pytest

from correlator.pipeline.queries import FindLines, JobNames, LineQuery, LogLines
from correlator.sources.db.log_times import LogTimes
from tests.support.archive_queries import archive_of
from tests.support.clock_jumps import JumpingLog, ids
from tests.support.source_databases import open_queries

LOGS = [
    pytest.param(kind, seed, marks=[pytest.mark.long] * (seed >= 3))
    for kind, logs in (("aiomysql", 12), ("asyncmy", 1), ("sqlite", 12))
    for seed in range(logs)
]
"""Three logs for each language of SQL, and nine in the long form. How they are read is no matter of the driver."""

of_each_log = pytest.mark.parametrize(("original", "seed"), LOGS, indirect=["original"])


def small_times() -> LogTimes:
    """Blocks of a few rows, so that a short log has many; nearly all of them are settled."""
    return LogTimes(block=8, unsettled=60, fresh=0.0)


@of_each_log
async def test_a_job_has_all_of_its_lines_wherever_the_clock_stood(original, seed):
    log, chance = JumpingLog(seed), random.Random(seed)
    await log.write(original, late=False)
    async with archive_of(original, times=small_times()) as archive:
        for job in log.jobs:  # what is committed late is below what has been read
            await archive.lines(LogLines(log.names(job), None, 1000, LineQuery()))
        await log.write(original, late=True)
        for job in log.jobs:
            names, due = log.names(job), log.lines_of(job)
            assert await forward(archive, names, chance.choice((7, 50, 1000))) == due, job
            assert await backward(archive, names, chance.choice((7, 50, 1000))) == due, job
            since = chance.choice(log.rows).ts
            query = LineQuery(since=since)
            assert await forward(archive, names, 50, query) == log.lines_of(job, since), (job, since)
            assert await backward(archive, names, 50, query) == log.lines_of(job, since), (job, since)


@of_each_log
async def test_lines_that_are_committed_while_pages_are_read_come_once(original, seed):
    log = JumpingLog(seed)
    await log.write(original, late=False)
    async with archive_of(original, times=small_times()) as archive:
        read = {job.job_id: await archive.lines(LogLines(log.names(job), None, 5, LineQuery())) for job in log.jobs}
        await log.write(original, late=True)
        for job in log.jobs:
            page, found = read[job.job_id], ids(read[job.job_id].lines)
            while page.next_after is not None and (page.more or page.lines):
                page = await archive.lines(LogLines(log.names(job), page.next_after, 7, LineQuery()))
                assert page.reason is None
                found += ids(page.lines)
            due = log.lines_of(job)
            assert len(found) == len(set(found))
            assert set(found) <= set(due)
            # A job that had ended before they were committed is not asked again.
            assert sorted(found) == due or page.next_after is None


@of_each_log
async def test_a_search_of_a_period_finds_each_line_of_that_time(original, seed):
    log, chance = JumpingLog(seed), random.Random(seed)
    await log.write(original, late=False)
    await log.write(original, late=True)
    async with archive_of(original, times=small_times()) as archive:
        for _ in range(6):
            since, until = sorted(row.ts for row in chance.sample(log.rows, 2))
            for begin, end in ((since, until), (since, None), (None, until)):
                query = LineQuery(since=begin, until=end, words=frozenset({"line 3"}))
                due = [row.id for row in log.rows if row.message == "line 3"
                       and (begin or 0) <= row.ts and (end is None or row.ts < end)]  # fmt: skip
                assert await searched(archive, query) == due


@of_each_log
async def test_a_first_start_begins_before_all_rows_of_its_period(original, seed):
    log, chance = JumpingLog(seed), random.Random(seed)
    await log.write(original, late=False)
    visible = [row for row in log.rows if row.id not in log.late]
    async with open_queries(original.source()) as (queries, session):
        for _ in range(4):
            since = chance.choice(log.rows).ts
            due = min(row.id for row in visible if row.ts >= since)
            below = max((row.id for row in visible if row.id < due), default=0)
            assert await queries.first_since(session, since) == below + 1, "ids in front of it may be committed late"


async def forward(archive, names: JobNames, limit: int, query: LineQuery | None = None) -> list[int]:
    found, after = list[int](), None
    while True:
        page = await archive.lines(LogLines(names, after, limit, query or LineQuery()))
        assert page.reason is None
        found += ids(page.lines)
        after = page.next_after
        if not page.more:
            return sorted(found)


async def backward(archive, names: JobNames, limit: int, query: LineQuery | None = None) -> list[int]:
    found, before = list[int](), 1 << 50
    while True:
        page = await archive.lines(LogLines(names, None, limit, query or LineQuery(), before))
        assert page.reason is None
        found += ids(page.lines)
        if (before := page.next_before) is None:
            return sorted(found)


async def searched(archive, query: LineQuery) -> list[int]:
    found, places = list[int](), dict[str, int]()
    while True:
        page = await archive.find_lines(FindLines(100, query, places=places))
        assert page.reason is None
        found += ids(page.lines)
        if not (places := page.places):
            return sorted(found)
