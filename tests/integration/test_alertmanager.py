"""The recipe for Alertmanager in docs/webhooks.md against a real one: an alert is raised, repeated, and ended."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from correlator.model.facts import Kind
from tests.support.eventually import eventually
from tests.support.saved_index import kept
from tests.support.servers import Server, program
from tests.support.webhook_harness import WebhookHarness, recipes
from tests.support.webhook_receiver import Receiver


class Alertmanager(Server):
    """Groups alerts by job, and posts them to `notified`, the URL of a receiver."""

    def __init__(self, notified: str) -> None:
        super().__init__()
        self._notified = notified

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def alerts(self) -> list[dict[str, Any]]:
        """The alerts that have not ended. Blocks for a moment."""
        with urllib.request.urlopen(f"{self.url}/api/v2/alerts", timeout=5) as response:
            found: list[dict[str, Any]] = json.load(response)
        return found

    def _prepare(self) -> Sequence[str]:
        route = {"receiver": "test", "group_by": ["job_id"], "group_wait": "100ms", "group_interval": "200ms"}
        receiver = {"name": "test", "webhook_configs": [{"url": self._notified, "send_resolved": True}]}
        configuration = self.folder / "alertmanager.yml"
        configuration.write_text(json.dumps({"route": route, "receivers": [receiver]}))  # JSON is YAML
        return [
            program("prometheus-alertmanager"),
            f"--config.file={configuration}",
            f"--storage.path={self.folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--cluster.listen-address=",
        ]

    def _answers(self) -> bool:
        with urllib.request.urlopen(f"{self.url}/-/ready", timeout=1) as response:
            return bool(response.status == 200)


@pytest.mark.parametrize("end", [Kind.JOB_RECOVERED, Kind.JOB_FAILED])
async def test_a_stalled_job_raises_one_alert_that_its_recovery_or_end_ends(tmp_path: Path, end: Kind):
    now = time.time_ns() // 1_000
    async with Receiver() as notified:

        def notifications() -> list[tuple[str, str]]:
            posted = [json.loads(one.body) for one in notified.requested]
            return [(alert["status"], alert["labels"]["job_id"]) for one in posted for alert in one["alerts"]]

        manager = Alertmanager(notified.url)
        try:
            await asyncio.to_thread(manager.start)
            found = recipes(tmp_path, f"{manager.url}/api/v2/alerts")
            harness = WebhookHarness(found["alerts"], found["alerts-end"])
            async with harness.running():
                harness.job(metadata='{"vm_name": "db-1"}')
                harness.event(1, kind=Kind.JOB_STALLED, at=now - 60_000_000)
                harness.event(2, kind=Kind.JOB_OVERDUE, at=now - 30_000_000)
                await eventually(lambda: notifications() == [("firing", "job-1")])
                await eventually(lambda: kept(harness.event_log) == {})
                (alert,) = await asyncio.to_thread(manager.alerts)
                assert alert["labels"] == {"alertname": "JobDoesNotProgress", "severity": "warning", "job_id": "job-1"}
                assert alert["generatorURL"] == "https://correlator.example/#/jobs/job-1"
                assert alert["annotations"] == {"summary": "live makes no progress: no step"}
                harness.event(3, kind=end, at=now)
                await eventually(lambda: notifications() == [("firing", "job-1"), ("resolved", "job-1")])
            assert await asyncio.to_thread(manager.alerts) == []
        finally:
            await asyncio.to_thread(manager.close)
