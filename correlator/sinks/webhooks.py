"""Webhooks: events of the hub are sent to HTTP receivers, signed, in order per job, and at least once.

Making a body takes longer than the hub may be delayed, so `on_batch` only notes its events with the jobs as they are
then (`NotedEvents`). One task makes the bodies, one at a time (`config/webhooks.py` has the placeholders), and queues
them for each webhook that wants the event. An event of a job that is not published yet waits for the job, and so do
the later events of this job; after `PUBLISHED_WITHIN` they are sent without a document, but not while the daemon
loads.

Each webhook (`WebhookEndpoint`) has a task, connections and bounds of its own, so a receiver that is slow delays no
other one. A failure of a receiver is a state: it is logged once until it changes, counted, and described in readiness.
A reload adds, removes and changes webhooks while the others go on.

`Deliveries` are the events that one receiver has not acknowledged: it says which is sent next, when it is tried again,
and when it is given up.

Problem. A receiver may be slow, limited, away for hours, or refuse one event and accept the others. Every event must
arrive at least once, those of one job in order, and a receiver that is away must not be flooded.

Model. Each job has a queue of its own, of which at most one event is in flight: a later event of a job never overtakes
an earlier one, and an event that is refused delays no other job. After a failed attempt the event waits with backoff.
If the receiver itself failed (no response, 5xx, 429 and the like), it is paused with backoff as well, and then gets one
request at a time until one succeeds. A pause that the receiver itself asked for (Retry-After) is kept whatever happens:
requests that were in flight with the refused one may still succeed.

Invariants. An event leaves only when it is acknowledged, given up or dropped; the caller counts the last two. The
events are bounded in number and bytes; above either bound the oldest that is not in flight is dropped. An event is
given up only by a failed attempt, at least `give_up_after` after it was added. `Deliveries` reads no clock and does no
I/O: times are arguments, in seconds, and must not decrease.

A body (`Bodies`) is a CloudEvent 1.0 in structured mode with the job document, or the webhook's own template. It is
bounded: members of the document that may be long are left out until it fits, and `datacut` names them. The headers are
those of Standard Webhooks 1.0.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import html
import logging
import random
import ssl
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args
from urllib.parse import quote, unquote

import aiohttp
import orjson
from msgspec import Struct
from msgspec.msgpack import Decoder
from msgspec.structs import asdict, replace
from yarl import URL

from correlator import web
from correlator.bounded import Schedule
from correlator.config.schema import Config, Tls
from correlator.config.webhooks import Template, Webhook
from correlator.failures.known import KnownFailures
from correlator.jobs import encoding
from correlator.model import encoder
from correlator.model.document import NO_METADATA, JobDocument
from correlator.model.messages import CloudEvent
from correlator.model.published import Event, PublishedJob
from correlator.model.replies import OperatorNote, ReceiverState, WebhooksPart
from correlator.ops import metrics
from correlator.ops.event_loop import timed
from correlator.ops.logs import escape
from correlator.ops.outage import Outage
from correlator.pipeline.hub import Batch, Hub
from correlator.sinks.event_log import EventLog, PendingEvents
from correlator.sinks.lateness import Lateness, Notice
from correlator.sinks.receiver import Receiver, Response, Verdict, open_session, tls_context
from correlator.tasks import Backoff, TaskGroup, set_within

log = logging.getLogger(__name__)


class WebhookTimings(Struct, frozen=True):
    """All of them, in seconds, but for the factor."""

    retry_base: float = 2.0
    retry_factor: float = 2.0
    retry_cap: float = 300.0
    """The limit of the first delay after a failure, its growth, and its maximum. See `correlator.tasks`."""

    max_retry_after: float = 3_600.0
    """The longest Retry-After of a receiver that is respected."""

    give_up_after: float = 24 * 3_600.0
    """For which an event is tried again."""

    after_start: float = 3_600.0
    """For which, at least, a new run tries an event of the last one again."""

    late_after: float = 60.0
    on_time_below: float = 30.0
    """A receiver that accepts events is too slow once one has waited for the first, until none has for the second."""

    goodbye_within: float = 3.0
    """That requests in flight have to end when the daemon stops. Those that do not are sent again."""


DEFAULT = WebhookTimings()


MAX_EVENTS = 10_000
MAX_BYTES = 24 * 1024 * 1024
"""Maximum number of events that wait for a receiver, and of the bytes that they take."""


OVERHEAD = 1_150
"""Bytes that an event takes besides its body."""


MAX_IN_FLIGHT = 4
"""Maximum number of requests to one receiver at a time."""


class Delivery(Struct, frozen=True):
    """An event to send. `number` orders events; `added_at`: seconds of the clock that all times here are of."""

    number: int
    job_id: str
    message_id: str
    body: bytes
    added_at: float


class Deliveries(PendingEvents[Delivery]):
    """The events for one receiver. Use it from one event loop only. `uniform` returns numbers in [0, 1)."""

    def __init__(
        self,
        event_log: EventLog,
        timings: WebhookTimings = DEFAULT,
        *,
        max_events: int = MAX_EVENTS,
        max_bytes: int = MAX_BYTES,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(event_log, max_events=max_events, max_bytes=max_bytes, overhead=OVERHEAD)
        self._timings = timings
        self._uniform = uniform
        self._queues: dict[str, _JobQueue] = {}
        self._ready: OrderedDict[str, None] = OrderedDict()
        """The jobs whose first event may be sent now."""
        self._resting = Schedule[str]()
        """When the first event of a job may be sent again, of the jobs whose first event failed."""
        self._in_flight: set[int] = set()
        self._backoff = Backoff(timings.retry_base, timings.retry_factor, timings.retry_cap, uniform=uniform)
        self._paused_until = 0.0
        """Backoff. A success ends it."""
        self._asked_until = 0.0
        """When the longest pause ends that the receiver asked for."""
        self._is_away = False

    def add(self, delivery: Delivery) -> list[int]:
        """Append an event. Returns the numbers of the events that were dropped to make room."""
        self._append(delivery.number, delivery, delivery.body, delivery.added_at)
        self._enqueue(delivery)
        return self._shrink()

    def pop_next(self, now: float) -> Delivery | None:
        """Return the next event to send, which is in flight from now on. None if nothing may be sent at `now`."""
        for job_id in self._resting.pop_until(now, len(self._resting)):
            self._ready[job_id] = None
        if self._is_busy or now < max(self._paused_until, self._asked_until) or not self._ready:
            return None
        delivery = self._queues[self._ready.popitem(last=False)[0]].waiting[0]
        self._in_flight.add(delivery.number)
        return delivery

    def due(self, now: float) -> float | None:
        """Return the time at which `pop_next` may return an event. None: only after `add` or the end of an attempt."""
        if self._is_busy:
            return None
        paused_until = max(self._paused_until, self._asked_until)
        if self._ready:
            return max(now, paused_until)
        first = self._resting.first()
        return max(first[0], paused_until) if first is not None else None

    def delivered(self, delivery: Delivery) -> None:
        """The receiver has acknowledged the event."""
        self._backoff.reset()
        self._is_away, self._paused_until = False, 0.0
        self._remove(delivery)

    def failed(self, delivery: Delivery, now: float, *, away: bool, retry_after: float = 0.0) -> list[int]:
        """Try the event again later. `away`: the receiver failed. Returns the numbers of the events given up.

        `retry_after`: the seconds that the receiver asked to wait.
        """
        if delivery.number not in self:
            return []
        wait = min(max(0.0, retry_after), self._timings.max_retry_after)
        self._in_flight.discard(delivery.number)
        if away:
            self._is_away = True
            self._paused_until = max(self._paused_until, now + self._backoff.next())
            self._asked_until = max(self._asked_until, now + wait)
        queue = self._queues[delivery.job_id]
        timings = self._timings
        limit = min(timings.retry_cap, timings.retry_base * timings.retry_factor ** min(queue.failures, 16))
        queue.failures += 1
        self._resting.put(delivery.job_id, now + max(self._uniform() * limit, wait))
        tried = map(self.__getitem__, self) if away else iter((delivery,))
        old = takewhile(lambda one: now - one.added_at >= timings.give_up_after, tried)
        expired = [one for one in old if one.number not in self._in_flight]
        for one in expired:
            self._remove(one)
        return [one.number for one in expired]

    def clear(self) -> list[int]:
        """Drop all events: the receiver is gone. Returns their numbers."""
        dropped = [*self]
        for number in dropped:
            self._forget(number)
        self.restart()
        return dropped

    def restart(self) -> None:
        """Nothing is in flight, and nothing waits for a retry: send all events again, in the old order."""
        for waiting in (self._queues, self._ready, self._resting, self._in_flight):
            waiting.clear()
        self._backoff.reset()
        self._is_away, self._paused_until, self._asked_until = False, 0.0, 0.0
        for number in self:
            self._enqueue(self[number])

    @property
    def _is_busy(self) -> bool:
        """True if as many requests are in flight as the receiver may get at a time."""
        return len(self._in_flight) >= (1 if self._is_away else MAX_IN_FLIGHT)

    def _enqueue(self, delivery: Delivery) -> None:
        queue = self._queues.get(delivery.job_id)
        if queue is None:
            self._queues[delivery.job_id] = _JobQueue([delivery])
            self._ready[delivery.job_id] = None
        else:
            queue.waiting.append(delivery)

    def _shrink(self) -> list[int]:
        dropped: list[int] = []
        while self.is_full:
            oldest = next((number for number in self if number not in self._in_flight), None)
            if oldest is None:
                break
            self._remove(self[oldest])
            dropped.append(oldest)
        return dropped

    def _remove(self, delivery: Delivery) -> None:
        if delivery.number not in self:
            return
        self._forget(delivery.number)
        self._in_flight.discard(delivery.number)
        job_id = delivery.job_id
        queue = self._queues[job_id]
        was_first = queue.waiting[0] is delivery
        queue.waiting.remove(delivery)
        if was_first:
            queue.failures = 0
            self._resting.discard(job_id)
            self._ready[job_id] = None
        if not queue.waiting:
            del self._queues[job_id], self._ready[job_id]


class _JobQueue(Struct):
    """The events of one job. `failures`: failed attempts of the first one.

    A job is in one place at a time: its first event may be sent (`_ready`), is in flight, or waits (`_resting`).
    """

    waiting: list[Delivery]
    failures: int = 0


_VERDICTS = {**dict.fromkeys((400, 409, 413, 415, 422), Verdict.REFUSED), HTTPStatus.GONE: Verdict.GONE}


def judge(response: Response) -> Verdict:
    """Judge a response. See Standard Webhooks, "Delivery success and failure"."""
    return response.verdict(_VERDICTS, Verdict.AWAY)


# -- what the checkpoint keeps


class StoredDelivery(Struct, frozen=True, tag="delivery"):
    """The head of an event with a body, for one webhook. `at`: Unix seconds at which it was added."""

    webhook: str
    job_id: str
    message_id: str
    at: float


class StoredEvent(Struct, frozen=True, tag="arrival"):
    """The head of an event whose body has not been made: it is sent to every webhook that wants it."""

    event: Event
    at: float


StoredHead = StoredDelivery | StoredEvent
STORED_HEADS: Decoder[StoredHead] = Decoder(StoredHead)


# -- request


MAX_BODY = 256 * 1024
"""Maximum bytes of a body."""


MAX_STEPS = 200
"""Maximum number of steps of a job whose document is sent with its steps."""


CLOUD_EVENT, JSON = "application/cloudevents+json", "application/json"


_CUT: dict[str, Any] = {
    "steps": {},
    "metadata": NO_METADATA,
    "child_job_ids": (),
    "forecast": None,
    "last_message": None,
    "error": None,
    "external_ids": (),
}
"""Members that are emptied, one after the other, until the body fits."""


class Bodies:
    """Makes bodies. `instance`: the name of this daemon, part of the source of each event. `page`: its URL, or None.

    `known`: what operators know of failures.
    """

    def __init__(self, instance: str, page: str | None, known: KnownFailures | None = None) -> None:
        self._page = page
        self._known = known or KnownFailures()
        self._source = f"/correlator/{quote(instance, safe='')}"

    def make(self, event: Event, shown: PublishedJob | None, template: Template | None) -> bytes | None:
        """Return the body, or None if it is larger than `MAX_BODY` whatever is left out. `shown` None: unknown job."""
        with_steps = shown is None or len(shown.view.steps) <= MAX_STEPS
        cut = [] if with_steps else ["steps"]
        data = encoding.document(shown, steps=with_steps) if shown is not None else None
        failure = data.failure if data is not None else None
        note = self._known.note(failure.fingerprint, failure.text) if failure is not None else None
        body = self._encoded(event, data, cut, note, template)
        for name, empty in _CUT.items():
            if len(body) <= MAX_BODY:
                return body
            if data is not None and getattr(data, name) not in (empty, None):
                data = replace(data, **{name: empty})
                cut.append(name)
                body = self._encoded(event, data, cut, note, template)
        return body if len(body) <= MAX_BODY else None

    def _encoded(
        self,
        event: Event,
        data: JobDocument | None,
        cut: list[str],
        note: OperatorNote | None,
        template: Template | None,
    ) -> bytes:
        made = self._cloud_event(event, data, cut, note)
        if template is None:
            return encoding.compact(encoder.encode(made))
        members = {**encoding.transition(event), "kind": event.kind.value}
        job = orjson.loads(encoder.encode(data)) if data is not None else {}
        url = web.address(self._page, "jobs", event.job_id)
        said = asdict(note) if note is not None else {}
        context = {**made, "url": url, "event": members, "job": job, "note": said}
        return encoding.compact(encoding.encode(template.render(context)))

    def _cloud_event(
        self, event: Event, data: JobDocument | None, cut: list[str], note: OperatorNote | None
    ) -> CloudEvent:
        """See CloudEvents 1.0.2, JSON Event Format, 3. Extension attributes are those from `stepid` on.

        Attributes hold no control characters, surrogates and noncharacters (CloudEvents 1.0.2, 3, Type System).
        """
        made: CloudEvent = {
            "specversion": "1.0",
            "id": webhook_id(event),
            "source": self._source,
            "type": f"correlator.{event.kind.value}",
            "subject": escape(event.job_id),
            "time": encoding.rfc3339(event.at),
            "datacontenttype": "application/json",
            "data": data,
        }
        if event.step_id is not None:
            made["stepid"] = str(event.step_id)
        if event.step_name:
            made["stepname"] = escape(event.step_name)
        if note is not None:
            made["note"] = escape(note.text)
            if note.link is not None:
                made["notelink"] = note.link
        if cut:
            made["datacut"] = " ".join(cut)
        return made


def webhook_id(event: Event) -> str:
    """Return the ID of an event. It is the same if a restart finds the event again, and contains no full stop.

    An ID of the log may occur again after a reset, so the job and the kind are part of it. A transition without a log
    row has its time instead.
    """
    place = f"row {event.event_id}" if event.event_id is not None else f"{event.step_id} at {event.at}"
    text = f"{event.job_id}\n{event.kind.value}\n{place}"
    return "evt_" + hashlib.blake2s(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def webhook_headers(keys: Sequence[bytes], identifier: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the headers of one attempt. `keys`: one signature each. `timestamp`: Unix seconds, of now."""
    found = {"webhook-id": identifier, "webhook-timestamp": str(timestamp)}
    if keys:
        content = b"%b.%d.%b" % (identifier.encode(), timestamp, body)
        found["webhook-signature"] = " ".join(f"v1,{_signature(key, content)}" for key in keys)
    return found


