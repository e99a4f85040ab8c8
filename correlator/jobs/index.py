"""The index of all jobs in memory: it computes how each fact changes what is published.

Problem: facts about a job arrive from the log and from the tables, in any order and repeatedly. Clients need one
consistent stream of changes, and must find a job by its UUID, an external ID, its context ID or a legacy ID.

Model: a `Record` has what is known of one JobLog job, a `LegacyRow` one row of `failover_jobs`. Every call opens a
`_Turn`: it joins facts into records, or finds jobs for which time alone matters, and names the jobs to settle. Then
`_settle` takes one after the other until none is left: it derives the view, compares it with the published one, and
publishes or removes the job. What follows for other jobs (a parent, a legacy row whose ID changed hands) is one more
job to settle. There is no other way for a job to be published, changed by facts, or removed.

Invariants:
* There is one writer. Each change takes the next `seq`, and a document changes only with its `rev`, which is the `seq`
  of the job's last change.
* What is published of a job is a function of its record, of the published jobs that name it as their parent, and of
  the time.
* A JobLog job is published once its tables were read, as JobLog writes them before it logs, and while they contain it.
  A legacy row is published while no JobLog job has its ID, once a table query has found that (`LegacyRecord.apart`).
* `Record.viewed` are the facts from which the published view was derived: unchanged facts are not derived again.
* Jobs, pending rows, and all memory of removed jobs are bounded in number or bytes.
* No call does more work than its arguments require; `expire`, `restore` and `show_past` work in bounded steps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeAlias

from msgspec.structs import replace

from correlator.bounded import PendingRows, Schedule, chunks
from correlator.failures.patterns import NO_MASKS, Masks
from correlator.jobs import fold, joblog
from correlator.jobs.away import AWAY_FOR, MAX_BYTES, AwayJob, AwayJobs
from correlator.jobs.directory import Children, OwnIds, PublishedJobs, names_differ
from correlator.jobs.explained import ExplainedEvents
from correlator.jobs.failures import Failures
from correlator.jobs.fold import ended_at
from correlator.jobs.forecasts import MAX_UNLEARNED, Forecasts
from correlator.jobs.horizon import FOR_EVER, Horizon
from correlator.jobs.known import KnownJobs, RemovedJobs
from correlator.jobs.missing_rows import Transitions, compare, transitions
from correlator.jobs.record import LegacyRow, Record
from correlator.jobs.stalled import Silence
from correlator.model.document import Failure, FailureState
from correlator.model.facts import ENDED, AttributedRow, Attribution, Entry, Fact, Job, Kind, Reading, Status
from correlator.model.persisted import IndexState, PersistedJob, PersistedLegacy
from correlator.model.published import NO_TITLES, Change, Event, JobView, Lost, Outcome, PublishedJob, Reason, Titles
from correlator.model.rows import LegacyRecord, Micros, StepRecord

RESTORED_AT_ONCE = 250
"""Jobs that one step of `Index.restore` adds."""

MAX_DUE = 500
"""Jobs that become stalled, and jobs that are removed, in one call of `Index.expire`. The others follow in the next."""

LEARNED_AT_ONCE, RENEWED_AT_ONCE = 10, 100
"""Ended runs that one call of `renew_forecasts` learns, and forecasts that it checks: some milliseconds each."""

DECIDED_AT_ONCE = 100
"""Failures of which one call of `decide_failures` publishes whether they are new."""

MAX_STEP_ROWS = 1_000
MAX_STEP_ROWS_BYTES = 4 << 20
"""The bounds of pending rows of steps whose job is unknown, in rows and bytes."""

WAIT_FOR = 30_000_000
"""Microseconds that a row of an unknown step stays pending. The tables have been queried for the step long before."""

_StepRow: TypeAlias = tuple[Micros, Entry, bool]
"""The arrival time of a row, the row, and True if it belongs to the log's past."""


class _Turn:
    """One call of the index: the jobs to settle, why, and the outcome so far.

    `named`: the jobs, in the order in which they were named. `doubts`: rows of a transition wait for their event until
    it is certain which job they name. `past`: their changes cause no events; `silent`: those of these jobs do not
    either. `wrote`: jobs with new log rows. `evicted`: jobs that leave memory for lack of room. `returned`: jobs that
    were gone and are back, until they are settled. `parents`: set while a checkpoint is restored, for parents that are
    settled once all jobs are there; `restored`: what it has of jobs that were not settled yet.
    """

    def __init__(
        self,
        now: Micros,
        *,
        past: bool,
        parents: dict[str, None] | None = None,
        restored: dict[str, PersistedJob] | None = None,
    ) -> None:
        self.now, self.past = now, past
        self.parents, self.restored = parents, restored
        self.named: dict[str, None] = {}
        self.doubts = False
        self.wrote: set[str] = set()
        self.silent: set[str] = set()
        self.evicted: frozenset[str] = frozenset()
        self.returned: dict[str, AwayJob] = {}
        self.changes: list[Change] = []
        self.events: list[Event] = []
        self.attributed: list[AttributedRow] = []
        self.unread: set[str] = set()
        self.unread_steps: set[int] = set()
        self.ended: set[str] = set()
        self.lost: list[Lost] = []
        self.dropped = 0
        self.log_from: Micros | None = None

    def outcome(self) -> Outcome:
        return Outcome(
            self.changes,
            self.events,
            self.attributed,
            self.unread,
            self.unread_steps,
            self.ended,
            self.lost,
            self.dropped,
            self.log_from,
        )


