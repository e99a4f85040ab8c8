"""The published jobs: what clients see of the jobs in memory, the IDs that lead to them, and the numbered changes.

A job is published as a `PublishedJob`: its view, and what other jobs and time add to it (children, `stalled`). Each
change takes the next `seq`. A document changes only with its `rev`, which is the `seq` of the job's last change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from correlator.jobs.children import Children
from correlator.jobs.directory import JobDirectory
from correlator.jobs.forecasts import Forecasts
from correlator.jobs.horizon import FOR_EVER, Horizon
from correlator.jobs.missing_rows import Transitions, legacy_events
from correlator.jobs.model.changes import Change, Event, Reason
from correlator.jobs.model.facts import Job, Kind, Status
from correlator.jobs.model.persisted import PersistedJob
from correlator.jobs.model.rows import Micros
from correlator.jobs.model.views import NO_TITLES, JobView, PublishedJob, Titles
from correlator.jobs.outcome import Outcome
from correlator.jobs.removed_jobs import RemovedJobs
from correlator.jobs.silence import Silence
from correlator.jobs.timers import Timers, ended_at

MAX_DUE = 500
"""Jobs that become stalled, and jobs that are removed, in one call of `Index.expire`. The others follow in the next."""

LEARNED_AT_ONCE, RENEWED_AT_ONCE = 10, 100
"""Ended runs that one call of `renew_forecasts` learns, and forecasts that it checks: some milliseconds each."""


class PublishedJobs(JobDirectory):
    """The published jobs of an index. Anybody may read. Only the index and `LegacyJobs` change it, and `begin_past`.

    `facts`, `children`, `transitions`, `forecasts`, `removed`, `horizon`: those of the index. `stalled_after` and
    `retention` are in seconds. Every `now` is in microseconds since 1970.
    """

    def __init__(
        self,
        facts: Mapping[str, Job],
        children: Children,
        transitions: Transitions,
        forecasts: Forecasts,
        removed: RemovedJobs,
        horizon: Horizon,
        *,
        stalled_after: float,
        retention: float,
        titles: Titles = NO_TITLES,
    ) -> None:
        super().__init__()
        self.silence = Silence(horizon, int(stalled_after * 1_000_000))
        self.retention = int(retention * 1_000_000)
        """Microseconds that an ended job stays in memory."""
        self.titles = titles
        self.past_unread: Micros | None = None
        """The time at which reading of the log's past began, in microseconds. None once all of it is published."""
        self.incomplete: dict[str, None] = {}
        """Jobs for which rows of the log's past may still be unread."""
        self.unsaved: dict[str, None] = {}
        """Jobs that were published since `Persistence` last asked: time and other jobs change a forecast too."""
        self.timers = Timers()
        self._facts = facts
        self._children = children
        self._transitions = transitions
        self._forecasts = forecasts
        self._removed = removed
        self._horizon = horizon
        self.newest_time: Micros = 0
        """The newest time of a job that was published, in microseconds. The present, if that is earlier."""
        self.newest_removed: Micros = 0
        """The newest start of a job that left memory, or for which it had no room."""
        self._awaited: set[str] = set()
        self._newest_awaited: Micros = -1
        """Legacy rows of which it is not known yet whether a JobLog job has their ID, and the newest start of one."""

    # -- reading

    def is_joblog_id(self, name: str) -> bool:
        """True if a JobLog job in memory has this ID, as its own or as an external one."""
        return name in self._facts or self._external.owner(name) is not None

    def complete_since(self, now: Micros) -> Micros:
        """All jobs that started at or after this time are in memory; `max_jobs` may have removed older ones."""
        return max(now - self.retention, self.newest_removed + 1, self._newest_awaited + 1)

    def has_expired(self, view: JobView, now: Micros) -> bool:
        return view.terminal and ended_at(view) <= now - self.retention

    def has_room(self, view: JobView) -> bool:
        """True if a job that is not in memory belongs there: one that was removed comes back only with news."""
        return self._removed.is_news(view)

    # -- writing

    def begin_past(self, now: Micros) -> None:
        """Begin with the log's past. Jobs that are published while the tables are loaded are incomplete from now on."""
        self.past_unread = now

    def end_past(self) -> None:
        """End the log's past: no job is incomplete any more."""
        self.past_unread = None

    def leave_out(self, started_at: Micros) -> None:
        """Note that memory may lack jobs that started at this time or before."""
        self.newest_removed = max(self.newest_removed, started_at)

    def await_legacy(self, job_id: str, started_at: Micros) -> None:
        """Note a legacy row that is published once it is certain that no JobLog job has its ID."""
        self._awaited.add(job_id)
        self._newest_awaited = max(self._newest_awaited, started_at)

    def await_no_longer(self, job_id: str) -> None:
        self._awaited.discard(job_id)
        if not self._awaited:
            self._newest_awaited = -1

    def mark_incomplete(self, job_id: str) -> None:
        self.incomplete[job_id] = None

    def mark_complete(self, job_id: str) -> bool:
        """Call it before the job is published with its rows of the past. Returns False if it was complete."""
        was_incomplete = job_id in self.incomplete
        self.incomplete.pop(job_id, None)
        return was_incomplete

    def show(
        self,
        view: JobView,
        alive_at: Micros,
        now: Micros,
        out: Outcome,
        *,
        updated_at: Micros | None = None,
        restored: PersistedJob | None = None,
        alive: bool = False,
    ) -> bool:
        """Publish `view`. Returns False if its document stays the same. If `names_differ`, call `move_names` next.

        `updated_at`: the time of the change if it is not `now`, because the job comes from a checkpoint. `restored`:
        the job in that checkpoint. `alive`: the job shows a sign of life; a later `alive_at` is one too.
        """
        job_id = view.job_id
        old = self._jobs.get(job_id)
        family = self._children.of(job_id, self._facts.get(job_id))
        complete = job_id not in self.incomplete
        if restored is not None:
            updated_at = restored.updated_at
        stored = restored.forecast if restored is not None else None
        alive = alive or (old is not None and alive_at > old.alive_at)
        was_announced = old is not None and old.stalled and self.silence.is_news(job_id)
        self._note_life(view, alive_at, now, out, restored, alive=alive)
        stalled = self.silence.is_stalled(job_id)
        if (
            old is not None
            and stored is None
            and old.view == view
            and (old.stalled, old.complete) == (stalled, complete)
            and (old.child_count, old.children) == (family.count, family.ids)
        ):
            if old.alive_at != alive_at:
                self._jobs[job_id] = replace(old, alive_at=alive_at)
            return False
        self.seq += 1
        if updated_at is None:
            of_the_past = view.terminal and (old is None or (out.past and not old.complete))
            updated_at = min(now, max(alive_at, ended_at(view))) if of_the_past else now
            forecast = self._forecasts.of(view, old, alive_at, now)
            self.unsaved[job_id] = None
        elif old is None or stored is not None:
            forecast = self._forecasts.restore_job(view, stored, now)
        else:
            forecast = old.forecast
        new = PublishedJob(
            view,
            self.seq,
            updated_at,
            family.ids,
            family.count,
            stalled,
            alive_at,
            complete,
            forecast,
            titles=self.titles,
        )
        self._put(new, old)
        self._track(old, new, now, out)
        if restored is None and (stalled and self.silence.is_news(job_id)) is not was_announced:
            self._announce_silence(new, now, out)
        out.changes.append(Change(job_id, new.rev, old, new))
        return True

    def refresh(self, job_ids: Iterable[str], now: Micros, out: Outcome) -> None:
        """Publish jobs again whose children or age may differ. Unknown IDs are ignored."""
        for job_id in job_ids:
            if (shown := self._jobs.get(job_id)) is not None:
                self.show(shown.view, shown.alive_at, now, out)

    def hide(self, job_id: str, reason: Reason, out: Outcome) -> None:
        """Remove a job from what is published. Its IDs stay until `move_names`."""
        old = self._drop(job_id)
        self.timers.update(job_id, None)
        self.silence.forget(job_id)
        self._forecasts.forget(job_id)
        if old is not None:
            self.leave_out(old.view.started_at or 0)
            self.seq += 1
            out.changes.append(Change(job_id, self.seq, old, None, reason))

    def hide_legacy(self, job_id: str, reason: Reason, out: Outcome) -> None:
        """Remove a legacy job. A JobLog job with its ID stays: the rows of `failover_jobs` do not decide about that."""
        if (shown := self._jobs.get(job_id)) is not None and shown.view.source == "legacy":
            self.hide(job_id, reason, out)

    def add_moved(self, job_ids: Iterable[str], out: Outcome) -> None:
        """Add a change of each job that an ID started or stopped resolving to. Their documents stay as they are."""
        for job_id in sorted(job_ids):
            if (shown := self._jobs.get(job_id)) is not None:
                self.seq += 1
                out.changes.append(Change(job_id, self.seq, shown, shown, moved=True))

    def check_stalled(self, now: Micros, out: Outcome) -> None:
        """Publish at most `MAX_DUE` jobs that have become stalled."""
        self.refresh(self.silence.judge(now, MAX_DUE), now, out)

    def renew_forecasts(self, now: Micros, out: Outcome, *, learn: bool) -> None:
        """Learn some ended runs if `learn`, and publish those of some forecasts that differ enough.

        See `Forecasts.has_due`.
        """
        for job_id in self._forecasts.ended(now, LEARNED_AT_ONCE) if learn else ():
            if (ended := self._jobs.get(job_id)) is not None:
                self._forecasts.learn(ended.view)
                self.unsaved[job_id] = None
        for job_id in self._forecasts.due(now, RENEWED_AT_ONCE):
            if (shown := self._jobs.get(job_id)) is None:
                continue
            if (forecast := self._forecasts.renewed(shown, now)) is not None:
                self.seq += 1
                new = replace(shown, rev=self.seq, updated_at=now, forecast=forecast)
                self._jobs[job_id] = new
                out.changes.append(Change(job_id, new.rev, shown, new))
                self.unsaved[job_id] = None
            self._announce(self._jobs[job_id], now, out)

    def pop_expired(self, now: Micros, most_jobs: int) -> list[str]:
        """Return jobs to remove, at most `MAX_DUE` of each kind: expired ones, and the oldest beyond `most_jobs`."""
        expired = self.timers.pop_expired(now - self.retention, MAX_DUE)
        return expired + self.timers.pop_expired(FOR_EVER, min(MAX_DUE, len(self._jobs) - len(expired) - most_jobs))

    # -- internal

    def _track(self, old: PublishedJob | None, new: PublishedJob, now: Micros, out: Outcome) -> None:
        """Update the schedules after a change, and add its events."""
        view, was = new.view, old.view if old is not None else None
        self.newest_time = max(self.newest_time, min(now, max(new.alive_at, ended_at(view))))
        if old is not None and not out.past and _runs_on(old, new):
            self._announce(new, now, out)
            return
        self.timers.update(view.job_id, new)
        announced_until = self._removed.announced_until(view.job_id) if was is None else -1
        is_news = (
            ended_at(view) > announced_until if was is None else not was.terminal or ended_at(was) != ended_at(view)
        )
        if view.terminal and not out.past and is_news:
            out.ended.add(view.job_id)
        if out.past or (old is None and not new.complete):
            return
        if view.source == "legacy":
            out.events += legacy_events(was, view, announced_until)
        else:
            watched = self._horizon.log_watched_from(now)
            self._transitions.changed(was, view, self._facts[view.job_id], watched, announced_until)
        self._announce(new, now, out)

    def _announce(self, shown: PublishedJob, now: Micros, out: Outcome) -> None:
        """Announce that a job is late or overdue. Each is announced once, also after a restart."""
        if shown.complete and (kind := self._forecasts.announcement(shown.job_id, shown.forecast, now)) is not None:
            out.events.append(Event(kind, shown.job_id, now))
            self.unsaved[shown.job_id] = None

    def _note_life(
        self, view: JobView, alive_at: Micros, now: Micros, out: Outcome, restored: PersistedJob | None, *, alive: bool
    ) -> None:
        """Follow the silence of a running job. A job that never did anything, or may have in the past, has none yet."""
        job_id = view.job_id
        if view.status is not Status.RUNNING:
            self.silence.forget(job_id)
        elif restored is not None and restored.silence is not None:
            self.silence.restore(job_id, restored.silence)
        elif not alive_at or job_id in self.incomplete:
            return
        elif job_id not in self.silence and out.past:
            self.silence.begin(job_id, alive_at, self.past_unread or now, now)
        elif alive or job_id not in self.silence:
            self.silence.alive(job_id, now)

    def _announce_silence(self, shown: PublishedJob, now: Micros, out: Outcome) -> None:
        """Announce that a job has become stalled, or that it goes on after an event said that it was."""
        if shown.stalled:
            out.events.append(Event(Kind.JOB_STALLED, shown.job_id, now))
        elif shown.view.status is Status.RUNNING and not out.past:
            out.events.append(Event(Kind.JOB_RECOVERED, shown.job_id, now))


def _runs_on(old: PublishedJob, new: PublishedJob) -> bool:
    """True if a job goes on running with the same steps, as in most changes: there is no transition then."""
    return new.view.status is old.view.status is Status.RUNNING and new.view.steps is old.view.steps