def _signature(key: bytes, content: bytes) -> str:
    return base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()


def receiver(webhook: Webhook, context: ssl.SSLContext) -> Receiver:
    """Return where the events of a webhook are sent. `context`: the TLS context for its URL."""
    headers = {"Content-Type": JSON if webhook.body is not None else CLOUD_EVENT}
    if webhook.authorization:
        headers["Authorization"] = webhook.authorization.reveal()
    return Receiver(_url(webhook), headers, context, webhook.timeout)


def _url(webhook: Webhook) -> URL:
    assert webhook.url is not None
    return URL(webhook.url.reveal(), encoded=True)


SHORTEST, KEY, BEGINNING = 6, 16, 12
"""Characters from which on a part of a URL, and a text of a body, may be a secret; those that are searched of it."""


def repeats_a_secret(webhook: Webhook, text: str) -> bool:
    """Return whether a response repeats a secret that it was sent, also if it is escaped as in a URL, HTML or JSON.

    The beginnings of the secrets are searched, as a response may be cut in the middle of one.
    """
    url = _url(webhook)
    literals = webhook.body.literals if webhook.body is not None else ()
    keys = [literal for literal in literals if len(literal) >= KEY and " " not in literal]
    credentials = webhook.authorization.reveal().split()
    whole = [url.raw_path_qs, *keys, *(credentials[1:] or credentials)]
    words = [*url.raw_path.split("/"), *url.query.values()]
    beginnings = {
        form[:BEGINNING].lower()
        for secret in (*whole, *words)
        if len(secret) >= SHORTEST
        for form in (secret, unquote(secret))
    }
    forms = [form.lower() for form in (text, unquote(text), html.unescape(text), text.replace("\\", ""))]
    return any(beginning in form for form in forms for beginning in beginnings)


