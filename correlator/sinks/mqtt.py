"""The MQTT sink: keeps a broker's retained topics as the index has them, and tells it every event.

One client object is one connection: a reused one would send again what it could not send before, over newer states.
What the broker has not acknowledged counts as not sent. Nothing here makes the hub wait: it is heard synchronously,
and states are made when they are sent, so a slow broker gets fewer of them, never older ones.

aiomqtt's own timeouts are off: `asyncio.wait_for` may lose a cancellation (Python 3.11), `asyncio.timeout` does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, TypeVar

import aiomqtt
from aiomqtt import ProtocolVersion
from msgspec.structs import replace
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from correlator import metrics
from correlator.backoff import Backoff
from correlator.hub import Batch, Hub
from correlator.jobs.model import Micros
from correlator.settings import Mqtt
from correlator.sinks.broker import LOST, UNSUPPORTED_VERSION, Client
from correlator.sinks.payloads import DaemonState
from correlator.sinks.topics import Events, Message, Owed, Parcel, Topics, Tree
from correlator.tls import client_context

T = TypeVar("T")

log = logging.getLogger(__name__)

WINDOW = 20
"""Messages on their way at once: more than brokers take by default would wait in the client, and grow old there."""

KEEPALIVE = 5
"""Seconds of silence after which the broker is pinged, and again after which it is given up."""

PUBLISH_TIMEOUT = 5.0
CALL_TIMEOUT = 5.0
CONNECT_TIMEOUT = 10.0
"""Seconds for an acknowledgement, for any other answer, and for name, socket and CONNACK together."""

STEADY_AFTER = 10.0
"""Seconds that a connection must last to count as a success: a broker that throws us out at once is not hammered."""

LOOK_EVERY = 0.5
"""Seconds between two looks at whether a message has waited for too long."""

INDEX_INTERVAL = 10.0
STUCK_AFTER = 90.0
"""Seconds without a step that are too long: what a broker may take for connecting is less, and all has a deadline."""

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
        self._events = Events(owed, clock=time.monotonic)
        self._tree: Tree | None = None
        self._version = ProtocolVersion.V5
        self._backoff = backoff or Backoff(0.2, 2.0, 10.0)
        self._error: str | None = None
        self._wake = asyncio.Event()
        self._told = asyncio.Event()
        self._alive: Callable[[], None] = lambda: None
        self._sent: dict[object, float] = {}
        """Since when each message waits for its acknowledgement, the oldest first."""
        self.connected = False

    def log_in_with(self, settings: Mqtt) -> None:
        """User and password from the next connection on."""
        self._settings = replace(self._settings, username=settings.username, password=settings.password)

    def owed(self) -> list[Owed]:
        """The events that the broker has not acknowledged, in order: for the next run of the daemon."""
        return list(self._events)

    def unacknowledged(self) -> dict[int, tuple[str, bytes]]:
        """The same as (job id, payload), by a number that each keeps in this run."""
        return dict(self._events.numbered())

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
        tree = self._tree = Tree(self._topics, hub.index, hub.epoch, self._events, time.monotonic)

        def hear(batch: Batch) -> None:
            if dropped := tree.hear(batch):
                metrics.MQTT_EVENTS_DROPPED.inc(dropped)
            self._wake.set()

        metrics.MQTT_CONFIGURED.set(1)
        metrics.MQTT_PENDING.set_function(lambda: tree.pending)
        metrics.MQTT_QUEUE_AGE.set_function(lambda: 0.0 if (t := tree.oldest()) is None else time.monotonic() - t)
        leave = hub.listen(hear)
        try:
            with hub.live.part("mqtt", STUCK_AFTER) as self._alive:
                while True:
                    self._alive()
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
                asyncio.create_task(self._deadlines(), name="mqtt-deadlines"),
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
    async def _client(self, tree: Tree) -> AsyncIterator[Client]:
        """One connection. It ends with a DISCONNECT if the task is cancelled, else without: the last will is told."""
        client = await self._connect(tree)
        try:
            yield client
        except asyncio.CancelledError:
            with contextlib.suppress(*LOST):
                async with asyncio.timeout(CLOSE_WITHIN):
                    await client.__aexit__(None, None, None)
            raise
        finally:
            client.drop()

    async def _connect(self, tree: Tree) -> Client:
        """In MQTT 5, or in 3.1.1 with a broker that does not speak that. Raises one of `LOST`."""
        self._version = ProtocolVersion.V5  # a broker that comes back may have learned it
        try:
            return await _answered((await self._make(tree)).open(), CONNECT_TIMEOUT)
        except aiomqtt.MqttCodeError as error:
            if getattr(error.rc, "value", error.rc) not in UNSUPPORTED_VERSION:
                raise
        log.info("the broker at %s refuses MQTT 5: falling back to 3.1.1", self._url)
        self._version = ProtocolVersion.V311
        return await _answered((await self._make(tree)).open(), CONNECT_TIMEOUT)

    async def _make(self, tree: Tree) -> Client:
        settings = self._settings
        # Each time anew, as certificates are renewed; in a thread, as it reads files.
        tls = await asyncio.to_thread(client_context, settings.tls) if self._url.tls else None
        will = tree.status("offline", _now())
        v5 = self._version is ProtocolVersion.V5
        client = Client(
            self._url.host,
            self._url.port,
            username=settings.username or None,
            password=settings.password.reveal() or None,
            identifier=settings.client_id or f"correlator-{settings.instance}",
            protocol=self._version,
            will=aiomqtt.Will(will.topic, will.payload, 1, True, _properties(PacketTypes.WILLMESSAGE) if v5 else None),
            keepalive=KEEPALIVE,
            timeout=math.inf,
            clean_session=None if v5 else True,
            tls_context=tls,
            max_queued_outgoing_messages=0,
            max_inflight_messages=WINDOW,
        )
        client.pending_calls_threshold = WINDOW * 2
        client.on_refused = self._refused
        return client

    # -- what runs while there is a connection

    async def _pump(self, client: Client, hub: Hub, tree: Tree) -> None:
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

    async def _deliver(self, client: Client, tree: Tree, parcel: Parcel) -> None:
        for message in parcel.messages:
            await self._send(client, message)
        tree.acknowledged(parcel.tag)
        self._wake.set()  # it may have changed meanwhile, and be due at once

    async def _beat(self, client: Client, hub: Hub, tree: Tree) -> None:
        """The daemon's own word, and every 10 s how far it is."""
        if hub.loading is not None:
            await self._say(client, tree, "starting")
            await _loaded(hub, self._alive)
        await self._say(client, tree, "online")
        while True:
            await self._send(client, tree.index())
            self._alive()
            await asyncio.sleep(INDEX_INTERVAL)

    async def _sweep(self, client: Client, hub: Hub) -> None:
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

    async def _read(self, client: Client, tree: Tree) -> None:
        """Always read: a broker that closes is noticed here."""
        async for message in client.messages:
            if message.retain and message.payload:
                self._told.set()
                tree.found(str(message.topic), message.payload)
                self._wake.set()

    async def _goodbye(self, client: Client, hub: Hub, tree: Tree, pump: asyncio.Task[None]) -> None:
        """Stopping, what is pending as far as time allows, offline."""
        with contextlib.suppress(*LOST):
            async with asyncio.timeout(GOODBYE_WITHIN):
                await self._say(client, tree, "stopping")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(FLUSH_WITHIN):
                        while hub.loading is None and tree.pending and not pump.done():  # noqa: ASYNC110
                            await asyncio.sleep(0.01)
                await self._say(client, tree, "offline")

    async def _say(self, client: Client, tree: Tree, state: DaemonState) -> None:
        await self._send(client, tree.status(state, _now()))

    async def _send(self, client: Client, message: Message) -> None:
        """Returns when the broker has acknowledged or refused it. Raises one of `LOST`.

        A message that it would close the connection for is left out.
        """
        if len(message.topic) > LONGEST_TOPIC:
            self._refused(f"a topic over {LONGEST_TOPIC} bytes")
            return
        if len(message.topic) + len(message.payload) + PACKET_HEAD > client.largest:
            self._refused(f"over {client.largest} bytes")
            return
        properties = None
        if self._version is ProtocolVersion.V5:
            properties = _properties(PacketTypes.PUBLISH, self._expiry if message.expires else None)
        sent = object()
        self._sent[sent] = time.monotonic()
        try:
            await client.publish(message.topic, message.payload, qos=1, retain=message.retain, properties=properties)
        finally:
            del self._sent[sent]
        metrics.MQTT_PUBLISHED.inc()

    async def _deadlines(self) -> None:
        """Raise one of `LOST` when a message has waited for too long: a look at all is cheaper than a clock each."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            oldest = next(iter(self._sent.values()), None)
            if oldest is not None and time.monotonic() - oldest > PUBLISH_TIMEOUT:
                raise aiomqtt.MqttError(f"timed out: no answer within {PUBLISH_TIMEOUT:g} s")

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


async def _answered(call: Awaitable[T], within: float) -> T:
    try:
        async with asyncio.timeout(within):
            return await call
    except TimeoutError:
        raise aiomqtt.MqttError(f"timed out: no answer within {within:g} s") from None


async def _loaded(hub: Hub, alive: Callable[[], None] = lambda: None) -> None:
    while hub.loading is not None:
        alive()
        await asyncio.sleep(LOADING_POLL)


@functools.cache
def _properties(kind: int, expiry: int | None = None) -> Properties:
    """Of a message; `expiry` in seconds. Made once: paho packs them for each message, and changes nothing in them."""
    properties = Properties(kind)  # type: ignore[no-untyped-call]
    properties.ContentType = "application/json"
    if expiry is not None:
        properties.MessageExpiryInterval = expiry
    return properties


def _now() -> Micros:
    return time.time_ns() // 1000
