"""Frames of the websocket (RFC 6455): the messages in those of clients, and those to clients. Imports no I/O."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from correlator.errors import BadRequest
from correlator.model.messages import ClientMessage

MAX_FRAME = 64 * 1024
"""Bytes of one frame from a client. A longer frame closes the connection with 1009."""

_DECODER = msgspec.json.Decoder(ClientMessage)
_MANY = msgspec.json.Decoder(list[msgspec.Raw])


def decode(text: str | bytes) -> list[ClientMessage | BadRequest]:
    """The messages of a frame, which is one message or an array. An invalid message is represented by its error.

    Raises:
        BadRequest: The frame is not JSON.
    """
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if raw.lstrip()[:1] != b"[":
        return [_message(raw)]
    try:
        return [_message(bytes(one)) for one in _MANY.decode(raw)]
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise BadRequest(f"a frame is a JSON object, or an array of them: {error}") from error


def _message(raw: bytes) -> ClientMessage | BadRequest:
    try:
        said: ClientMessage = _DECODER.decode(raw)
    except msgspec.ValidationError as error:
        known = "known types are hello, subscribe, unsubscribe, get and ping"
        return BadRequest(f"{error}; {known}", _subscription(raw))
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        return BadRequest(f"a frame is a JSON object, or an array of them: {error}")
    return said


def _subscription(raw: bytes) -> int | None:
    """The subscription ID of an invalid message, if it has one."""
    try:
        return msgspec.json.decode(raw, type=_About).id
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


class _About(Struct):
    id: int | None = None


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
