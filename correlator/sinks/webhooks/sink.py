"""The webhooks of the configuration: events from the hub become bodies, and bodies are queued for every receiver.

`on_batch` notes events and returns. One task makes the bodies, one at a time, and queues them; each endpoint has a task
that sends them. A reload adds, removes and changes webhooks while the others go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from correlator.config.schema import Config
from correlator.config.webhooks import Webhook
from correlator.jobs.model.changes import Event
from correlator.jobs.model.views import PublishedJob
from correlator.model.replies import WebhooksPart
from correlator.ops import metrics
from correlator.ops.stalls import timed
from correlator.pipeline.hub import Batch, Hub
from correlator.sinks.webhooks import signature, stored
from correlator.sinks.webhooks.arrivals import Arrival, Arrivals
from correlator.sinks.webhooks.body import Bodies
from correlator.sinks.webhooks.deliveries import Delivery
from correlator.sinks.webhooks.endpoint import BEAT, Endpoint, Value, matches, wants
from correlator.sinks.webhooks.sender import tls_context
from correlator.sinks.webhooks.stored import StoredArrival, StoredDelivery
from correlator.sinks.webhooks.timings import DEFAULT, Timings

log = logging.getLogger(__name__)

STUCK_AFTER = 60.0
"""Seconds without a heartbeat after which a task counts as stuck. No task waits for a receiver longer than `BEAT`."""

LOADED_EVERY = 0.5
"""Seconds between two checks whether the index is loaded."""

PART = "webhooks"
"""The name of the part of readiness."""


class WebhookSink:
    """Satisfies `correlator.sinks.Sink`. Use it from one event loop only.

    `restored`: what `pending` returned in the last run. Raises: `ConfigError` if a CA file cannot be used.
    """

    def __init__(self, config: Config, restored: Iterable[Value] = (), timings: Timings = DEFAULT) -> None:
        self._timings = timings
        self._bodies = Bodies(config.mqtt.instance)
        self._endpoints: dict[str, Endpoint] = {}
        self._tasks: dict[Endpoint, asyncio.Task[None]] = {}
        self._outdated: set[Endpoint] = set()
        """The endpoints whose task runs with earlier settings."""
        self._arrivals = Arrivals()
        self._heads: dict[int, bytes] = {}
        """What the checkpoint keeps of the arrivals, by number."""
        self._last_number = 0
        self._hub: Hub | None = None
        self._arrived = asyncio.Event()
        self._changed = asyncio.Event()
        self.prepare(config)()
        lost = Counter(name for head, body in restored if (name := self._restore(head, body)) is not None)
        for name, count in lost.items():
            log.warning("webhook %s is not configured any more: %d events of the last run are dropped", name, count)
            metrics.WEBHOOK_EVENTS_DROPPED.labels(name, "removed").inc(count)

    def prepare(self, config: Config) -> Callable[[], None]:
        """Return what applies the webhooks of `config`, which must not fail. Raises: `ConfigError`."""
        contexts: dict[Path | None, ssl.SSLContext] = {}
        for webhook in config.webhooks:
            if webhook.ca not in contexts:
                contexts[webhook.ca] = tls_context(webhook)
        return lambda: self._apply({one.name: (one, contexts[one.ca]) for one in config.webhooks})

    def pending(self) -> dict[int, Value]:
        """Return the events that the next run has to send, by a number that does not change during this run."""
        found: dict[int, Value] = {number: (head, b"") for number, head in self._heads.items()}
        for endpoint in self._endpoints.values():
            found |= endpoint.pending
        return found

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
                self._endpoints[name] = Endpoint(webhook, context, self._timings)
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
                    self._arrivals.published(change.job_id)
            webhooks = [endpoint.webhook for endpoint in self._endpoints.values()]
            for event in batch.events:
                if any(wants(webhook, event.kind.value) for webhook in webhooks):
                    self._note(event, hub.published.get(event.job_id), time.monotonic())
            self._arrived.set()

    def _note(self, event: Event, shown: PublishedJob | None, now: float) -> None:
        number = self._next_number()
        head = StoredArrival(event, time.time() - (time.monotonic() - now))
        if (encoded := stored.encode(head)) is not None:
            self._heads[number] = encoded
        for dropped in self._arrivals.add(number, event, now, shown):
            self._heads.pop(dropped.number, None)
            for endpoint in self._endpoints.values():
                if matches(endpoint.webhook, dropped.event, dropped.shown):
                    endpoint.drop("full", 1)

    async def _make_bodies(self, hub: Hub) -> None:
        """Make the bodies of the events that have arrived, and queue them, until cancelled."""
        with hub.live.heartbeat("webhooks", STUCK_AFTER) as beat:
            while True:
                beat()
                self._arrived.clear()
                now, loading = time.monotonic(), hub.status.loading
                if (arrival := self._arrivals.pop_next(now, loading=loading)) is not None:
                    with timed("webhook body"):
                        self._queue(arrival, arrival.shown or hub.published.get(arrival.event.job_id))
                    await asyncio.sleep(0)
                    continue
                due = now + LOADED_EVERY if loading else self._arrivals.due()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(BEAT if due is None else min(BEAT, due - now)):
                        await self._arrived.wait()

    def _queue(self, arrival: Arrival, shown: PublishedJob | None) -> None:
        """Queue an event for every webhook that wants it. In the checkpoint, they take its place in the same step."""
        self._heads.pop(arrival.number, None)
        event, message_id = arrival.event, signature.message_id(arrival.event)
        for endpoint in self._endpoints.values():
            if not matches(endpoint.webhook, event, shown):
                continue
            body = self._bodies.make(event, shown, endpoint.webhook.body)
            if body is None:
                log.warning("webhook %s: event %s is too large and is dropped", endpoint.webhook.name, message_id)
                endpoint.drop("too_large", 1)
                continue
            endpoint.add(Delivery(self._next_number(), event.job_id, message_id, body, arrival.at))

    def _restore(self, head: bytes, body: bytes) -> str | None:
        """Take over an event of the last run. Returns the name of its webhook if that is not configured any more."""
        match found := stored.decode(head):
            case StoredDelivery():
                endpoint = self._endpoints.get(found.webhook)
                if endpoint is None:
                    return found.webhook
                endpoint.add(Delivery(self._next_number(), found.job_id, found.message_id, body, self._noted(found.at)))
            case StoredArrival():
                self._note(found.event, None, self._noted(found.at))
            case None:
                log.warning("an event in the checkpoint cannot be read, and is not sent")
        return None

    def _noted(self, at: float) -> float:
        """Return the monotonic time for the wall-clock time `at` of the last run.

        It leaves `Timings.after_start` for attempts, however long the daemon was stopped: at the start of a host, the
        first attempts may fail because its network is not up, and its clock may have been wrong.
        """
        age = min(time.time() - at, self._timings.give_up_after - self._timings.after_start)
        return time.monotonic() - max(0.0, age)

    def _next_number(self) -> int:
        self._last_number += 1
        return self._last_number


async def _run(endpoint: Endpoint, hub: Hub) -> None:
    with hub.live.heartbeat("webhooks", STUCK_AFTER) as beat:
        await endpoint.run(beat)
