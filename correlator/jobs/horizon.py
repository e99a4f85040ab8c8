"""How far the daemon sees, and how much time it has watched. Which jobs are silent for too long is in `stalled.py`.

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

from enum import Enum

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
