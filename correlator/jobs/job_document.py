"""The encoding of job documents and of the messages about them, shared by REST, websocket, SSE and MQTT.

A document is a pure function of the published job, so all clients get the same bytes of one revision. The names and
shapes are those of docs/protocol.md.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, cast, overload

import orjson

from correlator.jobs import joblog, message_shapes, shapes
from correlator.jobs.model.changes import Event
from correlator.jobs.model.facts import AttributedRow, Entry
from correlator.jobs.model.forecasts import Comparison, Forecast, StepAhead
from correlator.jobs.model.rows import Micros, StepRecord
from correlator.jobs.model.views import JobView, LogLine, PublishedJob, Titles

_EPOCH = datetime.datetime(1970, 1, 1)  # noqa: DTZ001 - only its text is used, with the Z added

MAX_MICROS = 253_402_300_799_999_999
"""9999-12-31T23:59:59.999999Z, the last time that RFC 3339 can express."""


MAX_NESTED = 64
"""The maximum nesting of published metadata, in levels. JSON columns of MariaDB end at 32."""

EXPECTED_SHARE = 0.5
"""Share of the earlier runs that had a step from which on it counts as expected."""

MAX_DEPTH = 200
"""The maximum nesting of an encoded value, in levels. The encoder fails above 254, the parser accepts more."""


@overload
def rfc3339(at: Micros) -> str: ...
@overload
def rfc3339(at: None) -> None: ...
@overload
def rfc3339(at: Micros | None) -> str | None: ...
def rfc3339(at: Micros | None) -> str | None:
    """Format a time as ``2025-09-22T10:00:00.000000Z``. Times outside the years 1 to 9999 are clamped."""
    if at is None:
        return None
    second, micros = divmod(max(-62_135_596_800_000_000, min(at, MAX_MICROS)), 1_000_000)
    return f"{_second(second)}.{micros:06d}Z"


@lru_cache(maxsize=32_768)
def _second(since_1970: int) -> str:
    """Format whole seconds. Cached, because the times of a document are encoded again with each of its changes."""
    return (_EPOCH + datetime.timedelta(seconds=since_1970)).isoformat()


def seconds(start: Micros | None, end: Micros | None) -> float | None:
    """The seconds from `start` to `end`, at least 0, since the two may come from clocks of different machines."""
    if start is None or end is None:
        return None
    return max(0, end - start) / 1_000_000


def document(shown: PublishedJob, *, steps: bool = True) -> shapes.Document:
    """Build the job document. `steps` False leaves the steps out, as in lists of jobs."""
    view, now, forecast, titles = shown.view, shown.updated_at, shown.forecast, shown.titles
    counts = _counts(view.steps)
    last = view.last
    found: shapes.Document = {
        "job_id": view.job_id,
        "external_ids": list(view.external_ids),
        "context_id": view.context_id,
        "parent_job_id": view.parent_job_id,
        "child_job_ids": list(shown.children),
        "job_type": view.job_type,
        "operation": view.operation,
        "category": view.category,
        "owner": view.owner,
        "status": cast("shapes.JobStatus", view.status.value),
        "terminal": view.terminal,
        "error": view.error,
        "started_at": rfc3339(view.started_at),
        "ended_at": rfc3339(view.ended_at),
        "updated_at": rfc3339(shown.updated_at),
        "duration_seconds": seconds(view.started_at, view.ended_at if view.terminal else now),
        "progress": {
            "percent": shown.percent,
            "basis": forecast.basis if forecast is not None and forecast.basis is not None else view.basis,
            "steps_done": counts["completed"],
            "steps_failed": counts["failed"],
            "steps_running": counts["running"],
            "steps_skipped": counts["skipped"],
            "steps_seen": shown.steps_cut or len(view.steps),
            "steps_expected": _steps_expected(shown),
        },
        "forecast": _forecast(forecast.forecast, titles) if forecast is not None else None,
        "compared_with": _comparison(forecast.compared_with) if forecast is not None else None,
        "current_step": current_step(view),
        "steps": {str(s.id): step_document(s, now, titles) for s in view.steps} if steps else {},
        "stalled": shown.stalled,
        "last_event_at": rfc3339(last.at) if last is not None else None,
        "last_message": None if last is None else {"level": last.level, "text": last.text, "at": rfc3339(last.at)},
        "warnings": view.warnings,
        "errors": view.errors,
        "metadata": _metadata(view.metadata),
        "source": view.source,
        "rev": shown.rev,
    }
    if view.external_ids_cut is not None:
        found["external_ids_cut"] = view.external_ids_cut
    if shown.child_count > len(shown.children):
        found["child_job_ids_cut"] = shown.child_count
    if not shown.complete:
        found["counts_complete"] = False
    if not view.steps_complete:
        found["steps_complete"] = False
    if view.error_cut is not None:
        found["error_cut"] = view.error_cut
    if shown.steps_cut is not None:
        found["steps_cut"] = shown.steps_cut
    if shown.instance:
        found["instance"] = shown.instance
    if view.operation is not None and (title := titles.operations.get(view.operation)) is not None:
        found["title"] = title
    step = found["current_step"]
    if step is not None and (title := titles.steps.get(step)) is not None:
        found["current_step_title"] = title
    return found


def _forecast(forecast: Forecast | None, titles: Titles) -> shapes.Forecast | None:
    if forecast is None:
        return None
    return {
        "ends_at": {"p50": rfc3339(forecast.p50), "p90": rfc3339(forecast.p90)},
        "as_of": rfc3339(forecast.as_of),
        "runs": forecast.runs,
        "state": forecast.state.value,
        "typical_seconds": round(forecast.typical_seconds, 3),
        "failure_rate": round(forecast.failure_rate, 3),
        "steps_ahead": [_step_ahead(step, titles) for step in forecast.steps_ahead],
    }


def _step_ahead(step: StepAhead, titles: Titles) -> shapes.StepAhead:
    made: shapes.StepAhead = {
        "name": step.name,
        "share": round(step.share, 2),
        "typical_seconds": round(step.typical_seconds, 3),
    }
    if (title := titles.steps.get(step.name)) is not None:
        made["title"] = title
    return made


def _comparison(found: Comparison | None) -> shapes.Comparison | None:
    if found is None:
        return None
    return {
        "typical_seconds": round(found.typical_seconds, 3),
        "runs": found.runs,
        "percentile": round(found.percentile, 1),
    }


def _steps_expected(shown: PublishedJob) -> int | None:
    """The steps so far, and those ahead that at least half of the earlier runs had. None without a forecast.

    The share counts as it is published, so that the document is consistent in itself.
    """
    if shown.forecast is None or shown.forecast.forecast is None:
        return None
    ahead = shown.forecast.forecast.steps_ahead
    seen = shown.steps_cut or len(shown.view.steps)
    return seen + sum(round(step.share, 2) >= EXPECTED_SHARE for step in ahead)


def _metadata(text: str | None) -> dict[str, Any]:
    """Parse metadata and cut it at `MAX_NESTED` levels, so that code may recurse over a document."""
    value = joblog.metadata_object(text) or {}
    if text is not None and text.count("{") + text.count("[") > MAX_NESTED:
        value = _cut(value, MAX_NESTED)
    return value


def _cut(value: Any, levels: int) -> Any:
    if isinstance(value, dict):
        return {k: _cut(v, levels - 1) for k, v in value.items()} if levels else None
    if isinstance(value, list):
        return [_cut(v, levels - 1) for v in value] if levels else None
    return value


def current_step(view: JobView) -> str | None:
    """The name of the running step, the last one if there are several. None if the job has ended."""
    if view.terminal:
        return None
    return next((s.name for s in reversed(view.steps) if s.status == "running"), None)


def encode(value: Any) -> bytes:
    """Encode `value` as JSON. Invalid Unicode and values nested deeper than `MAX_DEPTH` are replaced."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return orjson.dumps(_clean(value))


