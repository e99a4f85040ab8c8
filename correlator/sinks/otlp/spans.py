"""An ended job as OTLP spans in JSON: one SERVER span for the job, and one INTERNAL span for each step.

Names and values follow the semantic conventions of OpenTelemetry for CI/CD (`cicd.pipeline.*`); what they have no name
for is `correlator.*`. The encoding is the JSON form of OTLP: IDs in hexadecimal, enums as numbers, 64-bit integers as
texts.

Every ID follows from the job alone, so a job that is sent twice has the same spans, and a child names its parent's span
without the parent. Each job is a trace of its own, and parent and child are linked. One trace for both would need the
ID of the oldest ancestor, which may have left memory, and a parent may start jobs for days.

Nothing here reads a clock or does I/O.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any

from correlator import __version__
from correlator.jobs import encoding, fold
from correlator.model.facts import Status
from correlator.model.published import JobView, PublishedJob
from correlator.model.rows import Micros, StepRecord

INTERNAL, SERVER = 1, 2
"""Values of `Span.SpanKind`."""

ERROR = 2
"""The value of `Status.StatusCode` for a failure. OpenTelemetry leaves the status of a success unset."""

RESULTS: dict[str, str] = {
    Status.COMPLETED: "success",
    Status.FAILED: "failure",
    Status.CANCELLED: "cancellation",
    Status.SKIPPED: "skip",
}
"""`cicd.pipeline.result` and `cicd.pipeline.task.run.result` of each status that has ended."""

MAX_TEXT, MAX_ERROR = 1_000, 8_000
"""Characters of an attribute, and of the message of an error."""

MAX_IDS, MAX_LINKS = 32, 100
"""External IDs of a job and links to its children that a span carries: the first, and the newest."""

MAX_NANOS = (1 << 63) - 1
"""The latest time that receivers can store, in nanoseconds: some use signed numbers."""


def trace_id(job_id: str) -> str:
    """The trace of a job: its UUID, or for another ID the first 16 bytes of the SHA-256 of ``trace:`` and the ID."""
    try:
        number = uuid.UUID(job_id)
    except ValueError:
        number = uuid.UUID(int=0)
    if number.int == 0 or str(number) != job_id.lower():  # zero is not valid, and UUID() also accepts other spellings
        return _digest(f"trace:{job_id}", 16)
    return number.hex


def job_span_id(job_id: str) -> str:
    """The first 8 bytes of the SHA-256 of ``job:`` and the job's ID."""
    return _digest(f"job:{job_id}", 8)


def step_span_id(job_id: str, step_id: int) -> str:
    """The first 8 bytes of the SHA-256 of ``step:``, the step's ID, ``:`` and the job's ID."""
    return _digest(f"step:{step_id}:{job_id}", 8)


def spans(shown: PublishedJob) -> Iterator[bytes]:
    """Yield the encoded spans of an ended job, the job's own first. Each costs some microseconds."""
    times = _span_of_job(shown.view)
    yield encoding.encode(_job_span(shown, times))
    for step in shown.view.steps:
        yield encoding.encode(_step_span(shown.view, times, step))


def request(encoded: Iterable[bytes], instance: str) -> bytes:
    """Build an `ExportTraceServiceRequest` of encoded spans. `instance`: the name of this daemon."""
    resource = {"service.name": "correlator", "service.version": __version__, "service.instance.id": instance}
    head = {"resource": {"attributes": _attributes(resource)}}
    scope = {"name": "correlator", "version": __version__}
    return b'{"resourceSpans":[%b,"scopeSpans":[{"scope":%b,"spans":[%b]}]}]}' % (
        encoding.encode(head)[:-1],
        encoding.encode(scope),
        b",".join(encoded),
    )


