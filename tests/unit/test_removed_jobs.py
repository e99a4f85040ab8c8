"""Jobs that `max_jobs` or `retention` removed: they do not come back without news, and the database has them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from correlator.jobs.exports import Exports
from correlator.jobs.index import Index
from correlator.jobs.known import RemovedJobs
from correlator.model.facts import Entry, Kind, Reading
from correlator.model.persisted import IndexState, PersistedExports
from correlator.model.published import Change, Event, Outcome
from correlator.model.replies import Resolved
from correlator.model.rows import JobRecord, LegacyRecord, Micros
from correlator.pipeline.pipeline import LocalHub
from correlator.pipeline.queries import Found
from tests.support.saved_index import stored

NOW = time.time_ns() // 1_000
SECOND = 1_000_000
BASE = 1_758_550_000 * SECOND
READ_BACK = 60 * SECOND
"""how far the first queries after a start reach back for jobs that began or ended, as `reconcile.LATE_COMMIT`."""


@dataclass
class Evicting:
    """The tables, the index, and what it published. Times in microseconds; each change takes a second or more."""

    max_jobs: int
    retention: float = 100_000.0
    now: Micros = BASE
    records: dict[str, JobRecord] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    read_early: list[str] = field(default_factory=list)
    """The jobs that a client asks for at a restart, before what the checkpoint has is published."""
    later: set[str] = field(default_factory=set)
    """The jobs whose end the index reported: they are read again, as `Reconcile.note` does."""

    def __post_init__(self) -> None:
        self.index = self._made()

    def _made(self) -> Index:
        return Index(max_jobs=self.max_jobs, retention=self.retention, stalled_after=lambda: 10.0**9)

    # -- the tables

    def start(self, job_id: str) -> None:
        self.records[job_id] = JobRecord(job_id, status="running", started_at=self.now)

    def end(self, job_id: str) -> None:
        started = self.records[job_id].started_at
        self.records[job_id] = JobRecord(job_id, status="completed", started_at=started, completed_at=self.now)

    # -- the index

    def load(self) -> None:
        """Read what `Reconcile.load` reads."""
        room = self.max_jobs - sum(r.status == "running" for r in self.records.values())
        ended = [i for i, r in self.records.items() if r.status == "completed"]
        ended.sort(key=lambda i: (self.records[i].completed_at or 0, i), reverse=True)
        self.read(*(i for i, r in self.records.items() if r.status == "running"), *ended[: max(0, room)])

    def read_recent(self) -> None:
        """Read what `Reconcile._moving` finds."""
        since = self.now - READ_BACK
        recent = [
            i
            for i, r in self.records.items()
            if max(r.started_at or 0, r.completed_at or 0) >= since or r.status == "running"
        ]
        self.read(*(i for i in recent if self.index.known.needs_reading(i)))

    def read(self, *job_ids: str) -> Outcome:
        facts = [Reading(i, self.index.advance_clock(), self.records.get(i), ()) for i in job_ids]
        return self._published(self.index.apply(facts, self.now))

    def expire(self) -> Outcome:
        return self._published(self.index.expire(self.now))

    def restart(self, *, max_jobs: int | None = None, retention: float | None = None) -> None:
        """End, and start again with what a checkpoint has. The tables have not been read yet."""
        jobs, legacy = stored(self.index)
        written = msgspec.msgpack.encode(self.index.state())
        self.max_jobs = self.max_jobs if max_jobs is None else max_jobs
        self.retention = self.retention if retention is None else retention
        self.later.clear()
        self.index = self._made()
        self.read(*self.read_early)
        state = msgspec.msgpack.decode(written, type=IndexState)
        for outcome in self.index.restore(jobs, legacy, state, self.now):
            self._published(outcome)
        self.index.loading = False

    def settle(self) -> None:
        """Let all pending transitions become events, and jobs leave that have no room."""
        for _ in range(len(self.records) + 3):
            self.now += 10 * SECOND
            self.expire()

    def forget(self) -> None:
        """Forget what was published until now."""
        self.events.clear()
        self.changes.clear()
        self.later.clear()

    def _published(self, outcome: Outcome) -> Outcome:
        self.events += outcome.events
        self.changes += outcome.changes
        self.later |= outcome.ended
        return outcome


class Tables:
    """An archive of jobs."""

    def __init__(self, *readings: Reading) -> None:
        self.readings = {reading.job_id: reading for reading in readings}

    async def find(self, name, advance_clock):
        return Found(Resolved(self.newest.job_id, "external_id", ()), self.newest)

    async def is_context(self, name):
        return False

    @property
    def newest(self):
        return max(self.readings.values(), key=lambda reading: reading.record.started_at or 0 if reading.record else 0)


def job(job_id, status, started, ended=None, ext=None):
    times = {"started_at": NOW - started * SECOND, "completed_at": None if ended is None else NOW - ended * SECOND}
    return Reading(job_id, 1, JobRecord(job_id, status=status, external_job_id=ext, **times), ())


def hub_with(*readings, max_jobs):
    index = Index(max_jobs=max_jobs)
    index.loading = False
    index.apply(readings, NOW)
    index.expire(NOW)
    archive: Any = Tables(*readings)
    return LocalHub(index, archive)


async def test_an_id_resolves_to_the_newest_job_though_memory_had_no_room_for_it():
    readings = (
        job("old-running", "running", 3600, ext="gui"),
        job("newer", "completed", 1800, 1700, ext="gui"),
        job("x", "completed", 100, 90),
    )
    hub = hub_with(*readings, max_jobs=2)
    assert hub.find_now("gui")[0].job_id == "old-running"
    hub.archive.readings.pop("x")
    assert (await hub.find("gui"))[0].job_id == "newer"


def test_a_job_in_memory_is_found_by_its_own_id_in_any_case_until_it_leaves():
    hub = hub_with(job("a1", "running", 3600, ext="gui"), job("B1", "completed", 1800, 1700), max_jobs=9)
    assert [hub.find_now(name)[0].job_id for name in ("A1", "b1", "B1")] == ["a1", "B1", "B1"]
    assert (hub.find_now("GUI"), hub.published.resolve("A1")) == (None, None)
    hub.index.apply([Reading("B1", 2, None, ())], NOW)
    assert hub.find_now("b1") is None


# -- without news they stay away


def ended(max_jobs: int, count: int, retention: float = 100_000.0) -> Evicting:
    """An index that has followed `count` jobs to their ends and has room for `max_jobs`."""
    world = Evicting(max_jobs, retention)
    world.index.loading = False
    for n in range(count):
        world.start(f"j{n}")
        world.read(f"j{n}")
        world.now += SECOND
        world.end(f"j{n}")
        world.read(f"j{n}")
    world.settle()
    world.forget()
    return world


def quiet(world: Evicting) -> bool:
    return not (world.events or world.changes or world.later)


def test_a_removed_job_that_ended_again_comes_back_with_that_end_alone():
    world = ended(2, 4)
    world.records["j0"] = JobRecord("j0", status="failed", started_at=BASE, completed_at=world.now)
    for _ in range(4):
        world.read("j0")
        world.settle()
    assert [(c.job_id, c.reason) for c in world.changes] == [("j0", None), ("j2", "retention")]
    assert [(e.kind, e.at) for e in world.events] == [(Kind.JOB_FAILED, world.records["j0"].completed_at)]


def test_the_late_first_row_of_a_removed_job_does_not_bring_it_back_and_is_an_event():
    world = ended(1, 2)
    row = Entry(7, BASE, "INFO", "Job started", world.index.advance_clock(), "j0", kind=Kind.JOB_STARTED)
    outcome = world.index.apply([row], world.now)
    assert ([e.event_id for e in outcome.events], outcome.unread, outcome.changes) == ([7], set(), [])


@pytest.mark.parametrize("retention", [100_000.0, 30.0])
@pytest.mark.parametrize("settings", [{}, {"max_jobs": 10}, {"max_jobs": 1}, {"retention": 10.0**6}])
def test_a_restart_announces_no_end_of_before_it_whatever_the_limit_and_the_retention_are(settings, retention):
    world = ended(3, 8, retention)
    world.now += 3_600 * SECOND
    world.settle()
    world.restart(**settings)
    world.changes.clear()
    world.load()
    world.settle()
    assert (world.events, world.later) == ([], set())
    assert len(world.index.published) == (min(8, world.max_jobs) if world.retention > 3_600 else 0)


@pytest.mark.parametrize("settings", [{}, {"max_jobs": 10_000}])
def test_a_restart_after_thousands_of_ends_in_a_minute_announces_none_of_them_again(settings):
    world = Evicting(50)
    world.index.loading = False
    names = [f"j{n}" for n in range(3_000)]
    for name in names:
        world.start(name)
        world.now += 10_000
        world.end(name)
    world.read(*names)
    for _ in range(10):
        world.now += SECOND
        world.expire()
    assert len(world.events) == 2 * len(names)
    world.forget()
    world.restart(**settings)
    world.load()
    world.read_recent()
    world.settle()
    assert (world.events, world.later) == ([], set())


def exported(exports: Exports, world: Evicting) -> list[str]:
    """The jobs that are exported after the changes of `world`."""
    for change in world.changes:
        exports.on_change(change, world.now, 0.0)
    world.changes.clear()
    found = []
    while (job_id := exports.pop_due(1.0)) is not None:
        exports.finished(job_id)
        found.append(job_id)
    return found


def test_a_number_of_removed_jobs_is_remembered_and_a_checkpoint_has_the_newest():
    removed = RemovedJobs()
    for n in range(100_001):
        removed.add(f"j{n}", None, n, n)
    assert ("j0" in removed, "j1" in removed) == (False, True)
    assert removed.state(0) == (tuple((f"j{n}", n) for n in range(99_001, 100_001)), 99_000)


@pytest.mark.parametrize("retention", [100_000.0, 30.0])
@pytest.mark.parametrize("settings", [{"max_jobs": 10}, {"retention": 10.0**6}, {"max_jobs": 10, "retention": 10.0**6}])
def test_jobs_that_a_raised_limit_or_retention_loads_again_are_not_exported_again(retention, settings):
    world, exports = Evicting(3, retention), Exports(0.0, 0.0)
    exports.begin(BASE - SECOND)
    world.index.loading = False
    for n in range(8):
        world.start(f"j{n}")
        world.read(f"j{n}")
        world.now += SECOND
        world.end(f"j{n}")
        world.read(f"j{n}")
        assert exported(exports, world) == [f"j{n}"]
        world.expire()
    world.now += 3_600 * SECOND
    world.settle()
    assert exported(exports, world) == []
    exports.mark_all()
    saved = exports.changed()
    exports = Exports(0.0, 0.0, PersistedExports(saved.since, {i: k for i, k in saved.jobs.items() if k}))
    world.restart(**settings)
    world.load()
    assert exported(exports, world) == []
    world.settle()
    assert exported(exports, world) == []
    world.start("next")
    world.read("next")
    world.end("next")
    world.read("next")
    assert exported(exports, world) == ["next"]


def test_a_restart_announces_what_happened_meanwhile_and_jobs_that_were_committed_late():
    world = ended(3, 8)
    world.records["late"] = JobRecord("late", status="completed", started_at=world.now, completed_at=world.now)
    world.now += 3_600 * SECOND
    world.records["meanwhile"] = JobRecord("meanwhile", status="completed", started_at=BASE, completed_at=world.now)
    world.restart()
    world.load()
    world.settle()
    announced = {(e.kind, e.job_id) for e in world.events}
    assert announced >= {(Kind.JOB_COMPLETED, "late"), (Kind.JOB_COMPLETED, "meanwhile")}
    assert {job_id for _, job_id in announced} == {"late", "meanwhile"}


@pytest.mark.parametrize("read_early", [False, True])
@pytest.mark.parametrize("completed_at", [None, BASE + SECOND])
def test_a_restart_announces_the_end_of_a_job_that_ran_before_it_however_long_ago_it_ended(completed_at, read_early):
    world = Evicting(3, retention=100.0)
    world.index.loading = False
    world.start("j")
    world.read("j")
    world.settle()
    world.forget()
    world.records["j"] = JobRecord("j", status="failed", started_at=BASE, completed_at=completed_at)
    world.now += 3_600 * SECOND
    ended, world.read_early = world.now, ["j"] if read_early else []
    world.restart()
    world.load()
    world.read("j")
    world.now += 10 * SECOND
    world.expire()
    assert [(e.kind, e.job_id) for e in world.events] == [(Kind.JOB_FAILED, "j")]
    world.restart()
    world.now = ended + 99 * SECOND
    world.expire()
    assert world.index.known.has_ended("j")
    world.now += SECOND
    world.expire()
    assert (world.changes[-1].job_id, world.changes[-1].reason) == ("j", "retention")


def test_an_old_job_that_a_client_asks_for_is_no_event_even_if_nobody_remembers_it():
    world = ended(3, 8)
    began = BASE - 900 * SECOND
    world.records["old"] = JobRecord("old", status="failed", started_at=began, completed_at=began + SECOND)
    world.restart()
    world.load()
    world.settle()
    for _ in range(2):
        world.changes.clear()
        world.read("old")
        world.settle()
        assert (world.events, world.later) == ([], set())
    assert quiet(world)


def test_legacy_jobs_beyond_the_limit_cause_no_event_however_often_they_are_read():
    count, room = 12_000, 50
    rows = [
        LegacyRecord(n, f"l{n}", "completed", created_at=BASE + n * SECOND, completed_at=BASE + (n + 1) * SECOND)
        for n in range(count)
    ]
    now, index = BASE + 86_000 * SECOND, Index(max_jobs=room, retention=86_400.0)
    index.apply([], now)
    for first in (True, False, False):
        outcomes = [index.apply_legacy(rows, [], now)]
        asked = [row.job_id for row in rows if index.known.is_undecided(row)]
        index.loading = False
        outcomes.append(index.decide_legacy([], asked, now))
        outcomes += [index.expire(now) for _ in range(count // 500)]
        assert [outcome.events for outcome in outcomes if outcome.events] == []
        assert sum(len(outcome.changes) for outcome in outcomes) == (2 * count - room if first else 0)
        assert {shown.job_id for shown in index.published.all()} == {f"l{n}" for n in range(count - room, count)}
    assert len(index.known.legacy_rows()) == room


ACTIONS = ("start", "end", "end", "read", "expire", "settle", "wait", "restart", "rerun")


@given(st.integers(1, 4), st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 5)), max_size=40))
def test_each_transition_is_announced_once_however_jobs_leave_and_are_read_again(max_jobs, actions):
    """Every log row is lost, so each transition has to be announced from the tables, and never twice."""
    world = Evicting(max_jobs)
    world.index.loading = False
    happened: set[tuple[str, Kind, int]] = set()
    for action, n in actions:
        world.now += SECOND
        names = list(world.records)
        job_id = names[n % len(names)] if names else None
        running = job_id is not None and world.records[job_id].status == "running"
        if action == "start":
            job_id = f"j{len(names)}"
            world.start(job_id)
            happened.add((job_id, Kind.JOB_STARTED, world.now))
        elif action == "end" and job_id is not None and running:
            world.end(job_id)
            happened.add((job_id, Kind.JOB_COMPLETED, world.now))
        elif action == "rerun" and job_id is not None and not running:
            world.settle()
            world.start(job_id)
            if not world.index.known.is_in_memory(job_id):  # JobLog's row alone says that a job in memory began again.
                happened.add((job_id, Kind.JOB_STARTED, world.now))
        elif action == "read" and names:
            world.read(*names)
        elif action == "expire":
            world.expire()
        elif action == "settle":
            world.settle()
        elif action == "wait":
            world.now += 90 * SECOND
        elif action == "restart":
            world.restart()
            world.load()
        world.read_recent()
        world.read(*(i for i in names if world.records[i].status == "running"))
    world.settle()
    announced = [(e.job_id, e.kind, e.at) for e in world.events]
    assert len(announced) == len(set(announced))
    assert set(announced) == happened
    world.read(*world.records)
    world.settle()
    world.forget()
    world.read(*world.records)
    world.settle()
    assert quiet(world)
