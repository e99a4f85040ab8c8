"""What is in the requests to a collector and in its replies: one pair of structs per method. See `rpc`.

Filters and places are those of `correlator.pipeline.queries`. Jobs are public documents without `rev`, as in the
stream, and with their steps. A test fixes the encoded form of each struct.
"""

from __future__ import annotations

from msgspec import Raw, Struct

from correlator.jobs.model.rows import Int64, LegacyRecord, Level, Micros
from correlator.model.replies import OperationRuns, OperationWithSteps, ResolvedBy
from correlator.pipeline.queries import JobNames, JobQuery, LineQuery


class NameParams(Struct, frozen=True, omit_defaults=True):
    """What `find`, `is_context` and `legacy_record` ask about: any ID, a context, a job ID of `failover_jobs`."""

    name: str


class FindResult(Struct, frozen=True, omit_defaults=True):
    """The newest job with an ID; `job` is empty if there is none. `also`: older jobs with the same ID."""

    job: Raw = Raw()
    resolved_by: ResolvedBy = "uuid"
    also: tuple[str, ...] = ()


class IsContextResult(Struct, frozen=True, omit_defaults=True):
    is_context: bool = False


class LegacyResult(Struct, frozen=True, omit_defaults=True):
    record: LegacyRecord | None = None


class PageParams(Struct, frozen=True, omit_defaults=True):
    """At most `limit` jobs that match `query`, newest first, from just before the place `before` on."""

    limit: Int64
    query: JobQuery = JobQuery()
    before: tuple[Micros, str] | None = None


class PageResult(Struct, frozen=True, omit_defaults=True):
    """All matching jobs between `before` and `next_before`, newest first; a page may be short or empty.

    `next_before`: where the next page begins; None after the last one.
    """

    jobs: tuple[Raw, ...] = ()
    next_before: tuple[Micros, str] | None = None


class LinesParams(Struct, frozen=True, omit_defaults=True):
    """Log lines of a job, oldest first. `after`: a `next_after`, or the first event ID."""

    names: JobNames
    limit: Int64
    after: str | Int64 | None = None
    query: LineQuery = LineQuery()


class LineResult(Struct, frozen=True, omit_defaults=True):
    """A log line. `attrs` is not parsed yet."""

    event_id: Int64
    level: Level
    message: str
    at: Micros
    step_id: Int64 | None = None
    attrs: Raw = Raw(b"null")


class LinesResult(Struct, frozen=True, omit_defaults=True):
    """A `LinesPage`."""

    lines: tuple[LineResult, ...]
    next_after: str | None = None
    more: bool = False


class LinesBeforeParams(Struct, frozen=True, omit_defaults=True):
    """The last log lines of a job below the event ID `before`."""

    names: JobNames
    before: Int64
    limit: Int64
    query: LineQuery = LineQuery()


class LinesBeforeResult(Struct, frozen=True, omit_defaults=True):
    """The same as `EarlierLines`."""

    lines: tuple[LineResult, ...]
    next_before: Int64 | None = None


class OperationsParams(Struct, frozen=True, omit_defaults=True):
    """All operations."""


class OperationsResult(Struct, frozen=True, omit_defaults=True):
    operations: tuple[OperationRuns, ...] = ()


class OperationParams(Struct, frozen=True, omit_defaults=True):
    """One operation, by its job type and name."""

    job_type: str
    operation: str


class OperationResult(Struct, frozen=True, omit_defaults=True):
    found: OperationWithSteps | None = None
