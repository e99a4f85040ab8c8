"""A private Home Assistant: the program itself, set up by its REST API as a person does in a browser."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from tests.support.eventually import PATIENCE
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
ENTITIES = ("_status", "_progress", "_end", "_problem")
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
        return {one["entity_id"]: one for one in found if one["entity_id"].endswith(ENTITIES)}

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
