"""One connection to the broker: its settings and deadlines, the client, and the broker's reasons in plain English.

`Connector` opens connections one after the other, and gives up what a broker does not support: MQTT 5, QoS 1 or
retained messages. A DISCONNECT of the broker is `Closed`, no answer is `TimedOut`, and both are among `LOST`.

`MqttClient` is one connection, and is used once: a reused client would send again what it could not send before. It
overrides or calls private hooks of aiomqtt and paho for what they lack: the limits of CONNACK, the reason of a
DISCONNECT, refused messages, and closing the socket at any moment. `tests/unit/test_mqtt_hooks.py` fails when a version
no longer has one of them. What a broker sends is bounded by `BoundedClient`.

aiomqtt's own timeouts are off: `asyncio.wait_for` may lose a cancellation (Python 3.11), `asyncio.timeout` does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import aiomqtt
from aiomqtt import MqttCodeError, ProtocolVersion
from paho.mqtt import client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from correlator.config.schema import Mqtt, client_context
from correlator.errors import ForeignListener
from correlator.listeners import check_listener
from correlator.sinks.lateness import LATE_AFTER, ON_TIME_BELOW
from correlator.sinks.mqtt.incoming import MAX_PACKET, BoundedClient, Violation
from correlator.sinks.mqtt.topics import MqttMessage

T = TypeVar("T")


WINDOW = 20
"""Maximum number of messages in flight. Brokers accept few by default: more would wait in the client and grow old."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MqttTimings:
    """Deadlines and intervals of one sink, in seconds."""

    keepalive: int = 5
    """Silence after which the client pings the broker, and after which it gives up on the answer."""

    connect_timeout: float = 10.0
    """For name resolution, socket and CONNACK together."""

    close_timeout: float = 1.0
    """To send DISCONNECT."""

    publish_timeout: float = 5.0
    """To wait for PUBACK."""

    call_timeout: float = 5.0
    """To wait for SUBACK and UNSUBACK."""

    steady_after: float = 10.0
    """A connection must last so long to reset the retry delay. A broker that closes at once is not hammered."""

    index_interval: float = 10.0
    """Between two messages with the position in the index."""

    quiet_after: float = 1.0
    quiet_within: float = 60.0
    """MQTT does not mark the end of the retained messages: assume it after this time without one, or in total."""

    late_check_interval: float = 1.0
    """Between two checks of how long messages have waited."""

    late_after: float = LATE_AFTER
    """What has waited for longer is late."""

    on_time_below: float = ON_TIME_BELOW
    """The broker keeps up again once nothing has waited for longer."""

    republish_within: float = 60.0
    """What is published again over a new connection is late after this time."""

    announce_every: float = 60.0
    """Between two times at which the devices are published again because Home Assistant has started."""

    flush_within: float = 4.0
    goodbye_within: float = 7.0
    """At the end: to publish what is pending, and for all last messages together."""


DEFAULT = MqttTimings()


