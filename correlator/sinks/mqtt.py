"""The MQTT sink: keeps a broker's retained topics as the index has them, and tells it every event.

One client object is one connection: a reused one would send again what it could not send before, over newer states.
What the broker has not acknowledged counts as not sent. Nothing here makes the hub wait: it is heard synchronously,
and states are made when they are sent, so a slow broker gets fewer of them, never older ones.

aiomqtt's own timeouts are off: `asyncio.wait_for` may lose a cancellation (Python 3.11), `asyncio.timeout` does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Iterable
from typing import Any

import aiomqtt
from aiomqtt import ProtocolVersion
from paho.mqtt import client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from correlator import metrics
from correlator.backoff import Backoff
from correlator.hub import Batch, Hub
from correlator.jobs.model import Micros
from correlator.settings import Mqtt
from correlator.sinks.topics import Events, Message, Owed, Parcel, State, Topics, Tree
from correlator.tls import client_context

log = logging.getLogger(__name__)

WINDOW = 20
"""Messages on their way at once: more than brokers take by default would wait in the client, and grow old there."""

KEEPALIVE = 5
"""Seconds of silence after which the broker is pinged, and again after which it is given up."""

PUBLISH_TIMEOUT = 5.0
CALL_TIMEOUT = 5.0
"""Seconds for an acknowledgement, and for any other answer."""

STEADY_AFTER = 10.0
"""Seconds that a connection must last to count as a success: a broker that throws us out at once is not hammered."""

INDEX_INTERVAL = 10.0
LOADING_POLL = 0.1

QUIET_AFTER = 1.0
QUIET_WITHIN = 60.0
"""MQTT does not say when all retained messages have come: after so many seconds without one; at most so long."""

FLUSH_WITHIN = 4.0
GOODBYE_WITHIN = 7.0
CLOSE_WITHIN = 1.0
"""Seconds at the end for what is pending, for all that is said, and to disconnect."""

BACKSTOP = 86_400
"""Seconds over the retention for which a broker keeps an ended job, should we never come back to remove it."""

PACKET_HEAD = 64
"""Bytes, at most, of a message besides its topic and payload."""

LONGEST_TOPIC = 65_535
"""Bytes that MQTT can write of a topic. One that is longer is left out: external IDs in attrs have no bound."""

UNSUPPORTED_VERSION = (1, 0x84)
"""CONNACK codes for a protocol version that is not spoken: of a 3.1.1 broker, and of an MQTT 5 one."""

LOST = (aiomqtt.MqttError, OSError)
"""What a broker that is away raises; a `TimeoutError` is an `OSError`."""


class MqttSink:
    """Satisfies `correlator.sinks.Sink`.

    `retention`: seconds that ended jobs stay in memory; `owed`: events that an earlier run still had to tell.
    """

    def __init__(
        self,
        settings: Mqtt,
        *,
        retention: float = 86_400.0,
        owed: Iterable[Owed] = (),
        backoff: Backoff | None = None,
    ) -> None:
        assert settings.url is not None, "mqtt.url is empty: there is nothing to connect to"
        self._settings = settings
        self._url = settings.url
        self._topics = Topics(f"{settings.prefix}/{settings.instance}")
        self._expiry = int(retention) + BACKSTOP
        self._events = Events(owed)
        self._tree: Tree | None = None
        self._version = ProtocolVersion.V5
        self._backoff = backoff or Backoff(0.2, 2.0, 10.0)
        self._error: str | None = None
        self._wake = asyncio.Event()
        self._told = asyncio.Event()
        self._largest: int | None = None
        """Bytes of a packet that the broker takes, where it says so."""
        self.connected = False

    def owed(self) -> list[Owed]:
        """The events that the broker has not acknowledged, in order: for the next run of the daemon."""
        return list(self._events)

    def describe(self) -> dict[str, Any]:
        """For readiness."""
        return {
            "ok": self.connected,
            "connected": self.connected,
            "pending": self._tree.pending if self._tree is not None else len(self._events),
            "error": self._error,
        }

    async def run(self, hub: Hub) -> None:
        """Publish until cancelled, then say goodbye, which takes 8 s at most."""
        tree = self._tree = Tree(self._topics, hub.index, hub.epoch, self._events)

        def hear(batch: Batch) -> None:
            if dropped := tree.hear(batch):
                metrics.MQTT_EVENTS_DROPPED.inc(dropped)
            self._wake.set()

        metrics.MQTT_PENDING.set_function(lambda: tree.pending)
        leave = hub.listen(hear)
        try:
            while True:
                began = time.monotonic()
                try:
                    await asyncio.create_task(self._connection(hub, tree), name="mqtt connection")
                except LOST as error:
                    self._away(error)
                if time.monotonic() - began >= STEADY_AFTER:
                    self._backoff.reset()
                await asyncio.sleep(self._backoff.next())
        finally:
            leave()

    async def _connection(self, hub: Hub, tree: Tree) -> None:
        """Until the connection is lost, which raises one of `LOST`, or the task is cancelled."""
        async with self._client(tree) as client:
            self.connected, self._error = True, None
            metrics.MQTT_CONNECTED.set(1)
            log.info("connected to the broker at %s", self._url)
            pump = asyncio.create_task(self._pump(client, hub, tree), name="mqtt-publish")
            tasks = {
                pump,
                asyncio.create_task(self._read(client, tree), name="mqtt-read"),
                asyncio.create_task(self._beat(client, hub, tree), name="mqtt-index"),
                asyncio.create_task(self._sweep(client, hub), name="mqtt-sweep"),
            }
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
                for task in done:
                    task.result()
            except asyncio.CancelledError:
                await self._goodbye(client, hub, tree, pump)
                raise
            finally:
                self.connected = False
                metrics.MQTT_CONNECTED.set(0)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                tree.end()

    @contextlib.asynccontextmanager
    async def _client(self, tree: Tree) -> AsyncIterator[aiomqtt.Client]:
        """One connection. It ends with a DISCONNECT if the task is cancelled, else without: the last will is told."""
        client = self._make(tree)
        try:
            await self._connect(client)
            try:
                yield client
            except asyncio.CancelledError:
                with contextlib.suppress(*LOST):
                    async with asyncio.timeout(CLOSE_WITHIN):
                        await client.__aexit__(None, None, None)
                raise
        finally:
            _cut(client)

    async def _connect(self, client: aiomqtt.Client) -> None:
        """In MQTT 5; a broker that does not speak it is asked in 3.1.1 from then on."""
        try:
            await _answered(client.__aenter__(), CALL_TIMEOUT * 2)
        except aiomqtt.MqttCodeError as error:
            code = getattr(error.rc, "value", error.rc)
            if self._version is ProtocolVersion.V5 and code in UNSUPPORTED_VERSION:
                log.info("the broker at %s refuses MQTT 5: falling back to 3.1.1", self._url)
                self._version = ProtocolVersion.V311
                self._backoff.reset()
            raise

    def _make(self, tree: Tree) -> aiomqtt.Client:
        settings = self._settings
        will = tree.status("offline", _now())
        client = aiomqtt.Client(
            self._url.host,
            self._url.port,
            username=settings.username or None,
            password=settings.password.reveal() or None,
            identifier=settings.client_id or f"correlator-{settings.instance}",
            protocol=self._version,
            will=aiomqtt.Will(will.topic, will.payload, qos=1, retain=True),
            keepalive=KEEPALIVE,
            timeout=math.inf,
            clean_session=True if self._version is ProtocolVersion.V311 else None,
            tls_context=client_context(settings.tls) if self._url.tls else None,
            max_queued_outgoing_messages=0,
            max_inflight_messages=WINDOW,
        )
        client.pending_calls_threshold = WINDOW * 2
        self._overhear(client)
        return client

    def _overhear(self, client: aiomqtt.Client) -> None:
        """What the broker says of its limits and of what it refuses, which aiomqtt keeps to itself."""
        inner = client._client  # noqa: SLF001
        on_connect: Any = inner.on_connect
        on_publish: Any = inner.on_publish
        self._largest = None

        def connected(of: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
            self._largest = getattr(properties, "MaximumPacketSize", None)
            on_connect(of, userdata, flags, reason, properties)

        def published(of: Any, userdata: Any, mid: int, reason: Any, properties: Any) -> None:
            if reason.is_failure:
                self._refused(str(reason))
            on_publish(of, userdata, mid, reason, properties)

        inner.on_connect = connected
        inner.on_publish = published

    # -- what runs while there is a connection

    async def _pump(self, client: aiomqtt.Client, hub: Hub, tree: Tree) -> None:
        """Everything that is retained, then what changes, as far as the window allows."""
        await _loaded(hub)
        tree.begin()
        room = asyncio.Semaphore(WINDOW - 1)  # one is for the status and the index
        try:
            async with asyncio.TaskGroup() as deliveries:
                while True:
                    await room.acquire()
                    parcel = await self._next(tree)
                    delivery = deliveries.create_task(self._deliver(client, tree, parcel))
                    delivery.add_done_callback(lambda _: room.release())
        except BaseExceptionGroup as group:
            _, unexpected = group.split(LOST)
            raise unexpected or group.exceptions[0] from None

    async def _next(self, tree: Tree) -> Parcel:
        while True:
            self._wake.clear()
            now = time.monotonic()
            if (parcel := tree.take(now)) is not None:
                return parcel
            due = tree.due()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due - now) if due is not None else None):
                    await self._wake.wait()

    async def _deliver(self, client: aiomqtt.Client, tree: Tree, parcel: Parcel) -> None:
        for message in parcel.messages:
            await self._send(client, message)
        tree.acknowledged(parcel.tag)
        self._wake.set()  # it may have changed meanwhile, and be due at once

    async def _beat(self, client: aiomqtt.Client, hub: Hub, tree: Tree) -> None:
        """The daemon's own word, and every 10 s how far it is."""
        if hub.loading is not None:
            await self._say(client, tree, "starting")
            await _loaded(hub)
        await self._say(client, tree, "online")
        while True:
            await self._send(client, tree.index())
            await asyncio.sleep(INDEX_INTERVAL)

    async def _sweep(self, client: aiomqtt.Client, hub: Hub) -> None:
        """Have the broker tell what it holds, which `_read` shows to the tree: an earlier run may have left some of it.

        With QoS 0, of which a broker queues more. What it drops even so is found after another connect, or expires.
        """
        await _loaded(hub)
        filters = list(self._topics.filters)
        asked: Any = [(f, 0) for f in filters]
        if self._version is ProtocolVersion.V5:
            asked = [(f, SubscribeOptions(qos=0, noLocal=True)) for f in filters]
        await _answered(client.subscribe(asked), CALL_TIMEOUT)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(QUIET_WITHIN):
                while True:
                    self._told.clear()
                    async with asyncio.timeout(QUIET_AFTER):
                        await self._told.wait()
        await _answered(client.unsubscribe(filters), CALL_TIMEOUT)

    async def _read(self, client: aiomqtt.Client, tree: Tree) -> None:
        """Always read: a broker that closes is noticed here."""
        async for message in client.messages:
            if message.retain and message.payload:
                self._told.set()
                tree.found(str(message.topic), message.payload)
                self._wake.set()

    async def _goodbye(self, client: aiomqtt.Client, hub: Hub, tree: Tree, pump: asyncio.Task[None]) -> None:
        """Stopping, what is pending as far as time allows, offline."""
        with contextlib.suppress(*LOST):
            async with asyncio.timeout(GOODBYE_WITHIN):
                await self._say(client, tree, "stopping")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(FLUSH_WITHIN):
                        while hub.loading is None and tree.pending and not pump.done():  # noqa: ASYNC110
                            await asyncio.sleep(0.01)
                await self._say(client, tree, "offline")

    async def _say(self, client: aiomqtt.Client, tree: Tree, state: State) -> None:
        await self._send(client, tree.status(state, _now()))

    async def _send(self, client: aiomqtt.Client, message: Message) -> None:
        """Returns when the broker has acknowledged or refused it. Raises one of `LOST`.

        A message that it would close the connection for is left out.
        """
        if len(message.topic) > LONGEST_TOPIC:
            self._refused(f"a topic over {LONGEST_TOPIC} bytes")
            return
        if self._largest is not None and len(message.topic) + len(message.payload) + PACKET_HEAD > self._largest:
            self._refused(f"over {self._largest} bytes")
            return
        properties = None
        if self._version is ProtocolVersion.V5:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.ContentType = "application/json"
            if message.expires:
                properties.MessageExpiryInterval = self._expiry
        await _answered(
            client.publish(message.topic, message.payload, qos=1, retain=message.retain, properties=properties),
            PUBLISH_TIMEOUT,
        )
        metrics.MQTT_PUBLISHED.inc()

    def _refused(self, why: str) -> None:
        metrics.MQTT_REFUSED.inc()
        words = f"the broker refuses messages: {why}"
        if words != self._error:
            log.warning("%s", words)
        self._error = words

    def _away(self, error: BaseException) -> None:
        words = str(error) or type(error).__name__
        if words != self._error:
            log.warning("the broker at %s is away: %s", self._url, words)
        self._error = words


async def _answered(call: Awaitable[object], within: float) -> None:
    try:
        async with asyncio.timeout(within):
            await call
    except TimeoutError:
        raise aiomqtt.MqttError(f"timed out: no answer within {within:g} s") from None


async def _loaded(hub: Hub) -> None:
    while hub.loading is not None:  # noqa: ASYNC110 - the hub tells nobody, and it is once a start
        await asyncio.sleep(LOADING_POLL)


def _now() -> Micros:
    return time.time_ns() // 1000


def _cut(client: aiomqtt.Client) -> None:
    """Close the connection if it is still open, at once and without a DISCONNECT, which aiomqtt cannot.

    The client notices the end of its socket when it reads, and cleans up after itself.
    """
    inner, ended = client._client, client._disconnected  # noqa: SLF001
    sock: Any = inner.socket()
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        # An attempt that was given up leaves cancelled futures, over which its callbacks stumble.
        with contextlib.suppress(OSError, ValueError, asyncio.CancelledError, asyncio.InvalidStateError):
            while inner.socket() is not None and inner.loop_read() == paho.MQTT_ERR_SUCCESS:
                pass
    if ended.done() and not ended.cancelled():
        ended.exception()  # seen, so that asyncio does not warn of it
