"""The merge is a join: the same facts, in any order and repeated, end in the same job; and which fact holds."""

import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from correlator.jobs import fold, joblog
from correlator.jobs.model import (
    Entry,
    Job,
    JobRecord,
    Kind,
    LegacyRecord,
    LogRow,
    Reading,
    Status,
    StepRecord,
)
from tests.replay import Insert, expected

BASE = 1_758_553_933_000_000
SECOND = 1_000_000
JOB_KINDS = [k for k in Kind if k.value.startswith("job.") and k not in (Kind.JOB_STALLED, Kind.JOB_RECOVERED)]
STEP_KINDS = [k for k in Kind if k.of_step]
JOBS = ("a", "b", "c")
STEPS = {"a": (1, 2), "b": (3,), "c": (4, 5)}
few = settings(max_examples=settings().max_examples // 4)
"""For the second and later looks at the same made-up facts."""

# -- facts, made up

times = st.integers(0, 5).map(lambda s: BASE + s * SECOND)
ends = st.none() | times
texts = st.sampled_from(["", "x", "y"])
statuses = st.sampled_from(["pending", "running", "completed", "failed", "cancelled", None, "odd"])
metadata = st.sampled_from(
    [None, "{", '{"failover_job_id":"ext-1"}', '{"gui_job_id":"ext-2","external_job_id":"ext-3"}']
)


@st.composite
def entries(draw, job_id, event_id, tick):
    step_id = draw(st.sampled_from(STEPS[job_id]))
    kind = draw(st.none() | st.sampled_from(JOB_KINDS) | st.sampled_from(STEP_KINDS))
    return Entry(
        event_id=event_id,
        at=draw(times),
        level=draw(st.sampled_from(["DEBUG", "INFO", "WARN", "ERROR"])),
        message=draw(texts),
        tick=tick,
        job_id=job_id,
        step_id=step_id if kind is None or kind.of_step else None,
        external_ids=draw(st.sampled_from([(), ("ext-1",), ("ext-2", "ext-4")])),
        kind=kind,
        error=draw(st.sampled_from([None, "boom"])),
        step_name=draw(texts),
        sequence=draw(st.integers(0, 3)),
        job_type=draw(texts),
        operation=draw(texts),
        owner=draw(texts),
        parent_job_id=draw(texts),
        percent=draw(st.none() | st.integers(0, 100)) if kind is None else None,
    )


@st.composite
def readings(draw, job_id, tick, *, lasting=False):
    """What one look found. `lasting`: the row and all of its steps are there, as with a job that nobody deletes."""
    record = JobRecord(
        job_id,
        status=draw(statuses),
        external_job_id=draw(st.sampled_from([None, "ext-1", "ext-5"])),
        metadata=draw(metadata),
        error_message=draw(st.sampled_from([None, "read"])),
        started_at=draw(times),
        completed_at=draw(ends),
        percent_complete=draw(st.none() | st.integers(0, 255)),
        context_id=draw(st.sampled_from([None, "ctx"])),
    )
    steps = tuple(
        StepRecord(
            i, "s", i, draw(st.sampled_from(["running", "completed", "failed", "skipped"])), draw(times), draw(ends)
        )
        for i in STEPS[job_id]
    )
    if lasting:
        return Reading(job_id, tick, record, steps)
    there = draw(st.sampled_from([steps, steps[:1], (), None]))
    return Reading(job_id, tick, draw(st.none() | st.just(record)), there)


@st.composite
def facts(draw, *, lasting=False):
    """Facts about one to three jobs, each event id and each tick once; `lasting`: every job is read at least once."""
    jobs = JOBS[: draw(st.integers(1, 3))]
    kinds = draw(st.lists(st.tuples(st.sampled_from(jobs), st.booleans()), max_size=12))
    kinds += [(j, True) for j in jobs] if lasting else []
    ticks = draw(st.permutations(range(1, len(kinds) + 1)))
    ids = draw(st.permutations(range(1, len(kinds) + 1)))
    return [
        draw(readings(job_id, tick, lasting=lasting) if is_reading else entries(job_id, event_id, tick))
        for (job_id, is_reading), tick, event_id in zip(kinds, ticks, ids, strict=True)
    ]


@st.composite
def told_twice(draw, made):
    """Some facts, and the same in another order with some of them repeated."""
    once = draw(made)
    again = draw(st.lists(st.sampled_from(once), max_size=6)) if once else []
    return once, draw(st.permutations(once + again))


def joined(found):
    jobs: dict[str, Job] = {}
    for fact in found:
        jobs[fact.job_id] = fold.fold(jobs.get(fact.job_id) or Job(fact.job_id), fact)
    return jobs


@given(told_twice(facts()))
def test_the_same_facts_in_any_order_and_repeated_end_in_the_same_job(told):
    once, again = map(joined, told)
    assert once == again
    assert {i: fold.view(j) for i, j in once.items()} == {i: fold.view(j) for i, j in again.items()}


@few
@given(facts())
def test_a_fact_that_is_known_changes_nothing_at_all(found):
    jobs = joined(found)
    for fact in found:
        assert fold.fold(jobs[fact.job_id], fact) == jobs[fact.job_id]


@few
@given(facts())
def test_percent_is_100_only_when_the_job_completed_and_always_then(found):
    for job in joined(found).values():
        view = fold.view(job)
        assert (view.percent == 100) is (view.status is Status.COMPLETED)
        assert 0 <= view.percent <= 100


@few
@given(facts())
def test_an_end_has_a_time_only_where_the_job_ended(found):
    for job in joined(found).values():
        view = fold.view(job)
        assert view.terminal or view.ended_at is None


def test_counting_stays_a_join_when_it_is_full(monkeypatch):
    monkeypatch.setattr(fold, "MAX_COUNTED", 3)
    found = [Entry(i, BASE - i, "WARN", "w", i, "j") for i in range(1, 8)]
    one = joined(found)["j"]
    for seed in range(5):
        assert joined(random.Random(seed).sample(found, len(found)))["j"].warnings == one.warnings
    assert fold.view(one).warnings == 3


def test_steps_known_from_the_log_alone_are_bounded(monkeypatch):
    monkeypatch.setattr(fold, "MAX_STEPS", 2)
    found = [Entry(i, BASE, "INFO", "", i, "j", i, kind=Kind.STEP_STARTED) for i in range(1, 9)]
    assert len(joined(found)["j"].steps) == 2


# -- facts, recorded


def micros(text):
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return None if text is None else (datetime.fromisoformat(text + "Z") - epoch) // timedelta(microseconds=1)


def reading_of(tables, job_id, tick):
    row = tables["job_tracking"][job_id]
    stamps = {n: micros(row[n]) for n in ("started_at", "completed_at", "created_at", "updated_at", "canceled_at")}
    same = ("operation", "status", "job_type", "parent_job_id", "external_job_id", "metadata", "error_message")
    more = ("percent_complete", "owner", "context_id", "job_category")
    record = JobRecord(job_id, **{n: row[n] for n in same + more}, **stamps)
    steps = tuple(
        StepRecord(
            s["id"],
            s["name"],
            s["seq"],
            s["status"],
            micros(s["started_at"]),
            micros(s["completed_at"]),
            s["error_message"],
        )
        for s in sorted(tables["job_steps"].values(), key=lambda s: (s["seq"], s["id"]))
        if s["job_id"] == job_id
    )
    children = (
        (micros(r["started_at"]), r["id"]) for r in tables["job_tracking"].values() if r["parent_job_id"] == job_id
    )
    return Reading(job_id, tick, record, steps, tuple(sorted(children)))


def row_of(row):
    same = ("id", "message", "level", "job_id", "step_id", "attrs", "external_job_id")
    return LogRow(ts=micros(row["ts"]), **{n: row[n] for n in same})


def facts_of(recording, chance, *, looks=40):
    """Every log row, seen some time after its commit; looks at random moments; and a last look at every job.

    An event seen before a look began is in what that look found, as JobLog writes its tables first.
    """
    seen = [
        (commit + chance.random() * 50, row_of(operation.row))
        for commit, transaction in enumerate(recording)
        for operation in transaction.operations
        if isinstance(operation, Insert) and operation.table == "log_events"
    ]
    looked = []
    for commit in sorted(chance.sample(range(1, len(recording)), looks)):
        tables = expected(recording[: commit + 1])
        some = chance.sample(sorted(tables["job_tracking"]), min(20, len(tables["job_tracking"])))
        looked += [(commit + 0.999, tables, job_id) for job_id in some]
    final = expected(recording)
    moments = sorted({m for m, _ in seen} | {m for m, _, _ in looked})
    tick_at = {moment: tick for tick, moment in enumerate(moments, 1)}
    found = [joblog.read(row, tick_at[moment])[0] for moment, row in seen]
    found += [reading_of(tables, job_id, tick_at[moment]) for moment, tables, job_id in looked]
    found += [reading_of(final, job_id, len(moments) + 1) for job_id in final["job_tracking"]]
    chance.shuffle(found)
    return found


def agrees(view, tables):
    """`view` is what the tables say of this job, and of each of its steps."""
    row = tables["job_tracking"][view.job_id]
    steps = {s["id"]: s for s in tables["job_steps"].values() if s["job_id"] == view.job_id}
    assert view.status == row["status"]
    assert (view.error or None) == (row["error_message"] or None)
    assert view.started_at == micros(row["started_at"])
    ended = row["completed_at"] or row["canceled_at"]
    assert view.ended_at == (micros(ended) if row["status"] not in ("pending", "running") else None)
    assert (view.percent == 100) is (row["status"] == "completed")
    done = sum(s["status"] == "completed" for s in steps.values())
    if row["percent_complete"] is None and row["status"] != "completed":
        assert view.percent == (min(99.0, round(100 * done / len(steps), 1)) if steps else 0)
    assert [s.id for s in view.steps] == sorted(steps, key=lambda i: (steps[i]["seq"], i))
    for step in view.steps:
        of = steps[step.id]
        told = (
            of["name"],
            of["seq"],
            of["status"],
            micros(of["started_at"]),
            micros(of["completed_at"]),
            of["error_message"],
        )
        assert (step.name, step.seq, step.status, step.started_at, step.completed_at, step.error_message) == told


@pytest.mark.parametrize("seed", range(3))
def test_the_recording_in_any_order_ends_as_its_tables(recording, seed):
    tables = expected(recording)
    jobs = joined(f for f in facts_of(recording, random.Random(seed)) if f.job_id in tables["job_tracking"])
    assert jobs.keys() == tables["job_tracking"].keys()
    for job in jobs.values():
        agrees(fold.view(job), tables)


# -- which fact holds: R the reading of tick 10, events seen before (9) or after (11) it began


def heard(kind, *, tick=11, at=BASE, event_id=1, error=None, step_id=None):
    return Entry(event_id, at, "INFO", "", tick, "j", step_id, kind=kind, error=error)


def read(status, *steps, **columns):
    return Reading("j", 10, JobRecord("j", status=status, started_at=BASE, **columns), steps)


def seen(*found):
    return fold.view(joined(found)["j"])


@pytest.mark.parametrize(
    ("table", "kind", "tick", "shown"),
    [
        # R has ended: it holds, whatever the log says and when
        ("completed", Kind.JOB_FAILED, 11, "completed"),
        ("failed", Kind.JOB_COMPLETED, 11, "failed"),
        ("cancelled", Kind.JOB_COMPLETED, 11, "cancelled"),
        ("completed", Kind.JOB_STARTED, 11, "completed"),
        # E ranks higher and was seen after R's look began
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
        (None, Kind.JOB_STARTED, 9, "pending"),
        # E ranks no higher
        ("running", Kind.JOB_STARTED, 11, "running"),
        # a word of a later JobLog is work under way
        ("paused", Kind.JOB_STARTED, 9, "running"),
        ("paused", Kind.JOB_FAILED, 11, "failed"),
    ],
)
def test_the_table_holds_unless_the_log_is_ahead(table, kind, tick, shown):
    assert seen(read(table), heard(kind, tick=tick)).status == shown
    assert seen(heard(kind, tick=tick), read(table)).status == shown


@pytest.mark.parametrize(
    ("table", "kind", "tick", "shown"),
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
def test_steps_follow_the_same_rule(table, kind, tick, shown):
    view = seen(read("running", StepRecord(5, "s", 1, table)), heard(kind, tick=tick, step_id=5))
    assert [(s.id, s.name, s.status) for s in view.steps] == [(5, "s", shown)]


@pytest.mark.parametrize("later_id", [1, 9])
def test_of_two_endings_the_later_ts_holds_even_with_the_lower_id(later_id):
    earlier = heard(Kind.JOB_FAILED, event_id=5, at=BASE, error="boom")
    later = heard(Kind.JOB_COMPLETED, event_id=later_id, at=BASE + 1000, tick=12)
    for order in ((earlier, later), (later, earlier)):
        view = seen(read("running"), *order)
        assert (view.status, view.ended_at, view.error) == (Status.COMPLETED, BASE + 1000, None)


def test_of_two_endings_of_one_instant_the_higher_id_holds():
    failed, completed = heard(Kind.JOB_FAILED, event_id=2), heard(Kind.JOB_COMPLETED, event_id=3)
    assert seen(completed, failed).status is Status.COMPLETED


def test_an_end_outranks_a_start_that_was_logged_later():
    assert (
        seen(heard(Kind.JOB_FAILED, at=BASE), heard(Kind.JOB_STARTED, at=BASE + 5, event_id=9)).status is Status.FAILED
    )


def test_an_event_is_not_compared_by_its_ts_with_the_tables_whole_seconds():
    view = seen(read("completed", completed_at=BASE), heard(Kind.JOB_FAILED, at=BASE + 900_000))
    assert (view.status, view.ended_at) == (Status.COMPLETED, BASE)


def test_of_several_readings_the_latest_look_holds():
    old = Reading("j", 3, JobRecord("j", status="running"), ())
    new = Reading("j", 4, JobRecord("j", status="failed", completed_at=BASE), ())
    assert seen(new, old) == seen(old, new) == seen(new)


def test_the_error_is_the_events_until_the_tables_is_read():
    failed = heard(Kind.JOB_FAILED, error="told")
    assert seen(read("running"), failed).error == "told"
    assert seen(read("failed", error_message="read"), failed).error == "read"


def test_the_end_of_a_cancelled_job_is_when_it_was_cancelled():
    assert seen(read("cancelled", canceled_at=BASE + 7)).ended_at == BASE + 7


def test_a_job_may_complete_with_failed_steps():
    view = seen(read("completed", StepRecord(1, "s", 1, "failed"), StepRecord(2, "t", 2, "completed")))
    assert (view.status, view.percent, [s.status for s in view.steps]) == (
        Status.COMPLETED,
        100.0,
        ["failed", "completed"],
    )


def test_a_step_of_the_log_alone_is_shown_only_when_heard_of_after_the_look():
    late, early = heard(Kind.STEP_STARTED, step_id=5), heard(Kind.STEP_STARTED, step_id=6, tick=9)
    assert [s.id for s in seen(read("running"), late, early).steps] == [5]


def test_reported_progress_holds_from_wherever_it_was_seen_last():
    reported = Entry(1, BASE, "DEBUG", "", 11, "j", percent=40)
    early = Entry(2, BASE, "DEBUG", "", 9, "j", percent=40)
    steps = StepRecord(1, "s", 1, "completed")
    shown = [seen(read("running", steps, percent_complete=7), r) for r in (reported, early)]
    assert [(v.percent, v.basis) for v in shown] == [(40.0, "reported"), (7.0, "reported")]
    alone = seen(read("running", steps, StepRecord(2, "t", 2)))
    assert (alone.percent, alone.basis) == (50.0, "steps")


def test_all_steps_done_is_not_yet_100():
    assert seen(read("running", StepRecord(1, "s", 1, "completed"))).percent == 99.0


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
    metadata = joblog.metadata_object(view.metadata)
    assert metadata is not None
    assert (metadata["legacy_status"], fold.vm_name(view)) == (word, "vm")
    assert view.ended_at == (BASE if view.terminal else None)
