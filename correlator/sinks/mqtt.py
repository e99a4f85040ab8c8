"""The MQTT sink: every job's newest state retained at the broker, every transition as an event.

What is owed to the broker is kept as keys, not as messages: which jobs and which external IDs are dirty, and how they
stand is asked of the index when their turn comes. So a broker that is away costs a set, and what it gets when it is
back is the newest. A key is clean once its publish was acknowledged. Only events queue, up to a bound.

A client object lives as long as its connection: a reused one would send failed publishes again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import aiomqtt
from aiomqtt import MqttCodeError, MqttError, ProtocolVersion, Will
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from correlator import metrics
from correlator.backoff import Backoff
from correlator.hub import Hub
from correlator.jobs import wire
from correlator.jobs.model import Event, Shown
from correlator.settings import Mqtt
from correlator.sinks import topics
from correlator.sinks.topics import Topics
from correlator.tls import client_context

log = logging.getLogger(__name__)

WINDOW = 20
"""Publishes that wait for their acknowledgement at once."""

ANSWER_WITHIN = 5.0
"""Seconds in which the broker acknowledges, or is taken for gone."""

KEEPALIVE = 15
PER_JOB = 0.25
"""Seconds between two states of one job."""

INDEX_EVERY = 10.0
MAX_EVENTS = 50_000
FAREWELL_WITHIN = 3.0
EXPIRY_BACKSTOP = 86_400


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
        self._jobs: dict[str, Shown | None] = {}
        """Dirty jobs, oldest first; where the job left memory, how it stood last."""
        self._ids: dict[str, None] = {}
        self._events: deque[tuple[int, Event]] = deque()
        self._sent: dict[str, float] = {}
        self._wake = asyncio.Event()

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
        subscription = hub.subscribe()
        listening = asyncio.create_task(self._listen(hub, subscription), name="mqtt-listen")
        try:
            while True:
                try:
                    await self._connection(hub)
                except (MqttError, OSError, TimeoutError, ValueError) as error:
                    self._away(error)
                await asyncio.sleep(self._backoff.next())
        finally:
            listening.cancel()
            subscription.close()

    async def _listen(self, hub: Hub, subscription: Any) -> None:
        """Keep what is owed up to date, whether the broker is there or not."""
        while True:
            changes, events = await subscription.take()
            for job_id, change in changes.items():
                left = change.old if change.new is None else None
                self._jobs.pop(job_id, None)
                self._jobs[job_id] = left
                before = change.old.view.external_ids if change.old is not None else ()
                after = change.new.view.external_ids if change.new is not None else ()
                if change.moved or before != after or change.new is None or change.old is None:
                    self._ids.update(dict.fromkeys((*before, *after)))
            self._events.extend(events)
            while len(self._events) > MAX_EVENTS:
                self._events.popleft()
                metrics.MQTT_EVENTS_DROPPED.inc()
            self._wake.set()

    async def _connection(self, hub: Hub) -> None:
        async with self._client(hub) as client:
            self.connected, self._error = True, None
            metrics.MQTT_CONNECTED.set(1)
            log.info("connected to the broker at %s", self._url)
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._read(client), name="mqtt-read")
                    tasks.create_task(self._beat(client, hub), name="mqtt-index")
                    tasks.create_task(self._publish_all(client, hub), name="mqtt-publish")
            except* (MqttError, OSError, TimeoutError) as group:
                raise _first(group) from None
            except* asyncio.CancelledError:
                raise
            finally:
                self.connected = False
                metrics.MQTT_CONNECTED.set(0)
                if asyncio.current_task() is not None and asyncio.current_task().cancelling():  # type: ignore[union-attr]
                    await self._farewell(client, hub)

    @contextlib.asynccontextmanager
    async def _client(self, hub: Hub) -> AsyncIterator[aiomqtt.Client]:
        """One connection, in MQTT 5, or in 3.1.1 to a broker that does not speak 5."""
        client = self._make(hub)
        try:
            async with asyncio.timeout(ANSWER_WITHIN * 2):
                await client.__aenter__()
        except MqttCodeError as error:
            if self._version is ProtocolVersion.V5 and getattr(error.rc, "value", error.rc) in (1, 132):
                log.info("the broker refuses MQTT 5: falling back to 3.1.1")
                self._version = ProtocolVersion.V311
                self._backoff.reset()
            raise
        try:
            yield client
        finally:
            with contextlib.suppress(MqttError, TimeoutError, OSError):
                async with asyncio.timeout(2.0):
                    await client.__aexit__(None, None, None)

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
            timeout=ANSWER_WITHIN,
            clean_session=True if self._version is ProtocolVersion.V311 else None,
            tls_context=client_context(settings.tls) if self._url.tls else None,
            max_queued_outgoing_messages=0,
            max_inflight_messages=WINDOW,
        )
        client.pending_calls_threshold = WINDOW * 2
        return client

    async def _read(self, client: aiomqtt.Client) -> None:
        """Always read: a broker that closes is noticed here."""
        async for _ in client.messages:
            pass

    async def _beat(self, client: aiomqtt.Client, hub: Hub) -> None:
        """The daemon's own word, and every 10 s how far it is."""
        if hub.loading is not None:
            await self._say(client, hub, "starting")
            while hub.loading is not None:
                await asyncio.sleep(0.05)
        await self._say(client, hub, "online")
        while True:
            value = wire.encode(topics.index(hub.epoch, hub.seq, len(hub.index)))
            await self._send(client, self._topics.index, value)
            await asyncio.sleep(INDEX_EVERY)

    async def _say(self, client: aiomqtt.Client, hub: Hub, word: str) -> None:
        await self._send(client, self._topics.status, topics.status(word, hub.epoch, hub.seq, time.time_ns() // 1000))

    async def _farewell(self, client: aiomqtt.Client, hub: Hub) -> None:
        """Stopping, what is still owed as far as time allows, offline."""
        with contextlib.suppress(MqttError, TimeoutError, OSError):
            async with asyncio.timeout(FAREWELL_WITHIN):
                await self._say(client, hub, "stopping")
                self._sent.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(FAREWELL_WITHIN / 2):
                        while await self._round(client, hub):
                            pass
                await self._say(client, hub, "offline")

    async def _publish_all(self, client: aiomqtt.Client, hub: Hub) -> None:
        """Everything retained, the newest jobs first, as the broker may have lost its store; then what changes."""
        while hub.loading is not None:
            await asyncio.sleep(0.05)
        for shown in sorted(hub.index.shown(), key=lambda s: s.view.age_key):
            self._jobs.pop(shown.job_id, None)
            self._jobs[shown.job_id] = None
            self._ids.update(dict.fromkeys(shown.view.external_ids))
        self._backoff.reset()
        while True:
            self._wake.clear()
            if not await self._round(client, hub):
                due = self._next_due()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(due):
                        await self._wake.wait()

    async def _round(self, client: aiomqtt.Client, hub: Hub) -> bool:
        """One window's worth of what is owed: events first, then jobs, newest first, then IDs. False if nothing is."""
        now = time.monotonic()
        if self._events:
            part = [self._events[i] for i in range(min(WINDOW, len(self._events)))]
            for seq, event in part:  # one after the other: events keep their order
                body = wire.encode(wire.event(event, hub.epoch, seq))
                await self._send(client, self._topics.event(event.job_id), body, retain=False)
                self._events.popleft()
            return True
        jobs = []
        for job_id in reversed(self._jobs):
            if now - self._sent.get(job_id, 0.0) >= PER_JOB or hub.index.get(job_id) is None:
                jobs.append(job_id)
                if len(jobs) == WINDOW:
                    break
        if jobs:
            await self._together(self._job(client, hub, job_id) for job_id in jobs)
            return True
        if self._ids:
            ids = [i for i, _ in zip(reversed(self._ids), range(WINDOW), strict=False)]
            await self._together(self._id(client, hub, name) for name in ids)
            return True
        self._sent = {i: at for i, at in self._sent.items() if now - at < PER_JOB}
        return False

    async def _together(self, calls: Any) -> None:
        results = await asyncio.gather(*calls, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _job(self, client: aiomqtt.Client, hub: Hub, job_id: str) -> None:
        marker = self._jobs[job_id]
        shown = hub.index.get(job_id)
        if shown is not None:
            self._sent[job_id] = time.monotonic()
            body = topics.state(shown, hub.epoch, shown.rev)
            expiry = self._retention + EXPIRY_BACKSTOP if shown.view.terminal else None
            await self._send(client, self._topics.state(job_id), body, expiry=expiry)
            if hub.index.get(job_id) is shown:
                self._jobs.pop(job_id, None)
            return
        if marker is not None:
            await self._send(client, self._topics.state(job_id), topics.deleted(marker, hub.epoch, hub.seq))
        await self._send(client, self._topics.state(job_id), b"")
        if hub.index.get(job_id) is None:
            self._jobs.pop(job_id, None)

    async def _id(self, client: aiomqtt.Client, hub: Hub, name: str) -> None:
        """An external ID's topic names its owner, or nothing once no job in memory carries it."""
        owner = self._owner(hub, name)
        await self._send(client, self._topics.external(name), topics.external(name, owner) if owner else b"")
        if self._owner(hub, name) == owner:
            self._ids.pop(name, None)

    def _owner(self, hub: Hub, name: str) -> str | None:
        resolved = hub.index.resolve(name)
        return resolved.job_id if resolved is not None and resolved.resolved_by in ("external_id", "uuid") else None

    def _next_due(self) -> float:
        """Seconds until a job that waits for its turn may be published again."""
        now = time.monotonic()
        return max(0.001, min((self._sent.get(i, 0.0) + PER_JOB - now for i in self._jobs), default=60.0))

    async def _send(
        self, client: aiomqtt.Client, topic: str, body: bytes, *, retain: bool = True, expiry: int | None = None
    ) -> None:
        """Publish with QoS 1 and wait for the acknowledgement. Raises `MqttError` when it does not come in time."""
        properties = None
        if self._version is ProtocolVersion.V5:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.ContentType = "application/json"
            if expiry is not None:
                properties.MessageExpiryInterval = expiry
        await client.publish(topic, body, qos=1, retain=retain, properties=properties, timeout=ANSWER_WITHIN)
        metrics.MQTT_PUBLISHED.inc()

    def _away(self, error: BaseException) -> None:
        words = str(error) or type(error).__name__
        if words != self._error:
            log.warning("the broker at %s is away: %s", self._url, words)
        self._error = words


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
