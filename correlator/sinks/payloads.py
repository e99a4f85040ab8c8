"""The REST and MQTT payloads of docs/protocol.md as types. The shapes of jobs are in `correlator.jobs.shapes`.

The OpenAPI and AsyncAPI documents are generated from these types. No other members are sent.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypeAlias, TypedDict

from msgspec import Meta

from correlator.jobs.message_shapes import LogEvent
from correlator.jobs.shapes import (
    Count,
    DatabaseState,
    Document,
    Epoch,
    ErrorCut,
    JobId,
    Percent,
    Seconds,
    Seq,
    Time,
)

DaemonState: TypeAlias = Literal["starting", "online", "stopping", "offline"]
ResolvedBy: TypeAlias = Literal["uuid", "external_id", "context_id", "legacy"]
GoTime: TypeAlias = Annotated[str, Meta(extra_json_schema={"format": "date-time"}, examples=["2025-09-22T10:00:00Z"])]


class JobsPage(TypedDict):
    """A page of jobs, newest first. It may be shorter than `limit`, or empty, while `next_cursor` is set."""

    jobs: list[Document]
    next_cursor: Annotated[str | None, Meta(description="`cursor` of the next page; null: this is the last page.")]
    searched_to: Annotated[
        Time | None,
        Meta(description="All jobs that started after this have been examined; null: all jobs. For a slow search."),
    ]
    complete: Annotated[
        bool, Meta(description="False: the database cannot be queried, and only jobs in memory are listed.")
    ]
    reason: Annotated[str | None, Meta(description="Why the page is not complete; null if it is.")]


class EventsPage(TypedDict):
    """Log rows of a job, oldest first. If the search is slow, a page has fewer than `limit`, or none: see `more`."""

    events: Annotated[
        list[LogEvent], Meta(description="A later page may contain a lower id: that row was committed late.")
    ]
    next_after: Annotated[
        str | None,
        Meta(description="`after` of the next page; opaque. Null: the job has ended and has no further rows."),
    ]
    next_before: NotRequired[
        Annotated[
            int | None,
            Meta(
                description="Only with `before`: the `before` of the page before this one. Null: the log begins here."
            ),
        ]
    ]
    more: Annotated[
        bool, Meta(description="True: the next page can be read now. False: all rows so far have been read.")
    ]


class Resolved(TypedDict):
    """The job that an ID resolves to. `also`: older jobs with this ID, newest first."""

    job_id: JobId
    resolved_by: ResolvedBy
    also: list[str]


class OperationRuns(TypedDict):
    """What earlier runs of an operation took. Only completed runs have a duration."""

    job_type: str | None
    operation: str
    runs: Annotated[int, Meta(ge=0, description="Completed runs that forecasts rest on: the newest 100 at the most.")]
    typical_seconds: Annotated[Seconds | None, Meta(description="The median of their durations; null without any.")]
    p90_seconds: Annotated[Seconds | None, Meta(description="Nine of ten took less; null without any.")]
    failure_rate: Annotated[float, Meta(ge=0, le=1, description="The share of all runs that failed or were cancelled.")]


class UsualStep(TypedDict):
    """A step of an operation. `share`: of the runs, those that had it. `typical_seconds`: the median of its time."""

    name: str
    share: Annotated[float, Meta(ge=0, le=1)]
    typical_seconds: Seconds


class OperationWithSteps(OperationRuns):
    """An operation with the steps that at least a tenth of its runs had, in their usual order."""

    steps: list[UsualStep]


class OperationsList(TypedDict):
    """The operations that a run of has ended, ordered by job type and operation; 256 at the most."""

    operations: list[OperationRuns]


class Ticket(TypedDict):
    """Admits one request, as `?ticket=…`. `expires_in`: seconds."""

    ticket: str
    expires_in: Count


class Liveness(TypedDict):
    """The process answers."""

    live: Annotated[bool, Meta(extra_json_schema={"const": True})]


class Stuck(TypedDict):
    """The process answers, but a task of it makes no progress."""

    live: Annotated[bool, Meta(extra_json_schema={"const": False})]
    stuck: Annotated[dict[str, Seconds], Meta(description="By the name of a task, the time since its last progress.")]


class Loading(TypedDict):
    """Progress of reading the existing log, in rows."""

    done: Count
    total: Count


class DatabasePart(TypedDict):
    """The database connection. `loading` is present until the existing log has been read."""

    ok: bool
    state: DatabaseState
    lag_seconds: Seconds
    error: str | None
    judged_at: NotRequired[
        Annotated[
            Time | None,
            Meta(description="Jobs are judged at this time, up to which all is read. null: none is. Not at a gateway."),
        ]
    ]
    loading: NotRequired[Loading]


class UnreadTable(TypedDict):
    """Why a table is not read. `reading`: it can be read again, and what changed meanwhile is being read."""

    state: Literal["missing", "refused", "locked", "slow", "failing", "reading"]
    since: Time
    error: str


class TablesPart(TypedDict):
    """The tables, and which of them are not read."""

    ok: bool
    missing: Annotated[list[str], Meta(description="Required tables and columns that cannot be read.")]
    error: str | None
    states: Annotated[
        dict[str, UnreadTable],
        Meta(description="By name, the tables that are not read. What was read of them before stays."),
    ]


class MqttPart(TypedDict):
    """The broker connection. `ok` is false without one, or while messages wait too long (`age_seconds`: the oldest)."""

    ok: bool
    connected: bool
    pending: Annotated[int, Meta(ge=0, description="Retained topics and events that the broker has not acknowledged.")]
    age_seconds: Seconds
    error: str | None
    skipped: Annotated[int, Meta(ge=0, description="Retained topics whose newest message is too large.")]
    dropped: Annotated[int, Meta(ge=0, description="Events that were dropped since the start, as too many waited.")]


class CheckpointPart(TypedDict):
    """The checkpoint file. `age_seconds`: seconds since it was last written; null before the first time."""

    ok: bool
    age_seconds: Seconds | None
    error: str | None
    cluster_age_seconds: NotRequired[
        Annotated[Seconds | None, Meta(description="Of the one that a standby goes on from; absent without a cluster.")]
    ]


class DoorbellPart(TypedDict):
    """The doorbell (binary log), if configured. `ok` is true even while it is down, as polling continues."""

    ok: bool
    up: bool
    error: str | None


class ReceiverState(TypedDict):
    """One webhook. `pending`: events that its receiver has not acknowledged. `disabled`: it answered 410 Gone."""

    ok: bool
    pending: Count
    disabled: bool
    error: str | None


class WebhooksPart(TypedDict):
    """The receivers of webhooks, by name."""

    ok: bool
    error: str | None
    receivers: dict[str, ReceiverState]


class OtlpPart(TypedDict):
    """The receiver of traces. `exported`, `dropped`: jobs since the start."""

    ok: bool
    pending: Annotated[int, Meta(ge=0, description="Ended jobs that the receiver does not have yet.")]
    exported: Count
    dropped: Annotated[int, Meta(ge=0, description="Jobs that left memory before the receiver accepted them.")]
    error: str | None


class ClusterPart(TypedDict):
    """The connection to NATS, and the lease; `pending`: documents and events that NATS has not acknowledged."""

    ok: bool
    connected: bool
    error: NotRequired[str | None]
    age_seconds: NotRequired[Seconds]
    instance: NotRequired[str]
    role: NotRequired[Literal["active", "standby"]]
    active: NotRequired[str | None]
    pending: NotRequired[Count]
    acknowledged_seconds_ago: NotRequired[Seconds | None]


class ConnectionsPart(TypedDict):
    """The connections of clients. `ok` is false at the limit, which the number of files of the process sets."""

    ok: bool
    open: Count
    limit: Count
    error: str | None


class Parts(TypedDict):
    """What the daemon depends on. A gateway has no `tables` and no `checkpoint`; others are there if configured."""

    database: DatabasePart
    connections: ConnectionsPart
    tables: NotRequired[TablesPart]
    checkpoint: NotRequired[CheckpointPart]
    mqtt: NotRequired[MqttPart]
    doorbell: NotRequired[DoorbellPart]
    webhooks: NotRequired[WebhooksPart]
    otlp: NotRequired[OtlpPart]
    cluster: NotRequired[ClusterPart]


class Readiness(TypedDict):
    """`ready`: requests are served. `degraded`: a part is not available, and known data is still served."""

    ready: bool
    degraded: bool
    parts: Parts


class InstanceHealth(TypedDict):
    """One appliance of a fleet, as its collector reported it last."""

    instance: str
    online: Annotated[bool | None, Meta(description="A collector is alive. Null: the gateway does not know it yet.")]
    database: DatabaseState
    error: str | None
    lag_seconds: Seconds
    unwritten_seconds: Annotated[Seconds, Meta(description="Age of the oldest change that the cluster does not have.")]
    last_seen: Time | None
    version: Annotated[str | None, Meta(description="Of its collector.")]
    jobs: Annotated[Count, Meta(description="In memory.")]


class InstancesList(TypedDict):
    instances: list[InstanceHealth]


class Problem(TypedDict):
    """The problem with a request (RFC 9457)."""

    type: Annotated[str, Meta(extra_json_schema={"format": "uri-reference"})]
    title: str
    status: Annotated[int, Meta(ge=400, le=599)]
    detail: str


# -- the appliance's own status reply, in its four forms


class _Found(TypedDict):
    success: Annotated[bool, Meta(extra_json_schema={"const": True})]
    message: str
    job_id: JobId
    status: Annotated[str, Meta(description="For a job that exists only in `failover_jobs`: the value of that table.")]
    progress: Percent
    start_time: GoTime | None
    duration: Annotated[int, Meta(ge=0, description="Nanoseconds.")]


class _Details(TypedDict):
    job_type: str | None
    operation: str | None
    total_steps: Count
    completed_steps: Count
    failed_steps: Count
    running_steps: Count
    step_completion: Percent
    error_message: str | None
    error_cut: NotRequired[ErrorCut]
    metadata: dict[str, Any] | None


class DirectDetails(_Details):
    """The appliance's details of a job that was requested by its UUID or its context ID."""

    tracking_source: Literal["direct_joblog_uuid"]


