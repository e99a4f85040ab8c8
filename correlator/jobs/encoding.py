"""From a published job to its document and back, and the messages about jobs, for REST, websocket, SSE and MQTT.

A document is a pure function of the published job, so all clients get the same bytes of one revision. It shares with
the document of an earlier revision what has not changed, so that a change costs what it changes.

A gateway knows jobs by their documents alone, and serves them through the same code as a daemon does. `received` keeps
the text of the document, without members that this version does not know, beside what filters and lookups use.
"""

from __future__ import annotations

import datetime
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

import orjson
from msgspec import UNSET, Raw, Struct, to_builtins
from msgspec.structs import replace

from correlator.jobs import joblog
from correlator.model import document as model
from correlator.model import encoder, messages, published
from correlator.model.document import JobDocument
from correlator.model.facts import AttributedRow, Entry, Line, Status
from correlator.model.published import (
    MAX_RUNNING,
    Body,
    Change,
    Event,
    JobForecast,
    JobView,
    LogLine,
    PublishedJob,
    Titles,
)
from correlator.model.rows import COLUMNS, Micros, StepRecord

_EPOCH = datetime.datetime(1970, 1, 1)  # noqa: DTZ001 - only its text is used, with the Z added
_MICROSECOND = datetime.timedelta(microseconds=1)

MIN_MICROS, MAX_MICROS = -62_135_596_800_000_000, 253_402_300_799_999_999
"""0001-01-01T00:00:00Z and 9999-12-31T23:59:59.999999Z, the times that RFC 3339 can express."""

MAX_NESTED = 64
"""The maximum nesting of published metadata, in levels. JSON columns of MariaDB end at 32."""

EXPECTED_SHARE = 0.5
"""Share of the earlier runs that had a step, as it is published, from which on the step counts as expected."""

_ZEROS = b"0000-00-00T00:00:00.000000Z"
_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_columns = attrgetter(*COLUMNS)
_in_order = itemgetter(
    *map(
        [*COLUMNS, *(name for name in JobDocument.__struct_fields__ if name not in COLUMNS)].index,
        JobDocument.__struct_fields__,
    )
)
_NO_FORECAST = JobForecast()
_STATUSES = {status.value: status for status in Status}


@lru_cache(maxsize=32_768)
def rfc3339(at: Micros) -> str:
    """Format a time as ``2025-09-22T10:00:00.000000Z``. Times outside the years 1 to 9999 are clamped.

    Cached, because the times of a document are encoded again with each of its changes.
    """
    if not MIN_MICROS <= at <= MAX_MICROS:
        at = max(MIN_MICROS, min(at, MAX_MICROS))
    whole, micro = divmod(at, 1_000_000)
    return f"{_formatted_second(whole)}.{micro:06d}Z"


@lru_cache(maxsize=4_096)
def _formatted_second(at: int) -> str:
    """Cached, because log rows come many in a second: `isoformat` takes twice as long as all the rest."""
    return (_EPOCH + datetime.timedelta(seconds=at)).isoformat()


@lru_cache(maxsize=32_768)
def micros(text: str) -> Micros:
    """Parse a time as `rfc3339` formats it. Cached, as a job's times come again with each of its changes.

    Raises: `ValueError`.
    """
    if text.encode().translate(_DIGITS) != _ZEROS:
        raise ValueError(f"not a time: {text[:40]!r}")
    return (datetime.datetime.fromisoformat(text[:26]) - _EPOCH) // _MICROSECOND


def _time(text: str | None) -> Micros | None:
    return None if text is None else micros(text)


def seconds(start: Micros | None, end: Micros | None) -> float | None:
    """The seconds from `start` to `end`, at least 0, because the two may come from clocks of different machines.

    At most `MAX_SECONDS`: a gateway refuses a document with more.
    """
    if start is None or end is None:
        return None
    return min((end - start) / 1_000_000, model.MAX_SECONDS) if end > start else 0.0


# -- from the published job to its document


class Revision(NamedTuple):
    """A published job with its document."""

    shown: PublishedJob
    document: JobDocument


