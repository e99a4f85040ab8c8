"""How many jobs there are and how they end, counted from the changes as they come: who asks walks over no job.

An end counts once in a run of the daemon, whatever happens to the job afterwards: a second end, another reading, its
leaving memory and coming back. What had ended before does not count: not what a first start reads, nor what an earlier
run knew, nor what somebody looks up in the database.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from correlator import metrics
from correlator.jobs.model import Change, Micros, Shown, Status

STATUSES = tuple(s for s in Status if s is not Status.SKIPPED)
ENDED = tuple(s for s in STATUSES if s.ended)

MAX_ENDED = 20_000
"""Jobs remembered as counted. The oldest go first: they are the least likely to come again."""


class Census:
    """Nothing counts as ended before `begin`."""

    def __init__(self) -> None:
        self._counts: dict[Status, int] = dict.fromkeys(STATUSES, 0)
        self._stalled = 0
        self._since: Micros | None = None
        self._counted: dict[str, None] = {}
        self._kinds = metrics.Bounded()
        self._prepared: set[tuple[str, ...]] = set()
        for status in STATUSES:
            metrics.JOBS.labels(status).set_function(partial(self._counts.__getitem__, status))
        metrics.JOBS_STALLED.set_function(lambda: self._stalled)

    def begin(self, since: Micros) -> None:
        """From now on ends count; of jobs not heard of before, those from `since` on. The first word holds."""
        if self._since is None:
            self._since = since - since % 1_000_000  # job_tracking has whole seconds

    def take(self, changes: Iterable[Change]) -> None:
        for change in changes:
            old, new = change.old, change.new
            before, after = (s.view.status if s is not None else None for s in (old, new))
            if before is not after:
                if before is not None:
                    self._counts[before] -= 1
                if after is not None:
                    self._counts[after] += 1
                if new is not None:
                    self._changed(old, new)
            self._stalled += (new is not None and new.stalled) - (old is not None and old.stalled)

    def _changed(self, old: Shown | None, new: Shown) -> None:
        view = new.view
        kind = self._kinds(view.job_type, view.operation)
        if kind not in self._prepared:
            self._prepared.add(kind)
            for status in ENDED:
                metrics.JOBS_ENDED.labels(status, *kind)  # the first end shall be an increase
        if not view.terminal or self._since is None or (old is not None and old.view.terminal):
            return
        if old is None and (view.ended_at or 0) < self._since:
            return
        if any(name in self._counted for name in (view.job_id, *view.external_ids)):
            return  # by an external ID: as the legacy job that it was until now
        self._counted[view.job_id] = None
        if len(self._counted) > MAX_ENDED:
            del self._counted[next(iter(self._counted))]
        metrics.JOBS_ENDED.labels(view.status, *kind).inc()
        if view.started_at is not None and view.ended_at is not None:
            metrics.JOB_SECONDS.labels(*kind).observe(max(0, view.ended_at - view.started_at) / 1_000_000)
