"""The hour that the end of daylight saving time repeats: what is new is of now, what is old follows its order."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from correlator.model.facts import Reading
from correlator.model.rows import JobRecord
from correlator.sources.db import zones
from correlator.sources.db.queries import Queries, read_readings
from correlator.sources.db.session import TABLES, Dialect, Schema
from tests.support.pipeline_harness import PipelineHarness
from tests.support.there import there

BERLIN = zones.named("Europe/Berlin")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST, SECOND = datetime(2026, 10, 25, 0, 30, tzinfo=UTC), datetime(2026, 10, 25, 1, 30, tzinfo=UTC)
"""Both are 02:30 on a clock in Berlin."""


def micros(when: datetime) -> int:
    return (when - EPOCH) // timedelta(microseconds=1)


def local(when: datetime) -> int:
    """What a clock in Berlin shows, as a DATETIME is read."""
    return micros(when.astimezone(ZoneInfo("Europe/Berlin")).replace(tzinfo=UTC))


class Log:
    """A session whose log has these rows, as they were written."""

    def __init__(self, *rows: tuple[int, datetime]) -> None:
        attrs = '{"job_id":"j"}'
        self._rows = [(i, f"row {i}", local(at), "INFO", None, None, attrs, None) for i, at in rows]

    async def query(self, sql, args=()):
        return self._rows

    async def close(self) -> None: ...


def queries(now: datetime) -> Queries:
    """`now`: the time of this host."""
    schema = Schema({t: dict.fromkeys(c, "datetime" if t == "log_events" else "text") for t, c in TABLES.items()})
    return Queries(
        Dialect("?", "{}", "{}", "", "", "LENGTH({})", "{}", "", "{}"), schema, BERLIN, clock=lambda: micros(now)
    )


@pytest.mark.parametrize("hour", [FIRST, SECOND])
async def test_a_row_that_has_just_been_written_is_of_the_hour_that_it_is_now(hour):
    asked = queries(hour + timedelta(seconds=2))
    (row,) = await asked.light_rows_from(Log((1, hour)), 1, 10)
    (late,) = await asked.light_rows_in(Log((1, hour)), [1])
    assert (row.ts, late.ts) == (micros(hour), micros(hour))


@pytest.mark.parametrize("minutes", [range(-90, 150, 10), (-40, 20, 31, 80, 89, 91)])
async def test_rows_of_the_past_are_read_in_their_order_through_both_hours(minutes):
    times = [FIRST + timedelta(minutes=m) for m in minutes]
    found = await queries(datetime(2026, 10, 26, tzinfo=UTC)).light_rows_from(Log(*enumerate(times)), 1, 100, after=0)
    assert [r.ts for r in found] == [micros(t) for t in times]


async def test_a_job_that_logs_all_the_time_is_not_stalled_when_the_zone_changes():
    world = PipelineHarness(stalled_after=lambda: 600)
    began = FIRST - timedelta(hours=1)
    world.now = micros(began)
    record = JobRecord("j", status="running", started_at=world.now)
    world.pipeline.readings([Reading("j", world.index.advance_clock(), record, ())])
    for number in range(40):
        when = began + timedelta(minutes=5 * number)
        asked = queries(when)
        world.now = micros(when)
        world.pipeline.rows(await asked.light_rows_from(Log((number, when)), 1, 10))
        world.hub.publish(world.index.expire(world.now))
        shown = there(world.index.published.get("j"))
        assert not shown.stalled, when
        assert shown.view.last is not None
        assert shown.view.last.text == f"row {number}"


class Tables:
    """A session whose tables have one running job, which began then, and its steps: begin, end."""

    def __init__(self, began: datetime, *steps: tuple[datetime, datetime | None]) -> None:
        values = {"id": "j", "status": "running", "started_at": micros(began)}
        self._job = tuple(map(values.get, TABLES["job_tracking"]))
        self._steps = [
            (n, f"step {n}", n, "running", local(begin), local(end) if end else None, None, "j", None)
            for n, (begin, end) in enumerate(steps)
        ]

    async def query(self, sql, args=()):
        if "FROM job_steps" in sql:
            return self._steps
        return [(*self._job, *[None] * 3)] if "FROM job_tracking WHERE id" in sql else []

    async def close(self) -> None: ...


async def test_the_steps_of_a_job_that_began_in_the_second_hour_are_of_that_hour():
    minutes = timedelta(minutes=1)
    steps = [(FIRST + 75 * minutes, SECOND + 10 * minutes), (SECOND + 10 * minutes, None)]
    times = {"job_tracking": "timestamp", "job_steps": "datetime"}
    schema = Schema({t: dict.fromkeys(c, times.get(t, "text")) for t, c in TABLES.items()})
    asked = Queries(Dialect("?", "{}", "{}", "", "", "LENGTH({})", "{}", "", "{}"), schema, BERLIN)
    (reading,) = await read_readings(asked, Tables(FIRST + 74 * minutes, *steps), 1, ["j"])
    assert reading.steps is not None
    assert [(s.started_at, s.completed_at) for s in reading.steps] == [
        (micros(begin), micros(end) if end else None) for begin, end in steps
    ]


async def test_the_steps_of_the_second_hour_follow_those_of_the_first_in_what_is_written_later():
    minutes = timedelta(minutes=1)
    times = [FIRST + n * minutes for n in (-20, 10, 45, 65, 85, 95)]  # 02:10, 02:40, then 02:15 again
    steps = [(begin, None) for begin in times]
    kinds = {"job_tracking": "timestamp", "job_steps": "datetime"}
    schema = Schema({t: dict.fromkeys(c, kinds.get(t, "text")) for t, c in TABLES.items()})
    asked = Queries(Dialect("?", "{}", "{}", "", "", "LENGTH({})", "{}", "", "{}"), schema, BERLIN)
    (reading,) = await read_readings(asked, Tables(FIRST - 21 * minutes, *steps), 1, ["j"])
    assert [step.started_at for step in reading.steps or ()] == list(map(micros, times))


def test_a_step_that_ends_in_the_second_hour_does_not_end_before_it_began():
    began = micros(FIRST + timedelta(minutes=20))
    ended = local(FIRST + timedelta(minutes=65))
    assert BERLIN.utc(ended) < began
    assert BERLIN.utc(ended, since=began) == micros(FIRST + timedelta(minutes=65))


@pytest.mark.parametrize("near", [None, 0, micros(SECOND)])
def test_a_time_that_no_clock_showed_has_one_reading(near):
    between = micros(datetime(2026, 3, 29, 2, 30, tzinfo=UTC))
    assert BERLIN.utc(between, near) == BERLIN.utc(between)


def test_the_zone_of_this_machine_knows_both_readings(monkeypatch):
    import time

    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        here = zones.host()
        assert [here.utc(local(FIRST), micros(t)) for t in (FIRST, SECOND)] == [micros(FIRST), micros(SECOND)]
    finally:
        monkeypatch.undo()
        time.tzset()
