"""Stalls of the event loop, and tasks that are stuck.

During a synchronous call that blocks the event loop every connection waits.

Calls that may be long are wrapped in `timed`, once per batch and not once per row, so that a stall has a name.
`heartbeat` measures stalls of any cause: how late the loop calls a timer. Wall time is the delay that a client sees;
CPU time counts the loop's thread alone, and does not depend on the load of the machine.

A task whose last beat is older than its limit is stuck (`Heartbeats`). An unreachable peer is no reason to miss a beat:
a task that waits for a peer has a deadline, and beats after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from correlator.ops import metrics
from correlator.tasks import until_next

log = logging.getLogger(__name__)


STALL = 0.02
"""Seconds from which on a call is counted and, at level debug, logged with its name."""

BEAT = 0.1
QUIET_BEAT = 0.5
BUSY = 0.02
"""Seconds between two heartbeats, while the loop's thread uses at least `BUSY` of a core and while it uses less: waking
is most of what an idle daemon costs. A stall that ends before the next heartbeat is due is not measured by it."""

CPU_WITHIN = 0.001
"""Seconds for which a reading of the CPU clock is used again: it is a system call, unlike the clock of wall time."""

COLLECTIONS = (1000, 10, 200)
"""Thresholds of the garbage collector: a full collection comes after 2 million new objects, not after 70,000. Each one
visits every object: while 2,000 clients connected at once, eight collections took 1.7 s together on a busy machine."""

MAX_COLLECTIONS = 1000
"""Collections that are noted between two heartbeats."""

_longest: dict[tuple[str, str], float] = {}
_cpu_read = (float("-inf"), 0.0)
"""The wall and the CPU clock at the last reading of the CPU clock."""


def recent_cpu(now: float) -> float:
    """Return the thread's CPU seconds at `now` or up to `CPU_WITHIN` before, by the clock `time.perf_counter`."""
    global _cpu_read  # noqa: PLW0603 - one event loop, one thread
    if not 0 <= now - _cpu_read[0] <= CPU_WITHIN:
        _cpu_read = now, time.thread_time()
    return _cpu_read[1]


class timed:  # noqa: N801 - reads as a statement: with timed("rows")
    """Measure a block without `await`, under the name `call`. Event loop's thread only.

    Its CPU time is right within `CPU_WITHIN`. An object may measure one call after the other.
    """

    __slots__ = ("_began", "_call", "_clock", "_cpu", "_cpu_began", "_key")

    def __init__(
        self,
        call: str,
        clock: Callable[[], float] = time.perf_counter,
        cpu: Callable[[float], float] = recent_cpu,
    ) -> None:
        self._call = call
        self._key = (call, "wall")
        self._clock = clock
        self._cpu = cpu

    def __enter__(self) -> None:
        self._began = began = self._clock()
        self._cpu_began = self._cpu(began)

    def __exit__(self, *_: object) -> None:
        ended = self._clock()
        wall = ended - self._began
        if wall >= STALL or wall > _longest.get(self._key, 0.0):
            note(self._call, wall, self._cpu(ended) - self._cpu_began)


def note(call: str, wall: float, cpu: float | None = None) -> None:
    """Record the wall and CPU seconds of a call. `cpu` None: unknown."""
    for clock, took in (("wall", wall), ("cpu", cpu)):
        if took is not None and took > _longest.get((call, clock), 0.0):
            _longest[call, clock] = took
            metrics.LOOP_LONGEST.labels(call, clock).set(took)
    if wall >= STALL:
        metrics.LOOP_STALLS.labels(call).observe(wall)
        used = f", {cpu * 1000:.0f} ms of CPU" if cpu is not None else ""
        log.debug("%s blocked the event loop for %.0f ms%s", call, wall * 1000, used)


def spare_loaded() -> None:
    """Exclude all objects that exist now from later garbage collections. Call it while much is being loaded.

    A full collection visits every object: with 20,000 jobs in memory it blocks the event loop for 30 to 40 ms. An
    excluded object is still freed when nothing refers to it; only cycles among excluded objects stay.
    """
    gc.freeze()


def pause_after(cpu: float, passed: float) -> float:
    """Return the seconds until the next heartbeat, if the thread used `cpu` seconds of the last `passed` ones."""
    return BEAT if cpu >= BUSY * passed else QUIET_BEAT


async def heartbeat() -> None:
    """Measure how late the loop calls a timer, and how long the garbage collector stops it, until cancelled."""
    began = 0.0
    collections: deque[float] = deque(maxlen=MAX_COLLECTIONS)

    def collecting(phase: str, _: dict[str, Any]) -> None:
        # In the middle of any code, which may hold the lock of a metric or of the log: it only stores numbers.
        nonlocal began
        if phase == "start":
            began = time.perf_counter()
        elif (took := time.perf_counter() - began) >= STALL:
            collections.append(took)

    for call in ("loop", "gc"):
        metrics.LOOP_STALLS.labels(call)  # The series exist from the start, with 0.
    gc.callbacks.append(collecting)
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle
    pause, used = BEAT, time.thread_time()
    due = time.perf_counter() + pause

    def beat() -> None:
        nonlocal due, pause, timer, used
        late = time.perf_counter() - due
        if late >= STALL or late > _longest.get(("loop", "wall"), 0.0):
            note("loop", late)
        while collections:
            note("gc", collections.popleft())
        before, used = used, time.thread_time()
        pause = pause_after(used - before, pause)
        if pause == QUIET_BEAT:
            pause = until_next(QUIET_BEAT, loop.time())
        due = time.perf_counter() + pause
        timer = loop.call_later(pause, beat)  # It takes half the CPU of a task that sleeps.

    timer = loop.call_later(pause, beat)
    thresholds = gc.get_threshold()
    gc.set_threshold(*COLLECTIONS)
    try:
        await loop.create_future()
    finally:
        gc.set_threshold(*thresholds)
        timer.cancel()
        gc.callbacks.remove(collecting)


# -- tasks that are stuck


STUCK_AFTER = 30.0
"""Seconds without a beat after which a task that waits for no peer is stuck."""


class Heartbeats:
    """The heartbeats of one process. `clock` returns monotonic seconds. Event loop's thread only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heartbeats: set[_Heartbeat] = set()

    @contextlib.contextmanager
    def heartbeat(self, name: str, within: float) -> Iterator[Callable[[], None]]:
        """Register a task for as long as the block lasts. The task calls the yielded function to beat.

        `within`: the most seconds between two beats. Several tasks may have one name.
        """
        heartbeat = _Heartbeat(name, within, self._clock)
        self._heartbeats.add(heartbeat)
        try:
            yield heartbeat.beat
        finally:
            self._heartbeats.discard(heartbeat)

    def excuse(self, seconds: float) -> None:
        """Extend every limit once by `seconds`, because the whole process was stopped for that long."""
        for heartbeat in self._heartbeats:
            heartbeat.last += seconds

    def stuck(self) -> dict[str, float]:
        """Return the names of the stuck tasks, with the seconds since their last beat."""
        now = self._clock()
        silent = sorted(
            (now - heartbeat.last, heartbeat.name)
            for heartbeat in self._heartbeats
            if now - heartbeat.last > heartbeat.within
        )
        return {name: seconds for seconds, name in silent}


class _Heartbeat:
    __slots__ = ("_clock", "last", "name", "within")

    def __init__(self, name: str, within: float, clock: Callable[[], float]) -> None:
        self.name = name
        self.within = within
        self._clock = clock
        self.last = clock()

    def beat(self) -> None:
        self.last = self._clock()
