"""Transitions that only the tables show: pending for a grace, completed by their row, published once."""

from msgspec.structs import replace

from correlator.jobs.index import Index
from correlator.jobs.missing_rows import GRACE, MAX_DUE, Transitions
from correlator.model.facts import Job, Kind, Status
from correlator.model.published import Event, JobView
from correlator.model.rows import StepRecord
from tests.support.forecast_index import kinds, read, step
from tests.support.forecasts import BASE, SECOND

NOW = 1_758_553_933_000_000
RUNNING = JobView("j", Status.RUNNING, started_at=NOW - 9)
FAILED = replace(RUNNING, status=Status.FAILED, ended_at=NOW - 1, error="boom")
SILENT = Job("j")


def pending_after(old, new, job=SILENT, *logged, now=NOW):
    found = Transitions()
    found.changed(old, new, job, now, -1)
    for step_id, kind in logged:
        found.row_arrived("j", step_id, kind)
    return found


def steps(*made):
    return replace(RUNNING, steps=made)


def test_an_end_of_the_tables_alone_is_published_once_after_the_grace():
    found = pending_after(RUNNING, FAILED)
    assert found.due(NOW + GRACE - 1) == []
    assert found.due(NOW + GRACE) == [Event(Kind.JOB_FAILED, "j", NOW - 1, error="boom")]
    assert found.due(NOW + 9 * GRACE) == []


def test_a_job_first_seen_at_work_began():
    assert pending_after(None, RUNNING).due(NOW + GRACE) == [Event(Kind.JOB_STARTED, "j", NOW - 9)]
    assert pending_after(None, RUNNING, Job("j", started_at=NOW)).due(NOW + GRACE) == []
    assert pending_after(None, replace(RUNNING, status=Status.PENDING)).due(NOW + GRACE) == []


def test_steps_begin_and_end():
    one = StepRecord(1, "s", 1, "running", NOW - 5)
    done = replace(one, status="completed", completed_at=NOW - 2)
    assert pending_after(RUNNING, steps(one)).due(NOW + GRACE) == [Event(Kind.STEP_STARTED, "j", NOW - 5, None, 1, "s")]
    assert pending_after(steps(one), steps(done)).due(NOW + GRACE) == [
        Event(Kind.STEP_COMPLETED, "j", NOW - 2, None, 1, "s")
    ]
    assert [e.kind for e in pending_after(RUNNING, steps(done)).due(NOW + GRACE)] == [
        Kind.STEP_STARTED,
        Kind.STEP_COMPLETED,
    ]


def test_pending_transitions_are_bounded_and_the_oldest_is_dropped_first():
    found = Transitions(most=2)
    dropped = [
        found.changed(replace(RUNNING, job_id=name), replace(FAILED, job_id=name), Job(name), NOW, -1) for name in "abc"
    ]
    assert [e.job_id for e in found.due(NOW + GRACE)] == ["b", "c"]
    assert dropped == [0, 0, 1]


def test_many_that_fall_due_together_are_announced_in_parts():
    found, names = Transitions(), [f"job-{n}" for n in range(MAX_DUE + 1)]
    for name in names:
        found.changed(replace(RUNNING, job_id=name), replace(FAILED, job_id=name), Job(name), NOW, -1)
    assert [[e.job_id for e in found.due(NOW + GRACE)] for _ in range(3)] == [names[:-1], names[-1:], []]


def test_of_the_transitions_that_only_the_tables_show_the_end_of_the_job_is_the_last():
    index = Index()
    index.loading = False
    read(index, 1, step(1, "copy", 0))
    read(index, 9, step(1, "copy", 0, 8), step(2, "attach", 8, 9), status="completed", completed_at=BASE + 9 * SECOND)
    assert kinds([index.expire(BASE + 60 * SECOND)]) == [
        Kind.JOB_STARTED,
        Kind.STEP_STARTED,
        Kind.STEP_COMPLETED,
        Kind.STEP_STARTED,
        Kind.STEP_COMPLETED,
        Kind.JOB_COMPLETED,
    ]
