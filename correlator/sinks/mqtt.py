"""The MQTT sink: keeps a broker's retained topics as the index has them, and tells it every event.

One client object is one connection: a reused one would send again what it could not send before, over newer states.
What the broker has not acknowledged counts as not sent. Nothing here makes the hub wait: it is heard synchronously,
and states are made when they are sent, so a slow broker gets fewer of them, never older ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Callable, Iterable
from typing import Any

import aiomqtt
from aiomqtt import ProtocolVersion
from paho.mqtt import client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
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

PUBLISH_TIMEOUT = 10.0
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
GOODBYE_WITHIN = 8.0
"""Seconds at the end for what is pending, and for everything."""

BACKSTOP = 86_400
"""Seconds over the retention for which a broker keeps an ended job, should we never come back to remove it."""

UNSUPPORTED_VERSION = 0x84

Lost = (aiomqtt.MqttError, OSError)


class MqttSink:
    """Satisfies `correlator.sinks.Sink`. `retention`: seconds that ended jobs stay in memory."""

    def __init__(self, settings: Mqtt, *, retention: float = 86_400.0) -> None:
        assert settings.url is not None, "mqtt.url is empty: there is nothing to connect to"
        self._settings = settings
        self._url = settings.url
        self._topics = Topics(f"{settings.prefix}/{settings.instance}")
        self._retention = int(retention)
        self._version = ProtocolVersion.V5
        self._backoff = Backoff(0.2, 2.0, 10.0)
        self._error: str | None = None
        self.connected = False
        self._jobs: dict[str, Shown | bytes | None] = {}
        """Dirty jobs, longest dirty first. Of one that is not in memory: how it stood last, or its document of then."""
        self._ids: dict[str, None] = {}
        self._events: deque[tuple[int, Event]] = deque()
        self._sent: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._told = asyncio.Event()
        """Set whenever the broker tells of a retained message."""

    def describe(self) -> dict[str, Any]:
        """For readiness."""
        return {
            "ok": self.connected,
            "state": "online" if self.connected else "offline",
            "pending": len(self._jobs) + len(self._ids) + len(self._events),
            "error": self._error,
        }

    async def run(self, hub: Hub) -> None:
        """Publish until cancelled, then say goodbye."""
        leave = hub.listen(self._hear)
        try:
            while True:
                try:
                    await self._connection(hub)
                except AWAY as error:
                    self._away(error)
                if _cancelled():  # in the same step in which the connection broke
                    raise asyncio.CancelledError
                await asyncio.sleep(self._backoff.next())
        finally:
            leave()

    # -- what is owed

    def _hear(self, batch: Batch) -> None:
        """Keep what is owed up to date, whether the broker is there or not."""
        for change in batch.changes:
            self._jobs[change.job_id] = change.old if change.new is None else None
            self._ids.update(dict.fromkeys(_moved_ids(change)))
        self._events.extend((batch.seq, event) for event in batch.events)
        while len(self._events) > MAX_EVENTS:
            self._events.popleft()
            metrics.MQTT_EVENTS_DROPPED.inc()
        self._wake.set()

    def _owe_everything(self, hub: Hub) -> None:
        """All that is retained, the newest jobs first, as the broker may have lost its store."""
        jobs = sorted(hub.index.shown(), key=lambda s: s.view.age_key, reverse=True)
        left = {i: last for i, last in self._jobs.items() if hub.index.get(i) is None}
        self._jobs = {**dict.fromkeys(s.job_id for s in jobs), **left}
        self._ids = {**dict.fromkeys(i for s in jobs for i in s.view.external_ids), **self._ids}

    # -- a connection

    async def _connection(self, hub: Hub) -> None:
        """Until the connection breaks, which raises one of `AWAY`, or the task is cancelled."""
        async with self._client(hub) as client:
            self.connected, self._error = True, None
            metrics.MQTT_CONNECTED.set(1)
            log.info("connected to the broker at %s", self._url)
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._read(client, hub), name="mqtt-read")
                    tasks.create_task(self._beat(client, hub), name="mqtt-index")
                    tasks.create_task(self._publish_all(client, hub), name="mqtt-publish")
                    tasks.create_task(self._sweep(client, hub), name="mqtt-sweep")
            except BaseExceptionGroup as group:
                _, unexpected = group.split(AWAY)
                raise unexpected or _first(group) from None
            except asyncio.CancelledError:
                await self._farewell(client, hub)
                raise
            finally:
                self.connected = False
                metrics.MQTT_CONNECTED.set(0)

    @contextlib.asynccontextmanager
    async def _client(self, hub: Hub) -> AsyncIterator[aiomqtt.Client]:
        """One connection, in MQTT 5, or in 3.1.1 to a broker that does not speak 5.

        What fails is cut, without a goodbye: the broker then publishes the last will.
        """
        client = self._make(hub)
        try:
            try:
                async with asyncio.timeout(ANSWER_WITHIN * 2):
                    await client.__aenter__()
            except MqttCodeError as error:
                if self._version is ProtocolVersion.V5 and getattr(error.rc, "value", error.rc) in REFUSES_VERSION:
                    log.info("the broker refuses MQTT 5: falling back to 3.1.1")
                    self._version = ProtocolVersion.V311
                    self._backoff.reset()
                raise
            try:
                yield client
            except asyncio.CancelledError:
                with contextlib.suppress(*AWAY):
                    async with asyncio.timeout(CLOSE_WITHIN):
                        await client.__aexit__(None, None, None)
                raise
        finally:
            _cut(client)

    def _make(self, hub: Hub) -> aiomqtt.Client:
        settings = self._settings
        will = topics.status("offline", hub.epoch, hub.seq, time.time_ns() // 1000)
        client = aiomqtt.Client(
            self._url.host,
            self._url.port,
            username=settings.username or None,
            password=settings.password.reveal() or None,
            identifier=settings.client_id,
            protocol=self._version,
            will=Will(self._topics.status, will, qos=1, retain=True),
            keepalive=KEEPALIVE,
            timeout=math.inf,
            clean_session=True if self._version is ProtocolVersion.V311 else None,
            tls_context=client_context(settings.tls) if self._url.tls else None,
            max_queued_outgoing_messages=0,
            max_inflight_messages=WINDOW,
        )
        client.pending_calls_threshold = WINDOW * 2
        return client

    async def _read(self, client: aiomqtt.Client, hub: Hub) -> None:
        """Always read: a broker that closes is noticed here. What comes is what `_sweep` asked for."""
        async for message in client.messages:
            payload = message.payload
            if not message.retain or not isinstance(payload, bytes) or not payload:
                continue
            self._told.set()
            topic = str(message.topic)
            if (job_id := self._topics.job_of(topic)) is not None:
                if hub.index.get(job_id) is None and self._jobs.get(job_id) is None:
                    self._jobs[job_id] = payload
                    self._wake.set()
            elif (name := self._topics.external_of(topic)) is not None and self._owner(hub, name) is None:
                self._ids[name] = None
                self._wake.set()

    async def _sweep(self, client: aiomqtt.Client, hub: Hub) -> None:
        """Find what an earlier run left at the broker of jobs that are no longer in memory.

        Asked for with QoS 0: a broker queues more of it. What it drops even so expires, or is found next time.
        """
        await self._loaded(hub)
        filters = self._topics.all_retained
        if self._version is ProtocolVersion.V5:
            options = SubscribeOptions(qos=0, noLocal=True)
            asked: Any = [(f, options) for f in filters]
        else:
            asked = [(f, 0) for f in filters]
        await self._answer(client.subscribe(asked))
        with contextlib.suppress(TimeoutError):
            while True:
                self._told.clear()
                async with asyncio.timeout(QUIET):
                    await self._told.wait()
        await self._answer(client.unsubscribe(filters))

    async def _beat(self, client: aiomqtt.Client, hub: Hub) -> None:
        """The daemon's own word, and every 10 s how far it is."""
        if hub.loading is not None:
            await self._say(client, hub, "starting")
            await self._loaded(hub)
        await self._say(client, hub, "online")
        while True:
            value = wire.encode(topics.index(hub.epoch, hub.seq, len(hub.index)))
            await self._send(client, self._topics.index, value)
            await asyncio.sleep(INDEX_EVERY)

    async def _loaded(self, hub: Hub) -> None:
        while hub.loading is not None:  # noqa: ASYNC110 - the hub tells nobody, and this is once a start
            await asyncio.sleep(0.05)

    async def _say(self, client: aiomqtt.Client, hub: Hub, word: str) -> None:
        await self._send(client, self._topics.status, topics.status(word, hub.epoch, hub.seq, time.time_ns() // 1000))

    async def _farewell(self, client: aiomqtt.Client, hub: Hub) -> None:
        """Stopping, what is still owed as far as time allows, offline."""
        with contextlib.suppress(*AWAY):
            async with asyncio.timeout(FAREWELL_WITHIN):
                await self._say(client, hub, "stopping")
                self._sent.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(FAREWELL_WITHIN / 2):
                        while hub.loading is None and await self._round(client, hub):
                            pass
                await self._say(client, hub, "offline")

    async def _publish_all(self, client: aiomqtt.Client, hub: Hub) -> None:
        """Everything that is retained, then what changes."""
        await self._loaded(hub)
        self._owe_everything(hub)
        self._backoff.reset()
        while True:
            self._wake.clear()
            if not await self._round(client, hub):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._next_due()):
                        await self._wake.wait()

    async def _round(self, client: aiomqtt.Client, hub: Hub) -> bool:
        """A window each of the events, jobs and IDs that are owed, so that none waits for good. False if nothing is."""
        events = [self._events.popleft() for _ in range(min(WINDOW, len(self._events)))]
        if events:
            try:  # in one go, and in their order: the client writes what it is given first first
                await self._together(self._event(client, hub, seq, event) for seq, event in events)
            except BaseException:
                self._events.extendleft(reversed(events))
                raise
        jobs = self._due(hub)
        await self._together(self._job(client, hub, job_id) for job_id in jobs)
        ids = [name for name, _ in zip(self._ids, range(WINDOW), strict=False)]
        await self._together(self._id(client, hub, name) for name in ids)
        if events or jobs or ids:
            return True
        now = time.monotonic()
        self._sent = {i: at for i, at in self._sent.items() if now - at < PER_JOB}
        return False

    def _due(self, hub: Hub) -> list[str]:
        """The jobs whose turn it is."""
        now = time.monotonic()
        due: list[str] = []
        for job_id in self._jobs:
            if now - self._sent.get(job_id, -PER_JOB) >= PER_JOB or hub.index.get(job_id) is None:
                due.append(job_id)
                if len(due) == WINDOW:
                    break
        return due

    def _next_due(self) -> float:
        """Seconds until a job that waits for its turn may be published again."""
        now = time.monotonic()
        return max(0.001, min((self._sent.get(i, 0.0) + PER_JOB - now for i in self._jobs), default=60.0))

    async def _together(self, calls: Iterable[Coroutine[Any, Any, None]]) -> None:
        """All of them to their end, then the first error."""
        for result in await asyncio.gather(*calls, return_exceptions=True):
            if result is not None:
                raise result

    async def _event(self, client: aiomqtt.Client, hub: Hub, seq: int, event: Event) -> None:
        body = wire.encode(wire.event(event, hub.epoch, seq))
        await self._send(client, self._topics.event(event.job_id), body, retain=False)

    async def _job(self, client: aiomqtt.Client, hub: Hub, job_id: str) -> None:
        """The state as it is now; clean if it is still that once the broker has it."""
        topic, shown = self._topics.state(job_id), hub.index.get(job_id)
        if shown is None:
            await self._tombstone(client, hub, topic, self._jobs[job_id])
            if hub.index.get(job_id) is None:
                self._jobs.pop(job_id, None)
                self._sent.pop(job_id, None)
            return
        self._sent[job_id] = time.monotonic()
        expiry = self._retention + EXPIRY_BACKSTOP if shown.view.terminal else None
        await self._send(client, topic, topics.state(shown, hub.epoch, shown.rev), expiry=expiry)
        now = hub.index.get(job_id)
        if now is not None and now.rev == shown.rev:
            self._jobs.pop(job_id, None)

    async def _tombstone(self, client: aiomqtt.Client, hub: Hub, topic: str, last: Shown | bytes | None) -> None:
        if last is not None:
            await self._send(client, topic, topics.deleted(last, hub.epoch, hub.seq))
        await self._send(client, topic, b"")

    async def _id(self, client: aiomqtt.Client, hub: Hub, name: str) -> None:
        """An external ID's topic names its owner, or nothing once no job in memory carries it."""
        owner = self._owner(hub, name)
        await self._send(client, self._topics.external(name), topics.external(name, owner) if owner else b"")
        if self._owner(hub, name) == owner:
            self._ids.pop(name, None)

    def _owner(self, hub: Hub, name: str) -> str | None:
        resolved = hub.index.resolve(name)
        return resolved.job_id if resolved is not None and resolved.resolved_by in ("external_id", "uuid") else None

    async def _send(
        self, client: aiomqtt.Client, topic: str, body: bytes, *, retain: bool = True, expiry: int | None = None
    ) -> None:
        """Publish with QoS 1 and wait for the acknowledgement. Raises one of `AWAY` when it does not come in time.

        A topic that is longer than MQTT can write is left out: its ID is to be had elsewhere.
        """
        if len(topic) > LONGEST_TOPIC:
            return
        properties = None
        if self._version is ProtocolVersion.V5:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.ContentType = "application/json"
            if expiry is not None:
                properties.MessageExpiryInterval = expiry
        await self._answer(client.publish(topic, body, qos=1, retain=retain, properties=properties))
        metrics.MQTT_PUBLISHED.inc()

    async def _answer(self, call: Coroutine[Any, Any, Any]) -> None:
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                await call
        except TimeoutError:
            raise MqttError(f"no answer within {ANSWER_WITHIN:.0f} s") from None

    def _away(self, error: BaseException) -> None:
        words = str(error) or type(error).__name__
        if words != self._error:
            log.warning("the broker at %s is away: %s", self._url, words)
        self._error = words


def _moved_ids(change: Change) -> tuple[str, ...]:
    """The external IDs whose owner the change may have changed."""
    old, new = change.old, change.new
    before = old.view.external_ids if old is not None else ()
    after = new.view.external_ids if new is not None else ()
    if old is None or new is None or change.moved or before != after or old.view.age_key != new.view.age_key:
        return (*before, *after)
    return ()


def _cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _cut(client: aiomqtt.Client) -> None:
    """Close the connection if it is still open, now and without a DISCONNECT; aiomqtt can only close in peace.

    The client notices the end of its socket by reading, and cleans up after itself.
    """
    inner, ended = client._client, client._disconnected  # noqa: SLF001
    sock = inner.socket()
    if sock is not None:
        with contextlib.suppress(OSError, AttributeError):
            sock.shutdown(socket.SHUT_RDWR)
        # A connection attempt that was given up has cancelled futures, which its callbacks stumble over.
        with contextlib.suppress(OSError, ValueError, asyncio.CancelledError, asyncio.InvalidStateError):
            while inner.socket() is not None and inner.loop_read() == paho.MQTT_ERR_SUCCESS:
                pass
    if ended.done() and not ended.cancelled():
        ended.exception()  # seen: asyncio need not warn of it


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
