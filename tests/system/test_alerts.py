"""Prometheus's own tool on what we give to Prometheus: the alerts and their tests, the scrape, what /metrics says."""

import asyncio
import json
import re
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml  # type: ignore[import-untyped]

from tests.support.appliance import Appliance
from tests.support.daemon import HELLO, Daemon
from tests.support.eventually import eventually
from tests.support.mariadb import Database
from tests.support.mosquitto import Mosquitto
from tests.support.paths import REPOSITORY
from tests.support.servers import Server, free_port
from tests.support.webhook_receiver import Receiver

PROMETHEUS = REPOSITORY / "deploy" / "prometheus"


def promtool(*arguments: str, stdin: str | None = None) -> str:
    """What it says. It has to be content, and to have no advice."""
    ended = subprocess.run(
        ["promtool", *arguments],
        cwd=PROMETHEUS,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def test_the_alerts_are_rules_without_fault():
    assert "SUCCESS" in promtool("check", "rules", "--lint=all", "--lint-fatal", "alerts.yml")


def test_every_alert_fires_when_it_should_and_only_then():
    assert "SUCCESS" in promtool("test", "rules", "tests/alerts_test.yml")


def test_the_scrape_and_the_alerts_are_a_configuration_of_prometheus(tmp_path: Path):
    text = (PROMETHEUS / "scrape.yml").read_text()
    rules = tmp_path / "correlator-alerts.yml"
    rules.write_text((PROMETHEUS / "alerts.yml").read_text())
    configuration = tmp_path / "prometheus.yml"
    configuration.write_text(text.replace("/etc/prometheus/rules/correlator-alerts.yml", str(rules)))
    assert promtool("check", "config", str(configuration)).count("SUCCESS") == 3  # itself, its rules' file, its rules
    everything = re.sub(r"^( +)#(?=\w+:|  \w+: )", r"\1", text, flags=re.MULTILINE)  # also what some need
    configuration.write_text(everything)
    promtool("check", "config", "--syntax-only", str(configuration))
    assert {"authorization", "scheme", "tls_config"} <= yaml.safe_load(everything)["scrape_configs"][0].keys()


def asked_by_the_dashboard() -> dict[str, str]:
    """Its questions but those of a cluster, as Grafana fills them in, by their panel and what they are called there."""
    dashboard = json.loads((REPOSITORY / "deploy" / "grafana" / "correlator.json").read_text())
    cluster = next(p["gridPos"]["y"] for p in dashboard["panels"] if p["title"] == "Cluster")
    panels = [p for p in dashboard["panels"] if p["gridPos"]["y"] < cluster]
    asked = {f"{p['title']}: {t['legendFormat']}": t["expr"] for p in panels for t in p.get("targets", ())}
    asked |= {a["name"]: a["expr"] for a in dashboard["annotations"]["list"]}
    return {k: e.replace("$__rate_interval", "10s").replace("$instance", ".*") for k, e in asked.items()}


class Prometheus(Server):
    """The real one, with our scrape and our alerts; it asks the daemon at `port` every half second."""

    def __init__(self, daemon: int) -> None:
        super().__init__()
        self._daemon = daemon

    def _prepare(self) -> Sequence[str]:
        text = (PROMETHEUS / "scrape.yml").read_text()
        for old, new in (
            ("/etc/prometheus/rules/correlator-alerts.yml", str(PROMETHEUS / "alerts.yml")),
            ("127.0.0.1:8686", f"127.0.0.1:{self._daemon}"),
            ("scrape_interval: 15s", "scrape_interval: 500ms"),
        ):
            assert old in text
            text = text.replace(old, new)
        configuration = self.folder / "prometheus.yml"
        configuration.write_text("global: {evaluation_interval: 1s}\n" + text)
        listen = f"--web.listen-address=127.0.0.1:{self.port}"
        return ["prometheus", f"--config.file={configuration}", f"--storage.tsdb.path={self.folder / 'data'}", listen]

    def _answers(self) -> bool:
        return bool(self.get("/-/ready"))

    def get(self, path: str, **query: str) -> str:
        with urlopen(f"http://127.0.0.1:{self.port}{path}?{urlencode(query)}", timeout=5) as response:
            text: str = response.read().decode()
        return text

    def ask(self, question: str) -> list[Any]:
        found: list[Any] = json.loads(self.get("/api/v1/query", query=question))["data"]["result"]
        return found


WEBHOOK = """
[[webhooks]]
name = "tickets"
url = "{url}"
secret = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
allow_private = true
"""


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver(free_port()) as receiver:
        yield receiver


async def test_prometheus_has_an_answer_to_every_question_of_the_dashboard_and_no_alert(
    database: Database, appliance: Appliance, own_mosquitto: Mosquitto, receiver: Receiver, tmp_path: Path
):
    (tmp_path / "correlator.toml").write_text(WEBHOOK.format(url=receiver.url))
    daemon = Daemon(tmp_path, database__url=database.url, mqtt__url=own_mosquitto.url)
    daemon.arguments = ("--config", str(tmp_path / "correlator.toml"))
    try:
        await daemon.start()
        with Prometheus(daemon.port) as prometheus:
            job_id = await appliance.job("gui-1")
            await asyncio.to_thread(eventually_now, lambda: prometheus.ask('correlator_jobs{status="running"} == 1'))
            await appliance.end(job_id, "failed", "no space")
            await appliance.log("of nobody", attrs={"job_id": 7})
            async with daemon.socket(HELLO):
                assert promtool("check", "metrics", stdin=await daemon.text("/metrics")) == ""

            def answered() -> bool:
                unanswered = [name for name, asked in asked_by_the_dashboard().items() if not prometheus.ask(asked)]
                # It started once, and forecasts have no accuracy before a job that had one has completed.
                assert [name for name in unanswered if not name.startswith("How good forecasts were")] == ["Started"]
                assert len(unanswered) == 3
                return True

            await asyncio.to_thread(eventually_now, answered)
            rules = json.loads(prometheus.get("/api/v1/rules"))["data"]["groups"][0]["rules"]
            assert {(r["health"], r["state"]) for r in rules} == {("ok", "inactive")}
    finally:
        await daemon.close()


def eventually_now(condition: Callable[[], object], within: float = 20.0) -> None:
    """`eventually`, for a thread: Prometheus is asked by calls that block."""
    asyncio.run(eventually(condition, within=within, every=0.3))
