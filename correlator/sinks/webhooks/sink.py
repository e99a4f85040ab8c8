"""The webhooks of the configuration: events from the hub become bodies, and bodies are queued for every receiver.

Making a body takes longer than the hub may be delayed, so `on_batch` only notes its events with the jobs as they are
then (`NotedEvents`). One task makes the bodies, one at a time, and queues them for each webhook that wants the event.
An event of a job that is not published yet waits for the job, and so do the later events of this job; after
`PUBLISHED_WITHIN` they are sent without a document, but not while the daemon loads.

Each webhook (`WebhookEndpoint`) has a task, connections and bounds of its own, so a receiver that is slow delays no
other one. A failure of a receiver is a state: it is logged once until it changes, counted, and described in readiness.
A reload adds, removes and changes webhooks while the others go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal, TypeAlias

import aiohttp
from msgspec import Struct

from correlator.config.schema import Config
from correlator.config.tls import Tls
from correlator.config.webhooks import Webhook
from correlator.model.published import Event, PublishedJob
from correlator.model.replies import ReceiverState, WebhooksPart
from correlator.ops import metrics
from correlator.ops.stalls import timed
from correlator.pipeline.hub import Batch, Hub
from correlator.sinks.event_log import EventLog
from correlator.sinks.lateness import Lateness, Notice
from correlator.sinks.receiver import Receiver, Response, Verdict, open_session, tls_context
from correlator.sinks.webhooks.deliveries import (
    DEFAULT,
    STORED_HEADS,
    Deliveries,
    Delivery,
    StoredDelivery,
    StoredEvent,
    StoredHead,
    WebhookTimings,
    judge,
)
from correlator.sinks.webhooks.request import Bodies, receiver, repeats_a_secret, webhook_headers, webhook_id

log = logging.getLogger(__name__)


STUCK_AFTER = 60.0
"""Seconds without a heartbeat after which a task counts as stuck. No task waits for a receiver longer than `BEAT`."""


LOADED_EVERY = 0.5
"""Seconds between two checks whether the index is loaded."""


PART = "webhooks"
"""The name of the part of readiness."""


BEAT = 10.0
"""Seconds between two heartbeats."""


MAX_SEARCHED = 2_048
"""Bytes of a response that are searched for secrets before some are logged."""


class WebhookSink:
    """Satisfies `correlator.sinks.Sink`. Use it from one event loop only.

    `event_log`: has its pending events, also those of the last run: a `StoredDelivery` with its body, or a
    `StoredEvent` without one. Raises: `ConfigError` if a CA file cannot be used.
    """

    def __init__(self, config: Config, event_log: EventLog, timings: WebhookTimings = DEFAULT) -> None:
        self._event_log = event_log
        self._timings = timings
        self._instance = config.mqtt.instance
        self._bodies = Bodies(self._instance, None)
        self._endpoints: dict[str, WebhookEndpoint] = {}
        self._tasks: dict[WebhookEndpoint, asyncio.Task[None]] = {}
        self._outdated: set[WebhookEndpoint] = set()
        """The endpoints whose task runs with earlier settings."""
        self._noted_events = NotedEvents()
        self._hub: Hub | None = None
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self.prepare(config)()
        restored = event_log.pop_restored("webhooks", STORED_HEADS)
        lost = Counter(name for head, body in restored if (name := self._restore(head, body)) is not None)
        for name, count in lost.items():
            log.warning("webhook %s is not configured any more: %d events of the last run are dropped", name, count)
            metrics.WEBHOOK_EVENTS_DROPPED.labels(name, "removed").inc(count)

    def prepare(self, config: Config) -> Callable[[], None]:
        """Return what applies the webhooks of `config`, which must not fail. Raises: `ConfigError`."""
        contexts: dict[Path | None, ssl.SSLContext] = {}
        for webhook in config.webhooks:
            if webhook.ca not in contexts:
                contexts[webhook.ca] = tls_context(Tls(ca=webhook.ca), f"webhooks: {webhook.name}: ca: {webhook.ca}")

        def apply() -> None:
            self._bodies = Bodies(self._instance, config.http.public_url)
            self._apply({one.name: (one, contexts[one.ca]) for one in config.webhooks})

        return apply

    def describe(self) -> dict[str, Any]:
        """Return the part of readiness that describes all receivers."""
        receivers = {name: endpoint.describe() for name, endpoint in self._endpoints.items()}
        failed = [f"{name}: {state['error']}" for name, state in receivers.items() if state["error"] is not None]
        part: WebhooksPart = {"ok": not failed, "error": "; ".join(failed) or None, "receivers": receivers}
        return {**part}

    async def run(self, hub: Hub) -> None:
        """Send events until cancelled; requests in flight then have some seconds to end."""
        self._hub = hub
        self._show_part()
        unsubscribe = hub.subscribe(lambda batch: self._on_batch(hub, batch))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._make_bodies(hub), name="webhook bodies")
                while True:
                    self._changed.clear()
                    await self._start_and_end(group, hub)
                    await self._changed.wait()
        finally:
            unsubscribe()

    # -- the configuration

    def _apply(self, wanted: Mapping[str, tuple[Webhook, ssl.SSLContext]]) -> None:
        for name in [name for name in self._endpoints if name not in wanted]:
            self._endpoints.pop(name).remove()
        for name, (webhook, context) in wanted.items():
            known = self._endpoints.get(name)
            if known is None:
                self._endpoints[name] = WebhookEndpoint(webhook, context, self._event_log, self._timings)
                continue
            if webhook != known.webhook or webhook.ca is not None:  # The CA file may have changed.
                self._outdated.add(known)
            known.configure(webhook, context)
        self._show_part()
        self._changed.set()

    def _show_part(self) -> None:
        if self._hub is None:
            return
        if self._endpoints:
            self._hub.readiness[PART] = self.describe
        else:
            self._hub.readiness.pop(PART, None)

    async def _start_and_end(self, group: asyncio.TaskGroup, hub: Hub) -> None:
        """End the tasks of endpoints that were removed or changed, and start those that are missing."""
        wanted = set(self._endpoints.values())
        ended = {e: task for e, task in self._tasks.items() if e not in wanted or e in self._outdated}
        self._outdated.clear()
        running = set(ended.values())
        while running:
            for task in running:
                task.cancel()
            _, running = await asyncio.wait(running, timeout=2 * self._timings.goodbye_within)
        for endpoint in ended:
            del self._tasks[endpoint]
        for endpoint in self._endpoints.values():
            if endpoint not in self._tasks:
                self._tasks[endpoint] = group.create_task(_run(endpoint, hub), name=f"webhook {endpoint.webhook.name}")

    # -- events

    def _on_batch(self, hub: Hub, batch: Batch) -> None:
        if not self._endpoints:
            return
        with timed("webhook batch"):
            for change in batch.changes:
                if change.new is not None:
                    self._noted_events.published(change.job_id)
            webhooks = [endpoint.webhook for endpoint in self._endpoints.values()]
            for event in batch.events:
                if any(wants(webhook, event.kind.value) for webhook in webhooks):
                    self._note(event, hub.published.get(event.job_id), time.monotonic())
            self._wake.set()

    def _note(self, event: Event, shown: PublishedJob | None, now: float) -> None:
        head = StoredEvent(event, time.time() - (time.monotonic() - now))
        number = self._event_log.add("webhooks", head)
        for dropped in self._noted_events.add(number, event, now, shown):
            self._event_log.remove(dropped.number)
            for endpoint in self._endpoints.values():
                if matches(endpoint.webhook, dropped.event, dropped.shown):
                    endpoint.drop("full", 1)

    async def _make_bodies(self, hub: Hub) -> None:
        """Make the bodies of the events that have arrived, and queue them, until cancelled."""
        with hub.live.heartbeat("webhooks", STUCK_AFTER) as beat:
            while True:
                beat()
                self._wake.clear()
                now, loading = time.monotonic(), hub.status.loading
                if (noted := self._noted_events.pop_next(now, loading=loading)) is not None:
                    with timed("webhook body"):
                        self._queue(noted, noted.shown or hub.published.get(noted.event.job_id))
                    await asyncio.sleep(0)
                    continue
                due = now + LOADED_EVERY if loading else self._noted_events.due()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(BEAT if due is None else min(BEAT, due - now)):
                        await self._wake.wait()

    def _queue(self, noted: NotedEvent, shown: PublishedJob | None) -> None:
        """Queue an event for every webhook that wants it. In the checkpoint, they take its place in the same step."""
        self._event_log.remove(noted.number)
        event, message_id = noted.event, webhook_id(noted.event)
        for endpoint in self._endpoints.values():
            if not matches(endpoint.webhook, event, shown):
                continue
            body = self._bodies.make(event, shown, endpoint.webhook.body)
            if body is None:
                log.warning("webhook %s: event %s is too large and is dropped", endpoint.webhook.name, message_id)
                endpoint.drop("too_large", 1)
                continue
            endpoint.add(event.job_id, message_id, body, noted.at)

    def _restore(self, head: StoredHead, body: bytes) -> str | None:
        """Take over an event of the last run. Returns the name of its webhook if that is not configured any more."""
        at = self._monotonic(head.at)
        if isinstance(head, StoredEvent):
            self._note(head.event, None, at)
        elif (endpoint := self._endpoints.get(head.webhook)) is not None:
            endpoint.add(head.job_id, head.message_id, body, at)
        else:
            return head.webhook
        return None

    def _monotonic(self, at: float) -> float:
        """Return the monotonic time for the wall-clock time `at` of the last run.

        It leaves `WebhookTimings.after_start` for attempts, however long the daemon was stopped: at the start of a
        host, the first attempts may fail because its network is not up, and its clock may have been wrong.
        """
        age = min(time.time() - at, self._timings.give_up_after - self._timings.after_start)
        return time.monotonic() - max(0.0, age)


async def _run(endpoint: WebhookEndpoint, hub: Hub) -> None:
    with hub.live.heartbeat("webhooks", STUCK_AFTER) as beat:
        await endpoint.run(beat)


MAX_NOTED = 20_000
"""Maximum number of events. Above it the oldest are dropped."""


MAX_WEIGHT = 200_000
"""Maximum number of steps of the noted jobs in sum. Above it an event is sent with its job as it is at its turn."""


PUBLISHED_WITHIN = 5.0
"""Seconds for which an event waits for its job to be published."""


class NotedEvent(Struct, frozen=True):
    """An event. `at`: when it was noted. `shown`: its job at that time; None: as it is at its turn."""

    number: int
    event: Event
    at: float
    shown: PublishedJob | None = None


class NotedEvents:
    """The noted events, in order per job. Use it from one event loop only. Times are arguments, in seconds."""

    def __init__(self) -> None:
        self._ready: deque[NotedEvent] = deque()
        self._held: OrderedDict[str, list[NotedEvent]] = OrderedDict()
        """The events of jobs that are not published yet, the job that waits longest first."""
        self._held_count = 0
        self._weight = 0

    def __len__(self) -> int:
        return len(self._ready) + self._held_count

    def __iter__(self) -> Iterator[NotedEvent]:
        yield from self._ready
        for held in self._held.values():
            yield from held

    def add(self, number: int, event: Event, at: float, shown: PublishedJob | None) -> list[NotedEvent]:
        """Note an event. `shown`: its job, None if it is not published. Returns the events dropped to make room."""
        held = self._held.get(event.job_id)
        if shown is None or held is not None:
            self._held.setdefault(event.job_id, []).append(NotedEvent(number, event, at))
            self._held_count += 1
        else:
            weight = len(shown.view.steps)
            fits = self._weight + weight <= MAX_WEIGHT
            self._weight += weight if fits else 0
            self._ready.append(NotedEvent(number, event, at, shown if fits else None))
        return self._shrink()

    def published(self, job_id: str) -> None:
        """The job is published now."""
        if (held := self._held.pop(job_id, None)) is not None:
            self._held_count -= len(held)
            self._ready.extend(held)

    def pop_next(self, now: float, *, loading: bool = False) -> NotedEvent | None:
        """Return the next event whose body can be made, or None. `loading`: jobs are still being published."""
        while not loading and (due := self.due()) is not None and due <= now:
            self.published(next(iter(self._held)))
        return self._pop_ready()

    def _pop_ready(self) -> NotedEvent | None:
        if not self._ready:
            return None
        noted = self._ready.popleft()
        if noted.shown is not None:
            self._weight -= len(noted.shown.view.steps)
        return noted

    def due(self) -> float | None:
        """Return the time at which the next held event stops to wait for its job, or None."""
        return next(iter(self._held.values()))[0].at + PUBLISHED_WITHIN if self._held else None

    def _shrink(self) -> list[NotedEvent]:
        dropped: list[NotedEvent] = []
        while len(self) > MAX_NOTED:
            if not self._ready:
                self.published(next(iter(self._held)))
            if (oldest := self._pop_ready()) is not None:
                dropped.append(oldest)
        return dropped


DropReason: TypeAlias = Literal["expired", "full", "gone", "removed", "too_large"]
DROP_REASONS: tuple[DropReason, ...] = ("expired", "full", "gone", "removed", "too_large")


class WebhookEndpoint:
    """One webhook. Use it from one event loop only. `context`: the TLS context of its connections."""

    def __init__(self, webhook: Webhook, context: ssl.SSLContext, event_log: EventLog, timings: WebhookTimings) -> None:
        self.webhook, self._context = webhook, context
        self._event_log = event_log
        self._timings = timings
        self._deliveries = Deliveries(event_log, timings)
        self._lateness = Lateness(timings.late_after, timings.on_time_below)
        self._accepting_since: float | None = None
        """Monotonic time since which every attempt succeeds. None: the last one failed, or there was none."""
        self._full = 0
        """Events that were dropped because too many waited."""
        self._disabled = False
        self._away: Response | None = None
        """Why the receiver does not accept events; None: it does, as far as is known."""
        self._refused: dict[int, str] = {}
        """Why the receiver refused an event, by its number."""
        self._failure: BaseException | None = None
        self._wake = asyncio.Event()
        name = webhook.name
        for reason in DROP_REASONS:
            metrics.WEBHOOK_EVENTS_DROPPED.labels(name, reason)
        for verdict in Verdict:
            metrics.WEBHOOK_REQUESTS.labels(name, verdict.value)
        metrics.WEBHOOK_PENDING.labels(name).set_function(lambda: len(self._deliveries))
        metrics.WEBHOOK_QUEUE_AGE.labels(name).set_function(self._age)

    def configure(self, webhook: Webhook, context: ssl.SSLContext) -> None:
        """Use other settings from the next `run` on, and send again to a receiver that was gone."""
        self.webhook, self._context = webhook, context
        if self._disabled:
            self._disabled, self._away = False, None
        self._wake.set()

    def add(self, job_id: str, message_id: str, body: bytes, added_at: float) -> None:
        """Queue an event. `added_at`: monotonic seconds."""
        if self._disabled:
            self.drop("gone", 1)
            return
        age = time.monotonic() - added_at
        head = StoredDelivery(self.webhook.name, job_id, message_id, time.time() - age)
        number = self._event_log.add("webhooks", head, body)
        self._forget("full", self._deliveries.add(Delivery(number, job_id, message_id, body, added_at)))
        self._wake.set()

    def drop(self, reason: DropReason, count: int) -> None:
        """Count events that are not sent."""
        if count:
            self._full += count if reason == "full" else 0
            metrics.WEBHOOK_EVENTS_DROPPED.labels(self.webhook.name, reason).inc(count)

    def remove(self) -> None:
        """The webhook is not configured any more: drop its events."""
        if count := len(self._deliveries):
            log.warning("webhook %s was removed from the configuration: %d events dropped", self.webhook.name, count)
        self._forget("removed", self._deliveries.clear())
        self._disabled = True
        for gauge in (metrics.WEBHOOK_PENDING, metrics.WEBHOOK_QUEUE_AGE):
            with contextlib.suppress(KeyError):
                gauge.remove(self.webhook.name)

    def describe(self) -> ReceiverState:
        """Return the part of readiness that describes the receiver."""
        error = self._away.public if self._away is not None else None
        if error is None and self._refused:
            error = f"{len(self._refused)} events refused: {next(iter(self._refused.values()))}"
        if error is None and self._lateness.is_late:
            error = self._late()
        return {"ok": error is None, "pending": len(self._deliveries), "disabled": self._disabled, "error": error}

    async def run(self, beat: Callable[[], None]) -> None:
        """Send what the queue allows, until cancelled. `beat`: the heartbeat. Raises: defects of the program alone."""
        self._deliveries.restart()
        target, session = receiver(self.webhook, self._context), open_session(allow_private=self.webhook.allow_private)
        attempts: set[asyncio.Task[None]] = set()
        try:
            while True:
                beat()
                self._wake.clear()
                if self._failure is not None:
                    raise self._failure
                now = time.monotonic()
                self._judge_age(now)
                if not self._disabled and (delivery := self._deliveries.pop_next(now)) is not None:
                    attempt = self._attempt(target, session, delivery)
                    task = asyncio.create_task(attempt, name=f"webhook {self.webhook.name}")
                    attempts.add(task)
                    task.add_done_callback(attempts.discard)
                    task.add_done_callback(self._ended)
                    continue
                due = None if self._disabled else self._deliveries.due(now)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(BEAT if due is None else min(BEAT, max(0.0, due - now))):
                        await self._wake.wait()
        except asyncio.CancelledError:
            if attempts:
                await asyncio.wait(attempts, timeout=self._timings.goodbye_within)
            raise
        finally:
            for task in [*attempts]:
                task.cancel()
            await asyncio.gather(*attempts, return_exceptions=True)
            await session.close()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = error
        self._wake.set()

    async def _attempt(self, target: Receiver, session: aiohttp.ClientSession, delivery: Delivery) -> None:
        webhook = self.webhook
        signed = webhook_headers(webhook.secret.keys, delivery.message_id, int(time.time()), delivery.body)
        answer = await target.post(session, delivery.body, signed)
        verdict = judge(answer)
        metrics.WEBHOOK_REQUESTS.labels(webhook.name, verdict.value).inc()
        if verdict is not Verdict.ACCEPTED and (delivery.number not in self._deliveries or webhook != self.webhook):
            return  # Another response ended all events (410), or the next `run` sends them to the receiver of today.
        now = time.monotonic()
        if verdict is not Verdict.ACCEPTED:
            self._accepting_since = None
        elif self._accepting_since is None:
            self._accepting_since = now
        match verdict:
            case Verdict.ACCEPTED:
                self._is_back()
                self._deliveries.delivered(delivery)
                self._refused.pop(delivery.number, None)
            case Verdict.GONE:
                self._is_gone(answer)
            case Verdict.AWAY:
                self._is_away(answer)
                numbers = self._deliveries.failed(delivery, now, away=True, retry_after=answer.retry_after)
                self._forget("expired", numbers)
            case Verdict.REFUSED:
                self._is_refused(delivery, answer)
                numbers = self._deliveries.failed(delivery, now, away=False, retry_after=answer.retry_after)
                self._forget("expired", numbers)

    def _judge_age(self, now: float) -> None:
        """Log when the receiver becomes too slow, and when it keeps up again. What it refuses may wait for long."""
        if self._accepting_since is None or self._refused:
            return
        match self._lateness.judge(self._age(), self._full, accepting_for=now - self._accepting_since):
            case Notice.BEGINS | Notice.WORSE:
                log.warning("webhook %s: %s", self.webhook.name, self._late())
            case Notice.ENDS:
                log.info("webhook %s: the receiver at %s keeps up again", self.webhook.name, self.webhook.url)

    def _late(self) -> str:
        dropped = f", and {self._full:,} were dropped" if self._full else ""
        return (
            f"the receiver is too slow: {len(self._deliveries):,} events wait, the oldest for {self._age():.0f} s"
            f"{dropped}. It gets them late. Make it faster, or send it fewer events (events, operations, statuses)"
        )

    def _is_back(self) -> None:
        if self._away is None or self._disabled:
            return
        log.info("webhook %s: the receiver at %s accepts events again", self.webhook.name, self.webhook.url)
        self._away = None

    def _is_away(self, answer: Response) -> None:
        if self._away is None or answer.error != self._away.error:
            words = "webhook %s: the receiver at %s does not accept events: %s%s; they are kept and tried again"
            log.warning(words, self.webhook.name, self.webhook.url, answer.error, _quoted(self.webhook, answer))
        self._away = answer

    def _is_refused(self, delivery: Delivery, answer: Response) -> None:
        if delivery.number not in self._refused:
            words = "webhook %s: the receiver at %s refuses event %s: %s%s; it is tried again for 24 h"
            arguments = (
                self.webhook.name,
                self.webhook.url,
                delivery.message_id,
                answer.error,
                _quoted(self.webhook, answer),
            )
            log.warning(words, *arguments)
        self._refused[delivery.number] = answer.public

    def _is_gone(self, answer: Response) -> None:
        dropped = self._deliveries.clear()
        if not self._disabled:
            words = "webhook %s: the receiver at %s wants no more events (HTTP 410)%s; nothing is sent until a reload"
            log.warning(words, self.webhook.name, self.webhook.url, _quoted(self.webhook, answer))
        words = "the receiver wants no more events (HTTP 410); a reload tries again"
        self._disabled, self._away = True, Response(HTTPStatus.GONE, words, words)
        self._forget("gone", dropped)

    def _forget(self, reason: DropReason, numbers: Sequence[int]) -> None:
        """Count events that were dropped."""
        for number in numbers:
            self._refused.pop(number, None)
        self.drop(reason, len(numbers))

    def _age(self) -> float:
        oldest = self._deliveries.oldest()
        return 0.0 if oldest is None else time.monotonic() - oldest


def wants(webhook: Webhook, kind: str) -> bool:
    """Return whether the webhook is for events of this kind."""
    return kind in webhook.events or f"{kind.partition('.')[0]}.*" in webhook.events


def matches(webhook: Webhook, event: Event, shown: PublishedJob | None) -> bool:
    """Return whether the webhook is for this event of the job `shown`. None: the job is not known."""
    if not wants(webhook, event.kind.value):
        return False
    if shown is None:
        return not webhook.operations and not webhook.statuses
    view = shown.view
    return (not webhook.operations or view.operation in webhook.operations) and (
        not webhook.statuses or view.status.value in webhook.statuses
    )


def _quoted(webhook: Webhook, answer: Response) -> str:
    """Return the beginning of the response for the log."""
    text = answer.body[:MAX_SEARCHED].decode("utf-8", "replace")
    if repeats_a_secret(webhook, text):
        text = "(the response repeats what was sent, and is not shown)"
    text = " ".join(text.split())[:200]
    return f', "{text}"' if text else ""
