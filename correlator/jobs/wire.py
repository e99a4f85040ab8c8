"""The job document and the messages about it, as they leave: one shape for REST, websocket, SSE and MQTT.

A document is a function of what is shown and of nothing else, so every reader of one revision gets the same bytes.
The names and shapes are those of docs/protocol.md.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, cast, overload

import orjson

from correlator.jobs import joblog, shapes
from correlator.jobs.model import Entry, Event, LogLine, Micros, Shown, StepRecord, Tied, View

_EPOCH = datetime.datetime(1970, 1, 1)  # noqa: DTZ001 - only its text is used, with the Z added

MAX_MICROS = 253_402_300_799_999_999
"""9999-12-31T23:59:59.999999Z, the last time that RFC 3339 can write."""


MAX_NESTED = 64
"""Levels of a job's metadata that are shown; JSON columns of MariaDB itself end at 32."""

MAX_DEPTH = 200
"""Levels of a value that are written; the encoder itself ends at 254, the parser much later."""


@overload
def rfc3339(at: Micros) -> str: ...
@overload
def rfc3339(at: None) -> None: ...
@overload
def rfc3339(at: Micros | None) -> str | None: ...
def rfc3339(at: Micros | None) -> str | None:
    """``2025-09-22T10:00:00.000000Z``; None stays None. A time outside the years 1 to 9999 is clamped."""
    if at is None:
        return None
    second, micros = divmod(max(-62_135_596_800_000_000, min(at, MAX_MICROS)), 1_000_000)
    return f"{_second(second)}.{micros:06d}Z"


@lru_cache(maxsize=32_768)
def _second(since_1970: int) -> str:
    """Remembered, as the times of a document are told again with each of its changes."""
    return (_EPOCH + datetime.timedelta(seconds=since_1970)).isoformat()


def seconds(start: Micros | None, end: Micros | None) -> float | None:
    """From `start` to `end`, never negative: two machines' clocks may differ."""
    if start is None or end is None:
        return None
    return max(0, end - start) / 1_000_000


def document(shown: Shown, *, steps: bool = True) -> shapes.Document:
    """The job document. `steps` False leaves them out, as lists of jobs do."""
    view, now = shown.view, shown.updated_at
    counts = _counts(view.steps)
    last = view.last
    return {
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
            "percent": view.percent,
            "basis": view.basis,
            "steps_done": counts["completed"],
            "steps_failed": counts["failed"],
            "steps_running": counts["running"],
            "steps_skipped": counts["skipped"],
            "steps_seen": len(view.steps),
        },
        "current_step": current_step(view),
        "steps": {str(s.id): _step(s, now) for s in view.steps} if steps else {},
        "stalled": shown.stalled,
        "last_event_at": rfc3339(last.at) if last is not None else None,
        "last_message": None if last is None else {"level": last.level, "text": last.text, "at": rfc3339(last.at)},
        "warnings": view.warnings,
        "errors": view.errors,
        "metadata": _metadata(view.metadata),
        "source": view.source,
        "rev": shown.rev,
    }


def _metadata(text: str | None) -> dict[str, Any]:
    """As parsed, down to `MAX_NESTED` levels: whoever walks a document need not fear for its depth."""
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


def current_step(view: View) -> str | None:
    """The name of the running step, the highest of several; None once the job has ended."""
    if view.terminal:
        return None
    return next((s.name for s in reversed(view.steps) if s.status == "running"), None)


def encode(value: Any) -> bytes:
    """JSON. Text that is no Unicode, and what is nested too deep, is replaced: a reader gets the rest."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return orjson.dumps(_clean(value))


def frame(messages: Iterable[bytes]) -> bytes:
    """One websocket frame: a message, or an array of several."""
    many = list(messages)
    return many[0] if len(many) == 1 else b"[" + b",".join(many) + b"]"


def put(sub: Iterable[int], seq: int, shown: Shown, job: bytes) -> bytes:
    """A ``put`` for the subscriptions `sub`; `job` is the encoded document."""
    return encode(
        {
            "type": "put",
            "sub": list(sub),
            "seq": seq,
            "job_id": shown.job_id,
            "rev": shown.rev,
            "job": orjson.Fragment(job),
        }
    )


def snapshot(sub: int, seq: int, jobs: Iterable[bytes], *, more: bool) -> bytes:
    """A part of a ``snapshot``; `jobs` are encoded documents."""
    many = [orjson.Fragment(j) for j in jobs]
    return encode({"type": "snapshot", "sub": sub, "seq": seq, "more": more, "jobs": many})


def delta(sub: Iterable[int], seq: int, shown: Shown, base: int, patch: bytes) -> bytes:
    """A ``delta`` on revision `base`; `patch` is the encoded merge patch."""
    return encode(
        {
            "type": "delta",
            "sub": list(sub),
            "seq": seq,
            "job_id": shown.job_id,
            "base": base,
            "rev": shown.rev,
            "set": orjson.Fragment(patch),
        }
    )


def patch(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """What RFC 7386 merges into `old` to get `new`, where a missing member and null mean the same."""
    changed: dict[str, Any] = {}
    for name, value in new.items():
        before = old.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            if inner := patch(before, value):
                changed[name] = inner
        elif not _same(before, value):
            changed[name] = value
    return changed | dict.fromkeys(n for n in old if n not in new)


def _same(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON: 1, 1.0 and true are equal in Python."""
    if isinstance(other, list):
        return encode(one) == encode(other)
    return type(one) is type(other) and bool(one == other)


def log(sub: Iterable[int], line: Tied) -> bytes:
    """A row of the log, as it happens, of the job that it was tied to."""
    entry = line.entry
    return encode({"type": "log", "sub": list(sub), "job_id": line.job_id, **log_line(entry)})


def log_line(entry: Entry | LogLine) -> shapes.LogEvent:
    """The members that a log line has wherever it is shown."""
    return {
        "event_id": entry.event_id,
        "level": entry.level,
        "step_id": entry.step_id,
        "message": entry.message,
        "attrs": entry.attrs,
        "at": rfc3339(entry.at),
    }


def dropped(sub: Iterable[int], count: int) -> bytes:
    """Told in place of `count` log lines that a reader was too slow for."""
    return encode({"type": "log", "sub": list(sub), "dropped": count})


def delete(sub: Iterable[int], seq: int, job_id: str, reason: str) -> bytes:
    return encode({"type": "delete", "sub": list(sub), "seq": seq, "job_id": job_id, "reason": reason})


def event(found: Event, epoch: str, seq: int) -> shapes.JobEvent:
    """A transition, as MQTT's ``event`` topic carries it."""
    return {
        "event_id": found.event_id,
        "kind": found.kind,
        "job_id": found.job_id,
        "step_id": found.step_id,
        "step_name": found.step_name,
        "error": found.error,
        "at": rfc3339(found.at),
        "epoch": epoch,
        "seq": seq,
    }


def _step(step: StepRecord, now: Micros) -> shapes.Step:
    running = step.status == "running"
    return {
        "seq": step.seq,
        "name": step.name,
        "status": cast("shapes.StepStatus", step.status),
        "started_at": rfc3339(step.started_at),
        "ended_at": rfc3339(step.completed_at),
        "duration_seconds": seconds(step.started_at, now if running else step.completed_at),
        "error": step.error_message or None,
    }


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
