"""The replies of REST as types, from which OpenAPI is generated. See docs/protocol.md. No other members are sent.

In a docstring, `name: text` describes a member.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, NotRequired, Required, TypeAlias, TypedDict

from msgspec import UNSET, Meta, Struct, UnsetType

from correlator.model.document import (
    Certainty,
    Count,
    ErrorCut,
    Failure,
    JobDocument,
    JobId,
    Percent,
    Seconds,
    Share,
    Time,
)
from correlator.model.messages import Database, LogEvent

TableState: TypeAlias = Annotated[
    Literal["missing", "refused", "locked", "slow", "failing", "reading"], Meta(title="TableState")
]
EntityKind: TypeAlias = Annotated[
    Literal["context", "vm"],
    Meta(title="EntityKind", description="What `entity` is read as; repeat it as `kind` with a `cursor`."),
]
ResolvedBy: TypeAlias = Annotated[Literal["uuid", "external_id", "context_id", "legacy"], Meta(title="ResolvedBy")]
StatusMetadata: TypeAlias = Annotated[dict[str, Any], Meta(title="StatusMetadata")]
Description: TypeAlias = Annotated[dict[str, Any], Meta(title="Description")]
"""OpenAPI or AsyncAPI."""
GoTime: TypeAlias = Annotated[str, Meta(extra_json_schema={"format": "date-time"}, examples=["2025-09-22T10:00:00Z"])]


class JobsPage(TypedDict):
    """A page of jobs, newest first. It may be shorter than `limit`, or empty, while `next_cursor` is set.

    next_cursor: `cursor` of the next page; null: this is the last page.
    searched_to: All jobs that started after this have been examined; null: all jobs. For a slow search.
    complete: False: the database cannot be queried, and only jobs in memory are listed.
    reason: Why the page is not complete; null if it is.
    """

    jobs: list[JobDocument]
    next_cursor: str | None
    searched_to: Time | None
    complete: bool
    reason: str | None


class EventsPage(TypedDict):
    """Log rows of a job, oldest first. If the search is slow, a page has fewer than `limit`, or none: see `more`.

    events: A later page may contain a lower id: that row was committed late.
    next_after: `after` of the next page; opaque. Null: the job has ended and has no further rows.
    next_before: Only with `before`: the `before` of the page before this one. Null: the log begins here.
    more: True: the next page can be read now. False: all rows so far have been read.
    complete: False: rows may be missing from this page and those before it.
    reason: Why the page is not complete; null if it is.
    """

    events: list[LogEvent]
    next_after: str | None
    next_before: NotRequired[int | None]
    more: bool
    complete: bool
    reason: str | None


class FoundEvent(LogEvent):
    """A log row with what names its job.

    job_id: An ID of its job: the job's own, or the external ID of a row that carries no other. Null: the row names no
        job, or one whose row is gone.
    vm_name: The name of the job's VM; null if unknown.
    operation: Of the job; null if unknown.
    instance: The appliance; at a gateway only.
    """

    job_id: str | None
    vm_name: str | None
    operation: str | None
    instance: NotRequired[str]


class FoundEventsPage(TypedDict):
    """Log rows that a search has found, newest first. It may have few, or none, while `next_cursor` is set.

    events: At a gateway those of each appliance, each newest first; a later page may have a newer one of another.
    next_cursor: `cursor` of the next page; null: the search is over.
    searched: The share of the log that has been searched.
    searched_to: About the time down to which all rows have been searched; null: all of them.
    complete: False: an appliance does not answer.
    reason: Why the page is not complete; null if it is.
    """

    events: list[FoundEvent]
    next_cursor: str | None
    searched: Share
    searched_to: Time | None
    complete: bool
    reason: str | None


class Resolved(Struct, frozen=True, gc=False):
    """The job that an ID resolves to. `also`: older jobs with this ID, newest first."""

    job_id: JobId
    resolved_by: ResolvedBy
    also: tuple[str, ...]


class OperationRuns(Struct, frozen=True):
    """What earlier runs of an operation took. Only completed runs have a duration.

    runs: Completed runs that forecasts rest on: the newest 100 at the most.
    typical_seconds: The median of their durations; null without any.
    p90_seconds: Nine of ten took less; null without any.
    failure_rate: The share of all runs that failed or were cancelled.
    """

    job_type: str | None
    operation: str
    runs: Count
    typical_seconds: Seconds | None
    p90_seconds: Seconds | None
    failure_rate: Share


class UsualStep(Struct, frozen=True):
    """A step of an operation. `share`: of the runs, those that had it. `typical_seconds`: the median of its time."""

    name: str
    share: Share
    typical_seconds: Seconds


class OperationWithSteps(OperationRuns, frozen=True):
    """An operation with the steps that at least a tenth of its runs had, in their usual order."""

    steps: tuple[UsualStep, ...]


class OperationsList(TypedDict):
    """The operations that a run of has ended, ordered by job type and operation; 256 at the most."""

    operations: list[OperationRuns]


class OperatorNote(Struct, frozen=True):
    """What `[[failures.known]]` says of a failure, in an operator's words. `link`: null if it has none."""

    text: str
    link: str | None


