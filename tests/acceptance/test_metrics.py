"""What the real daemon tells Prometheus: every name that alerts and dashboard rely on, and figures that are true."""

import asyncio
import json
import re
from pathlib import Path

import yaml  # type: ignore[import-untyped]
from prometheus_client.parser import text_string_to_metric_families

from tests.appliance import Appliance, connected
from tests.daemon import HELLO, Daemon
from tests.servers import eventually

DEPLOY = Path(__file__).parents[2] / "deploy"


def relied_on() -> set[str]:
    """The names of metrics in alerts, dashboard and docs/operations.md."""
    alerts = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
    told = [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    dashboard = json.loads((DEPLOY / "grafana" / "correlator.json").read_text())
    told += [t["expr"] for p in dashboard["panels"] for t in p.get("targets", ())]
    told += [v["definition"] for v in dashboard["templating"]["list"] if "definition" in v]
    told += [a["expr"] for a in dashboard["annotations"]["list"]]
    told += re.findall(r"`(correlator_\w+)", (DEPLOY.parent / "docs" / "operations.md").read_text())
    return {name for expr in told for name in re.findall(r"\b(?:correlator|process)_\w+", expr)}


async def families(daemon):
    return list(text_string_to_metric_families(await daemon.text("/metrics")))


async def value(daemon, name, **labels):
    """The sum of the samples of that name and those labels."""
    found = [s for f in await families(daemon) for s in f.samples if s.name == name]
    return sum(s.value for s in found if labels.items() <= s.labels.items())


async def test_every_metric_that_somebody_relies_on_is_there(database, tmp_path):
    daemon = Daemon(tmp_path, database__url=database.url)
    try:
        await daemon.start()
        text = await daemon.text("/metrics")
        suffixes = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}
        there = {
            name + suffix
            for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)
            for suffix in suffixes[kind]
        }
        assert len(relied_on()) > 30
        assert relied_on() <= there
    finally:
        await daemon.close()


async def test_who_asks_for_openmetrics_gets_it_and_everybody_else_gets_text(database, tmp_path):
    daemon = Daemon(tmp_path, database__url=database.url)
    try:
        await daemon.start()
        assert daemon.session is not None
        for accept, kind, end in (
            ("application/openmetrics-text;version=1.0.0,text/plain;q=0.5", "application/openmetrics-text", "# EOF\n"),
            ("text/plain;version=0.0.4", "text/plain", "\n"),
            ("*/*", "text/plain", "\n"),
            ("\xe4 nonsense;;q=x", "text/plain", "\n"),
        ):
            async with daemon.session.get("/metrics", headers={"Accept": accept}) as response:
                assert response.status == 200
                assert response.content_type == kind
                assert (await response.text()).endswith(end)
    finally:
        await daemon.close()


async def test_a_job_that_fails_is_told_with_its_duration_and_how_late_its_rows_were(
    database, appliance, own_mosquitto, tmp_path
):
    daemon = Daemon(tmp_path, database__url=database.url, mqtt__url=own_mosquitto.url)
    try:
        old = await appliance.job("before")
        await appliance.end(old, "failed", "long ago")
        await appliance.log("Job failed", attrs={"job_id": old, "status": "failed"}, job_id=old)
        await daemon.start()
        job_id = await appliance.job("gui-1")
        await appliance.log("Job started", attrs={"job_id": job_id}, job_id=job_id)
        await appliance.end(job_id, "failed", "no space")
        await appliance.log(
            "Job failed", attrs={"job_id": job_id, "status": "failed", "error": "no space"}, job_id=job_id
        )

        async def counted():
            kind = {"job_type": "failover", "operation": "unified-live-failover"}
            assert await value(daemon, "correlator_jobs_ended_total", status="failed", **kind) == 1
            assert await value(daemon, "correlator_jobs_ended_total") == 1
            assert await value(daemon, "correlator_job_duration_seconds_count", **kind) == 1
            assert await value(daemon, "correlator_jobs", status="failed") == 2
            assert await value(daemon, "correlator_end_to_end_seconds_count") == 2
            assert await value(daemon, "correlator_rows_total") == 3
            return await value(daemon, "correlator_mqtt_queue_age_seconds") == 0

        await eventually(counted, within=10)
        assert await value(daemon, "correlator_end_to_end_seconds_bucket", le="10.0") == 2
        assert await value(daemon, "correlator_ready") == 1
        assert await value(daemon, "correlator_database_up") == 1
        assert (
            await value(daemon, "correlator_mqtt_configured") == await value(daemon, "correlator_mqtt_connected") == 1
        )
        assert await value(daemon, "correlator_source_lag_seconds") == 0
        assert await value(daemon, "process_resident_memory_bytes") > 10e6
        assert await value(daemon, "correlator_config_last_reload_successful") == 1
        assert 0 < await value(daemon, "correlator_checkpoint_age_seconds") < 30
        text = await daemon.text("/metrics")
        assert job_id not in text
        assert "gui-1" not in text
        assert "_created" not in text
    finally:
        await daemon.close()


