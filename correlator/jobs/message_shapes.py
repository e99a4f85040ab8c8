"""The public shapes of the messages about jobs, over websocket, event stream and MQTT: docs/protocol.md as types.

`job_document` and the sinks build these dicts, and mypy checks them. The shapes are closed, as those of `shapes`.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, NotRequired, TypeAlias, TypedDict

from msgspec import Meta

from correlator.jobs.model.facts import Kind
from correlator.jobs.model.rows import Level
from correlator.jobs.shapes import Count, DatabaseState, Document, Epoch, ErrorCut, JobId, Rev, Seconds, Seq, Time

DeleteReason: TypeAlias = Annotated[
    Literal["retention", "filter", "gone", "merged"],
    Meta(
        description="It left memory; it left this filter, after one last put; its row was deleted; it was a legacy job"
        " and is a JobLog job now."
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


# -- websocket and event stream, server → client


class Welcome(TypedDict):
    """The answer to `hello`. `resumed`: a subscription with `resume` gets no snapshot. `at`: the daemon's time."""

    type: Literal["welcome"]
    epoch: Epoch
    seq: Seq
    resumed: bool
    ping_seconds: Count
    at: Time


class Snapshot(TypedDict):
    """Jobs that match a subscription, the newest first; `more`: another chunk follows."""

    type: Literal["snapshot"]
    sub: SubId
    seq: Seq
    more: bool
    jobs: list[Document]


class Synced(TypedDict):
    """The end of a snapshot, or of what a resumed subscription missed. `unknown`: IDs that no job has yet."""

    type: Literal["synced"]
    sub: SubId
    seq: Seq
    count: Count
    unknown: list[str]


class Put(TypedDict):
    """The whole document. Applying it twice is harmless."""

    type: Literal["put"]
    sub: Subs
    seq: Seq
    job_id: JobId
    rev: Rev
    job: Document


class Delta(TypedDict):
    """A change to the document at revision `base`. A client without that revision sends `get`."""

    type: Literal["delta"]
    sub: Subs
    seq: Seq
    job_id: JobId
    base: Rev
    rev: Rev
    set: Annotated[dict[str, Any], Meta(description="A merge patch (RFC 7386) of the document at `base`.")]


class Delete(TypedDict):
    """A job no longer belongs to these subscriptions."""

    type: Literal["delete"]
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
    """What all events have. `event_id` is null if the transition has no log row."""

    event_id: int | None
    job_id: JobId
    step_id: int | None
    step_name: str | None
    error: str | None
    at: Time
    error_cut: NotRequired[ErrorCut]


class EventMessage(Transition):
    """A running job is late or overdue: sent when this is found, to the subscriptions that have the job."""

    type: Literal["event"]
    sub: Subs
    seq: Seq
    kind: Annotated[Literal["job.late", "job.overdue"], Meta(description="More may come.")]


class Bookmark(TypedDict):
    """All changes up to `seq` were sent."""

    type: Literal["bookmark"]
    seq: Seq
    at: Time


class SourceStatus(TypedDict):
    """The state of the database. `lag_seconds`: the age of its newest complete answer, 0 while it is live."""

    type: Literal["status"]
    source: DatabaseState
    lag_seconds: Seconds
    error: Annotated[str | None, Meta(description="Why it is not live, in a sentence for people; null while it is.")]


class Resync(TypedDict):
    """The client's state is too old to be updated. A fresh snapshot follows."""

    type: Literal["resync"]
    reason: Literal["epoch", "gap", "slow"]


class Error(TypedDict):
    """A message was invalid or could not be served. `job_id`: that of the `get`. The third bad frame closes."""

    type: Literal["error"]
    sub: SubId | None
    code: Literal["bad_request", "not_found", "unavailable"]
    detail: str
    job_id: NotRequired[str]


class Bye(TypedDict):
    """The daemon is closing the connection. Reconnect after a random time in this range."""

    type: Literal["bye"]
    code: Annotated[int, Meta(description="The close code that follows (RFC 6455, 7.4).")]
    retry_ms: Annotated[list[Count], Meta(min_length=2, max_length=2, description="At least, at most; milliseconds.")]


class Pong(TypedDict):
    """The answer to `ping`."""

    type: Literal["pong"]


SERVER_MESSAGES: Final = (
    *(Welcome, Snapshot, Synced, Put, Delta, Delete, LogMessage, LogDropped, EventMessage),
    *(Bookmark, SourceStatus, Resync, Error, Bye, Pong),
)
"""All messages that the server sends to a websocket client."""


# -- MQTT


class JobEvent(Transition):
    """A transition. Delivered at least once, also across crashes."""

    kind: Kind
    epoch: Epoch
    seq: Seq