class FailureDay(Struct, frozen=True):
    """The jobs that failed alike on one day of UTC."""

    day: Annotated[str, Meta(extra_json_schema={"format": "date"})]
    count: Count


class FailedJobRef(Struct, frozen=True):
    """A failed job. `instance`: its appliance, at a gateway only."""

    job_id: JobId
    ended_at: Time
    operation: str | None
    vm_name: str | None
    instance: str | UnsetType = UNSET


class FailureGroup(Struct, frozen=True, kw_only=True):
    """The jobs that failed alike.

    text, step, certainty: Of the newest of them, as in its document.
    days: Oldest first; days without one are left out.
    vms, operations, steps: At most 20 each, those of the newest jobs first. `vm_count` counts all VMs.
    jobs: The newest, at most 5.
    instances: The appliances that know it, at a gateway only.
    """

    fingerprint: str
    text: str
    step: str | None
    certainty: Certainty
    count: Count
    first_at: Time
    last_at: Time
    days: tuple[FailureDay, ...]
    vms: tuple[str, ...]
    vm_count: Count
    operations: tuple[str, ...]
    steps: tuple[str, ...]
    jobs: tuple[FailedJobRef, ...]
    note: OperatorNote | None
    instances: tuple[str, ...] | UnsetType = UNSET


class FailuresPage(TypedDict):
    """Failures, those that happened last first.

    next_cursor: `cursor` of the next page; null: this is the last page.
    reaches: All failed jobs that started at this time or later are counted; null: nothing is known of that.
    complete: False: failed jobs are still being read, or an appliance does not answer.
    reason: Why it is not complete; null if it is.
    """

    failures: list[FailureGroup]
    next_cursor: str | None
    reaches: Time | None
    complete: bool
    reason: str | None


class FailureVariant(Struct, frozen=True):
    """One text of a failure as it was logged, and the number of jobs with it."""

    text: str
    count: Count


class SimilarFailure(Struct, frozen=True):
    """Another failure in whose text one word differs: `word` of this one, `other_word` of the other one."""

    fingerprint: str
    text: str
    count: Count
    word: str
    other_word: str


class NextRuns(Struct, frozen=True):
    """What the next run of the same operation on the same VM did, for the newest jobs that failed alike.

    examined: The failed jobs that were looked at, at most 20. The other numbers count these.
    unknown: There was no later run, or it still runs, or was not found in time.
    recovered_seconds: From each failure to the end of the run that completed.
    """

    examined: Count
    completed: Count
    failed_alike: Count
    failed_otherwise: Count
    unknown: Count
    recovered_seconds: tuple[Seconds, ...]


NO_RUNS: Final = NextRuns(0, 0, 0, 0, 0, ())


class FailureDetails(Struct, frozen=True):
    """A failure with what was masked in it.

    template: What the fingerprint is made of.
    variants: The commonest texts, at most 20.
    similar: At most 5, the commonest first.
    reaches, complete, reason: As in the list of failures.
    """

    group: FailureGroup
    template: str
    variants: tuple[FailureVariant, ...]
    next_runs: NextRuns
    similar: tuple[SimilarFailure, ...]
    reaches: Time | None
    complete: bool
    reason: str | None


class FailureRow(Struct, frozen=True):
    """What a job or one of its failed steps says of the error. `step`: null for the job itself."""

    step: str | None
    status: str
    error: str


class LongStep(Struct, frozen=True):
    """A step that took longer than in nine of ten of the compared runs."""

    name: str
    seconds: Seconds
    p90_seconds: Seconds


class Difference(Struct, frozen=True):
    """What differs from the last completed runs of the same operation.

    runs: How many were compared, at most 20.
    vm_name: They were runs of this VM; null: of any VM, because this one had fewer than 3.
    missing: Steps that nine of ten of them had, and this job did not have.
    """

    runs: Count
    vm_name: str | None
    missing: tuple[str, ...]
    longer: tuple[LongStep, ...]


