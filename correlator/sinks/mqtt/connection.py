"""Opening one connection to the broker: TLS, the last will, and what to give up when the broker refuses it.

aiomqtt's own timeouts are off: `asyncio.wait_for` may lose a cancellation (Python 3.11), `asyncio.timeout` does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import aiomqtt
from aiomqtt import ProtocolVersion
from msgspec.structs import replace
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from correlator.config.schema import Mqtt
from correlator.sinks.mqtt.client import LOST, UNSUPPORTED_VERSION, Client
from correlator.sinks.mqtt.reasons import QOS_NOT_SUPPORTED, RETAIN_NOT_SUPPORTED, code_of, describe_reason
from correlator.sinks.mqtt.timings import Timings
from correlator.sinks.mqtt.topics import Message
from correlator.tls import client_context

T = TypeVar("T")

log = logging.getLogger(__name__)

WINDOW = 20
"""Maximum number of messages in flight. Brokers accept few by default: more would wait in the client and grow old."""


class TimedOut(aiomqtt.MqttError):
    """The broker did not answer."""

    def __init__(self, within: float) -> None:
        super().__init__(f"timed out: no answer within {within:g} s")


class Closed(aiomqtt.MqttError):
    """The broker ended the connection with a DISCONNECT, which carries the reason."""

    def __init__(self, reason: ReasonCode) -> None:
        super().__init__(f"the broker closed the connection: {describe_reason(reason)}")
        self.reason = reason


class Connector:
    """Opens connections with the current settings, one after the other.

    `on_refused`: called with a sentence when the broker refuses a message.
    """

    def __init__(self, settings: Mqtt, timings: Timings, on_refused: Callable[[str], None]) -> None:
        assert settings.url is not None, "mqtt.url is empty: there is nothing to connect to"
        self.url = settings.url
        self._settings = settings
        self._timings = timings
        self._on_refused = on_refused
        self._version = ProtocolVersion.V5
        self._will_qos, self._will_retain = 1, True

    def set_credentials(self, settings: Mqtt) -> None:
        """Use the user and password of `settings` from the next connection on."""
        self._settings = replace(self._settings, username=settings.username, password=settings.password)

    @property
    def mqtt5(self) -> bool:
        """True if the newest connection speaks MQTT 5, False if it speaks 3.1.1."""
        return self._version is ProtocolVersion.V5

    @contextlib.asynccontextmanager
    async def connection(self, will: Callable[[], Message] | None = None) -> AsyncIterator[Client]:
        """Open one connection, with the last will that `will` returns. Raises: one of `LOST`.

        If the block ends or is cancelled, the connection ends with a DISCONNECT. After an exception it ends without
        one, so that the broker publishes the last will.
        """
        client = await self._connect(will)
        try:
            yield client
        except LOST:
            if client.disconnect_reason is not None:
                raise Closed(client.disconnect_reason) from None
            raise
        except asyncio.CancelledError:
            await self._disconnect(client)
            raise
        else:
            await self._disconnect(client)
        finally:
            client.drop()

    async def _disconnect(self, client: Client) -> None:
        """Send DISCONNECT, after which the broker does not publish the last will."""
        with contextlib.suppress(*LOST):
            async with asyncio.timeout(self._timings.close_timeout):
                await client.__aexit__(None, None, None)

    async def _connect(self, will: Callable[[], Message] | None) -> Client:
        """Connect in MQTT 5, or in 3.1.1 if the broker does not speak MQTT 5. Raises: one of `LOST`."""
        self._version = ProtocolVersion.V5  # The broker may have been upgraded since the last connection.
        self._will_qos, self._will_retain = 1, True
        while True:
            try:
                return await answered((await self._create(will)).open(), self._timings.connect_timeout)
            except aiomqtt.MqttCodeError as error:
                if not self._downgrade(code_of(error)):
                    raise

    def _downgrade(self, code: int | None) -> bool:
        """Give up the feature that the broker refused with `code`, each once. False if there is none to give up."""
        if code in UNSUPPORTED_VERSION and self._version is ProtocolVersion.V5:
            log.info("the broker at %s refuses MQTT 5: falling back to 3.1.1", self.url)
            self._version = ProtocolVersion.V311
        elif code == QOS_NOT_SUPPORTED and self._will_qos:
            self._will_qos = 0
        elif code == RETAIN_NOT_SUPPORTED and self._will_retain:
            self._will_retain = False
        else:
            return False
        return True

    async def _create(self, make_will: Callable[[], Message] | None) -> Client:
        settings = self._settings
        # A new context for each connection, as certificates are renewed; in a thread, as it reads files.
        tls = await asyncio.to_thread(client_context, settings.tls) if self.url.tls else None
        client = Client(
            self.url.host,
            self.url.port,
            username=settings.username or None,
            password=settings.password.reveal() or None,
            identifier=settings.client_id or f"correlator-{settings.instance}",
            protocol=self._version,
            will=self._will(make_will()) if make_will is not None else None,
            keepalive=self._timings.keepalive,
            timeout=math.inf,
            clean_session=None if self.mqtt5 else True,
            tls_context=tls,
            max_queued_outgoing_messages=0,
            max_inflight_messages=WINDOW,
        )
        client.pending_calls_threshold = WINDOW * 2
        client.on_refused = self._on_refused
        return client

    def _will(self, message: Message) -> aiomqtt.Will:
        properties = json_properties(PacketTypes.WILLMESSAGE) if self.mqtt5 else None
        return aiomqtt.Will(message.topic, message.payload, self._will_qos, self._will_retain, properties)


async def answered(call: Awaitable[T], within: float) -> T:
    """Await `call` for at most `within` seconds. Raises: `TimedOut`."""
    try:
        async with asyncio.timeout(within):
            return await call
    except TimeoutError:
        raise TimedOut(within) from None


class _Shared(Properties):
    """Properties of many messages. paho packs them for each message, which takes a tenth of the time to send it."""

    def pack(self) -> bytes:
        members = vars(self)  # paho's own `__setattr__` accepts the names of MQTT only
        if "packed" not in members:
            members["packed"] = super().pack()  # type: ignore[no-untyped-call]
        packed: bytes = members["packed"]
        return packed


@functools.cache
def json_properties(kind: int, expiry: int | None = None) -> Properties:
    """Return the MQTT 5 properties of a message. `kind`: a value of `PacketTypes`; `expiry`: seconds.

    The result is cached and shared. It must not be changed.
    """
    properties = _Shared(kind)  # type: ignore[no-untyped-call]
    properties.ContentType = "application/json"
    if expiry is not None:
        properties.MessageExpiryInterval = expiry
    return properties
