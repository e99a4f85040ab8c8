"""What is known of a job: facts as parsed from rows, and the `Job` that `jobs.fold` joins them into."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal, TypeAlias

from msgspec import Struct

from correlator.model.rows import JobRecord, Level, Micros, StepRecord

Attribution: TypeAlias = Literal["column", "attrs", "step", "external_id", "none"]
"""The member of a log row by which the row was attributed to its job."""


class Status(StrEnum):
    """The status of a job or a step. Only jobs are ``cancelled`` or ``pending``, only steps are ``skipped``."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"

    ended: bool
    rank: int
    """The order pending < running < ended. Events never lower the rank of a status."""

    def __init__(self, word: str) -> None:
        self.rank = {"pending": 0, "running": 1}.get(word, 2)
        self.ended = self.rank == 2


ENDED: frozenset[str] = frozenset(status for status in Status if status.ended)
"""The statuses of jobs and steps that have ended."""


class Kind(StrEnum):
    """The kinds of JobLog's lifecycle rows, and the four transitions that result from the passing of time."""

    JOB_STARTED = "job.started"
    JOB_COMPLETED = "job.completed"
    JOB_FAILED = "job.failed"
    JOB_CANCELLED = "job.cancelled"
    STEP_STARTED = "step.started"
    STEP_COMPLETED = "step.completed"
    STEP_FAILED = "step.failed"
    STEP_SKIPPED = "step.skipped"
    JOB_STALLED = "job.stalled"
    JOB_RECOVERED = "job.recovered"
    JOB_LATE = "job.late"
    JOB_OVERDUE = "job.overdue"

    of_step: bool
    ends_job: bool
    """True for a lifecycle row that ends its job."""

    def __init__(self, word: str) -> None:
        self.of_step = word.startswith("step.")
        self.ends_job = word in ("job.completed", "job.failed", "job.cancelled")


STATUS_OF: dict[Kind, Status] = {
    Kind.JOB_STARTED: Status.RUNNING,
    Kind.JOB_COMPLETED: Status.COMPLETED,
    Kind.JOB_FAILED: Status.FAILED,
    Kind.JOB_CANCELLED: Status.CANCELLED,
    Kind.STEP_STARTED: Status.RUNNING,
    Kind.STEP_COMPLETED: Status.COMPLETED,
    Kind.STEP_FAILED: Status.FAILED,
    Kind.STEP_SKIPPED: Status.SKIPPED,
}
"""The status that a lifecycle row gives its job or step."""


class Entry(Struct, frozen=True, gc=False):
    """A fact: the parsed content of one log row. ``kind`` is set on lifecycle rows only.

    ``observed_at`` is the logical time at which the row was read first; it stays if the row is read again.
    """

    event_id: int
    at: Micros
    level: Level
    message: str
    observed_at: int
    job_id: str | None = None
    step_id: int | None = None
    external_ids: tuple[str, ...] = ()
    kind: Kind | None = None
    error: str | None = None
    step_name: str = ""
    sequence: int = 0
    job_type: str = ""
    operation: str = ""
    owner: str = ""
    parent_job_id: str = ""
    percent: int | None = None
    by: Attribution = "none"
    attrs: Any = None
    """The parsed value, or the text itself if it is not JSON. None if longer than `joblog.MAX_CARRIED`."""
    error_cut: int | None = None


class AttributedRow(Struct, frozen=True, gc=False):
    """A log row and the job that it belongs to. ``job_id`` is None if it belongs to no job, or to an unknown one."""

    entry: Entry
    job_id: str | None
    by: Attribution


MAX_CHILDREN = 1_000
"""The maximum number of children that a job's document names."""


MAX_STEPS = 2_000
"""The maximum number of steps of a job that are read from the tables, the last ones, and of those that only the log
knows. JobLog's jobs have about ten."""


class Reading(Struct, frozen=True, gc=False, array_like=True):
    """A fact: what one table query returned about one job. ``record`` None: the job has no row.

    ``observed_at``: the logical time at which the query began. ``steps`` None: ``job_steps`` could not be read.
    ``children``: (start time, job ID) of the newest `MAX_CHILDREN` children, sorted. ``child_count``: of all.
    ``steps_kept_from``: the logical time of the earlier query that returned ``steps``, as later ones could not read
    them; None if they are of this query.
    """

    job_id: str
    observed_at: int
    record: JobRecord | None = None
    steps: tuple[StepRecord, ...] | None = None
    children: tuple[tuple[Micros, str], ...] = ()
    child_count: int = 0
    steps_kept_from: int | None = None

    @property
    def steps_observed_at(self) -> int:
        """The logical time at which the query of the steps began; -1 if they were never read."""
        if self.steps is None:
            return -1
        return self.observed_at if self.steps_kept_from is None else self.steps_kept_from


Fact: TypeAlias = Entry | Reading


class LifecycleEvent(Struct, frozen=True, gc=False, array_like=True):
    """The best lifecycle event of a job or step: the highest by (rank of its status, ``at``, ``event_id``)."""

    status: Status
    at: Micros
    event_id: int
    observed_at: int
    error: str | None = None
    error_cut: int | None = None


class StepEvents(Struct, frozen=True, gc=False, array_like=True):
    """The log's events of one step. ``observed_at`` is the latest of its events."""

    observed_at: int
    best: LifecycleEvent | None = None
    started_at: Micros | None = None
    name: str = ""
    seq: int = 0


class Percent(Struct, frozen=True, gc=False, order=True, array_like=True):
    """A ``Job progress updated`` row. Ordered by the time at which it was logged."""

    at: Micros
    event_id: int
    percent: int
    observed_at: int


class Line(Struct, frozen=True, gc=False, order=True, array_like=True):
    """The last log row of a job. Ordered by the time at which it was logged."""

    at: Micros
    event_id: int
    level: Level
    text: str


LogPlace: TypeAlias = tuple[Micros, int]
"""The place of a row in the log: the time at which it was logged, and its ID."""


class Job(Struct, frozen=True, gc=False, array_like=True):
    """The joined facts of one JobLog job. The published view is computed from it (`fold.view`).

    ``external_ids``: those of log rows, sorted; the newest, if there are too many. ``external_at``: for each of them,
    the place of the newest row that has it. ``external_floor``: the newest of those that are too many, with its place.
    ``all_external_ids``: a hash of each, also of those, if there are too many; else empty.
    """

    job_id: str
    reading: Reading | None = None
    event: LifecycleEvent | None = None
    started_at: Micros | None = None
    steps: dict[int, StepEvents] = {}
    percent: Percent | None = None
    external_ids: tuple[str, ...] = ()
    external_at: tuple[LogPlace, ...] = ()
    external_floor: tuple[LogPlace, str] | None = None
    all_external_ids: frozenset[int] = frozenset()
    last: Line | None = None
    warnings: frozenset[int] = frozenset()
    errors: frozenset[int] = frozenset()
    job_type: str = ""
    operation: str = ""
    owner: str = ""
    parent_job_id: str = ""