class Burst(Struct, frozen=True):
    """Jobs that failed together: at most 30 s between two of them.

    within_seconds: From the first to the last.
    alike: Those with the same fingerprint, including this job.
    """

    failed: Count
    alike: Count
    within_seconds: Seconds


class Why(Struct, frozen=True):
    """Why a job failed, according to its rows.

    failure: As in the job document; null: the job has not failed.
    sentence: The same in one sentence; empty if the job has not failed.
    group: The jobs that failed alike, including this one; null without a fingerprint.
    differs: Null: the job has no failure, or fewer than 3 runs could be compared.
    burst: Null: fewer than 3 jobs failed together.
    reaches, complete, reason: As in the list of failures.
    """

    job_id: JobId
    failure: Failure | None
    sentence: str
    rows: tuple[FailureRow, ...]
    group: FailureGroup | None
    differs: Difference | None
    burst: Burst | None
    reaches: Time | None
    complete: bool
    reason: str | None


class Ticket(TypedDict):
    """Admits one request, as `?ticket=…`. `expires_in`: seconds."""

    ticket: str
    expires_in: Count


class Liveness(TypedDict):
    """The process answers."""

    live: bool


class Stuck(TypedDict):
    """The process answers, but a task of it makes no progress.

    stuck: By the name of a task, the time since its last progress.
    """

    live: bool
    stuck: dict[str, Seconds]


class Loading(TypedDict):
    """Progress of reading the existing log, in rows."""

    done: Count
    total: Count


class DatabasePart(TypedDict, total=False):
    """The database connection. `loading` is present until the existing log has been read.

    judged_at: Jobs are judged at this time, up to which all is read. null: none is. Not at a gateway.
    """

    ok: Required[bool]
    state: Database
    lag_seconds: Seconds
    error: str | None
    judged_at: Time | None
    loading: Loading


class UnreadTable(TypedDict):
    """Why a table is not read. `reading`: it can be read again, and what changed meanwhile is being read."""

    state: TableState
    since: Time
    error: str


class TablesPart(TypedDict, total=False):
    """The tables, and which of them are not read.

    missing: Required tables and columns that cannot be read.
    states: By name, the tables that are not read. What was read of them before stays.
    """

    ok: Required[bool]
    missing: list[str]
    error: str | None
    states: dict[str, UnreadTable]


class MqttPart(TypedDict, total=False):
    """The broker connection. `ok` is false without one, or while messages wait too long (`age_seconds`: the oldest).

    pending: Retained topics and events that the broker has not acknowledged.
    skipped: Retained topics whose newest message is too large.
    dropped: Events that were dropped since the start, as too many waited.
    """

    ok: Required[bool]
    connected: bool
    pending: Count
    age_seconds: Seconds
    error: str | None
    skipped: Count
    dropped: Count


class CheckpointPart(TypedDict, total=False):
    """The checkpoint file. `age_seconds`: seconds since it was last written; null before the first time.

    cluster_age_seconds: Of the one that a standby goes on from; absent without a cluster.
    """

    ok: Required[bool]
    age_seconds: Seconds | None
    error: str | None
    cluster_age_seconds: Seconds | None


class DoorbellPart(TypedDict, total=False):
    """The doorbell (binary log), if configured. `ok` is true even while it is down, as polling continues."""

    ok: Required[bool]
    up: bool
    error: str | None


class ReceiverState(TypedDict):
    """One webhook. `pending`: events that its receiver has not acknowledged. `disabled`: it answered 410 Gone."""

    ok: bool
    pending: Count
    disabled: bool
    error: str | None


class WebhooksPart(TypedDict, total=False):
    """The receivers of webhooks, by name."""

    ok: Required[bool]
    error: str | None
    receivers: dict[str, ReceiverState]


class OtlpPart(TypedDict, total=False):
    """The receiver of traces. `exported`, `dropped`: jobs since the start.

    pending: Ended jobs that the receiver does not have yet.
    dropped: Jobs that left memory before the receiver accepted them.
    """

    ok: Required[bool]
    pending: Count
    exported: Count
    dropped: Count
    error: str | None


