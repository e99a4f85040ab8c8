"""The messages of the daemon's websocket (docs/protocol.md), for a client that may be older than the daemon.

They are those of `correlator.model.messages`, where unknown members are ignored and no set of values is closed. Those
with a job or a log line have types of their own here: a job is a mapping, as it may have members that are not known.
Messages of unknown types are ignored. The types of a job are below: a member without a value is None or missing; later
versions may add members, and values of those that are texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, TypeAlias, TypedDict, get_args

import msgspec
from msgspec import Struct

from correlator.model.messages import Bookmark, Bye, Delete, Delta, Error, Resync, SourceStatus, Synced, Welcome

MAX_MESSAGE = 64 << 20
"""Bytes of one frame; the daemon sends a snapshot in chunks of far less."""

Document: TypeAlias = Mapping[str, Any]
"""A job of any version, or a part of one. Never changed in place, so it may be kept and compared. See `Job`."""


class LogMessage(Struct, frozen=True, tag_field="type", tag="log"):
    """A log line of a job; or, with `dropped`, how many lines the daemon dropped for a slow client."""

    job_id: str = ""
    event_id: int = 0
    level: str = "INFO"
    step_id: int | None = None
    message: str = ""
    attrs: Any = None
    at: str | None = None
    dropped: int = 0


class SnapshotMessage(Struct, frozen=True, tag_field="type", tag="snapshot"):
    sub: int
    jobs: list[Document]


class PutMessage(Struct, frozen=True, tag_field="type", tag="put"):
    sub: list[int]
    seq: int
    job_id: str
    rev: int
    job: Document


Message: TypeAlias = (
    Welcome
    | SnapshotMessage
    | Synced
    | PutMessage
    | Delta
    | Delete
    | LogMessage
    | Bookmark
    | SourceStatus
    | Resync
    | Error
    | Bye
)

_KINDS: dict[str, type[Message]] = {str(kind.__struct_config__.tag): kind for kind in get_args(Message)}


def decode(frame: str | bytes) -> list[Message]:
    """Decode the messages of a frame; messages of an unknown type are omitted.

    Raises:
        ValueError: the frame is not JSON, or a message is not of its type.
    """
    try:
        parsed = msgspec.json.decode(frame)
        found = parsed if isinstance(parsed, list) else [parsed]
        if not all(isinstance(one, dict) and isinstance(one.get("type"), str) for one in found):
            raise ValueError("a message is an object with a type")
        return [msgspec.convert(one, type=_KINDS[one["type"]]) for one in found if one["type"] in _KINDS]
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error


# -- the types of a job


# begin: written by make docs
JobStatus: TypeAlias = Literal["cancelled", "completed", "failed", "pending", "running"]
Metadata: TypeAlias = Mapping[str, Any]
Source: TypeAlias = Literal["joblog", "legacy"]
StepStatus: TypeAlias = Literal["pending", "running", "completed", "failed", "cancelled", "skipped"]
Level: TypeAlias = Literal["DEBUG", "ERROR", "INFO", "WARN"]
Certainty: TypeAlias = Literal["apart", "inferred", "none", "stated"]
FailureState: TypeAlias = Literal["known", "new", "unknown"]


class Job(TypedDict):
    job_id: str
    external_ids: Sequence[str]
    context_id: NotRequired[str | None]
    parent_job_id: NotRequired[str | None]
    child_job_ids: Sequence[str]
    job_type: NotRequired[str | None]
    operation: NotRequired[str | None]
    category: NotRequired[str | None]
    owner: NotRequired[str | None]
    status: JobStatus
    terminal: bool
    error: NotRequired[str | None]
    started_at: NotRequired[str | None]
    ended_at: NotRequired[str | None]
    updated_at: str
    duration_seconds: NotRequired[float | None]
    progress: Progress
    forecast: NotRequired[Forecast | None]
    compared_with: NotRequired[Comparison | None]
    current_step: NotRequired[str | None]
    steps: Mapping[str, Step]
    stalled: bool
    last_event_at: NotRequired[str | None]
    last_message: NotRequired[LastMessage | None]
    warnings: int
    errors: int
    metadata: Metadata
    source: Source
    rev: int
    external_ids_cut: NotRequired[int]
    child_job_ids_cut: NotRequired[int]
    counts_complete: NotRequired[bool]
    steps_complete: NotRequired[bool]
    error_cut: NotRequired[int]
    steps_cut: NotRequired[int]
    instance: NotRequired[str]
    title: NotRequired[str]
    current_step_title: NotRequired[str]
    failure: NotRequired[Failure | None]


class Progress(TypedDict):
    percent: float
    basis: str
    steps_done: int
    steps_failed: int
    steps_running: int
    steps_skipped: int
    steps_seen: int
    steps_expected: NotRequired[int | None]


class Forecast(TypedDict):
    ends_at: ForecastEnd
    as_of: str
    runs: int
    state: str
    typical_seconds: float
    failure_rate: float
    steps_ahead: Sequence[StepAhead]


class ForecastEnd(TypedDict):
    p50: str
    p90: str


class StepAhead(TypedDict):
    name: str
    share: float
    typical_seconds: float
    title: NotRequired[str]


class Comparison(TypedDict):
    typical_seconds: float
    runs: int
    percentile: float


class Step(TypedDict):
    seq: int
    name: str
    status: StepStatus
    started_at: NotRequired[str | None]
    ended_at: NotRequired[str | None]
    duration_seconds: NotRequired[float | None]
    error: NotRequired[str | None]
    error_cut: NotRequired[int]
    title: NotRequired[str]


class LastMessage(TypedDict):
    level: Level
    text: str
    at: str


class Failure(TypedDict):
    fingerprint: NotRequired[str | None]
    step: NotRequired[str | None]
    certainty: Certainty
    text: str
    state: FailureState


# end