class Connector:
    """Opens connections with the current settings, one after the other.

    `on_refused`: called with a sentence when the broker refuses a message.
    """

    def __init__(self, settings: Mqtt, timings: MqttTimings, on_refused: Callable[[str], None]) -> None:
        assert settings.url is not None, "mqtt.url is empty: there is nothing to connect to"
        self.url = settings.url
        self._settings = settings
        self._timings = timings
        self._on_refused = on_refused
        self._version = VERSIONS[settings.version][0]
        self._will_qos, self._will_retain = 1, True

    def set_credentials(self, settings: Mqtt) -> None:
        """Use the user and password of `settings` from the next connection on."""
        self._settings = replace(self._settings, username=settings.username, password=settings.password)

    @property
    def mqtt5(self) -> bool:
        """True if the newest connection speaks MQTT 5, False if it speaks 3.1.1."""
        return self._version is ProtocolVersion.V5

    @property
    def version(self) -> str:
        """The protocol of the newest connection: ``5`` or ``3.1.1``."""
        return "5" if self.mqtt5 else "3.1.1"

    @contextlib.asynccontextmanager
    async def connection(self, will: Callable[[], MqttMessage] | None = None) -> AsyncIterator[MqttClient]:
        """Open one connection, with the last will that `will` returns. Raises: one of `LOST`.

        If the block ends or is cancelled, the connection ends with a DISCONNECT. After an exception it ends without
        one, so that the broker publishes the last will.
        """
        client = await self._connect(will)
        try:
            yield client
        except LOST:
            if client.ended_by is not None:
                raise client.ended_by from None
            raise
        except asyncio.CancelledError:
            await self._disconnect(client)
            raise
        else:
            await self._disconnect(client)
        finally:
            client.drop()

    async def _disconnect(self, client: MqttClient) -> None:
        """Send DISCONNECT, after which the broker does not publish the last will."""
        with contextlib.suppress(*LOST):
            async with asyncio.timeout(self._timings.close_timeout):
                await client.__aexit__(None, None, None)

    async def _connect(self, will: Callable[[], MqttMessage] | None) -> MqttClient:
        """Connect in MQTT 5, or in 3.1.1 if the broker does not speak MQTT 5. Raises: one of `LOST`."""
        # From MQTT 5 on each time: the broker may have been upgraded since the last connection.
        self._version, *older = VERSIONS[self._settings.version]
        self._will_qos, self._will_retain = 1, True
        while True:
            try:
                return await answered((await self._create(will)).open(), self._timings.connect_timeout)
            except (aiomqtt.MqttCodeError, Unanswered) as error:
                if older and (isinstance(error, Unanswered) or code_of(error) in UNSUPPORTED_VERSION):
                    self._version = older.pop()
                elif not self._downgrade(code_of(error)):
                    raise

    def _downgrade(self, code: int | None) -> bool:
        """Give up the feature that the broker refused with `code`, each once. False if there is none to give up."""
        if code == QOS_NOT_SUPPORTED and self._will_qos:
            self._will_qos = 0
        elif code == RETAIN_NOT_SUPPORTED and self._will_retain:
            self._will_retain = False
        else:
            return False
        return True

    async def _create(self, make_will: Callable[[], MqttMessage] | None) -> MqttClient:
        settings = self._settings
        # A new context for each connection, as certificates are renewed; in a thread, as it reads files.
        tls = await asyncio.to_thread(client_context, settings.tls) if self.url.tls else None
        return MqttClient(
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
            properties=_connect_properties() if self.mqtt5 else None,
            logger=_LIBRARY,
            tls_context=tls,
            max_queued_outgoing_messages=0,
            max_inflight_messages=WINDOW,
            on_refused=self._on_refused,
        )

    def _will(self, message: MqttMessage) -> aiomqtt.Will:
        properties = json_properties(PacketTypes.WILLMESSAGE) if self.mqtt5 else None
        return aiomqtt.Will(message.topic, message.payload, self._will_qos, self._will_retain, properties)


LOST = (aiomqtt.MqttError, OSError, UnicodeError)
"""The errors of a connection that is lost or cannot be opened. An invalid host name raises `UnicodeError`."""


class TimedOut(aiomqtt.MqttError):
    """The broker did not answer."""

    def __init__(self, within: float) -> None:
        super().__init__(f"timed out: no answer within {within:g} s")


class Unanswered(aiomqtt.MqttError):
    """The broker ended the connection without an answer to CONNECT, which some do that know no MQTT 5."""

    def __init__(self) -> None:
        super().__init__("the broker ended the connection without an answer")


class Closed(aiomqtt.MqttError):
    """The broker ended the connection with a DISCONNECT, which carries the reason."""

    def __init__(self, reason: ReasonCode) -> None:
        super().__init__(f"the broker closed the connection: {describe_reason(reason)}")
        self.reason = reason


class Foreign(aiomqtt.MqttError):
    """A user of this host who is no service listens where the broker should be: nothing was sent."""


