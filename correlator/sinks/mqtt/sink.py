"""The MQTT sink: keeps a broker's retained topics equal to the index, and publishes every event at least once.

Problem: the broker may be slow, limited or unreachable, and the hub must not wait for it. So `on_batch` only marks what
has changed (`outbox.MqttOutbox`), and the tasks of a connection publish it as fast as the broker acknowledges. A state
is built when it is sent: a slow broker gets fewer states, never older ones.

Model: one client object is one connection (`connection.Connector`); a reused one would send its old messages again,
over newer states. Each connection publishes everything that is retained, then what changes (`_pump`), removes what
earlier runs left (`_sweep`), and reports the daemon's state (`_report`). After it ends, `run` opens the next one.

Invariant: what the broker has not acknowledged counts as not sent, and is sent again over the next connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from paho.mqtt.subscribeoptions import SubscribeOptions

from correlator.config.schema import Mqtt
from correlator.errors import drop_frames
from correlator.model.messages import DaemonState
from correlator.model.replies import MqttPart
from correlator.ops import metrics
from correlator.ops.event_loop import timed
from correlator.ops.outage import Outage
from correlator.pipeline.hub import Batch, Hub
from correlator.sinks.event_log import EventLog
from correlator.sinks.lateness import Lateness, Notice
from correlator.sinks.mqtt import home_assistant
from correlator.sinks.mqtt.connection import (
    DEFAULT,
    LOST,
    Connector,
    MqttClient,
    MqttTimings,
    answered,
    describe_error,
    kind_of,
)
from correlator.sinks.mqtt.outbox import MAX_EVENTS, MAX_LEFT, MqttEvents, MqttOutbox, Parcel
from correlator.sinks.mqtt.publisher import Publisher, window
from correlator.sinks.mqtt.topics import TopicKey, Topics
from correlator.tasks import Backoff, TaskGroup, quiet, set_within

log = logging.getLogger(__name__)

STUCK_AFTER = 90.0
"""Seconds without a heartbeat after which the sink counts as stuck: more than all deadlines of connecting together."""

LOADING_POLL = 0.1
"""Seconds between two checks whether the index has been loaded."""

LEFT_POLL = 0.1
"""Seconds between two checks whether topics of an earlier run have been removed."""


class MqttSink:
    """Satisfies `correlator.sinks.Sink`. Use it from one event loop only.

    `event_log`: has its pending events, also those of the last run. `retention`: seconds that ended jobs stay in
    memory. `max_events`: how many wait at most. `max_left`: bytes of the topics of earlier runs
    that are removed at once.
    """

    def __init__(
        self,
        settings: Mqtt,
        event_log: EventLog,
        *,
        retention: float = 86_400.0,
        max_events: int = MAX_EVENTS,
        max_left: int = MAX_LEFT,
        backoff: Backoff | None = None,
        timings: MqttTimings = DEFAULT,
        connecting: type[Connector] = Connector,
    ) -> None:
        self._topics = Topics(settings.root)
        self._devices = settings.home_assistant
        self._events = MqttEvents(event_log, time.monotonic, max_events=max_events)
        self._max_left = max_left
        self._outbox: MqttOutbox | None = None
        self._timings = timings
        self._connector = connecting(settings, timings, self._refused)
        self._url = self._connector.url
        self._publisher = Publisher(retention, self._url, timings.publish_timeout, self._refused)
        self._backoff = backoff or Backoff()
        self._outage = Outage()
        self._error: str | None = None
        self._wake = asyncio.Event()
        self._retained_arrived = asyncio.Event()
        self._retained_kinds: set[str] = set()
        """Of the topics that have arrived since `_read_retained` began."""
        self._home_assistant_began = asyncio.Event()
        self._announced_at = float("-inf")
        """When the devices were published again, in monotonic seconds."""
        self._heartbeat: Callable[[], None] = lambda: None
        self.connected = False
        self._superseded = False
        self._lateness = Lateness(timings.late_after, timings.on_time_below)
        self._dropped = 0

    def set_credentials(self, settings: Mqtt) -> None:
        """Use the user and password of `settings` from the next connection on."""
        self._connector.set_credentials(settings)

    def supersede(self) -> None:
        """Another process publishes this tree from now on: end without a last message when cancelled."""
        self._superseded = True

    def describe(self) -> dict[str, Any]:
        """Return the part of readiness that describes the broker."""
        errors = [self._error, self._late() if self._lateness.is_late else None]
        part: MqttPart = {
            "ok": self.connected and not self._lateness.is_late,
            "connected": self.connected,
            "pending": self._outbox.pending if self._outbox is not None else len(self._events),
            "age_seconds": round(self._age(), 1),
            "error": "; ".join(filter(None, errors)) or None,
            "skipped": self._publisher.skipped,
            "dropped": self._dropped,
        }
        return {**part}

    async def run(self, hub: Hub) -> None:
        """Publish until cancelled, then publish ``offline`` and disconnect, which takes 8 s at most."""
        outbox = self._outbox = MqttOutbox(
            self._topics,
            hub.published,
            hub.epoch,
            self._events,
            time.monotonic,
            devices=self._devices,
            max_left=self._max_left,
        )

        def on_batch(batch: Batch) -> None:
            with timed("mqtt batch"):
                dropped = outbox.on_batch(batch)
            if dropped:
                self._dropped += dropped
                metrics.MQTT_EVENTS_DROPPED.inc(dropped)
            self._wake.set()

        hub.readiness["mqtt"] = self.describe
        metrics.MQTT_CONFIGURED.set(1)
        metrics.MQTT_PENDING.set_function(lambda: outbox.pending)
        metrics.MQTT_QUEUE_AGE.set_function(self._age)
        unsubscribe = hub.subscribe(on_batch)
        watch = asyncio.create_task(self._watch_age(outbox), name="mqtt-age")
        try:
            with hub.live.heartbeat("mqtt", STUCK_AFTER) as self._heartbeat:
                while True:
                    self._heartbeat()
                    try:
                        await asyncio.create_task(self._connection(hub, outbox), name="mqtt connection")
                    except LOST as error:
                        self._connection_lost(error)
                        drop_frames(error)  # They refer to the tasks of the connection, one of which has the error.
                    await asyncio.sleep(self._backoff.next())
        finally:
            unsubscribe()
            watch.cancel()

    async def _connection(self, hub: Hub, outbox: MqttOutbox) -> None:
        """Run one connection until it is lost or the task is cancelled. Raises: one of `LOST`."""
        async with self._connector.connection(lambda: outbox.status("offline", hub.clock())) as client:
            self.connected, self._error = True, None
            began = time.monotonic()
            self._publisher.begin(client, mqtt5=self._connector.mqtt5)
            metrics.MQTT_CONNECTED.set(1)
            log.info("connected to the broker at %s, MQTT %s", self._url, self._connector.version)
            self._note_limits(client)
            turn = asyncio.Lock()
            pump = asyncio.create_task(self._pump(client, hub, outbox), name="mqtt-publish")
            tasks = {
                pump,
                asyncio.create_task(self._read(client, outbox), name="mqtt-read"),
                asyncio.create_task(self._report(client, hub, outbox, turn), name="mqtt-index"),
                asyncio.create_task(self._sweep(client, hub, outbox), name="mqtt-sweep"),
                asyncio.create_task(self._announce(outbox), name="mqtt-announce"),
                asyncio.create_task(self._publisher.enforce_deadlines(client), name="mqtt-deadlines"),
            }
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
                for task in done:
                    task.result()
            except asyncio.CancelledError:
                if not self._superseded:
                    await self._goodbye(client, self._last_messages(client, hub, outbox, pump, turn))
                raise
            finally:
                self.connected = False
                if time.monotonic() - began >= self._timings.steady_after:
                    self._backoff.reset()
                    self._outage.end()
                self._lateness.fails()
                metrics.MQTT_CONNECTED.set(0)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                outbox.end()

    def _note_limits(self, client: MqttClient) -> None:
        """Log once per connection what the broker does not support, and what that means."""
        limits = []
        if not client.retain_available:
            limits.append("it keeps no retained messages: a new subscriber sees a job when it next changes")
        if client.maximum_qos < 1:
            limits.append("it accepts QoS 0 only: messages may get lost")
        if limits:
            self._error = f"the broker is limited: {'; '.join(limits)}"
            log.log(self._outage.level("limits"), "%s", self._error)

    # -- the tasks of one connection

    async def _pump(self, client: MqttClient, hub: Hub, outbox: MqttOutbox) -> None:
        """Publish everything that is retained, then what changes, as far as the window allows."""
        await _loaded(hub)
        for _ in outbox.begin():
            await asyncio.sleep(0)
        self._lateness.accepts(time.monotonic())
        turn = asyncio.Lock()
        try:
            async with TaskGroup() as group:
                for _ in range(max(1, window(client.receive_maximum) - 1)):  # one place is for the status and the index
                    group.create_task(self._deliver(client, outbox, turn), name="mqtt-deliver")
        except BaseExceptionGroup as group:
            _, unexpected = group.split(LOST)
            raise unexpected or group.exceptions[0] from None

    async def _next(self, outbox: MqttOutbox) -> Parcel:
        while True:
            self._wake.clear()
            now = time.monotonic()
            with timed("mqtt message"):
                parcel = outbox.pop_next(now)
            if parcel is not None:
                return parcel
            due = outbox.due()
            await set_within(self._wake, max(0.0, due - now) if due is not None else None)

    async def _deliver(self, client: MqttClient, outbox: MqttOutbox, turn: asyncio.Lock) -> None:
        """Publish one parcel after the other, until cancelled. `turn`: one task at a time waits for the next one."""
        while True:
            async with turn:
                parcel = await self._next(outbox)
            for message in parcel.messages:
                await self._publisher.send(client, message)
            outbox.acknowledged(parcel.tag)
            self._wake.set()  # The topic may have changed meanwhile, and be due at once.

    async def _report(self, client: MqttClient, hub: Hub, outbox: MqttOutbox, turn: asyncio.Lock) -> None:
        """Publish the state of the daemon, and every 10 s the position in the index.

        Each message is sent with `turn` locked. `_last_messages` locks it for good, after the message in flight.
        """
        if hub.status.loading:
            async with turn:
                await self._publish_status(client, hub, outbox, "starting")
            await _loaded(hub, self._heartbeat)
        async with turn:
            await self._publish_status(client, hub, outbox, "online")
        while True:
            async with turn:
                await self._publisher.send(client, outbox.index())
            self._heartbeat()
            await asyncio.sleep(self._timings.index_interval)

    async def _sweep(self, client: MqttClient, hub: Hub, outbox: MqttOutbox) -> None:
        """Read all retained messages, so that `_read` finds those that an earlier run left.

        With QoS 0, of which a broker queues more. What it drops anyway is found after another connect, or expires. If
        there is no room for some, all are read again once those that had room have been removed.

        A run without devices does not ask for Home Assistant's topics, which may be forbidden, unless the marker says
        that an earlier run had some. Then it reads them until none is left: a broker may pause in the midst of them. A
        read that has not got the marker, asked for last, has ended too early.
        """
        await _loaded(hub)
        if self._devices:
            await self._subscribe(client, [home_assistant.STATUS])
        devices, marker = self._topics.devices, self._topics.of(TopicKey("marker"))
        filters = [*self._topics.filters, *([devices] if self._devices else [])]
        while True:
            outbox.begin_sweep()
            began = time.monotonic()
            found = await self._read_retained(client, filters)
            if not outbox.has_missed:
                break
            await asyncio.sleep(time.monotonic() - began)  # the broker and the event loop have other work too
            while outbox.left:  # noqa: ASYNC110
                await asyncio.sleep(LEFT_POLL)
        if self._devices or "marker" not in found:
            return
        pause = self._timings.quiet_after
        while await self._read_retained(client, [devices, marker]) != {"marker"}:
            await asyncio.sleep(pause)
            pause *= 2  # A slow broker is not asked for the same devices again and again.
        outbox.devices_removed()
        self._wake.set()

    async def _read_retained(self, client: MqttClient, filters: list[str]) -> set[str]:
        """Subscribe to `filters` until all retained messages have arrived. Returns the kinds of their topics."""
        self._retained_kinds = kinds = set[str]()
        await self._subscribe(client, filters)
        await quiet(self._retained_arrived, self._timings.quiet_after, self._timings.quiet_within)
        await answered(client.unsubscribe(filters), self._timings.call_timeout)
        return kinds

    async def _subscribe(self, client: MqttClient, filters: list[str]) -> None:
        requested: Any = [(f, 0) for f in filters]
        if self._connector.mqtt5:
            requested = [(f, SubscribeOptions(qos=0, noLocal=True)) for f in filters]
        await answered(client.subscribe(requested), self._timings.call_timeout)

    async def _read(self, client: MqttClient, outbox: MqttOutbox) -> None:
        """Handle messages as they arrive, until the broker closes the connection. Raises: one of `LOST`."""

        def on_message(topic: str, payload: bytes, retained: bool) -> None:
            if retained:
                if (key := outbox.on_retained(topic)) is not None:
                    self._retained_kinds.add(key.kind)
                self._retained_arrived.set()
                self._wake.set()
            elif (topic, payload) == (home_assistant.STATUS, home_assistant.BEGAN):
                self._home_assistant_began.set()

        await client.read(on_message)

    async def _announce(self, outbox: MqttOutbox) -> None:
        """Publish the devices again when Home Assistant has started: it may not have had what was retained.

        Whoever may write its status, again and again, causes no more than one such time in `announce_every` seconds.
        """
        while True:
            await self._home_assistant_began.wait()
            await asyncio.sleep(max(0.0, self._announced_at + self._timings.announce_every - time.monotonic()))
            self._home_assistant_began.clear()
            self._announced_at = time.monotonic()
            for _ in outbox.announce():
                self._wake.set()
                await asyncio.sleep(0)

    async def _goodbye(self, client: MqttClient, last_messages: Coroutine[Any, Any, None]) -> None:
        """Publish the last messages.

        If the broker does not acknowledge them, close the connection without a DISCONNECT: the broker then publishes
        the last will, ``offline``.
        """
        acknowledged = False
        try:
            await answered(last_messages, self._timings.goodbye_within)
            acknowledged = True
        except LOST as error:
            why = describe_error(error)
            log.warning("the broker at %s has not acknowledged that the daemon stops: %s", self._url, why)
        finally:
            if not acknowledged:
                client.drop()

    async def _last_messages(
        self, client: MqttClient, hub: Hub, outbox: MqttOutbox, pump: asyncio.Task[None], turn: asyncio.Lock
    ) -> None:
        """Publish ``stopping``, what is pending as far as time allows, and ``offline``."""
        # Never unlocked: an ``online`` that `_report` sends after ``offline`` would stay retained.
        await turn.acquire()
        await self._publish_status(client, hub, outbox, "stopping")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timings.flush_within):
                while not hub.status.loading and outbox.pending and not pump.done():  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        await self._publish_status(client, hub, outbox, "offline")

    async def _publish_status(self, client: MqttClient, hub: Hub, outbox: MqttOutbox, state: DaemonState) -> None:
        await self._publisher.send(client, outbox.status(state, hub.clock()))

    # -- a broker that is too slow

    async def _watch_age(self, outbox: MqttOutbox) -> None:
        """Judge whether the broker keeps up, and log when that changes, until cancelled."""
        timings = self._timings
        while True:
            await asyncio.sleep(timings.late_check_interval)
            now = time.monotonic()
            change, oldest = outbox.oldest(changes=True), outbox.oldest()
            age = max(
                now - change if change is not None else 0.0,
                now - oldest - timings.republish_within + timings.late_after if oldest is not None else 0.0,
            )
            match self._lateness.judge(now, age, self._dropped):
                case Notice.LATE:
                    log.warning("%s", self._late())
                case Notice.ENDS:
                    log.info("the broker at %s keeps up again", self._url)

    def _age(self) -> float:
        """Seconds that the oldest pending message has waited."""
        oldest = self._outbox.oldest() if self._outbox is not None else self._events.oldest()
        return 0.0 if oldest is None else time.monotonic() - oldest

    def _late(self) -> str:
        events = len(self._events)
        states = self._outbox.pending - events if self._outbox is not None else 0
        dropped = f", and {self._dropped:,} events were dropped" if self._dropped else ""
        return (
            f"the broker is too slow: {events:,} events and {states:,} states wait, the oldest for {self._age():.0f} s"
            f"{dropped}. Subscribers get them late, newest states first. Check the broker's load, disk and network"
        )

    # -- errors

    def _refused(self, why: str) -> None:
        metrics.MQTT_REFUSED.inc()
        self._error = f"the broker refuses messages: {why}"
        log.log(self._outage.level(why), "%s", self._error)

    def _connection_lost(self, error: BaseException) -> None:
        self._error = describe_error(error)
        log.log(self._outage.level(kind_of(error)), "the broker at %s is unreachable: %s", self._url, self._error)
        self._publisher.connection_lost(error)


async def _loaded(hub: Hub, heartbeat: Callable[[], None] = lambda: None) -> None:
    while hub.status.loading:
        heartbeat()
        await asyncio.sleep(LOADING_POLL)
