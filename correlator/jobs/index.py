"""Any ID → job UUID → job: everything that is known, in memory, and how each fact changes what is shown.

One writer. Every visible change takes the next `seq`, and a document changes only with its `rev`, the `seq` of the
job's last change. A JobLog job is shown once its tables have been read (JobLog writes them before it logs), and for as
long as they have it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from correlator.jobs import fold, joblog
from correlator.jobs.corrections import Corrections, Lost
from correlator.jobs.model import (
    Change,
    Entry,
    Event,
    Fact,
    Job,
    Kept,
    Kind,
    LegacyRecord,
    Memory,
    Micros,
    Reading,
    Reason,
    Resolved,
    Shown,
    Status,
    Tie,
    Tied,
    View,
)
from correlator.jobs.names import Names
from correlator.jobs.transitions import Transitions, legacy_events

MAX_PENDING = 10_000
"""Jobs heard of in the log and not yet read from the tables."""

MAX_WAITING = 1_000
"""Facts about steps whose job is not known yet."""

MAX_UNTOLD = 5_000
"""Log lines of jobs that are not shown yet; the source waits when there are many."""

WAIT_FOR = 30_000_000
"""Microseconds that such a fact waits: the tables, which know better, have been asked long before."""

MAX_IGNORED = 100_000
"""Job ids remembered as gone or too old, so that their late rows do not bring them back."""


class Outcome(Struct):
    """What a batch of facts did. `unread`, `unread_steps`: what the tables should be asked; `ended`: jobs that did.

    `lost`: what the tables have told and no log row ever will.
    """

    changes: list[Change] = []
    events: list[Event] = []
    tied: list[Tied] = []
    unread: set[str] = set()
    unread_steps: set[int] = set()
    ended: set[str] = set()
    lost: list[Lost] = []


class Index:
    """`retention` and `stalled_after` are in seconds; every `now` is in microseconds."""

    def __init__(
        self,
        *,
        id_keys: Sequence[str] = joblog.EXTERNAL_ID_KEYS,
        stalled_after: float = 600.0,
        retention: float = 86_400.0,
        max_jobs: int = 20_000,
    ) -> None:
        self.seq = 0
        self.tracking = True
        """Whether job_tracking can be read; without it, jobs are shown as the log alone tells them."""
        self.loading = True
        """While the past is read, nothing that happened then is announced as an event."""
        self.id_keys = tuple(id_keys)
        self.stalled_after = stalled_after
        self.retention = int(retention * 1_000_000)
        """Microseconds that ended jobs stay in memory."""
        self._max_jobs = max_jobs
        self._jobs: dict[str, Job] = {}
        self._shown: dict[str, Shown] = {}
        self._legacy: dict[str, LegacyRecord] = {}
        self._left: dict[str, LegacyRecord] = {}
        self._external, self._contexts = Names(), Names()
        self._children: dict[str, set[str]] = {}
        self._step_jobs: dict[int, str] = {}
        self._pending: dict[str, None] = {}
        self._waiting: dict[int, list[tuple[Micros, Entry]]] = {}
        self._untold: dict[str, list[Tied]] = {}
        self._ignored: dict[str, None] = {}
        self._active: set[str] = set()
        self._expiry: list[tuple[Micros, str]] = []
        self._transitions = Transitions()
        self._corrections = Corrections()
        self._looks = 0
        self._dirty: dict[str, None] = {}

    # -- reading

    def look(self) -> int:
        """The next tick: of a look at the tables that begins now, or of rows that have just come."""
        self._looks += 1
        return self._looks

    def __len__(self) -> int:
        return len(self._shown)

    def get(self, job_id: str) -> Shown | None:
        """The job with that UUID (or legacy ID), if it is in memory."""
        return self._shown.get(job_id)

    def job(self, job_id: str) -> Job | None:
        """The facts behind a JobLog job."""
        return self._jobs.get(job_id)

    def legacy(self, job_id: str) -> LegacyRecord | None:
        return self._legacy.get(job_id)

    def shown(self) -> Iterable[Shown]:
        return self._shown.values()

    def active(self) -> set[str]:
        """The JobLog jobs that have not ended, and those not read yet."""
        return {i for i in self._active if i in self._jobs} | set(self._pending)

    def active_legacy(self) -> list[LegacyRecord]:
        return [r for r in self._legacy.values() if r.status not in fold.LEGACY_ENDED]

    def needs_reading(self, job_id: str) -> bool:
        """Whether the tables may say more of a job that began or ended lately than is known of it."""
        shown = self._shown.get(job_id)
        return job_id not in self._ignored and (shown is None or not shown.view.terminal)

    def is_new(self, job_id: str) -> bool:
        return job_id not in self._shown and job_id not in self._ignored

    def claims(self, external_id: str) -> bool:
        """Whether a JobLog job in memory has this external ID."""
        return bool(self._external.get(external_id))

    @property
    def untold(self) -> int:
        """How many log lines wait for the tables to tell of their jobs."""
        return sum(map(len, self._untold.values()))

    def joblog_ids(self) -> list[str]:
        return [i for i, s in self._shown.items() if s.view.source == "joblog"]

    def resolve(self, name: str) -> Resolved | None:
        """Where `name` leads among the jobs in memory: UUID, external ID, context ID, legacy ID, in that order."""
        found = self._shown.get(name)
        if found is not None and found.view.source == "joblog":
            return Resolved(name, "uuid")
        if owners := self._by_age(self._external.get(name)):
            return Resolved(owners[0], "external_id", owners[1:])
        if owners := self._by_age(self._contexts.get(name)):
            return Resolved(owners[0], "context_id", owners[1:])
        return Resolved(name, "legacy") if found is not None else None

    def carriers(self, name: str) -> set[str]:
        """The jobs in memory that have `name` as an external or context ID, whichever of them it leads to."""
        return {*self._external.get(name), *self._contexts.get(name)}

    def names_lead_to(self, name: str, job_id: str) -> bool:
        resolved = self.resolve(name)
        return resolved is not None and resolved.job_id == job_id

    def _by_age(self, job_ids: tuple[str, ...]) -> tuple[str, ...]:
        if len(job_ids) < 2:
            return job_ids
        return tuple(sorted(job_ids, key=lambda i: self._shown[i].view.age_key, reverse=True))

    # -- what outlives the daemon

    def memory(self) -> Memory:
        return Memory(self._looks, self._transitions.owed())

    def changed(self) -> list[str]:
        """The jobs, JobLog's and legacy ones, of which more or less is known than when this was asked last."""
        dirty, self._dirty = list(self._dirty), {}
        return dirty

    def changed_again(self, job_ids: Iterable[str]) -> None:
        """They could not be kept: they count as changed."""
        self._dirty = dict.fromkeys(job_ids) | self._dirty

    def everything(self) -> list[str]:
        return [*self._jobs, *(i for i in self._legacy if i not in self._jobs)]

    def kept(self, job_id: str) -> Kept | LegacyRecord | None:
        """What is to be kept of it; None where nothing is known any more."""
        if (job := self._jobs.get(job_id)) is not None:
            shown = self._shown.get(job_id)
            return Kept(job, shown.updated_at if shown is not None else 0)
        return self._legacy.get(job_id)

    def restore(self, kept: Iterable[Kept], legacy: Iterable[LegacyRecord], memory: Memory, now: Micros) -> Outcome:
        """Know again what an earlier run knew: an empty index takes it in, and announces no event for it."""
        loading, self.loading = self.loading, True
        self._looks = memory.looks
        out, parents, known = Outcome(), dict[str, None](), list(kept)
        for one in known:
            self._jobs[one.job.job_id] = one.job
            self._pending[one.job.job_id] = None
        for one in known:
            job_id = one.job.job_id
            self._settle(job_id, now, out, parents)
            if (shown := self._shown.get(job_id)) is not None:
                self._shown[job_id] = replace(shown, updated_at=one.updated_at)
        for parent in parents:
            if (shown := self._shown.get(parent)) is not None:
                self._shown[parent] = replace(shown, children=self._child_ids(parent))
        for record in legacy:
            self._legacy[record.job_id] = record
            self._settle_legacy(record.job_id, now, out)
            if (shown := self._shown.get(record.job_id)) is not None and shown.view.source == "legacy":
                self._shown[record.job_id] = replace(shown, updated_at=record.updated_at or now)
        self._transitions.restore(memory.owed)
        self.loading = loading
        return out

    # -- writing

    def apply(self, facts: Iterable[Fact], now: Micros) -> Outcome:
        """Fold `facts` in, and say what changed. One change a job, however many facts there were of it."""
        out = Outcome()
        touched: dict[str, Job | None] = {}
        """The jobs, as they were before."""
        for fact in facts:
            job_id = fact.job_id if isinstance(fact, Reading) else self._hear(fact, now, out)
            if job_id is not None and not (isinstance(fact, Entry) and self._skip(fact, job_id)):
                before = self._jobs.get(job_id)
                self._fold(job_id, fact, out)
                if isinstance(fact, Reading) and (job := self._jobs.get(job_id)) is not None:
                    out.lost += self._corrections.read(before, job, now, past=self.loading)
                touched.setdefault(job_id, before)
        parents: dict[str, None] = {}
        for job_id, before in touched.items():
            self._settle(job_id, now, out, parents, before)
        for parent in parents:
            if (shown := self._shown.get(parent)) is not None:
                self._show(shown.view, shown.alive_at, now, out)
        self._keep_untold(out)
        return out

    def apply_legacy(self, records: Iterable[LegacyRecord], gone: Iterable[str], now: Micros) -> Outcome:
        """Take in rows of `failover_jobs` as read, and the ids of rows that are no longer there."""
        out = Outcome()
        for record in records:
            if self._left.get(record.job_id) == record:
                continue  # it has left memory, and nothing has happened to it since
            known = self._legacy.get(record.job_id)
            new = replace(record, claimed=True) if known and known.claimed else record
            if new != known:
                self._dirty[record.job_id] = None
            self._legacy[record.job_id] = new
            self._settle_legacy(record.job_id, now, out)
        for job_id in gone:
            if self._legacy.pop(job_id, None) is not None:
                self._dirty[job_id] = None
                self._hide(job_id, "gone", out)
        return out

    def tick(self, now: Micros) -> Outcome:
        """What time alone changes: jobs fall silent, ended ones leave, owed transitions are told."""
        out = Outcome()
        for job_id in [i for i in self._active if i in self._shown]:
            shown = self._shown[job_id]
            if shown.stalled != self._is_stalled(shown.view, shown.alive_at, now):
                self._show(shown.view, shown.alive_at, now, out)
        while self._expiry and (self._expiry[0][0] <= now - self.retention or len(self._shown) > self._max_jobs):
            ended, job_id = heapq.heappop(self._expiry)
            left = self._shown.get(job_id)
            if left is not None and left.view.terminal and _ended(left.view) == ended:
                self._forget(job_id, "retention", now, out)
        for step_id in [i for i, kept in self._waiting.items() if kept[0][0] < now - WAIT_FOR]:
            out.tied += [Tied(e, None, "none") for _, e in self._waiting.pop(step_id)]
        out.events += self._transitions.due(now)
        return out

    def _hear(self, entry: Entry, now: Micros, out: Outcome) -> str | None:
        """Tie a log row to its job: by its job id, else by its step, else by an external ID it carries."""
        job_id = entry.job_id
        by: Tie = entry.by
        if job_id is None and entry.step_id is not None:
            job_id, by = self._step_jobs.get(entry.step_id), "step"
            if job_id is None:
                self._wait(entry, entry.step_id, now, out)
                return None
        if job_id is None and entry.external_ids:
            owners = self._by_age(self._external.get(entry.external_ids[0]))
            job_id, by = (owners[0], "external_id") if owners else (None, "none")
        out.tied.append(Tied(entry, job_id, by))
        if entry.kind is not None and job_id is not None:
            self._transitions.heard(job_id, entry.step_id, entry.kind)
            if not self.loading:
                step_name = entry.step_name or None
                out.events.append(
                    Event(entry.kind, job_id, entry.at, entry.event_id, entry.step_id, step_name, entry.error)
                )
        return job_id

    def _wait(self, entry: Entry, step_id: int, now: Micros, out: Outcome) -> None:
        out.unread_steps.add(step_id)
        self._waiting.setdefault(step_id, []).append((now, entry))
        while sum(map(len, self._waiting.values())) > MAX_WAITING:
            dropped = self._waiting.pop(next(iter(self._waiting)))
            out.tied += [Tied(e, None, "none") for _, e in dropped]

    def _keep_untold(self, out: Outcome) -> None:
        """Lines of a job that the tables have not told of yet wait for it: its first readers shall get them."""
        if self.loading or not (self._pending or self._untold):
            return
        told: list[Tied] = []
        for job_id in [i for i in self._untold if i not in self._pending]:
            told += self._untold.pop(job_id)
        for line in out.tied:
            if line.job_id is not None and line.job_id in self._pending:
                self._untold.setdefault(line.job_id, []).append(line)
            else:
                told.append(line)
        while self.untold > MAX_UNTOLD:
            told += self._untold.pop(next(iter(self._untold)))
        out.tied = told

    def _skip(self, entry: Entry, job_id: str) -> bool:
        """A late row of a job that is gone or too old does not bring it back; one that starts it again may."""
        if job_id not in self._ignored:
            return False
        if entry.kind is Kind.JOB_STARTED:
            del self._ignored[job_id]
            return False
        return True

    def _fold(self, job_id: str, fact: Fact, out: Outcome) -> None:
        job = self._jobs.get(job_id)
        if job is None:
            job = Job(job_id)
            if job_id not in self._shown:
                self._pending[job_id] = None
        if isinstance(fact, Entry):
            if job.reading is None:
                out.unread.add(job_id)
            ending = fact.kind is not None and not fact.kind.of_step and fact.kind is not Kind.JOB_STARTED
            if ending and not self.loading:
                out.ended.add(job_id)
        if isinstance(fact, Entry) or fold.is_news(job, fact):
            self._dirty[job_id] = None
        self._jobs[job_id] = fold.fold(job, fact)
        while len(self._pending) > MAX_PENDING:
            oldest = next(iter(self._pending))
            del self._pending[oldest]
            self._jobs.pop(oldest, None)

    def _settle(
        self, job_id: str, now: Micros, out: Outcome, parents: dict[str, None], before: Job | None = None
    ) -> None:
        """Show, change or drop the job, as its facts now say. `before`: the facts behind what is shown of it."""
        job = self._jobs.get(job_id)
        if job is None or (job.reading is None and self.tracking):
            return
        old = self._shown.get(job_id)
        if job.reading is not None and job.reading.record is None and self.tracking:
            if old is not None and old.view.parent_job_id:
                parents[old.view.parent_job_id] = None
            self._forget(job_id, "gone", now, out)
            return
        if old is not None and before is not None:
            view = fold.view_after(before, old.view, job, self.id_keys)
        else:
            view = fold.view(job, self.id_keys)
        if view.terminal and _ended(view) <= now - self.retention:
            self._forget(job_id, "retention", now, out)
            return
        self._pending.pop(job_id, None)
        self._ignored.pop(job_id, None)
        self._show(view, fold.alive_at(job), now, out)
        parent = old.view.parent_job_id if old is not None else None
        if parent != view.parent_job_id:
            if parent is not None:
                self._children.get(parent, set()).discard(job_id)
                parents[parent] = None
            if view.parent_job_id is not None:
                self._children.setdefault(view.parent_job_id, set()).add(job_id)
                parents[view.parent_job_id] = None
        for step in view.steps if old is None or old.view.steps is not view.steps else ():
            if step.id not in self._step_jobs:
                self._step_jobs[step.id] = job_id
                self._flush(step.id, job_id, now, out)

    def _flush(self, step_id: int, job_id: str, now: Micros, out: Outcome) -> None:
        if waiting := self._waiting.pop(step_id, None):
            more = self.apply([replace(e, job_id=job_id, by="step") for _, e in waiting], now)
            for name in ("changes", "events", "tied"):
                getattr(out, name).extend(getattr(more, name))
            out.ended |= more.ended

    def _show(self, view: View, alive_at: Micros, now: Micros, out: Outcome) -> None:
        old = self._shown.get(view.job_id)
        children = self._child_ids(view.job_id)
        stalled = self._is_stalled(view, alive_at, now)
        if old is not None and old.view == view and old.children == children and old.stalled == stalled:
            if old.alive_at != alive_at:
                self._shown[view.job_id] = replace(old, alive_at=alive_at)
            return
        if view.source == "joblog":
            for name in view.external_ids:
                if name in self._legacy and name not in self._jobs:
                    self._hide(name, "merged", out)  # readers lose the legacy job before they get the real one
        self.seq += 1
        updated_at = min(now, max(alive_at, _ended(view))) if old is None and view.terminal else now
        new = Shown(view, self.seq, updated_at, children, stalled, alive_at)
        self._shown[view.job_id] = new
        self._track(old, new, now, out)
        out.changes.append(Change(view.job_id, new.rev, old, new))
        if old is None or old.view.names() != view.names() or old.view.age_key != view.age_key:
            self._rename(view.job_id, old.view if old else None, view, now, out)

    def _track(self, old: Shown | None, new: Shown, now: Micros, out: Outcome) -> None:
        """What follows from a change: the active set, expiry, and events."""
        view, was = new.view, old.view if old is not None else None
        if view.terminal:
            self._active.discard(view.job_id)
            if was is None or not was.terminal or _ended(was) != _ended(view):
                heapq.heappush(self._expiry, (_ended(view), view.job_id))
                if not self.loading:
                    out.ended.add(view.job_id)
        else:
            self._active.add(view.job_id)
        if self.loading:
            return
        if view.source == "legacy":
            out.events += legacy_events(was, view)
        else:
            self._transitions.changed(was, view, self._jobs[view.job_id], now)
        was_stalled = old is not None and old.stalled
        if new.stalled and not was_stalled:
            out.events.append(Event(Kind.JOB_STALLED, view.job_id, now))
        elif was_stalled and not new.stalled and view.status is Status.RUNNING:
            out.events.append(Event(Kind.JOB_RECOVERED, view.job_id, now))

    def _rename(self, job_id: str, old: View | None, new: View | None, now: Micros, out: Outcome) -> None:
        """Keep names and their owners: whoever lost or gained one is told of, a legacy job of that ID merges."""
        joblog_view = [v if v is not None and v.source == "joblog" else None for v in (old, new)]
        before, after = (v.external_ids if v is not None else () for v in joblog_view)
        changed = self._external.move(job_id, before, after)
        contexts = [(v.context_id,) if v is not None and v.context_id else () for v in joblog_view]
        elsewhere = self._contexts.move(job_id, *contexts)
        if old is not None and new is not None and old.age_key != new.age_key:
            # Its place among the jobs of the same IDs may be another now.
            changed |= set(after)
            elsewhere |= set(contexts[1])
        moved = {i for n in changed for i in self._external.get(n)}
        moved |= {i for n in elsewhere for i in self._contexts.get(n)}
        for name in changed:
            if name in self._legacy:
                self._settle_legacy(name, now, out)
        for other in sorted(moved - {job_id}):
            if (shown := self._shown.get(other)) is not None:
                self.seq += 1
                out.changes.append(Change(other, self.seq, shown, shown, moved=True))

    def _settle_legacy(self, job_id: str, now: Micros, out: Outcome) -> None:
        record = self._legacy[job_id]
        if job_id in self._jobs:
            return
        if record.claimed or self._external.get(job_id):
            self._hide(job_id, "merged", out)
            return
        view = fold.legacy_view(record)
        if view.terminal and _ended(view) <= now - self.retention:
            self._hide(job_id, "retention", out)
            self._legacy.pop(job_id, None)
            return
        self._show(view, record.updated_at or record.created_at or 0, now, out)

    def _hide(self, job_id: str, reason: Reason, out: Outcome) -> None:
        old = self._shown.pop(job_id, None)
        self._active.discard(job_id)
        if old is not None:
            self.seq += 1
            out.changes.append(Change(job_id, self.seq, old, None, reason))

    def _forget(self, job_id: str, reason: Reason, now: Micros, out: Outcome) -> None:
        """Drop a job from memory, whatever is known of it."""
        old = self._shown.get(job_id)
        self._jobs.pop(job_id, None)
        self._corrections.forget(job_id)
        self._pending.pop(job_id, None)
        self._dirty[job_id] = None
        if old is None or old.view.source == "joblog":
            self._ignored[job_id] = None
            while len(self._ignored) > MAX_IGNORED:
                del self._ignored[next(iter(self._ignored))]
        if old is None:
            return
        for step in old.view.steps:
            self._step_jobs.pop(step.id, None)
        if reason == "gone" and old.view.parent_job_id in self._children:
            self._children[old.view.parent_job_id].discard(job_id)
        self._children.pop(job_id, None)
        if reason == "retention":
            for name in old.view.external_ids:
                if name in self._legacy:
                    self._legacy[name] = replace(self._legacy[name], claimed=True)
        self._hide(job_id, reason, out)
        self._rename(job_id, old.view, None, now, out)
        if (record := self._legacy.pop(job_id, None)) is not None:
            self._left[job_id] = record
            while len(self._left) > MAX_PENDING:
                del self._left[next(iter(self._left))]

    def _child_ids(self, job_id: str) -> tuple[str, ...]:
        job = self._jobs.get(job_id)
        pairs = set(job.reading.children) if job is not None and job.reading is not None else set()
        listed = {i for _, i in pairs}
        for child in self._children.get(job_id, ()):
            if child not in listed and (shown := self._shown.get(child)) is not None:
                pairs.add((shown.view.started_at or 0, child))
        return tuple(i for _, i in sorted(pairs))

    def _is_stalled(self, view: View, alive_at: Micros, now: Micros) -> bool:
        return view.status is Status.RUNNING and 0 < alive_at < now - int(self.stalled_after * 1_000_000)


def _ended(view: View) -> Micros:
    """When an ended job ended; the start where the tables do not say, so that it does leave memory."""
    return next((t for t in (view.ended_at, view.started_at) if t is not None), 0)
