"""The event that a job failed waits for the tables, which say why: for some seconds at the most, in the job's order."""

from __future__ import annotations

from typing import Any

import pytest

from correlator.jobs import explained
from correlator.jobs.index import Index
from correlator.model.facts import Entry, Kind, Reading
from correlator.model.published import Outcome
from correlator.model.rows import JobRecord
from tests.support.saved_index import stored

SECOND = 1_000_000
NOW = 1_758_550_000 * SECOND
ERROR = "no space left on device"


def running(*names: str) -> Index:
    index = Index()
    index.loading = False
    index.apply([read(index, name, "running") for name in names], NOW)
    return index


def read(index: Index, name: str, status: str | None) -> Reading:
    """What the tables say now. `status` None: they do not have the job."""
    error, ended = (ERROR, NOW) if status == "failed" else (None, None)
    record = JobRecord(name, status, error_message=error, started_at=NOW - 9, completed_at=ended) if status else None
    return Reading(name, index.advance_clock(), record, () if status else None)


def row(kind: Kind, name: str, event_id: int, **more: Any) -> Entry:
    return Entry(event_id, NOW, "INFO", "text", 1, name, kind=kind, **more)


def said(outcome: Outcome) -> list[tuple[str, int, str | None]]:
    """The events of rows: their job, their row, and the reason."""
    return [
        (e.job_id, e.event_id, e.failure.text if e.failure is not None else None)
        for e in outcome.events
        if e.event_id is not None
    ]


def test_the_event_comes_with_the_reading_that_says_why():
    index = running("a")
    assert said(index.apply([row(Kind.JOB_FAILED, "a", 1)], NOW)) == []
    assert said(index.expire(NOW + SECOND)) == []
    assert said(index.apply([read(index, "a", "failed")], NOW + 2 * SECOND)) == [("a", 1, ERROR)]


def test_the_event_comes_at_once_if_the_tables_have_said_so_before():
    index = running("a")
    index.apply([read(index, "a", "failed")], NOW)
    assert said(index.apply([row(Kind.JOB_FAILED, "a", 1)], NOW)) == [("a", 1, ERROR)]


def test_the_event_comes_without_a_reason_after_some_seconds():
    index = running("a")
    index.apply([row(Kind.JOB_FAILED, "a", 1)], NOW)
    assert said(index.expire(NOW + explained.WITHIN - 1)) == []
    assert said(index.expire(NOW + explained.WITHIN)) == [("a", 1, None)]


def test_a_clock_that_was_set_back_ends_the_wait():
    index = running("a")
    index.apply([row(Kind.JOB_FAILED, "a", 1)], NOW)
    assert said(index.expire(NOW - 3_600 * SECOND)) == [("a", 1, None)]


def test_events_of_a_job_keep_their_order_and_those_of_other_jobs_do_not_wait():
    index = running("a", "b")
    index.apply([row(Kind.JOB_FAILED, "a", 1)], NOW)
    rows = [row(Kind.STEP_FAILED, "a", 2, step_id=1), row(Kind.JOB_COMPLETED, "b", 3)]
    assert said(index.apply(rows, NOW)) == [("b", 3, None)]
    assert said(index.apply([read(index, "a", "failed")], NOW)) == [("a", 1, ERROR), ("a", 2, None)]


def test_the_event_of_a_job_that_the_tables_do_not_have_any_more_comes_at_once():
    index = running("a")
    index.apply([row(Kind.JOB_FAILED, "a", 1)], NOW)
    assert ("a", 1, None) in said(index.apply([read(index, "a", None)], NOW))


def test_nothing_waits_where_the_tables_cannot_be_read():
    index = running()
    index.tracking = False
    assert said(index.apply([row(Kind.JOB_FAILED, "a", 1, error=ERROR)], NOW)) == [("a", 1, ERROR)]


@pytest.mark.parametrize("most", [0, 3])
def test_events_that_wait_are_bounded(monkeypatch, most):
    monkeypatch.setattr(explained.ExplainedEvents.__init__, "__kwdefaults__", {"most": most})
    index = running(*"abcde")
    found = []
    for number, name in enumerate("abcde"):
        found += said(index.apply([row(Kind.JOB_FAILED, name, number)], NOW + number))
    assert [name for name, *_ in found] == list("abcde")[: 5 - most]


def test_events_that_wait_survive_a_restart():
    index = running("a")
    index.apply([row(Kind.JOB_FAILED, "a", 1)], NOW)
    restarted = Index()
    for _ in restarted.restore(*stored(index), index.state(), NOW):
        pass
    restarted.loading = False
    found = said(restarted.apply([read(restarted, "a", "failed")], NOW + SECOND))
    for seconds in range(60):
        found += said(restarted.expire(NOW + seconds * SECOND))
    assert found == [("a", 1, ERROR)]