def _job_span(shown: PublishedJob, times: tuple[Micros, Micros]) -> dict[str, Any]:
    view = shown.view
    pipeline = view.operation or view.job_type
    failed = view.status is Status.FAILED
    span: dict[str, Any] = {
        "traceId": trace_id(view.job_id),
        "spanId": job_span_id(view.job_id),
        "name": _cut(f"RUN {pipeline}" if pipeline else "RUN", MAX_TEXT),
        "kind": SERVER,
        **_times(*times),
        "attributes": _attributes(
            {
                "cicd.pipeline.name": pipeline,
                "cicd.pipeline.action.name": "RUN",
                "cicd.pipeline.run.id": view.job_id,
                "cicd.pipeline.result": RESULTS.get(view.status),
                "error.type": "_OTHER" if failed else None,
                "correlator.external_ids": view.external_ids[:MAX_IDS],
                "correlator.context_id": view.context_id,
                "correlator.job_type": view.job_type,
                "correlator.category": view.category,
                "correlator.owner": view.owner,
                "correlator.vm_name": fold.vm_name(view),
                "correlator.source": view.source,
                "correlator.warnings": view.warnings,
                "correlator.errors": view.errors,
                "correlator.failure.fingerprint": shown.failure.fingerprint if shown.failure is not None else None,
            }
        ),
        **_status(failed=failed, error=view.error),
    }
    links = [_link(view.parent_job_id, "parent")] if view.parent_job_id else []
    links += [_link(child, "child") for child in shown.children[-MAX_LINKS:]]
    if links:
        span["links"] = links
    if (dropped := shown.child_count - min(len(shown.children), MAX_LINKS)) > 0:
        span["droppedLinksCount"] = dropped
    return span


def _step_span(view: JobView, times: tuple[Micros, Micros], step: StepRecord) -> dict[str, Any]:
    failed = step.status == Status.FAILED.value
    job_started, job_ended = times
    started = next((at for at in (step.started_at, step.completed_at) if at is not None), job_started)
    name = step.name or f"step {step.seq}"
    return {
        "traceId": trace_id(view.job_id),
        "spanId": step_span_id(view.job_id, step.id),
        "parentSpanId": job_span_id(view.job_id),
        "name": _cut(name, MAX_TEXT),
        "kind": INTERNAL,
        **_times(started, step.completed_at if step.completed_at is not None else job_ended),
        "attributes": _attributes(
            {
                "cicd.pipeline.task.name": name,
                "cicd.pipeline.task.run.id": str(step.id),
                # A step that has not ended was interrupted by the end of its job.
                "cicd.pipeline.task.run.result": RESULTS.get(step.status) or RESULTS.get(view.status),
                "cicd.pipeline.run.id": view.job_id,
                "error.type": "_OTHER" if failed else None,
                "correlator.step.seq": step.seq,
            }
        ),
        **_status(failed=failed, error=step.error_message),
    }


def _span_of_job(view: JobView) -> tuple[Micros, Micros]:
    """The start and the end of a job's span. A time that the tables lack is that of its first or last step.

    Where the end has whole seconds, it moves within its second to the end of the last step, which has microseconds.
    """
    began = [at for step in view.steps if (at := step.started_at) is not None]
    done = [at for step in view.steps for at in (step.completed_at, step.started_at) if at is not None]
    first, last = min(began, default=None), max(done, default=None)
    ended = next((at for at in (view.ended_at, last, view.started_at) if at is not None), 0)
    if last is not None and ended % 1_000_000 == 0 and ended < last < ended + 1_000_000:
        ended = last
    return next((at for at in (view.started_at, first) if at is not None), ended), ended


def _times(started: Micros, ended: Micros) -> dict[str, str]:
    """The two times of a span in nanoseconds. It never ends before it begins: clocks of machines differ."""
    begin = min(max(0, started) * 1_000, MAX_NANOS)
    return {"startTimeUnixNano": str(begin), "endTimeUnixNano": str(max(begin, min(max(0, ended) * 1_000, MAX_NANOS)))}


def _status(*, failed: bool, error: str | None) -> dict[str, Any]:
    if not failed:
        return {}
    return {"status": {"code": ERROR, "message": _cut(error, MAX_ERROR)} if error else {"code": ERROR}}


def _link(job_id: str, relation: str) -> dict[str, Any]:
    return {
        "traceId": trace_id(job_id),
        "spanId": job_span_id(job_id),
        "attributes": _attributes({"correlator.relation": relation}),
    }


def _attributes(values: Mapping[str, str | int | Sequence[str] | None]) -> list[dict[str, Any]]:
    """The attributes that have a value: None and what is empty are left out."""
    return [{"key": key, "value": _value(value)} for key, value in values.items() if value not in (None, "", ())]


def _value(value: str | int | Sequence[str] | None) -> dict[str, Any]:
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, str):
        return {"stringValue": _cut(value, MAX_TEXT)}
    return {"arrayValue": {"values": [_value(one) for one in value or ()]}}


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _digest(text: str, size: int) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).digest()[:size].hex()
