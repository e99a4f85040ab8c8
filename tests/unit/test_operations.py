"""What an operator is given fits together: alerts, their tests, their chapters, and the dashboard."""

import json
import re
from itertools import combinations
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.support.paths import DEPLOY

OPERATIONS = (DEPLOY.parent / "docs" / "operations.md").read_text()
ALERTS = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"]
TESTS = yaml.safe_load((DEPLOY / "prometheus" / "alerts_test.yml").read_text())["tests"]
DASHBOARD = json.loads((DEPLOY / "grafana" / "correlator.json").read_text())

names = pytest.mark.parametrize("alert", ALERTS, ids=lambda a: a["alert"])


def chapter(name: str) -> str:
    """What docs/operations.md says of an alert, its heading aside."""
    return OPERATIONS.split(f"\n### {name}\n", 1)[1].split("\n#", 1)[0]


@names
def test_every_alert_waits_and_says_how_bad_it_is_what_is_the_matter_and_where_to_read_on(alert):
    assert re.fullmatch(r"\d+m", alert["for"])
    assert alert["labels"] == {"severity": alert["labels"]["severity"]}
    assert alert["labels"]["severity"] in ("critical", "warning")
    annotations = alert["annotations"]
    assert re.search(r"\{\{ \$labels\.(instance|appliance) \}\}", annotations["summary"])
    assert annotations["description"].endswith(".")
    assert annotations["runbook_url"] == f"file:///usr/share/doc/correlator/docs/operations.md#{alert['alert'].lower()}"


@names
def test_every_alert_has_a_chapter_with_something_to_do(alert):
    text = chapter(alert["alert"])
    assert "**Do:**" in text
    assert "`" in text, "no command, no key, no metric"


def test_no_chapter_is_of_an_alert_that_there_is_not():
    listed = OPERATIONS.split("\n## The alerts\n")[1].split("\n## ")[0]
    assert re.findall(r"^### (\w+)$", listed, re.MULTILINE) == [a["alert"] for a in ALERTS]


@names
def test_every_alert_is_seen_to_fire_and_not_to_fire(alert):
    mine = next(t for t in TESTS if t["name"] == alert["alert"])
    early, late = mine["promql_expr_test"]
    assert early["exp_samples"] == []
    (fired,) = late["exp_samples"]
    assert f'alertname="{alert["alert"]}"' in fired["labels"]
    assert re.search(r'\b(instance|appliance)="ill"', fired["labels"])
    assert any(re.search(r'\b(instance|appliance)="well"', series["series"]) for series in mine["input_series"])


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = DASHBOARD["panels"]
    return found


def test_the_dashboard_has_the_rows_that_it_should_have_and_no_panel_covers_another():
    rows = [p["title"] for p in panels() if p["type"] == "row"]
    wanted = ["Health", "Jobs", "Forecasts", "Source", "Connected clients", "MQTT", "Webhooks", "Traces", "Process"]
    assert rows == [*wanted, "Cluster"]
    ids = [p["id"] for p in panels()]
    assert len(ids) == len(set(ids))
    places = [p["gridPos"] for p in panels()]
    assert all(g["x"] + g["w"] <= 24 for g in places)
    for a, b in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert beside or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"], (a, b)


def test_every_panel_uses_the_selected_data_source_and_instance():
    assert [(v["name"], v["type"]) for v in DASHBOARD["templating"]["list"]] == [
        ("datasource", "datasource"),
        ("instance", "query"),
    ]
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels():
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == source
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            assert target["datasource"] == source
            for selector in re.findall(r"(?:correlator|process)_\w+\{([^}]*)\}", target["expr"]):
                assert 'instance=~"$instance"' in selector, target["expr"]
            assert len(re.findall(r"(?:correlator|process)_\w+", target["expr"])) == target["expr"].count("{")


def test_the_scrape_asks_by_the_name_that_the_alerts_go_by():
    (scrape,) = yaml.safe_load((DEPLOY / "prometheus" / "scrape.yml").read_text())["scrape_configs"]
    assert scrape["job_name"] == "correlator"
    named = {m for a in ALERTS for m in re.findall(r'job="(\w+)"', a["expr"])}
    assert named == {"correlator"}