async def answered(call: Awaitable[T], within: float) -> T:
    """Await `call` for at most `within` seconds. Raises: `TimedOut`."""
    try:
        async with asyncio.timeout(within):
            return await call
    except TimeoutError:
        raise TimedOut(within) from None


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


class _Shared(Properties):
    """Properties of many messages. paho packs them for each message, which takes a tenth of the time to send it."""

    def pack(self) -> bytes:
        members = vars(self)  # paho's own `__setattr__` accepts the names of MQTT only
        if "packed" not in members:
            members["packed"] = super().pack()  # type: ignore[no-untyped-call]
        packed: bytes = members["packed"]
        return packed


@functools.cache
def _connect_properties() -> Properties:
    """Return what the daemon asks of a broker in MQTT 5: no large packets, and no texts in acknowledgements."""
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.MaximumPacketSize = MAX_PACKET
    properties.RequestProblemInformation = 0
    return properties


# -- the client


VERSIONS = {
    "auto": (ProtocolVersion.V5, ProtocolVersion.V311),
    "5": (ProtocolVersion.V5,),
    "3.1.1": (ProtocolVersion.V311,),
}
"""The protocols that a connection tries, one after the other, by `mqtt.version`."""

UNSUPPORTED_VERSION = (1, 0x84)
"""CONNACK codes for an unsupported protocol version: of a 3.1.1 broker, and of an MQTT 5 broker."""


_LIBRARY = logging.getLogger(f"{__name__}.library")
_LIBRARY.setLevel(logging.CRITICAL)
"""What aiomqtt and paho log. The sink reports each error once; they repeat some for every packet."""


_CALLBACKS = (
    *("on_connect", "on_disconnect", "on_subscribe", "on_unsubscribe", "on_message", "on_publish"),
    *("on_socket_open", "on_socket_close", "on_socket_register_write", "on_socket_unregister_write"),
)
"""What aiomqtt sets of paho's client."""


