"""A broker that answers, and takes less than there is: what goes first, what is dropped, and what is said of it."""

from __future__ import annotations

import orjson

from correlator.doctor import daemon
from correlator.model.facts import Kind
from correlator.sinks.mqtt.connection import MqttTimings
from tests.support.eventually import PATIENCE, eventually
from tests.support.faults.proxy import Proxy
from tests.support.mqtt_harness import MqttHarness, holds, reading, watch

RUNNING, ENDED = 10, 10
KINDS = (Kind.JOB_STARTED, Kind.STEP_STARTED, Kind.STEP_COMPLETED, Kind.JOB_COMPLETED)


async def test_a_broker_that_is_too_slow_is_said_and_gets_states_and_ended_jobs_first(mosquitto, caplog):
    caplog.set_level("INFO")
    timings = MqttTimings(late_check_interval=0.05, late_after=1.0, on_time_below=0.5, publish_timeout=PATIENCE)
    async with Proxy(mosquitto.port) as proxy:
        jobs = [reading(f"running-{n}") for n in range(RUNNING)]
        world = MqttHarness(proxy.port, *jobs, sink={"timings": timings, "max_events": 500})
        async with watch(world, mosquitto.port) as watcher, world.running():
            await holds(watcher, world)
            await eventually(lambda: world.sink.describe()["ok"])
            proxy.rate = 20_000
            for n in range(1_000):
                world.happen(n, job_id=f"running-{n % RUNNING}")
            for n in range(ENDED * len(KINDS)):
                world.happen(1_000 + n, job_id=f"ended-{n // len(KINDS)}", kind=KINDS[n % len(KINDS)])
            for n in range(RUNNING):
                world.change(f"running-{n}")

            def arrived() -> list[int]:
                seen = [m for m in watcher.seen if str(m.topic).endswith("/event")]
                return [orjson.loads(m.payload)["event_id"] for m in seen]

            await holds(watcher, world)
            await eventually(lambda: {*range(1_000, 1_000 + ENDED * len(KINDS))} <= {*arrived()})
            await eventually(lambda: not world.sink.describe()["ok"])
            part = world.sink.describe()
            assert part["pending"] > 300, "events of steps of running jobs wait for states and for ended jobs"
            assert part["age_seconds"] > 1.0
            found = daemon.judge({"ready": True, "degraded": True, "parts": {"mqtt": part}}, {}, None)
            assert (found.status, part["error"] in found.summary) == ("warning", True)
            assert "the broker is too slow" in part["error"]
            assert f"{part['dropped']:,} events were dropped" in part["error"]

            is_event = [str(m.topic).endswith("/event") for m in watcher.seen]
            last_state = max(n for n, m in enumerate(watcher.seen) if str(m.topic).endswith("/state"))
            assert sum(is_event[:last_state]) < 5 * RUNNING, "a state waits for few of the events before it"
            proxy.heal()
            await eventually(lambda: world.sink.describe()["pending"] == 0)
            await eventually(lambda: world.sink.describe()["ok"] and world.sink.describe()["error"] is None)
            await eventually(lambda: len(arrived()) + part["dropped"] == 1_000 + ENDED * len(KINDS))
    said = [record.getMessage() for record in caplog.records if "too slow" in record.getMessage()]
    assert 1 <= len(said) <= 6
    assert sum("keeps up again" in record.getMessage() for record in caplog.records) == 1
