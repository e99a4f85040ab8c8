"""Messages at which a broker closes the connection: after `CLOSES` times they are left out.

A broker of MQTT 3.1.1 does not announce its maximum packet size. If it closes the connection at a large message, it
would get that message again over every connection, and nothing else would ever get through. Times are arguments.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from correlator.jobs.bounded import BoundedDict

CLOSES = 3
"""Number of connections that end while a message is the largest in flight, before it is left out."""

SMALL = 4_096
"""Bytes that every broker accepts. A broker that closes the connection at less does so for another reason."""

TRY_AGAIN_AFTER = 600.0
"""Seconds after which a message is tried again: the broker may have been restarted with another limit."""

MAX_SUSPECTS = 1_000
"""Maximum number of topics. Above it the one suspected longest ago is forgotten."""


class _Suspect(Struct):
    fingerprint: int
    closes: int
    since: float


class Suspects:
    """Suspected messages by topic and payload: a message that has changed is another message."""

    def __init__(self) -> None:
        self._suspects: BoundedDict[str, _Suspect] = BoundedDict(MAX_SUSPECTS)

    def closed(self, in_flight: Iterable[tuple[str, bytes]], now: float, *, certain: bool = False) -> str | None:
        """The broker closed the connection. Returns the topic that is left out from now on, or None.

        `in_flight`: topic and payload of each message in flight. `now`: monotonic seconds. `certain`: the broker
        reported that a message was too large.
        """
        largest = max(in_flight, key=lambda message: len(message[1]), default=None)
        if largest is None or len(largest[1]) <= SMALL:
            return None
        topic, payload = largest
        known = self._suspects.pop(topic, None)
        fingerprint = hash(payload)
        if known is None or known.fingerprint != fingerprint:
            known = _Suspect(fingerprint, 0, now)
        known.closes = CLOSES if certain else min(known.closes + 1, CLOSES)
        known.since = now
        self._suspects[topic] = known
        return topic if known.closes == CLOSES else None

    def acknowledged(self, topic: str) -> None:
        """The broker accepted a message of the topic: forget the suspicion."""
        self._suspects.pop(topic, None)

    def is_left_out(self, topic: str, payload: bytes, now: float) -> bool:
        """Return True if the message must not be sent. After `TRY_AGAIN_AFTER` it gets one more attempt."""
        known = self._suspects.get(topic)
        if known is None or known.closes < CLOSES or known.fingerprint != hash(payload):
            return False
        if now - known.since < TRY_AGAIN_AFTER:
            return True
        known.closes = CLOSES - 1
        return False
