"""Rows of any size are read in bounded memory, and none is lost, changed or handled with too much else at once."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any

import msgspec

from correlator.config.schema import Config
from correlator.doctor import usage
from correlator.jobs import joblog
from correlator.model.persisted import PersistedJob
from correlator.model.rows import LogRow
from correlator.sources.db.queries import HEAVY
from correlator.sources.tail import SLICE_BYTES, slices
from tests.support.source_databases import RecordingSession, open_queries, running_follower

ANSWER = joblog.MAX_ATTRS + SLICE_BYTES + (1 << 16)
"""The most bytes that one answer may have, where a thousand light rows have fewer."""


def attrs(number: int, size: int) -> str:
    return json.dumps({"job_id": f"j{number}", "dump": "x" * size})


SIZES = (10, 5_000, 650_000, 100, 70_000, 1_100_000, 20)


async def written(original: Any, times: int) -> list[LogRow]:
    """Rows of `SIZES` again and again, as a whole reading finds them."""
    found = []
    for number in range(times * len(SIZES)):
        size = SIZES[number % len(SIZES)]
        message = "m" * (60_000 if size == 5_000 else 10)
        await original.log(message, attrs=attrs(number, size))
    async with open_queries(original.source()) as (queries, session):
        for number in range(times * len(SIZES)):
            found += await queries.rows_in(session, [number + 1])
    return found


async def test_the_doctor_finds_the_job_of_a_row_of_any_size(original):
    for size in SIZES:
        await original.log("job failed", attrs=attrs(size, size))
    async with open_queries(original.source()) as (queries, session):
        found = await usage.read_log(Config(), queries, session, int(time.time()))
    assert (found.rows, found.without_job, found.job_ends) == (len(SIZES), 0, {f"j{size}" for size in SIZES})


async def test_the_doctor_reads_all_rows_of_the_day_behind_older_ones(original):
    """Single rows of days ago, and a clock that was set back, are no end of the day."""
    now = int(time.time())
    for number in range(3 * usage.ROWS_AT_ONCE // 1000):
        ago = 23 * 3600 if number % 2 == 0 else 30 * 3600
        rows = [f"('INFO', 'm', '{datetime.fromtimestamp(now - ago + n, UTC):%Y-%m-%d %H:%M:%S}')" for n in range(1000)]
        await original.run(f"INSERT INTO log_events (level, message, ts) VALUES {', '.join(rows)}")
    async with open_queries(original.source()) as (queries, session):
        found = await usage.read_log(Config(), queries, session, now)
    assert (found.rows, found.whole) == (3000, True)


async def test_no_answer_holds_more_than_a_bound_and_every_row_comes_whole(original):
    expected = await written(original, 6)
    total = sum(len(r.attrs or "") for r in expected)
    async with open_queries(original.source()) as (queries, session):
        weighed = RecordingSession(session)
        found: list[LogRow] = []
        light = await queries.light_rows_from(weighed, 1, 1000)
        assert all(len(r.message) + len(r.attrs or "") <= 2 * HEAVY for r in light)
        async for part in slices(queries.rows_in, weighed, light):
            held = sum(len(r.message) + len(r.attrs or "") for r in part)
            assert held <= SLICE_BYTES or len(part) == 1
            found += part
    assert found == expected
    assert max(weighed.answers) <= ANSWER < total, "a fetch is bounded the first time too"


async def test_rows_in_are_read_light_too(original):
    expected = await written(original, 2)
    async with open_queries(original.source()) as (queries, session):
        weighed = RecordingSession(session)
        found = await queries.light_rows_in(weighed, [r.id for r in expected])
        assert len(found) == len(expected)
        assert max(weighed.answers) <= len(expected) * 2 * HEAVY


async def test_heavy_rows_are_read_with_their_jobs_live_and_from_the_past_at_a_small_position(original):
    """The position is one row of the checkpoint in the cluster, where a message has 1 MiB at most."""
    for number in range(3):
        await original.job(f"j{number}")
    await original.log("past", attrs=attrs(0, 650_000))
    async with running_follower(original.source()) as (received, tail):
        await original.log("news", attrs=attrs(1, 650_000))
        await original.log("n" * 60_000, attrs=attrs(2, 10))
        await original.log("m" * 60_000, attrs=attrs(2, 1_100_000))
        await received.receives("past", "news", "n" * 60_000, "m" * 60_000)
        for number in range(3):
            job = received.index.persisted(f"j{number}")
            assert isinstance(job, PersistedJob)
            assert job.job.last is not None
        position = tail.cursor()
    assert position.row is not None
    assert len(msgspec.msgpack.encode(position)) < 3 * HEAVY
