"""The index: what is shown of every job, which job owns an ID, and what each batch of facts changes."""

from __future__ import annotations

import random
from operator import itemgetter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from correlator.jobs import fold, joblog
from correlator.jobs import index as indexes
from correlator.jobs.index import MAX_STEP_ROWS, Index
from correlator.jobs.known import MAX_UNREAD
from correlator.jobs.missing_rows import GRACE, MAX_PENDING_TRANSITIONS
from correlator.model.facts import AttributedRow, Entry, Job, Kind, Reading, Status
from correlator.model.persisted import IndexState
from correlator.model.published import Event, PublishedJob
from correlator.model.rows import JobRecord, LegacyRecord, LogRow, StepRecord
from tests.support.documents import document_of, document_text
from tests.support.expected_jobs import differences
from tests.support.fact_strategies import BASE, facts, shuffled_with_repeats
from tests.support.held import held
from tests.support.recorded_facts import facts_of, micros
from tests.support.replay import expected
from tests.support.saved_index import stored
from tests.support.there import there

SECOND = 1_000_000
NOW = BASE + 60 * SECOND
EXTERNAL = ["ext-1", "ext-2", "ext-3", "ext-4", "ext-5", "ctx"]


def live(**settings):
    """An index that has loaded the past."""
    index = Index(**settings)
    index.loading = False
    return index


def read(job_id="j", status="running", *steps, observed_at=1, children=(), **columns):
    columns = {"started_at": BASE, **columns}
    return Reading(job_id, observed_at, JobRecord(job_id, status=status, **columns), steps, children)


def gone(job_id="j", observed_at=50):
    return Reading(job_id, observed_at)


def logged(kind=None, job_id="j", *, event_id=1, observed_at=2, at=NOW, **more):
    return Entry(event_id, at, more.pop("level", "INFO"), "text", observed_at, job_id, kind=kind, **more)


def changes(outcome):
    return [
        (c.job_id, None if c.new is None else c.new.view.status.value, c.reason) for c in outcome.changes if not c.moved
    ]


def kinds(outcome):
    return [(e.kind, e.job_id, e.event_id) for e in outcome.events]


# -- order does not matter


def shown_of(index):
    owners = {name: index.published.resolve(name) for name in [*EXTERNAL, "a", "b", "c"]}
    return {s.job_id: s.view for s in index.published.all()}, owners


def applied(batches):
    index = live()
    for batch in batches:
        index.apply(batch, NOW)
    return index


