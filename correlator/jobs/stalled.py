"""When a job is stalled: for how much watched time it has given no sign of life."""

from __future__ import annotations

from collections.abc import Callable, KeysView

from msgspec import Struct

from correlator.bounded import Schedule
from correlator.jobs.horizon import Horizon
from correlator.model.persisted import PersistedSilence
from correlator.model.rows import Micros


class _Sign(Struct, frozen=True):
    """The last sign of life of a job. `at`: watched time. `is_news`: an event says that the job stalls after it."""

    at: Micros
    is_news: bool = True


_NONE_YET = _Sign(0, is_news=False)
"""Of a job that is pending, that never did anything, or that may have in rows of the past that are unread."""


class Silence:
    """The jobs that have not ended, their last sign of life, and which are stalled, in watched time. O(log n).

    A sign of life counts from when it was read, not from the time that it names: a clock of the appliance may be wrong.
    What is read late was written while nothing was watched, which is no silence. `stalled_after` returns seconds: a
    reload changes them.
    """

    def __init__(self, horizon: Horizon, stalled_after: Callable[[], float]) -> None:
        self._stalled_after: Callable[[], Micros] = lambda: int(stalled_after() * 1_000_000)
        self._horizon = horizon
        self._last: dict[str, _Sign] = {}
        self._quiet = Schedule[str]()
        """The jobs that are not stalled, by the time of a sign of life, which may not be the last one."""
        self._stalled = Schedule[str]()
        """The stalled jobs, by the negative of the time of their last sign of life: the latest comes first."""
        self.judged_to: Micros = 0
        """The watched time at which jobs were judged last."""

    @property
    def ongoing(self) -> KeysView[str]:
        """The IDs of all published jobs that have not ended."""
        return self._last.keys()

    @property
    def lively(self) -> bool:
        """True while a job runs and is not stalled. O(1)."""
        return bool(self._quiet)

    def has_begun(self, job_id: str) -> bool:
        """True if there was a sign of life of a running job."""
        return self._last.get(job_id, _NONE_YET) is not _NONE_YET

    def is_stalled(self, job_id: str) -> bool:
        return job_id in self._stalled

    def is_news(self, job_id: str) -> bool:
        """True if an event says that the job stalls after its last sign of life."""
        return self._last.get(job_id, _NONE_YET).is_news

    def add(self, job_id: str) -> None:
        """Note a job that has not ended."""
        self._last.setdefault(job_id, _NONE_YET)

    def goes_on(self, job_id: str, now: Micros) -> bool:
        """Note a sign of life that was read at `now`. False, and nothing is noted, if there was none before."""
        if not self.has_begun(job_id):
            return False
        self.alive(job_id, now)
        return True

    def alive(self, job_id: str, now: Micros) -> None:
        """Note a sign of life that was read at `now`."""
        at = self._horizon.watched_now(now)
        self._last[job_id] = _Sign(at)
        if job_id not in self._quiet:
            self._stalled.discard(job_id)
            self._quiet.put(job_id, at)

    def begin(self, job_id: str, alive_at: Micros, began: Micros, now: Micros) -> None:
        """Begin with a job of the past, last active at `alive_at`. It is no news that it was stalled at `began`."""
        at = self._horizon.watched(min(alive_at, now))
        self._last[job_id] = _Sign(at, self._horizon.watched(began) - at <= self._stalled_after())
        judged_to = self._horizon.watched_to(now)
        if judged_to is not None and judged_to - at > self._stalled_after():
            self._stalled.put(job_id, -at)
        else:
            self._quiet.put(job_id, at)

    def restore(self, job_id: str, stored: PersistedSilence) -> None:
        """Continue with what an earlier run knew of a job."""
        self._last[job_id] = _Sign(stored.alive_at, stored.is_news)
        self._quiet.discard(job_id)
        self._stalled.discard(job_id)
        if stored.stalled:
            self._stalled.put(job_id, -stored.alive_at)
        else:
            self._quiet.put(job_id, stored.alive_at)

    def persisted(self, job_id: str) -> PersistedSilence | None:
        """What a checkpoint stores of a job. None if there was no sign of life."""
        sign = self._last.get(job_id, _NONE_YET)
        return PersistedSilence(sign.at, sign.is_news, self.is_stalled(job_id)) if sign is not _NONE_YET else None

    def forget(self, job_id: str) -> None:
        """Forget a job that does not run."""
        if self._last.pop(job_id, None) is not None:
            self._quiet.discard(job_id)
            self._stalled.discard(job_id)

    def judge(self, now: Micros, most: int) -> list[str]:
        """Return at most `most` jobs that have become stalled, and as many that are not as `stalled_after` has grown.

        Nothing changes while jobs cannot be judged.
        """
        judged_to = self._horizon.watched_to(now)
        if judged_to is None:
            return []
        self.judged_to = max(self.judged_to, judged_to)
        alive_since = self.judged_to - self._stalled_after()
        found = []
        for job_id in self._quiet.pop_until(alive_since - 1, most):
            sign = self._last[job_id]
            if sign.at >= alive_since:
                self._quiet.put(job_id, sign.at)
            else:
                self._stalled.put(job_id, -sign.at)
                found.append(job_id)
        for job_id in self._stalled.pop_until(-alive_since, most):
            self._quiet.put(job_id, self._last[job_id].at)
            found.append(job_id)
        return found
