"""The time before the start of the demo: jobs that have ended, one that never will, and rows that belong to no job.

Of the weeks before, which forecasts rest on, only the tables are left: an appliance deletes old rows of its log.
Invariants: every time is before `now`, and log ids are in the order of `ts`, as they roughly are in a real table.
"""

from datetime import datetime, timedelta, tzinfo
from functools import partial
from pathlib import Path
from random import Random

from correlator.demo.clock import PastClock
from correlator.demo.joblog import JobLog, Legacy
from correlator.demo.player import Player
from correlator.demo.scenarios import long_past, noise, past
from correlator.demo.sqlite import Lane
from correlator.demo.values import LogRow
from correlator.demo.writers import insert

SPAN = timedelta(hours=3)
LAST_START = timedelta(minutes=3)  # longer than any job lasts
JOBS = 24
SECONDS_BETWEEN_NOISE = 4.0

LONG_SPAN = timedelta(weeks=3)
LONG_PAST_JOBS = 130
"""Some ten runs of the rarest operations, and more of the others. Some of the jobs fail."""


async def write_history(path: Path, now: datetime, zone: tzinfo, seed: int) -> None:
    """Fill an empty database with the `LONG_SPAN` before `now`. The same `seed` gives the same jobs."""
    rows: list[LogRow] = []
    async with Lane(path) as lane:
        await _write_long_past(lane, now, zone, seed)
        joblog = JobLog(lane, rows.append, zone=zone)
        random = Random(f"{seed}-history")
        starts = sorted(random.uniform(LAST_START.total_seconds(), SPAN.total_seconds()) for _ in range(JOBS))
        for ago, (name, choices) in zip(reversed(starts), past(seed, JOBS), strict=True):
            await Player(joblog, Legacy(lane), PastClock(now - timedelta(seconds=ago))).play(name, choices)
        _write_noise(joblog, now, seed)
        rows.sort(key=lambda row: row.ts)
        await lane.call(partial(insert, first_id=1, rows=rows, roll_back=False))


async def _write_long_past(lane: Lane, now: datetime, zone: tzinfo, seed: int) -> None:
    joblog, random = JobLog(lane, lambda _: None, zone=zone), Random(f"{seed}-long-past-starts")
    between = (SPAN.total_seconds() + LAST_START.total_seconds(), LONG_SPAN.total_seconds())
    starts = sorted((random.uniform(*between) for _ in range(LONG_PAST_JOBS)), reverse=True)
    await lane.execute("BEGIN", ())  # one transaction is several times faster
    for ago, (name, choices) in zip(starts, long_past(seed, LONG_PAST_JOBS), strict=True):
        await Player(joblog, Legacy(lane), PastClock(now - timedelta(seconds=ago))).play(name, choices)
    await lane.execute("COMMIT", ())


def _write_noise(joblog: JobLog, now: datetime, seed: int) -> None:
    random = Random(f"{seed}-history-noise")
    at = now - SPAN
    for row in noise(f"{seed}-history"):
        at += timedelta(seconds=random.expovariate(1 / SECONDS_BETWEEN_NOISE))
        if at >= now:
            return
        joblog.log(row.level, row.message, row.attrs, at)