# -- sink


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
    `StoredEvent` without one. `max_events`: how many may wait for one receiver. Raises: `ConfigError` if a CA file
    cannot be used.
    """

    def __init__(
        self, config: Config, event_log: EventLog, timings: WebhookTimings = DEFAULT, *, max_events: int = MAX_EVENTS
    ) -> None:
        self._event_log = event_log
        self._timings = timings
        self._max_events = max_events
        self._instance = config.mqtt.instance
        self._bodies = Bodies(self._instance, None)
        self._endpoints: dict[str, WebhookEndpoint] = {}
        self._noted_events = NotedEvents()
        self._hub: Hub | None = None
        self._group: TaskGroup | None = None
        self._wake = asyncio.Event()
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
            self._bodies = Bodies(self._instance, config.http.public_url, KnownFailures(config.failures.notes))
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
            async with TaskGroup() as self._group:
                self._group.create_task(self._make_bodies(hub), name="webhook bodies")
                for endpoint in self._endpoints.values():
                    self._start(endpoint)
        finally:
            self._group = None
            unsubscribe()

    # -- the configuration

    def _apply(self, wanted: Mapping[str, tuple[Webhook, ssl.SSLContext]]) -> None:
        for name in [name for name in self._endpoints if name not in wanted]:
            self._endpoints.pop(name).remove()
        for name, (webhook, context) in wanted.items():
            known = self._endpoints.get(name)
            if known is not None:
                known.configure(webhook, context)
                continue
            self._endpoints[name] = WebhookEndpoint(webhook, context, self._event_log, self._timings, self._max_events)
            self._start(self._endpoints[name])
        self._show_part()

    def _start(self, endpoint: WebhookEndpoint) -> None:
        """Start the task of an endpoint, if the sink runs. It ends when the endpoint is removed."""
        if self._group is not None and self._hub is not None:
            self._group.create_task(endpoint.run(self._hub), name=f"webhook {endpoint.webhook.name}")

    def _show_part(self) -> None:
        if self._hub is None:
            return
        if self._endpoints:
            self._hub.readiness[PART] = self.describe
        else:
            self._hub.readiness.pop(PART, None)

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
                await set_within(self._wake, BEAT if due is None else min(BEAT, due - now))

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


class WebhookEndpoint:
    """One webhook. Use it from one event loop only. `context`: the TLS context of its connections."""

    def __init__(
        self,
        webhook: Webhook,
        context: ssl.SSLContext,
        event_log: EventLog,
        timings: WebhookTimings,
        max_events: int = MAX_EVENTS,
    ) -> None:
        self.webhook = webhook
        self._target: Receiver | None = receiver(webhook, context)
        """Where events are sent. None: the webhook is not configured any more."""
        self._event_log = event_log
        self._timings = timings
        self._deliveries = Deliveries(event_log, timings, max_events=max_events)
        self._lateness = Lateness(timings.late_after, timings.on_time_below)
        self._full = 0
        """Events that were dropped because too many waited."""
        self._disabled = False
        self._outage = Outage()
        self._away: Response | None = None
        """Why the receiver does not accept events; None: it does, as far as is known."""
        self._refused: dict[int, str] = {}
        """Why the receiver refused an event, by its number."""
        self._wake = asyncio.Event()
        name = webhook.name
        for reason in get_args(DropReason):
            metrics.WEBHOOK_EVENTS_DROPPED.labels(name, reason)
        for verdict in Verdict:
            metrics.WEBHOOK_REQUESTS.labels(name, verdict.value)
        metrics.WEBHOOK_PENDING.labels(name).set_function(lambda: len(self._deliveries))
        metrics.WEBHOOK_QUEUE_AGE.labels(name).set_function(self._age)

    def configure(self, webhook: Webhook, context: ssl.SSLContext) -> None:
        """Use other settings, and send again to a receiver that was gone."""
        if webhook != self.webhook or webhook.ca is not None:  # The CA file may have changed.
            self._target = receiver(webhook, context)
        self.webhook = webhook
        if self._disabled:
            self._disabled, self._away = False, None
            self._outage.end()
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
        self._target = None
        self._wake.set()
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

    async def run(self, hub: Hub) -> None:
        """Send what the queue allows, until cancelled or removed. Raises: defects of the program alone."""
        with hub.live.heartbeat("webhooks", STUCK_AFTER) as beat:
            while (target := self._target) is not None:
                await self._send(target, beat)

    async def _send(self, target: Receiver, beat: Callable[[], None]) -> None:
        """Send to `target` until a reload changes it. Requests in flight then have some seconds to end."""
        self._deliveries.restart()
        attempts: set[asyncio.Task[None]] = set()
        session = open_session(allow_private=self.webhook.allow_private)
        async with session, TaskGroup() as group:
            try:
                while self._target is target:
                    beat()
                    self._wake.clear()
                    now = time.monotonic()
                    self._judge_age(now)
                    if not self._disabled and (delivery := self._deliveries.pop_next(now)) is not None:
                        attempt = self._attempt(target, session, delivery)
                        task = group.create_task(attempt, name=f"webhook {self.webhook.name}")
                        attempts.add(task)
                        task.add_done_callback(attempts.discard)
                        task.add_done_callback(lambda _: self._wake.set())
                        continue
                    due = None if self._disabled else self._deliveries.due(now)
                    await set_within(self._wake, BEAT if due is None else min(BEAT, max(0.0, due - now)))
            finally:
                if attempts:
                    await asyncio.wait(attempts, timeout=self._timings.goodbye_within)
                for task in attempts:
                    task.cancel()

    async def _attempt(self, target: Receiver, session: aiohttp.ClientSession, delivery: Delivery) -> None:
        webhook = self.webhook
        signed = webhook_headers(webhook.secret.keys, delivery.message_id, int(time.time()), delivery.body)
        answer = await target.post(session, delivery.body, signed)
        verdict = judge(answer)
        metrics.WEBHOOK_REQUESTS.labels(webhook.name, verdict.value).inc()
        if verdict is not Verdict.ACCEPTED and (delivery.number not in self._deliveries or target is not self._target):
            return  # Another response ended all events (410), or the receiver of today gets them.
        now = time.monotonic()
        if verdict is not Verdict.ACCEPTED:
            self._lateness.fails()
        match verdict:
            case Verdict.ACCEPTED:
                self._lateness.accepts(now)
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
        if self._refused:
            return
        match self._lateness.judge(now, self._age(), self._full):
            case Notice.LATE:
                log.warning("webhook %s: %s", self.webhook.name, self._late())
            case Notice.ENDS:
                self._log(logging.INFO, "keeps up again")

    def _late(self) -> str:
        dropped = f", and {self._full:,} were dropped" if self._full else ""
        return (
            f"the receiver is too slow: {len(self._deliveries):,} events wait, the oldest for {self._age():.0f} s"
            f"{dropped}. It gets them late. Make it faster, or send it fewer events (events, operations, statuses)"
        )

    def _log(self, level: int, what: str) -> None:
        log.log(level, "webhook %s: the receiver at %s %s", self.webhook.name, self.webhook.url, what)

    def _is_back(self) -> None:
        if self._away is None or self._disabled:
            return
        self._log(logging.INFO, "accepts events again")
        self._away = None
        self._outage.end()

    def _is_away(self, answer: Response) -> None:
        if log.isEnabledFor(level := self._outage.level(answer.public)):
            why = f"{answer.error}{_quoted(self.webhook, answer)}"
            self._log(level, f"does not accept events: {why}; they are kept and tried again")
        self._away = answer

    def _is_refused(self, delivery: Delivery, answer: Response) -> None:
        if delivery.number not in self._refused:
            why = f"{answer.error}{_quoted(self.webhook, answer)}"
            self._log(logging.WARNING, f"refuses event {delivery.message_id}: {why}; it is tried again for 24 h")
        self._refused[delivery.number] = answer.public

    def _is_gone(self, answer: Response) -> None:
        dropped = self._deliveries.clear()
        if not self._disabled:
            quoted = _quoted(self.webhook, answer)
            self._log(logging.WARNING, f"wants no more events (HTTP 410){quoted}; nothing is sent until a reload")
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
        return not (webhook.operations or webhook.statuses or webhook.failures)
    view, failure = shown.view, shown.failure
    if webhook.failures and (failure is None or failure.state not in webhook.failures):
        return False
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
