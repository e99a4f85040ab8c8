"""Frames of websockets (RFC 6455): the messages in those of clients, their bytes before aiohttp parses them, and those
to clients.

Problem. A client is not known before its `hello` has been accepted, and what it sends until then costs memory and time:
64 kB of `[1,1,1,…]` were 32,000 messages, each with an error, on each of thousands of connections.

Model. A frame has a bounded number of messages (`split`), which are decoded one after the other, up to the first that
is invalid (`decode`). Until a client is known it may send a bounded number of bytes and frames, and all such clients
together, and those of one address, hold a bounded number of bytes (`ClientFrames`). What exceeds a bound is not parsed.
Of known clients the same holds for what has not been handled: each of thousands may send faster than all are served.
Besides, each frame must be masked, which aiohttp does not check.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec
from aiohttp import WSCloseCode
from aiohttp.http import WebSocketReader
from msgspec import Raw, Struct

from correlator.errors import BadRequest
from correlator.model.messages import ClientMessage, CloseCode
from correlator.sinks.turns import Held, Refused

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


# -- the bytes of a client

MAX_BYTES_OF_UNKNOWN, MAX_FRAMES_OF_UNKNOWN = 80 * 1024, 300
"""What a client may send until `hello` has been accepted: a frame of the largest size, and others behind it."""

MESSAGE_COST = 256
"""Bytes of memory of each message that has not been handled, besides its own."""

UNCOUNTED = 4 << 10
"""Bytes of memory of each known client that are not counted: so what others hold ends no client that sends little."""

MAX_FRAMES_AT_ONCE = 1200
"""Frames that are read at once from a client. More would exceed the burst that it may send."""


class Refusal(NamedTuple):
    """Why what a client sends is not read any more. `code`: of the close frame."""

    code: int
    reason: str


UNMASKED: Final = Refusal(WSCloseCode.PROTOCOL_ERROR, "the frames of a client are masked (RFC 6455, 5.1)")
TOO_MANY_AT_ONCE: Final = Refusal(CloseCode.TOO_MANY, f"more than {MAX_FRAMES_AT_ONCE} frames at once")
TOO_MUCH: Final = Refusal(
    CloseCode.TOO_MANY, f"more than {MAX_BYTES_OF_UNKNOWN >> 10} kB or {MAX_FRAMES_OF_UNKNOWN} frames before welcome"
)

_EXTENDED: Final = {126: 2, 127: 8}
"""Bytes of a length that has no room in the second byte of a header."""


class ClientFrames:
    """What a client sends, on its way to `parser`, in whose place it stands: see `RequestHandler.set_parser`.

    After a refusal nothing is passed on any more.
    """

    __slots__ = (
        *("_address", "_bytes", "_frames", "_head", "_held", "_held_known", "_is_known", "_on_refusal", "_parser"),
        *("_refusal", "_rest", "_unhandled"),
    )

    def __init__(self, parser: WebSocketReader) -> None:
        self._parser = parser
        self._address = ""
        self._held: Held | None = None
        self._held_known: Held | None = None
        self._on_refusal: Callable[[Refusal], None] = lambda _: None
        self._refusal: Refusal | None = None
        self._is_known = False
        self._bytes = self._frames = 0
        """Received until the client was known. Then the bytes are those that count in `_held`."""
        self._unhandled = 0
        """Bytes of memory of the messages that have begun, and have not been handled."""
        self._head = b""
        """The begin of a header whose rest has not come yet."""
        self._rest = 0
        """Bytes of the current frame that have not come yet."""

    def begin(self, address: str, unknown: Held, known: Held, on_refusal: Callable[[Refusal], None]) -> None:
        """Count what the client has sent, and what it sends until it is known, among what unknown clients hold.

        `known`: what those hold that have been accepted. `on_refusal` is called at most once, maybe at once. Call `end`
        in the end.
        """
        self._address, self._held, self._held_known, self._on_refusal = address, unknown, known, on_refusal
        received, self._bytes = self._bytes, 0
        refusal = self._refusal or self._count(received)
        if refusal is not None:
            self._refuse(refusal)

    def known(self) -> None:
        """The client has been accepted: from now on only what has not been handled counts.

        Raises:
            Refused: That is too much.
        """
        self._is_known = True
        self._leave()
        self._held = self._held_known
        self._count_unhandled()

    def handled(self, size: int) -> None:
        """The next message, of `size` bytes, is in memory no longer."""
        self._unhandled -= size + MESSAGE_COST
        if self._is_known:
            self._count_unhandled()

    def end(self) -> None:
        """The client has gone."""
        self._leave()
        self._on_refusal = lambda _: None  # What it was refers to the connection.

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Pass on what the transport has received."""
        if self._refusal is None and (refusal := self._received(data)) is not None:
            self._refuse(refusal)
        return self._parser.feed_data(data) if self._refusal is None else (False, b"")

    def feed_eof(self) -> None:
        """The connection has ended."""
        self._parser.feed_eof()

    def _refuse(self, refusal: Refusal) -> None:
        self._refusal = refusal
        self._on_refusal(refusal)

    def _leave(self) -> None:
        if self._held is not None:
            self._held.give_back(self._address, self._bytes)
            self._held, self._bytes = None, 0

    def _received(self, data: bytes) -> Refusal | None:
        if not self._is_known:
            return self._count(len(data)) or self._follow(data)
        refusal = self._follow(data)
        try:
            self._count_unhandled()
        except Refused as error:
            return Refusal(CloseCode.TRY_LATER, str(error))
        return refusal

    def _count_unhandled(self) -> None:
        if self._held is None:
            return
        more = max(0, self._unhandled - UNCOUNTED) - self._bytes
        if more > 0:
            self._held.take(self._address, more)
        else:
            self._held.give_back(self._address, -more)
        self._bytes += more

    def _count(self, size: int) -> Refusal | None:
        if self._bytes + size > MAX_BYTES_OF_UNKNOWN:
            return TOO_MUCH
        if self._held is not None:
            try:
                self._held.take(self._address, size)
            except Refused as error:
                return Refusal(CloseCode.TRY_LATER, str(error))
        self._bytes += size
        return None

    def _follow(self, data: bytes) -> Refusal | None:
        """Find the header of each frame in the next bytes. An unmasked one must end the connection (RFC 6455, 5.1)."""
        at, begun = self._rest, 0
        if self._head:
            data, self._head = self._head + data, b""
        size = len(data)
        while at + 2 <= size:
            first, second = data[at], data[at + 1]
            if not second & 0x80:
                return UNMASKED
            length = second & 0x7F
            if (extended := _EXTENDED.get(length, 0)) != 0:
                if at + 2 + extended > size:
                    break
                length = int.from_bytes(data[at + 2 : at + 2 + extended], "big")
            at += 2 + extended + 4 + length
            self._unhandled += min(length, MAX_FRAME) + (MESSAGE_COST if first & 0x80 else 0)
            begun += 1
            if begun > MAX_FRAMES_AT_ONCE:
                return TOO_MANY_AT_ONCE
        self._head, self._rest = (data[at:], 0) if at < size else (b"", at - size)
        if not self._is_known:
            self._frames += begun
            if self._frames > MAX_FRAMES_OF_UNKNOWN:
                return TOO_MUCH
        return None


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
