"""The messages about jobs as types: websocket, event stream, MQTT and webhooks. See docs/protocol.md.

AsyncAPI and the webhook of OpenAPI are generated from them. No other members are sent. In a docstring, `name: text`
describes a member.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Any, Final, Literal, NotRequired, Self, TypeAlias, TypedDict, get_args

from msgspec import UNSET, Meta, Struct, UnsetType

from correlator.model.document import (
    EXACT,
    MAX_ID,
    Count,
    ErrorCut,
    Failure,
    JobDocument,
    JobId,
    JobStatus,
    Rev,
    Seconds,
    Time,
)
from correlator.model.facts import Kind
from correlator.model.published import Reason
from correlator.model.rows import Level

DaemonState: TypeAlias = Annotated[Literal["starting", "online", "stopping", "offline"], Meta(title="DaemonState")]
DatabaseState: TypeAlias = Literal["live", "stale", "down"]
Database: TypeAlias = Annotated[
    str,
    Meta(
        title="DatabaseState",
        description="The database behind it.",
        extra_json_schema={"enum": sorted(get_args(DatabaseState))},
    ),
]
Epoch: TypeAlias = Annotated[str, Meta(description="Names one run of the daemon.")]
Seq: TypeAlias = Annotated[
    int, Meta(ge=0, le=EXACT, description="A place in the changes of one epoch; it never falls.")
]
EventKind: TypeAlias = Annotated[str, Meta(examples=[*Kind])]
DeleteReason: TypeAlias = Annotated[
    str,
    Meta(
        title="DeleteReason",
        extra_json_schema={"enum": sorted((*get_args(Reason), "filter"))},
        description="It left memory; it left this filter, after one last put; its row was deleted; it was a legacy job"
        " and is a JobLog job now.",
    ),
]
SubId: TypeAlias = Annotated[int, Meta(ge=0, description="A subscription, by the `id` its client gave it.")]
Subs: TypeAlias = Annotated[list[SubId], Meta(description="The subscriptions that it is for.")]
Attrs: TypeAlias = Annotated[
    Any,
    Meta(
        description="As logged, nearly always an object; the text itself where it is no JSON; null without any, and in"
        " a stream where they are long."
    ),
]


class CloseCode(IntEnum):
    """Close codes of the websocket (RFC 6455, 7.4). An event stream sends the same code in its `bye` message.

    After `UNAUTHORISED` and `FORBIDDEN` a client needs another token or origin, and after `BAD_PROTOCOL` another
    version. After any other code it reconnects.
    """

    reason: str

    def __new__(cls, code: int, reason: str) -> Self:
        self = int.__new__(cls, code)
        self._value_, self.reason = code, reason
        return self

    RESTART = 1012, "restart"
    TRY_LATER = 1013, "try later"
    BAD_PROTOCOL = 4400, "bad protocol"
    UNAUTHORISED = 4401, "token missing, expired or revoked"
    FORBIDDEN = 4403, "origin or token refused"
    NO_HELLO = 4408, "no hello"
    TOO_MANY = 4429, "too many"
    TOO_SLOW = 4508, "too slow"


# -- websocket, client → server

MAX_IDS: Final = 1000
"""IDs in one subscription, at most."""

_Name = Annotated[str, Meta(min_length=1, max_length=MAX_ID)]
_Names = Annotated[tuple[_Name, ...], Meta(max_length=MAX_IDS)]
_Id = Annotated[int, Meta(ge=0, lt=EXACT)]


class Hello(Struct, tag_field="type", tag="hello", frozen=True, omit_defaults=True):
    version: int
    token: str | None = None
    resume: Any = None


class Wanted(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a subscription selects: OR inside a member, AND between them; an absent member does not filter."""

    jobs: _Names | None = None
    status: tuple[JobStatus, ...] | None = None
    job_type: _Names | None = None
    context_id: _Names | None = None
    instance: _Names | None = None
    logs: Level | None = None


class Subscribe(Wanted, tag_field="type", tag="subscribe", frozen=True, omit_defaults=True, kw_only=True):
    id: _Id
    resume: bool | None = None


class Unsubscribe(Struct, tag_field="type", tag="unsubscribe", frozen=True):
    id: _Id


class Get(Struct, tag_field="type", tag="get", frozen=True):
    job_id: _Name


class Ping(Struct, tag_field="type", tag="ping", frozen=True):
    pass


ClientMessage: TypeAlias = Hello | Subscribe | Unsubscribe | Get | Ping


# -- websocket and event stream, server → client


class Welcome(Struct, tag_field="type", tag="welcome", frozen=True):
    """The answer to `hello`. `resumed`: a subscription with `resume` gets no snapshot. `at`: the daemon's time."""

    epoch: Epoch
    seq: Seq
    resumed: bool
    ping_seconds: Count
    at: Time


class Snapshot(Struct, tag_field="type", tag="snapshot", frozen=True):
    """Jobs that match a subscription, the newest first; `more`: another chunk follows."""

    sub: SubId
    seq: Seq
    more: bool
    jobs: list[JobDocument]


class Synced(Struct, tag_field="type", tag="synced", frozen=True):
    """The end of a snapshot, or of what a resumed subscription missed. `unknown`: IDs that no job has yet."""

    sub: SubId
    seq: Seq
    count: Count
    unknown: list[str]


class Put(Struct, tag_field="type", tag="put", frozen=True):
    """The whole document. Applying it twice is harmless."""

    sub: Subs
    seq: Seq
    job_id: JobId
    rev: Rev
    job: JobDocument


class Delta(Struct, tag_field="type", tag="delta", frozen=True):
    """A change to the document at revision `base`. A client without that revision sends `get`.

    set: A merge patch (RFC 7386) of the document at `base`.
    """

    sub: Subs
    seq: Seq
    job_id: JobId
    base: Rev
    rev: Rev
    set: Annotated[dict[str, Any], Meta(title="MergePatch")]


