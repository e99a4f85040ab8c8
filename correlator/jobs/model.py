"""The values of the core: rows and records as read, facts as understood, jobs as shown.

All are frozen. Times are integers, microseconds since 1970 in UTC; durations are seconds; ``None`` is "not known".
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal, TypeAlias

from msgspec import Struct

Micros: TypeAlias = int
"""A point in time: microseconds since 1970-01-01T00:00:00Z."""

Level: TypeAlias = Literal["DEBUG", "INFO", "WARN", "ERROR"]

LEVELS: tuple[Level, ...] = ("DEBUG", "INFO", "WARN", "ERROR")
"""From the least on."""

Tie: TypeAlias = Literal["column", "attrs", "step", "external_id", "none"]
"""How a log row was tied to its job: which of its members named it."""


class Status(StrEnum):
    """Of a job or a step. ``cancelled`` and ``pending`` are for jobs only, ``skipped`` for steps only."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"

    @property
    def ended(self) -> bool:
        return self not in (Status.PENDING, Status.RUNNING)

    @property
    def rank(self) -> int:
        """pending < running < ended: a status never goes down this order by itself."""
        return 2 if self.ended else int(self is Status.RUNNING)


class Kind(StrEnum):
    """The lifecycle rows of JobLog, and the two transitions that only time tells."""

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

    @property
    def of_step(self) -> bool:
        return self.value.startswith("step.")


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
"""What a lifecycle row says of its job or step."""


class LogRow(Struct, frozen=True, gc=False):
    """One row of ``log_events``, as stored; ``ts`` already in UTC."""

    id: int
    message: str
    ts: Micros
    level: str = "INFO"
    job_id: str | None = None
    step_id: int | None = None
    attrs: str | None = None
    external_job_id: str | None = None


class JobRecord(Struct, frozen=True, gc=False):
    """One row of ``job_tracking``. Columns an appliance does not have are ``None``."""

    job_id: str
    operation: str | None = None
    status: str | None = None
    job_type: str | None = None
    parent_job_id: str | None = None
    external_job_id: str | None = None
    metadata: str | None = None
    error_message: str | None = None
    started_at: Micros | None = None
    completed_at: Micros | None = None
    created_at: Micros | None = None
    updated_at: Micros | None = None
    canceled_at: Micros | None = None
    percent_complete: int | None = None
    owner: str | None = None
    context_id: str | None = None
    job_category: str | None = None


class StepRecord(Struct, frozen=True, gc=False):
    """One row of ``job_steps``; also a step as shown, where an event runs ahead of the table."""

    id: int
    name: str = ""
    seq: int = 0
    status: str = "running"
    started_at: Micros | None = None
    completed_at: Micros | None = None
    error_message: str | None = None


class LegacyRecord(Struct, frozen=True, gc=False):
    """One row of ``failover_jobs``. ``claimed``: a JobLog job that is not in memory has this ID as an external one."""

    id: int
    job_id: str
    status: str = "pending"
    job_type: str | None = None
    vm_id: str | None = None
    vm_context_id: str | None = None
    source_vm_name: str | None = None
    source_vm_spec: str | None = None
    destination_vm_id: str | None = None
    snapshot_id: str | None = None
    error_message: str | None = None
    created_at: Micros | None = None
    updated_at: Micros | None = None
    started_at: Micros | None = None
    completed_at: Micros | None = None
    claimed: bool = False


class Entry(Struct, frozen=True, gc=False):
    """A fact: what one log row says. ``kind`` is set on lifecycle rows only.

    ``tick`` counts when the row was seen; a row met again keeps its first.
    """

    event_id: int
    at: Micros
    level: Level
    message: str
    tick: int
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
    by: Tie = "none"
    attrs: Any = None
    """As parsed; the text itself where it is no JSON; None beyond `joblog.MAX_CARRIED`."""


class Tied(Struct, frozen=True, gc=False):
    """A log row and the job that it belongs to. ``job_id`` None: to none that is known, or not to any."""

    entry: Entry
    job_id: str | None
    by: Tie


class LogLine(Struct, frozen=True, gc=False):
    """One row of the log as it is told of a job; `attrs` as parsed."""

    event_id: int
    level: Level
    message: str
    step_id: int | None
    attrs: Any
    at: Micros


class Reading(Struct, frozen=True, gc=False):
    """A fact: what the tables said of one job in one look. ``record`` None: the job has no row.

    ``tick`` is when the look began. ``steps`` None: ``job_steps`` could not be read. ``children``: (started, job id).
    """

    job_id: str
    tick: int
    record: JobRecord | None = None
    steps: tuple[StepRecord, ...] | None = None
    children: tuple[tuple[Micros, str], ...] = ()


Fact: TypeAlias = Entry | Reading


