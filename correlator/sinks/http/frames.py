"""Frames of websockets (RFC 6455): the messages in those of clients, and those to clients.

Problem. A client is not known before its `hello` has been accepted, and what it sends until then costs memory and time:
64 kB of `[1,1,1,…]` were 32,000 messages, each with an error, on each of thousands of connections.

Model. A frame has a bounded number of messages (`split`), which are decoded one after the other, up to the first that
is invalid (`decode`).
"""

from __future__ import annotations

import msgspec
from msgspec import Raw, Struct

from correlator.errors import BadRequest
from correlator.model.messages import ClientMessage

# -- the messages in a frame

MAX_FRAME = 64 * 1024
"""Bytes of one frame from a client. A longer frame closes the connection with 1009."""

MAX_MESSAGES, MAX_MESSAGES_OF_UNKNOWN = 100, 10
"""Messages in one frame; and until `hello` has been accepted."""

MAX_ERROR = 300
"""Characters of an error that repeats what a client sent."""

_NONE = Raw(b"")
_MESSAGES = msgspec.json.Decoder(
    msgspec.defstruct(
        "Messages",
        [(f"message_{n}", Raw, _NONE) for n in range(MAX_MESSAGES)],
        array_like=True,
        forbid_unknown_fields=True,
    )
)
"""An array of so many messages that are not decoded yet. Unlike a list, it ends the parsing at the first beyond."""
_MESSAGE = msgspec.json.Decoder(ClientMessage)


def split(frame: str | bytes) -> list[bytes]:
    """The messages of a frame, which is one message or an array, before they are decoded.

    Raises:
        BadRequest: It is no JSON, or has too many messages.
    """
    raw = frame.encode("utf-8", "surrogatepass") if isinstance(frame, str) else frame
    if raw.lstrip()[:1] != b"[":
        return [raw]
    try:
        found = _MESSAGES.decode(raw)
    except msgspec.ValidationError:
        raise BadRequest(f"a frame has at most {MAX_MESSAGES} messages") from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise _no_json(error) from error
    return [bytes(one) for one in msgspec.structs.astuple(found) if one is not _NONE]


def decode(raw: bytes) -> ClientMessage:
    """One message.

    Raises:
        BadRequest: It is invalid.
    """
    try:
        said: ClientMessage = _MESSAGE.decode(raw)
    except msgspec.ValidationError as error:
        words, known = str(error), "known types are hello, subscribe, unsubscribe, get and ping"
        words = words if len(words) <= MAX_ERROR else f"{words[:MAX_ERROR]}…"
        raise BadRequest(f"{words}; {known}", _subscription(raw)) from error
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise _no_json(error) from error
    return said


def _no_json(error: Exception) -> BadRequest:
    return BadRequest(f"a frame is a JSON object, or an array of them: {error}")


def _subscription(raw: bytes) -> int | None:
    """The subscription ID of an invalid message, if it has one."""
    try:
        return msgspec.json.decode(raw, type=_About).id
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


class _About(Struct):
    id: int | None = None


# -- frames to clients


def text_frame(payload: bytes) -> bytes:
    """One final, unmasked text frame."""
    size = len(payload)
    if size < 126:
        return b"\x81" + size.to_bytes(1, "big") + payload
    if size < 1 << 16:
        return b"\x81\x7e" + size.to_bytes(2, "big") + payload
    return b"\x81\x7f" + size.to_bytes(8, "big") + payload


PING = b"\x89\x00"


def pong_frame(payload: bytes) -> bytes:
    """The reply to a ping. `payload`: at most 125 bytes."""
    return b"\x8a" + len(payload).to_bytes(1, "big") + payload


def close_frame(code: int, reason: bytes) -> bytes:
    """A close frame. `reason`: at most 123 bytes of UTF-8."""
    return b"\x88" + (2 + len(reason)).to_bytes(1, "big") + code.to_bytes(2, "big") + reason


def is_close_code(code: int) -> bool:
    """True for a code that a close frame may have (RFC 6455, 7.4), which aiohttp lets pass; 0: it has none."""
    return code in (0, *range(1000, 1004), *range(1007, 1015)) or 3000 <= code <= 4999
