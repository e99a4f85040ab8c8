"""The index of all jobs in memory: it computes how each fact changes what is published.

Problem: facts about a job arrive from the log and from the tables, in any order and repeatedly. Clients need one
consistent stream of changes, and must find a job by its UUID, an external ID, its context ID or a legacy ID.

Model: `apply` joins facts into a `Job` (`JobFacts`), computes its `JobView`, and compares that with the published one.
An `Outcome` returns the changes and events. Each part of the state has an owner: `PublishedJobs` what clients see and
the IDs by which they find it, `LegacyJobs` the rows of `failover_jobs`, `Attributor` the rows that cannot be attributed
or published yet, `Persistence` what a checkpoint contains.

Invariants:
* There is one writer. Each change takes the next `seq`, and a document changes only with its `rev`, which is the `seq`
  of the job's last change.
* A JobLog job is published once its tables were read, as JobLog writes them before it logs, and while they contain it.
* Jobs, pending rows, and all memory of removed jobs are bounded in number or bytes.
* No call does more work than its arguments require; `expire`, `restore` and `show_past` work in bounded steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from msgspec.structs import replace

from correlator.jobs import fold, job_view, joblog
from correlator.jobs.attribution import Attributor, StepRow
from correlator.jobs.bounded import chunks
from correlator.jobs.children import Children
from correlator.jobs.directory import names_differ
from correlator.jobs.forecasts import Forecasts
from correlator.jobs.horizon import Horizon
from correlator.jobs.job_facts import JobFacts
from correlator.jobs.known import KnownJobs
from correlator.jobs.legacy_jobs import LegacyJobs
from correlator.jobs.missing_rows import LostRows, Transitions
from correlator.jobs.model.changes import Reason
from correlator.jobs.model.facts import Entry, Fact, Job, Reading
from correlator.jobs.model.persisted import IndexState, PersistedJob, PersistedLegacy
from correlator.jobs.model.rows import LegacyRecord, Micros
from correlator.jobs.model.views import NO_TITLES, JobView, PublishedJob, Titles
from correlator.jobs.outcome import Outcome
from correlator.jobs.persistence import Persistence
from correlator.jobs.published import PublishedJobs
from correlator.jobs.removed_jobs import RemovedJobs
from correlator.jobs.timers import ended_at

RESTORED_AT_ONCE = 250
"""Jobs that one step of `Index.restore` adds."""


class Index:
    """All jobs in memory. Every change goes through its methods, which must be called from the event loop's thread.

    `retention` and `stalled_after` are in seconds. Every `now` is in microseconds since 1970. `horizon`: how far the
    source has read; None: whatever happens is known at once.
    """

    def __init__(
        self,
        *,
        id_keys: Sequence[str] = joblog.EXTERNAL_ID_KEYS,
        stalled_after: float = 600.0,
        retention: float = 86_400.0,
        max_jobs: int = 20_000,
        titles: Titles = NO_TITLES,
        horizon: Horizon | None = None,
    ) -> None:
        self.tracking = True
        """True if job_tracking can be read. Otherwise jobs are published as the log alone describes them."""
        self.loading = True
        """True until the tables have been read for the first time. Until then, facts cause no events."""
        self.id_keys = tuple(id_keys)
        self._max_jobs = max_jobs
        self.horizon = horizon if horizon is not None else Horizon()
        self._facts = JobFacts(lambda job_id: self.published.get(job_id) is not None)
        self._removed = RemovedJobs()
        self._children = Children()
        self._transitions = Transitions()
        self.forecasts = Forecasts(self.horizon)
        self.published = PublishedJobs(
            self._facts.jobs,
            self._children,
            self._transitions,
            self.forecasts,
            self._removed,
            self.horizon,
            stalled_after=stalled_after,
            retention=retention,
            titles=titles,
        )
        self.legacy = LegacyJobs(self._facts.jobs, self.published)
        self.persistence = Persistence(self._facts, self.legacy, self.published, self.forecasts)
        self._attributor = Attributor(self._facts.own_ids, self.published.owner, self._transitions)
        self.known = KnownJobs(self._facts, self.published, self.legacy, self._attributor, self._removed)
        self._lost_rows = LostRows()
        self._clock = 0

    def advance_clock(self) -> int:
        """Advance the logical clock. Call it just before a table query, or when log rows arrive."""
        self._clock += 1
        return self._clock

    def state(self) -> IndexState:
        """The state besides the jobs that a checkpoint must contain."""
        published = self.published
        return IndexState(
            self._clock,
            self._transitions.pending(),
            *self._removed.state(published.newest_time),
            published.newest_removed,
            published.silence.judged_to,
        )

    def restore(
        self, jobs: Sequence[PersistedJob], legacy: Sequence[PersistedLegacy], state: IndexState, now: Micros
    ) -> Iterator[Outcome]:
        """Restore the state of an earlier run into an empty index, `RESTORED_AT_ONCE` jobs per step. Causes no events.

        Each step yields its changes, and other tasks may run before the next. A reading that arrives in between is
        joined like any other fact.
        """
        loading, self.loading = self.loading, True
        self._clock = state.last_observed_at
        self._removed.restore(state.removed, min(now, state.announced_until))
        self.published.leave_out(state.newest_removed)
        self.horizon.restore(state.watched, now)
        self._transitions.restore((event for _, event in state.pending_events), self.horizon.log_watched_from(now))
        self.published.silence.judged_to = state.watched
        parents = dict[str, None]()
        for part in chunks(jobs, RESTORED_AT_ONCE):
            out = Outcome(past=True)
            for one in part:
                self._facts.restore(one.job)
            for one in part:
                self._settle(one.job.job_id, now, out, parents, restored=one)
            yield out
        for names in chunks(list(parents), RESTORED_AT_ONCE):
            out = Outcome(past=True)
            for parent in names:
                if (shown := self.published.get(parent)) is not None:
                    self.published.show(shown.view, shown.alive_at, now, out, updated_at=shown.updated_at)
            yield out
        for records in chunks(legacy, RESTORED_AT_ONCE):
            out = Outcome(past=True)
            self.legacy.restore(records, now, out)
            yield out
        self._removed.has_read(self.published.newest_time)
        self.loading = loading

    # -- writing

    def is_overtaken(self, reading: Reading) -> bool:
        """True if clients would see a job go back to an end that is over. See `fold.is_overtaken`."""
        job = self._facts.jobs.get(reading.job_id)
        return job is not None and fold.is_overtaken(job, reading)

    def apply(self, facts: Iterable[Fact], now: Micros) -> Outcome:
        """Apply `facts`. Returns one change per job, however many facts it has."""
        out, dropped = Outcome(past=self.loading), self._transitions.dropped
        touched: dict[str, Job | None] = {}
        """The touched jobs, with their state before the call."""
        rows: dict[str, list[Entry]] = {}
        """For each job, the rows that are not joined yet. They are joined together, which is cheaper."""
        wrote: set[str] = set()
        """The jobs that have written rows."""
        with_first_steps: set[str] = set()
        """The jobs whose steps could not be read before. What the steps did until now is no news."""
        for fact in facts:
            if isinstance(fact, Reading):
                touched.setdefault(fact.job_id, self._facts.jobs.get(fact.job_id))
                if entries := rows.pop(fact.job_id, None):
                    self._join_rows(fact.job_id, entries, out)
                before = self._facts.jobs.get(fact.job_id)
                job = self._facts.join_reading(fact)
                if _gets_its_first_steps(before, job):
                    with_first_steps.add(fact.job_id)
                past = out.past or fact.job_id in self.published.incomplete or fact.job_id in with_first_steps
                out.lost += self._lost_rows.compare(before, job, self.horizon, now, past=past)
                continue
            job_id = self._attributor.attribute(fact, now, out)
            if job_id is not None and not self._skips(fact, job_id):
                if fact.kind is not None and fact.kind.ends_job and not out.past:
                    out.ended.add(job_id)
                touched.setdefault(job_id, self._facts.jobs.get(job_id))
                rows.setdefault(job_id, []).append(fact)
                wrote.add(job_id)
        for job_id, entries in rows.items():
            self._join_rows(job_id, entries, out)
        parents: dict[str, None] = {}
        for job_id, before in touched.items():
            mine = Outcome(past=True) if job_id in with_first_steps else out
            self._settle(job_id, now, mine, parents, before, wrote=job_id in wrote)
            if mine is not out:
                out.add(mine)
        self.published.refresh(parents, now, out)
        if self.loading:
            self._removed.has_read(self.published.newest_time)
        self._attributor.hold_back(self._facts.pending, out)
        out.dropped += self._transitions.dropped - dropped
        return out

    def apply_past(self, entries: Iterable[Entry], now: Micros) -> Outcome:
        """Apply rows of the log's past. Causes no events; `show_past` publishes the changes.

        The tables were read after these rows were written, so `entries` have a lower `observed_at` than any reading.
        """
        out = Outcome(past=True)
        rows: dict[str, list[Entry]] = {}
        for entry in entries:
            job_id = self._attributor.attribute(entry, now, out)
            if job_id is not None and not self._skips(entry, job_id):
                rows.setdefault(job_id, []).append(entry)
        for job_id, some in rows.items():
            self._join_rows(job_id, some, out)
            self.published.mark_incomplete(job_id)
        out.attributed = []
        return out

    def show_past(self, limit: int, now: Micros) -> Outcome:
        """Publish the next `limit` jobs with rows of the past, one change each. Call it until `past_unread` is None."""
        out, parents = Outcome(past=True), dict[str, None]()
        if not self.published.incomplete:
            self.published.end_past()
        for job_id in list(islice(self.published.incomplete, limit)):
            self.published.mark_complete(job_id)
            self._settle(job_id, now, out, parents)
        self.published.refresh(parents, now, out)
        return out

    def apply_legacy(
        self, records: Iterable[LegacyRecord], gone: Iterable[str], now: Micros, *, past: bool = False
    ) -> Outcome:
        """Apply rows of `failover_jobs`, and the IDs of rows that were deleted. Those of the `past` cause no events.

        A row is published once `decide_legacy` has found that no JobLog job has its ID.
        """
        out = Outcome(past=self.loading or past)
        self.legacy.apply(records, gone, now, out)
        return out

    def decide_legacy(self, owned: Iterable[str], apart: Iterable[str], now: Micros) -> Outcome:
        """Apply a query about IDs of `failover_jobs`: JobLog jobs own the IDs `owned`, none owns those in `apart`."""
        out = Outcome()
        self.legacy.decide(owned, apart, now, out)
        return out

    def expire(self, now: Micros) -> Outcome:
        """Apply the passing of time: jobs stall, ended jobs leave memory, pending transitions become events."""
        out = Outcome(past=self.loading)
        self.published.check_stalled(now, out)
        expired = self.published.pop_expired(now, self._max_jobs)
        for job_id in expired:
            self._forget(job_id, "retention", now, out)
        out.attributed += self._attributor.expire(now)
        out.events += self._transitions.due(self.horizon.log_watched(now))
        return out

    def renew_forecasts(self, now: Micros, *, learn: bool) -> Outcome:
        """Learn some ended runs if `learn`, and renew some forecasts. Call it again while `forecasts.has_due`."""
        out = Outcome()
        self.published.renew_forecasts(now, out, learn=learn)
        return out

    def _skips(self, entry: Entry, job_id: str) -> bool:
        return job_id not in self._facts.jobs and self._removed.skips(entry, job_id)

    def _join_rows(self, job_id: str, entries: Sequence[Entry], out: Outcome) -> None:
        if self._facts.join_rows(job_id, entries).reading is None:
            out.unread.add(job_id)

    def _settle(
        self,
        job_id: str,
        now: Micros,
        out: Outcome,
        parents: dict[str, None],
        before: Job | None = None,
        restored: PersistedJob | None = None,
        *,
        wrote: bool = False,
    ) -> None:
        """Publish, update or remove a job according to its facts.

        `before`: the facts of its published view. `wrote`: new log rows are among its facts.
        """
        job = self._facts.jobs.get(job_id)
        if job is None or (job.reading is None and self.tracking):
            return
        old = self.published.get(job_id)
        if job.reading is not None and job.reading.record is None and self.tracking:
            if old is not None and old.view.parent_job_id:
                parents[old.view.parent_job_id] = None
            self._forget(job_id, "gone", now, out)
            if self._facts.own_ids.of(job_id) != job_id:  # It is the ID of a job in another case.
                out.add(self.apply([row.entry for row in self._attributor.pop_unloaded(job_id)], now))
            return
        if old is not None and before is not None:
            view = job_view.view_after(before, old.view, job, self.id_keys)
            alive_at = job_view.alive_after(before, old.alive_at, job)
        else:
            view, alive_at = job_view.view(job, self.id_keys), job_view.alive_at(job)
        if self.published.has_expired(view, now) or (old is None and not self.published.has_room(view)):
            self._forget(job_id, "retention", now, out, view)
            return
        self._facts.settled(job_id)
        if self.published.past_unread is not None and self.loading and old is None:
            self.published.mark_incomplete(job_id)
        if old is None and view.terminal and ended_at(view) <= self._removed.announced_until(job_id):
            self._lost_rows.forget(job_id)
        alive = wrote or (before is not None and job_view.shows_life(before, job))
        self._publish(old, view, alive_at, now, out, restored, alive=alive)
        self._removed.discard(job_id)
        for parent in self._children.place(job_id, view.parent_job_id, view.started_at or 0):
            parents[parent] = None
        if old is None or old.view.steps is not view.steps:
            self._apply_step_rows(self._attributor.add_steps(view.steps, job_id), job_id, now, out)

    def _apply_step_rows(self, rows: Sequence[StepRow], job_id: str, now: Micros, out: Outcome) -> None:
        """Apply the pending rows of steps whose job is now known."""
        if not rows:
            return
        entries = [(replace(e, job_id=job_id, by="step"), past) for _, e, past in rows]
        self.apply_past([e for e, past in entries if past], now)
        if self.published.past_unread is None and self.published.mark_complete(job_id):
            self._settle(job_id, now, out, {})  # The past is published, so nothing else would publish these rows.
        out.add(self.apply([e for e, past in entries if not past], now))

    def _publish(
        self,
        old: PublishedJob | None,
        view: JobView,
        alive_at: Micros,
        now: Micros,
        out: Outcome,
        restored: PersistedJob | None,
        *,
        alive: bool,
    ) -> None:
        """Publish the view of a JobLog job. Clients get the removal of a legacy job before the job that has its ID."""
        if old is None or old.view.external_ids != view.external_ids:
            self.legacy.withdraw(view.external_ids, out)
        changed = self.published.show(view, alive_at, now, out, restored=restored, alive=alive)
        if changed and (old is None or names_differ(old.view, view)):
            self._rename(view.job_id, old.view if old is not None else None, view, now, out)

    def _rename(self, job_id: str, old: JobView | None, new: JobView | None, now: Micros, out: Outcome) -> None:
        """Update the IDs of a job. Jobs that an ID starts or stops resolving to get a change, and legacy jobs merge."""
        external_ids, owners = self.published.move_names(job_id, old, new)
        if old is not None and new is not None and new.external_ids_cut is not None:
            for name in set(old.external_ids).difference(new.external_ids):
                self.legacy.retire(name)  # The job still owns it, though it is not known any more.
        self.legacy.settle(external_ids, now, out)
        self.published.add_moved(owners - {job_id}, out)

    def _forget(self, job_id: str, reason: Reason, now: Micros, out: Outcome, view: JobView | None = None) -> None:
        """Remove a job from memory. `view`: what is known of it, if that is not what is published."""
        old = self.published.get(job_id)
        view = old.view if old is not None and view is None else view
        self._facts.forget(job_id)
        if old is None or old.view.source == "joblog":
            self._removed.add(job_id, view, old.alive_at if old is not None else 0, now)
        if reason == "retention" and view is not None:
            self._removed.had_no_room(view)
            self.published.leave_out(view.started_at or 0)
        self._lost_rows.forget(job_id)
        if reason == "gone" and (old is None or old.view.source == "legacy"):
            self.legacy.settle((job_id,), now, out)  # No JobLog job has the ID, but a row of `failover_jobs` may.
            return
        if old is None:
            return
        self._attributor.forget_job(job_id)
        self._children.place(job_id, None, 0)
        self._children.forget(job_id)
        if reason == "retention":
            for name in old.view.external_ids:
                self.legacy.retire(name)
        self.published.hide(job_id, reason, out)
        self._rename(job_id, old.view, None, now, out)
        self.legacy.retire(job_id)


def _gets_its_first_steps(before: Job | None, job: Job) -> bool:
    """True if the change is that the steps of a job, which could not be read before, have been read."""
    if before is None or before.reading is None or job.reading is None:
        return False
    return (
        before.reading.steps is None and job.reading.steps is not None and before.reading.record == job.reading.record
    )
