"""One webhook at work: its filter, its queue, and the task that sends what the queue allows.

An endpoint has its own connections, threads and bounds, so a receiver that is slow delays no other one. A failure of a
receiver is a state: it is logged once until it changes, counted, and described in readiness.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Literal, TypeAlias

from correlator.config.webhooks import Webhook
from correlator.jobs.model.changes import Event
from correlator.jobs.model.views import PublishedJob
from correlator.model.replies import ReceiverState
from correlator.ops import metrics
from correlator.sinks.lateness import Lateness, Notice
from correlator.sinks.webhooks import stored
from correlator.sinks.webhooks.deliveries import Deliveries, Delivery, Verdict, judge
from correlator.sinks.webhooks.sender import Answer, Sender
from correlator.sinks.webhooks.stored import StoredDelivery
from correlator.sinks.webhooks.timings import Timings

log = logging.getLogger(__name__)

DropReason: TypeAlias = Literal["expired", "full", "gone", "removed", "too_large"]
DROP_REASONS: tuple[DropReason, ...] = ("expired", "full", "gone", "removed", "too_large")

BEAT = 10.0
"""Seconds between two heartbeats."""

Value: TypeAlias = tuple[bytes, bytes]
"""What the checkpoint keeps of an event: its head (see `stored`), and its body."""


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


class Endpoint:
    """One webhook. Use it from one event loop only. `context`: the TLS context of its connections."""

    def __init__(self, webhook: Webhook, context: ssl.SSLContext, timings: Timings) -> None:
        self.webhook, self._context = webhook, context
        self.pending: dict[int, Value] = {}
        """What the checkpoint keeps, by number."""
        self._timings = timings
        self._deliveries = Deliveries(timings)
        self._lateness = Lateness(timings.late_after, timings.on_time_below)
        self._accepting_since: float | None = None
        """Monotonic time since which every attempt succeeds. None: the last one failed, or there was none."""
        self._full = 0
        """Events that were dropped because too many waited."""
        self._disabled = False
        self._away: Answer | None = None
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

    def add(self, delivery: Delivery) -> None:
        """Queue an event."""
        if self._disabled:
            self.drop("gone", 1)
            return
        age = time.monotonic() - delivery.added_at
        head = StoredDelivery(self.webhook.name, delivery.job_id, delivery.message_id, time.time() - age)
        if (encoded := stored.encode(head)) is not None:
            self.pending[delivery.number] = encoded, delivery.body
        self._forget("full", self._deliveries.add(delivery))
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
        sender = Sender(self.webhook, self._context)
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
                    task = asyncio.create_task(self._attempt(sender, delivery), name=f"webhook {self.webhook.name}")
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
            await sender.close()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = error
        self._wake.set()

    async def _attempt(self, sender: Sender, delivery: Delivery) -> None:
        webhook = self.webhook
        answer = await sender.post(delivery.message_id, delivery.body)
        verdict = judge(answer.status)
        metrics.WEBHOOK_REQUESTS.labels(webhook.name, verdict.value).inc()
        if verdict is not Verdict.DELIVERED and (delivery not in self._deliveries or webhook != self.webhook):
            return  # Another response ended all events (410), or the next `run` sends them to the receiver of today.
        now = time.monotonic()
        if verdict is not Verdict.DELIVERED:
            self._accepting_since = None
        elif self._accepting_since is None:
            self._accepting_since = now
        match verdict:
            case Verdict.DELIVERED:
                self._is_back()
                self._deliveries.delivered(delivery)
                self._forget(None, [delivery.number])
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

    def _is_away(self, answer: Answer) -> None:
        if self._away is None or answer.error != self._away.error:
            words = "webhook %s: the receiver at %s does not accept events: %s%s; they are kept and tried again"
            log.warning(words, self.webhook.name, self.webhook.url, answer.error, _quoted(answer))
        self._away = answer

    def _is_refused(self, delivery: Delivery, answer: Answer) -> None:
        if delivery.number not in self._refused:
            words = "webhook %s: the receiver at %s refuses event %s: %s%s; it is tried again for 24 h"
            arguments = (self.webhook.name, self.webhook.url, delivery.message_id, answer.error, _quoted(answer))
            log.warning(words, *arguments)
        self._refused[delivery.number] = answer.public

    def _is_gone(self, answer: Answer) -> None:
        dropped = self._deliveries.clear()
        if not self._disabled:
            words = "webhook %s: the receiver at %s wants no more events (HTTP 410)%s; nothing is sent until a reload"
            log.warning(words, self.webhook.name, self.webhook.url, _quoted(answer))
        words = "the receiver wants no more events (HTTP 410); a reload tries again"
        self._disabled, self._away = True, Answer(HTTPStatus.GONE, words, words)
        self._forget("gone", dropped)

    def _forget(self, reason: DropReason | None, numbers: Iterable[int]) -> None:
        """Remove events from the checkpoint. `reason`: why they were dropped; None: they were delivered."""
        count = 0
        for number in numbers:
            self.pending.pop(number, None)
            self._refused.pop(number, None)
            count += 1
        if reason is not None:
            self.drop(reason, count)

    def _age(self) -> float:
        oldest = self._deliveries.oldest()
        return 0.0 if oldest is None else time.monotonic() - oldest


def _quoted(answer: Answer) -> str:
    """Return the beginning of the response for the log."""
    text = " ".join(answer.text.split())[:200]
    return f', "{text}"' if text else ""
