"""The metrics of the real daemon: every name that alerts and dashboard use exists, and the values are right."""

import asyncio
import json
import re
from datetime import UTC, datetime, timedelta
from functools import reduce
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from correlator.ops import cluster_metrics, metrics
from tests.support.appliance import Appliance, connected
from tests.support.daemon import HELLO, Daemon
from tests.support.eventually import PATIENCE, eventually
from tests.support.past_runs import in_sequence, write_past_runs
from tests.support.paths import DEPLOY


def relied_on() -> set[str]:
    """The names of metrics in alerts, dashboard and docs/operations.md."""
    alerts = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
    expressions = [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    dashboard = json.loads((DEPLOY / "grafana" / "correlator.json").read_text())
    expressions += [t["expr"] for p in dashboard["panels"] for t in p.get("targets", ())]
    expressions += [v["definition"] for v in dashboard["templating"]["list"] if "definition" in v]
    expressions += [a["expr"] for a in dashboard["annotations"]["list"]]
    expressions += re.findall(r"`(correlator_\w+)", (DEPLOY.parent / "docs" / "operations.md").read_text())
    return {name for expr in expressions for name in re.findall(r"\b(?:correlator|process)_\w+", expr)}


def of_a_cluster() -> str:
    """The metrics that only a collector and a gateway have."""
    assert cluster_metrics.CONNECTED is not None  # Its import registers them.
    return generate_latest(metrics.REGISTRY).decode()


async def families(daemon):
    return list(text_string_to_metric_families(await daemon.text("/metrics")))


async def value(daemon, name, **labels):
    """The sum of the samples of that name and those labels."""
    found = [s for f in await families(daemon) for s in f.samples if s.name == name]
    return sum(s.value for s in found if labels.items() <= s.labels.items())


async def test_every_metric_of_alerts_dashboard_and_documents_exists(database, tmp_path):
    async with Daemon(tmp_path, database__url=database.url) as daemon:
        text = await daemon.text("/metrics") + of_a_cluster()
        suffixes = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}
        there = {
            name + suffix
            for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)
            for suffix in suffixes[kind]
        }
        assert len(relied_on()) > 30
        assert relied_on() <= there
        assert daemon.session is not None
        for accept, kind, end in (
            ("application/openmetrics-text;version=1.0.0,text/plain;q=0.5", "application/openmetrics-text", "# EOF\n"),
            ("*/*", "text/plain", "\n"),
            ("\xe4 nonsense;;q=x", "text/plain", "\n"),
        ):
            async with daemon.session.get("/metrics", headers={"Accept": accept}) as response:
                assert (response.status, response.content_type) == (200, kind)
                assert (await response.text()).endswith(end)


async def has(daemon, name, wanted, **labels):
    """Wait until a metric has a value, or one of which `wanted` is true."""
    is_wanted = wanted if callable(wanted) else lambda found: found == wanted

    async def is_so():
        found = await value(daemon, name, **labels)
        assert is_wanted(found), (name, labels, found)
        return True

    await eventually(is_so)