def document(shown: PublishedJob, base: Revision | None = None, *, steps: bool = True) -> JobDocument:
    """Build the document of a job. `base`: an earlier revision of it, with which it shares what has not changed.

    `steps` False leaves the steps out, as in lists of jobs.
    """
    if base is not None and base.shown is shown and steps:
        return base.document
    if shown.body is not None:
        found = _received_document(shown, base)
        return found if steps else replace(found, steps={})
    view, now, titles = shown.view, shown.updated_at, shown.titles
    if base is not None and base.shown.titles is not titles:
        base = None
    made, terminal, start, end = shown.forecast or _NO_FORECAST, view.terminal, view.started_at, view.ended_at
    statuses = [step.status for step in view.steps]
    step = current_step(view) if "running" in statuses else None
    last, forecast = _last_message(view.last), _forecast(shown, base)
    seen = shown.steps_cut or len(statuses)
    # Those of columns first, then all others in the document's order: faster than by keyword.
    members = (
        *_columns(view),
        view.job_id,
        view.external_ids,
        shown.children,
        view.category,
        view.status,
        terminal,
        view.error,
        None if start is None else rfc3339(start),
        None if end is None else rfc3339(end),
        rfc3339(now),
        seconds(start, end if terminal else now),
        model.Progress(
            view.percent if made.percent is None else made.percent,
            made.basis or view.basis,
            statuses.count("completed"),
            statuses.count("failed"),
            statuses.count("running"),
            statuses.count("skipped"),
            seen,
            None if forecast is None else seen + sum([step.share >= EXPECTED_SHARE for step in forecast.steps_ahead]),
        ),
        forecast,
        None if made.compared_with is None else _comparison(made.compared_with),
        step,
        _steps(shown, base) if steps else {},
        shown.stalled,
        None if last is None else last.at,
        last,
        view.warnings,
        view.errors,
        _metadata(view.metadata, base),
        view.source,
        shown.rev,
        UNSET if view.external_ids_cut is None else view.external_ids_cut,
        shown.child_count if shown.child_count > len(shown.children) else UNSET,
        UNSET if shown.complete else False,
        UNSET if view.steps_complete else False,
        UNSET if view.error_cut is None else view.error_cut,
        UNSET if shown.steps_cut is None else shown.steps_cut,
        shown.instance or UNSET,
        UNSET if view.operation is None else titles.operations.get(view.operation, UNSET),
        UNSET if step is None else titles.steps.get(step, UNSET),
        shown.failure,
    )
    return JobDocument(*_in_order(members))


def text(shown: PublishedJob, base: Revision | None = None, *, steps: bool = True) -> bytes:
    """The document of a job as JSON. See `document`."""
    if steps and (body := _body_of(shown)) is not None:
        return body
    return encoder.encode_document(document(shown, base, steps=steps))


def growth(old: PublishedJob, new: PublishedJob) -> bytes:
    """The merge patch of a job that goes on (`published.goes_on`), as JSON: that of most changes, without documents."""
    was, view, before, now = old.view, new.view, old.updated_at, new.updated_at
    changed: dict[str, Any] = {}
    if (updated_at := rfc3339(now)) != rfc3339(before):
        changed["updated_at"] = updated_at
    if not view.status.ended and (took := seconds(view.started_at, now)) != seconds(view.started_at, before):
        changed["duration_seconds"] = took
    if (last := view.last) is not (first := was.last):
        if last is None or first is None:
            changed["last_event_at"] = rfc3339(last.at) if last is not None else None
            changed["last_message"] = _last_message(last)
        else:
            message: dict[str, str] = {}
            if last.level != first.level:
                message["level"] = last.level
            if last.text != first.text:
                message["text"] = last.text
            if (at := rfc3339(last.at)) != rfc3339(first.at):
                message["at"] = changed["last_event_at"] = at
            if message:
                changed["last_message"] = message
    if view.warnings != was.warnings:
        changed["warnings"] = view.warnings
    if view.errors != was.errors:
        changed["errors"] = view.errors
    changed["rev"] = new.rev
    steps = {
        step_id: {"duration_seconds": took}
        for step_id, start in running_steps(new)
        if (took := seconds(start, now)) != seconds(start, before)
    }
    if steps:
        changed["steps"] = steps
    return encoder.encode(changed)


