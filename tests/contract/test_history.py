"""The earlier runs that forecasts learn from: which are read, what of them, and what that costs the database."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Any

import pytest

from correlator.forecast.forecaster import MAX_OPERATIONS
from correlator.forecast.points import MAX_STEPS, EndedRun, StepTimes
from correlator.forecast.window import KEEP
from correlator.sources.db import zones
from correlator.sources.tables.history import MAX_RUNS, MAX_SEARCHED
from tests.support.earlier_runs import (
    LIVE,
    HistoryFeed,
    ago,
    ended_job,
    insert,
    micros,
    read_history,
)
from tests.support.eventually import eventually
from tests.support.source_databases import RecordingSession, open_queries, running_follower

SECOND = 1_000_000


def step(job_id: str, seq: int, name: str, began: str, ended: str | None) -> dict[str, Any]:
    return {"job_id": job_id, "seq": seq, "name": name, "started_at": began, "completed_at": ended}


async def test_a_run_has_its_times_its_steps_and_its_vm_on_either_schema(either_original):
    original, test = either_original, ("failover", "test")
    await insert(original, "job_tracking", [
        ended_job("u1", 60, metadata='{"vm_name": "web-01"}'), ended_job("u2", 30, test, metadata=None),
    ])  # fmt: skip
    await insert(original, "job_steps", [
        step("u1", 1, "copy", f"{ago(60.5)}.250000", f"{ago(60.25)}.000001"),
        step("u1", 2, "start", f"{ago(60.25)}.000001", None),
    ])  # fmt: skip
    feed = await read_history(original)
    copy = StepTimes("copy", micros(60.5) + SECOND // 4, micros(60.25) + 1)
    steps = (copy, StepTimes("start", micros(60.25) + 1, None))
    assert feed.runs == [
        EndedRun(test, "", micros(30.5), micros(30), completed=True),
        EndedRun(LIVE, "web-01", micros(60.5), micros(60), completed=True, steps=steps),
    ]
    assert feed.done


async def test_the_newest_100_completed_runs_and_the_others_among_them_come_in_order(original):
    jobs = []
    for n in range(KEEP + 40):
        jobs.append(ended_job(f"c{n}", 10 * n + 1))
        jobs += [ended_job(f"f{n}", 10 * n + 2, status="failed")] if n % 20 == 0 else []
        jobs += [ended_job(f"x{n}", 10 * n + 3, status="cancelled")] if n % 50 == 0 else []
    await insert(original, "job_tracking", jobs)
    await insert(original, "job_tracking", [ended_job("once", 5_000, ("", "cleanup"), job_type=None)])
    await insert(original, "job_steps", [step(f"c{n}", 1, f"s{n}", ago(10 * n + 1.2), None) for n in range(KEEP + 40)])
    feed = await read_history(original)
    live = [run for run in feed.runs if run.operation == LIVE]
    assert [run.steps[0].name for run in live if run.completed] == [f"s{n}" for n in reversed(range(KEEP))]
    ends = sorted([10 * n + 2 for n in range(0, KEEP, 20)] + [10 * n + 3 for n in range(0, KEEP, 50)], reverse=True)
    assert [run.end for run in live if not run.completed] == [micros(minutes) for minutes in ends]
    assert [run.end for run in live] == sorted(run.end for run in live)
    assert [run.end for run in feed.runs if run.operation == ("", "cleanup")] == [micros(5_000)]
    assert max(map(len, feed.calls)) <= 10
    assert all(len({run.operation for run in call}) == 1 for call in feed.calls)


async def test_an_operation_that_always_fails_gives_a_bounded_number_of_runs(original):
    await insert(original, "job_tracking", [ended_job(f"f{n}", n + 1, status="failed") for n in range(MAX_RUNS + 50)])
    feed = await read_history(original)
    assert [run.end for run in feed.runs] == [micros(n) for n in reversed(range(1, MAX_RUNS + 1))]


async def test_jobs_whose_end_is_unknown_too_old_or_after_the_beginning_are_no_history(original):
    await insert(original, "job_tracking", [
        ended_job("running", 1, status="running"),
        ended_job("without an operation", 1, ("failover", "")),
        ended_job("old", 181 * 1440),
        ended_job("begins later", -60),
        ended_job("cancelled", 2, status="cancelled"),
        ended_job("completed", 179 * 1440),
    ])  # fmt: skip
    await original.job("only canceled_at", status="cancelled", started_at=ago(4), canceled_at=ago(3))
    feed = await read_history(original)
    assert [(run.end, run.completed) for run in feed.runs] == [(micros(179 * 1440), True), (micros(2), False)]


async def test_of_many_operations_the_newest_256_come_and_those_with_a_running_job_first(original):
    count = MAX_OPERATIONS + 44
    operations = [("failover", f"op-{n}") for n in range(count)]
    await insert(original, "job_tracking", [ended_job(f"u{n}", n + 1, operations[n]) for n in range(count)])
    oldest = operations[-1]
    feed = await read_history(original, HistoryFeed(running=[oldest]))
    assert feed.operations[0] == oldest
    assert set(feed.operations) == {oldest, *operations[: MAX_OPERATIONS - 1]}


async def test_a_running_job_gets_its_runs_before_the_end_of_the_walk(original):
    often, other = ("failover", "often"), ("failover", "other")
    jobs = [ended_job(f"{o[1]}{n}", n + 1, o) for n in range(KEEP + 1_000) for o in (often, other)]
    await insert(original, "job_tracking", jobs)
    walked: list[int] = []

    class Counted(HistoryFeed):
        def history(self, runs: Sequence[EndedRun]) -> None:
            super().history(runs)
            walked.append(sum("completed_at DESC" in sql for sql, _ in recorded.queries))

    recorded = RecordingSession()
    feed = await read_history(original, Counted(running=[often]), session=recorded)
    assert feed.operations == feed.complete == [often, other]
    assert walked[0] < walked[-1]


async def test_an_operation_whose_job_begins_while_the_history_is_read_comes_next(original):
    operations = [("failover", f"op-{n}") for n in range(4)]
    await insert(original, "job_tracking", [ended_job(o[1], n + 1, o) for n, o in enumerate(operations)])
    running: list[tuple[str, str]] = []

    class Begins(HistoryFeed):
        def history(self, runs: Sequence[EndedRun]) -> None:
            super().history(runs)
            running[:] = [operations[3]]

    feed = await read_history(original, Begins(running))
    assert feed.operations == [operations[n] for n in (0, 3, 1, 2)]


async def test_operations_that_differ_only_in_case_or_in_their_type_have_runs_of_their_own(original):
    often, rare = ("failover", "live"), [("failover", "LIVE"), ("cleanup", "live"), ("", "live")]
    await insert(original, "job_tracking", [ended_job(f"u{n}", n + 1) for n in range(KEEP + 1_000)])
    for n, (job_type, operation) in enumerate(rare):
        row = ended_job(f"rare{n}", 20_000 + n, (job_type, operation), job_type=job_type or None)
        await insert(original, "job_tracking", [row])
    recorded = RecordingSession()
    feed = await read_history(original, session=recorded)
    assert feed.operations == [often, *rare]
    assert len(feed.runs) == KEEP + len(rare)
    assert recorded.bytes < 100 * (500 + KEEP), "the server left out the runs that nobody needs"


BLOB = "y" * 1_000_000
METADATA = {
    "the first key": ('{"vm_name": "web-01", "vm_name_or_id": "no"}', "web-01"),
    "the second key": ('{"vm_name": 7, "vm_name_or_id": "web-02"}', "web-02"),
    "escapes": ('{"vm_name": "a\\"\\u00fc\\n"}', 'a"ü\n'),
    "an empty text": ('{"vm_name": "", "vm_name_or_id": "web-03"}', ""),
    "no object": ('["vm_name"]', ""),
    "a megabyte before": (json.dumps({"blob": BLOB, "vm_name": "web-04"}), "web-04"),
    "a megabyte as the name": (json.dumps({"vm_name": BLOB, "vm_name_or_id": "web-05"}), "web-05"),
    "more than is searched": (json.dumps({"vm_name": "web-06", "blob": "y" * MAX_SEARCHED}), ""),
}


async def test_the_name_of_the_vm_is_found_in_metadata_of_any_size_and_nothing_else_is_read(original):
    for n, (text, _) in enumerate(METADATA.values()):
        await insert(original, "job_tracking", [ended_job(f"u{n}", 100 - n, metadata=text)])
    recorded = RecordingSession()
    feed = await read_history(original, session=recorded)
    assert dict(zip(METADATA, (run.entity for run in feed.runs), strict=True)) == {
        name: vm for name, (_, vm) in METADATA.items()
    }
    assert recorded.bytes < 10_000


async def test_of_a_run_with_thousands_of_steps_the_first_are_read(original):
    await insert(original, "job_tracking", [ended_job("u1", 60), ended_job("u2", 50)])
    await insert(original, "job_steps", [step("u1", n, f"s{n}", f"{ago(60.5)}.{n:06}", None) for n in range(2_000)])
    await insert(original, "job_steps", [step("u2", 1, "one", ago(50.5), ago(50))])
    feed = await read_history(original)
    assert [[s.name for s in run.steps] for run in feed.runs] == [[f"s{n}" for n in range(MAX_STEPS)], ["one"]]


async def test_times_of_steps_are_local_in_the_zone_of_the_appliance_and_those_of_jobs_are_not(original):
    await insert(original, "job_tracking", [ended_job("u1", 60)])
    kolkata = zones.named("Asia/Kolkata")
    await insert(original, "job_steps", [step("u1", 1, "copy", f"{ago(60.5)}.500000", ago(60))])
    feed = await read_history(original, zone=kolkata)
    east = int(5.5 * 3600) * SECOND
    (run,) = feed.runs
    assert (run.start, run.end) == (micros(60.5), micros(60))
    assert run.steps == (StepTimes("copy", micros(60.5) + SECOND // 2 - east, micros(60) - east),)


MISSING = {
    "job_tracking.metadata": ("", 1, True),
    "job_tracking.job_type": ("web-01", 1, True),
    "job_tracking.created_at": ("web-01", 1, True),
    "job_tracking.started_at": ("web-01", 1, True),
    "job_steps.seq": ("web-01", 1, True),
    "job_steps.completed_at": ("web-01", 1, True),
    "job_steps.started_at": ("web-01", 0, True),
    "job_steps.name": ("web-01", 0, True),
    "job_tracking.status": ("", 0, False),
    "job_tracking.completed_at": ("", 0, False),
}
"""Column → the VM, the steps, and whether there is a run at all."""


@pytest.mark.parametrize("column", MISSING)
async def test_without_a_column_less_is_read_and_the_history_still_ends(one_mariadb, column):
    original = one_mariadb
    table, name = column.split(".")
    await insert(original, "job_tracking", [ended_job("u1", 60, metadata='{"vm_name": "web-01"}')])
    await insert(original, "job_steps", [step("u1", 1, "copy", ago(60.5), ago(60))])
    if name == "seq":
        await original.run("ALTER TABLE job_steps ADD KEY job (job_id), DROP KEY uk_job_steps_job_seq")
    await original.run(f"ALTER TABLE {table} DROP COLUMN {name}")
    feed = await read_history(original)
    vm, steps, found = MISSING[column]
    assert [(run.entity, len(run.steps)) for run in feed.runs] == ([(vm, steps)] if found else [])
    assert feed.done
    if found:
        assert feed.runs[0].operation == ("" if name == "job_type" else "failover", "live")


async def test_every_query_of_the_history_uses_an_index_and_sorts_nothing(one_mariadb):
    original = one_mariadb
    jobs = [ended_job(f"u{n:05}", n // 3 + 1, ("failover", f"op-{n % 5}"), metadata="{}") for n in range(6_000)]
    await insert(original, "job_tracking", jobs)
    await insert(original, "job_steps", [step(f"u{n:05}", s, "s", ago(n), None) for n in range(900) for s in (1, 2)])
    for table in ("job_tracking", "job_steps"):
        await original.run(f"ANALYZE TABLE {table}")
    recorded = RecordingSession()
    await read_history(original, session=recorded)
    used = set()
    async with open_queries(original.source()) as (_, asked):
        for sql, args in recorded.queries:
            if " FROM " not in sql:
                continue
            for _, _, table, kind, _, key, _, _, rows, extra in await asked.query(f"EXPLAIN {sql}", args):
                if table in ("job_tracking", "job_steps"):
                    used.add((table, kind, key))
                    assert "filesort" not in (extra or ""), sql
                    assert int(rows) <= 6_000
    assert used == {
        ("job_tracking", "range", "idx_completed_at"),
        ("job_tracking", "range", "PRIMARY"),
        ("job_steps", "ref", "uk_job_steps_job_seq"),
    }


async def test_a_connection_that_the_server_ends_costs_no_run_and_repeats_none(one_mariadb):
    original = one_mariadb
    name, count = original.tables.name, 10 * KEEP
    await insert(
        original, "job_tracking", [ended_job(f"u{n}", n + 1, ("failover", f"op-{n % 10}")) for n in range(count)]
    )
    async with running_follower(original.source()) as (received, _):
        received.status.loading = False
        await eventually(lambda: bool(received.runs))
        for (thread,) in await original.run(
            "SELECT id FROM information_schema.processlist WHERE user = 'correlator' AND db = %s", name
        ):
            with contextlib.suppress(Exception):  # it may have gone with another
                await original.run(f"KILL {thread}")
        assert received.history_wanted()
        await eventually(lambda: not received.history_wanted())
        assert sorted(run.end for run in received.runs) == [micros(n + 1) for n in reversed(range(count))]
        for key in {run.operation for run in received.runs}:
            ends = [run.end for run in received.runs if run.operation == key]
            assert ends == sorted(ends)