class JobEvent(Struct, frozen=True, gc=False):
    """The best lifecycle event of a job or step: the highest by (rank of its status, ``at``, ``event_id``)."""

    status: Status
    at: Micros
    event_id: int
    tick: int
    error: str | None = None


class StepEvents(Struct, frozen=True, gc=False):
    """What the log says of one step. ``tick``: the latest at which anything of it was seen."""

    tick: int
    best: JobEvent | None = None
    started_at: Micros | None = None
    name: str = ""
    seq: int = 0


class Percent(Struct, frozen=True, gc=False, order=True):
    """A ``Job progress updated`` row; ordered by when it was logged."""

    at: Micros
    event_id: int
    percent: int
    tick: int


class Line(Struct, frozen=True, gc=False, order=True):
    """The last log row of a job; ordered by when it was logged."""

    at: Micros
    event_id: int
    level: Level
    text: str


class Job(Struct, frozen=True, gc=False):
    """Everything known of one JobLog job: the facts, joined. What is shown follows from it (`fold.view`)."""

    job_id: str
    reading: Reading | None = None
    event: JobEvent | None = None
    started_at: Micros | None = None
    steps: dict[int, StepEvents] = {}
    percent: Percent | None = None
    external_ids: tuple[str, ...] = ()
    last: Line | None = None
    warnings: frozenset[int] = frozenset()
    errors: frozenset[int] = frozenset()
    job_type: str = ""
    operation: str = ""
    owner: str = ""
    parent_job_id: str = ""


class View(Struct, frozen=True, gc=False):
    """A job as it is shown, from the facts alone: two equal views are the same document, `rev` and ages aside."""

    job_id: str
    status: Status
    source: Literal["joblog", "legacy"] = "joblog"
    external_ids: tuple[str, ...] = ()
    context_id: str | None = None
    parent_job_id: str | None = None
    job_type: str | None = None
    operation: str | None = None
    category: str | None = None
    owner: str | None = None
    error: str | None = None
    started_at: Micros | None = None
    ended_at: Micros | None = None
    percent: float = 0.0
    basis: Literal["reported", "steps", "legacy"] = "steps"
    steps: tuple[StepRecord, ...] = ()
    last: Line | None = None
    warnings: int = 0
    errors: int = 0
    metadata: str | None = None

    @property
    def terminal(self) -> bool:
        return self.status.ended

    @property
    def age_key(self) -> tuple[Micros, int, str]:
        """Orders jobs by age, the newest last: where an ID repeats, the highest key owns it.

        ``started_at`` has whole seconds, so the first step's id decides inside one; without a step yet it is newer.
        """
        first = min((s.id for s in self.steps), default=0 if self.terminal else 1 << 63)
        return (self.started_at or 0, first, self.job_id)

    def names(self) -> tuple[str, ...]:
        """Every ID that may lead to this job."""
        more = () if self.context_id is None else (self.context_id,)
        return (self.job_id, *self.external_ids, *more)


class Shown(Struct, frozen=True, gc=False):
    """A view with what the index adds: its revision, when that was, its children, and whether it has fallen silent."""

    view: View
    rev: int
    updated_at: Micros
    children: tuple[str, ...] = ()
    stalled: bool = False
    alive_at: Micros = 0

    @property
    def job_id(self) -> str:
        return self.view.job_id


class Cursor(Struct, frozen=True):
    """Where a source resumes. ``row``: the one at the head, by which the log is known again; ``holes``: awaited."""

    head: int = 0
    row: LogRow | None = None
    holes: tuple[tuple[tuple[int, int], ...], ...] = ()


class Kept(Struct, frozen=True, gc=False):
    """A job as it outlives the daemon: its facts, and when it last changed."""

    job: Job
    updated_at: Micros


class Memory(Struct, frozen=True):
    """What the index knows beside its jobs: the last tick, and the events that it owes, with their due times."""

    looks: int = 0
    owed: tuple[tuple[Micros, Event], ...] = ()


Reason: TypeAlias = Literal["retention", "gone", "merged"]


class Change(Struct, frozen=True, gc=False):
    """One step of the index. ``new`` None: the job left, for ``reason``. ``seq`` is the change's place in the stream.

    ``moved``: nothing of the document changed, but an ID that led here now leads elsewhere.
    """

    job_id: str
    seq: int
    old: Shown | None
    new: Shown | None
    reason: Reason | None = None
    moved: bool = False


class Event(Struct, frozen=True, gc=False):
    """One transition, for those who count transitions. ``event_id`` None: only the tables, or time, told it."""

    kind: Kind
    job_id: str
    at: Micros
    event_id: int | None = None
    step_id: int | None = None
    step_name: str | None = None
    error: str | None = None


class Resolved(Struct, frozen=True, gc=False):
    """Where an ID leads. ``also``: older jobs that the same ID names, newest first."""

    job_id: str
    resolved_by: Literal["uuid", "external_id", "context_id", "legacy"]
    also: tuple[str, ...] = ()
