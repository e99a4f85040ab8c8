"""The index publishes what a second one computes that starts from all facts at each step.

The second one keeps every fact, and derives documents, children, IDs and silence from nothing else. What cannot be
derived it says in the fewest words: which jobs were removed, which rows of `failover_jobs` were set aside, and when a
job last lived. `make test` runs 60 examples, HYPOTHESIS_PROFILE=long 10,000.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from msgspec.structs import replace

from correlator.jobs import fold
from correlator.jobs.away import AWAY_FOR
from correlator.jobs.fold import ended_at
from correlator.jobs.index import WAIT_FOR, Index
from correlator.jobs.known import LATE_COMMIT
from correlator.model.facts import STATUS_OF, Entry, Fact, Job, Kind, Reading, Status
from correlator.model.persisted import IndexState, PersistedJob
from correlator.model.published import JobView, Outcome, PublishedJob, goes_on
from correlator.model.rows import JobRecord, LegacyRecord, Micros, StepRecord
from tests.support.saved_index import stored

SECOND = 1_000_000
BASE = 1_758_550_000 * SECOND
RETENTION, MAX_JOBS, STALLED_AFTER = 40 * SECOND, 3, 20 * SECOND


class AwayJob:
    """A job that the tables do not have since `at`, as it was published last."""

    def __init__(self, job_id: str, at: Micros, view: JobView | None, facts: list[Fact]) -> None:
        self.job_id, self.at, self.view, self.facts = job_id, at, view, facts
        self.alive_at: Micros = 0
        self.lived: Micros | None = None
        self.end_seen: Micros | None = None
        self.stalled = False


class NaiveIndex:
    """What is published of all jobs. `views`: by job ID, as of the last call. Times in microseconds."""

    def __init__(self) -> None:
        self.facts: dict[str, list[Fact]] = {}
        self.rows: dict[str, LegacyRecord] = {}
        self.views: dict[str, JobView] = {}
        self.stalled: set[str] = set()
        self.silent: set[str] = set()
        """Rows of `failover_jobs` that were undecided at a restart: their silence begins before they are published."""
        self._end_seen: dict[str, Micros] = {}
        """When each published job that has ended was seen to end, if it was published before its end."""
        self._away: dict[str, AwayJob] = {}
        self._returned: dict[str, AwayJob] = {}
        self._seen: tuple[dict[str, JobView], dict[str, Micros]] = {}, {}
        """`views` and `_end_seen` before this call: what it changes does not depend on which job is settled first."""
        self._joined: dict[str, Job] = {}
        """The facts of the published JobLog jobs as of the last call."""
        self._alive_at: dict[str, Micros] = {}
        self._lived: dict[str, Micros] = {}
        self._removed: dict[str, Micros] = {}
        self._aside: dict[str, LegacyRecord] = {}
        self._no_room_until: Micros = -1
        self._announced_until: Micros = -1
        self._newest: Micros = 0
        self._steps: dict[int, str] = {}
        self._waiting: list[tuple[Micros, Entry]] = []

    # -- calls

    def _begin(self) -> None:
        self._seen = dict(self.views), dict(self._end_seen)

    def apply(self, facts: Iterable[Fact], now: Micros, *, past: bool = False) -> None:
        self._begin()
        wrote = set()
        for fact in facts:
            job_id = fact.job_id if isinstance(fact, Reading) else self._job_of(fact, now)
            if job_id is not None and (away := self._away.get(job_id)) is not None:
                if isinstance(fact, Entry):
                    away.facts.append(fact)
                    continue
                if fact.record is None:
                    continue
                self._come_back(self._away.pop(job_id))
            if job_id is None or (isinstance(fact, Entry) and self._is_late(job_id, fact)):
                continue
            self.facts.setdefault(job_id, []).append(fact)
            if isinstance(fact, Entry):
                wrote.add(job_id)
        if not past:
            self._settle(now, wrote)

    def apply_legacy(self, rows: Iterable[LegacyRecord], gone: Iterable[str], now: Micros) -> None:
        self._begin()
        for row in rows:
            known = self.rows.get(row.job_id)
            if self._aside.get(row.job_id) == row:
                continue
            view = fold.legacy_view(row)
            if known is None and (
                not self._is_news(view, 0) or (view.terminal and ended_at(view, 0) <= now - RETENTION)
            ):
                self._aside[row.job_id] = row
                continue
            self.rows[row.job_id] = replace(row, apart=known is not None and known.apart)
        for job_id in gone:
            self.rows.pop(job_id, None)
            if self._source(job_id) == "legacy":
                self._unpublish(job_id)
        self._settle(now)

    def decide_legacy(self, owned: Iterable[str], apart: Iterable[str], now: Micros) -> None:
        self._begin()
        for job_id in owned:
            self._set_aside(job_id)
        for job_id in apart:
            if job_id in self.rows:
                self.rows[job_id] = replace(self.rows[job_id], apart=True)
        self._settle(now)

    def expire(self, now: Micros) -> None:
        self._begin()
        self._waiting = [(at, entry) for at, entry in self._waiting if at >= now - WAIT_FOR]
        self.stalled |= {i for i, at in self._lived.items() if now - at > STALLED_AFTER}
        ended = sorted((self._leaving(v, self._alive_at[i]), i) for i, v in self.views.items() if v.terminal)
        room = len(self.views) - MAX_JOBS
        for n, (at, job_id) in enumerate(ended):
            if at <= now - RETENTION or n < room:
                view = self.views.get(job_id)
                if view is not None and view.source == "legacy":
                    self._no_room_until = max(self._no_room_until, ended_at(view, self._alive_at[job_id]))
                    self._set_aside(job_id)
                elif view is not None:
                    self._remove(job_id, view, now)
        self._settle(now)
        for away in [one for one in self._away.values() if one.at <= now - AWAY_FOR]:
            del self._away[away.job_id]
            self._steps = {step: of for step, of in self._steps.items() if of != away.job_id}

    def restart(self) -> None:
        """A checkpoint has no rows that were set aside or wait, no lost steps, and few of the removed jobs.

        It has no row of `failover_jobs` with the ID of a JobLog job, and no job that is away with the ID of a legacy
        job. Both are read again after the start. Of a job that is away it has the facts, and whether it ran then.
        """
        for job_id in self.facts.keys() & self.rows.keys():
            del self.rows[job_id]
            if self._source(job_id) == "legacy":
                self._unpublish(job_id)
        for job_id in self._away.keys() & self.rows.keys():
            del (self._away if job_id in self.views else self.rows)[job_id]
        self.silent |= self.rows.keys() - self.views.keys()
        self._announced_until = max(self._announced_until, self._newest - LATE_COMMIT)
        self._removed = {i: at for i, at in self._removed.items() if at > self._announced_until}
        for away in self._away.values():
            if away.view is not None:
                view = fold.view(job := _joined(away.job_id, away.facts))
                self._forget(away.job_id, view, fold.alive_at(job))
                ran = view.terminal and not away.view.terminal
                away.view = replace(view, status=Status.RUNNING, ended_at=None) if ran else view
        self._aside.clear()
        self._waiting.clear()
        known = [(self.facts.get(i, []), view) for i, view in self.views.items()]
        known += [(one.facts, one.view) for one in self._away.values() if one.view is not None]
        self._steps = {
            step.id: view.job_id for facts, view in known for step in _known_steps(_joined(view.job_id, facts), view)
        }
        self._no_room_until = -1

    # -- what everything follows from

    def _settle(self, now: Micros, wrote: Iterable[str] = ()) -> None:
        wrote = set(wrote)
        for job_id in list(self.facts):
            if (waited := self._settle_job(job_id, now)) is not None:
                wrote |= waited
        for job_id, row in list(self.rows.items()):
            view = fold.legacy_view(row)
            if job_id in self.facts or self.owner(job_id) is not None:
                continue  # Its document stays as it is until the job of its ID has been read, or is that of its owner.
            if self._has_expired(view, 0, now):
                self._set_aside(job_id)
            elif row.apart:
                self._publish(view, now)
        for job_id in [i for i in self.views if self._source(i) == "legacy" and self.owner(i) is not None]:
            self._unpublish(job_id)
        self._note_life(now, wrote)
        for view in self.views.values():
            self._newest = max(self._newest, min(now, max(self._alive_at[view.job_id], view.ended_at or 0)))

    def _settle_job(self, job_id: str, now: Micros) -> set[str] | None:
        """Publish or remove a JobLog job. Returns the job if rows had waited for one of its steps."""
        job, waited = self.joined(job_id), None
        if job.reading is None:
            return None
        if job.reading.record is None:
            published = self._source(job_id)
            if published != "legacy" or job_id in self._returned:
                self._leave(job_id, now)
            if published != "legacy":
                self._forget(job_id, self.views.get(job_id), self._alive(job_id))
            del self.facts[job_id]
            if published == "joblog":
                steps = self._steps
                self._unpublish(job_id)
                self._steps = steps
                self._set_aside(job_id)
            return None
        view, alive_at = fold.view(job), fold.alive_at(job)
        known = job_id in self.views or job_id in self._returned
        if self._has_expired(view, alive_at, now) or not (known or self._is_news(view, alive_at)):
            self._remove(job_id, view, now)
            return None
        for step in _known_steps(job, view):
            if step.id not in self._steps or self._steps[step.id] in self._away:
                self._steps[step.id] = job_id
                rows = [replace(e, job_id=job_id, by="step") for _, e in self._waiting if e.step_id == step.id]
                self._waiting = [one for one in self._waiting if one[1].step_id != step.id]
                self.facts[job_id] += rows
                waited = {job_id} if rows else waited
        if waited:
            view = fold.view(self.joined(job_id))
        if self._source(job_id) == "legacy":
            self._unpublish(job_id)
        self._publish(view, now)
        self._removed.pop(job_id, None)
        return waited

    def _leave(self, job_id: str, now: Micros) -> None:
        """A job that the tables do not have any more is kept as it was published, with its rows."""
        entries: list[Fact] = [f for f in self.facts[job_id] if isinstance(f, Entry)]
        if (away := self._returned.pop(job_id, None)) is not None:  # It was back for no longer than this call.
            away.at, away.facts = now, [*(f for f in away.facts if isinstance(f, Reading)), *entries]
            self._away[job_id] = away
            return
        read = self._joined[job_id].reading if job_id in self._joined else None
        away = AwayJob(job_id, now, self.views.get(job_id), entries if read is None else [read, *entries])
        self._away[job_id] = away
        away.alive_at, away.lived = self._alive_at.get(job_id, 0), self._lived.get(job_id)
        away.stalled, away.end_seen = job_id in self.stalled, self._end_seen.get(job_id)

    def _come_back(self, away: AwayJob) -> None:
        """It goes on as it was, but for what has happened since."""
        self.facts[away.job_id] = list(away.facts)
        self._returned[away.job_id] = away

    def _publish(self, view: JobView, now: Micros) -> None:
        end_seen = self._end_seen_at(view, now)
        if (away := self._returned.pop(view.job_id, None)) is not None and view.job_id not in self._seen[0]:
            self._alive_at[view.job_id] = away.alive_at
            if away.lived is not None:
                self._lived[view.job_id] = away.lived
            if away.stalled:
                self.stalled.add(view.job_id)
        self._end_seen.pop(view.job_id, None)
        if end_seen is not None:
            self._end_seen[view.job_id] = end_seen
        self.views[view.job_id] = view

    def _end_seen_at(self, view: JobView, now: Micros) -> Micros | None:
        """A job that clients have seen run ends first."""
        was, end_seen = self._seen[0].get(view.job_id), self._seen[1].get(view.job_id)
        if was is None and (away := self._returned.get(view.job_id)) is not None:
            was, end_seen = away.view, away.end_seen
        if was is None or not view.terminal:
            return None
        return end_seen if was.terminal else now

    def _note_life(self, now: Micros, wrote: set[str]) -> None:
        for job_id, view in self.views.items():
            row, job = self.rows.get(job_id), None
            if view.source == "joblog":
                job = self.joined(job_id)
                alive_at = fold.alive_at(job)
            elif job_id in self.facts or row is None:
                continue
            else:
                alive_at = fold.legacy_alive_at(row)
            before = self._joined.get(job_id)
            if view.status != "running":
                self._lived.pop(job_id, None)
                self.stalled.discard(job_id)
            elif alive_at and (
                job_id not in self._lived
                or job_id in wrote
                or alive_at > self._alive_at.get(job_id, 0)
                or (before is not None and job is not None and fold.shows_life(before, job))
            ):
                self._lived[job_id] = now
                self.stalled.discard(job_id)
            self._alive_at[job_id] = alive_at
            if job is not None:
                self._joined[job_id] = job

    # -- what clients ask

    def joined(self, job_id: str) -> Job:
        return _joined(job_id, self.facts[job_id])

    def owner(self, name: str) -> str | None:
        return _newest(self.views.values(), name)

    def resolve(self, name: str) -> str | None:
        if self._source(name) == "joblog":
            return name
        if (owner := self.owner(name)) is not None:
            return owner
        of_context = [v for v in self.views.values() if v.source == "joblog" and v.context_id == name]
        if of_context:
            return max(of_context, key=lambda v: v.age_key).job_id
        return name if name in self.views else None

    def children(self, job_id: str) -> list[str]:
        found = {v.job_id: v.started_at or 0 for v in self.views.values() if v.parent_job_id == job_id}
        reading = self.joined(job_id).reading if job_id in self.facts else None
        found |= {child: at for at, child in reading.children} if reading is not None else {}
        return sorted(found, key=lambda i: (found[i], i))

    # -- rules

    def _source(self, job_id: str) -> str | None:
        return self.views[job_id].source if job_id in self.views else None

    def _job_of(self, entry: Entry, now: Micros) -> str | None:
        if entry.job_id is not None:
            return entry.job_id
        if entry.step_id is not None:
            if entry.step_id not in self._steps:
                self._waiting.append((now, entry))
            return self._steps.get(entry.step_id)
        if not entry.external_ids:
            return None
        name, away = entry.external_ids[0], (one.view for one in self._away.values() if one.view is not None)
        return _newest(self.views.values(), name) or _newest(away, name)

    def _is_late(self, job_id: str, entry: Entry) -> bool:
        seen_to = self._removed.get(job_id)
        return (
            job_id not in self.facts
            and seen_to is not None
            and not (entry.kind is Kind.JOB_STARTED and entry.at > seen_to)
        )

    def _leaving(self, view: JobView, alive_at: Micros) -> Micros:
        """From when on the retention of an ended job counts."""
        return max(ended_at(view, alive_at), self._end_seen.get(view.job_id, 0))

    def _has_expired(self, view: JobView, alive_at: Micros, now: Micros) -> bool:
        return view.terminal and max(ended_at(view, alive_at), self._end_seen_at(view, now) or 0) <= now - RETENTION

    def _is_news(self, view: JobView, alive_at: Micros) -> bool:
        announced = max(self._removed.get(view.job_id, -1), self._announced_until)
        return not view.terminal or ended_at(view, alive_at) > min(self._no_room_until, announced)

    def _forget(self, job_id: str, view: JobView | None, alive_at: Micros) -> None:
        ended = ended_at(view, 0) if view is not None and view.terminal else 0
        self._removed[job_id] = max(self._removed.get(job_id, 0), alive_at, ended)

    def _alive(self, job_id: str) -> Micros:
        """The last activity of a job, as it was when it was published."""
        if job_id in self.views:
            return self._alive_at[job_id]
        job = self.joined(job_id)
        return fold.alive_at(job) if job.reading is not None and job.reading.record is not None else 0

    def _remove(self, job_id: str, view: JobView, now: Micros) -> None:
        """Remove a JobLog job for lack of room. The rows of `failover_jobs` with its IDs stay unpublished."""
        published = self.views.get(job_id)
        self._returned.pop(job_id, None)
        self._no_room_until = max(self._no_room_until, ended_at(view, self._alive(job_id)))
        if self._source(job_id) != "legacy":
            self._forget(job_id, view, self._alive(job_id))
        del self.facts[job_id]
        for name in published.external_ids if published is not None else ():
            self._set_aside(name)
        self._set_aside(job_id)
        self._unpublish(job_id)

    def _unpublish(self, job_id: str) -> None:
        self.views.pop(job_id, None)
        self._steps = {step: of for step, of in self._steps.items() if of != job_id}
        for known in (self._joined, self._alive_at, self._lived, self._end_seen):
            known.pop(job_id, None)
        self.stalled.discard(job_id)

    def _set_aside(self, job_id: str) -> None:
        if (row := self.rows.pop(job_id, None)) is not None:
            self._aside[job_id] = replace(row, apart=False)
            if self._source(job_id) == "legacy":
                self._unpublish(job_id)


def _joined(job_id: str, facts: Iterable[Fact]) -> Job:
    job = Job(job_id)
    for fact in facts:
        job = fold.fold(job, fact)
    return job


def _newest(views: Iterable[JobView], name: str) -> str | None:
    carriers = [view for view in views if view.source == "joblog" and name in view.external_ids]
    return max(carriers, key=lambda view: view.age_key).job_id if carriers else None


JOBS = ("j0", "j1", "j2", "j3")
NAMES = ("e0", "j0")
"""External IDs and IDs of rows of `failover_jobs`. One is also the ID of a JobLog job, one its context."""

STEPS = {job: (10 * n, 10 * n + 1) for n, job in enumerate(JOBS)}
ago = st.sampled_from([0, 1, 5, 15, 30]).map(lambda s: s * SECOND)
maybe_ago = st.none() | ago
maybe_long_ago = maybe_ago | st.just(2 * RETENTION)
"""The times of a person may be anything, and that of an end missing."""


@st.composite
def some_facts(draw: st.DrawFn, *, past: bool = False) -> list[dict[str, object]]:
    """Facts without their times, which the machine adds."""
    found: list[dict[str, object]] = []
    for _ in range(draw(st.integers(1, 5))):
        job = draw(st.sampled_from(JOBS))
        if not past and draw(st.booleans()):
            status = draw(st.sampled_from(["pending", "running", "running", "completed", "failed", None, "gone"]))
            found.append(
                {
                    "job": job,
                    "late": draw(st.integers(0, 2)),
                    "status": status,
                    "started_at": draw(maybe_ago),
                    "completed_at": draw(maybe_long_ago) if status in ("completed", "failed") else None,
                    "updated_at": draw(maybe_ago),
                    "external_job_id": draw(st.none() | st.sampled_from(NAMES)),
                    "context_id": draw(st.sampled_from([None, "c", "e0"])),
                    "parent_job_id": draw(st.none() | st.sampled_from(JOBS)),
                    "steps": draw(st.none() | st.sampled_from([0, 1, 2])),
                    "child": draw(st.none() | st.sampled_from(JOBS)),
                }
            )
        else:
            kind = draw(st.none() | st.sampled_from([*STATUS_OF]))
            by = draw(st.sampled_from(["job", "job", "step", "name"])) if kind is None or kind.of_step else "job"
            found.append(
                {
                    "kind": kind,
                    "at": draw(ago),
                    "job_id": job if by == "job" else None,
                    "step_id": draw(st.sampled_from(STEPS[job])) if by == "step" or (kind and kind.of_step) else None,
                    "external_ids": (draw(st.sampled_from(NAMES)),) if by == "name" or draw(st.booleans()) else (),
                    "parent_job_id": draw(st.sampled_from(["", *JOBS])),
                }
            )
    return found


class IndexMachine(RuleBasedStateMachine):
    """Rows, readings and time in any order. After each step both indexes publish the same, and so do the changes."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.event_id = BASE, 0
        self.naive = NaiveIndex()
        self.index = self._made()
        self.client: dict[str, PublishedJob] = {}
        self.resolved: dict[str, str | None] = {}
        self.departed: set[str] = set()
        """Jobs that left memory for lack of room. The documents of their parents do not change with that."""
        self.time_passes(0, restarts=False)

    def _made(self) -> Index:
        index = Index(retention=RETENTION / SECOND, max_jobs=MAX_JOBS, stalled_after=lambda: STALLED_AFTER / SECOND)
        index.loading = False
        return index

    # -- what happens

    @rule(made=some_facts())
    def facts_arrive(self, made: list[dict[str, object]]) -> None:
        facts = [self._fact(dict(one)) for one in made]
        self.naive.apply(facts, self.now)
        self._published(self.index.apply(facts, self.now))

    @rule(past=some_facts(past=True), made=st.just([]) | some_facts())
    def the_past_arrives(self, past: list[dict[str, object]], made: list[dict[str, object]]) -> None:
        """It is published after other facts have arrived, and causes no silence that could be compared."""
        entries = [e for one in past if isinstance(e := self._fact(dict(one), observed_at=0), Entry)]
        facts = [self._fact(dict(one)) for one in made]
        self.naive.apply(entries, self.now, past=True)
        self.naive.apply(facts, self.now)
        outcomes = [self.index.apply_past(entries, self.now), self.index.apply(facts, self.now)]
        self._published(*outcomes, self.index.show_past(100, self.now))

    @rule(
        name=st.sampled_from(NAMES),
        status=st.sampled_from(["pending", "creating_vm", "completed"]),
        began=ago,
        moved=ago,
        gone=st.sets(st.sampled_from(NAMES), max_size=1),
        apart=st.sets(st.sampled_from(NAMES)),
        owned=st.sets(st.sampled_from(NAMES), max_size=1),
        context=st.none() | st.just("c"),
    )
    def failover_jobs_are_read(
        self,
        name: str,
        status: str,
        began: Micros,
        moved: Micros,
        gone: set[str],
        apart: set[str],
        owned: set[str],
        context: str | None,
    ) -> None:
        at = self.now - moved
        ended = at if status == "completed" else None
        row = LegacyRecord(
            1, name, status, vm_context_id=context, created_at=self.now - began, updated_at=at, completed_at=ended
        )
        self.naive.apply_legacy([row], gone - {name}, self.now)
        self._published(self.index.apply_legacy([row], gone - {name}, self.now))
        self.naive.decide_legacy(owned - apart, sorted(apart), self.now)
        self._published(self.index.decide_legacy(owned - apart, sorted(apart), self.now))

    @rule(
        seconds=st.sampled_from([0, 1, 10, 25, 40, AWAY_FOR // SECOND]),
        restarts=st.sampled_from([False, False, False, True]),
    )
    def time_passes(self, seconds: int, *, restarts: bool) -> None:
        self.now += seconds * SECOND
        self.naive.expire(self.now)
        self._published(self.index.expire(self.now))
        if restarts:
            self._restart()

    def _restart(self) -> None:
        """With what a checkpoint has. Rows that wait for the job of their step are lost here; the source reads them."""
        jobs, legacy = stored(self.index)
        state = msgspec.msgpack.decode(msgspec.msgpack.encode(self.index.state()), type=IndexState)
        self.naive.restart()
        self.index = self._made()
        self.client.clear()
        outcomes = list(self.index.restore(jobs, legacy, state, self.now))
        assert [e for outcome in outcomes for e in outcome.events] == []
        self._published(*outcomes, restored=True)

    # -- what holds

    def _published(self, *outcomes: Outcome, restored: bool = False) -> None:
        seq = min((c.seq for o in outcomes for c in o.changes), default=self.index.published.seq + 1) - 1
        for change in (change for outcome in outcomes for change in outcome.changes):
            assert change.seq > seq, "the order of changes"
            seq = change.seq
            assert _content(change.old) == _content(self.client.get(change.job_id)), "a change from what was published"
            if change.goes_on:
                assert change.old is not None
                assert change.new is not None
                assert goes_on(change.old, change.new)
            if change.new is None:
                del self.client[change.job_id]
                if change.reason == "retention":
                    self.departed.add(change.job_id)
                continue
            assert change.moved or change.new.rev == change.seq
            self.client[change.job_id] = change.new
        assert seq == self.index.published.seq or not seq
        shown = {s.job_id: s for s in self.index.published.all()}
        assert {i: _content(s) for i, s in shown.items()} == {i: _content(s) for i, s in self.client.items()}
        self._agrees(shown)
        changed = {change.job_id for outcome in outcomes for change in outcome.changes}
        for name in (*JOBS, *NAMES, "c"):
            found = self.index.published.resolve(name)
            owner = found.job_id if found is not None else None
            assert owner == self.naive.resolve(name), f"what {name} resolves to"
            if not restored and owner != self.resolved.get(name):
                assert {owner, self.resolved.get(name)} - {None} <= changed, "a change of each job that an ID leads to"
            self.resolved[name] = owner

    def _agrees(self, shown: dict[str, PublishedJob]) -> None:
        naive = self.naive
        assert shown.keys() == naive.views.keys()
        for job_id, one in shown.items():
            assert one.view == naive.views[job_id]
            children = naive.children(job_id)
            assert [i for i in one.children if i in children or i not in self.departed] == children
            assert one.complete
            if job_id not in naive.silent and all(fact.observed_at for fact in naive.facts.get(job_id, ())):
                assert one.stalled == (job_id in naive.stalled), job_id
        unread = {i for i in naive.facts if naive.joined(i).reading is None}
        running = {i for i, v in naive.views.items() if v.source == "joblog" and not v.terminal}
        assert self.index.known.active() | unread == running | unread
        assert all(map(self.index.known.needs_reading, running))
        for job_id in naive.facts:
            stored = self.index.persisted(job_id)
            assert isinstance(stored, PersistedJob)
            assert stored.job == naive.joined(job_id)

    def _fact(self, made: dict[str, object], observed_at: int | None = None) -> Fact:
        clock = self.index.advance_clock() if observed_at is None else observed_at
        self.event_id += 1
        if "job" not in made:
            made["at"] = self.now - made.pop("at")  # type: ignore[operator]
            by = "attrs" if made["job_id"] is not None else "none"
            return Entry(self.event_id, level="INFO", message="text", observed_at=clock, by=by, **made)  # type: ignore[arg-type]
        job_id, steps, child = str(made.pop("job")), made.pop("steps"), made.pop("child")
        observed_at = 2 * clock - int(made.pop("late"))  # type: ignore[call-overload]
        if made["status"] == "gone":
            return Reading(job_id, observed_at)
        for name in ("started_at", "completed_at", "updated_at"):
            made[name] = None if made[name] is None else self.now - made[name]  # type: ignore[operator]
        found = None if steps is None else tuple(_steps(job_id, int(steps), self.now))  # type: ignore[call-overload]
        children = ((BASE, str(child)),) if child is not None else ()
        return Reading(job_id, observed_at, JobRecord(job_id, **made), found, children, len(children))  # type: ignore[arg-type]


def _steps(job_id: str, count: int, now: Micros) -> Iterator[StepRecord]:
    return (StepRecord(i, "s", i, "running", now) for i in STEPS[job_id][:count])


def _known_steps(job: Job, view: JobView) -> tuple[StepRecord, ...]:
    """Of the tables, or while these cannot be read, of the log: a row may name the steps of another job."""
    if job.reading is None or job.reading.steps is None or job.reading.steps_kept_from is not None:
        return view.steps
    return job.reading.steps


def _content(shown: PublishedJob | None) -> PublishedJob | None:
    """A document without what only sources read."""
    return None if shown is None else replace(shown, alive_at=0)


LONG = settings().max_examples > 1000


@pytest.mark.parametrize("part", range(20 if LONG else 1))
def test_whatever_the_order_the_index_publishes_what_all_facts_say(part):
    run_state_machine_as_test(IndexMachine, settings=settings(max_examples=500 if LONG else 60, stateful_step_count=25))