class Index:
    """All jobs in memory. Every change goes through its methods, which must be called from the event loop's thread.

    `retention` is in seconds, and so is what `stalled_after` returns. Every `now` is in microseconds since 1970.
    `horizon`: how far the source has read; None: whatever happens is known at once. `max_away`: bytes of the jobs that
    are gone. `max_unlearned`: ended jobs that may wait to be learned. `masks`: names that tell no failures apart.
    """

    def __init__(
        self,
        *,
        id_keys: Sequence[str] = joblog.EXTERNAL_ID_KEYS,
        stalled_after: Callable[[], float] = lambda: 600.0,
        retention: float = 86_400.0,
        max_jobs: int = 20_000,
        titles: Titles = NO_TITLES,
        horizon: Horizon | None = None,
        max_away: int = MAX_BYTES,
        max_unlearned: int = MAX_UNLEARNED,
        masks: Masks = NO_MASKS,
    ) -> None:
        self.tracking = True
        """True if job_tracking can be read. Otherwise jobs are published as the log alone describes them."""
        self.loading = True
        """True until the tables have been read for the first time. Until then, facts cause no events."""
        self.id_keys = tuple(id_keys)
        self._max_jobs = max_jobs
        self._clock = 0
        self.horizon = horizon if horizon is not None else Horizon()
        records: dict[str, Record] = {}
        self._records = records
        self._own_ids = OwnIds(records)
        self.published = PublishedJobs(records, retention=retention, titles=titles)
        self.silence = Silence(self.horizon, stalled_after)
        self.forecasts = Forecasts(self.horizon, records, max_unlearned)
        self.failures = Failures(masks)
        self._explained = ExplainedEvents(self.published, self._may_say_why)
        self._removed = RemovedJobs()
        self._away = AwayJobs(max_away)
        self.known = KnownJobs(records, self.published, self._removed, self._away, self.silence)
        self._unsaved: dict[str, None] = {}
        """The jobs whose persisted state has changed."""
        self._transitions = Transitions()
        self._children = Children()
        self._incomplete: dict[str, None] = {}
        """Jobs for which rows of the log's past may still be unread."""
        self._expiry = Schedule[str]()
        """Ended jobs in memory, by the time of their end."""
        self._job_of_step: dict[int, str] = {}
        self._step_rows: PendingRows[int, _StepRow] = PendingRows(
            MAX_STEP_ROWS, MAX_STEP_ROWS_BYTES, lambda row: joblog.size(row[1])
        )
        """Rows that name only a step, whose job is unknown."""
        self._newest_time: Micros = 0
        """The newest time of a job that was published, in microseconds. The present, if that is earlier."""

    # -- calls

    def advance_clock(self) -> int:
        """Advance the logical clock. Call it just before a table query, or when log rows arrive."""
        self._clock += 1
        return self._clock

    def is_overtaken(self, reading: Reading) -> bool:
        """True if clients would see a job go back to an end that is over. See `fold.is_overtaken`."""
        record = self._records.get(reading.job_id)
        return record is not None and fold.is_overtaken(record.facts, reading)

    def apply(self, facts: Iterable[Fact], now: Micros) -> Outcome:
        """Apply `facts`. The changes of a job are one, however many facts it has; another follows those of a child."""
        turn = _Turn(now, past=self.loading)
        rows: defaultdict[str, list[Entry]] = defaultdict(list)
        """For each job, the rows that are not joined yet. They are joined together, which is cheaper."""
        for fact in facts:
            if isinstance(fact, Reading):
                self._join_reading(fact, turn)
            elif (job_id := self._attribute(fact, turn, past=turn.past)) is not None:
                rows[job_id].append(fact)
        for job_id, entries in rows.items():
            self._join_rows(job_id, entries, turn)
            turn.named[job_id] = None
            turn.wrote.add(job_id)
        self._settle(turn)
        if self.loading:
            self._removed.has_read(self._newest_time)
        self._hold_back(turn)
        return self._outcome(turn)

    def apply_again(self, entries: Iterable[Entry], now: Micros) -> Outcome:
        """Apply rows that have been read before, to jobs that may have been away then. Causes no events.

        The tables may have been read after these rows were written, so `entries` have a lower `observed_at` than any
        reading.
        """
        turn = _Turn(now, past=True)
        known = [e for e in entries if (job_id := self._job_of(e)[0]) in self._records or job_id in self._away]
        turn.named.update(dict.fromkeys(self._join_silently(known, turn)))
        self._settle(turn)
        turn.attributed.clear()
        return self._outcome(turn)

    def apply_past(self, entries: Iterable[Entry], now: Micros) -> Outcome:
        """Apply rows of the log's past. Causes no events; `show_past` publishes the changes.

        The tables were read after these rows were written, so `entries` have a lower `observed_at` than any reading.
        """
        turn = _Turn(now, past=True)
        self._incomplete.update(dict.fromkeys(self._join_silently(entries, turn)))
        turn.attributed.clear()
        return self._outcome(turn)

    def _join_silently(self, entries: Iterable[Entry], turn: _Turn) -> Iterable[str]:
        """Join rows that cause no events. Returns their jobs."""
        rows = defaultdict[str, list[Entry]](list)
        for entry in entries:
            if (job_id := self._attribute(entry, turn, past=True)) is not None:
                rows[job_id].append(entry)
        for job_id, some in rows.items():
            self._join_rows(job_id, some, turn)
        return rows

    def show_past(self, limit: int, now: Micros) -> Outcome:
        """Publish the next `limit` jobs with rows of the past, one change each. Call it until `past_unread` is None."""
        turn = _Turn(now, past=True)
        if not self._incomplete:
            self.published.past_unread = None
        for job_id in list(islice(self._incomplete, limit)):
            del self._incomplete[job_id]
            turn.named[job_id] = None
        self._settle(turn)
        return self._outcome(turn)

    def apply_legacy(
        self, records: Iterable[LegacyRecord], gone: Iterable[str], now: Micros, *, past: bool = False
    ) -> Outcome:
        """Apply rows of `failover_jobs`, and the IDs of rows that were deleted. Those of the `past` cause no events.

        A row is published once `decide_legacy` has found that no JobLog job has its ID.
        """
        turn = _Turn(now, past=self.loading or past)
        for row in records:
            if not self.known.is_set_aside(row):
                self._put_row(row, turn)
        for job_id in gone:
            if self._drop_row(job_id) is not None:
                self._withdraw_legacy(job_id, "gone", turn)
        self._settle(turn)
        return self._outcome(turn)

    def decide_legacy(self, owned: Iterable[str], apart: Iterable[str], now: Micros) -> Outcome:
        """Apply a query about IDs of `failover_jobs`: JobLog jobs own the IDs `owned`, none owns those in `apart`."""
        turn = _Turn(now, past=False)
        for job_id in owned:
            self._retire(job_id, "merged", turn)
        for job_id in apart:
            if (row := self.known.legacy(job_id)) is not None:
                self._put_row(replace(row, apart=True), turn)
        self._settle(turn)
        return self._outcome(turn)

    def expire(self, now: Micros) -> Outcome:
        """Apply the passing of time: jobs stall, ended jobs leave memory, pending transitions become events."""
        turn = _Turn(now, past=self.loading)
        turn.named.update(dict.fromkeys(self.silence.judge(now, MAX_DUE)))
        expired = list(self._expiry.pop_until(now - self.published.retention, MAX_DUE))
        too_many = min(MAX_DUE, len(self.published) - len(expired) - self._max_jobs)
        expired += self._expiry.pop_until(FOR_EVER, too_many)
        turn.evicted = frozenset(expired)
        turn.named.update(dict.fromkeys(expired))
        self._settle(turn)
        for step_id in [i for i in self._step_rows if self._step_rows.first(i)[0] < now - WAIT_FOR]:
            for row in self._step_rows.pop(step_id):
                if row[0] < now - WAIT_FOR:
                    turn.attributed += _unattributed([row])
                else:
                    self._step_rows.add(step_id, row)
        turn.events += self._transitions.due(self.horizon.log_watched(now))
        for away in self._away.expired(now):
            self._forget_away(away, turn)
        return self._outcome(turn)

    def renew_forecasts(self, now: Micros, *, learn: bool) -> Outcome:
        """Learn some ended runs if `learn`, and renew some forecasts. Call it again while `forecasts.has_due`."""
        turn = _Turn(now, past=False)
        for job_id in self.forecasts.ended(now, LEARNED_AT_ONCE) if learn else ():
            if (ended := self.published.get(job_id)) is not None:
                self.forecasts.learn(ended.view)
                self._unsaved[job_id] = None
        for job_id in self.forecasts.due(now, RENEWED_AT_ONCE):
            if (shown := self.published.get(job_id)) is None:
                continue
            if (forecast := self.forecasts.renewed(shown, now)) is not None:
                old, shown = shown, replace(shown, rev=self.published.next_seq(), updated_at=now, forecast=forecast)
                self._put(shown, old, turn)
                self._unsaved[job_id] = None
            self._announce(shown, turn)
        return self._outcome(turn)

    def decide_failures(self, now: Micros) -> Outcome:
        """Publish of some failures whether they are new. Call it again while `failures.has_undecided`."""
        turn = _Turn(now, past=False)
        for job_id, failure in self.failures.decide(DECIDED_AT_ONCE):
            if (old := self.published.get(job_id)) is not None and old.failure is not None:
                self._put(replace(old, rev=self.published.next_seq(), updated_at=now, failure=failure), old, turn)
                self._unsaved[job_id] = None
        return self._outcome(turn)

    def _outcome(self, turn: _Turn) -> Outcome:
        if turn.events or self._explained:
            turn.events = self._explained.pass_on(turn.events, turn.changes, turn.now)
        return turn.outcome()

    def _may_say_why(self, job_id: str) -> bool:
        """True if the log has said that a job failed, and the tables, which are written first, were not read since."""
        shown, record = self.published.get(job_id), self._records.get(job_id)
        if not self.tracking or record is None or (shown is not None and shown.failure is not None):
            return False
        reading = record.facts.reading
        return reading is None or (reading.record is not None and reading.record.status not in ENDED)

    # -- the checkpoint

    def changed_ids(self) -> list[str]:
        """The IDs of jobs whose persisted state changed since the last call."""
        changed, self._unsaved = self._unsaved, {}
        return list(changed)

    def mark_all_changed(self) -> None:
        """Return all jobs with the next `changed_ids`: it is the first write of a store."""
        self._unsaved.update(dict.fromkeys(self.all_ids()))

    def all_ids(self) -> list[str]:
        """The IDs of all jobs that have persisted state."""
        ids = dict.fromkeys([*self._records, *self._away])
        return [*ids, *(i for i in self.known.rows if i not in ids)]

    def persisted(self, job_id: str) -> PersistedJob | PersistedLegacy | None:
        """The state of a job that a checkpoint must contain. None if the job left memory."""
        if (record := self._records.get(job_id)) is not None:
            return self._persisted(record, self.published.get(job_id))
        shown = self.published.get(job_id)
        if shown is None and (away := self._away.get(job_id)) is not None:
            return away.stored
        if (row := self.known.legacy(job_id)) is None:
            return None
        silence = self.silence.persisted(job_id)
        return PersistedLegacy.of(row, silence, shown.end_seen_at if shown is not None else 0, _state_of(shown))

    def _persisted(self, record: Record, shown: PublishedJob | None) -> PersistedJob:
        if shown is None:
            return PersistedJob(record.facts, 0)
        forecast, silence = self.forecasts.persisted(record, shown.forecast), self.silence.persisted(record.job_id)
        facts, ended = record.facts, shown.end_seen_at
        return PersistedJob(facts, shown.updated_at, forecast, silence, ended, failure=_state_of(shown))

    def state(self) -> IndexState:
        """The state besides the jobs that a checkpoint must contain."""
        return IndexState(
            self._clock,
            (*self._transitions.pending(), *self._explained.pending()),
            *self._removed.state(self._newest_time),
            self.published.newest_removed,
            self.silence.judged_to,
        )

    def restore(
        self,
        jobs: Sequence[PersistedJob],
        legacy: Sequence[PersistedLegacy],
        state: IndexState,
        now: Micros,
        *,
        at_once: int = RESTORED_AT_ONCE,
    ) -> Iterator[Outcome]:
        """Restore the state of an earlier run into an empty index, `at_once` jobs per step. Causes no events.

        Each step yields its changes, and other tasks may run before the next. A reading that arrives in between is
        joined like any other fact.
        """
        loading, self.loading = self.loading, True
        self._clock = state.last_observed_at
        self._removed.restore(state.removed, min(now, state.announced_until))
        self.published.leave_out(state.newest_removed, now)
        self.horizon.restore(state.watched, now)
        self._transitions.restore((event for _, event in state.pending_events), self.horizon.log_watched_from(now))
        self.silence.judged_to = state.watched
        parents: dict[str, None] = {}
        for one in jobs:
            if one.away_at > now - AWAY_FOR:
                self._restore_away(one, now)
        for part in chunks([one for one in jobs if not one.away_at], at_once):
            restored = [self._restore(one, now) for one in part]
            yield self._publish_restored(parents, now, {one.job.job_id: one for one in restored})
        for names in chunks(list(parents), at_once):
            yield self._publish_restored({}, now, {}, names)
        for rows in chunks(legacy, at_once):
            self.known.rows.update((stored.job_id, LegacyRow(stored.row)) for stored in rows)
            jobs_of = (
                PersistedJob(
                    Job(r.job_id), r.updated_at or now, silence=r.silence, end_seen_at=r.end_seen_at, failure=r.failure
                )
                for r in rows
            )
            yield self._publish_restored({}, now, {one.job.job_id: one for one in jobs_of})
        self._removed.has_read(self._newest_time)
        self.loading = loading

    def _restore(self, stored: PersistedJob, now: Micros) -> PersistedJob:
        """Add a job of a checkpoint. A reading of it that has arrived since the start is joined, and is news."""
        record = self._record(stored.job.job_id)
        reading, record.facts = record.facts.reading, fold.restored(stored.job)
        if reading is None:
            return stored
        was = fold.view(record.facts, self.id_keys)
        record.read(reading)
        if not stored.updated_at or reading.record is None:
            return stored
        view = fold.view(record.facts, self.id_keys)
        self._transitions.changed(was, view, record.facts, self.horizon.log_watched_from(now), -1)
        return replace(stored, end_seen_at=now) if view.terminal and not was.terminal else stored

    def _restore_away(self, stored: PersistedJob, now: Micros) -> None:
        """Add a job of a checkpoint that was gone. A reading that has arrived since the start finds that it is back."""
        record, stored = Record(stored.job.job_id), replace(stored, job=fold.restored(stored.job))
        shown = None
        if stored.updated_at:
            view = fold.view(stored.job, self.id_keys)  # Rows that came later may say that it ended.
            shown = PublishedJob(
                replace(view, status=Status.RUNNING, ended_at=None) if stored.ran and view.terminal else view,
                rev=0,
                updated_at=stored.updated_at,
                stalled=stored.silence is not None and stored.silence.stalled,
                alive_at=fold.alive_at(stored.job),
                forecast=stored.forecast.published if stored.forecast is not None else None,
                end_seen_at=stored.end_seen_at,
                failure=self.failures.of(view, fold.alive_at(stored.job), stored.job.reading, None, stored.failure),
            )
            self.failures.forget(record.job_id)
            record.steps = tuple(step.id for step in _steps_of(stored.job, view))
            self._removed.add(record.job_id, view, shown.alive_at, now, gone=True)
        if record.job_id not in self._records:
            self._keep_away(AwayJob(stored, shown, record))

    def _publish_restored(
        self, parents: dict[str, None], now: Micros, restored: dict[str, PersistedJob], names: Iterable[str] = ()
    ) -> Outcome:
        """Publish jobs as they were stored, or jobs whose children have been restored (`names`)."""
        turn = _Turn(now, past=True, parents=parents, restored=restored)
        turn.named.update(dict.fromkeys([*restored, *names]))
        self._settle(turn)
        return self._outcome(turn)

    # -- facts become part of what is known

    def _attribute(self, entry: Entry, turn: _Turn, *, past: bool) -> str | None:
        """Attribute a row to its job. It is added to the outcome, and its event.

        Returns the job that it is joined into: none if that is unknown, or was removed, unless the row starts it again.
        """
        job_id, by = self._job_of(entry)
        if by == "step" and job_id is None and entry.step_id is not None:
            turn.unread_steps.add(entry.step_id)
            turn.attributed += _unattributed(self._step_rows.add(entry.step_id, (turn.now, entry, past)))
            return None
        turn.attributed.append(AttributedRow(entry, job_id, by))
        if job_id is None:
            return None
        kind = entry.kind
        if kind is not None:
            self._transitions.row_arrived(job_id, entry.step_id, kind)
            if _is_in_doubt(entry):
                turn.doubts = True
            elif not past:
                turn.events.append(_event(kind, entry, job_id))
        if job_id in self._away:
            if kind is Kind.JOB_STARTED:
                turn.unread.add(job_id)
            return job_id
        if job_id not in self._records:
            if self._removed.skips(entry, job_id):
                return None
            self._record(job_id)  # It may have been removed: a row that starts it again is followed by its others.
        if kind is not None and kind.ends_job and not past:
            turn.ended.add(job_id)
        return job_id

    def _job_of(self, entry: Entry) -> tuple[str | None, Attribution]:
        """The job of a row by its job ID, else by its step, else by an external ID; None for an unknown one."""
        job_id = entry.job_id
        if job_id is not None:
            return (job_id if job_id in self._records else self._own_ids.of(job_id)), entry.by
        if entry.step_id is not None:
            return self._job_of_step.get(entry.step_id), "step"
        if entry.external_ids:
            name = entry.external_ids[0]
            if (job_id := self.published.owner(name) or self._away.owner(name)) is not None:
                return job_id, "external_id"
            return None, "none"
        return None, entry.by

    def _record(self, job_id: str) -> Record:
        """The record of a job. An unknown job gets one, and waits to be read from the tables."""
        record = self._records.get(job_id)
        if record is None:
            if self.published.get(job_id) is None and (evicted := self.known.unread.put(job_id, None)) is not None:
                self._drop_record(evicted[0])
            record = self._records[job_id] = Record(job_id)
            self._own_ids.add(job_id)
        return record

    def _drop_record(self, job_id: str) -> None:
        self._records.pop(job_id, None)
        self._own_ids.discard(job_id)
        self._unsaved[job_id] = None

    def _join_rows(self, job_id: str, entries: Sequence[Entry], turn: _Turn) -> None:
        self._unsaved[job_id] = None
        if (away := self._away.get(job_id)) is not None:
            self._away.join(away, entries)
            return
        record = self._record(job_id)
        record.facts = facts = fold.fold_rows(record.facts, entries)
        if facts.reading is None:
            turn.unread.add(job_id)

    def _join_reading(self, reading: Reading, turn: _Turn) -> None:
        job_id = reading.job_id
        if job_id in self._away:
            if reading.record is None:
                return
            self._come_back(job_id, turn)
        record = self._record(job_id)
        before = record.facts
        if record.read(reading):
            self._unsaved[job_id] = None
        if _gets_its_first_steps(before, record.facts):
            turn.silent.add(job_id)  # What the steps did until now is no news.
        past = turn.past or job_id in self._incomplete or job_id in turn.silent
        record.observed, lost = compare(record.observed, before, record.facts, self.horizon, turn.now, past=past)
        turn.lost += lost
        turn.named[job_id] = None

    def _join_step_rows(self, record: Record, view: JobView, turn: _Turn) -> None:
        """Note the steps of a job, and join the rows that waited for one of them.

        Of the steps that a row names, the tables decide whose they are: it may name those of another job.
        """
        of, read = self._job_of_step, _steps_were_read(record.facts)
        new = [
            step.id
            for step in _steps_of(record.facts, view)
            if (owner := of.get(step.id)) is None or owner in self._away or (read and owner != record.job_id)
        ]
        if not new:
            return
        of.update(dict.fromkeys(new, record.job_id))
        record.steps += tuple(new)
        entries = []
        for step_id in new if self._step_rows else ():
            for _, row, past in self._step_rows.pop(step_id):
                entry = replace(row, job_id=record.job_id, by="step")
                entries.append(entry)
                if not past:  # It causes its event also if a row of the past, which does not, has named the step.
                    self._attribute(entry, turn, past=self.loading)
                    turn.wrote.add(record.job_id)
                elif entry.kind is not None:
                    self._transitions.row_arrived(record.job_id, entry.step_id, entry.kind)
                if past and self.published.past_unread is not None:
                    self._incomplete[record.job_id] = None
        if entries:
            self._join_rows(record.job_id, entries, turn)

    def _move_rows(self, entries: Sequence[Entry], job_id: str, turn: _Turn) -> None:
        """Join rows into the job that they turned out to name. Those that are not in doubt have caused their events."""
        for entry in entries:
            self._attribute(entry, turn, past=True)
        if entries:
            self._join_rows(job_id, entries, turn)
            turn.named[job_id] = None
            turn.wrote.add(job_id)

    def _hold_back(self, turn: _Turn) -> None:
        """Hold back rows of jobs that are not published yet, until their first subscribers exist.

        Then they cause those events that had to wait, as only the tables have the ID of the job.
        """
        unread, away, pending = self.known.unread, self._away, self.known.pending_rows
        if turn.past or not (unread or away or pending.count or turn.doubts):
            return
        released: list[AttributedRow] = []
        for job_id in [i for i in pending if i not in unread and i not in away]:
            released += pending.pop(job_id)
        for row in turn.attributed:
            if row.job_id is not None and (row.job_id in unread or row.job_id in away):
                released += pending.add(row.job_id, row)
            else:
                released.append(row)
        turn.attributed = released
        for row in released:
            if row.job_id is not None and row.entry.kind is not None and _is_in_doubt(row.entry):
                turn.events.append(_event(row.entry.kind, row.entry, row.job_id))

    def _put_row(self, row: LegacyRecord, turn: _Turn) -> None:
        """Set a row of `failover_jobs`. A new one for which memory has no room is set aside."""
        job_id, known = row.job_id, self.known.rows.get(row.job_id)
        if known is None:
            view = fold.legacy_view(row)
            no_room = view.terminal and self.published.has_expired(ended_at(view, 0), turn.now)
            if no_room or not self._removed.is_news(view, 0):
                self.known.set_aside(row, self._newest_time)
                self.published.leave_out(view.started_at or 0, turn.now)
                return
            self.known.rows[job_id] = LegacyRow(row)
            self._unsaved[job_id] = None
        elif known.row != (row := replace(row, apart=row.apart or known.row.apart)):
            known.row = row
            self._unsaved[job_id] = None
        self.published.await_no_longer(job_id)
        turn.named[job_id] = None

    def _drop_row(self, job_id: str) -> LegacyRecord | None:
        """Forget a row of `failover_jobs`. Returns it; None if it is not in memory."""
        if (known := self.known.rows.pop(job_id, None)) is None:
            return None
        self._unsaved[job_id] = None
        self.published.await_no_longer(job_id)
        return known.row

    # -- what is known becomes what is published

    def _settle(self, turn: _Turn) -> None:
        """Publish, update or remove each named job, and those that this names, until none is left."""
        while turn.named:
            named, turn.named = turn.named, {}
            for job_id in named:
                old = self.published.get(job_id)
                if job_id in turn.evicted and old is not None:
                    self._evict(old, turn)
                elif (record := self._records.get(job_id)) is not None:
                    self._settle_job(record, old, turn)
                elif (known := self.known.rows.get(job_id)) is not None:
                    self._settle_row(known, old, turn)

    def _settle_job(self, record: Record, old: PublishedJob | None, turn: _Turn) -> None:
        """Publish, update or remove a JobLog job."""
        if old is not None and self._grow(record, old, turn):
            return
        reading = record.facts.reading
        if self.tracking and reading is None:
            if old is not None:
                turn.wrote.discard(record.job_id)  # What is published is not of these rows, such as a legacy job.
                self._show(old.view, old.alive_at, old, record, turn)
            return
        if self.tracking and reading is not None and reading.record is None:
            self._leave(record, old, turn)
            return
        view, alive_at = self._view(record, old)
        was_in_memory = (
            old is not None
            or record.job_id in turn.returned
            or (turn.restored is not None and record.job_id in turn.restored)
        )
        is_news = was_in_memory or self._removed.is_news(view, alive_at)
        if not is_news or self._has_expired(view, alive_at, old, turn):
            self._remove(record, old, "retention", view, turn)
            return
        before = record.facts
        if old is None or old.view.steps is not view.steps:
            self._join_step_rows(record, view, turn)
        if record.facts is not before:
            view, alive_at = self._view(record, old)
        self._publish(record, view, alive_at, old, turn)

    def _grow(self, record: Record, old: PublishedJob, turn: _Turn) -> bool:
        """Publish new log rows of a job that goes on running, as in most changes. False if more may have changed.

        The result is that of `_show`, but what is the same as before is not derived, compared and scheduled again.
        """
        job_id, facts, viewed, now = record.job_id, record.facts, record.viewed, turn.now
        if (
            viewed is None
            or old.view.status is not Status.RUNNING
            or old.stalled
            or record.family is None
            or job_id not in turn.wrote
            or job_id in self._incomplete
            or (view := fold.grown(viewed, old.view, facts)) is None
            or view is old.view
        ):
            return False
        alive_at = fold.alive_after(viewed, old.alive_at, facts)
        if not self.forecasts.stays(old, alive_at, now) or not self.silence.goes_on(job_id, now):
            return False
        turn.wrote.discard(job_id)
        new = replace(old, view=view, rev=self.published.next_seq(), updated_at=now, alive_at=alive_at)
        record.viewed = facts
        self._put(new, old, turn, goes_on=True)
        self._newest_time = max(self._newest_time, min(now, alive_at))
        if new.forecast is not None and not turn.past and job_id not in turn.silent:
            self._announce(new, turn)
        return True

    def _publish(self, record: Record, view: JobView, alive_at: Micros, old: PublishedJob | None, turn: _Turn) -> None:
        """Publish the view of a JobLog job, which has been read."""
        job_id = record.job_id
        self.known.unread.pop(job_id, None)
        if old is None and self.published.past_unread is not None and self.loading:
            self._incomplete[job_id] = None
        if old is None and job_id not in turn.returned:
            announced_until = self._removed.announced_until(job_id)
            if view.terminal and ended_at(view, alive_at) <= announced_until:
                record.observed = None
            if not turn.past and (began := view.started_at or 0) <= announced_until:
                turn.log_from = began if turn.log_from is None else min(turn.log_from, began)
        if old is None or old.view.external_ids != view.external_ids:
            # Clients get the removal of a legacy job before the job that has its ID. If a JobLog job with that ID was
            # read in this call, it is settled too, and goes on from the legacy job or removes it.
            for name in view.external_ids:
                if (other := self._records.get(name)) is None or (self.tracking and other.facts.reading is None):
                    self._withdraw_legacy(name, "merged", turn)
        self._show(view, alive_at, old, record, turn)
        record.viewed = record.facts
        self._removed.discard(job_id)

    def _view(self, record: Record, old: PublishedJob | None) -> tuple[JobView, Micros]:
        """The view and the last activity of a job. Nothing is derived again from facts that have been viewed."""
        facts, viewed = record.facts, record.viewed
        if old is None or viewed is None:
            return fold.view(facts, self.id_keys), fold.alive_at(facts)
        if facts is viewed:
            return old.view, old.alive_at
        view = fold.grown(viewed, old.view, facts) or fold.view(facts, self.id_keys)
        return view, fold.alive_after(viewed, old.alive_at, facts)

    def _has_expired(self, view: JobView, alive_at: Micros, old: PublishedJob | None, turn: _Turn) -> bool:
        """True if a job ended too long ago to be in memory, and its end was not seen since then either."""
        if not view.terminal:
            return False
        return self.published.has_expired(max(ended_at(view, alive_at), self._end_seen_at(view, old, turn)), turn.now)

    @staticmethod
    def _end_seen_at(view: JobView, old: PublishedJob | None, turn: _Turn) -> Micros:
        """When the end of a job was seen: clients that saw it run see its end first, whatever the times in the tables.

        0: the job has not ended, or had when it was published first.
        """
        if not view.terminal:
            return 0
        if turn.restored and (stored := turn.restored.get(view.job_id)) is not None:
            return stored.end_seen_at
        if old is None and (away := turn.returned.get(view.job_id)) is not None:
            old = away.shown
        if old is None:
            return 0
        return old.end_seen_at if old.view.terminal else turn.now

    def _settle_row(self, known: LegacyRow, old: PublishedJob | None, turn: _Turn) -> None:
        """Publish a row of `failover_jobs` if it is certain that no JobLog job has its ID, else withdraw it."""
        row, view = known.row, fold.legacy_view(known.row)
        self.published.await_no_longer(row.job_id)
        if self.published.owner(row.job_id) is not None:
            self._withdraw_legacy(row.job_id, "merged", turn)
        elif self._has_expired(view, 0, old, turn):
            self._retire(row.job_id, "retention", turn)
        elif row.apart:
            if known.silent:
                turn.silent.add(row.job_id)
                known.silent = False
            self._show(view, fold.legacy_alive_at(row), old, None, turn)
        else:
            self.published.await_legacy(row.job_id, view.started_at or 0, turn.now)
            known.silent = known.silent or turn.past

    def _show(
        self, view: JobView, alive_at: Micros, old: PublishedJob | None, record: Record | None, turn: _Turn
    ) -> None:
        """Publish `view` if the document differs: the only place, but for `_grow`, where one changes with its facts."""
        job_id, now, past = view.job_id, turn.now, turn.past or view.job_id in turn.silent
        end_seen_at, was = self._end_seen_at(view, old, turn), self._seen(view, old, turn)
        if record is None or (family := record.family) is None:
            family = self._children.of(job_id, record.facts.reading if record is not None else None)
            if record is not None:
                record.family = family
        complete = job_id not in self._incomplete
        stored = turn.restored.pop(job_id, None) if turn.restored else None
        if stored is not None and not stored.updated_at:
            stored = None  # It was not published.
        failure = self._failure(view, alive_at, was, record, stored)
        was_announced = was is not None and was.stalled and self.silence.is_news(job_id)
        self._note_life(view, alive_at, was, record, stored, turn, past=past)
        stalled = self.silence.is_stalled(job_id)
        if (
            old is not None
            and (stored is None or stored.forecast is None)
            and (old.view is view or old.view == view)
            and (old.stalled, old.complete, old.failure) == (stalled, complete, failure)
            and (old.child_count, old.children) == (family.count, family.ids)
        ):
            if old.alive_at != alive_at:
                self.published.set_job(shown := replace(old, alive_at=alive_at), old)
                self._plan_expiry(shown)
            return
        if stored is not None:
            updated_at = stored.updated_at
            if old is None or stored.forecast is not None:
                forecast = self.forecasts.restore_job(view, stored.forecast, now)
            else:
                forecast = old.forecast
        elif was is not None and (turn.parents is not None or (was is not old and was.view == view)):
            updated_at, forecast = was.updated_at, was.forecast
        else:
            of_the_past = view.terminal and (was is None or (past and not was.complete))
            updated_at = min(now, max(alive_at, view.ended_at or 0)) if of_the_past else now
            forecast = self.forecasts.of(view, was, alive_at, now)
            self._unsaved[job_id] = None
        new = PublishedJob(
            view,
            self.published.next_seq(),
            updated_at,
            family.ids,
            family.count,
            stalled,
            alive_at,
            complete,
            forecast,
            titles=self.published.titles,
            end_seen_at=end_seen_at,
            failure=failure,
        )
        self._follow_up(self._put(new, old, turn), turn, past=past, was=was)
        if stored is None and (stalled and self.silence.is_news(job_id)) is not was_announced:
            self._announce_silence(new, turn, past=past)

    def _failure(
        self,
        view: JobView,
        alive_at: Micros,
        was: PublishedJob | None,
        record: Record | None,
        stored: PersistedJob | None,
    ) -> Failure | None:
        """The failure to publish with `view`. `was`: what clients have seen of the job."""
        before = was.failure if was is not None else None
        if view.status is not Status.FAILED and before is None:
            return None
        reading = record.facts.reading if record is not None and self.tracking else None
        return self.failures.of(view, alive_at, reading, before, stored.failure if stored is not None else None)

    def _seen(self, view: JobView, old: PublishedJob | None, turn: _Turn) -> PublishedJob | None:
        """What clients have seen of a job, though it may not be published now. One that is back goes on with that."""
        if old is not None and old.view.source != view.source:
            self.silence.forget(view.job_id)  # It was that of a row of `failover_jobs` with the same ID.
        if (away := turn.returned.pop(view.job_id, None)) is None or away.shown is None or old is not None:
            return old
        if away.stored.silence is not None:
            self.silence.restore(view.job_id, away.stored.silence)
        self.forecasts.restore_job(view, away.stored.forecast, turn.now)
        return away.shown

    def _put(self, new: PublishedJob, old: PublishedJob | None, turn: _Turn, *, goes_on: bool = False) -> Change:
        self.published.set_job(new, old)
        change = Change(new.view.job_id, new.rev, old, new, goes_on=goes_on)
        turn.changes.append(change)
        return change

    def _note_life(
        self,
        view: JobView,
        alive_at: Micros,
        old: PublishedJob | None,
        record: Record | None,
        stored: PersistedJob | None,
        turn: _Turn,
        *,
        past: bool,
    ) -> None:
        """Follow the silence of a job. One that never did anything, or may have in the past, has none yet."""
        job_id, silence = view.job_id, self.silence
        wrote = job_id in turn.wrote
        turn.wrote.discard(job_id)  # It may be settled again, as the parent of another job.
        if view.status is not Status.RUNNING:
            silence.forget(job_id)
            if not view.terminal:
                silence.add(job_id)
        elif stored is not None and stored.silence is not None:
            silence.restore(job_id, stored.silence)
        elif not alive_at or job_id in self._incomplete:
            silence.add(job_id)
        elif not silence.has_begun(job_id):
            if past:
                silence.begin(job_id, alive_at, self.published.past_unread or turn.now, turn.now)
            else:
                silence.alive(job_id, turn.now)
        elif (
            wrote
            or (old is not None and alive_at > old.alive_at)
            or (record is not None and record.viewed is not None and fold.shows_life(record.viewed, record.facts))
        ):
            silence.alive(job_id, turn.now)

    def _evict(self, old: PublishedJob, turn: _Turn) -> None:
        """Remove a job for which memory has no room."""
        record = self._records.get(old.job_id)
        if record is None or old.view.source == "legacy":
            self._removed.had_no_room(old.view, old.alive_at)
            self._retire(old.job_id, "retention", turn)
        else:
            self._remove(record, old, "retention", old.view, turn)

    def _remove(
        self, record: Record, old: PublishedJob | None, reason: Reason, view: JobView | None, turn: _Turn
    ) -> None:
        """Remove a JobLog job, which late rows do not bring back. `view`: what is known of it, if anything."""
        job_id = record.job_id
        turn.returned.pop(job_id, None)
        was_published = old is not None and old.view.source == "joblog"
        self._drop_record(job_id)
        self.known.unread.pop(job_id, None)
        self._forget_steps(record)
        alive_at = fold.alive_at(record.facts) if view is not None else 0
        if old is not None:
            alive_at = old.alive_at
        if reason == "retention" and view is not None:
            self._removed.had_no_room(view, alive_at)
            self.published.leave_out(view.started_at or 0, turn.now)
        if old is None or was_published:
            self._removed.add(job_id, view, alive_at, turn.now, gone=reason == "gone")
        if old is not None and was_published:
            for name in old.view.external_ids if reason == "retention" else ():
                self._retire(name, reason, turn)
            self._withdraw(old, reason, turn)
        if was_published or reason == "retention":
            self._retire(job_id, reason, turn)  # Its ID is that of this job.
        else:
            turn.named[job_id] = None  # No JobLog job has the ID, but a row of `failover_jobs` may.
        if reason == "gone" and (own := self._own_ids.of(job_id)) != job_id:  # It is the ID of a job in another case.
            self._move_rows([row.entry for row in self.known.pending_rows.pop(job_id)], own, turn)

    def _leave(self, record: Record, old: PublishedJob | None, turn: _Turn) -> None:
        """Remove a JobLog job that the tables do not have any more. It is kept for a while, since it may come back."""
        away = None
        if (returned := turn.returned.get(record.job_id)) is not None:  # It came back and went again in one call.
            facts = replace(record.facts, reading=returned.stored.job.reading)
            away = AwayJob(replace(returned.stored, job=facts, away_at=turn.now), returned.shown, record)
        # A row that names a job in another case is not of a job that is gone.
        elif old.view.source == "joblog" if old is not None else record.job_id == record.job_id.casefold():
            read = record.viewed.reading if record.viewed is not None else None
            record.facts = replace(record.facts, reading=read)
            ran = old is not None and not old.view.terminal
            away = AwayJob(replace(self._persisted(record, old), away_at=turn.now, ran=ran), old, record)
        self._remove(record, old, "gone", old.view if old is not None else None, turn)
        if away is not None and self._own_ids.of(record.job_id) == record.job_id:
            for forgotten in self._keep_away(away):
                self._forget_away(forgotten, turn)

    def _keep_away(self, away: AwayJob) -> list[AwayJob]:
        """Keep a job that is gone. Returns those that are forgotten for it."""
        for step_id in away.record.steps:
            self._job_of_step.setdefault(step_id, away.job_id)
        return self._away.add(away)

    def _come_back(self, job_id: str, turn: _Turn) -> None:
        """Go on with a job that is in the tables again."""
        if (away := self._away.pop(job_id)) is None:
            return
        record = self._records[job_id] = away.record
        record.facts, record.viewed, record.family = away.stored.job, None, None
        self._own_ids.add(job_id)
        self._unsaved[job_id] = None
        turn.returned[job_id] = away

    def _forget_away(self, away: AwayJob, turn: _Turn) -> None:
        """Forget a job that is gone. The lines that waited for it are passed on."""
        self._forget_steps(away.record)
        self._unsaved[away.job_id] = None
        turn.attributed += self.known.pending_rows.pop(away.job_id)

    def _forget_steps(self, record: Record) -> None:
        for step_id in record.steps:
            if self._job_of_step.get(step_id) == record.job_id:
                del self._job_of_step[step_id]

    def _retire(self, job_id: str, reason: Reason, turn: _Turn) -> None:
        """Remove a row of `failover_jobs` from memory, and set it aside: it stays unpublished until it changes."""
        if (row := self._drop_row(job_id)) is None:
            return
        self.known.set_aside(row, self._newest_time)
        self._withdraw_legacy(job_id, reason, turn)

    def _withdraw_legacy(self, job_id: str, reason: Reason, turn: _Turn) -> None:
        """Remove a legacy job. A JobLog job with its ID stays: the rows of `failover_jobs` do not decide about that."""
        if (old := self.published.get(job_id)) is not None and old.view.source == "legacy":
            self._withdraw(old, reason, turn)

    def _withdraw(self, old: PublishedJob, reason: Reason, turn: _Turn) -> None:
        """Remove a document: the only place where one disappears."""
        self.published.drop(old, turn.now)
        self._unsaved[old.job_id] = None
        self.silence.forget(old.job_id)
        self.forecasts.forget(old.job_id)
        if reason == "gone":
            self.failures.forget(old.job_id)
        change = Change(old.job_id, self.published.next_seq(), old, None, reason)
        turn.changes.append(change)
        self._follow_up(change, turn, past=turn.past, to_parent=reason != "retention")

    # -- what follows from a change

    def _follow_up(
        self, change: Change, turn: _Turn, *, past: bool, to_parent: bool = True, was: PublishedJob | None = None
    ) -> None:
        """Update what leads to the job, its times, and its events; name the jobs that a change of it may change.

        `to_parent`: the document of its parent changes with it. `was`: what clients have seen of the job.
        """
        job_id, old, new = change.job_id, change.old, change.new
        if new is not None:
            newest = max(new.alive_at, new.view.ended_at or 0)
            if newest > self._newest_time:
                self._newest_time = max(self._newest_time, min(turn.now, newest))
        if new is not None and old is not None and not past and _runs_on(old, new):
            self._announce(new, turn)
        else:
            if new is not None:
                self._plan_expiry(new)
            else:
                self._expiry.discard(job_id)
            if new is not None and not past:
                self._note_transitions(was, new, turn)
        before, after = old.view if old is not None else None, new.view if new is not None else None
        if before is None or after is None or names_differ(before, after):
            self._move_names(job_id, before, after, turn)
        for parent in self._children.move(before, after):
            if (record := self._records.get(parent)) is not None:
                record.family = None
            if to_parent:
                (turn.named if turn.parents is None else turn.parents)[parent] = None

    def _plan_expiry(self, shown: PublishedJob) -> None:
        if shown.view.terminal:
            self._expiry.put(shown.job_id, max(ended_at(shown.view, shown.alive_at), shown.end_seen_at))
        else:
            self._expiry.discard(shown.job_id)

    def _note_transitions(self, old: PublishedJob | None, new: PublishedJob, turn: _Turn) -> None:
        """Add the events of a legacy job; of a JobLog job, note the transitions that wait for their log row."""
        view, was = new.view, old.view if old is not None else None
        announced_until = self._removed.announced_until(view.job_id) if was is None else -1
        if was is None:
            is_news = ended_at(view, new.alive_at) > announced_until
        else:
            is_news = not was.terminal or was.ended_at != view.ended_at
        if view.terminal and is_news:
            turn.ended.add(view.job_id)
        if old is None and not new.complete:
            return
        if view.source == "legacy":
            turn.events += transitions(was, view, Job(view.job_id), announced_until)  # It has no log rows to wait for.
        else:
            watched = self.horizon.log_watched_from(turn.now)
            facts = self._records[view.job_id].facts
            turn.dropped += self._transitions.changed(was, view, facts, watched, announced_until)
        self._announce(new, turn)

    def _announce(self, shown: PublishedJob, turn: _Turn) -> None:
        """Announce that a job is late or overdue. Each is announced once, also after a restart."""
        if not shown.complete:
            return
        if (kind := self.forecasts.announcement(shown.job_id, shown.forecast, turn.now)) is not None:
            turn.events.append(Event(kind, shown.job_id, turn.now))
            self._unsaved[shown.job_id] = None

    def _announce_silence(self, shown: PublishedJob, turn: _Turn, *, past: bool) -> None:
        """Announce that a job has become stalled, or that it goes on after an event said that it was."""
        if shown.stalled:
            turn.events.append(Event(Kind.JOB_STALLED, shown.job_id, turn.now))
        elif shown.view.status is Status.RUNNING and not past:
            turn.events.append(Event(Kind.JOB_RECOVERED, shown.job_id, turn.now))

    def _move_names(self, job_id: str, old: JobView | None, new: JobView | None, turn: _Turn) -> None:
        """Update the IDs of a job. Jobs that an ID starts or stops resolving to get a change, and legacy jobs merge."""
        names, owners = self.published.move_names(job_id, old, new)
        if old is not None and new is not None and new.external_ids_cut is not None:
            for name in set(old.external_ids).difference(new.external_ids):
                self._retire(name, "merged", turn)  # The job still owns it, though it is not known any more.
        turn.named.update((name, None) for name in names if name in self.known.rows)
        for other in sorted(owners - {job_id}):
            if (shown := self.published.get(other)) is not None:
                turn.changes.append(Change(other, self.published.next_seq(), shown, shown, moved=True))


