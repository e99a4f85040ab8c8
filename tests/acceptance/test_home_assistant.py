"""A real Home Assistant shows each VM as a device, and removes it with the VM's last job."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from tests.support.appliance import Appliance
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.home_assistant import HomeAssistant
from tests.support.mariadb import Database
from tests.support.mosquitto import Mosquitto

ENTITIES = ("sensor.web_01_status", "sensor.web_01_progress", "sensor.web_01_end", "binary_sensor.web_01_problem")
LONG = "ä/+# " * 60
VM = '{"vm_name": "%s"}'


@pytest.mark.long
async def test_each_vm_is_a_device_with_the_state_of_its_newest_job_until_its_jobs_leave(
    tmp_path: Path, database: Database, appliance: Appliance, own_mosquitto: Mosquitto
):
    home = HomeAssistant()
    daemon = Daemon(
        tmp_path,
        database__url=database.url,
        mqtt__url=own_mosquitto.url,
        mqtt__home_assistant="true",
        database__reconcile_interval="100ms",
    )

    async def shows(*expected: str | None) -> bool:
        states = await asyncio.to_thread(home.states)
        assert [states[entity]["state"] if entity in states else None for entity in ENTITIES] == [*expected]
        return True

    try:
        await asyncio.to_thread(home.start)
        await asyncio.to_thread(home.follow, own_mosquitto.port)
        job = await appliance.job("first", metadata=VM % "web-01", percent_complete=25)
        await appliance.job("odd", metadata=VM % LONG)
        await daemon.start()
        await eventually(lambda: shows("running", "25.0", "unknown", "off"))
        states = await asyncio.to_thread(home.states)
        assert len(states) == 2 * len(ENTITIES), states.keys()
        assert states[ENTITIES[0]]["attributes"]["job_id"] == job

        await appliance.end(job, "failed", "no space left")
        await eventually(lambda: asyncio.to_thread(lambda: home.states()[ENTITIES[0]]["state"] == "failed"))
        states = await asyncio.to_thread(home.states)
        assert states[ENTITIES[0]]["attributes"]["error"] == "no space left"
        document = (await daemon.get(f"/api/v1/jobs/{job}"))[1]
        await eventually(lambda: shows("failed", "25.0", document["ended_at"][:19] + "+00:00", "on"))

        # Home Assistant begins again with a broker that has lost everything but what the daemon publishes since.
        await asyncio.to_thread(own_mosquitto.kill)
        await eventually(lambda: shows(*["unavailable"] * 4))
        await asyncio.to_thread(own_mosquitto.start)
        await eventually(lambda: shows("failed", "25.0", document["ended_at"][:19] + "+00:00", "on"))
        await asyncio.to_thread(home.stop)
        await asyncio.to_thread(home.start)
        await eventually(lambda: shows("failed", "25.0", document["ended_at"][:19] + "+00:00", "on"))

        await appliance.run("DELETE FROM job_tracking WHERE id = %s", job)
        await eventually(lambda: shows(None, None, None, None))
        assert len(await asyncio.to_thread(home.states)) == len(ENTITIES)

        assert await daemon.stop() == 0
        states = await asyncio.to_thread(home.states)
        assert {state["state"] for state in states.values()} == {"unavailable"}
        # It says nothing of our topics, templates and devices. Of the broker that was killed it does.
        lines = (home.folder / "log").read_text().splitlines()
        assert [line for line in lines if re.search("correlator_2F|correlator/v1|template|discover", line)] == []
    except BaseException as error:
        error.add_note(home.log())
        raise
    finally:
        await daemon.close()
        await asyncio.to_thread(home.close)
