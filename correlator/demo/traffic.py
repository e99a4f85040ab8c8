"""What happens on the simulated appliance: the weeks before the demo was started, then the live traffic.

Before: jobs that have ended, one that never will, and rows that belong to no job. Of the weeks before, which forecasts
rest on, only the tables are left: an appliance deletes old rows of its log. Live: jobs, several at a time, among many
rows that belong to no job.
Invariants: the seed decides what happens, the clock only when. Every time of the history is before `now`, and its log
ids are in the order of `ts`, as they roughly are in a real table. At most `JOBS_AT_ONCE` live jobs run; a job whose
process has died is not counted.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from pathlib import Path
from random import Random

from correlator.demo.joblog import (
    JobLog,
    Lane,
    LegacyTable,
    LogWriters,
    NewRow,
    create_database,
    insert_rows,
    random_delays,
)
from correlator.demo.scenarios import (
    Clock,
    LiveClock,
    PastClock,
    Player,
    live_scenarios,
    long_past_scenarios,
    noise,
    past_scenarios,
)
from correlator.tasks import TaskGroup

SPAN = timedelta(hours=3)
LAST_START = timedelta(minutes=3)  # longer than any job lasts
JOBS = 24
SECONDS_BETWEEN_NOISE = 4.0

LONG_SPAN = timedelta(weeks=3)
LONG_PAST_JOBS = 130
"""Some ten runs of the rarest operations, and more of the others. Some of the jobs fail."""


async def write_history(path: Path, now: datetime, zone: tzinfo, seed: int) -> None:
    """Fill an empty database with the `LONG_SPAN` before `now`. The same `seed` gives the same jobs."""
    rows: list[NewRow] = []
    async with Lane(path) as lane:
        await _write_long_past(lane, now, zone, seed)
        joblog = JobLog(lane, rows.append, zone=zone)
        random = Random(f"{seed}-history")
        starts = sorted(random.uniform(LAST_START.total_seconds(), SPAN.total_seconds()) for _ in range(JOBS))
        for ago, (name, choices) in zip(reversed(starts), past_scenarios(seed, JOBS), strict=True):
            await Player(joblog, LegacyTable(lane), PastClock(now - timedelta(seconds=ago))).play(name, choices)
        _write_noise(joblog, now, seed)
        rows.sort(key=lambda row: row.ts)
        await lane.call(partial(insert_rows, first_id=1, rows=rows, roll_back=False))


async def _write_long_past(lane: Lane, now: datetime, zone: tzinfo, seed: int) -> None:
    joblog, random = JobLog(lane, lambda _: None, zone=zone), Random(f"{seed}-long-past-starts")
    between = (SPAN.total_seconds() + LAST_START.total_seconds(), LONG_SPAN.total_seconds())
    starts = sorted((random.uniform(*between) for _ in range(LONG_PAST_JOBS)), reverse=True)
    await lane.execute("BEGIN", ())  # one transaction is several times faster
    for ago, (name, choices) in zip(starts, long_past_scenarios(seed, LONG_PAST_JOBS), strict=True):
        await Player(joblog, LegacyTable(lane), PastClock(now - timedelta(seconds=ago))).play(name, choices)
    await lane.execute("COMMIT", ())


def _write_noise(joblog: JobLog, now: datetime, seed: int) -> None:
    random = Random(f"{seed}-history-noise")
    at = now - SPAN
    for row in noise(f"{seed}-history"):
        at += timedelta(seconds=random.expovariate(1 / SECONDS_BETWEEN_NOISE))
        if at >= now:
            return
        joblog.log(row.level, row.message, row.attrs, at)


JOBS_AT_ONCE = 8
SECONDS_BETWEEN_JOBS = (3.0, 9.0)
NOISE_PER_SECOND = 8.0


class Traffic:
    """Plays scenarios until it is cancelled."""

    def __init__(self, joblog: JobLog, legacy: LegacyTable, clock: Clock, seed: int) -> None:
        """Play the scenarios of `seed` in the time of `clock`."""
        self._joblog = joblog
        self._clock = clock
        self._seed = seed
        self._player = Player(joblog, legacy, clock, on_start=self._on_start, on_end=self._on_end)
        self._running: dict[str, None] = {}  # GUI IDs, oldest first
        self._last = ""
        self._first = asyncio.Event()

    async def run(self) -> None:
        """Start jobs until cancelled."""
        slots = asyncio.Semaphore(JOBS_AT_ONCE)
        pauses = Random(f"{self._seed}-pauses")
        async with TaskGroup() as group:
            group.create_task(self._noise(), name="demo-noise")
            for number, (name, random) in enumerate(live_scenarios(self._seed), start=1):
                await slots.acquire()
                group.create_task(self._play(name, random, slots), name=f"demo-job-{number}")
                await self._clock.sleep(pauses.uniform(*SECONDS_BETWEEN_JOBS))

    async def first(self) -> None:
        """Wait until the first failover has a row."""
        await self._first.wait()

    def running_id(self) -> str:
        """Return the ID that a GUI has of the last failover to start, if possible of one that still runs."""
        return next(reversed(self._running), self._last)

    def _on_start(self, gui_id: str) -> None:
        self._running[gui_id] = None
        self._last = gui_id
        self._first.set()

    def _on_end(self, gui_id: str) -> None:
        self._running.pop(gui_id, None)

    async def _play(self, name: str, random: Random, slots: asyncio.Semaphore) -> None:
        try:
            await self._player.play(name, random)
        finally:
            slots.release()

    async def _noise(self) -> None:
        pauses = Random(f"{self._seed}-noise-pauses")
        for row in noise(self._seed):
            self._joblog.log(row.level, row.message, row.attrs, self._clock.now())
            await self._clock.sleep(pauses.expovariate(NOISE_PER_SECOND))


@asynccontextmanager
async def appliance(database: Path, zone: tzinfo, rate: float, seed: int) -> AsyncIterator[tuple[LogWriters, Traffic]]:
    """Create the database with its history, unless it exists, and yield what writes into it while it runs."""
    if await asyncio.to_thread(create_database, database):
        await write_history(database, datetime.now(UTC), zone, seed)
    writers = LogWriters(database, random_delays(seed))
    async with Lane(database) as lane:
        yield writers, Traffic(JobLog(lane, writers.put, zone=zone), LegacyTable(lane), LiveClock(rate), seed)
