"""What is published of why a job failed, and whether that is new: of the index, without a database."""

from __future__ import annotations

import random
from typing import Any

import pytest

from correlator.jobs.failures import MAX_NAMES, names_of
from correlator.jobs.index import Index
from correlator.model.document import Failure
from correlator.model.facts import Entry, Kind, Reading, Status
from correlator.model.published import JobView
from correlator.model.rows import JobRecord, StepRecord
from correlator.pipeline.past_failures import read_past_failures
from correlator.pipeline.queries import ArchivePage
from tests.support.saved_index import stored

SECOND = 1_000_000
NOW = 1_758_550_000 * SECOND
REASON = "snapshot of {} failed: no space left on device"


def reading(name: str, at: int, status: str = "failed", error: str | None = None, steps: Any = None) -> Reading:
    """A job that ended `at` seconds after `NOW`, whose error has its own name unless `error` is there."""
    ended = NOW + at * SECOND
    record = JobRecord(
        name,
        status,
        error_message=(error or REASON).format(name) if status == "failed" else None,
        started_at=ended - 10 * SECOND,
        completed_at=ended if status != "running" else None,
        created_at=ended - 10 * SECOND,
        updated_at=ended,
        operation="live",
    )
    read = (StepRecord(1, "snapshot", 1, "failed", ended, ended, record.error_message),) if steps is None else steps
    return Reading(name, 1 + at, record, read if status == "failed" else ())


def failure_of(index: Index, job_id: str) -> Failure | None:
    shown = index.published.get(job_id)
    assert shown is not None
    return shown.failure


def state_of(index: Index, job_id: str) -> str:
    found = failure_of(index, job_id)
    assert found is not None
    return found.state


class Tables:
    """An archive with these jobs only, some a page."""

    def __init__(self, *readings: Reading) -> None:
        self._readings = readings

    async def oldest(self) -> int | None:
        return None

    async def page(self, query: Any, before: Any, limit: int, advance_clock: Any, known: Any) -> ArchivePage:
        at = before[0] if before is not None else 0
        some = [one for one in self._readings[at : at + 5] if not known(one.job_id)]
        return ArchivePage(some, (at + 5, "") if at + 5 < len(self._readings) else None)


async def read_past(index: Index, *readings: Reading) -> None:
    archive: Any = Tables(*readings)
    await read_past_failures(index, archive)
    while index.failures.has_undecided():
        index.decide_failures(NOW)


def test_a_failed_job_says_what_its_rows_say_and_no_other_says_anything():
    index = Index()
    index.apply([reading("vm-7", 0), reading("good", 0, "completed"), reading("runs", 0, "running")], NOW)
    found = failure_of(index, "vm-7")
    assert found is not None
    assert (found.step, found.certainty, found.text) == ("snapshot", "stated", "no space left on device")
    assert [failure_of(index, name) for name in ("good", "runs")] == [None, None]


async def test_a_failure_is_unknown_until_the_tables_were_read_and_then_known_or_new():
    index = Index()
    index.apply([reading("job-2", 2), reading("other", 2, error="{}: the network is down")], NOW)
    assert [state_of(index, name) for name in ("job-2", "other")] == ["unknown", "unknown"]
    before = index.published.seq
    await read_past(index, reading("job-1", 1))
    assert [state_of(index, name) for name in ("job-2", "other")] == ["known", "new"]
    assert index.published.seq == before + 2


async def test_what_ends_later_or_is_committed_late_does_not_change_what_was_decided():
    index = Index()
    await read_past(index)
    index.apply([reading("job-2", 2)], NOW + 2 * SECOND)
    assert state_of(index, "job-2") == "new"
    index.apply([reading("job-1", 1)], NOW + 3 * SECOND)
    index.apply([reading("job-3", 3)], NOW + 3 * SECOND)
    assert [state_of(index, name) for name in ("job-1", "job-2", "job-3")] == ["new", "new", "known"]


async def test_a_job_that_runs_again_and_fails_again_is_decided_anew():
    index = Index()
    await read_past(index)
    index.apply([reading("vm-1", 0)], NOW)
    index.apply([reading("vm-1", 1, "running")], NOW + SECOND)
    assert failure_of(index, "vm-1") is None
    index.apply([reading("other", 2)], NOW + 2 * SECOND)
    index.apply([reading("vm-1", 3)], NOW + 3 * SECOND)
    assert (state_of(index, "other"), state_of(index, "vm-1")) == ("new", "known")


async def test_a_job_that_the_tables_lost_is_not_known_any_more():
    index = Index()
    await read_past(index)
    index.apply([reading("job-1", 1)], NOW)
    index.apply([Reading("job-1", 9)], NOW)
    index.apply([reading("job-2", 2)], NOW)
    assert state_of(index, "job-2") == "new"


async def test_a_job_that_left_memory_stays_known():
    index = Index(max_jobs=0)
    await read_past(index)
    index.apply([reading("job-1", 1)], NOW)
    index.expire(NOW + SECOND)
    assert index.published.get("job-1") is None
    index.apply([reading("job-2", 2)], NOW + 2 * SECOND)
    assert state_of(index, "job-2") == "known"


@pytest.mark.parametrize("seed", range(5))
async def test_the_order_in_which_jobs_are_read_does_not_matter(seed):
    texts = [REASON, "{}: the network is down", "exit status 1"]
    readings = [reading(f"job-{n}", n % 7, error=texts[n % 3]) for n in range(20)]
    found = []
    for _ in range(2):
        random.Random(seed).shuffle(readings)
        index = Index()
        index.apply(readings[:12], NOW)
        await read_past(index, *readings[12:])
        index.apply(readings[12:], NOW)
        found.append({r.job_id: failure_of(index, r.job_id) for r in readings})
        seed += 100
    assert found[0] == found[1]
    assert {one.state for one in found[0].values() if one is not None} == {"new", "known"}


async def test_after_a_restart_a_failure_is_what_it_was_and_decided_as_before():
    index = Index()
    await read_past(index)
    index.apply([reading("job-1", 1), reading("job-2", 2)], NOW)
    again = Index()
    for _ in again.restore(*stored(index), index.state(), NOW):
        pass
    assert [failure_of(again, name) for name in ("job-1", "job-2")] == [
        failure_of(index, name) for name in ("job-1", "job-2")
    ]
    again.apply([reading("job-3", 3)], NOW)
    assert state_of(again, "job-3") == "known"


def test_while_only_the_log_says_that_a_job_failed_it_has_no_failure_yet():
    index = Index()
    index.apply([reading("j", 0, "running")], NOW)
    index.loading = False
    index.apply([Entry(1, NOW, "ERROR", "Job failed", 9, "j", kind=Kind.JOB_FAILED, error="x", by="attrs")], NOW)
    shown = index.published.get("j")
    assert shown is not None
    assert (shown.view.status, shown.failure) == (Status.FAILED, None)


def test_names_are_those_of_the_row_the_longest_first_and_not_too_many():
    view = JobView(
        job_id="job-1", status=Status.FAILED, operation="live", owner="ab", context_id="ctx-1",
        metadata='{"vm_name":"server-01","disk_ids":["d-100",7],"note":"free text","size":12}',
    )  # fmt: skip
    named = names_of(view, JobRecord("job-1", external_job_id="ext-77"))
    assert named == ["server-01", "ext-77", "job-1", "ctx-1", "d-100"]
    many = ",".join(f'"k{n}_id":"name-{n}"' for n in range(5_000))
    assert len(names_of(JobView(job_id="j", status=Status.FAILED, metadata=f"{{{many}}}"), None)) <= MAX_NAMES