class Delete(Struct, tag_field="type", tag="delete", frozen=True):
    """A job no longer belongs to these subscriptions."""

    sub: Subs
    seq: Seq
    job_id: JobId
    reason: DeleteReason


class LogEvent(TypedDict):
    """One log row of a job."""

    event_id: int
    level: Level
    message: str
    step_id: int | None
    attrs: Attrs
    at: Time


class LogMessage(LogEvent):
    """A committed log row of a matching job. Each connection gets each row once."""

    type: Literal["log"]
    sub: Subs
    job_id: JobId


class LogDropped(TypedDict):
    """The number of log lines that were not sent because the client is too slow."""

    type: Literal["log"]
    sub: Subs
    dropped: Annotated[int, Meta(ge=1)]


class Transition(TypedDict):
    """What all events have. `event_id` is null if the transition has no log row.

    failure: Of `job.failed`, as in the job's document; absent where the tables did not say why in time.
    """

    event_id: int | None
    job_id: JobId
    step_id: int | None
    step_name: str | None
    error: str | None
    at: Time
    error_cut: NotRequired[ErrorCut]
    failure: NotRequired[Failure]


class EventMessage(Transition):
    """A running job is late or overdue: sent when this is found, to the subscriptions that have the job.

    kind: More may come.
    """

    type: Literal["event"]
    sub: Subs
    seq: Seq
    kind: Annotated[str, Meta(examples=["job.late", "job.overdue"])]


class Bookmark(Struct, tag_field="type", tag="bookmark", frozen=True):
    """All changes up to `seq` were sent."""

    seq: Seq
    at: Time


class SourceStatus(Struct, tag_field="type", tag="status", frozen=True):
    """The state of the database. `lag_seconds`: the age of its newest complete answer, 0 while it is live.

    error: Why it is not live, in a sentence for people; null while it is.
    """

    source: Database
    lag_seconds: Seconds
    error: str | None


class Resync(Struct, tag_field="type", tag="resync", frozen=True):
    """The client's state is too old to be updated. A fresh snapshot follows."""

    reason: Annotated[str, Meta(title="ResyncReason", extra_json_schema={"enum": ["epoch", "gap", "slow"]})]


class Error(Struct, tag_field="type", tag="error", frozen=True):
    """A message was invalid or could not be served. `job_id`: that of the `get`. The third bad frame closes.

    code: `forbidden`: the token does not open what the subscription `sub` selects; it was not made, and others go on.
    """

    sub: SubId | None
    code: Annotated[
        str,
        Meta(title="ErrorCode", extra_json_schema={"enum": ["bad_request", "forbidden", "not_found", "unavailable"]}),
    ]
    detail: str
    job_id: str | UnsetType = UNSET


class Bye(Struct, tag_field="type", tag="bye", frozen=True):
    """The daemon is closing the connection. Reconnect after a random time in this range.

    code: The close code that follows (RFC 6455, 7.4).
    retry_ms: At least, at most; milliseconds.
    """

    code: int
    retry_ms: Annotated[list[Count], Meta(min_length=2, max_length=2)]


class Pong(Struct, tag_field="type", tag="pong", frozen=True):
    """The answer to `ping`."""


SERVER_MESSAGES: Final = (
    *(Welcome, Snapshot, Synced, Put, Delta, Delete, LogMessage, LogDropped, EventMessage),
    *(Bookmark, SourceStatus, Resync, Error, Bye, Pong),
)
"""All messages that the server sends to a websocket client."""


# -- MQTT


class JobEvent(Transition):
    """A transition. Delivered at least once, also across crashes.

    kind: More may come.
    """

    kind: EventKind
    epoch: Epoch
    seq: Seq


class JobState(JobDocument, frozen=True, gc=False, kw_only=True):
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


class VmState(JobState, frozen=True, gc=False, kw_only=True):
    """The newest job of a VM, without its steps, as in lists of jobs.

    vm_name: The name that the topic has, percent-encoded.
    """

    vm_name: str


HomeAssistantObject: TypeAlias = Annotated[
    dict[str, Any], Meta(title="HomeAssistantObject", description="As Home Assistant defines it.")
]


class HomeAssistantDevice(TypedDict):
    """A VM as a device of Home Assistant's MQTT discovery. Its entities read the topic of the VM.

    availability: The topic of the daemon's status.
    components: The entities by name: `status`, `progress`, `end`, `problem`. More may come.
    """

    device: HomeAssistantObject
    origin: HomeAssistantObject
    availability: list[HomeAssistantObject]
    state_topic: str
    components: dict[str, HomeAssistantObject]


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


# -- webhooks


class CloudEvent(TypedDict):
    """An event of a job or step: CloudEvents 1.0 in structured mode.

    id: Names the event; the same in every attempt. Also the header `webhook-id`.
    source: `/correlator/` and `mqtt.instance`.
    type: `correlator.` and the kind of the event. More may come.
    subject: The job ID. Control characters and noncharacters in it are escaped; `data` has it exactly.
    note: What an operator says of the failure of `data`: see `[[failures.known]]`.
    notelink: Where to read more of it.
    datacut: The members of `data` that were emptied so that the body fits, by spaces.
    data: The job at that moment; null if its row was not read.
    """

    specversion: Literal["1.0"]
    id: str
    source: str
    type: str
    subject: str
    time: Time
    stepid: NotRequired[str]
    stepname: NotRequired[str]
    note: NotRequired[str]
    notelink: NotRequired[str]
    datacut: NotRequired[str]
    datacontenttype: Literal["application/json"]
    data: JobDocument | None
