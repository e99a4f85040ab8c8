"""Which ended jobs are exported, when, and which have been: the state of a sink that sends every ended job once.

A job is exported some seconds after its end was published, as it is published then, so that corrections are part of it.
Its end is news if the job was published as running before. A job that is published for the first time after it has
ended, such as one that started and ended while the daemon was stopped, is news if it ended after `since`. That is when
a first start has loaded all jobs, and later also the end of the last job that left memory: an older one that a client
asks for is old news.

The state is saved with the index, in one transaction. What has been exported after the last save is exported again if
the daemon is killed; nothing is left out. A job is remembered for as long as it is in memory, which bounds the state.
`MAX_GONE` are remembered though the tables do not have them any more: they may come back.

Nothing here reads a clock: `now` is in seconds of any clock that never goes back, `at` in microseconds since 1970.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import islice

from correlator.bounded import BoundedDict
from correlator.jobs.fold import ended_at
from correlator.jobs.horizon import FOR_EVER
from correlator.model.persisted import PersistedExports
from correlator.model.published import Change
from correlator.model.rows import Micros

MAX_GONE = 10_000
"""Exported jobs that are remembered though the tables do not have them any more."""


class Exports:
    """The exports of one sink. `delay`: seconds from the end of a job to its export; may be changed.

    `saved`: the state of the last run; None at a first start, which exports nothing of what ended before `begin`.
    """

    def __init__(self, delay: float, now: float, saved: PersistedExports | None = None) -> None:
        self.delay = delay
        self.dropped = 0
        """The number of jobs so far that left memory before they were exported."""
        self._since = saved.since if saved is not None else FOR_EVER
        self._exported: dict[str, bool] = {}
        """The jobs in memory whose end was news. False: it has not been exported yet."""
        self._gone: BoundedDict[str, None] = BoundedDict(MAX_GONE)
        """Jobs that had been exported when the tables did not have them any more."""
        self._changed: dict[str, None] = {}
        self._due: OrderedDict[str, float] = OrderedDict()
        """Jobs to export, with the time of their end. All have the same delay, so this is also their order."""
        self._sending: dict[str, float] = {}
        """Jobs from `pop_due` until they are finished or withdrawn, with the time of their end."""
        for job_id, exported in saved.jobs.items() if saved is not None else ():
            self._exported[job_id] = bool(exported)
            if not exported:
                self._due[job_id] = now

    @property
    def pending(self) -> int:
        """The number of jobs that have ended and that have not been exported."""
        return len(self._due) + len(self._sending)

    def begin(self, at: Micros) -> None:
        """Begin at a first start, once all jobs are loaded: what ends from `at` on is news."""
        if self._since == FOR_EVER:
            self._since = at

    def on_change(self, change: Change, at: Micros, now: float) -> None:
        """Note a change of a published job."""
        old, new, job_id = change.old, change.new, change.job_id
        if new is None:
            self._left(change, at)
        elif not new.view.terminal:
            self._gone.pop(job_id, None)
        elif job_id in self._gone:
            del self._gone[job_id]
            self._set(job_id, exported=True)
        elif job_id not in self._exported:
            was_known = old is not None and old.complete and not old.view.terminal
            if was_known or ended_at(new.view, new.alive_at) > self._since:
                self._set(job_id, exported=False)
                self._due[job_id] = now

    def pop_due(self, now: float) -> str | None:
        """Dequeue the next job to export; `finished` or `withdraw` must follow. None if none is due."""
        job_id = next(iter(self._due), None)
        if job_id is None or self._due[job_id] + self.delay > now:
            return None
        self._sending[job_id] = self._due.pop(job_id)
        return job_id

    def next_due(self) -> float | None:
        """Return the time at which the next job is due, or None."""
        job_id = next(iter(self._due), None)
        return self._due[job_id] + self.delay if job_id is not None else None

    def oldest(self) -> float | None:
        """Return the time since which the oldest pending job waits. None if there is none."""
        return min((*self._sending.values(), *islice(self._due.values(), 1)), default=None)

    def finished(self, job_id: str) -> None:
        """The job has been exported, or refused for good: do not export it again."""
        self._sending.pop(job_id, None)
        if job_id in self._exported:
            self._set(job_id, exported=True)

    def withdraw(self, job_id: str) -> None:
        """The job runs again, or is not in memory: do not export it before its next end."""
        self._sending.pop(job_id, None)
        self._set(job_id, exported=None)

    def prune(self, job_ids: Iterable[str], in_memory: Callable[[str], bool]) -> None:
        """Forget those of `job_ids` that are not in memory. Call it once the state of the last run is restored."""
        for job_id in job_ids:
            if not in_memory(job_id):
                self.dropped += job_id in self._due
                self.withdraw(job_id)

    def all_ids(self) -> list[str]:
        """The IDs of all jobs that have a state."""
        return list(self._exported)

    # -- for the checkpoint

    def changed(self) -> PersistedExports:
        """The state that changed since the last call."""
        changed, self._changed = self._changed, {}
        return PersistedExports(self._since, {job_id: self._exported.get(job_id) for job_id in changed})

    def mark_all(self) -> None:
        """Return all jobs with the next `changed`: it is the first write of a store."""
        self._changed.update(dict.fromkeys(self._exported))

    # -- internal

    def _left(self, change: Change, at: Micros) -> None:
        """A job left memory. If it is being sent, that goes on."""
        old = change.old
        if change.reason == "retention" and old is not None and old.view.terminal:
            self._since = max(self._since, min(ended_at(old.view, old.alive_at), at))
        if change.reason == "gone" and self._exported.get(change.job_id):
            self._gone[change.job_id] = None
        self.dropped += change.job_id in self._due and change.reason != "merged"
        self._set(change.job_id, exported=None)

    def _set(self, job_id: str, *, exported: bool | None) -> None:
        was = self._exported.pop(job_id, None)
        if exported is not None:
            self._exported[job_id] = exported
        if exported is not False:
            self._due.pop(job_id, None)
        if was is not exported:
            self._changed[job_id] = None