def _state_of(shown: PublishedJob | None) -> FailureState:
    return shown.failure.state if shown is not None and shown.failure is not None else "unknown"


def _unattributed(rows: Iterable[_StepRow]) -> list[AttributedRow]:
    """Rows that belong to no known job, without those of the log's past, which are not streamed."""
    return [AttributedRow(entry, None, "none") for _, entry, past in rows if not past]


def _steps_were_read(facts: Job) -> bool:
    """True if the last query of the tables returned the steps of a job."""
    reading = facts.reading
    return reading is not None and reading.steps is not None and reading.steps_kept_from is None


def _steps_of(facts: Job, view: JobView) -> Sequence[StepRecord]:
    """The steps that the tables have of a job, or while these cannot be read, those that it shows."""
    read = facts.reading.steps if facts.reading is not None and _steps_were_read(facts) else None
    return view.steps if read is None else read


def _is_in_doubt(entry: Entry) -> bool:
    """True if a row may name its job in another case than the tables: JobLog writes IDs as `casefold` does."""
    return entry.job_id is not None and entry.job_id != entry.job_id.casefold()


def _event(kind: Kind, entry: Entry, job_id: str) -> Event:
    name = entry.step_name or None
    return Event(kind, job_id, entry.at, entry.event_id, entry.step_id, name, entry.error, entry.error_cut)


def _gets_its_first_steps(before: Job, job: Job) -> bool:
    """True if the change is that the steps of a job, which could not be read before, have been read."""
    if before.reading is None or job.reading is None:
        return False
    return (
        before.reading.steps is None and job.reading.steps is not None and before.reading.record == job.reading.record
    )


def _runs_on(old: PublishedJob, new: PublishedJob) -> bool:
    """True if a job goes on running with the same steps, as in most changes: there is no transition then."""
    return new.view.status is old.view.status is Status.RUNNING and new.view.steps is old.view.steps