def running_steps(shown: PublishedJob) -> Iterable[tuple[int, Micros | None]]:
    """Return the ID and start of each running step, even if the job was received and has no other steps here."""
    if shown.body is not None:
        return shown.body.running or ()
    return [(step.id, step.started_at) for step in shown.view.steps if step.status == "running"]


def _steps(shown: PublishedJob, base: Revision | None) -> dict[int, model.Step]:
    """The steps by ID. Of `base` are those that have not changed; the duration of a running one grows."""
    steps, now, titles = shown.view.steps, shown.updated_at, shown.titles
    if base is None:
        return {step.id: _step(step, now, titles) for step in steps}
    was, documents = base.shown.view.steps, base.document.steps
    if steps == was:
        if not base.document.progress.steps_running:
            return documents
        return documents | {step.id: _step(step, now, titles) for step in steps if step.status == "running"}
    known = dict(zip(documents, was, strict=False))
    return {
        step.id: documents[step.id]
        if step.status != "running" and known.get(step.id) == step
        else _step(step, now, titles)
        for step in steps
    }


def _step(step: StepRecord, now: Micros, titles: Titles) -> model.Step:
    return model.Step(
        step.seq,
        step.name,
        step.status,
        None if (start := step.started_at) is None else rfc3339(start),
        None if (end := step.completed_at) is None else rfc3339(end),
        seconds(start, now if step.status == "running" else end),
        step.error_message or None,
        UNSET if step.error_cut is None else step.error_cut,
        titles.steps.get(step.name, UNSET),
    )


def _line(last: model.LastMessage | None) -> Line | None:
    return None if last is None else Line(micros(last.at), 0, last.level, last.text)


def _last_message(last: Line | None) -> model.LastMessage | None:
    return None if last is None else model.LastMessage(last.level, last.text, rfc3339(last.at))


def _forecast(shown: PublishedJob, base: Revision | None) -> model.Forecast | None:
    if base is not None and base.shown.forecast is shown.forecast:
        return base.document.forecast
    found = shown.forecast.forecast if shown.forecast is not None else None
    if found is None:
        return None
    ahead, titles = _rounded(found.steps_ahead), shown.titles.steps
    return model.Forecast(
        ends_at=model.ForecastEnd(rfc3339(found.p50), rfc3339(found.p90)),
        as_of=rfc3339(found.as_of),
        runs=found.runs,
        state=found.state.value,
        typical_seconds=round(found.typical_seconds, 3),
        failure_rate=round(found.failure_rate, 3),
        steps_ahead=tuple([replace(s, title=titles.get(s.name, UNSET)) for s in ahead]) if titles else ahead,
    )


@lru_cache(maxsize=1_024)
def _rounded(ahead: tuple[model.StepAhead, ...]) -> tuple[model.StepAhead, ...]:
    """Cached, because the forecasts of an operation's jobs share the steps ahead (`StepHistory.ahead`)."""
    return tuple([model.StepAhead(s.name, round(s.share, 2), round(s.typical_seconds, 3)) for s in ahead])


def _comparison(found: model.Comparison) -> model.Comparison:
    return model.Comparison(round(found.typical_seconds, 3), found.runs, round(found.percentile, 1))


def _metadata(text: str | None, base: Revision | None) -> Raw:
    """Parse metadata and cut it at `MAX_NESTED` levels, so that code may recurse over a document."""
    if base is not None and base.shown.view.metadata == text:
        return base.document.metadata
    value = joblog.metadata_object(text) or {}
    if text is not None and text.count("{") + text.count("[") > MAX_NESTED:
        value = _cut(value, MAX_NESTED)
    return Raw(encode(value)) if value else model.NO_METADATA


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


# -- and back, at a gateway


