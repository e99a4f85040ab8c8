"""Forecasts of published jobs: what is shown of a job and when, which events it causes, and what a restart keeps."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from correlator.client.remaining import remaining
from correlator.jobs import forecasts as forecasts_module
from correlator.jobs import job_document, shapes
from correlator.jobs.forecast.place import EndedRun, StepTimes
from correlator.jobs.forecasts import CHECK_AFTER, History
from correlator.jobs.index import Index
from correlator.jobs.model.changes import Event
from correlator.jobs.model.facts import Entry, Kind, Reading
from correlator.jobs.model.persisted import IndexState, PersistedJob
from correlator.jobs.model.rows import JobRecord, LegacyRecord, Micros, StepRecord
from correlator.jobs.outcome import Outcome
from correlator.jobs.stored_forecasts import StoredForecasts, decode
from tests.support.fact_strategies import facts
from tests.support.forecasts import BASE, OPERATION, SECOND, ended


def long_ago(number: int) -> Micros:
    """The start of an earlier run."""
    return BASE - 86_400 * SECOND + number * 200 * SECOND


def usual(count: int = 20, *, operation: tuple[str, str] = OPERATION) -> list[EndedRun]:
    """Runs of 90 s or so: a snapshot of 10 s, a copy of 60 to 79 s, an attachment of 15 s."""
    return [
        ended(
            ("snapshot", 10),
            ("copy", 60 + 7 * n % 20),
            ("attach", 15),
            start=long_ago(n),
            operation=operation,
        )
        for n in range(count)
    ]


def knowing(*runs: EndedRun, **settings: Any) -> Index:
    """An index that is ready, and has read these runs as its history."""
    index = Index(**settings)
    index.loading = False
    index.forecasts.begin_history(BASE - 1)
    index.forecasts.learn_history(runs)
    index.forecasts.end_history()
    return index


def read(
    index: Index, at: float, *steps: StepRecord, status: str = "running", job_id: str = "j", **columns: Any
) -> Outcome:
    """The tables say so, `at` seconds after the job began."""
    columns = {"started_at": BASE, "job_type": OPERATION[0], "operation": OPERATION[1], **columns}
    record = JobRecord(job_id, status=status, **columns)
    return index.apply([Reading(job_id, index.advance_clock(), record, steps)], BASE + round(at * SECOND))


def step(number: int, name: str, started_at: float, ended_at: float | None = None) -> StepRecord:
    """A step that began so many seconds after the job did."""
    end = None if ended_at is None else BASE + round(ended_at * SECOND)
    status = "running" if ended_at is None else "completed"
    return StepRecord(number, name, number, status, BASE + round(started_at * SECOND), end)


def learned(index: Index) -> int:
    """The completed runs of `OPERATION` that were learned."""
    operation = index.forecasts.forecaster.operation(OPERATION)
    assert operation is not None
    return operation.completed


def pass_time(index: Index, until: float, *, since: float = 0.0) -> list[Outcome]:
    """Check what is due, once a second."""
    found = []
    for at in range(int(since) + 1, int(until) + 1):
        now = BASE + at * SECOND
        found.append(index.renew_forecasts(now, learn=True))
        while index.forecasts.has_due(now, learn=True):
            found.append(index.renew_forecasts(now, learn=True))
    return found


def document(index: Index, job_id: str = "j") -> shapes.Document:
    shown = index.published.get(job_id)
    assert shown is not None
    return job_document.document(shown)


def forecast(index: Index, job_id: str = "j") -> shapes.Forecast:
    found = document(index, job_id)["forecast"]
    assert found is not None
    return found


def seconds_left(index: Index, at: float, quantile: str = "p50") -> float:
    shown = index.published.get("j")
    assert shown is not None
    assert shown.forecast is not None
    assert shown.forecast.forecast is not None
    end = shown.forecast.forecast.p50 if quantile == "p50" else shown.forecast.forecast.p90
    return (end - BASE) / SECOND - at


def kinds(outcomes: list[Outcome]) -> list[Kind]:
    return [event.kind for outcome in outcomes for event in outcome.events]


# -- what is shown


def test_a_running_job_has_percent_end_and_steps_ahead_from_earlier_runs():
    index = knowing(*usual())
    read(index, 12, step(1, "snapshot", 0, 10), step(2, "copy", 10))
    shown = document(index)
    assert shown["progress"]["basis"] == "history"
    assert shown["progress"]["percent"] == pytest.approx(12.5, abs=1.5)
    assert shown["progress"]["steps_expected"] == 3
    assert seconds_left(index, 12) == pytest.approx(83, abs=5)
    assert seconds_left(index, 12, "p90") > seconds_left(index, 12)
    assert forecast(index)["state"] == "on_track"
    assert forecast(index)["runs"] == 20
    assert forecast(index)["typical_seconds"] == pytest.approx(95, abs=2)
    assert forecast(index)["failure_rate"] == 0
    assert forecast(index)["steps_ahead"] == [{"name": "attach", "share": 1.0, "typical_seconds": 15.0}]


def test_without_three_earlier_runs_steps_are_counted_as_before():
    index = knowing(*usual(2))
    read(index, 12, step(1, "snapshot", 0, 10), step(2, "copy", 10))
    shown = document(index)
    assert (shown["progress"]["percent"], shown["progress"]["basis"]) == (50.0, "steps")
    assert shown["progress"]["steps_expected"] is None
    assert shown["forecast"] is None


def test_a_new_operation_gets_forecasts_once_three_runs_have_completed():
    index = knowing()
    for n in range(4):
        job_id = f"new{n}"
        began, end = BASE + 100 * n * SECOND, BASE + (100 * n + 90) * SECOND
        read(index, 100 * n, job_id=job_id, started_at=began)
        assert (document(index, job_id)["forecast"] is not None) == (n == 3), n
        read(index, 100 * n + 90, job_id=job_id, started_at=began, status="completed", completed_at=end)
        pass_time(index, 100 * n + 95, since=100 * n + 90)


def test_a_silent_job_gets_its_first_forecast_when_the_runs_of_its_operation_have_been_read():
    index = Index()
    index.loading = False
    read(index, 1, step(1, "snapshot", 0))
    assert document(index)["forecast"] is None
    index.forecasts.begin_history(BASE - 1)
    index.forecasts.learn_history(usual())
    index.forecasts.check_next(["j"])
    (outcome,) = pass_time(index, 1)
    assert [change.job_id for change in outcome.changes] == ["j"]
    assert forecast(index)["runs"] == 20


def test_fewer_than_ten_runs_are_called_rough():
    index = knowing(*usual(5))
    read(index, 5, step(1, "snapshot", 0))
    assert forecast(index)["state"] == "rough"


def test_renamed_steps_are_compared_from_the_start_of_the_job():
    index = knowing(*usual())
    read(index, 40, step(1, "take-snapshot", 0, 10), step(2, "copy-disks", 10))
    assert seconds_left(index, 40) == pytest.approx(55, abs=5)
    assert forecast(index)["steps_ahead"] == []


def test_parallel_steps_are_compared_with_runs_that_had_the_same_steps_at_once():
    def parallel(n: int) -> EndedRun:
        start, end = long_ago(n), long_ago(n) + 80 * SECOND
        steps = StepTimes("disk-a", start, start + 40 * SECOND), StepTimes("disk-b", start, end)
        return EndedRun(OPERATION, "", start, end, True, steps)

    index = knowing(*(parallel(n) for n in range(12)))
    read(index, 50, step(1, "disk-a", 0, 40), step(2, "disk-b", 0))
    assert seconds_left(index, 50) == pytest.approx(30, abs=2)
    assert document(index)["progress"]["percent"] == pytest.approx(62, abs=3)


def test_a_retried_step_is_ahead_again_with_all_that_follows_it():
    index = knowing(*usual())
    once = step(1, "snapshot", 0, 10), step(2, "copy", 10, 70), step(3, "attach", 70, 75)
    read(index, 100, *once, step(4, "copy", 76))
    assert [ahead["name"] for ahead in forecast(index)["steps_ahead"]] == ["attach"]
    assert document(index)["progress"]["percent"] < 99


def test_a_job_without_steps_is_compared_by_its_age():
    index = knowing(
        *(EndedRun(OPERATION, "", long_ago(n), long_ago(n) + (50 + 7 * n % 20) * SECOND, True) for n in range(20))
    )
    read(index, 30)
    assert document(index)["progress"]["percent"] == pytest.approx(50, abs=5)
    assert document(index)["progress"]["steps_expected"] == 0
    assert forecast(index)["steps_ahead"] == []


def test_a_legacy_job_has_no_forecast():
    index = knowing(*usual(operation=("failover", "live-failover")))
    index.apply_legacy([LegacyRecord(1, "old", "snapshotting", job_type="live", created_at=BASE, apart=True)], (), BASE)
    shown = document(index, "old")
    assert (shown["progress"]["basis"], shown["forecast"], shown["compared_with"]) == ("legacy", None, None)


def test_a_child_job_is_compared_with_runs_of_its_own_operation():
    index = knowing(*usual(), *usual(operation=("failover", "child")))
    read(index, 5, job_id="parent")
    read(index, 5, step(1, "snapshot", 0), job_id="child", operation="child", parent_job_id="parent")
    assert forecast(index, "child")["runs"] == 20
    assert forecast(index, "parent")["runs"] == 20


def test_a_job_without_a_known_operation_has_no_forecast():
    index = knowing(*usual())
    read(index, 5, operation=None)
    assert document(index)["forecast"] is None
    read(index, 90, operation=None, status="completed", completed_at=BASE + 90 * SECOND)
    pass_time(index, 95, since=90)
    assert len(index.forecasts.forecaster) == 1


# -- percent


def test_a_reported_percent_stays_reported_and_does_not_fall():
    index = knowing(*usual())
    for at, percent, shown in (5, 30, 30.0), (6, 20, 30.0), (7, 55, 55.0), (8, None, 55.0):
        read(index, at, percent_complete=percent)
        assert (document(index)["progress"]["percent"], document(index)["progress"]["basis"]) == (shown, "reported")
    assert forecast(index)["runs"] == 20


def test_a_reported_percent_does_not_fall_without_a_history_either():
    index = knowing()
    read(index, 5, percent_complete=30)
    read(index, 6, percent_complete=20)
    assert document(index)["progress"]["percent"] == 30.0
    assert document(index)["forecast"] is None


def test_a_reported_percent_below_the_one_that_was_shown_does_not_lower_it():
    index = knowing(*usual())
    read(index, 80, step(1, "snapshot", 0, 10), step(2, "copy", 10))
    before = document(index)["progress"]["percent"]
    read(index, 80, step(1, "snapshot", 0, 10), step(2, "copy", 10), percent_complete=10)
    assert document(index)["progress"]["percent"] == before > 70


def test_a_failed_job_keeps_its_percent_and_a_completed_one_has_all():
    for status, expected in ("failed", None), ("cancelled", None), ("completed", 100.0):
        index = knowing(*usual())
        read(index, 30, step(1, "snapshot", 0, 10), step(2, "copy", 10))
        before = document(index)["progress"]["percent"]
        read(
            index,
            30,
            step(1, "snapshot", 0, 10),
            step(2, "copy", 10, 30),
            status=status,
            completed_at=BASE + 30 * SECOND,
        )
        assert document(index)["progress"]["percent"] == (before if expected is None else expected)
        assert document(index)["progress"]["basis"] == "history"
        assert document(index)["forecast"] is None


def test_a_job_that_seemed_to_have_failed_for_a_moment_goes_on_with_its_percent():
    index = knowing(*usual())
    read(index, 60, step(1, "snapshot", 0, 10), step(2, "copy", 10))
    before = document(index)["progress"]["percent"]
    read(index, 61, step(1, "snapshot", 0, 10), status="failed", completed_at=BASE + 61 * SECOND)
    read(index, 62, step(1, "snapshot", 0, 10))
    assert document(index)["progress"]["percent"] >= before
    assert document(index)["progress"]["basis"] == "history"


@settings(max_examples=settings().max_examples // 2)
@given(facts(lasting=True), st.lists(st.integers(-3600, 3600), min_size=12, max_size=12), st.integers(0, 5))
def test_percent_never_falls_while_a_job_runs_whatever_the_rows_tables_and_clock_say(found, jumps, known):
    index = knowing(*(replace(run, operation=("x", "y")) for run in usual(known * 3)), *usual(known))
    shown: dict[str, float] = {}
    now = BASE
    for fact, jump in zip(found, jumps * 3, strict=False):
        now += jump * SECOND
        renewed = index.renew_forecasts(now, learn=True)
        for change in (*index.apply([fact], now).changes, *renewed.changes):
            job = change.new
            running = job is not None and job.view.status == "running"
            percent = job.forecast.percent if running and job is not None and job.forecast is not None else None
            if job is not None and percent is not None:
                assert percent >= shown.get(change.job_id, 0.0)
                assert percent <= 99
                shown[change.job_id] = percent
                if job.forecast is not None and (made := job.forecast.forecast) is not None:
                    assert made.as_of <= made.p50 <= made.p90
            elif not running:
                shown.pop(change.job_id, None)


@pytest.mark.parametrize("end", ["failed", None])
@pytest.mark.parametrize("copied", [60, 75, 140, 400])
def test_a_bar_that_clients_move_by_the_clock_is_never_put_back_by_the_next_document(copied, end):
    index = knowing(*usual())
    percents: list[float] = []
    steps: list[StepRecord] = []
    for at in range(1, copied + 25):
        steps = [step(1, "snapshot", 0, 10 if at >= 10 else None)]
        steps += [step(2, "copy", 10, 10 + copied if at >= 10 + copied else None)] if at >= 10 else []
        if at in (1, 10, 10 + copied):
            read(index, at, *steps)
        pass_time(index, at, since=at - 1)
        shown: dict[str, Any] = {**document(index)}
        found = remaining(shown, BASE / SECOND + at)
        assert found is not None
        percents.append(found.percent)
    read(index, copied + 25, *steps, status=end or "running", completed_at=end and BASE + (copied + 25) * SECOND)
    percents.append(document(index)["progress"]["percent"])
    assert percents == sorted(percents)
    assert percents[-1] > 50


# -- time


def test_nothing_changes_between_events_while_the_end_stays_where_it_is():
    index = knowing(*usual())
    read(index, 12, step(1, "snapshot", 0, 10), step(2, "copy", 10))
    assert not [change for outcome in pass_time(index, 50, since=12) for change in outcome.changes]


def line(index: Index, at: float, event_id: int) -> None:
    """A log line of the job, so many seconds after it began."""
    now = BASE + round(at * SECOND)
    index.apply([Entry(event_id, now, "INFO", "working", index.advance_clock(), "j", by="attrs")], now)


def test_log_lines_renew_a_forecast_once_a_second():
    index = knowing(*usual())
    read(index, 12, step(1, "snapshot", 0, 10), step(2, "copy", 10))
    made = []
    for n in range(30):
        line(index, 12 + n / 10, n)
        made.append(forecast(index)["as_of"])
    assert len(set(made)) == 3
    read(index, 15.05, step(1, "snapshot", 0, 10), step(2, "copy", 10, 15))
    assert forecast(index)["as_of"] == document(index)["updated_at"]


def test_a_hung_step_is_late_then_overdue_and_each_is_announced_once():
    index = knowing(*usual())
    read(index, 12, step(1, "snapshot", 0, 10), step(2, "copy", 10))
    outcomes = pass_time(index, 3600, since=12)
    assert kinds(outcomes) == [Kind.JOB_LATE, Kind.JOB_OVERDUE]
    assert forecast(index)["state"] == "overdue"
    stands = document(index)["progress"]["percent"]
    assert stands < 99
    times = [change.new.updated_at for outcome in outcomes for change in outcome.changes if change.new is not None]
    early = sum(at < BASE + 1800 * SECOND for at in times)
    assert len(times) - early < early / 2, "the longer it hangs, the less often its document changes"
    read(index, 3601, step(1, "snapshot", 0, 10), step(2, "copy", 10, 3600), step(3, "attach", 3600))
    assert forecast(index)["state"] == "on_track"
    assert not kinds(pass_time(index, 3610, since=3601))
    assert document(index)["progress"]["percent"] >= stands


def test_a_forecast_is_renewed_at_most_every_five_seconds_between_events():
    index = knowing(*usual())
    read(index, 12, step(1, "snapshot", 0, 10), step(2, "copy", 10))
    outcomes = pass_time(index, 400, since=12)
    times = [change.new.updated_at for outcome in outcomes for change in outcome.changes if change.new is not None]
    assert all(later - earlier >= CHECK_AFTER[0] for earlier, later in pairwise(times))


def test_the_jump_of_a_clock_does_not_stop_forecasts():
    index = knowing(*usual())
    read(index, 12, step(1, "snapshot", 0, 10), step(2, "copy", 10))
    index.renew_forecasts(BASE + 7200 * SECOND, learn=True)
    percent = document(index)["progress"]["percent"]
    read(index, 13, step(1, "snapshot", 0, 10), step(2, "copy", 10, 13), step(3, "attach", 13))
    assert document(index)["progress"]["percent"] >= percent
    assert seconds_left(index, 13) == pytest.approx(15, abs=3)
    assert forecast(index)["state"] == "on_track"
    assert [change for outcome in pass_time(index, 100, since=13) for change in outcome.changes]


# -- learning


def complete(index: Index, job_id: str, began: float, took: float, status: str = "completed") -> None:
    start, end = BASE + round(began * SECOND), BASE + round((began + took) * SECOND)
    read(index, began, job_id=job_id, started_at=start)
    read(index, began + took, job_id=job_id, started_at=start, completed_at=end, status=status)


def test_a_run_is_learned_after_its_end_and_once():
    index = knowing()
    complete(index, "a", 0, 50)
    assert not pass_time(index, 51, since=50)[0].changes
    assert index.forecasts.forecaster.operation(OPERATION) is None
    pass_time(index, 60, since=51)
    operation = index.forecasts.forecaster.operation(OPERATION)
    assert operation is not None
    assert operation.completed == 1
    read(index, 61, job_id="a", status="completed", completed_at=BASE + 51 * SECOND)
    pass_time(index, 70, since=61)
    assert operation.completed == 1


def test_failed_and_cancelled_runs_only_raise_the_failure_rate():
    index = knowing(*usual(6))
    complete(index, "a", 0, 1, "failed")
    complete(index, "b", 0, 1, "cancelled")
    pass_time(index, 10)
    read(index, 10, job_id="c")
    assert forecast(index, "c")["failure_rate"] == 0.25
    assert forecast(index, "c")["runs"] == 6


def test_an_ended_job_is_compared_with_earlier_runs():
    index = knowing(*usual())
    complete(index, "slow", 0, 500)
    compared = document(index, "slow")["compared_with"]
    assert compared is not None
    assert (compared["runs"], compared["percentile"]) == (20, 100.0)
    assert compared["typical_seconds"] == pytest.approx(95, abs=2)
    pass_time(index, 510, since=500)
    read(index, 511, job_id="slow", status="completed", completed_at=BASE + 499 * SECOND)
    assert document(index, "slow")["compared_with"] == compared


def test_jobs_that_ended_before_the_first_start_come_from_the_history_alone():
    index = Index()
    index.loading = True
    read(index, 100, job_id="past", status="completed", completed_at=BASE + 50 * SECOND)
    index.loading = False
    index.forecasts.begin_history(BASE + 60 * SECOND)
    index.forecasts.end_history()
    pass_time(index, 200, since=100)
    assert index.forecasts.forecaster.operation(OPERATION) is None


def test_runs_that_end_while_the_history_is_read_are_learned_after_it():
    index = Index()
    index.loading = False
    index.forecasts.begin_history(BASE - 1)
    complete(index, "a", 0, 50)
    pass_time(index, 60, since=50)
    assert index.forecasts.forecaster.operation(OPERATION) is None
    index.forecasts.learn_history(usual(3))
    index.forecasts.end_history()
    pass_time(index, 61, since=60)
    assert learned(index) == 4


def test_a_history_that_begins_again_counts_no_run_twice():
    index = Index()
    index.forecasts.begin_history(BASE)
    index.forecasts.learn_history(usual(5))
    index.forecasts.begin_history(BASE)
    index.forecasts.learn_history(usual(5))
    assert learned(index) == 5


def test_runs_that_wait_to_be_learned_are_bounded(monkeypatch):
    monkeypatch.setattr(forecasts_module, "MAX_UNLEARNED", 5)
    index = knowing()
    for n in range(12):
        complete(index, f"j{n}", n, 50)
    pass_time(index, 200, since=100)
    assert learned(index) == 5


def test_one_call_learns_and_renews_a_bounded_number():
    index = knowing()
    for n in range(25):
        complete(index, f"j{n}", n, 50)
    now = BASE + 100 * SECOND
    calls = 1
    index.renew_forecasts(now, learn=True)
    while index.forecasts.has_due(now, learn=True):
        index.renew_forecasts(now, learn=True)
        calls += 1
    assert calls == 3


def test_the_share_of_ends_within_p90_is_counted():
    index = knowing(*usual())
    assert index.forecasts.accuracy.coverage() is None
    complete(index, "a", 0, 90)
    complete(index, "b", 200, 900)
    pass_time(index, 1200, since=1100)
    assert index.forecasts.accuracy.coverage() == 0.5


# -- a restart


def restarted(index: Index, now: Micros) -> Index:
    """A new daemon that reads what the checkpoint has of `index`, written at `now`."""
    stored = StoredForecasts(index.forecasts)
    values = {name: value for name, value in stored.changed(1000).items() if value is not None}
    decoded = decode(values)
    assert decoded is not None
    jobs = [index.persistence.get(shown.job_id) for shown in index.published.all()]
    new = Index()
    StoredForecasts(new.forecasts).restore(decoded)
    for _ in new.restore(
        [job for job in jobs if isinstance(job, PersistedJob)], (), IndexState(index.advance_clock()), now
    ):
        pass
    new.loading = False
    return new


def scene(index: Index) -> None:
    """A job in its second step, one that reports its percent, one that has just failed, and one that hangs."""
    read(index, 12, step(1, "snapshot", 0, 10), step(2, "copy", 10))
    read(index, 13, job_id="reports", percent_complete=35)
    complete(index, "failed", 10, 5, "failed")
    read(index, 16, job_id="hangs", started_at=BASE - 3600 * SECOND)
    pass_time(index, 16, since=15)


def shown(index: Index) -> dict[str, Any]:
    return {job.job_id: {**document(index, job.job_id), "rev": 0} for job in index.published.all()}


def test_a_restart_changes_no_forecast_and_what_follows_is_the_same():
    index = knowing(*usual())
    scene(index)
    new = restarted(index, BASE + 17 * SECOND)
    assert shown(new) == shown(index)
    for one in index, new:
        pass_time(one, 30, since=17)
        read(one, 31, step(1, "snapshot", 0, 10), step(2, "copy", 10, 31), step(3, "attach", 31))
        read(one, 32, job_id="reports", percent_complete=30)
        read(one, 33, job_id="hangs", started_at=BASE - 3600 * SECOND, owner="somebody")
        complete(one, "next", 34, 20)
        read(
            one,
            60,
            step(1, "snapshot", 0, 10),
            step(2, "copy", 10, 31),
            step(3, "attach", 31, 60),
            status="completed",
            completed_at=BASE + 60 * SECOND,
        )
        pass_time(one, 70, since=60)
        read(one, 71, job_id="later", started_at=BASE + 70 * SECOND)
    assert shown(new) == shown(index)
    assert new.forecasts.accuracy == index.forecasts.accuracy


def test_an_event_is_not_announced_again_after_a_restart():
    index = knowing(*usual())
    scene(index)
    assert kinds(pass_time(restarted(index, BASE + 17 * SECOND), 40, since=17)) == []


def test_a_history_that_was_not_read_to_its_end_is_not_stored():
    index = Index()
    index.forecasts.begin_history(BASE)
    index.forecasts.learn_history(usual())
    assert StoredForecasts(index.forecasts).changed() == {}
    assert index.forecasts.history is History.READING


def test_a_write_stores_a_bounded_number_of_operations_and_those_that_changed():
    index = knowing(*(run for n in range(40) for run in usual(3, operation=("failover", f"o{n}"))))
    stored = StoredForecasts(index.forecasts)
    first, second, third = stored.changed(), stored.changed(), stored.changed()
    assert (len(first), len(second), third) == (32 + 2, 8 + 2, {})
    index.forecasts.learn_history(usual(1, operation=("failover", "o7")))
    assert min(stored.changed()) == '["failover","o7"]'


def test_operations_that_were_not_written_are_written_next_time():
    index = knowing(*usual(3))
    stored = StoredForecasts(index.forecasts)
    lost = stored.changed()
    stored.mark_again(lost)
    assert stored.changed() == lost


def test_an_operation_that_was_forgotten_leaves_the_checkpoint():
    index = knowing(*usual(3, operation=("failover", "first")))
    stored = StoredForecasts(index.forecasts)
    stored.changed()
    index.forecasts.learn_history(run for n in range(256) for run in usual(1, operation=("failover", f"o{n}")))
    assert stored.changed(1000)['["failover","first"]'] is None


@pytest.mark.parametrize("damage", [b"", b"\x00", b"\xff" * 40])
def test_a_damaged_operation_begins_anew_and_the_others_stay(damage: bytes):
    index = knowing(*usual(3), *usual(3, operation=("failover", "other")))
    values = {name: value for name, value in StoredForecasts(index.forecasts).changed().items() if value is not None}
    decoded = decode({**values, '["failover","other"]': damage})
    assert decoded is not None
    assert [key for key, _ in decoded.forecaster] == [OPERATION]
    assert decode({**values, "rest": damage}) is None
    assert decode({}) is None


def test_an_event_about_lateness_names_the_job_and_no_log_row():
    index = knowing(*usual())
    events = read(index, 200, step(1, "snapshot", 0, 10), step(2, "copy", 10)).events
    assert Event(Kind.JOB_OVERDUE, "j", BASE + 200 * SECOND) in events
    assert Kind.JOB_LATE not in [event.kind for event in events]
