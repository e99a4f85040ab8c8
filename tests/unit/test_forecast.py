"""Forecasts of running jobs: what earlier runs teach, what is shown without them, and what is bounded."""

from __future__ import annotations

from itertools import pairwise
from operator import itemgetter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from correlator.forecast.estimate import HORIZON
from correlator.forecast.forecaster import MAX_ENTITIES, MAX_OPERATIONS, MAX_POINTS, Forecaster
from correlator.forecast.points import MIN_RUNS, EndedRun, JobPlace, StepTimes, events_of, place_of
from correlator.forecast.running import MAX_PREDICTED, RunningJob
from correlator.forecast.window import KEEP
from correlator.jobs.forecasts import Accuracy
from correlator.model.document import ForecastState
from correlator.state.checkpoint import General, decode_operation, encode_operation
from tests.support.forecasts import (
    BASE,
    OPERATION,
    SECOND,
    durations,
    ended,
    forecast,
    histories,
    job,
    learned,
    left,
    names,
    operation,
    runs,
    step_ended,
    step_started,
)
from tests.support.there import there
from tests.support.yardstick import assert_costs


def usual(count: int, **settings) -> list[EndedRun]:
    """Runs of 10 + 60 + 20 seconds, which differ by up to 10 %, one every two minutes."""
    found = []
    for n in range(count):
        by = 1 + (n * 7 % 41 - 20) / 200
        steps = (("snapshot", 10 * by), ("copy", 60 * by), ("attach", 20 * by))
        found.append(ended(*steps, start=BASE + n * 120 * SECOND, **settings))
    return found


def in_copy(snapshot: int = 10, **settings) -> RunningJob:
    """A job whose copy has just started, after a snapshot of 10 seconds."""
    found, started = job(**settings), BASE + snapshot * SECOND
    step_started(found.place, "snapshot", BASE)
    step_ended(found.place, "snapshot", BASE, started)
    step_started(found.place, "copy", started)
    return found


# Basis


def test_there_is_no_forecast_before_three_runs_have_completed():
    runs = usual(3)
    failed = [ended(("snapshot", 1.0), completed=False)] * 5
    assert in_copy().forecast(learned([*runs[:2], *failed]), BASE + 20 * SECOND) is None
    found = forecast(in_copy(), learned(runs), BASE + 20 * SECOND)
    assert (found.runs, found.state) == (3, ForecastState.ROUGH)
    states = [forecast(in_copy(), learned(usual(count)), BASE + 20 * SECOND).state for count in (9, 10)]
    assert states == [ForecastState.ROUGH, ForecastState.ON_TRACK]


def test_a_renamed_step_is_known_after_three_runs():
    forecaster = learned(usual(20))
    for n in range(3):
        forecaster.learn(ended(("take-snapshot", 10.0), ("copy", 60.0), start=BASE + (30 + n) * 120 * SECOND))
    renamed = job()
    step_started(renamed.place, "take-snapshot", BASE)
    found = forecast(renamed, forecaster, BASE)
    assert found.runs == 3
    assert left(found) == pytest.approx(70, abs=3)


# What the estimate takes into account


def test_a_vm_whose_earlier_runs_took_three_times_as_long_gets_a_later_end():
    runs = []
    for n in range(60):
        by, vm = (3, "large") if n % 4 == 0 else (1, f"vm{n % 4}")
        runs.append(ended(("snapshot", 5), ("copy", 60 * by * (1 + n % 7 / 50)), start=BASE + n * 300 * SECOND, vm=vm))
    forecaster = learned(runs)
    small, large = (forecast(in_copy(vm=vm), forecaster, BASE + 10 * SECOND) for vm in ("vm1", "large"))
    assert left(small) == pytest.approx(64, rel=0.2)
    assert left(large) > 2 * left(small)


