"""The inverse of `job_document.document`: from an encoded job document to the published job.

A gateway knows jobs by their documents alone, and serves them through the same code as a daemon does. So the inverse
is exact: the document of the job that `parse` returns has the bytes that were read, but for the members that this
version does not know. Only what no document has is lost: the event ID of the last message, and `alive_at`.
"""

from __future__ import annotations

import datetime
from functools import lru_cache
from typing import Any, cast

import msgspec
from msgspec import Raw, Struct

from correlator.jobs.model.facts import Line, Status
from correlator.jobs.model.forecasts import Comparison, Forecast, JobForecast, State, StepAhead
from correlator.jobs.model.rows import Int64, Level, Micros, StepRecord
from correlator.jobs.model.views import NO_TITLES, JobView, PublishedJob, Titles

_EPOCH = datetime.datetime(1970, 1, 1)  # noqa: DTZ001 - the documents' times are all UTC
_SECOND = datetime.timedelta(seconds=1)

TIME_LENGTH = 27

_NO_METADATA = (b"{}", b"", b"null")
_STATES = frozenset(State)


class _Progress(Struct):
    percent: float
    basis: str


class _Ends(Struct):
    p50: str
    p90: str


class _StepAhead(Struct):
    name: str
    share: float
    typical_seconds: float
    title: str | None = None


class _Forecast(Struct):
    ends_at: _Ends
    as_of: str
    runs: Int64
    state: str
    typical_seconds: float
    failure_rate: float
    steps_ahead: tuple[_StepAhead, ...] = ()


class _Step(Struct, gc=False):
    seq: Int64
    name: str
    status: str
    started_at: str | None = None
    ended_at: str | None = None
    error: str | None = None
    error_cut: Int64 | None = None
    title: str | None = None


class _Message(Struct):
    level: Level
    text: str
    at: str


class _Document(Struct):
    """The members of a document that are not computed from others."""

    job_id: str
    status: Status
    updated_at: str
    progress: _Progress
    external_ids: tuple[str, ...] = ()
    context_id: str | None = None
    parent_job_id: str | None = None
    child_job_ids: tuple[str, ...] = ()
    child_job_ids_cut: Int64 | None = None
    external_ids_cut: Int64 | None = None
    job_type: str | None = None
    operation: str | None = None
    category: str | None = None
    owner: str | None = None
    error: str | None = None
    error_cut: Int64 | None = None
    started_at: str | None = None
    ended_at: str | None = None
    forecast: _Forecast | None = None
    compared_with: Comparison | None = None
    steps: dict[Int64, _Step] = {}
    stalled: bool = False
    last_message: _Message | None = None
    warnings: Int64 = 0
    errors: Int64 = 0
    metadata: Raw = Raw()
    source: str = "joblog"
    counts_complete: bool = True
    steps_complete: bool = True
    rev: Int64 = 0
    steps_cut: Int64 | None = None
    instance: str = ""
    title: str | None = None
    current_step: str | None = None
    current_step_title: str | None = None


_decoder = msgspec.json.Decoder(_Document)


def parse(body: bytes | Raw, rev: int | None = None, instance: str | None = None) -> PublishedJob:
    """Parse a document with its steps. `rev`, `instance`: what the job gets instead of the document's own.

    Raises: `msgspec.MsgspecError` if `body` is no such document; `ValueError` for a time that is not RFC 3339.
    """
    found = _decoder.decode(body)
    last = found.last_message
    view_basis = found.progress.basis in ("reported", "steps", "legacy")
    view = JobView(
        found.job_id,
        found.status,
        "legacy" if found.source == "legacy" else "joblog",
        found.external_ids,
        found.context_id,
        found.parent_job_id,
        found.job_type,
        found.operation,
        found.category,
        found.owner,
        found.error,
        _time(found.started_at),
        _time(found.ended_at),
        found.progress.percent if view_basis else 0.0,
        cast("Any", found.progress.basis) if view_basis else "steps",
        tuple([_step(step_id, step) for step_id, step in found.steps.items()]),
        None if last is None else Line(micros(last.at), 0, last.level, last.text),
        found.warnings,
        found.errors,
        _metadata(found.metadata),
        found.error_cut,
        found.external_ids_cut,
        found.steps_complete,
    )
    children = found.child_job_ids
    return PublishedJob(
        view,
        found.rev if rev is None else rev,
        micros(found.updated_at),
        children,
        len(children) if found.child_job_ids_cut is None else found.child_job_ids_cut,
        found.stalled,
        0,
        found.counts_complete,
        _forecast_of(found, of_view=view_basis),
        found.instance if instance is None else instance,
        found.steps_cut,
        _titles_of(found),
    )


def micros(text: str) -> Micros:
    """Parse a time as documents have it, ``2025-09-22T10:00:00.000000Z``. Raises: `ValueError`."""
    if len(text) != TIME_LENGTH:
        raise ValueError(f"not a time: {text[:40]!r}")
    return _seconds(text[:19]) * 1_000_000 + int(text[20:-1])


def _time(text: str | None) -> Micros | None:
    return None if text is None else micros(text)


@lru_cache(maxsize=32_768)
def _seconds(text: str) -> int:
    """Parse whole seconds. Cached, because a job's times come again with each of its changes."""
    found = datetime.datetime.fromisoformat(text)
    if found.tzinfo is not None:
        raise ValueError(f"not a time: {text!r}")
    return (found - _EPOCH) // _SECOND


def _step(step_id: int, step: _Step) -> StepRecord:
    return StepRecord(
        step_id,
        step.name,
        step.seq,
        step.status,
        _time(step.started_at),
        _time(step.ended_at),
        step.error,
        step.error_cut,
    )


def _metadata(raw: Raw) -> str | None:
    text = bytes(raw)
    return None if text in _NO_METADATA else text.decode()


def _forecast_of(found: _Document, *, of_view: bool) -> JobForecast | None:
    """What the document has besides the view; `of_view`: its percent and its basis are the view's own."""
    percent, basis = (None, None) if of_view else (found.progress.percent, cast("Any", found.progress.basis))
    forecast = _forecast(found.forecast, found.progress.percent) if found.forecast is not None else None
    if of_view and forecast is None and found.compared_with is None:
        return None
    return JobForecast(percent, basis, forecast, found.compared_with)


def _forecast(found: _Forecast, percent: float) -> Forecast | None:
    """The forecast; None if its state is one that only a newer version knows."""
    if found.state not in _STATES:
        return None
    return Forecast(
        micros(found.as_of),
        micros(found.ends_at.p50),
        micros(found.ends_at.p90),
        percent,
        found.runs,
        State(found.state),
        found.typical_seconds,
        found.failure_rate,
        tuple([StepAhead(step.name, step.share, step.typical_seconds) for step in found.steps_ahead]),
    )


def _titles_of(found: _Document) -> Titles:
    ahead = found.forecast.steps_ahead if found.forecast is not None else ()
    steps = {step.name: step.title for step in found.steps.values() if step.title is not None}
    steps |= {step.name: step.title for step in ahead if step.title is not None}
    if found.current_step is not None and found.current_step_title is not None:
        steps[found.current_step] = found.current_step_title
    operations = {found.operation or "": found.title} if found.title is not None else {}
    return Titles(operations, steps) if operations or steps else NO_TITLES
