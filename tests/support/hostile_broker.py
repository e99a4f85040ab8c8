"""A broker that means harm: it takes what a client publishes, and sends one kind of attack as fast as the client reads.

It runs in a process of its own, as a storm (`tests/support/storms.py`), for MQTT 5 or, with `level` 4, for 3.1.1 only.
An attack is an endless sequence of packets. It begins when the client subscribes, so that the client is ready for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterator

from tests.support.accepting import accepting

ROOT = "correlator/v1/test"
"""Below it are the topics that the client reads: those of `Daemon`."""

Attack = Callable[[int], Iterator[bytes]]


async def broker(_: str, counts: dict[str, int], *, port: int, attack: str, level: int = 5) -> None:
    """Serve until cancelled. Counts `connections`, and how many kB the client has read of the attack."""
    refuses, reads = attack == "refusals", attack not in UNREAD
    async with accepting(Connection(counts, ATTACKS[attack], level, reads=reads, refuses=refuses).run, port):
        await asyncio.Event().wait()


class Connection:
    """What happens on each connection.

    `reads`: whether the broker reads on once the attack has begun. `refuses`: it refuses messages, with another reason
    each time.
    """

    def __init__(self, counts: dict[str, int], attack: Attack, level: int, *, reads: bool, refuses: bool) -> None:
        self._counts, self._attack, self._level, self._reads = counts, attack, level, reads
        self._reasons = itertools.cycle([b"\x80", b"\x83", b"\x87", b"\x97", b"\x99"] if refuses else [b""])
        for name in ("connections", "kB"):
            counts.setdefault(name, 0)

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        attacking: asyncio.Task[None] | None = None
        try:
            while (answer := self._answer(*await read_packet(reader))) is not None:
                writer.write(answer)
                if answer[:1] == b"\x90" and attacking is None:
                    attacking = asyncio.create_task(self._send(writer))
                    if not self._reads:
                        await attacking
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            if attacking is not None:
                attacking.cancel()
                await asyncio.gather(attacking, return_exceptions=True)

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            for piece in self._attack(self._level):
                writer.write(piece)
                await writer.drain()
                self._counts["kB"] += len(piece) // 1000

    def _answer(self, head: int, body: bytes) -> bytes | None:
        """What a broker answers to a packet; None: it closes."""
        none = nothing(self._level)
        match head >> 4:
            case 1 if body[6] > self._level:
                answer = b"\x20\x02\0\x01"
            case 1:
                self._counts["connections"] += 1
                answer = packet(0x20, b"\0\0" + none)
            case 3 if head & 6:
                at = 2 + int.from_bytes(body[:2], "big")
                answer = packet(0x40, body[at : at + 2] + next(self._reasons))
            case 8:
                answer = packet(0x90, body[:2] + none + b"\0" * body.count(b"correlator/"))
            case 10:
                answer = packet(0xB0, body[:2] + none + none * body.count(b"correlator/"))
            case 12:
                answer = b"\xd0\0"
            case 14:
                return None
            case _:
                answer = b""
        return answer


# -- packets


async def read_head(reader: asyncio.StreamReader) -> tuple[int, int]:
    """The first byte of a packet, and the number of bytes that follow its length."""
    (head,) = await reader.readexactly(1)
    length = shift = 0
    while True:
        (byte,) = await reader.readexactly(1)
        length |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return head, length


async def read_packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """The first byte of a packet, and what follows its length."""
    head, length = await read_head(reader)
    return head, await reader.readexactly(length)


def variable(value: int) -> bytes:
    """A variable byte integer."""
    encoded = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        encoded.append(low | (0x80 if value else 0))
        if not value:
            return bytes(encoded)


def packet(head: int, body: bytes) -> bytes:
    return bytes([head]) + variable(len(body)) + body


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return len(raw).to_bytes(2, "big") + raw


def nothing(level: int) -> bytes:
    """Properties, of which there are none."""
    return b"\0" if level == 5 else b""


def retained(topic: str, payload: bytes, level: int, properties: bytes = b"") -> bytes:
    head = text(topic) + (variable(len(properties)) + properties if level == 5 else b"")
    return packet(0x31, head + payload)


# -- attacks


def large(level: int) -> Iterator[bytes]:
    payload = b'{"job_id":"x","status":"running","blob":"' + b"x" * 1_000_000 + b'"}'
    return (retained(f"{ROOT}/job/{n}/state", payload, level) for n in itertools.count())


def huge(level: int) -> Iterator[bytes]:
    """One packet of 256 MB after the other."""
    most = (1 << 28) - 1
    for n in itertools.count():
        head = text(f"{ROOT}/ext/{n}") + nothing(level)
        yield b"\x31" + variable(most) + head
        left = most - len(head)
        while left:
            piece = min(left, 1 << 20)
            yield b"x" * piece
            left -= piece


def tiny(level: int) -> Iterator[bytes]:
    for n in itertools.count():
        yield b"".join(
            retained(f"{ROOT}/{kind}/{n * 100 + i}{end}", b"1", level)
            for i in range(100)
            for kind, end in (("job", "/state"), ("ext", ""), ("vm", ""))
        )


def long_topics(level: int) -> Iterator[bytes]:
    name = "x" * 65_000
    return (retained(f"{ROOT}/{kind}/{name}{n}", b"1", level) for n in itertools.count() for kind in ("ext", "vm"))


def long_ids(level: int) -> Iterator[bytes]:
    name = "%C3%A4" * 600
    return (retained(f"{ROOT}/job/{name}{n}/state", b"1", level) for n in itertools.count())


def properties(level: int) -> Iterator[bytes]:
    """User properties, the smallest that exist: the more of them a packet has, the longer it takes to read them."""
    many = (b"\x26" + text("") + text("")) * 12_000
    return (retained(f"{ROOT}/ext/{n}", b"1", level, many) for n in itertools.count())


def reasons(level: int) -> Iterator[bytes]:
    """Acknowledgements of what was never sent, each with thousands of user properties."""
    many = (b"\x26" + text("") + text("")) * 12_000
    return itertools.repeat(packet(0x40, b"\xff\xff\0" + (variable(len(many)) + many if level == 5 else b"")))


def exactly_once(level: int) -> Iterator[bytes]:
    """Messages of QoS 2, none of which is ever released."""
    for n in itertools.count(1):
        yield packet(0x35, text(f"{ROOT}/ext/{n}") + (n % 65_535).to_bytes(2, "big") + nothing(level) + b"x" * 60_000)


def received(_: int) -> Iterator[bytes]:
    """PUBREC of what is in flight, without end: each asks for a PUBREL."""
    return itertools.repeat(b"".join(b"\x50\x02" + n.to_bytes(2, "big") for n in range(1, 200)) * 10)


ATTACKS: dict[str, Attack] = {
    "large messages": large,
    "huge messages": huge,
    "tiny messages": tiny,
    "long topics": long_topics,
    "long ids": long_ids,
    "user properties": properties,
    "properties of acknowledgements": reasons,
    "exactly once": exactly_once,
    "received": received,
    "pings": lambda _: itertools.repeat(b"\xc0\0" * 2_000),
    "pongs": lambda _: itertools.repeat(b"\xd0\0" * 2_000),
    "acknowledgements": lambda _: itertools.repeat(b"\x40\x02\xff\xff" * 1_000),
    "subscribed": lambda level: itertools.repeat(packet(0x90, b"\xff\xff" + nothing(level) + b"\0") * 1_000),
    "unsubscribed": lambda level: itertools.repeat(packet(0xB0, b"\xff\xff" + 2 * nothing(level)) * 1_000),
    "welcomes": lambda level: itertools.repeat(packet(0x20, b"\0\0" + nothing(level)) * 1_000),
    "refusals": lambda _: iter(()),
    "malformed": lambda _: itertools.repeat(b"\x31\x02\xff\xff"),
}  # fmt: skip
"""What each sends, without end."""

UNREAD = {"pings", "received", "huge messages"}
"""The attacks whose broker neither reads nor answers any more."""


def attacks(level: int) -> list[str]:
    """Those that there are in a version of MQTT."""
    newer = {"user properties", "properties of acknowledgements", "refusals"}
    return [name for name in ATTACKS if level == 5 or name not in newer]
