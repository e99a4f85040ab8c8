"""What is in the requests to a collector and in its replies: one pair of structs per method. See `rpc`.

Filters and places are those of `correlator.pipeline.queries`. Jobs are public documents without `rev`, as in the
stream, and with their steps. A test fixes the encoded form of each struct.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Raw, Struct

from correlator.jobs.model.rows import LegacyRecord, Micros
from correlator.pipeline.queries import JobNames, JobQuery, LineQuery, OperationRuns, OperationSteps


class NameParams(Struct, frozen=True, omit_defaults=True):
    """What `find`, `is_context` and `legacy_record` ask about: any ID, a context, a job ID of `failover_jobs`."""

    name: str


class FindResult(Struct, frozen=True, omit_defaults=True):
    """The newest job with an ID; `job` is empty if there is none. `also`: older jobs with the same ID."""

    job: Raw = Raw()
    resolved_by: Literal["uuid", "external_id", "context_id", "legacy"] = "uuid"
    also: tuple[str, ...] = ()


class IsContextResult(Struct, frozen=True, omit_defaults=True):
    is_context: bool = False


class LegacyResult(Struct, frozen=True, omit_defaults=True):
    record: LegacyRecord | None = None


class PageParams(Struct, frozen=True, omit_defaults=True):
    """At most `limit` jobs that match `query`, newest first, from just before the place `before` on."""

    limit: int
    query: JobQuery = JobQuery()
    before: tuple[Micros, str] | None = None


class PageResult(Struct, frozen=True, omit_defaults=True):
    """All matching jobs between `before` and `next_before`, newest first; a page may be short or empty.

    `next_before`: where the next page begins; None after the last one.
    """

    jobs: tuple[Raw, ...] = ()
    next_before: tuple[Micros, str] | None = None


class LinesParams(Struct, frozen=True, omit_defaults=True):
    """Log lines of a job, oldest first. `after`: a `next_after`, or the first event ID. The result is a `LinesPage`."""

    names: JobNames
    limit: int
    after: str | int | None = None
    query: LineQuery = LineQuery()


class LinesBeforeParams(Struct, frozen=True, omit_defaults=True):
    """The last log lines of a job below the event ID `before`. The result is `EarlierLines`."""

    names: JobNames
    before: int
    limit: int
    query: LineQuery = LineQuery()


class OperationsParams(Struct, frozen=True, omit_defaults=True):
    """All operations."""


class OperationsResult(Struct, frozen=True, omit_defaults=True):
    operations: tuple[OperationRuns, ...] = ()


class OperationParams(Struct, frozen=True, omit_defaults=True):
    """One operation, by its job type and name."""

    job_type: str
    operation: str


class OperationResult(Struct, frozen=True, omit_defaults=True):
    found: OperationSteps | None = None
