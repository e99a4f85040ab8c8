"""Jobs that the tables lose for a while: they go on where they were, and what nobody remembers is read again."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from correlator.jobs.away import AWAY_FOR, MAX_BYTES
from correlator.jobs.exports import Exports
from correlator.jobs.index import Index
from correlator.jobs.missing_rows import GRACE
from correlator.model.facts import Entry, Kind, Reading
from correlator.model.persisted import IndexState, PersistedJob
from correlator.model.published import JobView, Outcome
from correlator.model.rows import JobRecord, LegacyRecord, StepRecord
from tests.support.saved_index import stored
from tests.support.there import there

SECOND = 1_000_000
BASE = 1_758_550_000 * SECOND
STEP = StepRecord(7, "copy", 1, "running", BASE)


class World:
    """An index, and what it has published. `ids` come from the log."""

    def __init__(self, *, max_away: int = MAX_BYTES, **settings: float) -> None:
        self.settings = settings
        self.max_away = max_away
        self.index = self._made()
        self.now = BASE + 60 * SECOND
        self.event_id = 0
        self.outcomes: list[Outcome] = []

    def _made(self) -> Index:
        index = Index(stalled_after=lambda: self.settings.get("stalled_after", 1e9), max_away=self.max_away)
        index.loading = False
        return index

    def read(self, job_id: str = "j", status: str | None = "running", **columns: Any) -> Outcome:
        """The tables have the job like that; None: they do not have it."""
        record = None
        if status is not None:
            columns = {"external_job_id": "gui", **columns}
            record = JobRecord(job_id, status=status, started_at=BASE, **columns)
        steps = (STEP,) if record is not None and job_id == "j" else ()
        return self._note(self.index.apply([Reading(job_id, self.index.advance_clock(), record, steps)], self.now))

    def log(self, message: str = "line", kind: Kind | None = None, job_id: str | None = "j", **more: Any) -> Outcome:
        self.event_id += 1
        made: dict[str, Any] = {"level": "WARN", **more}
        entry = Entry(
            self.event_id,
            self.now,
            message=message,
            observed_at=self.index.advance_clock(),
            job_id=job_id,
            kind=kind,
            **made,
        )
        return self._note(self.index.apply([entry], self.now))

    def passes(self, seconds: float) -> Outcome:
        self.now += int(seconds * SECOND)
        return self._note(self.index.expire(self.now))

    def restarts(self) -> None:
        jobs, legacy = stored(self.index)
        state = msgspec.msgpack.decode(msgspec.msgpack.encode(self.index.state()), type=IndexState)
        self.index = self._made()
        for outcome in self.index.restore(jobs, legacy, state, self.now):
            self._note(outcome)

    def _note(self, outcome: Outcome) -> Outcome:
        self.outcomes.append(outcome)
        return outcome

    @property
    def events(self) -> list[Kind]:
        return [event.kind for outcome in self.outcomes for event in outcome.events]

    @property
    def lines(self) -> list[str]:
        return [row.entry.message for outcome in self.outcomes for row in outcome.attributed]

    def view(self, job_id: str = "j") -> JobView:
        return there(self.index.published.get(job_id)).view


@pytest.fixture
def world() -> World:
    """A job runs, with a warning."""
    world = World()
    world.read()
    world.log("Job started", Kind.JOB_STARTED, level="INFO")
    world.log("slow")
    world.passes(10)
    return world


@pytest.mark.parametrize("restarts", [False, True])
def test_a_job_that_comes_back_goes_on_as_if_it_had_never_gone(world, restarts):
    before = there(world.index.published.get("j"))
    assert world.read(status=None).changes[0].reason == "gone"
    if restarts:
        world.passes(1)
        world.restarts()
    world.passes(4)
    (change,) = world.read().changes
    after = there(change.new)
    assert (after.view, after.updated_at, after.alive_at) == (before.view, before.updated_at, before.alive_at)
    assert after.view.warnings == 1
    world.passes(10)
    assert world.events == [Kind.JOB_STARTED, Kind.STEP_STARTED], "nothing is announced again"
    assert all(outcome.log_from is None for outcome in world.outcomes)


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("by", ["job", "step", "external ID"])
def test_rows_of_a_job_that_is_gone_count_and_their_lines_come_with_its_return(world, by, restarts):
    of_row: dict[str, dict[str, Any]] = {"job": {}, "step": {"step_id": 7}, "external ID": {"external_ids": ("gui",)}}
    names = of_row[by]
    world.read(status=None)
    if restarts:
        world.restarts()
    world.log("while it is away", job_id="j" if by == "job" else None, **names)
    assert "while it is away" not in world.lines
    assert world.read().attributed[0].entry.message == "while it is away" if not restarts else world.read()
    assert world.view().warnings == 2
    assert there(world.view().last).text == "while it is away"
    if not restarts:
        assert world.lines.count("while it is away") == 1


@pytest.mark.parametrize("logged", [False, True])
def test_what_happened_to_a_job_while_it_was_gone_is_announced_once(world, logged):
    world.read(status=None)
    world.passes(3)
    if logged:
        world.log("Job failed", Kind.JOB_FAILED, level="ERROR")
    ended = world.now // SECOND * SECOND
    for _ in range(2):
        world.read(status="failed", completed_at=ended)
        world.passes(10)
    assert world.events.count(Kind.JOB_FAILED) == 1
    assert world.view().errors == logged


def test_a_job_that_had_ended_is_neither_announced_nor_exported_again(world):
    exports = Exports(0.0, 0.0)
    exports.begin(BASE)
    exported = []
    for status in ("failed", None, "failed"):
        for change in world.read(status=status, **({"completed_at": world.now} if status else {})).changes:
            exports.on_change(change, world.now, 0.0)
        while (job_id := exports.pop_due(1.0)) is not None:
            exports.finished(job_id)
            exported.append(job_id)
    world.passes(GRACE / SECOND)
    assert world.events.count(Kind.JOB_FAILED) == 1
    assert exported == ["j"]
    assert world.index.known.has_ended("j")


def test_a_job_that_was_stalled_is_not_announced_as_stalled_again():
    world = World(stalled_after=100)
    world.read()
    world.passes(101)
    assert world.events.count(Kind.JOB_STALLED) == 1
    world.read(status=None)
    world.passes(5)
    world.read()
    assert there(world.index.published.get("j")).stalled
    world.passes(200)
    world.log()
    of_silence = [kind for kind in world.events if kind in (Kind.JOB_STALLED, Kind.JOB_RECOVERED)]
    assert of_silence == [Kind.JOB_STALLED, Kind.JOB_RECOVERED]


def test_a_job_that_is_not_in_the_tables_yet_keeps_its_rows_and_lines():
    """As where the log is of a server and the tables are of its replica, which is behind."""
    world = World()
    world.log("Job started", Kind.JOB_STARTED)
    world.read(status=None)
    world.log("early")
    assert (world.lines, len(world.index.published)) == ([], 0)
    world.read()
    assert (world.view().warnings, world.lines) == (2, ["Job started", "early"])
    world.passes(10)
    assert world.events.count(Kind.JOB_STARTED) == 1


def test_a_job_that_stays_away_is_forgotten_and_if_it_comes_back_its_log_is_read_again(world):
    world.read(status=None)
    world.log("in vain")
    assert world.index.known.away() == ["j"]
    world.passes(AWAY_FOR / SECOND)
    assert (world.index.known.away(), world.index.persisted("j")) == ([], None)
    assert world.lines[-1] == "in vain", "nobody waits for it any more"
    assert world.index.known.is_new("j"), "it is found where jobs are listed"
    assert world.read().log_from == BASE
    assert world.view().warnings == 0
    again = [Entry(n, BASE, "WARN", "of before", 0, "j") for n in (1, 2)]
    unknown = Entry(3, BASE, "WARN", "of before", 0, "nobody")
    for _ in range(2):
        outcome = world.index.apply_again([*again, unknown], world.now)
        assert (outcome.events, outcome.attributed, outcome.unread) == ([], [], set())
    assert world.view().warnings == 2


def test_jobs_that_are_gone_are_bounded_in_bytes_and_the_oldest_are_forgotten_first():
    world = World(max_away=3_000)
    names = [f"job-{n}" for n in range(9)]
    for name in names:
        world.read(name, metadata=f'{{"vm_name": "{"v" * 800}"}}')
    for name in names:
        world.read(name, status=None)
    kept = world.index.known.away()
    assert 0 < len(kept) < 4
    assert kept == names[-len(kept) :]
    world.read(names[0])
    assert world.outcomes[-1].log_from == BASE


def test_steps_with_the_ids_of_one_that_is_gone_lead_to_the_job_that_has_them_now(world):
    world.read(status=None)
    other = Reading("k", world.index.advance_clock(), JobRecord("k", status="running", started_at=BASE), (STEP,))
    world.index.apply([other], world.now)
    world.log("of the step", job_id=None, step_id=7)
    assert world.view("k").warnings == 1
    world.passes(AWAY_FOR / SECOND)
    world.log("of the step", job_id=None, step_id=7)
    assert world.view("k").warnings == 2


def test_a_job_that_comes_back_and_goes_in_one_call_goes_on_with_its_next_return(world):
    world.read()
    world.read(status=None)
    world.passes(1)
    clock = world.index.advance_clock()
    back = Reading("j", clock, JobRecord("j", status="running", started_at=BASE))
    assert world.index.apply([back, Reading("j", world.index.advance_clock())], world.now).changes == []
    outcome = world.read(status="failed", completed_at=BASE - 90_000 * SECOND)  # longer ago than the retention
    assert [there(change.new).view.status for change in outcome.changes] == ["failed"]
    assert outcome.ended == {"j"}


@pytest.mark.parametrize("order", [1, -1])
def test_a_row_is_of_the_newest_job_that_is_away_whichever_went_first(world, order):
    jobs = ["a", "b"]  # They began in the same second.
    for job_id in jobs:
        world.read(job_id, external_job_id="other")
    for job_id in jobs[::order]:
        world.read(job_id, status=None)
    world.log(job_id=None, external_ids=("other",))
    assert [_warnings(world, job_id) for job_id in jobs] == [0, 1]


def test_a_checkpoint_has_the_job_that_is_away_and_not_its_undecided_row(world):
    world.read()
    world.read(status=None)
    world.index.apply_legacy([LegacyRecord(1, "j", "validating", created_at=BASE)], [], world.now)
    world.restarts()
    assert world.index.known.away() == ["j"]


def _warnings(world: World, job_id: str) -> int:
    """The warnings that a checkpoint has of a job that is away."""
    found = world.index.persisted(job_id)
    assert isinstance(found, PersistedJob)
    return len(found.job.warnings)