@settings(max_examples=settings().max_examples // 2)
@given(shuffled_with_repeats(facts(lasting=True)), st.randoms(use_true_random=False))
def test_the_same_facts_in_any_order_and_any_batches_show_the_same_and_lead_to_the_same(both, chance):
    once, again = both
    batches = []
    while again:
        size = chance.randint(1, 5)
        batches.append(again[:size])
        again = again[size:]
    assert shown_of(applied(batches)) == shown_of(applied([once]))


@pytest.mark.parametrize(
    ("row", "goes_on"),
    [
        ({}, True),
        ({"level": "WARN"}, True),
        ({"level": "ERROR"}, True),
        ({"percent": 5}, False),
        ({"external_ids": ("ext-1",)}, False),
        ({"kind": Kind.JOB_COMPLETED}, False),
    ],
)
def test_a_job_goes_on_with_a_row_that_brings_only_a_message_and_a_count(row, goes_on):
    index = live()
    index.apply([read(), logged()], NOW)
    index.apply([logged(event_id=2, at=NOW + 1)], NOW + 1)  # This one also schedules its forecast.
    (change,) = index.apply([logged(event_id=3, at=NOW + 2, **row)], NOW + 2).changes
    assert change.goes_on is goes_on


def test_the_recording_in_any_order_and_any_batches_ends_as_its_tables(recording):
    tables, chance, index = expected(recording), random.Random(1), live()
    rows: dict[Any, Any] = dict(tables["job_tracking"])
    found = facts_of(recording, chance)
    now = max(f.at for f in found if isinstance(f, Entry)) + SECOND
    while found:
        size = chance.choice([1, 5, 100])
        index.apply(found[:size], now)
        found = found[size:]
    documents = {shown.job_id: document_of(shown) for shown in index.published.all()}
    assert differences(tables, documents) == []
    for shown in index.published.all():
        steps = [s for s in tables["job_steps"].values() if s["job_id"] == shown.job_id]
        assert [s.id for s in shown.view.steps] == [s["id"] for s in sorted(steps, key=itemgetter("seq", "id"))]
        row = rows[shown.job_id]
        if row["percent_complete"] is None and row["status"] != "completed":
            done = sum(s["status"] == "completed" for s in steps)
            assert shown.view.percent == (min(99.0, round(100 * done / len(steps), 1)) if steps else 0)
        children = [
            (micros(r["started_at"]), i)
            for i, r in tables["job_tracking"].items()
            if r["parent_job_id"] == shown.job_id
        ]
        assert shown.children == tuple(i for _, i in sorted(children))
    for job_id, row in rows.items():
        for name in joblog.external_ids(row["external_job_id"], row["metadata"]):
            resolved = there(index.published.resolve(name))
            assert job_id in (resolved.job_id, *resolved.also)
            assert rows[resolved.job_id]["started_at"] >= row["started_at"]


# -- coming and going


def test_a_job_is_not_shown_until_its_tables_were_read():
    index = live()
    outcome = index.apply([logged(Kind.JOB_STARTED)], NOW)
    assert (outcome.changes, outcome.unread, len(index.published), index.known.active()) == ([], {"j"}, 0, {"j"})
    outcome = index.apply([read()], NOW)
    assert changes(outcome) == [("j", "running", None)]
    assert index.published.resolve("j") is not None


def test_without_job_tracking_a_job_is_published_from_the_log_alone():
    index = live()
    index.tracking = False
    assert changes(index.apply([logged(Kind.JOB_STARTED), logged(Kind.JOB_FAILED, event_id=2)], NOW)) == [
        ("j", "failed", None)
    ]


def test_one_batch_makes_one_change_of_a_job_and_what_changes_nothing_shown_makes_none():
    index = live()
    outcome = index.apply(
        [read(), logged(Kind.JOB_STARTED), logged(Kind.JOB_COMPLETED, event_id=2), logged(event_id=3)], NOW
    )
    assert changes(outcome) == [("j", "completed", None)]
    assert index.published.seq == 1
    assert index.apply([read("k")], NOW).changes
    assert index.apply([read("k", observed_at=5)], NOW + 1).changes == []


def test_late_rows_do_not_bring_back_what_is_gone_but_a_new_start_asks_the_tables():
    index = live()
    index.apply([read()], NOW)
    assert changes(index.apply([gone()], NOW)) == [("j", None, "gone")]
    late = index.apply([logged(Kind.JOB_COMPLETED)], NOW)
    assert (late.changes, late.unread) == ([], set())
    assert index.apply([logged(Kind.JOB_STARTED)], NOW).unread == {"j"}
    assert changes(index.apply([read(observed_at=60)], NOW)) == [("j", "running", None)]


def test_jobs_that_are_named_and_never_read_are_bounded():
    index, names = live(), [f"j{n}" for n in range(MAX_UNREAD)]
    index.apply([logged(job_id=name) for name in names], NOW)
    index.changed_ids()
    index.apply([logged(job_id="one more")], NOW)
    assert index.known.active() == {*names[1:], "one more"}
    assert {i: index.persisted(i) is None for i in index.changed_ids()} == {"j0": True, "one more": False}


def test_nothing_is_announced_of_what_happened_before_the_start():
    index = Index()
    outcome = index.apply([read(), logged(Kind.JOB_STARTED), logged(Kind.JOB_COMPLETED, event_id=2)], NOW)
    assert (outcome.events, index.expire(NOW + GRACE).events) == ([], [])


# -- ended by hand

DAY = 86_400 * SECOND
LONG_AGO = NOW - 26 * 3_600 * SECOND
"""Before the retention."""


@pytest.mark.parametrize("completed_at", [None, LONG_AGO + SECOND])
def test_a_job_that_runs_ends_before_it_leaves_whatever_time_a_person_gives_its_end(completed_at):
    index = live(retention=86_400)
    index.apply([read(started_at=LONG_AGO), logged(Kind.JOB_STARTED, at=LONG_AGO)], NOW)
    outcome = index.apply([read("j", "failed", observed_at=5, started_at=LONG_AGO, completed_at=completed_at)], NOW + 1)
    assert changes(outcome) == [("j", "failed", None)]
    assert kinds(index.expire(NOW + 1 + GRACE)) == [(Kind.JOB_FAILED, "j", None)]
    assert there(index.published.get("j")).view.ended_at == completed_at
    assert index.expire(NOW + DAY).changes == []
    assert changes(index.expire(NOW + DAY + 1)) == [("j", None, "retention")]


def test_a_job_that_ended_and_runs_again_stays_for_the_retention_from_its_next_end_on():
    index = live(retention=100)
    for n, status in enumerate(("running", "failed", "running", "failed")):
        index.apply([read("j", status, observed_at=n + 1)], NOW + 60 * n * SECOND)
    assert index.expire(NOW + 279 * SECOND).changes == []
    assert changes(index.expire(NOW + 280 * SECOND)) == [("j", None, "retention")]


def test_the_end_of_a_job_without_a_time_of_its_end_is_the_latest_that_is_known_of_it():
    index = live(retention=100)
    found = read("j", "failed", observed_at=5, started_at=LONG_AGO, updated_at=NOW)
    index.apply([found, logged(at=NOW + 9 * SECOND)], NOW + 10 * SECOND)
    (event,) = (e for e in index.expire(NOW + 10 * SECOND + GRACE).events if e.kind is Kind.JOB_FAILED)
    assert event.at == NOW + 9 * SECOND
    index.apply([read("j", "failed", observed_at=9, started_at=LONG_AGO, updated_at=NOW + 50 * SECOND)], NOW)
    assert index.expire(NOW + 149 * SECOND).changes == []
    assert changes(index.expire(NOW + 150 * SECOND)) == [("j", None, "retention")]


def test_a_job_of_failover_jobs_that_runs_ends_before_it_leaves():
    index = live(retention=86_400)
    row = LegacyRecord(1, "ext", "validating", created_at=LONG_AGO, updated_at=LONG_AGO, apart=True)
    index.apply_legacy([row], [], NOW)
    outcome = index.apply_legacy([replace(row, status="failed", completed_at=LONG_AGO)], [], NOW)
    assert (changes(outcome), kinds(outcome)) == ([("ext", "failed", None)], [(Kind.JOB_FAILED, "ext", None)])
    assert changes(index.expire(NOW + DAY)) == [("ext", None, "retention")]


@pytest.mark.parametrize("order", [1, -1])
def test_a_legacy_job_ends_as_the_joblog_job_of_its_id_in_any_order(order):
    index = live(retention=86_400)
    index.apply_legacy([replace(LEGACY, created_at=LONG_AGO, updated_at=LONG_AGO)], [], NOW)
    readings = [read("j", external_job_id="ext"), read("ext", "failed", started_at=LONG_AGO)]
    outcome = index.apply(readings[::order], NOW)
    assert sorted(changes(outcome)) == [("ext", "failed", None), ("j", "running", None)]
    assert outcome.ended == {"ext"}
    assert (Kind.JOB_FAILED, "ext", None) in kinds(index.expire(NOW + GRACE))
    assert [c.job_id for c in index.expire(NOW + DAY - 1).changes if c.new is None] == []


@pytest.mark.parametrize("order", [1, -1])
def test_a_legacy_job_whose_id_no_joblog_job_has_merges_in_any_order(order):
    index = live()
    index.apply_legacy([LEGACY], [], NOW)
    outcome = index.apply([read("j", external_job_id="ext"), gone("ext")][::order], NOW)
    assert sorted(changes(outcome)) == [("ext", None, "merged"), ("j", "running", None)]


def test_a_legacy_job_ends_as_the_joblog_job_of_its_id_that_was_away():
    index = live(retention=86_400)
    index.apply([read("ext")], NOW)
    index.apply([read("ext", "failed", observed_at=5, completed_at=LONG_AGO)], NOW)
    index.apply([gone("ext")], NOW)
    index.apply_legacy([LEGACY], [], NOW)
    outcome = index.apply([read("ext", "failed", observed_at=60, completed_at=LONG_AGO)], NOW + 9 * SECOND)
    assert changes(outcome) == [("ext", "failed", None)]
    assert index.expire(NOW + DAY + 8 * SECOND).changes == []


def test_a_job_that_ran_when_it_went_ends_after_a_restart_whatever_the_log_says():
    index = live(retention=100)
    index.apply([read()], NOW)
    index.apply([logged(Kind.JOB_FAILED), gone()], NOW)
    restarted = live(retention=100)
    for _ in restarted.restore(*stored(index), index.state(), NOW):
        pass
    outcome = restarted.apply([read("j", None, observed_at=60, started_at=LONG_AGO)], NOW + 200 * SECOND)
    assert changes(outcome) == [("j", "failed", None)]


# -- silence


def test_a_running_job_that_falls_silent_is_stalled_and_recovers_with_its_next_row():
    index = live(stalled_after=lambda: 100)
    index.apply([read(), logged(Kind.JOB_STARTED)], NOW)
    index.expire(NOW + GRACE)
    assert index.expire(NOW + 100 * SECOND).changes == []
    later = NOW + 100 * SECOND + 1
    outcome = index.expire(later)
    assert outcome.events == [Event(Kind.JOB_STALLED, "j", later)]
    shown = there(index.published.get("j"))
    assert (shown.stalled, shown.rev, outcome.changes[0].seq) == (True, index.published.seq, index.published.seq)
    assert index.expire(later + 1).changes == []
    outcome = index.apply([logged(event_id=9, at=later)], later + 2)
    assert outcome.events == [Event(Kind.JOB_RECOVERED, "j", later + 2)]
    assert not there(index.published.get("j")).stalled


def test_a_stalled_job_that_ends_has_ended_and_not_recovered():
    index = live(stalled_after=lambda: 100)
    index.apply([read(), logged(Kind.JOB_STARTED)], NOW)
    index.expire(NOW + 200 * SECOND)
    outcome = index.apply([logged(Kind.JOB_FAILED, event_id=9), read("j", "failed", observed_at=3)], NOW + 200 * SECOND)
    assert kinds(outcome) == [(Kind.JOB_FAILED, "j", 9)]


def test_another_limit_of_silence_applies_to_the_jobs_that_run_and_to_those_that_are_stalled():
    seconds = [100]
    index = live(stalled_after=lambda: seconds[0])
    index.apply([read(), logged(Kind.JOB_STARTED)], NOW)
    stalled = []
    for seconds[0] in (100, 20, 100):
        index.expire(NOW + 50 * SECOND)
        stalled.append(there(index.published.get("j")).stalled)
    assert stalled == [False, True, False]


# -- the legacy tracker beside it

LEGACY = LegacyRecord(1, "ext", "validating", created_at=NOW, updated_at=NOW, apart=True)


def test_a_legacy_job_has_its_own_id_and_its_transitions_are_published_at_once():
    index = live()
    outcome = index.apply_legacy([LEGACY], [], NOW)
    assert changes(outcome) == [("ext", "running", None)]
    assert kinds(outcome) == [(Kind.JOB_STARTED, "ext", None)]
    resolved = there(index.published.resolve("ext"))
    assert (resolved.job_id, resolved.resolved_by) == ("ext", "legacy")
    ended = index.apply_legacy([replace(LEGACY, status="failed", completed_at=NOW)], [], NOW)
    assert (changes(ended), kinds(ended)) == ([("ext", "failed", None)], [(Kind.JOB_FAILED, "ext", None)])


def test_a_joblog_job_replaces_a_legacy_job_of_its_id_until_it_is_deleted():
    index = live()
    index.apply_legacy([LEGACY], [], NOW)
    outcome = index.apply([read(external_job_id="ext")], NOW)
    assert sorted(changes(outcome)) == [("ext", None, "merged"), ("j", "running", None)]
    assert index.apply_legacy([LEGACY], [], NOW).changes == []
    assert {s.job_id for s in index.published.all()} == {"j"}
    resolved = there(index.published.resolve("ext"))
    assert (resolved.job_id, resolved.resolved_by) == ("j", "external_id")
    outcome = index.apply([gone()], NOW)
    assert sorted(changes(outcome)) == [("ext", "running", None), ("j", None, "gone")]


def test_a_legacy_row_is_published_only_when_the_tables_show_that_no_job_owns_it():
    index, row = live(), replace(LEGACY, apart=False)
    before = index.published.complete_since(NOW)
    assert index.apply_legacy([row], [], NOW).changes == []
    assert index.known.is_undecided(row)
    assert index.known.unsettled_legacy() == [row]
    assert before < row.created_at < index.published.complete_since(NOW), "a list without the tables would miss it"
    assert changes(index.decide_legacy([], ["ext"], NOW)) == [("ext", "running", None)]
    assert not index.known.is_undecided(row)
    assert index.published.complete_since(NOW) == before


@pytest.mark.parametrize("kind", ["joblog", "legacy", "undecided", "restored"])
def test_a_start_in_the_future_does_not_move_the_time_since_which_all_jobs_are_in_memory(kind):
    """A list would ask the database for every page from then on, until 2037."""
    index, later = live(), BASE + 11 * 365 * DAY
    before = index.published.complete_since(NOW)
    if kind == "joblog":
        index.apply([read(started_at=later)], NOW)
        assert changes(index.apply([gone()], NOW)) == [("j", None, "gone")]
    elif kind == "restored":
        list(index.restore((), (), IndexState(newest_removed=later), NOW))
    else:
        index.apply_legacy([replace(LEGACY, created_at=later, apart=kind == "legacy")], [], NOW)
        index.apply_legacy([], ["ext"] if kind == "legacy" else [], NOW)
    assert index.published.complete_since(NOW) == before


def test_a_job_in_memory_is_silent_since_its_last_sign_of_life():
    index = live()
    index.apply([read(started_at=NOW)], NOW)
    assert (index.known.is_in_memory("j"), index.known.is_in_memory("other")) == (True, False)
    assert (index.known.silent_for("j", NOW + 5 * SECOND), index.known.silent_for("other", NOW)) == (5.0, 0.0)


def test_a_legacy_row_with_an_owner_in_the_tables_is_never_published_nor_queried_again():
    index, row = live(), replace(LEGACY, apart=False)
    index.apply_legacy([row], [], NOW)
    assert index.decide_legacy(["ext"], [], NOW).changes == []
    assert index.apply_legacy([row], [], NOW).changes == []
    assert (index.known.is_undecided(row), index.known.unsettled_legacy()) == (False, [])
    assert index.published.resolve("ext") is None
    changed = replace(row, status="failed")
    index.apply_legacy([changed], [], NOW)
    assert index.known.is_undecided(changed)


def test_a_legacy_row_of_the_past_that_is_decided_after_the_start_is_no_event():
    index, row = Index(), replace(LEGACY, apart=False)
    index.apply_legacy([row], [], NOW)
    index.loading = False
    outcome = index.decide_legacy([], ["ext"], NOW)
    assert (changes(outcome), outcome.events) == ([("ext", "running", None)], [])
    ended = index.apply_legacy([replace(row, status="failed", completed_at=NOW)], [], NOW)
    assert kinds(ended) == [(Kind.JOB_FAILED, "ext", None)]


def test_a_number_of_legacy_rows_that_are_not_shown_is_remembered():
    index, old = live(retention=100), replace(LEGACY, status="failed", completed_at=NOW)
    rows = [replace(old, job_id=f"r{n}") for n in range(10_001)]
    index.apply_legacy(rows, [], NOW + 100 * SECOND)
    assert [index.known.is_set_aside(row) for row in (rows[0], rows[1], rows[-1])] == [False, True, True]


# -- IDs, children, steps


def test_ids_are_looked_up_as_uuid_external_id_context_id_legacy():
    index = live()
    index.apply_legacy([LEGACY, replace(LEGACY, job_id="ctx-1")], [], NOW)
    index.apply([read("j", external_job_id="k", context_id="ctx-1"), read("k", context_id="k")], NOW)
    found = {name: index.published.resolve(name) for name in ("k", "ctx-1", "ext", "j", "nobody")}
    both = {name: (r.job_id, r.resolved_by) if r else None for name, r in found.items()}
    assert both == {
        "k": ("k", "uuid"),
        "ctx-1": ("j", "context_id"),
        "ext": ("ext", "legacy"),
        "j": ("j", "uuid"),
        "nobody": None,
    }


def test_a_row_with_an_external_id_alone_belongs_to_the_owner_of_that_id():
    index = live()
    index.apply([read(external_job_id="e")], NOW)
    row = logged(job_id=None, external_ids=("e",))
    assert index.apply([row], NOW).attributed == [AttributedRow(row, "j", "external_id")]
    assert index.apply([logged(job_id=None, event_id=2)], NOW).attributed[0].job_id is None


def test_facts_about_an_unknown_step_wait_for_its_job():
    index = live()
    row = logged(job_id=None, step_id=7)
    outcome = index.apply([row], NOW)
    assert (outcome.unread_steps, outcome.attributed) == ({7}, [])
    outcome = index.apply([read("j", "running", StepRecord(7))], NOW)
    assert [(t.entry.event_id, t.job_id, t.by) for t in outcome.attributed] == [(1, "j", "step")]
    assert there(index.published.get("j")).view.last is not None
    assert index.apply([replace(row, event_id=2)], NOW).attributed[0] == AttributedRow(
        replace(row, event_id=2), "j", "step"
    )


@given(order=st.permutations(["a row that lies", "the job", "the liar", "a row of the job"]))
def test_a_step_is_of_the_job_that_has_it_in_the_tables_whatever_rows_say(order):
    index = live()
    index.apply([read("liar", "running")], NOW)
    facts = {
        "a row that lies": logged(Kind.STEP_STARTED, "liar", step_id=7),
        "the job": read("j", "running", StepRecord(7)),
        "the liar": read("liar", "running", observed_at=2),
        "a row of the job": logged(job_id=None, step_id=7, level="ERROR", event_id=2),
    }
    for number, name in enumerate(order):
        index.apply([facts[name]], NOW + number)
    assert [there(index.published.get(i)).view.errors for i in ("j", "liar")] == [1, 0]


def test_each_row_of_an_unknown_step_waits_for_its_own_time():
    index = live()
    index.apply([logged(job_id=None, step_id=7)], NOW)
    index.apply([logged(job_id=None, step_id=7, event_id=2)], NOW + indexes.WAIT_FOR)
    passed_on = index.expire(NOW + indexes.WAIT_FOR + 1).attributed
    assert [(row.entry.event_id, row.job_id) for row in passed_on] == [(1, None)]
    found = index.apply([read("j", "running", StepRecord(7))], NOW + indexes.WAIT_FOR + 2).attributed
    assert [(row.entry.event_id, row.job_id) for row in found] == [(2, "j")]


@pytest.mark.parametrize("own", ["job-a", "Job-A"])
def test_rows_that_name_their_job_in_another_case_belong_to_it_also_before_it_is_known(own):
    index = live()
    outcome = index.apply([logged(Kind.JOB_STARTED, "JOB-A", level="WARN")], NOW)
    assert (outcome.unread, outcome.attributed, outcome.events) == ({"JOB-A"}, [], [])
    outcome = index.apply([read(own), gone("JOB-A")], NOW)
    assert [(t.entry.event_id, t.job_id) for t in outcome.attributed] == [(1, own)]
    assert kinds(outcome) == [(Kind.JOB_STARTED, own, 1)]
    outcome = index.apply([logged(Kind.JOB_COMPLETED, "joB-a", event_id=2)], NOW)
    assert (kinds(outcome), outcome.unread) == ([(Kind.JOB_COMPLETED, own, 2)], set())
    shown = there(index.published.get(own))
    assert (shown.view.status, shown.view.warnings) == (Status.COMPLETED, 1)
    assert index.published.get("JOB-A") is None


@pytest.mark.parametrize(("own", "name"), [("JOB-B", "JOB-B"), ("Job-B", "job-b"), (None, "JOB-B"), (None, "job-b")])
def test_a_row_causes_one_event_in_whatever_case_it_names_a_job_that_is_not_known_yet(own, name):
    """Without a job in the tables, the event has the name in the row."""
    index = live()
    events = kinds(index.apply([logged(Kind.JOB_STARTED, name)], NOW))
    events += kinds(index.apply([*([read(own)] if own else []), *([gone(name)] if own != name else [])], NOW))
    assert events == [(Kind.JOB_STARTED, name, 1)]
    assert index.apply([], NOW).events == []


def test_a_job_has_its_own_rows_also_if_another_differs_from_it_by_the_case_alone():
    index = live()
    index.apply([read("j"), read("J")], NOW)
    outcome = index.apply([logged(job_id="J"), logged(job_id="j", event_id=2)], NOW)
    assert [t.job_id for t in outcome.attributed] == ["J", "j"]
    index.apply([gone("J")], NOW)
    assert index.apply([logged(job_id="J", event_id=3)], NOW).attributed[0].job_id == "j"


def test_waiting_facts_are_bounded_and_the_oldest_are_passed_on_without_a_job():
    index = live()
    rows = [logged(job_id=None, step_id=n, event_id=n) for n in range(1, MAX_STEP_ROWS + 2)]
    outcome = index.apply(rows, NOW)
    assert [(t.entry.event_id, t.job_id) for t in outcome.attributed] == [(1, None)]


# -- transitions


def test_every_lifecycle_row_is_an_event_also_one_that_changes_nothing():
    index = live()
    index.apply([read(status="completed", completed_at=NOW)], NOW)
    outcome = index.apply([logged(Kind.JOB_FAILED, event_id=4), logged(Kind.JOB_COMPLETED, event_id=5)], NOW)
    assert kinds(outcome) == [(Kind.JOB_FAILED, "j", 4), (Kind.JOB_COMPLETED, "j", 5)]


def test_steps_that_could_not_be_read_before_are_no_news_once_they_can():
    index = live()
    index.apply([replace(read(), steps=None), logged(Kind.JOB_STARTED)], NOW)
    old = StepRecord(7, "copy", status="completed", started_at=BASE, completed_at=BASE)
    assert [shown.view.steps_complete for shown in index.published.all()] == [False]
    found = index.apply([read("j", "running", old, observed_at=9)], NOW)
    assert [(c.new.view.steps, c.new.view.steps_complete) for c in found.changes] == [((old,), True)]
    assert (found.lost, index.expire(NOW + GRACE).events) == ([], [])
    assert index.apply([read("j", "running", old, observed_at=10)], NOW + 9 * GRACE).lost == []
    failed = replace(old, status="failed", completed_at=NOW)
    index.apply([read("j", "running", failed, observed_at=11)], NOW)
    assert [e.kind for e in index.expire(NOW + GRACE).events] == [Kind.STEP_FAILED]


def test_transitions_that_nothing_will_announce_are_counted():
    index = live()
    steps = [StepRecord(n, "s", n, "running", NOW) for n in range(MAX_PENDING_TRANSITIONS + 3)]
    assert index.apply([read("j", "running", *steps)], NOW).dropped == 1 + 3, "the begin of the job too"


def test_a_child_that_leaves_memory_leaves_nothing_behind_even_without_a_parent():
    def left(parents: int) -> tuple[int, int]:
        """The jobs in memory and its bytes, after 100 children of so many parents have come and gone."""
        index = live(retention=100)
        for n in range(100):
            child = read(f"c{n}", "completed", parent_job_id=f"absent {n % parents}".ljust(200), completed_at=NOW)
            index.apply([child], NOW)
        index.expire(NOW + 100 * SECOND)
        return len(index.published), held(index)

    (alone, one), (none, many) = left(1), left(100)
    assert (alone, none) == (0, 0)
    assert many - one < 100 * 50, "bytes of their names"


def test_a_document_names_the_newest_thousand_children_and_the_number_of_all():
    index = live()
    index.apply([read("p")], NOW)
    for first in range(0, 1200, 400):
        index.apply([read(f"c{n:04}", parent_job_id="p", started_at=BASE + n) for n in range(first, first + 400)], NOW)
    shown = there(index.published.get("p"))
    assert shown.children == tuple(f"c{n:04}" for n in range(200, 1200))
    assert document_of(shown)["child_job_ids_cut"] == 1200


def test_jobs_that_are_stalled_are_no_reason_to_poll_often_until_one_of_them_speaks():
    index = live(stalled_after=lambda: 600)
    assert not index.known.lively
    index.apply([read("j", "running", updated_at=NOW)], NOW)
    assert index.known.lively
    index.expire(NOW + 601 * SECOND)
    assert not index.known.lively
    index.apply([read("j", "running", observed_at=2, updated_at=NOW + 602 * SECOND)], NOW + 602 * SECOND)
    assert index.known.lively


def test_what_is_nested_too_deep_to_be_written_harms_nothing():
    deep = "[" * 300 + "]" * 300
    entry, _ = joblog.read(LogRow(1, "Job failed", 1, attrs=f'{{"job_id":"j","error":{deep}}}'), 1)
    assert entry.error == "(nested too deep to be shown)"
    job = fold.fold(Job("j"), Reading("j", 1, JobRecord("j", metadata=f'{{"a":{deep},"vm_name":"x"}}'), ()))
    assert b'"vm_name":"x"' in document_text(PublishedJob(fold.view(job), 1, 1))
