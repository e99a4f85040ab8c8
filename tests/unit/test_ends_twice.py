"""A job that ends twice, with a query of the tables between both ends: its status does not go back to the first one."""

from __future__ import annotations

import pytest

from correlator.model.facts import Reading
from correlator.model.rows import JobRecord
from tests.support.pipeline_harness import NOW, PipelineHarness, row


def query(found: PipelineHarness, status: str) -> Reading:
    """What a query that begins now will give; `pipeline.readings` applies it when it arrives."""
    return Reading("j", found.index.advance_clock(), JobRecord("j", status=status, started_at=NOW), ())


def statuses(found: PipelineHarness) -> list[str]:
    """Every status that clients see from now on."""
    seen: list[str] = []
    found.hub.subscribe(lambda batch: seen.extend(c.new.view.status.value for c in batch.changes if c.new))
    return seen


def ends(found: PipelineHarness, message: str, number: int) -> set[str]:
    """A row of the log arrives. Returns the jobs that are read again because of it."""
    again: set[str] = found.rows(row(number, NOW + number, message, attrs='{"job_id":"j"}')).ended
    return again


def running() -> PipelineHarness:
    found = PipelineHarness()
    found.index.loading = False
    found.read("j", "running")
    return found


@pytest.mark.parametrize(("first", "last"), [("failed", "completed"), ("completed", "failed")])
def test_a_query_that_the_log_has_overtaken_does_not_bring_back_the_first_end(first, last):
    found = running()
    seen = statuses(found)
    between = query(found, first)
    assert ends(found, f"Job {last}", 1) == {"j"}, "it is read again at once"
    found.pipeline.readings([between])
    found.pipeline.readings([query(found, last)])
    assert set(seen) == {last}


def test_a_query_that_began_after_the_row_applies_whatever_it_says():
    found = running()
    seen = statuses(found)
    ends(found, "Job completed", 1)
    found.pipeline.readings([query(found, "failed")])
    assert seen == ["completed", "failed"]


@pytest.mark.parametrize("late", ["completed", "running", "made up"])
def test_an_overtaken_query_that_names_no_other_end_applies(late):
    found = running()
    between = query(found, late)
    ends(found, "Job completed", 1)
    found.pipeline.readings([between])
    assert found.index.known.reading("j") == between


def test_an_end_of_the_tables_applies_though_a_row_of_the_first_end_becomes_visible_later():
    found = running()
    seen = statuses(found)
    found.pipeline.readings([query(found, "completed")])
    between = query(found, "completed")
    ends(found, "Job failed", 1)
    found.pipeline.readings([between])
    assert set(seen) == {"completed"}
    assert found.index.known.reading("j") == between


def test_an_overtaken_query_that_finds_the_row_deleted_applies():
    found = running()
    between = Reading("j", found.index.advance_clock(), None, None)
    ends(found, "Job completed", 1)
    found.pipeline.readings([between])
    assert found.index.published.get("j") is None
