"""The live traffic: one planned job after the other, several at a time, among many rows that belong to no job.

Always: what happens is the seed's choice, only when it happens is the clock's; at most `JOBS_AT_ONCE` jobs run, a job
whose process died not counted.
"""

import asyncio
from collections.abc import Iterator
from random import Random

from correlator.demo.clock import Clock
from correlator.demo.deck import VMS, plans
from correlator.demo.joblog import JobLog, Legacy
from correlator.demo.plans import Plan
from correlator.demo.stage import Stage
from correlator.demo.values import Level

JOBS_AT_ONCE = 8
SECONDS_BETWEEN_JOBS = (3.0, 9.0)
NOISE_PER_SECOND = 8.0

Noise = tuple[Level, str, dict[str, object] | None]


def noise(seed: int | str) -> Iterator[Noise]:
    """Yield log rows of no job, without end: most rows of an appliance are these."""
    random = Random(f"{seed}-noise")
    while True:
        luck = random.random()
        if luck < 0.72:
            path = random.choice(("/api/v1/vm-contexts", "/api/v1/replications", "/api/v1/settings/ossea", "/health"))
            attrs = {"duration_ms": random.randrange(1, 90), "method": "GET", "path": path, "status": 200}
            yield Level.INFO, "HTTP request", attrs
        elif luck < 0.94:
            component = random.choice(("database", "volume-daemon", "cloudstack", "nbd"))
            yield Level.INFO, "Health check passed", {"component": component}
        elif luck < 0.97:
            attrs = {"duration_ms": random.randrange(1000, 4000), "vm_name": random.choice(VMS)}
            yield Level.WARN, "slow discovery of VM", attrs
        else:
            yield Level.INFO, "scheduler tick", None


class Traffic:
    """Plays plans until it is cancelled."""

    def __init__(self, joblog: JobLog, legacy: Legacy, clock: Clock, seed: int) -> None:
        """Play what `seed` says, at the pace of `clock`."""
        self._joblog = joblog
        self._clock = clock
        self._seed = seed
        self._stage = Stage(joblog, legacy, clock, entered=self._entered, left=self._left)
        self._running: dict[str, None] = {}  # GUI IDs, oldest first
        self._last = ""
        self._first = asyncio.Event()

    async def run(self) -> None:
        """Start jobs for ever."""
        slots = asyncio.Semaphore(JOBS_AT_ONCE)
        pauses = Random(f"{self._seed}-pauses")
        async with asyncio.TaskGroup() as group:
            group.create_task(self._noise(), name="demo-noise")
            for number, plan in enumerate(plans(self._seed), start=1):
                await slots.acquire()
                group.create_task(self._play(plan, slots), name=f"demo-job-{number}")
                await self._clock.sleep(pauses.uniform(*SECONDS_BETWEEN_JOBS))

    async def first(self) -> None:
        """Wait until a failover runs."""
        await self._first.wait()

    def running_id(self) -> str:
        """Return the ID that a GUI holds of the failover that started last, preferably of one that still runs."""
        return next(reversed(self._running), self._last)

    def _entered(self, gui_id: str) -> None:
        self._running[gui_id] = None
        self._last = gui_id
        self._first.set()

    def _left(self, gui_id: str) -> None:
        self._running.pop(gui_id, None)

    async def _play(self, plan: Plan, slots: asyncio.Semaphore) -> None:
        try:
            await self._stage.play(plan)
        finally:
            slots.release()

    async def _noise(self) -> None:
        pauses = Random(f"{self._seed}-noise-pauses")
        for level, message, attrs in noise(self._seed):
            self._joblog.log(level, message, attrs, self._clock.now())
            await self._clock.sleep(pauses.expovariate(NOISE_PER_SECOND))
