"""paho's client, with a bound for everything that a broker sends.

Problem: paho stores whatever arrives. A packet may have 256 MB, which is copied four times; a message of QoS 2 waits
for its release without a limit; the time to read properties grows with the square of their number; and each PINGREQ or
PUBREC puts an answer into a queue, whether the broker reads it or not. A TLS record without data counts as nothing.

Model: the daemon subscribes with QoS 0 and uses topics, so few kinds of packets are expected from a broker, and all of
them are short, except PUBLISH. Of a longer PUBLISH only the beginning is kept, with the topic. Its properties are
skipped. Any other packet that is unexpected or too long is a `Violation`, which ends the connection. TLS has its own
socket (`tls_socket`).

It overrides private methods of paho for this, because nothing public does it.
`tests/integration/test_mqtt_incoming.py` fails when a version does no longer call them.
"""

from __future__ import annotations

import contextlib
import math
import socket
import time
from collections.abc import Callable
from typing import Self

import aiomqtt
from paho.mqtt import client as paho
from paho.mqtt.enums import MQTTErrorCode

from correlator.sinks.mqtt.tls_socket import TlsSocket

MAX_PACKET = 16 * 1024 * 1024
"""Bytes. In MQTT 5 the broker is asked to leave out larger packets. No state of a job is larger."""

KEPT = 16 * 1024
"""Bytes that are kept of a packet. A message with a longer topic is ignored: no daemon has written it."""

STEP = 0.0005
"""Seconds for which packets are handled before other work runs."""

PIECE = 64 * 1024
"""Bytes that are read from the socket at once."""

_LONGEST: dict[int, int] = {
    paho.CONNACK: 2_048,
    paho.DISCONNECT: 2_048,
    paho.PUBACK: 256,
    paho.SUBACK: 256,
    paho.UNSUBACK: 256,
    paho.PINGRESP: 0,
}
"""Maximum bytes of each kind of packet besides PUBLISH. Acknowledgements have no properties: CONNECT asks for none."""

_RETAIN, _QOS, _QOS_1 = 0x01, 0x06, 0x02


class Violation(aiomqtt.MqttError):
    """The broker sent what it must not send."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the broker violates MQTT: {what}")


class BoundedClient(paho.Client):
    """A client that gets messages with QoS 0 only. Its methods raise `Violation` while they read."""

    on_received: Callable[[str, bytes, bool], None] | None = None
    """Called with topic, the beginning of the payload, and whether it was retained, of messages that are not empty."""

    retained_at = -math.inf
    """Monotonic time at which a part of a retained message was last received."""

    _has_connack = False

    def loop_read(self, max_packets: int = 1) -> MQTTErrorCode:
        """Handle packets for `STEP` seconds at most. paho handles as many as there are messages in flight.

        The CONNACK is handled alone: aiomqtt forgets the end of a connection that comes with it.
        """
        del max_packets
        until = time.monotonic() + (STEP if self._has_connack else 0.0)
        while self.socket() is not None:
            code = self._packet_read()
            if code > 0:
                return self._loop_rc_handle(code)
            if code == paho.MQTT_ERR_AGAIN or time.monotonic() >= until:
                return paho.MQTT_ERR_SUCCESS
        return paho.MQTT_ERR_NO_CONN

    def _sock_recv(self, bufsize: int) -> bytes:
        packet = self._in_packet
        if packet["remaining_length"] > KEPT and not isinstance(packet["packet"], _Beginning):
            packet["packet"] = _Beginning()
        received = super()._sock_recv(min(bufsize, PIECE))
        if packet["command"] & (0xF0 | _RETAIN) == paho.PUBLISH | _RETAIN:
            self.retained_at = time.monotonic()
        return received

    def _ssl_wrap_socket(self, tcp_sock: socket.socket) -> TlsSocket:  # type: ignore[override]
        assert self._ssl_context is not None
        try:
            secured = TlsSocket(tcp_sock, self._ssl_context, self._host)
            secured.do_handshake(self._connect_timeout)
        except BaseException:
            tcp_sock.close()
            raise
        return secured

    def _packet_handle(self) -> MQTTErrorCode:
        kind, length = self._in_packet["command"] & 0xF0, self._in_packet["remaining_length"]
        if self._has_connack == (kind == paho.CONNACK):
            raise Violation("its first packet, and no other, must be a CONNACK")
        self._has_connack = True
        if kind == paho.PUBLISH:
            return self._handle_publish()
        if kind not in _LONGEST:
            raise Violation(f"a packet of type {kind >> 4} was not to be expected")
        if length > _LONGEST[kind]:
            raise Violation(f"a packet of type {kind >> 4} has {length:,} bytes")
        try:
            return super()._packet_handle()
        except Violation:
            raise
        except Exception as error:
            raise Violation(f"a packet of type {kind >> 4} is malformed") from error

    def _handle_publish(self) -> MQTTErrorCode:
        """Pass on a message. paho would read all its properties, and copy its payload three times.

        aedes sends retained messages once more with QoS 1. They are not acknowledged: what waits to be sent would have
        no bound then.
        """
        head, packet = self._in_packet["command"], self._in_packet["packet"]
        if head & _QOS > _QOS_1:
            raise Violation("a message has a QoS that was not subscribed")
        end = 2 + int.from_bytes(packet[:2], "big")
        start = end + 2 if head & _QOS else end  # after the packet identifier
        if self.protocol == paho.MQTTv5 and end < KEPT:
            start += _block(bytes(packet[start : start + 4]))
        if start > (length := self._in_packet["remaining_length"]):
            raise Violation("a message is shorter than its topic and properties")
        if end < KEPT and start < length and self.on_received is not None:
            with contextlib.suppress(UnicodeDecodeError):  # a topic that no daemon has written
                self.on_received(bytes(packet[2:end]).decode(), bytes(packet[start:]), bool(head & _RETAIN))
        return paho.MQTT_ERR_SUCCESS


class _Beginning(bytearray):
    """The first `KEPT` bytes of what is added."""

    def __iadd__(self, more: bytes) -> Self:  # type: ignore[override, misc]
        self.extend(more[: KEPT - len(self)])
        return self


def _block(beginning: bytes) -> int:
    """Return how many bytes a block has that begins with its own length, a variable byte integer."""
    length = 0
    for n, byte in enumerate(beginning):
        length |= (byte & 0x7F) << 7 * n
        if not byte & 0x80:
            return n + 1 + length
    raise Violation("a length is malformed")