async def test_a_database_that_is_away_is_told_with_its_lag_and_nothing_is_late_for_it_afterwards(
    own_mariadb, tmp_path
):
    database = await own_mariadb.create_schema()
    daemon = Daemon(tmp_path, database__url=database.url)
    try:
        await daemon.start()
        await asyncio.to_thread(own_mariadb.kill)

        async def away():
            assert await value(daemon, "correlator_database_up") == 0
            assert await value(daemon, "correlator_source_lag_seconds") > 1
            return await value(daemon, "correlator_source_failures_total") >= 1

        await eventually(away, within=15)
        await asyncio.to_thread(own_mariadb.start)
        async with connected(database) as connection:
            appliance = Appliance(connection)
            for n in range(3):
                await appliance.log(f"row {n}", ts="2026-01-01 00:00:00")

            async def back():
                assert await value(daemon, "correlator_rows_total") == 3
                assert await value(daemon, "correlator_database_up") == 1
                return await value(daemon, "correlator_source_lag_seconds") == 0

            await eventually(back, within=15)
    finally:
        await daemon.close()


async def test_a_transaction_that_stays_open_is_a_gap_that_grows_old(database, appliance, tmp_path):
    daemon = Daemon(tmp_path, database__url=database.url)
    try:
        await daemon.start()
        await appliance.log("so that there is a head")
        async with connected(database) as connection:
            await connection.begin()
            await Appliance(connection).log("not yet committed")
            await appliance.log("committed")

            async def held():
                assert await value(daemon, "correlator_gaps_open") == 1
                return await value(daemon, "correlator_gap_oldest_seconds") > 0.5

            await eventually(held, within=10)
            await connection.commit()

            async def over():
                return await value(daemon, "correlator_gaps_open") == 0

            await eventually(over, within=10)
        assert await value(daemon, "correlator_end_to_end_seconds_count") == 3
        assert await value(daemon, "correlator_end_to_end_seconds_sum") > 0.5
    finally:
        await daemon.close()


async def test_a_log_that_begins_anew_is_counted(database, appliance, tmp_path):
    daemon = Daemon(tmp_path, database__url=database.url)
    try:
        await daemon.start()
        for n in range(3):
            await appliance.log(f"row {n}")

        async def read():
            return await value(daemon, "correlator_rows_total") == 3

        await eventually(read, within=10)
        await appliance.run("TRUNCATE log_events")

        async def counted():
            return await value(daemon, "correlator_log_resets_total") >= 1

        await eventually(counted, within=10)
    finally:
        await daemon.close()


async def test_a_broker_that_does_not_answer_is_owed_for_as_long_as_that(database, appliance, own_mosquitto, tmp_path):
    daemon = Daemon(tmp_path, database__url=database.url, mqtt__url=own_mosquitto.url)
    try:
        await daemon.start()

        async def connected():
            return await value(daemon, "correlator_mqtt_connected") == 1

        await eventually(connected, within=10)
        await asyncio.to_thread(own_mosquitto.pause)
        job_id = await appliance.job("gui-1")
        await appliance.log("Job started", attrs={"job_id": job_id}, job_id=job_id)

        async def owed():
            assert await value(daemon, "correlator_mqtt_pending") > 0
            return await value(daemon, "correlator_mqtt_queue_age_seconds") > 1

        await eventually(owed, within=10)
        await asyncio.to_thread(own_mosquitto.resume)

        async def over():
            return await value(daemon, "correlator_mqtt_queue_age_seconds") == 0

        await eventually(over, within=15)
    finally:
        await daemon.close()


async def test_readers_are_told_by_their_transport(database, tmp_path):
    daemon = Daemon(tmp_path, database__url=database.url)
    try:
        await daemon.start()
        async with daemon.socket(HELLO):
            assert await value(daemon, "correlator_readers", transport="websocket") == 1
        assert await value(daemon, "correlator_readers_lagging") == 0
    finally:
        await daemon.close()
