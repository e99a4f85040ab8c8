"""Forecasts of published jobs: what is shown of a job and when, which events it causes, and what is learned."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from itertools import islice, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from correlator.client.documents import remaining
from correlator.forecast.points import StepTimes, place_of
from correlator.jobs.forecasted_job import JudgedForecast, TrackedJob
from correlator.jobs.forecasts import MAX_JUDGED, MIN_CHECK_AFTER, Accuracy
from correlator.jobs.index import Index
from correlator.model.facts import Entry, Kind, Status
from correlator.model.persisted import PersistedForecast
from correlator.model.published import JobView
from correlator.model.rows import StepRecord
from tests.support.documents import document_of
from tests.support.fact_strategies import facts
from tests.support.forecast_index import (
    brief,
    complete,
    document,
    forecast,
    jumps,
    kinds,
    knowing,
    learned,
    of_operation,
    pass_time,
    read,
    restarted,
    seconds_left,
    step,
    usual,
)  # fmt: skip
from tests.support.forecasts import BASE, OPERATION, SECOND
from tests.support.there import there
from tests.support.yardstick import MOST_ROUNDS, assert_costs


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


# -- percent


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


@pytest.mark.parametrize("known", [0, 20])
def test_a_percent_that_is_reported_with_the_failure_counts(known):
    index = knowing(*usual(known))
    read(index, 1, percent_complete=20)
    read(index, 30, percent_complete=80, status="failed", completed_at=BASE + 30 * SECOND)
    assert (document(index)["progress"]["percent"], document(index)["progress"]["basis"]) == (80, "reported")
    read(index, 31, percent_complete=70, status="failed", completed_at=BASE + 30 * SECOND)
    assert document(index)["progress"]["percent"] == 80


@pytest.mark.parametrize(("status", "ended"), [(None, None), ("failed", BASE + 201 * SECOND)])
def test_a_job_that_pends_or_fails_for_a_moment_goes_on_with_its_percent_and_is_late_once(status, ended):
    index = knowing(*usual())
    read(index, 200, step(1, "snapshot", 0, 10), step(2, "copy", 10))
    before = document(index)["progress"]["percent"]
    read(index, 201, step(1, "snapshot", 0, 10), status=status, completed_at=ended)
    assert document(index)["forecast"] is None
    again = read(index, 202, step(1, "snapshot", 0, 10), step(2, "copy", 10))
    assert (document(index)["progress"]["percent"] >= before, document(index)["progress"]["basis"]) == (True, "history")
    assert kinds([again]) == []


@settings(max_examples=settings().max_examples // 2)
@given(facts(lasting=True), st.lists(jumps, min_size=15, max_size=15), st.integers(0, 12))
def test_percent_never_falls_while_a_job_runs_whatever_the_rows_tables_and_clock_say(found, jumped, known):
    index = knowing(*brief(known))
    shown: dict[str, list[dict[str, Any]]] = {}
    now = BASE
    for fact, jump in zip(found, jumped, strict=False):
        now += jump
        outcomes = index.renew_forecasts(now, learn=True), index.expire(now), index.apply([of_operation(fact)], now)
        for change in (change for outcome in outcomes for change in outcome.changes):
            job = change.new
            if job is None or job.view.status != "running":
                shown.pop(change.job_id, None)
                continue
            progress = document_of(job)["progress"]
            before = shown.setdefault(change.job_id, [])
            assert 0 <= progress["percent"] <= 99
            if {of["basis"] for of in [*before, progress]} in ({"history"}, {"reported"}):
                assert not before or before[-1]["percent"] <= progress["percent"]
            before.append(progress)
            if job.forecast is not None and (made := job.forecast.forecast) is not None:
                assert made.as_of <= made.p50 <= made.p90


@given(st.lists(st.sampled_from(["begin", "end", "again", "learn", "wait", *range(0, 120, 20)]), max_size=20))
def test_percent_falls_only_where_a_step_begins_whatever_it_rests_on(actions):
    index, steps, percent, at = knowing(), dict[str, StepRecord](), None, 1.0
    read(index, at)
    for action in actions:
        before, at = document(index)["progress"]["percent"], at + 3
        running = [name for name, found in steps.items() if found.status == "running"]
        begins = action == "begin" or (action == "again" and len(running) < len(steps))
        if action == "begin":
            name = f"s{len(steps)}"
            steps[name] = step(len(steps) + 1, name, at)
        elif action == "end" and running:
            steps[running[0]] = step(steps[running[0]].id, running[0], at - 3, at)
        elif begins:
            name = next(name for name in steps if name not in running)
            steps[name] = step(steps[name].id, name, at)
        elif action == "learn":
            index.forecasts.learn_history(usual(3))
        elif isinstance(action, int):
            percent = action
        if action == "wait":
            pass_time(index, at, since=at - 3)
        else:
            read(index, at, *steps.values(), percent_complete=percent, external_job_id=f"x{at}")
        assert begins or document(index)["progress"]["percent"] >= before
        assert document(index)["progress"]["percent"] <= 99


@pytest.mark.parametrize("begun", [step(3, "check", 15), step(1, "snapshot", 15)])
def test_a_percent_is_held_after_a_restart_until_a_step_begins_or_begins_again(begun):
    index = knowing(*usual(2))
    steps = step(1, "snapshot", 0, 10), step(2, "copy", 10)
    read(index, 11, *steps)
    read(index, 12, *steps, percent_complete=5)
    index = restarted(index, BASE + 13 * SECOND)
    read(index, 14, *steps, percent_complete=6)
    assert document(index)["progress"]["percent"] == 50.0
    read(index, 15, *{found.id: found for found in (*steps, begun)}.values(), percent_complete=7)
    assert document(index)["progress"]["percent"] == 7.0


@pytest.mark.parametrize(("copied", "end"), [(60, None), (75, "failed"), (400, "failed")])
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
        percents.append(there(remaining(shown, BASE / SECOND + at)).percent)
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
    assert all(later - earlier >= MIN_CHECK_AFTER for earlier, later in pairwise(times))


# -- learning


def test_a_run_is_learned_after_its_end_and_once():
    index = knowing()
    complete(index, "a", 0, 50)
    assert not pass_time(index, 51, since=50)[0].changes
    assert index.forecasts.forecaster.operation(OPERATION) is None
    pass_time(index, 60, since=51)
    operation = there(index.forecasts.forecaster.operation(OPERATION))
    assert operation.completed == 1
    read(index, 61, job_id="a", status="completed", completed_at=BASE + 51 * SECOND)
    pass_time(index, 70, since=61)
    assert operation.completed == 1


def test_a_run_ended_when_the_log_says_so_if_the_table_does_not():
    index = knowing(*usual(6))
    read(index, 0, job_id="a")
    end = BASE + 95 * SECOND
    index.apply([Entry(1, end, "INFO", "", index.advance_clock(), "a", kind=Kind.JOB_COMPLETED, by="attrs")], end)
    read(index, 96, job_id="a", status="completed")
    assert there(document(index, "a")["compared_with"])["percentile"] == pytest.approx(50, abs=20)
    pass_time(index, 100, since=96)
    assert learned(index) == 7


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
    compared = there(document(index, "slow")["compared_with"])
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


def test_each_run_that_ended_before_a_start_is_learned_once_from_the_history_or_from_memory():
    """The ends of the last minute may be committed behind the history."""
    index, now = Index(), 1_000
    index.loading = True
    ends = {f"job {n}": now - n for n in (0, 1, 30, 59, 60, 61, 62, 100, 121, 500)}
    for job_id, end in ends.items():
        read(index, now, job_id=job_id, status="completed", completed_at=BASE + end * SECOND)
    index.loading = False
    cutoff = now + 2 - 61
    index.forecasts.begin_history(BASE + cutoff * SECOND - 1)
    index.forecasts.learn_history(usual(sum(end < cutoff for end in ends.values())))
    read(index, now + 2, job_id="late", status="running")
    index.forecasts.end_history()
    read(index, now + 3, job_id="late", status="completed", completed_at=BASE + (now - 20) * SECOND)
    pass_time(index, now + 10, since=now + 3)
    assert learned(index) == len(ends) + 1


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


def test_runs_that_wait_to_be_learned_are_bounded():
    index = knowing(max_unlearned=5)
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


second = st.integers(0, 9)
tables = st.dictionaries(st.integers(1, 3), st.tuples(st.sampled_from("ab"), second, st.none() | second))
"""The steps of a job, as its table has them at one time: by ID, its name, start and end."""


@given(st.lists(tables, max_size=4))
def test_a_place_is_that_of_the_current_steps_however_the_tables_were_corrected_before(read_one_by_one):
    tracked, place = TrackedJob(JobView("j", Status.RUNNING, started_at=BASE)), place_of(BASE)
    for table in read_one_by_one:
        steps = tuple(step(number, *columns) for number, columns in table.items())
        tracked.follow(JobView("j", Status.RUNNING, started_at=BASE, steps=steps), BASE)
        place = place_of(BASE, [StepTimes(one.name, there(one.started_at), one.completed_at) for one in steps])
    assert tracked.running.place == place


def test_the_end_of_a_step_costs_a_forecast_hardly_more_in_a_job_of_ninety_steps_than_of_nine():
    def ending(count: int) -> Callable[[], None]:
        steps = [step(n, "a", n) for n in range(count)]
        running = JobView("j", Status.RUNNING, started_at=BASE, steps=tuple(steps))
        # A view makes the steps anew that the log alone knows.
        ended = replace(running, steps=(*map(copy, steps[:-1]), step(count - 1, "a", count - 1, count)))
        jobs = iter([TrackedJob(running, PersistedForecast(tracked=True)) for _ in range(50 * MOST_ROUNDS)])

        def follow() -> None:
            for job in islice(jobs, 50):
                job.follow(ended, BASE)

        return follow

    assert_costs(3, ending(9), ending(90))


# -- How good forecasts were: coverage of p90 and the error of p50, over the newest ended jobs


def test_each_job_has_the_same_weight_and_one_without_an_error_counts_for_coverage_only():
    accuracy = Accuracy()
    assert (accuracy.coverage(), accuracy.median_error()) == (None, None)
    accuracy.add(JudgedForecast(0.0, None))
    assert accuracy.median_error() is None
    for error in (0.1, 7.0, 0.3):
        accuracy.add(JudgedForecast(1.0, error))
    assert (accuracy.coverage(), accuracy.median_error()) == (0.75, 0.3)
    assert Accuracy().coverage() is None, "two of them share nothing"


def test_a_job_that_reported_its_percent_and_had_no_forecast_is_learned_and_does_not_count():
    index = knowing()
    read(index, 0, percent_complete=10)
    read(index, 50, status="completed", completed_at=BASE + 50 * SECOND, percent_complete=100)
    pass_time(index, 60, since=50)
    assert (learned(index), index.forecasts.accuracy) == (1, Accuracy())


def test_only_the_newest_jobs_count():
    accuracy = Accuracy()
    for _ in range(1_000):
        accuracy.add(JudgedForecast(0.0, 9.0))
    for n in range(MAX_JUDGED):
        assert len(accuracy.jobs) == MAX_JUDGED
        assert math.isclose(there(accuracy.coverage()), n / MAX_JUDGED)
        accuracy.add(JudgedForecast(1.0, 0.2))
    assert accuracy.coverage() == 1.0
    assert accuracy.median_error() == pytest.approx(0.2)
