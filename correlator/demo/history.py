"""The hours before the demo was started: jobs that ended, one that never will, and the log rows in between.

Always: everything lies before `now`, and log ids follow the order of `ts`, as they roughly do in a table that grew.
"""

import sqlite3
from datetime import datetime, timedelta, tzinfo
from functools import partial
from pathlib import Path
from random import Random

from correlator.demo.clock import PastClock
from correlator.demo.deck import past
from correlator.demo.joblog import JobLog, Legacy
from correlator.demo.sqlite import Lane
from correlator.demo.stage import Stage
from correlator.demo.traffic import noise
from correlator.demo.values import LogRow
from correlator.demo.writers import insert

SPAN = timedelta(hours=3)
LAST_START = timedelta(minutes=3)  # longer than any plan lasts
JOBS = 24
SECONDS_BETWEEN_NOISE = 4.0


async def write_history(path: Path, now: datetime, zone: tzinfo, seed: int) -> None:
    """Fill an empty file with the hours before `now`."""
    rows: list[LogRow] = []
    async with Lane(path) as lane:
        joblog = JobLog(lane, rows.append, zone=zone)
        random = Random(f"{seed}-history")
        starts = sorted(random.uniform(LAST_START.total_seconds(), SPAN.total_seconds()) for _ in range(JOBS))
        for ago, plan in zip(reversed(starts), past(seed, JOBS), strict=True):
            await Stage(joblog, Legacy(lane), PastClock(now - timedelta(seconds=ago))).play(plan)
        _write_noise(joblog, now, seed)
        rows.sort(key=lambda row: row.ts)
        await lane.call(partial(_insert_all, rows=rows))


def _write_noise(joblog: JobLog, now: datetime, seed: int) -> None:
    random = Random(f"{seed}-history-noise")
    at = now - SPAN
    for level, message, attrs in noise(f"{seed}-history"):
        at += timedelta(seconds=random.expovariate(1 / SECONDS_BETWEEN_NOISE))
        if at >= now:
            return
        joblog.log(level, message, attrs, at)


def _insert_all(connection: sqlite3.Connection, rows: list[LogRow]) -> None:
    insert(connection, 1, rows, roll_back=False)
