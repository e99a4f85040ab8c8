"""What a call costs must not depend on how much there is: of one job, of one ID, of one parent, or of all."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest

from benchmarks import facts
from correlator.jobs.index import MAX_DUE, Index
from correlator.jobs.missing_rows import MAX_PENDING_TRANSITIONS
from correlator.model.facts import MAX_CHILDREN, Entry, Kind, Reading
from correlator.model.rows import JobRecord, Level, LogRow, StepRecord
from correlator.pipeline.pipeline import LocalHub, Pipeline
from tests.support.there import there
from tests.support.yardstick import assert_costs

BASE = 1_758_553_933_000_000
SECOND = 1_000_000
NOW = BASE + 100 * SECOND


def live(**settings) -> Index:
    index = Index(**settings)
    index.loading = False
    return index


def read(
    job_id: str, *steps: StepRecord, status: str = "running", observed_at: int = 1, children=(), **columns
) -> Reading:
    """As a source reads it: of all children the newest."""
    record = JobRecord(job_id, status=status, started_at=BASE, **columns)
    return Reading(job_id, observed_at, record, steps, children[-MAX_CHILDREN:], len(children))


def fill(index: Index, readings: list[Reading]) -> None:
    for i in range(0, len(readings), 500):
        index.apply(readings[i : i + 500], NOW)


def logging(level: Level, rows: int, *, batch: int) -> Callable[[], None]:
    """A batch of rows of a job that has had so many rows of that level."""
    index, ids = live(), count(1)

    def log(size: int = batch) -> None:
        index.apply([Entry(i, BASE + i, level, "text", i, "j") for i, _ in zip(ids, range(size), strict=False)], NOW)

    index.apply([read("j")], NOW)
    for _ in range(0, rows, 1000):
        log(min(rows, 1000))
    return log


def test_a_single_row_costs_the_same_when_the_count_of_its_job_is_full():
    few = logging("ERROR", 100, batch=1)
    many = logging("ERROR", 12_000, batch=1)
    assert_costs(2, lambda: [few() for _ in range(100)], lambda: [many() for _ in range(100)])


def test_the_counts_of_warnings_and_errors_stay_at_ten_thousand():
    index = live()
    index.apply([read("j")], NOW)
    for i in range(1, 24_000, 2_000):
        rows = [Entry(n, BASE + n, "WARN" if n % 2 else "ERROR", "text", n, "j") for n in range(i, i + 2_000)]
        index.apply(rows, NOW)
    shown = there(index.published.get("j"))
    assert (shown.view.warnings, shown.view.errors) == (10_000, 10_000)


def test_a_batch_copies_the_counted_rows_once_and_not_once_a_row():
    assert_costs(3, logging("WARN", 0, batch=200), logging("WARN", 8_000, batch=200))


def stepping(size: int, steps: int = 5_000) -> Callable[[], None]:
    """So many steps of a large job end, in one batch."""
    index, ids = live(), count(1)

    def apply(kind: Kind, number: int) -> None:
        rows = [
            Entry(i, BASE + i, "INFO", kind, i + 1, "j", 1 + i % steps, kind=kind, sequence=1)
            for i, _ in zip(ids, range(number), strict=False)
        ]
        index.apply(rows, NOW)

    index.apply([read("j", *(StepRecord(i, "step", i, started_at=BASE) for i in range(1, steps + 1)))], NOW)
    apply(Kind.STEP_STARTED, steps)
    return lambda: apply(Kind.STEP_FAILED, size)


def test_a_job_of_thousands_of_steps_costs_once_a_batch_and_not_once_a_row():
    assert_costs(3, stepping(1), stepping(1000))


def logging_of_all(jobs: int, running: int = 100, rows: int = 500) -> Callable[[], None]:
    """A row each of running jobs, with so many jobs in memory, through the whole pipeline."""
    index = Index(max_jobs=2 * jobs)
    pipeline = Pipeline(LocalHub(index))
    pipeline.readings(facts.readings(index, jobs, running=running))
    pipeline.status.loaded()
    ids = count(1)

    def log() -> None:
        for n in range(rows):
            attrs = f'{{"job_id":"{facts.job_id(jobs - 1 - n % running)}"}}'
            pipeline.rows([LogRow(next(ids), "working on final-sync", facts.now(), attrs=attrs)])

    return log


def test_a_row_costs_the_same_however_many_jobs_are_in_memory():
    assert_costs(1.6, logging_of_all(500), logging_of_all(10_000))


def ending(jobs: int) -> Callable[[], None]:
    """Jobs end without log rows, after many others did."""
    index, names = live(max_jobs=1_000_000), count()

    def end(number: int = 500) -> None:
        fill(
            index,
            [
                read(f"{n}", StepRecord(n + 1, "s", 1, "failed", BASE, BASE), status="failed", completed_at=NOW)
                for n, _ in zip(names, range(number), strict=False)
            ],
        )

    end(jobs)
    return end


def test_a_transition_costs_the_same_however_many_wait_for_their_row():
    assert_costs(2, ending(500), ending(MAX_PENDING_TRANSITIONS // 8))


def growing(children: int, *, known: bool) -> Callable[[], None]:
    """A parent that has so many children gets more of them, one by one. `known`: they are in memory themselves."""
    index, names = live(max_jobs=1_000_000), count()
    listed = tuple((BASE, f"c{n:06}") for n, _ in zip(names, range(children), strict=False))
    index.apply([read("parent")], NOW)
    if known:
        fill(index, [read(job_id, parent_job_id="parent") for _, job_id in listed])
    else:
        index.apply([read("parent", children=listed, observed_at=2)], NOW)

    def grow() -> None:
        for n, _ in zip(names, range(10), strict=False):
            index.apply([read(f"c{n:06}", parent_job_id="parent")], NOW)
            index.apply([Entry(n + 1, BASE + n, "INFO", "text", n + 9, "parent")], NOW)

    return grow


@pytest.mark.parametrize("known", [True, False])
def test_a_child_costs_the_same_however_many_its_parent_has(known):
    assert_costs(3, growing(MAX_CHILDREN, known=known), growing(8_000, known=known))


def sharing(jobs: int) -> Callable[[], None]:
    """One more job with the context and the external ID of many others."""
    index, names = live(max_jobs=1_000_000), count()

    def join(number: int = 10) -> None:
        found = [f"j{n:06}" for n, _ in zip(names, range(number), strict=False)]
        fill(index, [read(job_id, context_id="context", external_job_id="external") for job_id in found])

    join(jobs)
    return join


def test_a_job_costs_the_same_however_many_carry_its_ids():
    assert_costs(3, sharing(100), sharing(8_000))


def test_only_the_jobs_that_lose_or_gain_an_id_are_announced_as_moved():
    index = live()
    fill(index, [read(f"j{n}", context_id="context") for n in range(100)])
    moved = [c.job_id for c in index.apply([read("j999", context_id="context")], NOW).changes if c.moved]
    assert moved == ["j99"]


def idle(jobs: int) -> Callable[[], None]:
    index = live(max_jobs=1_000_000)
    fill(index, [read(f"j{n}") for n in range(jobs)])

    def pass_time() -> None:
        for _ in range(1000):
            index.expire(NOW)

    return pass_time


def test_a_second_in_which_nothing_happens_costs_the_same_however_many_jobs_run():
    assert_costs(3, idle(10), idle(8_000))


def test_what_falls_due_at_once_is_spread_over_several_calls():
    index = live(retention=100.0)
    fill(index, [read(f"r{n}") for n in range(2 * MAX_DUE)])
    fill(index, [read(f"e{n}", status="completed", completed_at=NOW - 1) for n in range(2 * MAX_DUE)])
    later = NOW + 3600 * SECOND
    sizes = []
    while changes := index.expire(later).changes:
        sizes.append(len(changes))
    assert sizes == [2 * MAX_DUE, 2 * MAX_DUE]
    assert all(shown.stalled for shown in index.published.all())
    assert len(index.published) == 2 * MAX_DUE
