"""How far the daemon sees, how much time it has watched, and which jobs have been silent for how much of it.

Problem: a job is stalled, late or overdue by what did not happen. While the database is away, or the daemon is down or
reads a backlog, nothing seems to happen to any job, although all of them may go on or have ended.

Model: the source reports each time that it has read all of the log, or all of the tables. The earlier of the two times
is the time at which jobs are judged (`judged_at`). It may be `JUDGED_WITHIN` behind the clock; beyond that, nothing is
judged. Silence is measured in watched time. It stands while the daemon cannot see, and no clock that is set moves it:
of the time between two reports, at most `SEEN_AT_ONCE` counts, by a clock that nobody sets. The same holds for the log
alone (`log_watched`): a row that is not there may come until the log could be written and read for a while.

Invariants: watched time never goes back, that of both parts also not across a restart (`restore`). It needs no
comparison of the daemon's clock with the appliance's.
"""

from __future__ import annotations

from collections.abc import Callable, KeysView
from enum import Enum

from msgspec import Struct

from correlator.bounded import Schedule
from correlator.model.persisted import PersistedSilence
from correlator.model.rows import Micros

JUDGED_WITHIN: Micros = 60_000_000
"""Microseconds that the time at which jobs are judged may be behind the clock."""

SEEN_AT_ONCE: Micros = 5_000_000
"""Microseconds of watched time between two reports. A database that is slower delays that a silent job is stalled."""

LOG_SEEN_AT_ONCE: Micros = 1_000_000
"""The same of the log alone. A slower one delays that a transition is announced without its row."""

FOR_EVER: Micros = (1 << 63) - 1
"""A time later than any other, in microseconds."""


class Part(Enum):
    """What the source reads completely, again and again."""

    LOG = "log"
    TABLES = "tables"


class Horizon:
    """See the module's docstring. Event loop's thread only. Every `now` is in microseconds since 1970.

    `read_to`: the time up to which everything has been read. `FOR_EVER`: whatever is committed is known at once. 0:
    nothing has been read, so that nothing is judged before the first report on each part.
    """

    def __init__(self, read_to: Micros = FOR_EVER) -> None:
        self._read = dict.fromkeys(Part, (read_to, 0))
        """For each part, the time up to which it has been read, by the clock and as `uptime`."""
        self.read_to = read_to
        """Log and tables have been read as they were at this time."""
        self._unwatched: Micros = 0
        """The time by the clock minus watched time."""
        self._step: tuple[Micros, Micros] | None = None
        """The last step of watched time: the time by the clock, and as `uptime`."""
        self._restored: Micros | None = None
        """Watched time at the end of the last run. None once this run watches."""
        self._latest: Micros = 0
        """The latest watched time by the clock, while whatever is committed is known at once."""
        self._log_watched: Micros = 0

    @property
    def log_read_to(self) -> Micros:
        """Every row that was committed before this time has been read."""
        return self._read[Part.LOG][0]

    def judged_at(self, now: Micros) -> Micros | None:
        """The time at which jobs are judged. None: what was read is too old."""
        read_to = self.read_to
        return min(now, read_to) if now - read_to <= JUDGED_WITHIN else None

    def known_to(self, now: Micros, alive_at: Micros) -> Micros:
        """The time up to which a job is known whose last activity was at `alive_at`: all of it, or that activity."""
        return min(now, max(self.judged_at(now) or 0, alive_at)) or now

    def watched(self, at: Micros) -> Micros:
        """Watched time at `at`, up to which everything was read. Only differences have a meaning."""
        return at - self._unwatched

    def watched_to(self, now: Micros) -> Micros | None:
        """Watched time up to which jobs are judged. None: what was read is too old."""
        if self.read_to == FOR_EVER:
            return self._watch(now)
        judged_at = self.judged_at(now)
        return self.watched(judged_at) if judged_at is not None else None

    def watched_now(self, now: Micros) -> Micros:
        """Watched time at `now`. How much of the time since the last report was seen is known with the next one."""
        if self.read_to == FOR_EVER:
            return self._watch(now)
        if self._step is not None:
            last = self._step[0] - self._unwatched
        elif self._restored is not None:
            last = self._restored
        else:
            return self.watched(now)
        watched = now - self._unwatched
        return last if watched < last else min(watched, last + SEEN_AT_ONCE)

    def log_watched(self, now: Micros) -> Micros:
        """Watched time of the log alone, up to the last report on it. Only differences have a meaning."""
        return self._watch(now) if self.log_read_to == FOR_EVER else self._log_watched

    def log_watched_from(self, now: Micros) -> Micros:
        """The same at the first report that covers `now`, at the latest."""
        return self._watch(now) if self.log_read_to == FOR_EVER else self._log_watched + LOG_SEEN_AT_ONCE

    def report(self, part: Part, at: Micros, uptime: Micros) -> None:
        """Report that all of `part` was read as it was at `at`. `uptime`: that time by a clock that nobody sets.

        A report on an earlier time than the last one says nothing new.
        """
        known = self._read[part][1]
        if uptime < known:
            return
        self._read[part] = at, uptime
        self.read_to = min(self._read.values())[0]
        if part is Part.LOG:
            self._log_watched += min(uptime - known, LOG_SEEN_AT_ONCE)
        read_to, uptime = min(self._read.values(), key=lambda times: times[1])
        if read_to in (0, FOR_EVER):
            return  # The other part has not been read yet, or need not be.
        if self._step is not None:
            step_at, step_uptime = self._step
            self._unwatched += read_to - step_at - min(uptime - step_uptime, SEEN_AT_ONCE)
        elif self._restored is not None:
            self._unwatched = read_to - self._restored
        self._step, self._restored = (read_to, uptime), None

    def restore(self, watched: Micros, now: Micros) -> None:
        """Continue the watched time of an earlier run."""
        self._restored, self._latest, self._unwatched = watched, watched, now - watched

    def _watch(self, now: Micros) -> Micros:
        """Advance watched time to `now`. It goes on from where it is if the clock was set back."""
        self._unwatched = min(self._unwatched, now - self._latest)
        self._latest = self.watched(now)
        return self._latest


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
