"""Transitions that only the tables tell: owed for a grace, paid off by their row, told once."""

from msgspec.structs import replace

from correlator.jobs import transitions
from correlator.jobs.model import Event, Job, JobEvent, Kind, Status, StepEvents, StepRecord, View
from correlator.jobs.transitions import GRACE, Transitions, legacy_events

NOW = 1_758_553_933_000_000
RUNNING = View("j", Status.RUNNING, started_at=NOW - 9)
FAILED = replace(RUNNING, status=Status.FAILED, ended_at=NOW - 1, error="boom")
SILENT = Job("j")


def owed(old, new, job=SILENT, *heard, now=NOW):
    found = Transitions()
    found.changed(old, new, job, now)
    for step_id, kind in heard:
        found.heard("j", step_id, kind)
    return found


def steps(*made):
    return replace(RUNNING, steps=made)


def test_an_end_of_the_tables_alone_is_told_after_the_grace_and_once():
    found = owed(RUNNING, FAILED)
    assert found.due(NOW + GRACE - 1) == []
    assert found.due(NOW + GRACE) == [Event(Kind.JOB_FAILED, "j", NOW - 1, error="boom")]
    assert found.due(NOW + 9 * GRACE) == []


def test_a_row_that_comes_in_time_pays_it_off():
    assert owed(RUNNING, FAILED, SILENT, (None, Kind.JOB_FAILED)).due(NOW + GRACE) == []


def test_another_row_does_not():
    others = [(None, Kind.JOB_COMPLETED), (1, Kind.STEP_FAILED), (None, Kind.JOB_STARTED)]
    assert len(owed(RUNNING, FAILED, SILENT, *others).due(NOW + GRACE)) == 1


def test_a_transition_that_the_log_has_told_is_not_owed():
    job = Job("j", event=JobEvent(Status.FAILED, NOW, 1, 1))
    assert owed(RUNNING, FAILED, job).due(NOW + GRACE) == []


def test_a_job_first_seen_at_work_began():
    assert owed(None, RUNNING).due(NOW + GRACE) == [Event(Kind.JOB_STARTED, "j", NOW - 9)]
    assert owed(None, RUNNING, Job("j", started_at=NOW)).due(NOW + GRACE) == []
    assert owed(None, replace(RUNNING, status=Status.PENDING)).due(NOW + GRACE) == []


def test_a_pending_job_that_is_at_work_began_and_one_that_ended_began_and_ended():
    pending = replace(RUNNING, status=Status.PENDING)
    assert [e.kind for e in owed(pending, RUNNING).due(NOW + GRACE)] == [Kind.JOB_STARTED]
    assert [e.kind for e in owed(None, FAILED).due(NOW + GRACE)] == [Kind.JOB_STARTED, Kind.JOB_FAILED]


def test_steps_begin_and_end():
    one = StepRecord(1, "s", 1, "running", NOW - 5)
    done = replace(one, status="completed", completed_at=NOW - 2)
    assert owed(RUNNING, steps(one)).due(NOW + GRACE) == [Event(Kind.STEP_STARTED, "j", NOW - 5, None, 1, "s")]
    assert owed(steps(one), steps(done)).due(NOW + GRACE) == [Event(Kind.STEP_COMPLETED, "j", NOW - 2, None, 1, "s")]
    assert [e.kind for e in owed(RUNNING, steps(done)).due(NOW + GRACE)] == [Kind.STEP_STARTED, Kind.STEP_COMPLETED]


def test_steps_that_the_log_has_told_are_not_owed():
    one = StepRecord(1, "s", 1, "failed", NOW - 5, NOW - 2)
    told = StepEvents(1, JobEvent(Status.FAILED, NOW, 1, 1), NOW - 5)
    assert owed(RUNNING, steps(one), Job("j", steps={1: told})).due(NOW + GRACE) == []


def test_a_document_that_changes_without_a_transition_owes_nothing():
    named = steps(StepRecord(1, "s", 1))
    assert owed(named, replace(steps(StepRecord(1, "t", 1)), owner="x")).due(NOW + GRACE) == []


def test_what_is_owed_keeps_its_first_time():
    found = owed(RUNNING, FAILED)
    found.changed(RUNNING, FAILED, SILENT, NOW + GRACE - 1)
    assert len(found.due(NOW + GRACE)) == 1


def test_what_is_owed_is_bounded_and_the_oldest_goes_first(monkeypatch):
    monkeypatch.setattr(transitions, "MAX_OWED", 2)
    found = Transitions()
    for name in "abc":
        found.changed(replace(RUNNING, job_id=name), replace(FAILED, job_id=name), Job(name), NOW)
    assert [e.job_id for e in found.due(NOW + GRACE)] == ["b", "c"]


def test_a_legacy_job_has_no_rows_to_wait_for():
    assert [e.kind for e in legacy_events(RUNNING, FAILED)] == [Kind.JOB_FAILED]
