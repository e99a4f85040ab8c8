"""A real Home Assistant shows each VM as a device, and removes it with the VM's last job."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.support.appliance import Appliance
from tests.support.daemon import Daemon
from tests.support.eventually import PATIENCE, eventually
from tests.support.mariadb import Database
from tests.support.mosquitto import Mosquitto
from tests.support.paths import REPOSITORY
from tests.support.servers import Server

PYTHON = REPOSITORY / "build" / "home-assistant" / "bin" / "python"
"""`make test-home-assistant` installs it."""

CONFIGURATION = """
homeassistant:
http:
  server_host: 127.0.0.1
  server_port: {port}
api:
config:
onboarding:
"""
ENDINGS = ("_status", "_progress", "_end", "_problem")
"""The ends of their IDs. Home Assistant has some of its own."""

CLIENT = "http://127.0.0.1/"


class HomeAssistant(Server):
    """With the integration MQTT once `follow` has been called."""

    def __init__(self) -> None:
        super().__init__()
        self._token = ""

    def _prepare(self) -> Sequence[str]:
        (self.folder / "configuration.yaml").write_text(CONFIGURATION.format(port=self.port))
        return [str(PYTHON), "-m", "homeassistant", "--config", str(self.folder), "--skip-pip"]

    def _answers(self) -> bool:
        status, _ = self._request("GET", "/api/onboarding")
        return status == 200 and (not self._token or self._call("GET", "/api/config")["state"] == "RUNNING")

    def follow(self, broker_port: int) -> None:
        """Create the first user, log in, and add the integration MQTT with this broker."""
        person = {"client_id": CLIENT, "name": "a", "username": "a", "password": "secret", "language": "en"}
        code = self._call("POST", "/api/onboarding/users", person)["auth_code"]
        login = {"client_id": CLIENT, "grant_type": "authorization_code", "code": code}
        self._token = self._call("POST", "/auth/token", login, form=True)["access_token"]
        flows = "/api/config/config_entries/flow"
        flow = self._call("POST", flows, {"handler": "mqtt"})["flow_id"]
        made = self._call("POST", f"{flows}/{flow}", {"broker": "127.0.0.1", "port": broker_port})
        assert made["type"] == "create_entry", made
        deadline = time.monotonic() + PATIENCE
        while not all(self._has_saved(*part) for part in (("auth", CLIENT), ("core.config_entries", '"mqtt"'))):
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)

    def stop(self) -> None:
        """SIGKILL: an orderly end takes it a minute on a busy machine."""
        if self._process is not None:
            self.kill()

    def _has_saved(self, name: str, text: str) -> bool:
        file = self.folder / ".storage" / name
        return file.exists() and text in file.read_text()

    def states(self) -> dict[str, Any]:
        """The entities of MQTT: entity ID → state, as the REST API has it."""
        found = self._call("GET", "/api/states")
        return {one["entity_id"]: one for one in found if one["entity_id"].endswith(ENDINGS)}

    def _call(self, method: str, path: str, content: dict[str, Any] | None = None, *, form: bool = False) -> Any:
        status, body = self._request(method, path, content, form=form)
        assert status == 200, (path, status, body)
        return json.loads(body)

    def _request(
        self, method: str, path: str, content: dict[str, Any] | None = None, *, form: bool = False
    ) -> tuple[int, bytes]:
        kind = "application/x-www-form-urlencoded" if form else "application/json"
        headers = {"Content-Type": kind, **({"Authorization": f"Bearer {self._token}"} if self._token else {})}
        body = None if content is None else urlencode(content) if form else json.dumps(content)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


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
