"""A first start: what the tables say is served at once, however long the log is, and the log's past completes it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.appliance import Appliance, connected, now
from tests.support.daemon import HELLO, Daemon
from tests.support.eventually import eventually
from tests.support.faults.proxy import Proxy
from tests.support.listener import Listener
from tests.support.mariadb import Database
from tests.support.replay import SQLiteReplayer

JOBS = 50

SLOW = 100_000
"""Bytes a second of a connection over which ten thousand rows of the log take several seconds."""


async def history(database: Database, rows: int, *, prefix: str = "past") -> list[str]:
    """`JOBS` running jobs, and `rows` rows of the log that belong to them in turn; every tenth is a warning."""
    ids = [str(uuid.uuid5(uuid.NAMESPACE_OID, f"{prefix}-{n}")) for n in range(JOBS)]
    async with connected(database) as connection:
        appliance = Appliance(connection)
        for number, job_id in enumerate(ids):
            await appliance.job(f"gui-{prefix}-{number}", id=job_id)
        cases = " ".join(f"WHEN {n} THEN '{job_id}'" for n, job_id in enumerate(ids))
        await appliance.run(
            "INSERT INTO log_events (level, message, attrs, ts)"
            " SELECT IF(seq DIV %s %% 10 = 0, 'WARN', 'INFO'), CONCAT('row ', seq),"
            f" CONCAT('{{\"job_id\":\"', CASE seq %% %s {cases} END, '\"}}'),"
            " UTC_TIMESTAMP(6) - INTERVAL 2 HOUR + INTERVAL seq * 1000 MICROSECOND"
            f" FROM seq_0_to_{rows - 1}",
            JOBS,
            JOBS,
        )
    return ids


@contextlib.asynccontextmanager
async def first_start(folder: Path, url: str, **settings: Any) -> AsyncIterator[tuple[Daemon, float]]:
    """A daemon without a checkpoint, and the seconds until it was ready."""
    await asyncio.to_thread(folder.mkdir, exist_ok=True)
    daemon = Daemon(folder, database__url=url, **settings)
    try:
        began = time.monotonic()
        await daemon.start(complete=False, within=120)
        yield daemon, time.monotonic() - began
    finally:
        await daemon.close()


@contextlib.asynccontextmanager
async def slow_start(folder: Path, database: Database, **settings: Any) -> AsyncIterator[tuple[Daemon, Proxy]]:
    """A daemon without a checkpoint over a slow connection: it is ready long before it has read the log's past.

    However fast the machine is. `heal` the proxy, and the rest is read at once.
    """
    async with Proxy(database.server.port) as proxy:
        proxy.rate = SLOW
        url = f"mysql://correlator@127.0.0.1:{proxy.port}/{database.name}"
        async with first_start(folder, url, **settings) as (daemon, _):
            assert not await complete(daemon)
            yield daemon, proxy


async def complete(daemon: Daemon) -> bool:
    return "loading" not in (await daemon.get("/health/ready"))[1]["parts"]["database"]


async def test_documents_are_served_before_the_past_is_read_and_end_equal_to_the_log(
    tmp_path: Path, database: Database
):
    rows = 50_000
    ids = await history(database, rows)
    async with slow_start(tmp_path / "run", database) as (daemon, proxy):
        part = (await daemon.get("/health/ready"))[1]["parts"]["database"]
        known = await daemon.job("gui-past-0")
        assert (known["status"], known.get("counts_complete")) == ("running", False)
        assert 0 <= part["loading"]["done"] < part["loading"]["total"] == rows
        async with daemon.socket(HELLO) as socket, connected(database) as connection:
            await socket.snapshot(jobs=[ids[0]], logs="INFO")
            appliance = Appliance(connection)
            await appliance.log("news", attrs={"job_id": ids[0]})
            line = await socket.until("log")
            assert line["message"] == "news", "what was there before is no news"
            assert (await daemon.job(ids[1]))["counts_complete"] is False
            proxy.heal()
            await eventually(lambda: complete(daemon), within=120)
        for number, job_id in enumerate(ids):
            shown = await daemon.job(job_id)
            assert "counts_complete" not in shown
            assert shown["warnings"] == rows // JOBS // 10
            last = "news" if number == 0 else f"row {rows - JOBS + number}"
            assert shown["last_message"]["text"] == last


async def test_a_restart_in_the_middle_of_the_past_goes_on_with_it(tmp_path: Path, database: Database):
    rows = 50_000
    ids = await history(database, rows)
    async with slow_start(tmp_path / "run", database) as (daemon, proxy):

        async def rows_read() -> int:
            return int((await daemon.get("/health/ready"))[1]["parts"]["database"]["loading"]["done"])

        await eventually(rows_read)
        await daemon.saved()
        await daemon.kill()
        await daemon.start(complete=False)
        await eventually(rows_read)  # it is not complete for a moment before either
        assert (await daemon.job(ids[0]))["counts_complete"] is False
        proxy.heal()
        await eventually(lambda: complete(daemon), within=120)
        for number, job_id in enumerate(ids):
            shown = await daemon.job(job_id)
            assert shown["warnings"] == rows // JOBS // 10
            assert shown["last_message"]["text"] == f"row {rows - JOBS + number}"


@pytest.mark.parametrize("fate", ["ended while the past was read", "ended before"])
async def test_only_what_happens_after_the_start_is_announced(
    fate: str, tmp_path: Path, database: Database, mosquitto: Any
):
    rows = 30_000
    ids = await history(database, rows)
    instance, listener = f"first-{uuid.uuid4()}", Listener()
    async with connected(database) as connection, listener.listening(mosquitto, instance):
        appliance, events = Appliance(connection), listener.events
        await appliance.log("Job started", attrs={"job_id": ids[0]}, ts=now(micros=True))
        if fate == "ended before":
            await appliance.end(ids[0])
            await appliance.log("Job completed", job_id=ids[0])
        settings = {"mqtt__url": mosquitto.url, "mqtt__instance": instance}
        async with slow_start(tmp_path / "run", database, **settings) as (daemon, proxy):
            expected = []
            if fate != "ended before":
                await appliance.end(ids[0])
                expected = [("job.completed", await appliance.log("Job completed", job_id=ids[0]))]
            other = await appliance.job("gui-new")
            expected.append(("job.started", await appliance.log("Job started", attrs={"job_id": other})))
            proxy.heal()
            await eventually(lambda: complete(daemon))
            # What the tables show without a row is announced after a grace: this is the last such transition.
            await appliance.end(other)
            await eventually(lambda: any(e["job_id"] == other and e["event_id"] is None for e in events))
            assert sorted((e["kind"], e["event_id"]) for e in events if e["event_id"] is not None) == sorted(expected)
            assert len(events) == len(expected) + 1


async def test_a_start_imports_no_module_of_a_cluster_of_mqtt_or_of_otlp_unless_configured(tmp_path):
    async with SQLiteReplayer.connect(tmp_path / "appliance.db"):
        pass
    optional = ("correlator.cluster", "correlator.sinks.cluster", "correlator.sinks.mqtt", "correlator.sinks.otlp")
    libraries = ("aiomqtt", "paho", "nats", "google.protobuf")
    imported: dict[str, set[str]] = {}
    for name, settings in (
        ("plain", {}),
        ("all", {"mqtt__url": "mqtt://127.0.0.1:9", "otlp__url": "http://127.0.0.1:9"}),
    ):
        folder = tmp_path / name
        folder.mkdir()
        daemon = Daemon(folder, database__url=f"sqlite://{tmp_path}/appliance.db", **settings)
        daemon._environ["PYTHONPROFILEIMPORTTIME"] = "1"
        try:
            await daemon.start()
        finally:
            await daemon.stop()
            await daemon.close()
        imported[name] = set(re.findall(r"^import time:.*\| +(\S+)$", daemon.log(), re.MULTILINE))
    assert "correlator.app" in imported["plain"]
    assert sorted(module for module in imported["plain"] if module.startswith((*optional, *libraries))) == []
    assert {"correlator.sinks.mqtt.sink", "correlator.sinks.otlp.sink", "aiomqtt"} <= imported["all"]