def compact(encoded: bytes) -> bytes:
    """Copy text that stays in memory: orjson returns the beginning of a block that is 2 to 15 times as large."""
    return memoryview(encoded).tobytes()


def frame(messages: Iterable[bytes]) -> bytes:
    """Build one websocket frame: a message, or an array of several."""
    many = list(messages)
    return many[0] if len(many) == 1 else b"[" + b",".join(many) + b"]"


def put(sub: Iterable[int], seq: int, shown: PublishedJob, job: bytes) -> bytes:
    """Build a ``put`` for the subscriptions `sub`. `job` is the encoded document."""
    head = {"type": "put", "sub": list(sub), "seq": seq, "job_id": shown.job_id, "rev": shown.rev}
    return encode({**head, "job": orjson.Fragment(job)})


def snapshot(sub: int, seq: int, jobs: Iterable[bytes], *, more: bool) -> bytes:
    """Build one part of a ``snapshot``. `jobs` are encoded documents."""
    head = b'{"type":"snapshot","sub":%d,"seq":%d,"more":%b,"jobs":[' % (sub, seq, b"true" if more else b"false")
    return b"%b%b]}" % (head, b",".join(jobs))


def delta(sub: Iterable[int], seq: int, shown: PublishedJob, base: int, patch: bytes) -> bytes:
    """Build a ``delta`` on revision `base`. `patch` is the encoded merge patch."""
    head = {"type": "delta", "sub": list(sub), "seq": seq, "job_id": shown.job_id, "base": base, "rev": shown.rev}
    return encode({**head, "set": orjson.Fragment(patch)})


