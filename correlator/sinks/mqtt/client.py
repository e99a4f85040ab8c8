"""One connection to a broker: the adapter over aiomqtt and paho.

It adds what their public interface lacks: the limits that the broker announces in CONNACK, the reason of its
DISCONNECT, the messages that it refuses, and closing the socket at any moment. For these it overrides or calls private
hooks of both libraries; `tests/unit/test_mqtt_hooks.py` names each and fails when a version no longer has it.

A client object is used once: a reused one would send again what it could not send before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiomqtt
from paho.mqtt import client as paho
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from correlator.sinks.mqtt.reasons import describe_reason

UNSUPPORTED_VERSION = (1, 0x84)
"""CONNACK codes for an unsupported protocol version: of a 3.1.1 broker, and of an MQTT 5 broker."""

LOST = (aiomqtt.MqttError, OSError, UnicodeError)
"""The errors of a connection that is lost or cannot be opened. An invalid host name raises `UnicodeError`."""


class Client(aiomqtt.Client):
    """aiomqtt's client for one connection. `on_refused` is called with a sentence when the broker refuses a message."""

    maximum_packet_size = 0xFFFF_FFFF
    """Maximum number of bytes of a packet that the broker accepts."""

    receive_maximum = 0xFFFF
    maximum_qos = 2
    retain_available = True
    """The other limits of CONNACK. These are the values that MQTT 5 defines for a broker that announces none."""

    disconnect_reason: ReasonCode | None = None
    """The reason of the broker's DISCONNECT, if it sent one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.on_refused: Callable[[str], None] = lambda _: None
        self.on_retained: Callable[[str, bytes], None] | None = None
        """Called with topic and payload of each retained message. None: messages go to `messages`, a task for each."""
        super().__init__(*args, **kwargs)

    async def lost(self) -> None:
        """Wait until the connection has ended. Raises: aiomqtt.MqttError."""
        await asyncio.wait((self._disconnected,))
        raise aiomqtt.MqttError("disconnected") from self._disconnected.exception()

    async def open(self) -> Client:
        """Connect. If this is cancelled, the socket that a thread still opens is closed. Raises: one of `LOST`."""
        entering = asyncio.ensure_future(self.__aenter__())
        try:
            return await asyncio.shield(entering)
        except BaseException:
            entering.add_done_callback(lambda _: self.drop())
            raise

    def drop(self) -> None:
        """Close the socket, if it is open, without a DISCONNECT. A live broker then publishes the last will."""
        for future in (self._connected, self._disconnected):
            if not future.done():
                future.set_result(None)
            elif not future.cancelled():
                future.exception()  # retrieved, so that asyncio does not warn about it
        self._client._sock_close()  # noqa: SLF001 - paho has no other way to close at once

    def _on_connect(
        self, client: paho.Client, userdata: Any, flags: Any, reason_code: Any, properties: Properties | None = None
    ) -> None:
        self.maximum_packet_size = getattr(properties, "MaximumPacketSize", self.maximum_packet_size)
        self.receive_maximum = getattr(properties, "ReceiveMaximum", self.receive_maximum)
        self.maximum_qos = getattr(properties, "MaximumQoS", self.maximum_qos)
        self.retain_available = bool(getattr(properties, "RetainAvailable", self.retain_available))
        super()._on_connect(client, userdata, flags, reason_code, properties)

    def _on_disconnect(
        self, client: paho.Client, userdata: Any, flags: Any, reason_code: Any, properties: Properties | None = None
    ) -> None:
        if getattr(flags, "is_disconnect_packet_from_server", False):
            self.disconnect_reason = reason_code
        if not self._connected.done():  # aiomqtt would wait for CONNACK anyway
            self._connected.set_exception(aiomqtt.MqttError("the connection ended before the broker answered"))
        super()._on_disconnect(client, userdata, flags, reason_code, properties)

    def _on_message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        if self.on_retained is None:
            super()._on_message(client, userdata, message)
        elif message.retain and message.payload:
            self.on_retained(message.topic, bytes(message.payload))

    def _on_publish(self, client: paho.Client, userdata: Any, mid: int, reason_code: Any, properties: Any) -> None:
        if reason_code.is_failure:
            self.on_refused(describe_reason(reason_code))
        super()._on_publish(client, userdata, mid, reason_code, properties)

    def _on_socket_register_write(self, client: paho.Client, userdata: Any, sock: Any) -> None:
        """Do as aiomqtt does, but check the socket first: it may be closed by then and its number reused.

        After an error of the socket, uvloop keeps a closed handle for it, and refuses a writer (its issue 552). Nothing
        would be written then until a deadline, so the connection ends at once.
        """

        def attempt(call: Callable[[], object]) -> None:
            try:
                call()
            except Exception as error:  # noqa: BLE001 - any error ends the connection
                if not self._disconnected.done():
                    self._disconnected.set_exception(error)

        def register() -> None:
            number = sock.fileno()
            if client.socket() is sock:
                attempt(lambda: self._loop.add_writer(number, lambda: attempt(client.loop_write)))

        del userdata
        self._loop.call_soon_threadsafe(register)
