"""Forecasts across a restart: a daemon that continues from its checkpoint says what one that never stopped says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from correlator.forecast.points import EndedRun
from correlator.jobs.index import Index
from correlator.model.facts import Kind, Reading
from correlator.model.persisted import PersistedJob
from correlator.state.checkpoint import StoredForecasts, decode_forecasts, encode_operation
from tests.support.fact_strategies import facts
from tests.support.forecast_index import (
    Disk,
    brief,
    document,
    documents,
    forecast,
    jumps,
    kinds,
    knowing,
    of_operation,
    pass_time,
    read,
    restarted,
    step,
    usual,
)  # fmt: skip
from tests.support.forecasts import BASE, OPERATION, SECOND
from tests.support.there import there


@st.composite
def histories(draw):
    """Facts about jobs of `OPERATION` and of none, each read at first; and how many come before the restart."""
    found = [fact if fact.job_id == "c" else of_operation(fact) for fact in draw(facts(lasting=True))]
    known: dict[str, Reading] = {}
    for fact in found:
        if isinstance(fact, Reading):
            known.setdefault(fact.job_id, fact)
    ordered = [*known.values(), *(fact for fact in found if fact not in known.values())]
    return [replace(fact, observed_at=n) for n, fact in enumerate(ordered, 1)], draw(
        st.integers(len(known), len(ordered))
    )


@given(histories(), st.lists(jumps, min_size=16, max_size=16), st.integers(1, 12))
def test_a_daemon_that_restarts_shows_and_announces_what_one_shows_that_never_stopped(found, jumped, known):
    all_facts, restart_before = found
    index, now = knowing(*brief(known)), BASE
    both, disk = [index], Disk(index)
    for n, (fact, jump) in enumerate(zip([*all_facts, None], jumped, strict=False)):
        now += jump
        for one in both:
            one.expire(now)
        disk.write()
        if n == restart_before:
            both.append(disk.restarted(now))
            assert documents(both[0]) == documents(both[1])
        announced = []
        for one in both:
            # A restarted daemon checks all forecasts at once: let both do so, as checks depend on the time of the last.
            one.forecasts.check_next(j.job_id for j in one.published.all() if j.view.status == "running")
            outcomes = [one.renew_forecasts(now, learn=True), one.expire(now)]
            outcomes += [one.apply([fact], now)] if fact is not None else []
            announced.append({kind for kind in kinds(outcomes) if kind in {Kind.JOB_LATE, Kind.JOB_OVERDUE}})
        assert announced[0] == announced[-1]
        assert documents(both[0]) == documents(both[-1])
    assert both[0].forecasts.accuracy == both[-1].forecasts.accuracy
    first, last = ([encode_operation(operation) for _, operation in one.forecasts.forecaster] for one in both)
    assert first == last


@pytest.mark.parametrize("why", ["stalled", "child", "check"])
def test_a_forecast_that_time_or_a_child_changed_survives_a_restart_and_is_announced_once(why):
    index = knowing(*usual(), stalled_after=lambda: 150)
    disk = Disk(index)
    read(index, 12, step(1, "snapshot", 0, 10), step(2, "copy", 10))
    disk.write()
    if why == "stalled":
        made = index.expire(BASE + 200 * SECOND)
    elif why == "child":
        made = read(index, 200, job_id="child", operation="other", parent_job_id="j")
    else:
        made = index.renew_forecasts(BASE + 200 * SECOND, learn=True)
    assert Kind.JOB_OVERDUE in kinds([made])
    disk.write()
    new = disk.restarted(BASE + 200 * SECOND, stalled_after=lambda: 150)
    assert document(new)["progress"] == document(index)["progress"]
    assert forecast(new) == forecast(index)
    assert Kind.JOB_OVERDUE not in kinds(pass_time(new, 300, since=200))


def test_percents_that_a_clock_reported_that_was_set_back_are_restored_in_their_order():
    def reporting(run: EndedRun) -> EndedRun:
        percents = ((run.start + 20 * SECOND, 30.0), (run.start + 60 * SECOND, 52.0))
        return replace(run, steps=(), percents=percents)

    index = knowing(*map(reporting, usual()))
    read(index, 50, percent_complete=30, updated_at=BASE + 50 * SECOND)
    read(index, 51, percent_complete=52, updated_at=BASE + 20 * SECOND)
    new = restarted(index, BASE + 52 * SECOND)
    for one in index, new:
        read(one, 53, percent_complete=52, owner="somebody")
    assert documents(new) == documents(index)


@pytest.mark.parametrize("status", ["running", "failed"])
def test_a_job_that_a_client_requests_while_it_is_restored_keeps_its_forecast(status):
    index = knowing(*usual())
    read(index, 1, job_id="other")
    read(index, 300, step(1, "snapshot", 0, 10), step(2, "copy", 10))
    before = document(index)["progress"]["percent"]
    stored = [job for name in ("other", "j") if isinstance(job := index.persisted(name), PersistedJob)]
    new = Index()
    new.forecasts.restore(index.forecasts.forecaster, index.forecasts.accuracy, BASE)
    end = BASE + 300 * SECOND if status == "failed" else None
    steps = new.restore(stored, (), index.state(), BASE + 301 * SECOND, at_once=1)
    next(steps)
    read(new, 301, step(1, "snapshot", 0, 10), step(2, "copy", 10), status=status, completed_at=end)
    assert len(list(steps)) == 1
    new.loading = False
    assert document(new)["progress"]["percent"] >= before
    assert (document(new)["forecast"] is None) == (status == "failed")
    assert [event for made in pass_time(new, 400, since=301) for event in made.events if event.job_id == "j"] == []


def test_a_history_that_was_not_read_to_its_end_is_not_stored():
    index = Index()
    index.forecasts.begin_history(BASE)
    index.forecasts.learn_history(usual())
    assert StoredForecasts(index.forecasts).changed() == {}
    assert not index.forecasts.history_read


def test_a_write_stores_a_bounded_number_of_operations_and_those_that_changed():
    index = knowing(*(run for n in range(40) for run in usual(3, operation=("failover", f"o{n}"))))
    stored = StoredForecasts(index.forecasts)
    first, second, third = stored.changed(), stored.changed(), stored.changed()
    assert (len(first), len(second), third) == (32, 8 + 1, {})
    index.forecasts.learn_history(usual(1, operation=("failover", "o7")))
    assert min(stored.changed()) == '["failover","o7"]'


def test_a_file_that_lacks_operations_is_no_history_and_one_that_had_them_all_stays_one():
    runs = [run for n in range(40) for run in usual(3, operation=("failover", f"o{n}"))]
    index = knowing(*runs)
    stored, file = StoredForecasts(index.forecasts), dict[str, bytes]()
    for known in (None, 40):
        file |= {name: value for name, value in stored.changed().items() if value is not None}
        decoded = decode_forecasts(file)
        assert (len(decoded.forecaster) if decoded is not None else None) == known
    index.forecasts.learn_history(runs)
    file |= {name: value for name, value in stored.changed().items() if value is not None}
    assert len(there(decode_forecasts(file)).forecaster) == 40


@pytest.mark.parametrize("damage", [b"", b"\x00", b"\xff" * 40])
def test_a_damaged_operation_begins_anew_and_the_others_stay(damage: bytes):
    index = knowing(*usual(3), *usual(3, operation=("failover", "other")))
    values = {name: value for name, value in StoredForecasts(index.forecasts).changed().items() if value is not None}
    decoded = there(decode_forecasts({**values, '["failover","other"]': damage}))
    assert [key for key, _ in decoded.forecaster] == [OPERATION]
    assert decode_forecasts({**values, "all operations": damage}) is None
    assert decode_forecasts({}) is None
