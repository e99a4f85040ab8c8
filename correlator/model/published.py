"""What is published: jobs, what earlier runs say of them, their log lines, and how they change.

A `PublishedJob` holds the view that follows from the facts of a job, and what the index adds. The document that clients
get (`model.document`) is a function of it. What the index returns is an `Outcome`: a `Change` for each job whose
document or IDs have changed, and an `Event` for each transition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from operator import attrgetter
from typing import Any, Literal, TypeAlias, get_args

from msgspec import Struct
from msgspec.structs import replace

from correlator.model.document import Comparison, Failure, ForecastState, StepAhead
from correlator.model.facts import AttributedRow, Kind, Line, Status
from correlator.model.rows import Int64, JobColumns, Level, Micros, StepRecord

_id = attrgetter("id")

AgeKey: TypeAlias = tuple[Micros, int, str]
"""Orders jobs by age (`JobView.age_key`). Its last member is the job ID."""

Reason: TypeAlias = Literal["retention", "gone", "merged"]

Lost: TypeAlias = Literal["job_started", "job_ended", "step_started", "step_ended", "error", "percent"]
"""The kind of a log row that JobLog lost. `error`: the row exists, but its text differs from the table's. `percent`:
the job has progress rows, but none with the table's percentage."""

LOST: tuple[Lost, ...] = get_args(Lost)


class JobView(JobColumns, frozen=True, gc=False):
    """The content of a published job, computed from its facts alone. Equal views have equal documents but for `rev`."""

    job_id: str
    status: Status
    source: Literal["joblog", "legacy"] = "joblog"
    external_ids: tuple[str, ...] = ()
    category: str | None = None
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
    error_cut: int | None = None
    external_ids_cut: int | None = None
    """The number of all external IDs, up to `fold.MAX_COUNTED`, if `external_ids` has not all of them."""
    steps_complete: bool = True
    """False if job_steps could not be read: `steps` has only what the log says."""
    first_step: int | None = None
    """The lowest ID of a step, at a gateway, where `steps` is empty (`encoding.steps_of`)."""

    @property
    def terminal(self) -> bool:
        return self.status.ended

    @property
    def age_key(self) -> AgeKey:
        """Orders jobs by age, newest last. If several jobs carry an ID, the highest key owns it.

        ``started_at`` has whole seconds. Within one second the lowest step ID decides: a running job without steps is
        newer than one with steps, an ended job without steps is older. The job ID decides last. Every client can
        compute the key from a document: `correlator.client.documents.age_key` and ``newest`` of client.js apply the
        same rule.
        """
        first = self.first_step
        if first is None:
            first = min(map(_id, self.steps), default=0 if self.terminal else 1 << 63)
        return (-1 << 63 if self.started_at is None else self.started_at, first, self.job_id)

    def names(self) -> tuple[str, ...]:
        """All IDs that may resolve to this job."""
        more = () if self.context_id is None else (self.context_id,)
        return (self.job_id, *self.external_ids, *more)


class Titles(Struct, frozen=True):
    """The titles that people read instead of the names of operations and steps. A name without one is absent."""

    operations: Mapping[str, str] = {}
    steps: Mapping[str, str] = {}


NO_TITLES = Titles()


MAX_RUNNING = 200
"""Running steps with which a job may go on without a new document at a gateway: the duration of each grows."""


class Body(Struct, frozen=True, gc=False):
    """A document that a gateway has received: its text, the revision of which it is, and its checksum in the stream.

    `running`: the ID and start of each running step; None if there are more than `MAX_RUNNING`. `forecast`: the state
    of its forecast. They are kept so that a growth, of which 64 fit in 4 kB, does not parse a document of 1 MB.
    """

    text: bytes
    rev: int
    checksum: int
    running: tuple[tuple[int, Micros | None], ...] | None = ()
    forecast: str | None = None


class PublishedJob(Struct, frozen=True, gc=False):
    """What is published of a job: its view, and what the index adds: revision, children, `stalled` and the forecast.

    `complete` is False while unread rows of the log's past may belong to the job. `instance`: the appliance that it
    belongs to, at a gateway; empty where there is only one.
    """

    view: JobView
    rev: int
    updated_at: Micros
    children: tuple[str, ...] = ()
    """The IDs of the newest `MAX_CHILDREN` children, oldest first."""
    child_count: int = 0
    """The number of all children."""
    stalled: bool = False
    alive_at: Micros = 0
    complete: bool = True
    forecast: JobForecast | None = None
    instance: str = ""
    steps_cut: int | None = None
    """The number of all steps if `view` has only the newest, as in a stream of a cluster. None: it has all."""
    titles: Titles = NO_TITLES
    end_seen_at: Micros = 0
    """When it was seen that a job had ended that had been published as one that had not; 0: it was not."""
    failure: Failure | None = None
    body: Body | None = None
    """At a gateway: the last whole document. The view has what filters and lookups use: no steps, and neither forecast
    nor titles are there. A job that has gone on since has another `rev`, `updated_at` and last message."""

    @property
    def job_id(self) -> str:
        return self.view.job_id

    @property
    def percent(self) -> float:
        """The percent that clients see: that of the forecast, or the view's if the forecast has none."""
        made = self.forecast
        return made.percent if made is not None and made.percent is not None else self.view.percent


