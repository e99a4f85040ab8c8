"""The messages of the daemon's websocket as types (docs/protocol.md), for a client that may be older than the daemon.

Unknown types and members are ignored, missing ones have a default, and no set of values is closed: so these are not the
types of `correlator.model.messages`, by which a daemon says what it sends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias, get_args

import msgspec
from msgspec import Struct

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


class Welcome(Struct, frozen=True, tag_field="type", tag="welcome"):
    epoch: str
    seq: int
    resumed: bool = False
    at: str | None = None


class Snapshot(Struct, frozen=True, tag_field="type", tag="snapshot"):
    sub: int
    jobs: list[Document]


class Synced(Struct, frozen=True, tag_field="type", tag="synced"):
    sub: int
    seq: int


class Put(Struct, frozen=True, tag_field="type", tag="put"):
    sub: list[int]
    seq: int
    job_id: str
    rev: int
    job: Document


class Delta(Struct, frozen=True, tag_field="type", tag="delta"):
    sub: list[int]
    seq: int
    job_id: str
    base: int
    rev: int
    set: Document


class Delete(Struct, frozen=True, tag_field="type", tag="delete"):
    sub: list[int]
    seq: int
    job_id: str
    reason: str


class Bookmark(Struct, frozen=True, tag_field="type", tag="bookmark"):
    seq: int
    at: str | None = None


class StatusMessage(Struct, frozen=True, tag_field="type", tag="status"):
    """`error`: why the database is not live, in a sentence for people."""

    source: str
    error: str | None = None


class Resync(Struct, frozen=True, tag_field="type", tag="resync"):
    reason: str = ""


class Error(Struct, frozen=True, tag_field="type", tag="error"):
    code: str
    detail: str = ""
    job_id: str | None = None


class Bye(Struct, frozen=True, tag_field="type", tag="bye"):
    code: int = 1012
    retry_ms: tuple[float, float] = (0.0, 5000.0)


Message: TypeAlias = (
    Welcome | Snapshot | Synced | Put | Delta | Delete | LogMessage | Bookmark | StatusMessage | Resync | Error | Bye
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
