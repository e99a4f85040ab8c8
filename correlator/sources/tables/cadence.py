"""When a job that has not ended is read again: often while it is active, more and more rarely while it is silent.

A job whose process died stays `running` forever, and a thousand of them must not cost what a thousand live ones do.
Pure: the time comes as an argument, in monotonic seconds.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from zlib import crc32

GROWTH = 10
"""A job that has been silent for t seconds is read again after t / GROWTH."""


class Cadence:
    """The schedule. Invariant: each job of the last `due` is due within `longest` seconds, and right after `touch`.

    Args:
        shortest: Seconds between two readings of an active job.
        longest: Seconds between two readings of any other.
    """

    def __init__(self, shortest: float, longest: float) -> None:
        self.shortest, self.longest = shortest, max(shortest, longest)
        self._alive: dict[str, float] = {}
        """When each job was last active."""
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        """Ordered by due time; entries that differ from `_due` are stale and skipped."""

    def __len__(self) -> int:
        return len(self._alive)

    def touch(self, job_ids: Iterable[str], now: float) -> None:
        """Record activity of these jobs. Unknown ones are ignored: `due` adds them."""
        for job_id in job_ids:
            if job_id in self._alive:
                self._alive[job_id] = now
                if self._due[job_id] > now:
                    self._plan(job_id, now)

    def due(self, active: AbstractSet[str], silent_for: Callable[[str], float], now: float) -> list[str]:
        """The jobs to read now; their next reading is scheduled.

        Args:
            active: All jobs that have not ended.
            silent_for: Seconds since the last activity of a job; called for new ones.
        """
        for job_id in active - self._alive.keys():
            self._alive[job_id] = now - max(0.0, silent_for(job_id))
            # The first round is spread: otherwise all jobs of a start would be due together, again and again.
            self._plan(job_id, now + self._wait(job_id, now) * crc32(job_id.encode()) / 2**32)
        found = []
        while self._heap and self._heap[0][0] <= now:
            at, job_id = heapq.heappop(self._heap)
            if self._due.get(job_id) != at:
                continue
            if job_id in active:
                found.append(job_id)
                self._plan(job_id, now + self._wait(job_id, now))
            else:
                del self._alive[job_id], self._due[job_id]
        return found

    def lively(self, now: float) -> list[str]:
        """The jobs that are read at the shortest interval."""
        return [i for i, at in self._alive.items() if now - at < self.shortest * GROWTH]

    def _wait(self, job_id: str, now: float) -> float:
        return min(self.longest, max(self.shortest, (now - self._alive[job_id]) / GROWTH))

    def _plan(self, job_id: str, at: float) -> None:
        self._due[job_id] = at
        heapq.heappush(self._heap, (at, job_id))