def log(sub: Iterable[int], line: AttributedRow) -> bytes:
    """Build a ``log`` message: a new log row of the job that it is attributed to."""
    entry = line.entry
    return encode({"type": "log", "sub": list(sub), "job_id": line.job_id, **log_line(entry)})


def log_line(entry: Entry | LogLine) -> message_shapes.LogEvent:
    """Build the members that a log line has in all messages and responses."""
    return {
        "event_id": entry.event_id,
        "level": entry.level,
        "step_id": entry.step_id,
        "message": entry.message,
        "attrs": entry.attrs,
        "at": rfc3339(entry.at),
    }


def dropped(sub: Iterable[int], count: int) -> bytes:
    """Build the message that replaces `count` log lines which a slow client did not get."""
    return encode({"type": "log", "sub": list(sub), "dropped": count})


def delete(sub: Iterable[int], seq: int, job_id: str, reason: str) -> bytes:
    return encode({"type": "delete", "sub": list(sub), "seq": seq, "job_id": job_id, "reason": reason})


def event(found: Event, epoch: str, seq: int) -> message_shapes.JobEvent:
    """Build the message of MQTT's ``event`` topic for a transition."""
    return {**transition(found), "kind": found.kind, "epoch": epoch, "seq": seq}


def stream_event(sub: Iterable[int], seq: int, found: Event) -> bytes:
    """Build an ``event`` message for the subscriptions `sub`."""
    return encode({"type": "event", "sub": list(sub), "seq": seq, "kind": found.kind, **transition(found)})


def transition(found: Event) -> message_shapes.Transition:
    made: message_shapes.Transition = {
        "event_id": found.event_id,
        "job_id": found.job_id,
        "step_id": found.step_id,
        "step_name": found.step_name,
        "error": found.error,
        "at": rfc3339(found.at),
    }
    if found.error_cut is not None:
        made["error_cut"] = found.error_cut
    return made


def step_document(step: StepRecord, now: Micros, titles: Titles) -> shapes.Step:
    running = step.status == "running"
    made: shapes.Step = {
        "seq": step.seq,
        "name": step.name,
        "status": cast("shapes.StepStatus", step.status),
        "started_at": rfc3339(step.started_at),
        "ended_at": rfc3339(step.completed_at),
        "duration_seconds": seconds(step.started_at, now if running else step.completed_at),
        "error": step.error_message or None,
    }
    if step.error_cut is not None:
        made["error_cut"] = step.error_cut
    if (title := titles.steps.get(step.name)) is not None:
        made["title"] = title
    return made


def _counts(steps: tuple[StepRecord, ...]) -> dict[str, int]:
    counts = {"completed": 0, "failed": 0, "running": 0, "skipped": 0}
    for step in steps:
        counts[step.status] = counts.get(step.status, 0) + 1
    return counts


def _clean(value: Any, depth: int = 0) -> Any:
    if depth > MAX_DEPTH:
        return None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_clean(k): _clean(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(v, depth + 1) for v in value]
    return value
