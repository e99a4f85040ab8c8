"""Forecasts under any history, any order of events and any clock; and what a checkpoint restores."""

from __future__ import annotations

from itertools import pairwise
from operator import itemgetter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from correlator.forecast.estimate import HORIZON
from correlator.forecast.forecaster import Forecaster
from correlator.forecast.points import MIN_RUNS, JobPlace, events_of, place_of
from correlator.forecast.running import RunningJob
from correlator.jobs.forecasts import Accuracy
from correlator.state.forecasts import General, decode_operation, encode_operation
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
    names,
    runs,
    step_started,
)

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


@given(histories, runs(), st.lists(clocks, min_size=1, max_size=5))
def test_learning_while_a_job_runs_never_lowers_its_percent(history, run, clock):
    forecaster, running, shown = learned(history[:10]), RunningJob(OPERATION, "", place_of(run.start, run.steps)), 0.0
    for moved, more in zip(clock, history[10:], strict=False):
        forecaster.learn(more)
        found = running.forecast(forecaster, run.start + moved)
        if found is not None:
            assert found.percent >= shown
            shown = found.percent


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


@given(histories, runs(), clocks, clocks)
def test_a_restored_job_goes_on_with_its_percent_and_its_predicted_ends(history, run, first, second):
    forecaster = learned(history)
    running = RunningJob(OPERATION, run.entity, place_of(run.start, run.steps, run.percents))
    running.forecast(forecaster, run.start + first)
    restored = msgspec.msgpack.decode(msgspec.msgpack.encode(running), type=RunningJob)
    assert restored == running
    assert restored.forecast(forecaster, run.start + second) == running.forecast(forecaster, run.start + second)


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
