"""A broker that answers, and takes less than there is: what is late, what is dropped, and what is said of it."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field

import orjson
import pytest

from correlator.doctor import daemon
from correlator.model.facts import Kind
from correlator.sinks.mqtt.connection import MqttTimings
from tests.support.eventually import eventually
from tests.support.faults.proxy import Proxy
from tests.support.mqtt_harness import MqttHarness, holds, reading, watch

STEPS = 20
"""Steps of the traffic in a second."""


@dataclass
class Load:
    """What happens in a second, and what the broker takes.

    `scale`: seconds after which messages are late, beside the 10 of a daemon.
    """

    events: float
    jobs: int
    """Jobs that run all the time, each of which changes once a second."""
    ending: float
    """Jobs that end in a second; each had a start and two steps before."""
    bytes_each_second: float
    seconds: float
    max_events: int
    scale: float


SHORT = Load(200, 15, 4, 20_000, 6, 400, 0.1)
LONG = Load(220, 40, 3.5, 45_000, 120, 9_000, 1.0)
"""The broker takes about 55 messages a second."""


@dataclass
class Traffic:
    """The jobs, and when each event and each change of a job was published (monotonic)."""

    world: MqttHarness
    load: Load
    numbers: int = 0
    published: dict[int, float] = field(default_factory=dict)
    of_jobs: set[int] = field(default_factory=set)
    """Events of jobs, and of steps of jobs that have ended."""
    changed: dict[tuple[object, object], float] = field(default_factory=dict)

    def happen(self, job_id: str, kind: Kind) -> int:
        self.numbers += 1
        self.published[self.numbers] = time.monotonic()
        self.world.happen(self.numbers, job_id=job_id, kind=kind)
        return self.numbers

    def change(self, job_id: str) -> None:
        self.world.change(job_id)
        error = self.world.index.published.get(job_id).view.error  # type: ignore[union-attr]
        self.changed[job_id, error] = time.monotonic()

    async def run(self) -> None:
        load = self.load
        due_events = due_ends = 0.0
        ended = 0
        for step in range(int(load.seconds * STEPS)):
            due_events += load.events / STEPS
            due_ends += load.ending / STEPS
            while due_ends >= 1:
                due_ends, due_events, ended = due_ends - 1, due_events - 4, ended + 1
                kinds = (Kind.JOB_STARTED, Kind.STEP_STARTED, Kind.STEP_COMPLETED, Kind.JOB_COMPLETED)
                self.of_jobs |= {self.happen(f"ended-{ended}", kind) for kind in kinds}
            while due_events >= 1:
                due_events -= 1
                self.happen(f"running-{self.numbers % load.jobs}", Kind.STEP_STARTED)
            for n in range(step % STEPS, load.jobs, STEPS):
                self.change(f"running-{n}")
            await asyncio.sleep(1 / STEPS)


async def slow(broker: int, load: Load, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    timings = MqttTimings(
        late_check_interval=0.05, late_after=10 * load.scale, on_time_below=5 * load.scale, publish_timeout=30.0
    )
    arrived_events: dict[int, float] = {}
    state_ages: list[float] = []
    async with Proxy(broker) as proxy:
        jobs = [reading(f"running-{n}") for n in range(load.jobs)]
        world = MqttHarness(proxy.port, *jobs, sink={"timings": timings, "max_events": load.max_events})
        traffic = Traffic(world, load)

        def seen(message) -> None:
            topic = str(message.topic)
            found = orjson.loads(message.payload) if message.payload else {}
            if topic.endswith("/event"):
                arrived_events.setdefault(found["event_id"], time.monotonic())
            elif (at := traffic.changed.get((found.get("job_id"), found.get("error")))) is not None:
                state_ages.append(time.monotonic() - at)

        async with watch(world, broker) as watcher, world.running():
            watcher.on_message = seen
            await holds(watcher, world)
            await eventually(lambda: world.sink.describe()["ok"])
            proxy.rate = load.bytes_each_second
            await traffic.run()

            part = world.sink.describe()
            assert (part["ok"], part["connected"]) == (False, True)
            assert part["age_seconds"] > 10 * load.scale
            found = daemon.judge({"ready": True, "degraded": True, "parts": {"mqtt": part}}, {}, None)
            assert (found.status, part["error"] in found.summary) == ("warning", True)
            assert "the broker is too slow" in part["error"]
            assert f"{part['dropped']:,} events were dropped" in part["error"]
            assert part["dropped"] > load.max_events / 4, "the load is more than the broker takes"
            oldest_event = min(traffic.published[n] for n in world_events(world))
            late_by = time.monotonic() - oldest_event
            newest = sorted(state_ages[len(state_ages) // 2 :])
            states_late_by = newest[int(0.9 * len(newest))]

            proxy.heal()
            await eventually(lambda: world.sink.describe()["pending"] == 0)
            await eventually(lambda: world.sink.describe()["ok"])
            dropped = world.sink.describe()["dropped"]
            assert world.sink.describe()["error"] is None
            await eventually(lambda: len(arrived_events) + dropped == len(traffic.published))
            await holds(watcher, world)
    missing = traffic.published.keys() - arrived_events.keys()
    assert len(missing) == dropped
    assert not missing & traffic.of_jobs, "only events of steps of running jobs are dropped"
    assert states_late_by < late_by / 2, (states_late_by, late_by)
    ended_late_by = max(arrived_events[n] - traffic.published[n] for n in traffic.of_jobs)
    assert ended_late_by < max(arrived_events[n] - traffic.published[n] for n in arrived_events) / 2
    said = [record.getMessage() for record in caplog.records if "too slow" in record.getMessage()]
    assert 1 <= len(said) <= 6
    assert sum("keeps up again" in record.getMessage() for record in caplog.records) == 1


def world_events(world: MqttHarness) -> list[int]:
    return [orjson.loads(payload)["event_id"] for _, _, payload in world.event_log.stored().values()]


async def test_a_broker_that_is_too_slow_is_said_and_gets_states_and_ended_jobs_first(mosquitto, caplog):
    await slow(mosquitto.port, SHORT, caplog)


@pytest.mark.long
async def test_two_minutes_of_220_rows_a_second_at_a_broker_that_takes_55(mosquitto, caplog):
    await slow(mosquitto.port, LONG, caplog)
