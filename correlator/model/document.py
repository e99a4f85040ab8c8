"""The job document: one definition from which it is encoded, decoded, compared for a merge patch, and described.

The schemas of OpenAPI and AsyncAPI, the members of webhook templates, and what a gateway reads come from these types.
A member is added here, where it is computed (`jobs/encoding.py`), where it is shown, and in docs/protocol.md. It
needs a default: documents of collectors of an earlier version are without it, and a gateway must read them. In a
docstring, `name: text` describes a member; the schemas have it there.

Values are frozen, so that a revision shares with the one before what has not changed. None means "not known". A member
that is UNSET is absent.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Literal, TypeAlias, get_args

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from correlator.model.facts import Status
from correlator.model.rows import Level

EXACT: Final = 1 << 53
"""The largest integer that all JSON parsers read exactly."""

MAX_ID: Final = 255
"""The longest ID that a column of the appliance can store, in characters."""

MAX_STEP_ID: Final = (1 << 63) - 1

BASES: Final = ("reported", "history", "steps", "legacy")
SOURCES: Final = ("joblog", "legacy")

JobStatus: TypeAlias = Annotated[
    Literal["pending", "running", "completed", "failed", "cancelled"], Meta(title="JobStatus")
]
JOB_STATUSES: Final[tuple[JobStatus, ...]] = get_args(get_args(JobStatus)[0])
StepStatus: TypeAlias = Annotated[str, Meta(title="StepStatus", extra_json_schema={"enum": [*Status]})]
Source: TypeAlias = Annotated[
    str,
    Meta(
        title="Source",
        description="`legacy`: a job known from `failover_jobs` alone.",
        extra_json_schema={"enum": [*SOURCES]},
    ),
]
Basis: TypeAlias = Annotated[str, Meta(examples=[*BASES])]
Time: TypeAlias = Annotated[
    str,
    Meta(
        extra_json_schema={"format": "date-time", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$"},
        examples=["2025-09-22T10:00:00.000000Z"],
    ),
]
Integer: TypeAlias = Annotated[int, Meta(ge=-EXACT, le=EXACT)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=EXACT)]
MAX_SECONDS: Final = 1e12
"""More than the years that RFC 3339 can express, and few enough to count their milliseconds."""

Seconds: TypeAlias = Annotated[float, Meta(ge=0, le=MAX_SECONDS, description="Seconds.")]
Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
Percent: TypeAlias = Annotated[float, Meta(ge=0, le=100)]
StepId: TypeAlias = Annotated[int, Meta(ge=-(1 << 63), le=MAX_STEP_ID)]
JobId: TypeAlias = Annotated[str, Meta(description="A job's UUID; of a legacy job its own ID.")]
Rev: TypeAlias = Annotated[int, Meta(ge=0, le=EXACT, description="The `seq` of the job's last change.")]
ErrorCut: TypeAlias = Annotated[
    int, Meta(ge=1, le=EXACT, description="Bytes of the whole error; absent unless `error` is only its beginning.")
]
Title: TypeAlias = Annotated[str, Meta(description="What people call the step, if `[labels]` has a title for it.")]
Metadata: TypeAlias = Annotated[
    Raw,
    Meta(
        title="Metadata",
        description="As the appliance keeps it; if it was cut, `_cut` has the bytes of each missing member.",
        extra_json_schema={
            "type": "object",
            "properties": {"_cut": {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0}}},
            "additionalProperties": True,
        },
    ),
]
"""A JSON object, encoded once."""

NO_METADATA: Final = Raw(b"{}")


class ForecastState(StrEnum):
    """How a job compares with earlier runs that were at the same point."""

    ROUGH = "rough"
    """Too few runs were at the point."""
    ON_TRACK = "on_track"
    LATE = "late"
    """It has waited there longer than 90 % of them."""
    OVERDUE = "overdue"
    """It has waited there longer than any: p50 and p90 are extrapolated."""


class Progress(Struct, frozen=True, gc=False):
    """The progress of a job. It is 100 percent only if the job has completed. A completed job may have failed steps.

    basis: What `percent` rests on: JobLog's own percent; earlier runs of the operation; steps done of steps seen; the
        status that `failover_jobs` has. More may come.
    steps_expected: The steps seen, and those ahead that at least half of the earlier runs had. See `forecast`.
    """

    percent: Percent
    basis: Basis
    steps_done: Count
    steps_failed: Count
    steps_running: Count
    steps_skipped: Count
    steps_seen: Count
    steps_expected: Count | None


class ForecastEnd(Struct, frozen=True, gc=False):
    """The end of a job: in half of all cases before `p50`, in nine of ten before `p90`."""

    p50: Time
    p90: Time


class StepAhead(Struct, frozen=True, gc=False):
    """A step that is still to come.

    share: Of the earlier runs, those that had it.
    typical_seconds: The median time that earlier runs spent in it.
    """

    name: str
    share: Share
    typical_seconds: Seconds
    title: Title | UnsetType = UNSET


class Forecast(Struct, frozen=True, gc=False):
    """When a running job will probably end, from earlier runs of the same job type and operation.

    as_of: The time at which the forecast was made.
    runs: The number of earlier runs that it rests on.
    state: How the job compares with earlier runs at the same point: fewer than 10 were there; as usual; it has waited
        there longer than 9 of 10; longer than any. More may come.
    typical_seconds: The median duration of earlier runs, in seconds.
    failure_rate: The share of earlier runs that did not complete.
    steps_ahead: In their usual order.
    """

    ends_at: ForecastEnd
    as_of: Time
    runs: Count
    state: Annotated[str, Meta(examples=[*ForecastState])]
    typical_seconds: Seconds
    failure_rate: Share
    steps_ahead: tuple[StepAhead, ...]


class Comparison(Struct, frozen=True, gc=False):
    """An ended job beside earlier runs of its operation.

    typical_seconds: The median duration of earlier runs, in seconds.
    percentile: The percentage of these runs that took less time.
    """

    typical_seconds: Seconds
    runs: Count
    percentile: Percent


Certainty: TypeAlias = Annotated[Literal["stated", "inferred", "apart", "none"], Meta(title="Certainty")]
FailureState: TypeAlias = Annotated[Literal["new", "known", "unknown"], Meta(title="FailureState")]
FAILURE_STATES: Final[tuple[str, ...]] = get_args(get_args(FailureState)[0])


class Failure(Struct, frozen=True, gc=False):
    """Why a job failed, according to its rows. It never names a cause.

    fingerprint: 12 hex digits, the same for jobs that failed alike; null if no reason was logged.
    step: The name of the step that ended the job, if the rows say which.
    certainty: `stated`: the job's error is or ends with that of the step. `inferred`: the last step that failed.
        `apart`: no step has the job's error. `none`: no reason was logged.
    text: The part of the error that says what failed, at most 200 characters.
    state: Whether another job failed alike before; `unknown` while that is still being read, and without a reason.
    """

    fingerprint: str | None
    step: str | None
    certainty: Certainty
    text: str
    state: FailureState


class Step(Struct, frozen=True, gc=False):
    """One step of a job. Order steps by `seq`; 0 means that it is not known yet, and comes last."""

    seq: Integer
    name: str
    status: StepStatus
    started_at: Time | None
    ended_at: Time | None
    duration_seconds: Seconds | None
    error: str | None
    error_cut: ErrorCut | UnsetType = UNSET
    title: Title | UnsetType = UNSET


class LastMessage(Struct, frozen=True, gc=False):
    """The log row of a job that was logged last."""

    level: Level
    text: str
    at: Time


class JobDocument(Struct, frozen=True, gc=False):
    """A job. It changes only with its `rev`: the duration of a running job or step is that at `updated_at`.

    external_ids: Each leads to this job, unless a newer one carries it too.
    child_job_ids: In the order of their start; the newest 1,000 at the most.
    terminal: True if the job has ended.
    forecast: null with fewer than 3 earlier runs, for legacy jobs, and once the job has ended.
    compared_with: Of an ended job, if earlier runs were known.
    current_step: The name of the running step, the highest of several.
    steps: By step id; empty in a list of jobs that did not ask.
    stalled: Running, and silent longer than `jobs.stalled_after`.
    external_ids_cut: The number of all external IDs, up to 10,000, where `external_ids` has the newest.
    child_job_ids_cut: The number of all children, where `child_job_ids` has not all of them.
    counts_complete: false while the log's past is still being read after a first start; else absent.
    steps_complete: false if job_steps cannot be read: `steps` has what the log says; else absent.
    steps_cut: At a gateway: the number of all steps, where `steps` has only the newest.
    instance: At a gateway: the appliance that the job belongs to.
    title: What people call the operation, if `[labels]` has a title.
    current_step_title: The same of `current_step`.
    failure: null unless the job has failed, and until its tables say so.
    """

    job_id: JobId
    external_ids: tuple[str, ...]
    context_id: str | None
    parent_job_id: str | None
    child_job_ids: tuple[str, ...]
    job_type: str | None
    operation: str | None
    category: str | None
    owner: str | None
    status: JobStatus
    terminal: bool
    error: str | None
    started_at: Time | None
    ended_at: Time | None
    updated_at: Time
    duration_seconds: Seconds | None
    progress: Progress
    forecast: Forecast | None
    compared_with: Comparison | None
    current_step: str | None
    steps: dict[StepId, Step]
    stalled: bool
    last_event_at: Time | None
    last_message: LastMessage | None
    warnings: Count
    errors: Count
    metadata: Metadata
    source: Source
    rev: Rev
    external_ids_cut: Count | UnsetType = UNSET
    child_job_ids_cut: Count | UnsetType = UNSET
    counts_complete: bool | UnsetType = UNSET
    steps_complete: bool | UnsetType = UNSET
    error_cut: ErrorCut | UnsetType = UNSET
    steps_cut: Count | UnsetType = UNSET
    instance: str | UnsetType = UNSET
    title: str | UnsetType = UNSET
    current_step_title: str | UnsetType = UNSET
    failure: Failure | None = None


class Steps(Struct, frozen=True, gc=False):
    """The steps of a document, without what else it has."""

    steps: dict[StepId, Step]


decode: Final = msgspec.json.Decoder(JobDocument).decode
decode_steps: Final = msgspec.json.Decoder(Steps).decode
OF_GATEWAYS: Final = frozenset({"instance", "steps_cut"})
"""The members that only the documents of a gateway have."""