async def test_jobs_gaps_a_new_log_and_servers_that_are_away_are_measured(own_mariadb, own_mosquitto, tmp_path):
    database = await own_mariadb.create_schema()
    async with connected(database) as connection:
        appliance = Appliance(connection)
        old = await appliance.job("before")
        await appliance.end(old, "failed", "long ago")
        await appliance.log("Job failed", attrs={"job_id": old, "status": "failed"}, job_id=old)
        async with Daemon(tmp_path, database__url=database.url, mqtt__url=own_mosquitto.url) as daemon:
            job_id = await appliance.job("gui-1")
            await appliance.log("Job started", attrs={"job_id": job_id}, job_id=job_id)
            await appliance.end(job_id, "failed", "no space")
            await appliance.log("Job failed", attrs={"job_id": job_id, "status": "failed"}, job_id=job_id)
            kind = {"job_type": "failover", "operation": "unified-live-failover"}
            await has(daemon, "correlator_jobs_ended_total", 1, status="failed", **kind)
            await has(daemon, "correlator_jobs_ended_total", 1)
            await has(daemon, "correlator_job_duration_seconds_count", 1, **kind)
            await has(daemon, "correlator_jobs", 2, status="failed")
            await has(daemon, "correlator_end_to_end_seconds_count", 2)
            await has(daemon, "correlator_end_to_end_seconds_bucket", 2, le="60.0")
            await has(daemon, "correlator_rows_total", 3)
            await has(daemon, "correlator_mqtt_queue_age_seconds", 0)
            for part in ("ready", "database_up", "mqtt_configured", "mqtt_connected"):
                assert await value(daemon, f"correlator_{part}") == 1, part
            assert await value(daemon, "correlator_source_lag_seconds") == 0
            assert await value(daemon, "process_resident_memory_bytes") > 10e6
            assert await value(daemon, "correlator_config_last_reload_successful") == 1
            assert 0 < await value(daemon, "correlator_checkpoint_age_seconds") < PATIENCE
            text = await daemon.text("/metrics")
            assert not [found for found in (job_id, "gui-1", "_created") if found in text]
            async with daemon.socket(HELLO):
                assert await value(daemon, "correlator_readers", transport="websocket") == 1
            assert await value(daemon, "correlator_readers_lagging") == 0

            async with connected(database) as other:
                await other.begin()
                await Appliance(other).log("not yet committed")
                await appliance.log("committed")
                await has(daemon, "correlator_gaps_open", 1)
                await has(daemon, "correlator_gap_oldest_seconds", lambda seconds: seconds > 0.5)
                await other.commit()
            await has(daemon, "correlator_gaps_open", 0)
            assert await value(daemon, "correlator_end_to_end_seconds_count") == 4
            assert await value(daemon, "correlator_end_to_end_seconds_sum") > 0.5
            await appliance.run("TRUNCATE log_events")
            await has(daemon, "correlator_log_resets_total", lambda count: count >= 1)

            await asyncio.to_thread(own_mosquitto.pause)
            await appliance.log("Job started", attrs={"job_id": await appliance.job("gui-2")})
            await has(daemon, "correlator_mqtt_pending", lambda count: count > 0)
            await has(daemon, "correlator_mqtt_queue_age_seconds", lambda seconds: seconds > 1)
            await asyncio.to_thread(own_mosquitto.resume)
            await has(daemon, "correlator_mqtt_queue_age_seconds", 0)

            await asyncio.to_thread(own_mariadb.kill)
            await has(daemon, "correlator_database_up", 0)
            await has(daemon, "correlator_source_lag_seconds", lambda seconds: seconds > 1)
            assert await value(daemon, "correlator_source_failures_total") >= 1
            await asyncio.to_thread(own_mariadb.start)
            await has(daemon, "correlator_database_up", 1)
            await has(daemon, "correlator_source_lag_seconds", 0)


async def shown(daemon: Daemon, target: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that Infinity's backend makes of a reply: its selectors are paths, and what they do not find is null."""
    parameters = [(each["key"], each["value"]) for each in target["url_options"]["params"]]
    code, reply = await daemon.get(target["url"], params=parameters)
    assert code == 200, reply

    def found(selector: str, value: Any) -> Any:
        return reduce(
            lambda inside, key: inside.get(key) if isinstance(inside, dict) else None, selector.split("."), value
        )

    rows = [
        {c["text"]: found(c["selector"], row) for c in target["columns"]}
        for row in found(target["root_selector"], reply)
    ]
    kinds = {"string": str, "number": float | int, "boolean": bool, "timestamp": str}
    for column in target["columns"]:
        values = [row[column["text"]] for row in rows if row[column["text"]] is not None]
        assert all(isinstance(value, kinds[column["type"]]) for value in values), column
        assert column["type"] != "timestamp" or all(map(datetime.fromisoformat, values)), column
    return rows


async def test_the_dashboard_of_running_jobs_shows_what_rest_has(database, appliance: Appliance, tmp_path):
    (panel,) = json.loads((DEPLOY / "grafana" / "jobs.json").read_text())["panels"]
    (target,) = panel["targets"]
    assert (target["type"], target["parser"], "headers" in target["url_options"]) == ("json", "backend", False)
    await write_past_runs(database, [in_sequence(("validation", 1000 + n)) for n in range(20)])
    async with Daemon(tmp_path, database__url=database.url) as daemon:
        await eventually(lambda: "forecasts: read" in daemon.log())
        began = f"{datetime.now(UTC) - timedelta(seconds=500):%F %T}"
        job_id = await appliance.job(metadata=json.dumps({"vm_name": "pgtest2"}), started_at=began)
        await appliance.step(job_id, 1, "validation")
        await appliance.log("no such volume", level="ERROR", job_id=job_id)

        async def complete() -> dict[str, Any] | None:
            rows = await shown(daemon, target)
            return rows[0] if rows and None not in rows[0].values() and rows[0]["Errors"] else None

        row = await eventually(complete)
        job = await daemon.job(job_id)
        assert row == {
            "VM": "pgtest2", "Operation": job["operation"], "Progress": row["Progress"], "Step": "validation",
            "Started": job["started_at"], "Probable end": row["Probable end"], "Outlook": "on_track", "Stalled": False,
            "Errors": 1, "Job": job_id,
        }  # fmt: skip
        assert row["Progress"] == pytest.approx(job["progress"]["percent"], abs=2)
        assert row["Probable end"] > row["Started"]
        ordered, sort = (each["options"] for each in panel["transformations"])
        assert [*ordered["indexByName"]] == [*row]
        assert {each["field"] for each in sort["sort"]} <= row.keys()
        assert {each["matcher"]["options"] for each in panel["fieldConfig"]["overrides"]} <= row.keys()
