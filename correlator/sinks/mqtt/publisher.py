"""Publishing over the open connection: the window, the deadline of each message, and messages that are left out.

A message that the broker has not acknowledged counts as not sent. A message for which the broker would close the
connection is left out, or nothing else would ever get through: one above the limits that the broker announces, and one
of those at which a broker of MQTT 3.1.1, which announces none, has closed the connection (`OversizedMessages`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from msgspec import Struct
from paho.mqtt.packettypes import PacketTypes

from correlator.bounded import BoundedDict
from correlator.ops import metrics
from correlator.sinks.mqtt.connection import PACKET_TOO_LARGE, WINDOW, Closed, MqttClient, TimedOut, json_properties
from correlator.sinks.mqtt.topics import MqttMessage

log = logging.getLogger(__name__)


CLOSES = 3
"""Number of connections that end while a message is the largest in flight, before it is left out."""


SMALL = 4_096
"""Bytes that every broker accepts. A broker that closes the connection at less does so for another reason."""


TRY_AGAIN_AFTER = 600.0
"""Seconds after which a message is tried again: the broker may have been restarted with another limit."""


MAX_OVERSIZED = 1_000
"""Maximum number of topics. Above it the one suspected longest ago is forgotten."""


DEADLINE_INTERVAL = 0.5
"""Seconds between two checks of how long the oldest message has waited for PUBACK."""


MAX_EXPIRY = (1 << 32) - 1
"""Seconds. MQTT 5 stores an expiry in four bytes, which is 136 years. A retention may be longer than that."""


BACKSTOP = 86_400
"""Seconds beyond the retention for which a broker keeps an ended job, if this daemon never returns to remove it."""


PACKET_HEAD = 64
"""Maximum number of bytes of a message besides its topic and payload."""


LONGEST_TOPIC = 65_535
"""Maximum number of bytes of a topic in MQTT. External IDs in attrs are unbounded; a longer topic is left out."""


MAX_SKIPPED = 10_000
"""Maximum number of topics that are remembered as left out."""


def window(receive_maximum: int) -> int:
    """Return how many messages with QoS 1 may be in flight. See MQTT 5, 4.9."""
    return max(1, min(WINDOW, receive_maximum))


class Publisher:
    """Sends messages and waits for their acknowledgement. Used by the tasks of one connection at a time.

    `retention`: seconds that ended jobs stay in memory. `url`: the broker's address, for the log. `timeout`: seconds to
    wait for PUBACK. `on_refused`: called with a sentence when a message is left out. `clock`: monotonic seconds.
    """

    def __init__(
        self,
        retention: float,
        url: object,
        timeout: float,
        on_refused: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._expiry = min(int(retention) + BACKSTOP, MAX_EXPIRY)
        self._url = url
        self._timeout = timeout
        self._on_refused = on_refused
        self._mqtt5 = True
        self._window = asyncio.Semaphore(WINDOW)
        """The number of messages that this connection's broker accepts at once."""
        self._in_flight: dict[object, tuple[float, MqttMessage]] = {}
        """The messages in flight, the oldest first, each with the monotonic time at which it was sent.

        Those of a connection that has ended stay until `connection_lost`.
        """
        self._oversized = OversizedMessages()
        self._skipped: BoundedDict[str, None] = BoundedDict(MAX_SKIPPED)
        """The retained topics whose newest message was left out."""

    @property
    def skipped(self) -> int:
        """Number of retained topics whose newest message was left out."""
        return len(self._skipped)

    def begin(self, client: MqttClient, *, mqtt5: bool) -> None:
        """Start a new connection."""
        self._mqtt5 = mqtt5
        self._window = asyncio.Semaphore(window(client.receive_maximum))

    async def send(self, client: MqttClient, message: MqttMessage) -> None:
        """Publish a message and return when the broker has acknowledged or refused it. Raises: one of `LOST`.

        A message for which the broker would close the connection is left out.
        """
        if (why := self._reason_to_skip(client, message)) is not None:
            self._on_refused(why)
            await asyncio.sleep(0)  # Thousands may follow each other.
            return
        properties = None
        if self._mqtt5:
            properties = json_properties(PacketTypes.PUBLISH, self._expiry if message.expires else None)
        retain, qos = message.retain and client.retain_available, min(1, client.maximum_qos)
        async with self._window:
            token = object()
            self._in_flight[token] = self._clock(), message
            await client.publish(message.topic, message.payload, qos=qos, retain=retain, properties=properties)
            del self._in_flight[token]
        self._oversized.acknowledged(message.topic)
        self._skipped.pop(message.topic, None)
        metrics.MQTT_PUBLISHED.inc()

    async def enforce_deadlines(self, client: MqttClient) -> None:
        """Run until a message has waited for PUBACK for too long. Raises: `TimedOut`.

        A broker may send thousands of retained messages, or a large one, before an acknowledgement: meanwhile it has
        not stopped answering. One periodic check of the oldest message costs less than a timer for each.
        """
        while True:
            await asyncio.sleep(DEADLINE_INTERVAL)
            oldest = next(iter(self._in_flight.values()), None)
            if oldest is not None and self._clock() - max(oldest[0], client.retained_at) > self._timeout:
                raise TimedOut(self._timeout)

    def connection_lost(self, error: BaseException) -> None:
        """Suspect the largest message in flight if the broker closed the connection without another reason."""
        lost = [(message.topic, message.payload) for _, message in self._in_flight.values()]
        self._in_flight.clear()
        certain = isinstance(error, Closed) and error.reason.value == PACKET_TOO_LARGE
        if isinstance(error, TimedOut) or (isinstance(error, Closed) and not certain):
            return
        topic = self._oversized.closed(lost, self._clock(), certain=certain)
        if topic is not None:
            log.warning(
                "the broker at %s closes the connection at a message of %d bytes: it is left out until it changes (%s)",
                self._url,
                max(len(payload) for _, payload in lost),
                topic,
            )

    def _reason_to_skip(self, client: MqttClient, message: MqttMessage) -> str | None:
        """Return why a message is left out, or None. The broker keeps an older one of a retained topic, or none."""
        topic, payload = message.topic, message.payload
        if len(topic) > LONGEST_TOPIC:
            return f"a topic over {LONGEST_TOPIC} bytes"
        if len(topic) + len(payload) + PACKET_HEAD > client.maximum_packet_size:
            why = f"over {client.maximum_packet_size} bytes"
        elif self._oversized.is_left_out(topic, payload, self._clock()):
            why = "the broker closes the connection at one of its size"
        else:
            return None
        if message.retain:  # an event has no newer message that could end this
            self._skipped[topic] = None
        return why