class EnhancedDetails(_Details):
    """The appliance's details of a job by external ID: `gui_job_id` is that ID, `internal_job_id` the UUID."""

    context_id: str | None
    external_job_id: str | None
    job_category: str | None
    gui_job_id: str
    internal_job_id: JobId
    tracking_source: Literal["external_job_id_correlation"]


class LegacyDetails(TypedDict):
    """The appliance's details of a job that exists only in `failover_jobs`. NULL becomes an empty text."""

    vm_id: str
    vm_name: str
    job_type: str
    destination_vm_id: str
    snapshot_id: str
    error_message: str
    error_cut: NotRequired[ErrorCut]
    started_at: GoTime | None
    completed_at: GoTime | None
    custom_config: Any
    tracking_source: Literal["legacy_failover_jobs"]


class DirectReply(_Found):
    """The appliance's reply for a UUID or a context ID."""

    job_details: DirectDetails


class EnhancedReply(_Found):
    """The appliance's reply for an external ID."""

    job_details: EnhancedDetails


class LegacyReply(_Found):
    """The appliance's reply for a job that exists only in `failover_jobs`."""

    job_details: LegacyDetails


class UnknownReply(TypedDict):
    """The appliance's 404: an empty reply with an error."""

    success: Annotated[bool, Meta(extra_json_schema={"const": False})]
    message: str
    job_id: str
    status: str
    progress: Percent
    start_time: GoTime
    duration: Count
    error: str


# -- MQTT


class JobState(Document):
    """A retained state: the document, with the epoch and the position of its last change."""

    epoch: Epoch
    seq: Seq


class DeletedJobState(TypedDict):
    """The last state of a job that left memory. For a job of an earlier run, only these members are certain."""

    job_id: JobId
    deleted: Annotated[bool, Meta(extra_json_schema={"const": True})]
    epoch: Epoch
    seq: Seq


class ExternalId(TypedDict):
    """An external ID and the newest job that carries it."""

    external_id: str
    job_id: JobId


class DaemonIndex(TypedDict):
    """The daemon's position, and the number of jobs in memory."""

    epoch: Epoch
    seq: Seq
    count: Count


class DaemonStatus(TypedDict):
    """The daemon's state. `offline` is also its last will."""

    state: DaemonState
    epoch: Epoch
    seq: Seq
    at: Time
