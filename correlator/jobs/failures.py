"""Why the published jobs failed, and whether each failure is new: of a daemon.

Problem. A failure is a function of the job's rows in the tables (`correlator.failures`), but whether it is new depends
on the jobs that failed before, most of which are not in memory.

Model. `Groups` has the failed jobs that are known: those in memory, and those that the tables have besides, which are
read in the background after a start. Until then the state of a failure is unknown. It is decided once: what is read
later does not change it, unless the job ran in between.
"""

from __future__ import annotations

from itertools import islice

from correlator.failures.failure import Failure, failure
from correlator.failures.groups import FailedJob, Groups
from correlator.failures.patterns import NO_MASKS, Masks
from correlator.jobs import joblog
from correlator.jobs.fold import ended_at, vm_name
from correlator.model import document
from correlator.model.document import FailureState
from correlator.model.facts import Reading, Status
from correlator.model.published import JobView
from correlator.model.rows import COLUMNS, JobRecord, Micros

MIN_NAME, MAX_NAMES = 3, 100
"""Characters of a name: a shorter one may be any word of an error, and is not masked. The most names of one job."""

_NO_NAMES = frozenset({"operation", "job_type"})
_NAMING = ("name", "id", "ids", "uuid", "vm", "path", "host", "key", "label")
"""How a key of metadata ends whose text is a name."""


class Failures:
    """See the module's docstring. `masks`: of an operator. Event loop's thread only."""

    def __init__(self, masks: Masks = NO_MASKS) -> None:
        self._masks = masks
        self.groups = Groups()
        self.past_read = False
        """True once the failed jobs of the tables are known: then a failure that is not known is new."""
        self._read_to: Micros | None = None
        self._undecided: dict[str, None] = {}

    @property
    def reaches(self) -> Micros | None:
        """All failed jobs that started then or later are known; None: not known since when."""
        return max(self._read_to, self.groups.since) if self._read_to is not None else None

    def has_read(self, down_to: Micros | None, *, all_of_it: bool = False) -> None:
        """The failed jobs that started at `down_to` or later are known. `all_of_it`: the tables have no older jobs."""
        self._read_to = down_to if down_to is not None else self._read_to
        self.past_read = all_of_it

    def of(
        self,
        view: JobView,
        alive_at: Micros,
        reading: Reading | None,
        old: document.Failure | None = None,
        state: FailureState | None = None,
    ) -> document.Failure | None:
        """The failure to publish of a job in memory, None if it has not failed or the tables do not say so yet.

        `reading`: what the tables have of it; None if they cannot be read: then the view says all that is known.
        `old`: the one that is published. `state`: that of a checkpoint. A failure that has neither is decided now, or
        by `decide`.
        """
        if (job := failed_job(view, alive_at, reading, self._masks)) is None:
            self.forget(view.job_id)
            return None
        self.groups.put(job)
        if old is not None:
            state = old.state
        if state is None:
            state = self._state(job)
        self._undecided.pop(view.job_id, None)
        if state == "unknown" and job.failure.fingerprint:
            self._undecided[view.job_id] = None
        return published(job.failure, state)

    def archived(self, view: JobView, alive_at: Micros, reading: Reading | None) -> document.Failure | None:
        """The failure of a job that is not in memory. From now on it is known."""
        if (job := failed_job(view, alive_at, reading, self._masks)) is None:
            self.groups.discard(view.job_id)
            return None
        self.groups.put(job)
        return published(job.failure, self._state(job))

    def forget(self, job_id: str) -> None:
        """Forget a job that the tables do not have any more, or that has not failed after all."""
        self.groups.discard(job_id)
        self._undecided.pop(job_id, None)

    def has_undecided(self) -> bool:
        """True if `decide` would return something now."""
        return self.past_read and bool(self._undecided)

    def decide(self, most: int) -> list[tuple[str, document.Failure]]:
        """Decide up to `most` failures whose state was unknown. Returns each job, and what is to be published of it."""
        decided = []
        for job_id in list(islice(self._undecided, most)) if self.past_read else ():
            del self._undecided[job_id]
            if (job := self.groups.get(job_id)) is not None and (state := self._state(job)) != "unknown":
                decided.append((job_id, published(job.failure, state)))
        return decided

    def _state(self, job: FailedJob) -> FailureState:
        if not job.failure.fingerprint:
            return "unknown"
        if self.groups.is_known(job):
            return "known"
        return "new" if self.past_read and job.ended_at > self.groups.since else "unknown"


def failed_job(view: JobView, alive_at: Micros, reading: Reading | None, masks: Masks) -> FailedJob | None:
    """A failed job; None if it has not failed, or if the tables do not say so. `reading`: see `Failures.of`."""
    if view.status is not Status.FAILED:
        return None
    record, error, steps = None, view.error, view.steps
    if reading is not None and (record := reading.record) is not None:
        if record.status != Status.FAILED.value:
            return None
        error, steps = record.error_message, reading.steps or ()
    found = failure(error, sorted(steps, key=lambda step: step.order_key), names_of(view, record), masks)
    return FailedJob(view.job_id, ended_at(view, alive_at), found, view.operation or "", vm_name(view))


def published(found: Failure, state: FailureState) -> document.Failure:
    """What a document says of a failure."""
    return document.Failure(found.fingerprint or None, found.step, found.certainty, found.text, state)


def names_of(view: JobView, record: JobRecord | None) -> list[str]:
    """The names that stand in the job's own row, the longest first: they say nothing of what failed."""
    found = [view.job_id, (record.external_job_id if record is not None else None) or ""]
    found += (getattr(view, name) or "" for name in COLUMNS if name not in _NO_NAMES)
    for key, value in (joblog.metadata_object(view.metadata) or {}).items():
        if key.lower().endswith(_NAMING):
            found += (one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str))
    some = dict.fromkeys(name for name in found[:MAX_NAMES] if len(name) >= MIN_NAME)
    return sorted(some, key=len, reverse=True)
