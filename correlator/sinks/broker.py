"""One connection to a broker: aiomqtt's client, where it has to end at any moment and to tell what was refused.

A client object is used once: a reused one would send again what it could not send before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiomqtt
from paho.mqtt import client as paho
from paho.mqtt.properties import Properties

UNSUPPORTED_VERSION = (1, 0x84)
"""CONNACK codes for a protocol version that is not spoken: of a 3.1.1 broker, and of an MQTT 5 one."""

LOST = (aiomqtt.MqttError, OSError, UnicodeError)
"""What a broker that is away raises; a host name that cannot be one is a `UnicodeError`."""


class Client(aiomqtt.Client):
    """aiomqtt's client for one connection: it can be dropped at any moment, and tells what the broker refuses."""

    largest = 0xFFFF_FFFF
    """Bytes of the largest packet that the broker takes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.on_refused: Callable[[str], None] = lambda _: None
        super().__init__(*args, **kwargs)

    async def open(self) -> Client:
        """Connect, or leave nothing behind: cancelled while a thread is at it, what the thread brings is dropped."""
        entering = asyncio.ensure_future(self.__aenter__())
        try:
            return await asyncio.shield(entering)
        except BaseException:
            entering.add_done_callback(lambda _: self.drop())
            raise

    def drop(self) -> None:
        """Close the socket, if it is open, without a DISCONNECT: the broker may not listen; else it tells the will."""
        for future in (self._connected, self._disconnected):
            if not future.done():
                future.set_result(None)
            elif not future.cancelled():
                future.exception()  # seen, so that asyncio does not warn of it
        self._client._sock_close()  # noqa: SLF001 - paho has no other way to close at once

    def _on_connect(
        self, client: paho.Client, userdata: Any, flags: Any, reason_code: Any, properties: Properties | None = None
    ) -> None:
        self.largest = getattr(properties, "MaximumPacketSize", self.largest)
        super()._on_connect(client, userdata, flags, reason_code, properties)

    def _on_disconnect(
        self, client: paho.Client, userdata: Any, flags: Any, reason_code: Any, properties: Properties | None = None
    ) -> None:
        if not self._connected.done():  # aiomqtt would wait for the answer all the same
            self._connected.set_exception(aiomqtt.MqttError("the connection ended before the broker answered"))
        super()._on_disconnect(client, userdata, flags, reason_code, properties)

    def _on_publish(self, client: paho.Client, userdata: Any, mid: int, reason_code: Any, properties: Any) -> None:
        if reason_code.is_failure:
            self.on_refused(str(reason_code))
        super()._on_publish(client, userdata, mid, reason_code, properties)

    def _on_socket_register_write(self, client: paho.Client, userdata: Any, sock: Any) -> None:
        """As aiomqtt does it, but for a look at the socket: until then it may be closed, and its number another's."""

        def write() -> None:
            try:
                client.loop_write()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the end of the connection
                if not self._disconnected.done():
                    self._disconnected.set_exception(error)

        def register() -> None:
            number = sock.fileno()
            if client.socket() is sock:
                self._loop.add_writer(number, write)

        del userdata
        self._loop.call_soon_threadsafe(register)
