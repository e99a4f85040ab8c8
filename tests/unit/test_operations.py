"""What an operator is given fits together: alerts, their tests, their chapters, and the dashboard."""

import json
import re

import pytest
import yaml  # type: ignore[import-untyped]

from tests.support.paths import DEPLOY

OPERATIONS = (DEPLOY.parent / "docs" / "operations.md").read_text()
ALERTS = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((DEPLOY / "grafana" / "correlator.json").read_text())


@pytest.fixture(scope="module")
def tests_of_alerts():
    return yaml.safe_load((DEPLOY / "prometheus" / "tests" / "alerts_test.yml").read_text())["tests"]


names = pytest.mark.parametrize("alert", ALERTS, ids=lambda a: a["alert"])


@names
def test_every_alert_waits_says_what_is_the_matter_and_has_a_chapter_with_something_to_do(alert):
    assert re.fullmatch(r"\d+m", alert["for"])
    assert alert["labels"].keys() == {"severity"}
    assert alert["labels"]["severity"] in ("critical", "warning")
    annotations = alert["annotations"]
    assert re.search(r"\{\{ \$labels\.(instance|appliance) \}\}", annotations["summary"])
    assert annotations["description"].endswith(".")
    assert annotations["runbook_url"] == f"file:///usr/share/doc/correlator/docs/operations.md#{alert['alert'].lower()}"
    text = OPERATIONS.split(f"\n### {alert['alert']}\n", 1)[1].split("\n#", 1)[0]
    assert "**Do:**" in text
    assert "`" in text, "no command, no key, no metric"


def test_no_chapter_is_of_an_alert_that_there_is_not():
    listed = OPERATIONS.split("\n## The alerts\n")[1].split("\n## ")[0]
    assert re.findall(r"^### (\w+)$", listed, re.MULTILINE) == [a["alert"] for a in ALERTS]


@names
def test_every_alert_is_seen_to_fire_and_not_to_fire(alert, tests_of_alerts):
    mine = next(t for t in tests_of_alerts if t["name"] == alert["alert"])
    early, late = mine["promql_expr_test"]
    assert early["exp_samples"] == []
    (fired,) = late["exp_samples"]
    assert f'alertname="{alert["alert"]}"' in fired["labels"]
    assert re.search(r'\b(instance|appliance)="ill"', fired["labels"])
    assert any(re.search(r'\b(instance|appliance)="well"', series["series"]) for series in mine["input_series"])


def test_every_panel_uses_the_selected_data_source_and_instance():
    assert [(v["name"], v["type"]) for v in DASHBOARD["templating"]["list"]] == [
        ("datasource", "datasource"),
        ("instance", "query"),
    ]
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in (each for each in DASHBOARD["panels"] if each["type"] != "row"):
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
