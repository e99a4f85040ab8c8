"""The hub: the index as readers see it, and its changes as they happen. `publish` is synchronous and never waits.

A reader that registers sees every change from then on, and what it reads of the index in the same step is the state
just before: nothing slips between. How far a reader has come is (epoch, seq); the epoch is new at every start.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

from msgspec import Struct

from correlator.errors import SourceUnavailable
from correlator.jobs import fold
from correlator.jobs.index import Index, Outcome
from correlator.jobs.model import (
    Change,
    Event,
    Job,
    LegacyRecord,
    Level,
    LogLine,
    Micros,
    Reading,
    Resolved,
    Shown,
    Tied,
)
from correlator.jobs.shapes import DatabaseState
from correlator.liveness import Liveness

HELD_FOR = 60.0
"""Seconds for which an ID that nobody knows is looked for often."""

RING = 10_000
"""Changes that are remembered for readers that come back."""


class Found(Struct, frozen=True):
    """What the database knows of an ID. Exactly one of `reading` and `legacy` is set."""

    resolved: Resolved
    reading: Reading | None = None
    legacy: LegacyRecord | None = None


class JobQuery(Struct, frozen=True):
    """A filter of jobs: OR inside a member, AND between them; an empty member does not filter."""

    status: frozenset[str] = frozenset()
    job_type: frozenset[str] = frozenset()
    operation: frozenset[str] = frozenset()
    context_id: frozenset[str] = frozenset()
    parent_job_id: frozenset[str] = frozenset()
    text: str = ""
    since: Micros | None = None

    def matches(self, shown: Shown) -> bool:
        view = shown.view
        return (
            (not self.status or view.status.value in self.status)
            and (not self.job_type or view.job_type in self.job_type)
            and (not self.operation or view.operation in self.operation)
            and (not self.context_id or view.context_id in self.context_id)
            and (not self.parent_job_id or view.parent_job_id in self.parent_job_id)
            and (self.since is None or (view.started_at or 0) >= self.since)
            and (not self.text or self._mentions(shown))
        )

    def _mentions(self, shown: Shown) -> bool:
        text = self.text.lower()
        return any(text in name.lower() for name in shown.view.names()) or text in fold.vm_name(shown.view).lower()


class Archive(Protocol):
    """What the database knows beyond memory. Every call may raise `correlator.errors.SourceUnavailable`."""

    async def find(self, name: str, look: Callable[[], int]) -> Found | None:
        """The newest job that `name` names, by the order of lookup; `look` gives the tick of a look."""

    async def page(
        self, query: JobQuery, before: tuple[Micros, str] | None, limit: int, look: Callable[[], int]
    ) -> list[Reading]:
        """Jobs by (started, id), newest first, from before `before` on."""

    async def lines(self, names: JobNames, after: str | None, limit: int, level: Level) -> LinesPage:
        """The log lines of a job, oldest first; raises `BadRequest` for an `after` that is none of ours."""


class JobNames(Struct, frozen=True):
    """What a log row may name its job by, and within which times it was logged; `ended` None: it has not ended."""

    job_id: str
    external_ids: tuple[str, ...]
    step_ids: frozenset[int]
    started: Micros
    ended: Micros | None


class LinesPage(Struct, frozen=True):
    """`next_after`: where the next page begins; None when an ended job has no more."""

    lines: Sequence[LogLine]
    next_after: str | None


class Batch(Struct, frozen=True):
    """What was published together; `seq` is the stream's position after it.

    `lines`: rows of the log, each exactly once, with the jobs they belong to; none while the past is read.
    """

    seq: int
    changes: Sequence[Change]
    events: Sequence[Event] = ()
    lines: Sequence[Tied] = ()


Listener: TypeAlias = Callable[[Batch], None]


class Subscription:
    """The latest change of each job since the last `take`: bounded by jobs, however far its reader lags."""

    def __init__(self, leave: Callable[[Listener], None]) -> None:
        self._pending: dict[str, Change] = {}
        self._events: list[tuple[int, Event]] = []
        self._ready = asyncio.Event()
        self._leave = leave

    def hear(self, batch: Batch) -> None:
        for change in batch.changes:
            self._pending[change.job_id] = change
        self._events += [(batch.seq, e) for e in batch.events]
        self._ready.set()

    async def take(self) -> tuple[dict[str, Change], list[tuple[int, Event]]]:
        """Wait for something new, then everything that is, newest state only."""
        await self._ready.wait()
        self._ready.clear()
        changes, self._pending = self._pending, {}
        events, self._events = self._events, []
        return changes, events

    def close(self) -> None:
        self._leave(self.hear)


class Hub:
    """One for the whole daemon. `learn` feeds what the archive found to the index, where it belongs in memory."""

    def __init__(self, index: Index, archive: Archive | None = None, *, epoch: str = "") -> None:
        self.index = index
        self.archive = archive
        self.epoch = epoch or secrets.token_hex(6)
        self.source: DatabaseState = "down"
        self.source_error: str | None = None
        self.loading: tuple[int, int] | None = (0, 0)
        """(ids read, ids to read) while the past is being read; None once what is known is complete."""
        self.draining = False
        self.live = Liveness()
        """Which tasks make progress."""
        self.learn: Callable[[Iterable[Reading]], object] = lambda _: None
        self.on_hold: Callable[[], None] = lambda: None
        self.parts: dict[str, Callable[[], dict[str, Any]]] = {"database": self._describe}
        """What readiness tells of each part; a part is well while its "ok" is true."""
        self.watchers: dict[str, Callable[[], int]] = {"waiting": lambda: len(self._waiters)}
        """How many readers each kind of endpoint has."""
        self._answered = 0.0
        self._listeners: dict[Listener, None] = {}
        self._status_listeners: dict[Callable[[], None], None] = {}
        self._held: dict[str, tuple[int, float]] = {}
        self._waiters: dict[str, list[asyncio.Event]] = {}
        self._ring: deque[Change] = deque()
        self._forgotten = 0
        """The seq of the newest change that the ring no longer holds."""

    @property
    def seq(self) -> int:
        return self.index.seq

    # -- the writer's side

    def publish(self, outcome: Outcome) -> None:
        """Tell everybody. Whoever listens must not wait and must not raise."""
        lines = () if self.index.loading else outcome.tied
        if not outcome.changes and not outcome.events and not lines:
            return
        batch = Batch(self.index.seq, outcome.changes, outcome.events, lines)
        self._ring.extend(outcome.changes)
        while len(self._ring) > RING:
            self._forgotten = self._ring.popleft().seq
        if self._held or self._waiters:
            self._wake(outcome.changes)
        for listener in list(self._listeners):
            listener(batch)

    def answered(self, ago: float = 0.0) -> None:
        """The database has given a whole answer, just now or `ago` seconds ago."""
        self._answered = time.monotonic() - ago

    def set_source(self, state: DatabaseState, error: str | None = None) -> None:
        if (state, error) == (self.source, self.source_error):
            return
        self.source, self.source_error = state, error
        for listener in list(self._status_listeners):
            listener()

    @property
    def lag_seconds(self) -> float:
        """How old the newest whole answer of the database is; 0 while it is fresh."""
        if self.source == "live":
            return 0.0
        return round(time.monotonic() - self._answered, 3) if self._answered else 0.0

    @property
    def readers(self) -> int:
        """Who watches, all endpoints together."""
        return sum(count() for count in self.watchers.values())

    def _describe(self) -> dict[str, Any]:
        part: dict[str, Any] = {
            "ok": self.source == "live",
            "state": self.source,
            "lag_seconds": self.lag_seconds,
            "error": self.source_error,
        }
        if self.loading is not None:
            done, total = self.loading
            part["loading"] = {"done": done, "total": total}
        return part

    # -- the readers' side

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Hear every batch from now on; returns how to stop."""
        self._listeners[listener] = None
        return lambda: self._leave(listener)

    def changes_since(self, seq: int) -> list[Change] | None:
        """All changes after position `seq`, in order; None where the ring does not reach back so far, or ahead."""
        if not self._forgotten <= seq <= self.seq:
            return None
        missed: list[Change] = []
        for change in reversed(self._ring):
            if change.seq <= seq:
                break
            missed.append(change)
        return missed[::-1]

    def listen_status(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Be told whenever the state of the database behind it changes; returns how to stop."""
        self._status_listeners[listener] = None
        return lambda: self._status_listeners.pop(listener, None)

    def subscribe(self) -> Subscription:
        """A conflating subscription to every job."""
        subscription = Subscription(self._leave)
        self._listeners[subscription.hear] = None
        return subscription

    def hold(self, name: str) -> None:
        """Somebody waits for this ID: look for it often, for a while. Paired with `release`."""
        count, since = self._held.get(name, (0, time.monotonic()))
        self._held[name] = (count + 1, since if count else time.monotonic())
        self.on_hold()

    def release(self, name: str) -> None:
        count, since = self._held.get(name, (1, 0.0))
        if count > 1:
            self._held[name] = (count - 1, since)
        else:
            self._held.pop(name, None)

    def holding(self) -> bool:
        """Whether an ID is waited for that nobody knew a short while ago."""
        oldest = time.monotonic() - HELD_FOR
        return any(since >= oldest and self.index.resolve(name) is None for name, (_, since) in self._held.items())

    async def find(self, name: str) -> tuple[Shown, Resolved] | None:
        """The job that `name` names, from memory, else from the database. Raises `SourceUnavailable`."""
        known = self.find_now(name)
        if self.archive is None or (known is not None and self._is_newest(*known)):
            return known
        try:
            found = await self.archive.find(name, self.index.look)
        except SourceUnavailable:
            if known is not None:
                return known
            raise
        if found is None:
            return self.find_now(name)
        if found.reading is not None:
            self.learn([found.reading])
        known, old = self.find_now(name), self._from_archive(found)
        if known is None or (old is not None and old[0].view.age_key > known[0].view.age_key):
            return old
        return known

    def _is_newest(self, shown: Shown, resolved: Resolved) -> bool:
        """Whether no newer job of that name can have left memory: one that is there for long may run for ever."""
        if resolved.resolved_by in ("uuid", "legacy"):
            return True
        return (shown.view.started_at or 0) >= time.time_ns() // 1000 - self.index.retention

    def find_now(self, name: str) -> tuple[Shown, Resolved] | None:
        """The job that `name` names among those in memory."""
        resolved = self.index.resolve(name)
        shown = self.index.get(resolved.job_id) if resolved is not None else None
        return (shown, resolved) if shown is not None and resolved is not None else None

    def _from_archive(self, found: Found) -> tuple[Shown, Resolved] | None:
        if found.legacy is not None:
            return self.archived_legacy(found.legacy), found.resolved
        assert found.reading is not None
        shown = self.archived(found.reading)
        return (shown, found.resolved) if shown is not None else None

    def archived(self, reading: Reading) -> Shown | None:
        """A job as the database alone tells it, at the `seq` of this moment."""
        if reading.record is None:
            return None
        job = fold.fold(Job(reading.job_id), reading)
        children = tuple(child for _, child in reading.children)
        updated = reading.record.updated_at or fold.alive_at(job)
        return Shown(fold.view(job, self.index.id_keys), self.seq, updated, children, alive_at=fold.alive_at(job))

    def archived_legacy(self, record: LegacyRecord) -> Shown:
        return Shown(fold.legacy_view(record), self.seq, record.updated_at or record.created_at or 0)

    async def changed(self, name: str, within: float) -> bool:
        """Wait until a job that `name` names changes or appears; False when `within` seconds passed before."""
        event = asyncio.Event()
        self._waiters.setdefault(name, []).append(event)
        try:
            async with asyncio.timeout(within):
                await event.wait()
            return True
        except TimeoutError:
            return False
        finally:
            self._waiters[name].remove(event)
            if not self._waiters[name]:
                del self._waiters[name]

    @contextlib.contextmanager
    def held(self, name: str) -> Iterator[None]:
        """Hold an ID for as long as the block lasts."""
        self.hold(name)
        try:
            yield
        finally:
            self.release(name)

    def close(self) -> None:
        """Draining: whoever waits is woken."""
        self.draining = True
        for events in self._waiters.values():
            for event in events:
                event.set()

    def _wake(self, changes: Sequence[Change]) -> None:
        for change in changes:
            names = set(change.new.view.names()) if change.new is not None else set()
            if change.old is not None:
                names.update(change.old.view.names())
            for name in names:
                for event in self._waiters.get(name, ()):
                    event.set()

    def _leave(self, listener: Listener) -> None:
        self._listeners.pop(listener, None)
