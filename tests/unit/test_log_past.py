"""The log's past, read beside what is new: it completes documents, announces nothing, and overrides nothing."""

import random

import pytest

from correlator.jobs.index import Index
from correlator.model.facts import Entry, Kind, Reading
from correlator.model.persisted import IndexState
from correlator.model.rows import JobRecord, StepRecord
from tests.support.documents import document_of
from tests.support.pipeline_harness import PipelineHarness

SECOND = 1_000_000
NOW = 1_758_553_933_000_000
HOUR = 3600 * SECOND


def reading(index, job_id="j", status="running", *steps, **columns):
    record = JobRecord(job_id, status=status, **{"started_at": NOW - HOUR} | columns)
    return Reading(job_id, index.advance_clock(), record, steps)


def entry(observed_at, event_id=1, kind=None, *, job_id="j", at=NOW - HOUR, level="INFO", **more):
    return Entry(event_id, at, level, f"row {event_id}", observed_at, job_id, kind=kind, **more)


def first_start(*readings):
    """An index that knows what the tables said, and has the past before it."""
    index = Index()
    index.published.begin_past(NOW)
    for made in readings or (reading(index),):
        index.apply([made], NOW)
    index.loading = False
    return index


def shown_past(index, limit=100):
    outcomes = []
    while index.published.past_unread is not None:
        outcomes.append(index.show_past(limit, NOW))
    return outcomes


def document(index, job_id="j"):
    return document_of(index.published.get(job_id))


def test_of_rows_that_belong_to_no_known_job_those_of_the_past_are_not_streamed():
    index = first_start()
    index.apply_past([entry(0, 1, job_id=None, step_id=7)], NOW)
    index.apply([entry(1, 2, job_id=None, step_id=7)], NOW)
    assert [row.entry.event_id for row in index.expire(NOW + HOUR).attributed] == [2]


def test_counts_are_incomplete_until_the_past_is_shown_by_one_change_a_job():
    index = first_start()
    assert document(index)["counts_complete"] is False
    for number in range(1, 6):
        out = index.apply_past([entry(0, number, level="WARN", at=NOW - HOUR + number)], NOW)
        assert (out.changes, out.attributed, out.events) == ([], [], [])
    changes = [c for out in shown_past(index) for c in out.changes]
    assert len(changes) == 1
    shown = document(index)
    assert (shown["warnings"], shown["last_message"]["text"], "counts_complete" in shown) == (5, "row 5", False)


@pytest.mark.parametrize("status", ["running", "failed"])
def test_a_row_of_the_past_announces_nothing_and_changes_no_status(status):
    index = first_start(reading(Index(), status=status, completed_at=NOW - 60 * SECOND))
    kinds = [Kind.JOB_STARTED, Kind.JOB_COMPLETED, Kind.STEP_FAILED]
    rows = [entry(0, n, kind, step_id=7 if kind.of_step else None) for n, kind in enumerate(kinds)]
    outcomes = [index.apply_past(rows, NOW), *shown_past(index)]
    assert [e for out in outcomes for e in out.events] == []
    assert (document(index)["status"], document(index)["steps"]) == (status, {})
    assert index.expire(NOW + HOUR // 60).events == [], "nor does the table, later"


def test_a_row_of_the_past_that_waits_for_its_step_is_not_announced_when_the_step_is_read():
    index = first_start()
    out = index.apply_past([entry(0, 3, Kind.STEP_STARTED, job_id=None, step_id=7)], NOW)
    assert out.unread_steps == {7}
    step = StepRecord(7, "one", 1, "running", NOW - HOUR)
    out = index.apply([reading(index, "j", "running", step)], NOW)
    assert [(e.kind, e.event_id) for e in out.events] == []
    assert out.attributed == []


def test_a_new_row_that_waits_for_its_step_is_announced_when_a_row_of_the_past_names_the_step():
    index = first_start(Reading("j", 1, JobRecord("j", status="running", started_at=NOW - HOUR), None))
    index.apply_past([entry(0, 3, Kind.STEP_STARTED, step_id=7)], NOW)
    assert index.apply([entry(2, 4, Kind.STEP_COMPLETED, job_id=None, step_id=7, at=NOW)], NOW).events == []
    events = [(e.kind, e.event_id, e.job_id) for out in shown_past(index) for e in out.events]
    assert events == [(Kind.STEP_COMPLETED, 4, "j")]


def test_a_job_is_not_stalled_before_its_last_rows_have_been_read():
    index = first_start()
    assert index.expire(NOW + SECOND).events == []
    assert not document(index)["stalled"]
    index.apply_past([entry(0, 5, at=NOW - SECOND)], NOW)
    shown_past(index)
    assert not document(index)["stalled"]
    late = index.expire(NOW + HOUR)
    assert [e.kind for e in late.events] == [Kind.JOB_STALLED]


def test_the_past_is_shown_in_parts_of_a_bounded_number_of_jobs():
    made = Index()
    index = first_start(*(reading(made, f"j{n}") for n in range(1000)))
    outcomes = shown_past(index, limit=100)
    assert [len(out.changes) for out in outcomes] == [100] * 10 + [0]


def test_past_and_news_in_any_order_end_in_the_same_document():
    expected = None
    for seed in range(20):
        chance = random.Random(seed)
        index = first_start()
        past = [entry(0, n, level=chance.choice(["WARN"]), at=NOW - HOUR + n) for n in range(20)]
        news = [entry(index.advance_clock(), 100 + n, level="ERROR", at=NOW + n) for n in range(20)]
        todo = [(past, index.apply_past)] * 20 + [(news, index.apply)] * 20
        chance.shuffle(todo)
        for rows, apply in todo:
            apply([rows.pop(0)], NOW)
        shown_past(index)
        found = {k: v for k, v in document(index).items() if k != "rev"}
        expected = expected or found
        assert found == expected
    assert expected is not None
    assert (expected["warnings"], expected["errors"]) == (20, 20)


def test_rows_that_only_name_their_step_complete_a_job_also_after_the_past_was_shown():
    index = first_start()
    row = entry(0, 1, job_id=None, step_id=7, level="WARN")
    assert index.apply_past([row], NOW).unread_steps == {7}
    shown_past(index)
    index.apply([reading(index, "j", "running", StepRecord(7, "s", 1, "running", NOW - HOUR))], NOW)
    assert (document(index)["warnings"], "counts_complete" in document(index)) == (1, False)
    assert index.published.get("j").stalled, "nothing is waited for any more"


@pytest.mark.parametrize("start", ["first", "restart"])
async def test_readiness_says_that_the_past_is_unread_before_the_source_has_begun_to_read_it(start):
    found = PipelineHarness(loaded=False)
    status = found.pipeline.status
    if start == "first":
        status.past_begins()
        status.loaded()
    else:
        await found.pipeline.restore((), (), IndexState(), 1.0, past=True)
    status.loading = False  # it is ready
    assert status.describe_database()["loading"] == {"done": 0, "total": 0}
    status.past_progress(5, 10)
    assert status.describe_database()["loading"] == {"done": 5, "total": 10}
    assert not found.pipeline.show_past()
    assert "loading" not in status.describe_database()