class _Oversized(Struct):
    fingerprint: int
    closes: int
    since: float


class OversizedMessages:
    """Messages at which the broker closed the connection, by topic: one that has changed is another message.

    After `CLOSES` times a message is left out, or it would end every connection. Times are arguments.
    """

    def __init__(self) -> None:
        self._oversized: BoundedDict[str, _Oversized] = BoundedDict(MAX_OVERSIZED)

    def closed(self, in_flight: Iterable[tuple[str, bytes]], now: float, *, certain: bool = False) -> str | None:
        """The broker closed the connection. Returns the topic that is left out from now on, or None.

        `in_flight`: topic and payload of each message in flight. `now`: monotonic seconds. `certain`: the broker
        reported that a message was too large.
        """
        largest = max(in_flight, key=lambda message: len(message[1]), default=None)
        if largest is None or len(largest[1]) <= SMALL:
            return None
        topic, payload = largest
        known = self._oversized.pop(topic, None)
        fingerprint = hash(payload)
        if known is None or known.fingerprint != fingerprint:
            known = _Oversized(fingerprint, 0, now)
        known.closes = CLOSES if certain else min(known.closes + 1, CLOSES)
        known.since = now
        self._oversized[topic] = known
        return topic if known.closes == CLOSES else None

    def acknowledged(self, topic: str) -> None:
        """The broker accepted a message of the topic: forget the suspicion."""
        self._oversized.pop(topic, None)

    def is_left_out(self, topic: str, payload: bytes, now: float) -> bool:
        """Return True if the message must not be sent. After `TRY_AGAIN_AFTER` it gets one more attempt."""
        known = self._oversized.get(topic)
        if known is None or known.closes < CLOSES or known.fingerprint != hash(payload):
            return False
        if now - known.since < TRY_AGAIN_AFTER:
            return True
        known.closes = CLOSES - 1
        return False
