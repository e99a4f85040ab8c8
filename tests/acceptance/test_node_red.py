"""The flow for Node-RED, imported into a real one, shows the jobs that run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from benchmarks import nodered
from tests.support.appliance import Appliance
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.mariadb import Database
from tests.support.mosquitto import Mosquitto
from tests.support.paths import DEPLOY
from tests.support.servers import Server

FLOW = json.loads((DEPLOY / "node-red" / "running-jobs.json").read_text())


class NodeRed(Server):
    """Without flows at first."""

    def _prepare(self) -> Sequence[str]:
        settings = f"uiHost: '127.0.0.1', uiPort: {self.port}, flowFile: 'flows.json', telemetry: {{enabled: false}}"
        (self.folder / "settings.js").write_text(f"module.exports = {{{settings}}};\n")
        return ["node", str(nodered.installed()), "-u", str(self.folder), "-s", str(self.folder / "settings.js")]

    def _answers(self) -> bool:
        return "Started flows" in self.log()


def for_broker(port: int) -> list[dict[str, Any]]:
    """The flow, with the address of the broker as a person sets it after the import."""
    return [
        {**node, "broker": "127.0.0.1", "port": str(port)} if node["type"] == "mqtt-broker" else node for node in FLOW
    ]


@pytest.mark.long
async def test_the_flow_for_node_red_shows_the_jobs_that_run(
    tmp_path: Path, database: Database, appliance: Appliance, own_mosquitto: Mosquitto
):
    daemon = Daemon(tmp_path, database__url=database.url, mqtt__url=own_mosquitto.url)
    try:
        job = await appliance.job("first", metadata='{"vm_name": "web/<1>"}', percent_complete=25)
        await daemon.start()
        with NodeRed() as node_red:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{node_red.port}") as session:
                async with session.post("/flows", json=for_broker(own_mosquitto.port)) as response:
                    assert response.status == 204, await response.text()

                async def shows(*rows: str) -> bool:
                    async with session.get("/running-jobs") as response:
                        page = await response.text()
                    assert response.content_type == "text/html"
                    return [line for line in page.splitlines() if line.startswith("<tr><td>")] == [*rows]

                row = (
                    "<tr><td>web&#x2F;&lt;1&gt;</td><td>unified-live-failover</td><td></td><td>25 %</td><td></td></tr>"
                )
                await eventually(lambda: shows(row))
                await appliance.end(job)
                await eventually(shows)
                await appliance.job("second", metadata='{"vm_name": "other"}')
                await eventually(lambda: shows(row.replace("web&#x2F;&lt;1&gt;", "other").replace("25", "0")))
                assert "error" not in node_red.log().lower()
    finally:
        await daemon.close()
