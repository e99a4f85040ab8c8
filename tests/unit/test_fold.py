"""The merge is a join: the same facts, in any order and repeated, end in the same job; and which fact holds."""

import random

import pytest
from hypothesis import given, settings
from msgspec.structs import replace

from correlator.jobs import encoding, fold, joblog
from correlator.model.facts import MAX_STEPS, Entry, Job, Kind, Reading, Status
from correlator.model.rows import JobRecord, LegacyRecord, StepRecord
from tests.support.fact_strategies import BASE, facts, shuffled_with_repeats
from tests.support.there import there


def joined(found):
    jobs: dict[str, Job] = {}
    for fact in found:
        jobs[fact.job_id] = fold.fold(jobs.get(fact.job_id) or Job(fact.job_id), fact)
    return jobs


@settings(max_examples=settings().max_examples // 2)
@given(shuffled_with_repeats(facts()))
def test_the_same_facts_in_any_order_and_repeated_end_in_the_same_job(both):
    once, again = map(joined, both)
    assert once == again
    views = {i: fold.view(j) for i, j in once.items()}
    assert views == {i: fold.view(j) for i, j in again.items()}
    for view in views.values():
        assert (view.percent == 100) is (view.status is Status.COMPLETED)
        assert 0 <= view.percent <= 100
        assert view.terminal or view.ended_at is None


def test_counting_stays_a_join_when_it_is_full():
    found = [Entry(i, BASE - i, "WARN", "w", i, "j") for i in range(1, fold.MAX_COUNTED + 5)]
    one = joined(found)["j"]
    for seed in range(2):
        assert joined(random.Random(seed).sample(found, len(found)))["j"].warnings == one.warnings
    assert fold.fold_rows(Job("j"), found).warnings == one.warnings
    assert fold.view(one).warnings == fold.MAX_COUNTED


def test_steps_known_from_the_log_alone_are_bounded():
    steps = range(1, MAX_STEPS + 9)
    found = [Entry(i, BASE, "INFO", "", i, "j", i, kind=Kind.STEP_STARTED) for i in steps]
    assert len(fold.fold_rows(Job("j"), found).steps) == MAX_STEPS


# -- which fact holds: R the reading of time 10, events seen before (9) or after (11) it began


def event(kind, *, observed_at=11, at=BASE, event_id=1, error=None, step_id=None):
    return Entry(event_id, at, "INFO", "", observed_at, "j", step_id, kind=kind, error=error)


def read(status, *steps, **columns):
    return Reading("j", 10, JobRecord("j", status=status, started_at=BASE, **columns), steps)


def seen(*found):
    return fold.view(joined(found)["j"])


@pytest.mark.parametrize(
    ("table", "kind", "observed_at", "shown"),
    [
        # R has ended: it holds, whatever the log says and when
        ("completed", Kind.JOB_FAILED, 11, "completed"),
        ("failed", Kind.JOB_COMPLETED, 11, "failed"),
        ("cancelled", Kind.JOB_COMPLETED, 11, "cancelled"),
        ("completed", Kind.JOB_STARTED, 11, "completed"),
        # E ranks higher and was seen after R's query began
        ("running", Kind.JOB_COMPLETED, 11, "completed"),
        ("running", Kind.JOB_FAILED, 11, "failed"),
        ("running", Kind.JOB_CANCELLED, 11, "cancelled"),
        ("pending", Kind.JOB_STARTED, 11, "running"),
        ("pending", Kind.JOB_FAILED, 11, "failed"),
        (None, Kind.JOB_STARTED, 11, "running"),
        # E was seen before, so that R knew of it
        ("running", Kind.JOB_COMPLETED, 9, "running"),
        ("running", Kind.JOB_COMPLETED, 10, "running"),
        ("pending", Kind.JOB_STARTED, 9, "pending"),
        # the table says nothing: the log holds, whenever it was seen
        (None, Kind.JOB_STARTED, 9, "running"),
        (None, Kind.JOB_COMPLETED, 9, "completed"),
        (None, Kind.JOB_FAILED, 11, "failed"),
        # E ranks no higher
        ("running", Kind.JOB_STARTED, 11, "running"),
        # a word of a later JobLog is work under way
        ("paused", Kind.JOB_STARTED, 9, "running"),
        ("paused", Kind.JOB_FAILED, 11, "failed"),
        ("skipped", Kind.JOB_STARTED, 9, "running"),
    ],
)
def test_the_table_holds_unless_the_log_is_ahead(table, kind, observed_at, shown):
    assert seen(read(table), event(kind, observed_at=observed_at)).status == shown
    assert seen(event(kind, observed_at=observed_at), read(table)).status == shown


@pytest.mark.parametrize(
    ("table", "kind", "observed_at", "shown"),
    [
        ("completed", Kind.STEP_FAILED, 11, "completed"),
        ("skipped", Kind.STEP_COMPLETED, 11, "skipped"),
        ("failed", Kind.STEP_STARTED, 11, "failed"),
        ("running", Kind.STEP_COMPLETED, 11, "completed"),
        ("running", Kind.STEP_SKIPPED, 11, "skipped"),
        ("running", Kind.STEP_FAILED, 9, "running"),
        ("running", Kind.STEP_STARTED, 11, "running"),
    ],
)
def test_steps_follow_the_same_rule(table, kind, observed_at, shown):
    view = seen(read("running", StepRecord(5, "s", 1, table)), event(kind, observed_at=observed_at, step_id=5))
    assert [(s.id, s.name, s.status) for s in view.steps] == [(5, "s", shown)]


@pytest.mark.parametrize(
    ("kind", "event_id", "after", "holds"),
    [
        (Kind.JOB_COMPLETED, 1, 1000, True),
        (Kind.JOB_COMPLETED, 6, 0, True),
        (Kind.JOB_COMPLETED, 4, 0, False),
        (Kind.JOB_STARTED, 9, 1000, False),
    ],
)
def test_of_two_endings_the_later_holds_and_of_one_instant_the_higher_id_and_no_start(kind, event_id, after, holds):
    ending = event(Kind.JOB_FAILED, event_id=5, error="boom")
    other = event(kind, event_id=event_id, at=BASE + after, observed_at=12)
    for order in ((ending, other), (other, ending)):
        view = seen(read("running"), *order)
        expected = (Status.COMPLETED, BASE + after, None) if holds else (Status.FAILED, BASE, "boom")
        assert (view.status, view.ended_at, view.error) == expected


def test_an_event_is_not_compared_by_its_ts_with_the_tables_whole_seconds():
    view = seen(read("completed", completed_at=BASE), event(Kind.JOB_FAILED, at=BASE + 900_000))
    assert (view.status, view.ended_at) == (Status.COMPLETED, BASE)


def test_the_error_is_the_events_until_the_tables_is_read():
    failed = event(Kind.JOB_FAILED, error="logged")
    assert seen(read("running"), failed).error == "logged"
    assert seen(read("failed", error_message="read"), failed).error == "read"


def test_the_end_of_a_cancelled_job_is_when_it_was_cancelled():
    assert seen(read("cancelled", canceled_at=BASE + 7)).ended_at == BASE + 7


def test_steps_stay_while_their_table_cannot_be_read_and_newer_rows_of_the_log_apply_to_them():
    known = Reading("j", 3, JobRecord("j", status="running"), (StepRecord(5, "s", 1), StepRecord(6, "t", 2)))
    done = Entry(9, BASE, "INFO", "Step completed", 4, "j", step_id=5, kind=Kind.STEP_COMPLETED)
    without = Reading("j", 7, JobRecord("j", status="completed", completed_at=BASE))
    view = seen(known, done, without)
    assert [(s.id, s.name, s.status) for s in view.steps] == [(5, "s", "completed"), (6, "t", "running")]
    assert view.status is Status.COMPLETED
    again = Reading(
        "j", 8, JobRecord("j", status="completed", completed_at=BASE), (StepRecord(6, "t", 2, "completed"),)
    )
    assert [(s.id, s.status) for s in seen(known, done, without, again).steps] == [(6, "completed")]


def test_a_reading_without_steps_is_no_news_by_itself():
    record = JobRecord("j", status="completed")
    job = joined([Reading("j", 3, record, (StepRecord(5, "s", 1),))])["j"]
    assert not fold.is_news(job, Reading("j", 4, record))
    assert fold.is_news(job, Reading("j", 4, record, ()))


def test_a_step_of_the_log_alone_is_published_only_if_logged_after_the_reading():
    late, early = event(Kind.STEP_STARTED, step_id=5), event(Kind.STEP_STARTED, step_id=6, observed_at=9)
    assert [s.id for s in seen(read("running"), late, early).steps] == [5]


def test_a_step_that_only_the_log_has_comes_last_until_the_table_has_its_place():
    started = event(Kind.STEP_STARTED, step_id=5)
    unknown = seen(read("running", StepRecord(7, "b", 2), StepRecord(8, "a", 1)), started)
    assert [(s.id, s.seq) for s in unknown.steps] == [(8, 1), (7, 2), (5, 0)]
    assert (
        encoding.current_step(seen(read("running", StepRecord(7, "b", 2)), replace(started, step_name="new"))) == "new"
    )


def test_reported_progress_holds_from_wherever_it_was_seen_last():
    reported = Entry(1, BASE, "DEBUG", "", 11, "j", percent=40)
    early = Entry(2, BASE, "DEBUG", "", 9, "j", percent=40)
    steps = StepRecord(1, "s", 1, "completed")
    shown = [seen(read("running", steps, percent_complete=7), r) for r in (reported, early)]
    assert [(v.percent, v.basis) for v in shown] == [(40.0, "reported"), (7.0, "reported")]
    alone = seen(read("running", steps, StepRecord(2, "t", 2)))
    assert (alone.percent, alone.basis) == (50.0, "steps")


def test_late_rows_of_the_log_do_not_take_back_the_percent_of_a_job_that_has_ended():
    late = Entry(1, BASE, "DEBUG", "", 11, "j", percent=50)
    assert seen(read("failed", percent_complete=75), late).percent == 75.0
    assert seen(read("failed", percent_complete=100), late).percent == 99.0
    assert seen(read("failed"), late).percent == 50.0, "a table without that column"


@pytest.mark.parametrize(
    ("word", "status", "percent"),
    [
        ("pending", "pending", 0),
        ("validating", "running", 10),
        ("snapshotting", "running", 25),
        ("creating_vm", "running", 50),
        ("switching_volume", "running", 75),
        ("powering_on", "running", 90),
        ("completed", "completed", 100),
        ("cleanup", "completed", 100),
        ("failed", "failed", 0),
        ("reverting", "running", 50),
        ("new word", "running", 50),
    ],
)
def test_the_legacy_tracker_says_what_the_appliance_reports(word, status, percent):
    view = fold.legacy_view(LegacyRecord(1, "ext", word, job_type="live", updated_at=BASE, source_vm_name="vm"))
    assert (view.status, view.percent, view.basis, view.source) == (status, percent, "legacy", "legacy")
    assert (there(joblog.metadata_object(view.metadata))["legacy_status"], fold.vm_name(view)) == (word, "vm")
    assert view.ended_at == (BASE if view.terminal else None)