def received(found: JobDocument, checksum: int = 0) -> PublishedJob:
    """The job of a document with its steps. `checksum`: of its bytes in the stream.

    Raises: `ValueError` if a time is malformed.
    """
    times = "".join([(step.started_at or "") + (step.ended_at or "") for step in found.steps.values()]).encode()
    if times.translate(_DIGITS) != _ZEROS * (len(times) // len(_ZEROS)):
        raise ValueError("the time of a step is none")
    if (forecast := found.forecast) is not None:
        for at in (forecast.as_of, forecast.ends_at.p50, forecast.ends_at.p90):
            micros(at)
    _time(found.last_event_at)
    last, children = found.last_message, found.child_job_ids
    view = JobView(
        found.job_id,
        _STATUSES[found.status],
        "legacy" if found.source == "legacy" else "joblog",
        found.external_ids,
        found.category,
        found.error,
        _time(found.started_at),
        _time(found.ended_at),
        found.progress.percent,
        "steps",
        (),
        _line(last),
        found.warnings,
        found.errors,
        None if (text := bytes(found.metadata)) == b"{}" else text.decode(),
        found.error_cut or None,
        first_step=min(found.steps, default=None),
        **{name: getattr(found, name) for name in COLUMNS},
    )
    return PublishedJob(
        view,
        found.rev,
        micros(found.updated_at),
        children,
        len(children),
        found.stalled,
        instance=found.instance or "",
        failure=found.failure,
        body=Body(
            encoder.encode_document(found),
            found.rev,
            checksum,
            () if view.terminal else _running(found),
            forecast.state if forecast is not None else None,
        ),
    )


def _running(found: JobDocument) -> tuple[tuple[int, Micros | None], ...] | None:
    """The running steps of a document, as `Body` has them. None: they are too many."""
    running = ((step_id, step) for step_id, step in found.steps.items() if step.status == "running")
    some = tuple((step_id, _time(step.started_at)) for step_id, step in islice(running, MAX_RUNNING + 1))
    return some if len(some) <= MAX_RUNNING else None


def grown(shown: PublishedJob, rev: int, updated_at: Micros, last: Line) -> PublishedJob:
    """A job that was `received`, and that has gone on since (`published.only_grows`): as it is at revision `rev`."""
    return replace(shown, view=replace(shown.view, last=last), rev=rev, updated_at=updated_at)


def _body_of(shown: PublishedJob) -> bytes | None:
    """The text of a document as it was received. None if the job has gone on since, or is of this process."""
    return shown.body.text if shown.body is not None and shown.body.rev == shown.rev else None


def _received_document(shown: PublishedJob, base: Revision | None) -> JobDocument:
    """The document that was received, with what has gone on since. `base`: see `document`."""
    assert shown.body is not None
    found = base.document if base is not None and base.shown.body == shown.body else model.decode(shown.body.text)
    view, now = shown.view, shown.updated_at
    if found.rev != shown.rev:
        last = found.last_message if view.last == _line(found.last_message) else _last_message(view.last)
        at = None if last is None else last.at
        found = replace(found, rev=shown.rev, last_event_at=at, last_message=last)
    if (updated_at := rfc3339(now)) != found.updated_at and not view.terminal:
        steps = found.steps
        if found.progress.steps_running:
            steps = {
                n: replace(step, duration_seconds=seconds(_time(step.started_at), now))
                if step.status == "running"
                else step
                for n, step in steps.items()
            }
        found = replace(found, duration_seconds=seconds(view.started_at, now), steps=steps)
    return found if updated_at == found.updated_at else replace(found, updated_at=updated_at)


def revised(shown: PublishedJob, rev: int) -> PublishedJob:
    """A job that was `received`, as another revision of the same content."""
    return replace(shown, rev=rev)


def steps_of(shown: PublishedJob) -> Iterable[StepRecord]:
    """The steps of a job. At a gateway, they have neither times nor the size of a cut error."""
    if shown.body is None:
        return shown.view.steps
    found = model.decode_steps(shown.body.text).steps
    return [StepRecord(step_id, s.name, s.seq, s.status, error_message=s.error) for step_id, s in found.items()]


# -- messages


def encode(value: Any) -> bytes:
    """Encode `value` as JSON. Invalid Unicode and values nested deeper than `MAX_DEPTH` are replaced."""
    try:
        return orjson.dumps(value, default=to_builtins)
    except TypeError:
        return orjson.dumps(encoder.clean(value))


def compact(encoded: bytes) -> bytes:
    """Copy text that stays in memory: orjson returns the beginning of a block that is 2 to 15 times as large."""
    return memoryview(encoded).tobytes()


def extended(encoded: bytes, more: Mapping[str, Any]) -> bytes:
    """Add members that are not there yet to an encoded object that is not empty."""
    return b"%b,%b" % (encoded[:-1], encode(more)[1:])


def put(sub: Sequence[int], seq: int, shown: PublishedJob, job: bytes) -> bytes:
    """Build a ``put`` for the subscriptions `sub`. `job` is the encoded document."""
    body = orjson.Fragment(job)
    return encode({"type": "put", "sub": sub, "seq": seq, "job_id": shown.job_id, "rev": shown.rev, "job": body})


def snapshot(sub: int, seq: int, jobs: Iterable[bytes], *, more: bool) -> bytes:
    """Build one part of a ``snapshot``. `jobs` are encoded documents."""
    head = b'{"type":"snapshot","sub":%d,"seq":%d,"more":%b,"jobs":[' % (sub, seq, b"true" if more else b"false")
    return b"%b%b]}" % (head, b",".join(jobs))


def delta(sub: Sequence[int], seq: int, shown: PublishedJob, base: int, patch: bytes) -> bytes:
    """Build a ``delta`` on revision `base`. `patch` is the encoded merge patch."""
    job_id, rev, changed = shown.view.job_id, shown.rev, orjson.Fragment(patch)
    return encode({"type": "delta", "sub": sub, "seq": seq, "job_id": job_id, "base": base, "rev": rev, "set": changed})


def log(sub: Sequence[int], line: AttributedRow) -> bytes:
    """Build a ``log`` message: a new log row of the job that it is attributed to."""
    return encode({"type": "log", "sub": sub, "job_id": line.job_id, **log_line(line.entry)})


def log_line(entry: Entry | LogLine) -> messages.LogEvent:
    """Build the members that a log line has in all messages and responses."""
    return {
        "event_id": entry.event_id,
        "level": entry.level,
        "step_id": entry.step_id,
        "message": entry.message,
        "attrs": entry.attrs,
        "at": rfc3339(entry.at),
    }


def dropped(sub: Sequence[int], count: int) -> bytes:
    """Build the message that replaces `count` log lines which a slow client did not get."""
    return encode({"type": "log", "sub": sub, "dropped": count})


def delete(sub: Sequence[int], seq: int, job_id: str, reason: str) -> bytes:
    return encode({"type": "delete", "sub": sub, "seq": seq, "job_id": job_id, "reason": reason})


def event(found: Event, epoch: str, seq: int) -> messages.JobEvent:
    """Build the message of MQTT's ``event`` topic for a transition."""
    return {**transition(found), "kind": found.kind, "epoch": epoch, "seq": seq}


def stream_event(sub: Sequence[int], seq: int, found: Event) -> bytes:
    """Build an ``event`` message for the subscriptions `sub`."""
    return encode({"type": "event", "sub": sub, "seq": seq, "kind": found.kind, **transition(found)})


def transition(found: Event) -> messages.Transition:
    made: messages.Transition = {
        "event_id": found.event_id,
        "job_id": found.job_id,
        "step_id": found.step_id,
        "step_name": found.step_name,
        "error": found.error,
        "at": rfc3339(found.at),
    }
    if found.error_cut is not None:
        made["error_cut"] = found.error_cut
    if found.failure is not None:
        made["failure"] = found.failure
    return made


# -- the cache of encoded documents


CAPACITY = 128 * 1024 * 1024
"""Bytes. 20,000 jobs of 10 steps each take 56 MB."""

OVERHEAD = 300
"""Bytes that an entry takes besides its text."""

MAX_FOLLOWED = 16 * 1024 * 1024
"""Bytes of the documents that are kept as such: 2,000 jobs of 10 steps each."""

MEMBERS, STEP = 2_000, 500
"""Bytes of the members of a document, and of a step, without long texts."""


class _Cached(Struct, frozen=True, gc=False):
    shown: PublishedJob
    body: bytes


class Documents:
    """A cache of encoded job documents: each revision is encoded once in each form, for all connections and sinks.

    Invariant: a cached document is the job's current one. The hub calls `forget` with every change. The cache holds at
    most `capacity` bytes. When it is full, a snapshot of all jobs adds nothing, because the walk would evict each
    document before its next use. A document that is requested by itself evicts the oldest.

    Of the running jobs that changed last and that somebody follows, the cache also holds the document itself: the next
    revision shares with it what has not changed, and the merge patch compares only the rest. In a daemon, its texts are
    those of the published job. Event loop's thread only.
    """

    def __init__(self, capacity: int = CAPACITY, max_followed: int = MAX_FOLLOWED) -> None:
        self._capacity = capacity
        self._max_followed = max_followed
        self._cached: dict[tuple[str, bool], _Cached] = {}
        """By job ID, and whether the document has the steps."""
        self.size = 0
        """Bytes in use."""
        self._followed: OrderedDict[str, Revision] = OrderedDict()
        """By job ID, the one that changed last at the end."""
        self._followed_size = 0

    def encoded(self, shown: PublishedJob, *, all_jobs: bool = False, steps: bool = True) -> bytes:
        """The document of `shown` as JSON. `all_jobs`: the caller encodes all jobs in turn. `steps`: with its steps."""
        if steps and (text := _body_of(shown)) is not None:
            return text
        key = (shown.view.job_id, steps)
        # A job outside memory has the current `seq` as its `rev`, so two readings of it may have the same `rev`.
        if (cached := self._cached.get(key)) is not None and cached.shown is shown:
            return cached.body
        base = self._followed.get(shown.job_id)
        made = document(shown, base, steps=steps)
        if steps and not all_jobs:
            self._follow(Revision(shown, made))
        body = encoder.encode_document(made)
        self._forget(key)
        size = len(body) + OVERHEAD
        if size > self._capacity or (all_jobs and self.size + size > self._capacity):
            return body
        self._cached[key] = _Cached(shown, body)
        self.size += size
        while self.size > self._capacity:
            self._forget(next(iter(self._cached)))
        return body

    def patch(self, old: PublishedJob, new: PublishedJob, *, goes_on: bool = False) -> bytes:
        """The merge patch between the documents of two revisions of a job, as JSON. `goes_on`: see `Change`."""
        if _only_grown(old, new) if new.body is not None else goes_on or published.goes_on(old, new):
            return growth(old, new)
        base = self._followed.get(old.job_id)
        if base is None or base.shown is not old:
            base = Revision(old, document(old, base))
        made = document(new, base)
        self._follow(Revision(new, made))
        return encoder.encode(encoder.patch(base.document, made))

    def forget(self, changes: Iterable[Change]) -> None:
        """Drop the encoded documents of the jobs that changed."""
        for change in changes:
            if self._cached:
                self._forget((change.job_id, True))
                self._forget((change.job_id, False))
            if change.new is None:
                self._follow_no_longer(change.job_id)

    def _forget(self, key: tuple[str, bool]) -> None:
        cached = self._cached.pop(key, None)
        if cached is not None:
            self.size -= len(cached.body) + OVERHEAD

    def _follow(self, revision: Revision) -> None:
        shown = revision.shown
        self._follow_no_longer(shown.job_id)
        if shown.view.terminal:
            return
        self._followed[shown.job_id] = revision
        self._followed_size += _size(revision)
        while self._followed_size > self._max_followed and len(self._followed) > 1:
            self._follow_no_longer(next(iter(self._followed)))

    def _follow_no_longer(self, job_id: str) -> None:
        if (revision := self._followed.pop(job_id, None)) is not None:
            self._followed_size -= _size(revision)


def _only_grown(old: PublishedJob, new: PublishedJob) -> bool:
    """True if both are one received document that has gone on."""
    return new.body == old.body and new.body is not None and new.body.running is not None


def _size(revision: Revision) -> int:
    view, body = revision.shown.view, revision.shown.body
    texts = len(body.text) if body is not None else len(view.metadata or "") + len(view.error or "")
    return MEMBERS + STEP * len(revision.document.steps) + texts