class ClusterPart(TypedDict, total=False):
    """The connection to NATS, and the lease; `pending`: documents and events that NATS has not acknowledged."""

    ok: Required[bool]
    connected: bool
    error: str | None
    age_seconds: Seconds
    instance: str
    role: Annotated[Literal["active", "standby"], Meta(title="ClusterRole")]
    active: str | None
    pending: Count
    acknowledged_seconds_ago: Seconds | None


class ConnectionsPart(TypedDict, total=False):
    """The connections of clients. `ok` is false at the limit, which the number of files of the process sets."""

    ok: Required[bool]
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
    """`ready`: requests are served. `degraded`: a part is not available, and known data is still served.

    Without a valid token, or by a Host that is not allowed, each part has nothing but `ok`.
    """

    ready: bool
    degraded: bool
    parts: Parts


class InstanceHealth(TypedDict):
    """One appliance of a fleet, as its collector reported it last.

    online: A collector is alive. Null: the gateway does not know it yet.
    unwritten_seconds: Age of the oldest change that the cluster does not have.
    version: Of its collector.
    jobs: In memory.
    """

    instance: str
    online: bool | None
    database: Database
    error: str | None
    lag_seconds: Seconds
    unwritten_seconds: Seconds
    last_seen: Time | None
    version: str | None
    jobs: Count


class InstancesList(TypedDict):
    instances: list[InstanceHealth]


class Problem(TypedDict):
    """The problem with a request (RFC 9457)."""

    type: Annotated[str, Meta(extra_json_schema={"format": "uri-reference"})]
    title: str
    status: Annotated[int, Meta(ge=400, le=599)]
    detail: str


# -- the appliance's own status reply, in its two forms


class _Details(Struct, kw_only=True):
    job_type: str | None
    operation: str | None
    total_steps: Count
    completed_steps: Count
    failed_steps: Count
    running_steps: Count
    step_completion: Percent
    error_message: str | None
    error_cut: ErrorCut | UnsetType = UNSET
    metadata: StatusMetadata | None


class DirectDetails(_Details, tag_field="tracking_source", tag="direct_joblog_uuid", kw_only=True):
    """The appliance's details of a job that was requested by its UUID or its context ID."""


class EnhancedDetails(_Details, tag_field="tracking_source", tag="external_job_id_correlation", kw_only=True):
    """The appliance's details of a job by external ID: `gui_job_id` is that ID, `internal_job_id` the UUID."""

    context_id: str | None
    external_job_id: str | None
    job_category: str | None
    gui_job_id: str
    internal_job_id: JobId


class LegacyDetails(Struct, tag_field="tracking_source", tag="legacy_failover_jobs", kw_only=True):
    """The appliance's details of a job that exists only in `failover_jobs`. NULL becomes an empty text."""

    vm_id: str
    vm_name: str
    job_type: str
    destination_vm_id: str
    snapshot_id: str
    error_message: str
    error_cut: ErrorCut | UnsetType = UNSET
    started_at: GoTime | None
    completed_at: GoTime | None
    custom_config: Any


class StatusReply(TypedDict):
    """The appliance's reply for a job, with details as the job was found: `tracking_source` says how.

    status: For a job that exists only in `failover_jobs`: the value of that table.
    duration: Nanoseconds.
    """

    success: bool
    message: str
    job_id: JobId
    status: str
    progress: Percent
    start_time: GoTime | None
    duration: Count
    job_details: Annotated[DirectDetails | EnhancedDetails | LegacyDetails, Meta(title="StatusDetails")]


class UnknownReply(TypedDict):
    """The appliance's 404: an empty reply with an error."""

    success: bool
    message: str
    job_id: str
    status: str
    progress: Percent
    start_time: GoTime
    duration: Count
    error: str


# -- entities


class OperationTrend(Struct, frozen=True):
    """The jobs of one operation on this page. Only completed ones have a duration that is compared.

    newest_seconds: The newest completed job; null without any.
    typical_seconds: The median of at most 20 completed jobs before that; null without any.
    ratio: `newest_seconds` / `typical_seconds`.
    """

    job_type: str | None
    operation: str | None
    runs: Count
    completed: Count
    failed: Count
    newest_seconds: Seconds | None
    typical_seconds: Seconds | None
    ratio: Annotated[float, Meta(ge=0)] | None


class EntityPage(JobsPage):
    """The jobs of a context or of a VM over time, newest first: a page as of `/jobs`.

    contexts: The contexts of the jobs on this page, sorted.
    operations: In the order of their newest job.
    """

    entity: str
    kind: EntityKind
    contexts: list[str]
    operations: list[OperationTrend]
