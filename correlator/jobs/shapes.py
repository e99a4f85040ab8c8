"""The public shapes of a job and of what is told about jobs, member by member: docs/protocol.md as types.

`correlator.jobs.wire` and the sinks build these dicts, and mypy holds them to it; the served OpenAPI and AsyncAPI
documents are generated from them. Every shape is closed: what is not here is not sent. ``None`` is "not known".
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias, TypedDict

from msgspec import Meta

from correlator.jobs.model import Kind, Level

JobStatus: TypeAlias = Literal["pending", "running", "completed", "failed", "cancelled"]
StepStatus: TypeAlias = Literal["pending", "running", "completed", "failed", "cancelled", "skipped"]
Basis: TypeAlias = Annotated[
    Literal["reported", "steps", "legacy"],
    Meta(
        description="What `percent` rests on: JobLog's own percent; steps done of steps seen; the status that"
        " `failover_jobs` has. More may come."
    ),
]
Source: TypeAlias = Annotated[
    Literal["joblog", "legacy"], Meta(description="`legacy`: a job known from `failover_jobs` alone.")
]
Left: TypeAlias = Annotated[
    Literal["retention", "filter", "gone", "merged"],
    Meta(
        description="It left memory; it left this filter, after one last put; its row was deleted; it was a legacy job"
        " and is a JobLog job now."
    ),
]
DatabaseState: TypeAlias = Annotated[Literal["live", "stale", "down"], Meta(description="The database behind it.")]

Time: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$",
        extra_json_schema={"format": "date-time"},
        examples=["2025-09-22T10:00:00.000000Z"],
    ),
]
Count: TypeAlias = Annotated[int, Meta(ge=0)]
Seconds: TypeAlias = Annotated[float, Meta(ge=0, description="Seconds.")]
Percent: TypeAlias = Annotated[float, Meta(ge=0, le=100)]
JobId: TypeAlias = Annotated[str, Meta(description="A job's UUID; of a legacy job its own ID.")]
Epoch: TypeAlias = Annotated[str, Meta(description="Names one run of the daemon.")]
Seq: TypeAlias = Annotated[int, Meta(ge=0, description="A place in the changes of one epoch; it never falls.")]
Rev: TypeAlias = Annotated[int, Meta(ge=0, description="The `seq` of the job's last change.")]
SubId: TypeAlias = Annotated[int, Meta(ge=0, description="A subscription, by the `id` its client gave it.")]
Subs: TypeAlias = Annotated[list[SubId], Meta(description="The subscriptions that want it.")]
Attrs: TypeAlias = Annotated[
    Any,
    Meta(
        description="As logged, nearly always an object; the text itself where it is no JSON; null without any, and in"
        " a stream where they are long."
    ),
]


# -- the job document


class Progress(TypedDict):
    """How far a job is. 100 percent only when it has completed; a completed job may have failed steps."""

    percent: Percent
    basis: Basis
    steps_done: Count
    steps_failed: Count
    steps_running: Count
    steps_skipped: Count
    steps_seen: Count


class Step(TypedDict):
    """One step of a job. Order steps by `seq`."""

    seq: int
    name: str
    status: StepStatus
    started_at: Time | None
    ended_at: Time | None
    duration_seconds: Seconds | None
    error: str | None


class LastMessage(TypedDict):
    """The last log row of a job, by the time at which it was logged."""

    level: Level
    text: str
    at: Time


class Document(TypedDict):
    """A job. It changes only with its `rev`: what still runs has its duration as of `updated_at`."""

    job_id: JobId
    external_ids: Annotated[list[str], Meta(description="Each leads to this job, unless a newer one carries it too.")]
    context_id: str | None
    parent_job_id: str | None
    child_job_ids: list[str]
    job_type: str | None
    operation: str | None
    category: str | None
    owner: str | None
    status: JobStatus
    terminal: Annotated[bool, Meta(description="It has ended.")]
    error: str | None
    started_at: Time | None
    ended_at: Time | None
    updated_at: Time
    duration_seconds: Seconds | None
    progress: Progress
    current_step: Annotated[str | None, Meta(description="The name of the running step, the highest of several.")]
    steps: Annotated[dict[str, Step], Meta(description="By step id; empty in a list of jobs that did not ask.")]
    stalled: Annotated[bool, Meta(description="Running, and silent longer than `jobs.stalled_after`.")]
    last_event_at: Time | None
    last_message: LastMessage | None
    warnings: Count
    errors: Count
    metadata: Annotated[dict[str, Any], Meta(description="As the appliance keeps it; its members are not ours.")]
    source: Source
    rev: Rev


# -- websocket and event stream, server → client


class Welcome(TypedDict):
    """The answer to `hello`. `resumed`: a subscription with `resume` gets what it missed, and no snapshot."""

    type: Literal["welcome"]
    epoch: Epoch
    seq: Seq
    resumed: bool
    ping_seconds: Count


class Snapshot(TypedDict):
    """Jobs that match a subscription, the newest first; `more`: another chunk follows."""

    type: Literal["snapshot"]
    sub: SubId
    seq: Seq
    more: bool
    jobs: list[Document]


class Synced(TypedDict):
    """The end of a snapshot, or of what a resumed subscription missed. `unknown`: IDs that are held."""

    type: Literal["synced"]
    sub: SubId
    seq: Seq
    count: Count
    unknown: list[str]


class Put(TypedDict):
    """The whole document; idempotent."""

    type: Literal["put"]
    sub: Subs
    seq: Seq
    job_id: JobId
    rev: Rev
    job: Document


class Delta(TypedDict):
    """A change of the document that its reader has at `base`; a reader that has not asks with `get`."""

    type: Literal["delta"]
    sub: Subs
    seq: Seq
    job_id: JobId
    base: Rev
    rev: Rev
    set: Annotated[dict[str, Any], Meta(description="A merge patch (RFC 7386) of the document at `base`.")]


class Delete(TypedDict):
    """A job is no longer one of these subscriptions."""

    type: Literal["delete"]
    sub: Subs
    seq: Seq
    job_id: JobId
    reason: Left


class LogEvent(TypedDict):
    """One log row of a job."""

    event_id: int
    level: Level
    message: str
    step_id: int | None
    attrs: Attrs
    at: Time


class LogMessage(LogEvent):
    """A committed log row of a job that matches, once a reader and row."""

    type: Literal["log"]
    sub: Subs
    job_id: JobId


class LogDropped(TypedDict):
    """So many log lines were not sent, as their reader lags."""

    type: Literal["log"]
    sub: Subs
    dropped: Annotated[int, Meta(ge=1)]


class Bookmark(TypedDict):
    """Everything up to `seq` was sent."""

    type: Literal["bookmark"]
    seq: Seq
    at: Time


class SourceStatus(TypedDict):
    """How the database is; `lag_seconds`: the age of its newest whole answer, 0 while it is live."""

    type: Literal["status"]
    source: DatabaseState
    lag_seconds: Seconds


class Resync(TypedDict):
    """What the reader knows is not enough to go on from: a fresh snapshot follows."""

    type: Literal["resync"]
    reason: Literal["epoch", "gap", "slow"]


class Error(TypedDict):
    """What was wrong with a message. Three bad frames close the connection."""

    type: Literal["error"]
    sub: SubId | None
    code: Literal["bad_request", "not_found", "unavailable"]
    detail: str


class Bye(TypedDict):
    """The daemon goes: come back after a random time of this range."""

    type: Literal["bye"]
    code: Annotated[int, Meta(description="The close code that follows (RFC 6455, 7.4).")]
    retry_ms: Annotated[list[Count], Meta(min_length=2, max_length=2, description="At least, at most; milliseconds.")]


class Pong(TypedDict):
    """The answer to `ping`."""

    type: Literal["pong"]


TOLD: Final = (
    *(Welcome, Snapshot, Synced, Put, Delta, Delete, LogMessage, LogDropped),
    *(Bookmark, SourceStatus, Resync, Error, Bye, Pong),
)
"""Every message to a websocket client."""


# -- MQTT


class JobEvent(TypedDict):
    """A transition. `event_id` null: only the tables, or time, told it. At least once, over crashes of both sides."""

    event_id: int | None
    kind: Kind
    job_id: JobId
    step_id: int | None
    step_name: str | None
    error: str | None
    at: Time
    epoch: Epoch
    seq: Seq