class MqttClient(aiomqtt.Client):
    """aiomqtt's client for one connection. `on_refused` is called with a sentence when the broker refuses a message."""

    maximum_packet_size = 0xFFFF_FFFF
    """Maximum number of bytes of a packet that the broker accepts."""

    receive_maximum = 0xFFFF
    maximum_qos = 2
    retain_available = True
    """The other limits of CONNACK. These are the values that MQTT 5 defines for a broker that announces none."""

    ended_by: Closed | Violation | None = None
    """Why the connection ended, if the broker has sent a DISCONNECT, or what it must not send."""

    _client: BoundedClient

    def __init__(self, *args: Any, on_refused: Callable[[str], None] = lambda _: None, **kwargs: Any) -> None:
        self.on_refused = on_refused
        context: ssl.SSLContext | None = kwargs.get("tls_context")
        self._unproven = context is None or context.verify_mode is not ssl.CERT_REQUIRED
        self._password = bool(kwargs.get("password"))
        self._acknowledgements: dict[int, asyncio.Future[None]] = {}
        """Of the messages in flight, by packet identifier."""
        super().__init__(*args, **kwargs)
        self._client.__class__ = BoundedClient  # aiomqtt takes no client

    @property
    def retained_at(self) -> float:
        """Monotonic time at which a part of a retained message was last received."""
        return self._client.retained_at

    async def publish(  # type: ignore[override]
        self, topic: str, payload: bytes, *, qos: int, retain: bool, properties: Properties | None = None
    ) -> None:
        """Publish a message, and return when the broker has acknowledged or refused it; with QoS 0 when it is written.

        aiomqtt's own method goes through all messages in flight for each one. Raises: aiomqtt.MqttError.
        """
        info = self._client.publish(topic, payload, qos, retain, properties)
        if info.rc != paho.MQTT_ERR_SUCCESS:
            raise MqttCodeError(info.rc, "the message cannot be published")
        acknowledgement = self._acknowledgements[info.mid] = self._loop.create_future()
        try:
            await acknowledgement
        finally:
            del self._acknowledgements[info.mid]

    async def read(self, on_message: Callable[[str, bytes, bool], None]) -> None:
        """Call `on_message` with each message that is not empty until the connection has ended.

        It gets the topic, the payload (the beginning of a long one, `incoming.KEPT`), and whether the broker had
        retained the message. aiomqtt's own `messages` takes a task for each. Raises: aiomqtt.MqttError.
        """
        self._client.on_received = on_message
        await asyncio.wait((self._disconnected,))
        raise aiomqtt.MqttError("disconnected") from self._disconnected.exception()

    async def open(self) -> MqttClient:
        """Connect. If this is cancelled, the socket that a thread still opens is closed. Raises: one of `LOST`."""
        entering = asyncio.ensure_future(self.__aenter__())
        try:
            return await asyncio.shield(entering)
        except BaseException:
            entering.add_done_callback(self._abandoned)
            raise

    def _abandoned(self, entering: asyncio.Future[Any]) -> None:
        """Nobody waits for this connection any more."""
        if not entering.cancelled():
            entering.exception()  # retrieved, so that asyncio does not warn about it
        self.drop()

    def drop(self) -> None:
        """Close the socket, if it is open, without a DISCONNECT. A live broker then publishes the last will."""
        for future in (self._connected, self._disconnected):
            if not future.done():
                future.set_result(None)
            elif not future.cancelled():
                future.exception()  # retrieved, so that asyncio does not warn about it
        self._client._sock_close()  # noqa: SLF001 - paho has no other way to close at once
        # What follows would keep this client and paho's until a full garbage collection, which is rare.
        self._misc_task = None
        for name in _CALLBACKS:
            setattr(self._client, name, None)

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
            self.ended_by = Closed(reason_code)
        if not self._connected.done():  # aiomqtt would wait for CONNACK anyway
            self._connected.set_exception(Unanswered())
        super()._on_disconnect(client, userdata, flags, reason_code, properties)

    def _on_subscribe(
        self, client: paho.Client, userdata: Any, mid: int, reason_codes: Any, properties: Properties | None = None
    ) -> None:
        if mid not in self._pending_subscribes:
            raise Violation("a SUBACK without a SUBSCRIBE")
        super()._on_subscribe(client, userdata, mid, reason_codes, properties)

    def _on_unsubscribe(
        self, client: paho.Client, userdata: Any, mid: int, reason_codes: Any, properties: Properties | None = None
    ) -> None:
        if mid not in self._pending_unsubscribes:
            raise Violation("an UNSUBACK without an UNSUBSCRIBE")
        super()._on_unsubscribe(client, userdata, mid, reason_codes, properties)

    def _on_publish(self, client: paho.Client, userdata: Any, mid: int, reason_code: Any, properties: Any) -> None:
        del client, userdata, properties
        if reason_code.is_failure:
            self.on_refused(describe_reason(reason_code))
        acknowledgement = self._acknowledgements.get(mid)
        if acknowledgement is not None and not acknowledgement.done():
            acknowledgement.set_result(None)

    def _on_socket_open(self, client: paho.Client, userdata: Any, sock: Any) -> None:
        """Check who listens, then do as aiomqtt does, except that an error while reading ends the connection.

        aiomqtt would handle the same packet again and again. This runs in the thread that connects, before it sends
        CONNECT.
        """

        def start() -> None:
            number = sock.fileno()
            if client.socket() is sock:
                self._loop.add_reader(number, self._read, sock)
                self._misc_task = self._loop.create_task(self._misc_loop())

        del userdata
        if self._password and self._unproven:
            try:
                check_listener(sock, "the password of the broker", "use mqtts:// with a certificate that is verified")
            except ForeignListener as error:
                raise Foreign(str(error)) from None
        self._loop.call_soon_threadsafe(start)

    def _read(self, sock: Any) -> None:
        if self._client.socket() is sock:
            self._attempt(self._client.loop_read)
        if self._client.socket() is sock and getattr(sock, "pending", int)():  # of a TLS record
            self._loop.call_soon(self._read, sock)

    def _on_socket_register_write(self, client: paho.Client, userdata: Any, sock: Any) -> None:
        """Do as aiomqtt does, but check the socket first: it may be closed by then and its number reused.

        After an error of the socket, uvloop keeps a closed handle for it, and refuses a writer (its issue 552). Nothing
        would be written then until a deadline, so the connection ends at once.
        """

        def register() -> None:
            number = sock.fileno()
            if client.socket() is sock:
                self._attempt(self._loop.add_writer, number, self._attempt, client.loop_write)

        del userdata
        self._loop.call_soon_threadsafe(register)

    def _attempt(self, call: Callable[..., object], *arguments: object) -> None:
        """Make a call. Any error of it ends the connection."""
        try:
            call(*arguments)
        except Exception as error:  # noqa: BLE001
            if isinstance(error, Violation):
                self.ended_by = error
            for future in (self._connected, self._disconnected):
                if not future.done():
                    future.set_exception(error)
            self._client._sock_close()  # noqa: SLF001 - see `drop`