def test_steps_that_run_at_the_same_time_make_a_point_of_their_own():
    def parallel(n: int, disks: int) -> EndedRun:
        start = BASE + n * 400 * SECOND
        steps = [StepTimes(f"disk-{d}", start, start + (50 + 100 * d) * SECOND) for d in range(disks)]
        return EndedRun(OPERATION, "", start, start + (50 + 100 * (disks - 1)) * SECOND, True, tuple(steps))

    forecaster = learned([parallel(n, 2 + n % 2) for n in range(24)])

    def after_first_disk(disks: int) -> float:
        running = job()
        for d in range(disks):
            step_started(running.place, f"disk-{d}", BASE)
        step_ended(running.place, "disk-0", BASE, BASE + 50 * SECOND)
        return left(forecast(running, forecaster, BASE + 50 * SECOND))

    assert after_first_disk(2) == pytest.approx(100, rel=0.05)
    assert after_first_disk(3) == pytest.approx(200, rel=0.05)


def test_a_percent_that_the_job_reports_is_evidence():
    def reporting(n: int) -> EndedRun:
        start, seconds = BASE + n * 1000 * SECOND, 100 if n % 2 else 800
        percents = tuple((start + k * seconds * SECOND // 10, 10.0 * k) for k in range(1, 11))
        return EndedRun(OPERATION, "", start, start + seconds * SECOND, True, (), percents)

    forecaster = learned([reporting(n) for n in range(30)])
    silent, fast = job(), job()
    fast.place.percent_reported(10, BASE + 10 * SECOND)
    assert left(forecast(silent, forecaster, BASE + 10 * SECOND)) > 700
    assert left(forecast(fast, forecaster, BASE + 10 * SECOND)) == pytest.approx(90, rel=0.3)


@pytest.mark.parametrize(("count", "remaining"), [(0, 15), (9, 15), (10, 1)])
def test_a_percent_that_fewer_than_ten_earlier_runs_reported_moves_no_end(count: int, remaining: float):
    silent = [ended(("copy", 60.0), ("boot", 20.0)) for _ in range(20)]
    reporting = [replace(run, percents=((run.end - 1 * SECOND, 90.0),)) for run in silent[:count]]
    forecaster, booting = learned([*silent, *reporting]), job()
    step_started(booting.place, "copy", BASE)
    step_ended(booting.place, "copy", BASE, BASE + 60 * SECOND)
    step_started(booting.place, "boot", BASE + 60 * SECOND)
    assert booting.place.percent_reported(90, BASE + 65 * SECOND)
    assert left(forecast(booting, forecaster, BASE + 65 * SECOND)) == pytest.approx(remaining, abs=1)


def test_after_a_change_of_regime_only_the_new_runs_count():
    slower = [ended(("snapshot", 30.0), ("copy", 180.0), start=BASE + (200 + 3 * n) * 120 * SECOND) for n in range(12)]
    found = forecast(in_copy(30), learned([*usual(40), *slower]), BASE + 30 * SECOND)
    assert found.runs < 20
    assert left(found) == pytest.approx(180, rel=0.1)


def test_equal_runs_are_no_change_of_regime_whatever_rounding_does():
    runs = [ended(("copy", 60.1), start=BASE + n * 120 * SECOND, vm=f"vm{n % 3}") for n in range(60)]
    started = job(vm="vm1")
    step_started(started.place, "copy", BASE)
    assert forecast(started, learned(runs), BASE).runs == 60


# Hung and late jobs


def test_a_job_is_not_late_because_its_next_event_becomes_known_late():
    runs = [ended(("snapshot", 10), ("copy", 60 + n % 9), ("attach", 20 + n % 7 / 9)) for n in range(40)]
    forecaster, between = learned(runs), in_copy()
    step_ended(between.place, "copy", BASE + 10 * SECOND, BASE + 78 * SECOND)
    found = forecast(between, forecaster, BASE + 78 * SECOND + SECOND // 2)
    assert found.state is ForecastState.ON_TRACK
    assert (found.p90 - found.as_of) / SECOND == pytest.approx(20.5, abs=0.7)


# Steps ahead


def test_steps_ahead_have_their_share_and_their_typical_time():
    runs = usual(20)
    runs += [ended(("snapshot", 10), ("copy", 60), ("drivers", 7), ("attach", 20), start=BASE + n) for n in range(10)]
    steps = operation(learned(runs)).steps
    drivers, attach = steps.ahead("copy")
    assert (drivers.name, drivers.typical_seconds, attach.name, attach.share) == ("drivers", 7, "attach", 1)
    assert drivers.share == pytest.approx(1 / 3)
    assert steps.ahead("attach") == ()
    assert [step.name for step in steps.ahead(None)] == ["snapshot", "copy", "drivers", "attach"]


def test_a_step_typically_takes_the_median_of_the_earlier_runs():
    steps = operation(learned([ended(("copy", seconds)) for seconds in (40.0, 20.0, 60.0)])).steps
    assert steps.typical_seconds("copy") == 40


def test_a_retry_of_a_step_is_followed_by_what_followed_its_last_execution():
    runs = [ended(("copy", 10), ("wait", 5), ("copy", 30), ("attach", 9), start=BASE + n) for n in range(10)]
    steps = operation(learned(runs)).steps
    assert [step.name for step in steps.ahead("copy")] == ["attach"]
    assert steps.typical_seconds("copy") == 40


def test_an_ended_run_is_compared_with_earlier_ones():
    forecaster = learned(usual(22))
    slow, fast = forecaster.compare(OPERATION, 500), forecaster.compare(OPERATION, 1)
    assert slow is not None
    assert fast is not None
    assert (slow.percentile, slow.runs) == (100, 22)
    assert slow.typical_seconds == pytest.approx(90, rel=0.05)
    assert fast.percentile == 0
    assert learned(usual(2)).compare(OPERATION, 1) is None


# Ended runs


def test_the_level_of_p90_rises_when_jobs_end_after_it():
    forecaster, runs = learned(usual(20)), usual(40)
    before = operation(forecaster).level
    for run in runs[20:]:
        forecaster.learn(run, predicted_ends=[run.end - 1])
    assert operation(forecaster).level > before
    forecaster.learn(ended(("copy", 1), operation=("failover", "new")))
    new = there(forecaster.operation(("failover", "new")))
    assert new.level > before, "a new operation begins with the average level"
    for run in runs * 3:
        forecaster.learn(run, predicted_ends=[run.end + 1])
    assert operation(forecaster).level < before


# Bounds


def test_operations_points_and_vms_are_bounded():
    forecaster = Forecaster(max_entities=MAX_ENTITIES)
    for n in range(MAX_OPERATIONS + 20):
        forecaster.learn(ended(("copy", 1), operation=("t", f"o{n}")))
    assert len(forecaster) == MAX_OPERATIONS
    assert forecaster.operation(("t", "o0")) is None
    for n in range(MAX_ENTITIES + 50):
        forecaster.learn(ended(("copy", 1), vm=f"vm{n}"))
    assert operation(forecaster).entities == MAX_ENTITIES
    forecaster.learn(ended(("copy", 1), vm="one more", operation=("t", "other")))
    assert operation(forecaster).entities == 0


def test_a_vm_that_was_forgotten_passes_nothing_on_to_the_next_one():
    runs = []
    for n in range(60):
        by, vm = (5, "large") if n % 3 == 0 else (1, f"vm{n % 3}")
        runs.append(ended(("snapshot", 5), ("copy", 60 * by * (1 + n % 7 / 50)), start=BASE + n * 400 * SECOND, vm=vm))
    forecaster = learned(runs)
    before = left(forecast(in_copy(vm="large"), forecaster, BASE + 10 * SECOND))
    for n in range(MAX_ENTITIES):
        forecaster.learn(ended(("other", 1), vm=f"new{n}"))
    for n in range(MAX_ENTITIES - 3, MAX_ENTITIES):
        assert left(forecast(in_copy(vm=f"new{n}"), forecaster, BASE + 10 * SECOND)) < before / 2


def test_a_job_of_a_thousand_steps_is_learned_and_forecast_within_the_bounds():
    def long(n: int) -> EndedRun:
        return ended(*((f"step-{i}", 1.0) for i in range(1000)), start=BASE + n * 2000 * SECOND)

    forecaster = learned([long(n) for n in range(12)])
    running = RunningJob(OPERATION, "", place_of(BASE, long(0).steps[:20]))
    assert left(forecast(running, forecaster, BASE + 20 * SECOND)) == pytest.approx(980, rel=0.01)
    beyond = RunningJob(OPERATION, "", place_of(BASE, long(0).steps[:500]))
    assert forecast(beyond, forecaster, BASE + 500 * SECOND).runs == 12
    points = operation(forecaster).state.points
    assert "step-0+" in points, "the first steps are kept, whatever follows"
    assert len(points) <= MAX_POINTS
    assert len(encode_operation(operation(forecaster))) < 200_000


def test_the_newest_hundred_runs_count():
    forecaster = learned(usual(KEEP + 50))
    assert forecast(in_copy(), forecaster, BASE + 10 * SECOND).runs == KEEP
    stored = len(encode_operation(operation(forecaster)))
    assert len(encode_operation(operation(learned(usual(30), forecaster)))) == stored


def test_ends_that_are_judged_later_are_bounded():
    forecaster, running = learned(usual(5)), job()
    for n in range(100):
        step_started(running.place, f"step-{n}", BASE + n)
        forecast(running, forecaster, BASE + n)
    assert len(running.predicted_ends) == MAX_PREDICTED


def test_a_forecast_costs_the_same_however_many_steps_the_job_has_done():
    forecaster = learned(usual(KEEP))

    def asking(steps: int):
        done = [StepTimes(f"step-{n}", BASE + n, BASE + n + 1) for n in range(steps)]
        running = RunningJob(OPERATION, "", place_of(BASE, [*done, StepTimes("copy", BASE + steps, None)]))
        return lambda: [forecast(running, forecaster, BASE + steps + n) for n in range(500)]

    assert_costs(2, asking(1), asking(5000))


def test_learning_a_run_of_ten_thousand_steps_costs_little_more_than_one_of_a_hundred():
    def learning(steps: int):
        forecaster, run = learned(usual(KEEP)), ended(*((f"step-{n}", 1.0) for n in range(steps)))
        return lambda: forecaster.learn(run)

    assert_costs(10, learning(100), learning(10_000))


# -- Forecasts under any history, any order of events and any clock; and what a checkpoint restores


clocks = st.one_of(st.integers(-10 * SECOND, 7200 * SECOND), st.integers(-(10**15), 10**15))


@given(histories, runs(), st.randoms(), st.lists(clocks, min_size=1, max_size=20))
def test_percent_never_falls_and_p50_comes_before_p90(history, run, random, clock):
    forecaster = learned(history)
    running = RunningJob(OPERATION, run.entity, JobPlace(run.start))
    events = events_of(run.steps, run.percents)
    random.shuffle(events)
    shown = []
    for moved in clock:
        if events:
            running.place.apply(events.pop())
        found = running.forecast(forecaster, run.start + moved)
        assert (found is None) == (sum(r.completed and r.end >= r.start for r in history) < MIN_RUNS)
        if found is not None:
            assert found.as_of <= found.p50 <= found.p90 <= found.as_of + HORIZON * SECOND
            shown.append(found.percent)
    assert all(a <= b for a, b in pairwise(shown))
    assert all(0 <= percent <= 99 for percent in shown)


@given(runs(), st.randoms())
def test_the_order_in_which_steps_become_known_does_not_change_the_place(run, random):
    events = events_of(run.steps)
    expected = place_of(run.start, run.steps)
    random.shuffle(events)
    found = JobPlace(run.start)
    for event in events:
        found.apply(event)
    assert found == expected
    assert found.moments == expected.moments


@given(histories, runs(), clocks)
def test_a_restored_forecaster_gives_the_same_forecasts(history, run, moved):
    forecaster = Forecaster()
    for ended_run in history:
        forecaster.learn(ended_run, predicted_ends=[ended_run.end - 1])
    stored = General(forecaster.level, forecaster.tails, tuple(key for key, _ in forecaster), Accuracy(), BASE)
    general = msgspec.msgpack.decode(msgspec.msgpack.encode(stored), type=General)
    operations = [(key, decode_operation(encode_operation(operation))) for key, operation in forecaster]
    restored = Forecaster(general.level, general.tails)
    restored.restore(operations)
    assert general == stored
    for known in (forecaster, restored):
        known.learn(run, predicted_ends=[run.end - 1])
        known.learn(ended(("copy", 1.0), operation=("failover", "new")))
    place = place_of(run.start, run.steps[:2], run.percents)
    before, after = (
        RunningJob(OPERATION, run.entity, place).forecast(known, run.start + moved) for known in (forecaster, restored)
    )
    assert before == after
    for (_, one), (_, other) in zip(forecaster, restored, strict=True):
        assert encode_operation(one) == encode_operation(other)
        assert one.steps.ahead("copy") == other.steps.ahead("copy")


@given(st.binary(max_size=40), st.integers(0, 10**6), st.booleans())
def test_a_damaged_operation_is_refused_or_still_forecasts(noise, where, cut):
    forecaster = learned([ended(("copy", 10.0 + n), start=BASE + n * SECOND, vm=f"vm{n % 3}") for n in range(12)])
    ((key, operation),) = forecaster
    stored = encode_operation(operation)
    where %= len(stored)
    damaged = stored[:where] + noise + (b"" if cut else stored[where + len(noise) :])
    try:
        restored = decode_operation(damaged)
    except (ValueError, msgspec.MsgspecError):
        return
    known = Forecaster()
    known.restore([(key, restored)])
    running = job(vm="vm1")
    step_started(running.place, "copy", BASE)
    running.forecast(known, BASE + SECOND)
    known.learn(ended(("copy", 5.0), vm="vm1"))


@pytest.mark.parametrize("change", ["slots", "waits", "negative", "start", "durations", "vm runs", "vms", "variants"])
def test_an_operation_whose_parts_disagree_is_refused(change):
    forecaster = learned([ended(("copy", 10.0 + n), vm=f"vm{n % 3}") for n in range(12)])
    ((_, operation),) = forecaster
    state = msgspec.msgpack.decode(encode_operation(operation))
    if change == "slots":
        state["start"]["slots"] = bytes(12)
    elif change == "waits":
        state["start"]["wait"] = state["start"]["wait"][4:]
    elif change == "negative":
        state["start"]["remaining"] = b"\0\0\x80\xbf" * 12
    elif change == "start":
        state["start"] = {}
    elif change == "durations":
        state["durations"] = {}
    elif change == "vm runs":
        state["start"]["vm_runs"] = bytes([64, 4, 4])
    elif change == "vms":
        state["entities"] = {"vm0": 5}
    else:
        state["steps"]["runs"] = bytes([7])
    with pytest.raises(ValueError, match="inconsistent"):
        decode_operation(msgspec.msgpack.encode(state))


@given(st.lists(st.tuples(names, durations), min_size=1, max_size=4, unique_by=itemgetter(0)), st.integers(12, 130))
def test_equal_runs_predict_themselves(steps, count):
    run = ended(*((name, micros / SECOND) for name, micros in steps))
    forecaster = learned([run] * count)
    running = RunningJob(OPERATION, "", place_of(run.start, run.steps[:1]))
    found = forecast(running, forecaster, run.steps[0].ended_at or run.start)
    if found.as_of < run.end:
        assert (found.p50, found.p90) == pytest.approx((run.end, run.end), abs=10 + run.seconds)
