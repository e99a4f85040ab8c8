"""A private Alertmanager, which notifies a receiver of a test at once."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from typing import Any

from tests.support.servers import Server, program


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