# -- reason codes


PACKET_TOO_LARGE = 0x95
RETAIN_NOT_SUPPORTED = 0x9A
QOS_NOT_SUPPORTED = 0x9B


_MEANINGS = {
    0x81: "a packet of this daemon was malformed, or the broker does not understand it; see the broker's log",
    0x82: "the broker reports that a packet violates the protocol; see the broker's log",
    0x86: "the broker does not know this user and password; set mqtt.username and mqtt.password_file",
    0x87: "this user may not do that; allow publishing and subscribing below mqtt.prefix and mqtt.instance there",
    0x88: "the broker is unavailable at the moment; see the broker's log",
    0x89: "the broker is overloaded; check its load and its limits",
    0x8A: "the broker has banned this client; see the broker's log",
    0x8B: "the broker is shutting down; the connection is tried again",
    0x8D: "the broker received nothing from this daemon for longer than the keep-alive; check the network between",
    0x8E: "another client has connected with the same client ID; give each its own mqtt.client_id",
    0x90: "the broker does not accept this topic; see its rules for topic names, and mqtt.prefix",
    0x93: "more messages were in flight than the broker accepts; brokers also count messages that they refused",
    0x95: "a message was larger than the broker accepts; raise its maximum packet size, or lower jobs.max_metadata",
    0x96: "messages arrive faster than the broker allows; raise its limit of messages per second",
    0x97: "a quota of the broker is used up, of messages, connections or storage; raise it there",
    0x98: "an administrator of the broker closed the connection",
    0x99: "the broker checks payloads and does not accept this one; see the broker's log",
    0x9A: "the broker keeps no retained messages; allow them there (mosquitto: retain_available true)",
    0x9B: "the broker accepts QoS 0 only; allow QoS 1 there (mosquitto: max_qos 1)",
    0x9C: "the broker asks to use another server; set mqtt.url to it",
    0x9D: "the broker has moved to another server for good; set mqtt.url to it",
    0x9F: "the broker limits how often clients connect; raise the limit there",
}


def describe_reason(reason: ReasonCode) -> str:
    """Return, for example, ``Receive maximum exceeded (0x93): more messages were …``."""
    meaning = _MEANINGS.get(reason.value)
    return f"{reason} (0x{reason.value:02X})" + (f": {meaning}" if meaning else "")


def describe_error(error: BaseException) -> str:
    """Return the same for an error that carries a reason code, or the text of any other error."""
    if isinstance(error, MqttCodeError) and isinstance(error.rc, ReasonCode):
        return describe_reason(error.rc)
    return str(error) or type(error).__name__


def kind_of(error: BaseException) -> Hashable:
    """Return what is the same in each attempt that fails for the same reason, whatever the text says."""
    return type(error), code_of(error), getattr(error, "errno", None)


def code_of(error: BaseException) -> int | None:
    """Return the number of the code that an error carries; None for any other error."""
    if not isinstance(error, MqttCodeError):
        return None
    return error.rc.value if isinstance(error.rc, ReasonCode) else error.rc
