"""What REST answers and MQTT publishes around the shapes of jobs, member by member: docs/protocol.md as types.

The served OpenAPI and AsyncAPI documents are generated from them. Every shape is closed: what is not here is not sent.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypeAlias, TypedDict

from msgspec import Meta

from correlator.jobs.shapes import Count, DatabaseState, Document, Epoch, JobId, LogEvent, Percent, Seconds, Seq, Time

DaemonState: TypeAlias = Literal["starting", "online", "stopping", "offline"]
ResolvedBy: TypeAlias = Literal["uuid", "external_id", "context_id", "legacy"]
GoTime: TypeAlias = Annotated[str, Meta(extra_json_schema={"format": "date-time"}, examples=["2025-09-22T10:00:00Z"])]


class JobsPage(TypedDict):
    """A page of jobs, the newest first."""

    jobs: list[Document]
    next_cursor: Annotated[str | None, Meta(description="`cursor` of the next page; null: there is none.")]


class EventsPage(TypedDict):
    """Log rows of a job, oldest first. A later page may bring a lower id: that row was committed late."""

    events: list[LogEvent]
    next_after: Annotated[
        str | None, Meta(description="`after` of the next page; opaque. Null: the job has ended, and has no more.")
    ]


class Resolved(TypedDict):
    """Where an ID leads. `also`: older jobs that it names too, the newest first."""

    job_id: JobId
    resolved_by: ResolvedBy
    also: list[str]


class Ticket(TypedDict):
    """Lets one request in, as `?ticket=…`; `expires_in` seconds."""

    ticket: str
    expires_in: Count


class Liveness(TypedDict):
    """The process answers."""

    live: bool


class Loading(TypedDict):
    """How much of the past has been read, in log rows."""

    done: Count
    total: Count


class DatabasePart(TypedDict):
    """`loading` only until what is known is complete."""

    ok: bool
    state: DatabaseState
    lag_seconds: Seconds
    error: str | None
    loading: NotRequired[Loading]


class MqttPart(TypedDict):
    """`pending`: retained topics and events that the broker has not acknowledged."""

    ok: bool
    connected: bool
    pending: Count
    error: str | None


class CheckpointPart(TypedDict):
    """`age_seconds` since it was last written; null before."""

    ok: bool
    age_seconds: Seconds | None
    error: str | None


class DoorbellPart(TypedDict):
    """What tells of commits at once, where that is configured. `ok` also while it is away: polling goes on."""

    ok: bool
    up: bool
    error: str | None


class Parts(TypedDict):
    """What the daemon depends on; `mqtt` and `doorbell` only where they are configured."""

    database: DatabasePart
    checkpoint: CheckpointPart
    mqtt: NotRequired[MqttPart]
    doorbell: NotRequired[DoorbellPart]


class Readiness(TypedDict):
    """`ready`: it may be asked. `degraded`: a part is away, and what is known is still served."""

    ready: bool
    degraded: bool
    parts: Parts


class Problem(TypedDict):
    """What is wrong with a request (RFC 9457)."""

    type: Annotated[str, Meta(extra_json_schema={"format": "uri-reference"})]
    title: str
    status: Annotated[int, Meta(ge=400, le=599)]
    detail: str


# -- the appliance's own status reply, in its four forms


class _Found(TypedDict):
    success: Annotated[bool, Meta(extra_json_schema={"const": True})]
    message: str
    job_id: JobId
    status: Annotated[str, Meta(description="Of a job that `failover_jobs` alone knows, that table's own word.")]
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
    metadata: dict[str, Any] | None


class DirectDetails(_Details):
    """What the appliance tells of a job that was asked for by its UUID or its context ID."""

    tracking_source: Literal["direct_joblog_uuid"]


class EnhancedDetails(_Details):
    """The same by an external ID: `gui_job_id` is what was asked for, `internal_job_id` the UUID."""

    context_id: str | None
    external_job_id: str | None
    job_category: str | None
    gui_job_id: str
    internal_job_id: JobId
    tracking_source: Literal["external_job_id_correlation"]


class LegacyDetails(TypedDict):
    """What the appliance tells of a job that `failover_jobs` alone knows; texts are empty where that has NULL."""

    vm_id: str
    vm_name: str
    job_type: str
    destination_vm_id: str
    snapshot_id: str
    error_message: str
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
    """The appliance's reply for a job that `failover_jobs` alone knows."""

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
    """A retained state: the document, and where its change stands in which epoch."""

    epoch: Epoch
    seq: Seq


class DeletedJobState(TypedDict):
    """The last state of a job that left memory: the document as it was. Of an earlier run's, only these are certain."""

    job_id: JobId
    deleted: Annotated[bool, Meta(extra_json_schema={"const": True})]
    epoch: Epoch
    seq: Seq


class ExternalId(TypedDict):
    """Where an external ID leads: to the newest job that carries it."""

    external_id: str
    job_id: JobId


class DaemonIndex(TypedDict):
    """How far the daemon is, and how many jobs it has in memory."""

    epoch: Epoch
    seq: Seq
    count: Count


class DaemonStatus(TypedDict):
    """The daemon's own word; `offline` is its last will as well."""

    state: DaemonState
    epoch: Epoch
    seq: Seq
    at: Time
