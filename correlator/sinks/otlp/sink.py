"""The OTLP sink: sends every ended job as a trace to one receiver, some seconds after its end.

`on_batch` only notes which jobs have ended (`jobs.exports.Exports`); no document waits in memory. When jobs are due,
the task in `run` makes the spans of as many as one request holds, from what is published then, and sends the request
until the receiver has it or refuses it. So a receiver that is unreachable for a day costs one request and the IDs of
the jobs. A job that leaves memory before it was sent is dropped and counted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Hashable, Iterator
from http import HTTPStatus
from typing import Any

import aiohttp
from msgspec import Struct

from correlator.bounded import chunks
from correlator.config.schema import Config
from correlator.jobs.exports import Exports
from correlator.ops import metrics
from correlator.ops.event_loop import timed
from correlator.ops.outage import Outage
from correlator.pipeline.hub import Batch, Hub
from correlator.sinks.lateness import Lateness, Notice
from correlator.sinks.otlp import spans
from correlator.sinks.otlp.receiver import TraceAnswer, TraceReceiver, receiver
from correlator.sinks.receiver import Verdict, open_session
from correlator.tasks import Backoff, set_within

log = logging.getLogger(__name__)

MAX_BYTES, MAX_SPANS = 512_000, 500
"""The size from which on a request takes no further span. Proxies accept 1 MB by default, a collector 20."""

STUCK_AFTER = 90.0
"""Seconds without a heartbeat after which the sink is stuck: more than `BEAT` and `FINISH_WITHIN` together."""

BEAT = 20.0
"""The longest single wait, in seconds."""

FINISH_WITHIN = 3.0
"""Seconds at the end for the answer to a request that has been sent."""

GONE_PAUSE = 60.0
"""Seconds between two attempts at a receiver that refuses everything."""

MAX_RETRY_AFTER = 600.0
"""The longest pause in seconds that a receiver can ask for."""

PRUNED_AT_ONCE = 1_000

LATE_AFTER = 60.0
"""Seconds that a job is due before a receiver that accepts traces is too slow."""


class TraceRequest(Struct, frozen=True):
    """One request: its spans, and the jobs of which it has the last span."""

    encoded: list[bytes]
    finished: list[str]


class OtlpSink:
    """Satisfies `correlator.sinks.Sink`. Use it from one event loop only.

    `exports`: which jobs to send; a checkpoint saves it. `max_spans`: of one request. Raises: `CorrelatorError` if a
    file of the configuration cannot be used.
    """

    def __init__(
        self,
        config: Config,
        exports: Exports,
        *,
        backoff: Backoff | None = None,
        gone_pause: float = GONE_PAUSE,
        late_after: float = LATE_AFTER,
        max_spans: int = MAX_SPANS,
    ) -> None:
        self._instance = config.mqtt.instance
        self.exports = exports
        self._receiver: TraceReceiver = receiver(config.otlp)
        self._backoff = backoff or Backoff(1.0, 2.0, 60.0)
        self._gone_pause = gone_pause
        self._max_spans = max_spans
        self._outage = Outage()
        self._error: str | None = None
        self._public = ""
        self._lateness = Lateness(late_after, late_after / 2)
        self._traces = 0
        self._dropped = 0
        self._wake = asyncio.Event()
        self._reloaded = asyncio.Event()
        self._heartbeat: Callable[[], None] = lambda: None

    def prepare(self, config: Config) -> Callable[[], None]:
        """Check a new configuration and return the function that applies it; satisfies `reload.Prepare`."""
        new = receiver(config.otlp) if config.otlp.url is not None else self._receiver

        def apply() -> None:
            self._receiver, self.exports.delay = new, config.otlp.delay
            self._reloaded.set()
            self._wake.set()

        return apply

    def describe(self) -> dict[str, Any]:
        """Return the part of readiness that describes the receiver."""
        error = self._public if self._error is not None else self._late() if self._lateness.is_late else None
        return {
            "ok": error is None,
            "pending": self.exports.pending,
            "exported": self._traces,
            "dropped": self._dropped,
            "error": error,
        }

    async def run(self, hub: Hub) -> None:
        """Send until cancelled. What is pending then is sent by the next run."""
        exports = self.exports

        def on_batch(batch: Batch) -> None:
            with timed("otlp changes"):
                now, at = time.monotonic(), hub.clock()
                for change in batch.changes:
                    exports.on_change(change, at, now)
            self._count_dropped()
            self._wake.set()

        hub.readiness["otlp"] = self.describe
        metrics.OTLP_PENDING.set_function(lambda: exports.pending)
        metrics.OTLP_QUEUE_AGE.set_function(lambda: 0.0 if (t := exports.oldest()) is None else time.monotonic() - t)
        unsubscribe = hub.subscribe(on_batch)
        try:
            async with open_session() as session:
                with hub.live.heartbeat("otlp", STUCK_AFTER) as self._heartbeat:
                    await self._loaded(hub)
                    while True:
                        await self._due()
                        requests = self._requests(hub)
                        while (request := _next(requests)) is not None:
                            await self._deliver(session, request)
        finally:
            unsubscribe()

    async def _loaded(self, hub: Hub) -> None:
        """Wait until the index is loaded. Then forget the jobs of the last run that it does not have any more."""
        while hub.status.loading:
            self._heartbeat()
            await asyncio.sleep(0.1)
        self.exports.begin(hub.clock())
        for some in chunks(self.exports.all_ids(), PRUNED_AT_ONCE):
            self.exports.prune(some, lambda job_id: hub.published.get(job_id) is not None)
            await asyncio.sleep(0)
        self._count_dropped()

    async def _due(self) -> None:
        """Wait until a job is due."""
        while (due := self.exports.next_due()) is None or due > time.monotonic():
            self._wake.clear()
            await self._wait(self._wake, BEAT if due is None else due - time.monotonic())

    async def _wait(self, event: asyncio.Event, seconds: float) -> None:
        """Wait for `event`, at most `seconds` and at most `BEAT`."""
        self._heartbeat()
        await set_within(event, max(0.0, min(seconds, BEAT)))

    def _requests(self, hub: Hub) -> Iterator[TraceRequest]:
        """Yield requests with all jobs that are due. A job of many steps continues in the next request."""
        request, size = TraceRequest([], []), 0
        while (job_id := self.exports.pop_due(time.monotonic())) is not None:
            shown = hub.published.get(job_id)
            if shown is None or not shown.view.terminal:
                self.exports.withdraw(job_id)
                continue
            for span in spans.spans(shown):
                if size >= MAX_BYTES or len(request.encoded) >= self._max_spans:
                    yield request
                    request, size = TraceRequest([], []), 0
                request.encoded.append(span)
                size += len(span)
            request.finished.append(job_id)
        if request.encoded or request.finished:
            yield request

    async def _deliver(self, session: aiohttp.ClientSession, request: TraceRequest) -> None:
        """Send a request until the receiver has it, or refuses it for good. One that is too large is sent in halves."""
        body = spans.request(request.encoded, self._instance)
        while request.encoded:
            self._reloaded.clear()
            attempt = asyncio.create_task(self._receiver.export(session, body), name="otlp request")
            try:
                while not attempt.done():
                    self._heartbeat()
                    await asyncio.wait({attempt}, timeout=BEAT)
            except asyncio.CancelledError:
                # The receiver may have it already: if it says so now, the next run does not send it again.
                await asyncio.wait({attempt}, timeout=FINISH_WITHIN)
                answer = attempt.result() if attempt.done() else None
                if answer is not None and not _is_too_large(answer, request) and self._is_settled(answer, request):
                    self._finish(request)
                attempt.cancel()
                raise
            answer = attempt.result()
            if _is_too_large(answer, request):
                middle = len(request.encoded) // 2
                await self._deliver(session, TraceRequest(request.encoded[:middle], []))
                await self._deliver(session, TraceRequest(request.encoded[middle:], request.finished))
                return
            if self._is_settled(answer, request):
                break
            await self._pause(answer)
        self._finish(request)

    async def _pause(self, answer: TraceAnswer) -> None:
        """Wait before the next attempt, or until a reload."""
        pause = self._gone_pause if answer.verdict is Verdict.GONE else self._backoff.next()
        until = time.monotonic() + max(pause, min(answer.response.retry_after, MAX_RETRY_AFTER))
        while not self._reloaded.is_set() and (left := until - time.monotonic()) > 0:
            await self._wait(self._reloaded, left)

    def _is_settled(self, answer: TraceAnswer, request: TraceRequest) -> bool:
        """Count and log an answer. Returns False if the request must be sent again."""
        if answer.verdict in (Verdict.AWAY, Verdict.GONE):
            metrics.OTLP_FAILURES.inc()
            end = "and are tried again"
            self._failed(
                (answer.verdict, answer.response.public),
                f"traces are not exported to {self._receiver.name}, {end}: {answer.words}",
                f"traces are not exported, {end}: {answer.public}",
            )
            return False
        self._backoff.reset()
        sent = len(request.encoded)
        if answer.verdict is Verdict.REFUSED:
            metrics.OTLP_SPANS.labels("refused").inc(sent)
            kind = answer.verdict, answer.response.public
            self._failed(kind, f"the receiver refuses traces, which are dropped: {answer.words}")
            return True
        rejected = min(answer.rejected, sent)
        metrics.OTLP_SPANS.labels("accepted").inc(sent - rejected)
        metrics.OTLP_SPANS.labels("rejected").inc(rejected)
        metrics.OTLP_TRACES.inc(len(request.finished))
        self._traces += len(request.finished)
        if rejected:
            error = f"the receiver rejected {rejected} of {sent} spans: {answer.words or 'it gives no reason'}"
            self._failed("rejected", error)
        else:
            if answer.words:
                log.info("the receiver has a note on traces: %s", answer.words)
            if self._error is not None:
                log.info("traces are exported to %s", self._receiver.name)
            self._error = None
            self._outage.end()
        return True

    def _finish(self, request: TraceRequest) -> None:
        for job_id in request.finished:
            self.exports.finished(job_id)
        self._judge_age()

    def _judge_age(self) -> None:
        """Log when the receiver becomes too slow, and when it keeps up again."""
        now = time.monotonic()
        if self._error is not None:
            self._lateness.fails()
        else:
            self._lateness.accepts(now)
        match self._lateness.judge(now, self._age(), self._dropped):
            case Notice.LATE:
                log.warning("%s", self._late())
            case Notice.ENDS:
                log.info("the receiver of traces keeps up again")

    def _age(self) -> float:
        """Seconds for which the oldest job has been due."""
        oldest = self.exports.oldest()
        return 0.0 if oldest is None else max(0.0, time.monotonic() - oldest - self.exports.delay)

    def _late(self) -> str:
        return (
            f"the receiver of traces is too slow: {self.exports.pending:,} jobs wait, the oldest {self._age():.0f} s."
            " Traces come late, and are dropped if they wait beyond jobs.retention. Make the receiver faster"
        )

    def _failed(self, kind: Hashable, error: str, public: str | None = None) -> None:
        """Log an error. `kind`: see `Outage`. `public`: what readiness says instead."""
        log.log(self._outage.level(kind), "%s", error)
        self._error, self._public = error, public or error

    def _count_dropped(self) -> None:
        if new := self.exports.dropped - self._dropped:
            self._dropped += new
            metrics.OTLP_DROPPED.inc(new)
            log.warning("%d jobs left memory before they were exported as traces", new)


def _is_too_large(answer: TraceAnswer, request: TraceRequest) -> bool:
    """Whether the receiver may take the parts of what it refuses: it must not lose the jobs beside a large one."""
    return answer.response.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE and len(request.encoded) > 1


def _next(requests: Iterator[TraceRequest]) -> TraceRequest | None:
    with timed("otlp spans"):
        return next(requests, None)
