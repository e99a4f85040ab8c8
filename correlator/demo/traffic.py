"""The live traffic: jobs, several at a time, among many rows that belong to no job.

Invariants: the seed decides what happens, the clock only when. At most `JOBS_AT_ONCE` jobs run; a job whose process
has died is not counted.
"""

import asyncio
from random import Random

from correlator.demo.clock import Clock
from correlator.demo.joblog import JobLog, Legacy
from correlator.demo.player import Player
from correlator.demo.scenarios import live, noise

JOBS_AT_ONCE = 8
SECONDS_BETWEEN_JOBS = (3.0, 9.0)
NOISE_PER_SECOND = 8.0


class Traffic:
    """Plays scenarios until it is cancelled."""

    def __init__(self, joblog: JobLog, legacy: Legacy, clock: Clock, seed: int) -> None:
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
        async with asyncio.TaskGroup() as group:
            group.create_task(self._noise(), name="demo-noise")
            for number, (name, random) in enumerate(live(self._seed), start=1):
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