def goes_on(old: PublishedJob, new: PublishedJob) -> bool:
    """True if a later revision of a job says only that time has passed, or that the log has new rows, as most do."""
    was, view = old.view, new.view
    if old.rev == new.rev or view != replace(was, last=view.last, warnings=view.warnings, errors=view.errors):
        return False
    return new == replace(old, view=view, rev=new.rev, updated_at=new.updated_at, alive_at=new.alive_at)


def only_grows(old: PublishedJob, new: PublishedJob) -> bool:
    """True if a job goes on without another warning or error: nobody has to hear of it at once."""
    return (new.view.warnings, new.view.errors) == (old.view.warnings, old.view.errors) and goes_on(old, new)


class Forecast(Struct, frozen=True, gc=False):
    """When a job will end, as of `as_of`: in half of all cases before `p50`, in nine of ten before `p90`.

    `runs`: the earlier runs that it rests on. `typical_seconds`: the median duration of completed runs.
    `failure_rate`: the share of runs that did not complete, 0 to 1.
    """

    as_of: Micros
    p50: Micros
    p90: Micros
    percent: float
    runs: int
    state: ForecastState
    typical_seconds: float = 0.0
    failure_rate: float = 0.0
    steps_ahead: tuple[StepAhead, ...] = ()


class JobForecast(Struct, frozen=True, gc=False):
    """What is published of a job besides its view.

    `percent` and `basis` replace those of the view; None: the view's are published. `forecast`: of a running job.
    `compared_with`: of an ended one.
    """

    percent: float | None = None
    basis: Literal["reported", "history"] | None = None
    forecast: Forecast | None = None
    compared_with: Comparison | None = None


class LogLine(Struct, frozen=True, gc=False):
    """One log row of a job as it is published. `attrs` holds the parsed value."""

    event_id: Int64
    level: Level
    message: str
    step_id: Int64 | None
    attrs: Any
    at: Micros


class FoundLine(LogLine, frozen=True, gc=False):
    """A log row that a search of all jobs has found, with what names its job.

    `job_id`: an ID that leads to its job: the job's own, or the external ID of a row that carries no other. None: the
    row names no job, or one that the tables do not have. `instance`: see `PublishedJob`.
    """

    job_id: str | None = None
    vm_name: str | None = None
    operation: str | None = None
    instance: str = ""


class Change(Struct, frozen=True, gc=False):
    """One change of a published job. ``new`` None: the job left memory, for ``reason``.

    ``seq``: the place of the change in the stream.
    ``moved``: the document is unchanged, but an ID started or stopped resolving to this job.
    ``goes_on``: the log has new rows of a running job, and nothing else has changed, so that `goes_on` holds:
    filters, counters and the IDs of the job notice nothing.
    """

    job_id: str
    seq: int
    old: PublishedJob | None
    new: PublishedJob | None
    reason: Reason | None = None
    moved: bool = False
    goes_on: bool = False


class Event(Struct, frozen=True, gc=False):
    """One transition of a job or step. ``event_id`` is None if the transition has no log row.

    ``failure``: of `Kind.JOB_FAILED`, what is published of why; None if the tables did not say so in time.
    """

    kind: Kind
    job_id: str
    at: Micros
    event_id: int | None = None
    step_id: int | None = None
    step_name: str | None = None
    error: str | None = None
    error_cut: int | None = None
    failure: Failure | None = None


class Outcome(Struct, frozen=True):
    """The result of one call of the index.

    `attributed`: the log rows with their jobs. `unread`, `unread_steps`: the jobs and steps to read from the tables.
    `ended`: jobs that ended. `lost`: log rows that JobLog lost. `dropped`: the number of transitions that will not be
    announced. `log_from`: the log has to be read again from this time on, as jobs came back of which nobody remembers
    what it said; None: it has not.
    """

    changes: Sequence[Change] = ()
    events: Sequence[Event] = ()
    attributed: Sequence[AttributedRow] = ()
    unread: AbstractSet[str] = frozenset()
    unread_steps: AbstractSet[int] = frozenset()
    ended: AbstractSet[str] = frozenset()
    lost: Sequence[Lost] = ()
    dropped: int = 0
    log_from: Micros | None = None
