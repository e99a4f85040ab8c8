"""`jobs.max_metadata` and `jobs.max_error` hold wherever a job is read: the tables, the log, and the archive."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.appliance import Appliance, now
from tests.support.daemon import HELLO, Daemon
from tests.support.eventually import eventually
from tests.support.listener import Listener
from tests.support.mariadb import Database
from tests.support.mosquitto import Mosquitto

MAX_METADATA, MAX_ERROR = 2_000, 1_000
"""Both are far below the defaults."""

INSTANCE = "member-limits"
BLOB, ERROR = "x" * 3_000, "é" * 600
CUT_METADATA = {"vm_name": "pgtest2", "_cut": {"blob": len(BLOB)}}
CUT_ERROR = {"error": "é" * (MAX_ERROR // 2), "error_cut": 2 * len(ERROR)}


@pytest.fixture
async def limited(database: Database, mosquitto: Mosquitto, tmp_path: Path) -> AsyncIterator[Daemon]:
    """A daemon with these limits."""
    mqtt = {"mqtt__url": mosquitto.url, "mqtt__instance": INSTANCE}
    limits = {"jobs__max_metadata": MAX_METADATA, "jobs__max_error": MAX_ERROR}
    async with Daemon(tmp_path, database__url=database.url, **mqtt, **limits) as daemon:
        yield daemon


async def failed_job(appliance: Appliance, started: str, ended: str, **row: Any) -> str:
    """A job over both limits, and a step over one of them."""
    metadata = json.dumps({"vm_name": "pgtest2", "blob": BLOB})
    times = {"started_at": started, "completed_at": ended}
    job_id = await appliance.job(metadata=metadata, status="failed", error_message=ERROR, **times, **row)
    await appliance.insert(
        "job_steps", job_id=job_id, seq=1, name="copy", status="failed", error_message=ERROR, **times
    )
    return job_id


def is_cut(document: dict[str, Any]) -> bool:
    (step,) = document["steps"].values()
    assert document["metadata"] == CUT_METADATA
    assert {k: document.get(k) for k in CUT_ERROR} == CUT_ERROR
    assert {k: step.get(k) for k in CUT_ERROR} == CUT_ERROR
    return True


async def test_a_job_of_the_tables_one_of_the_archive_and_an_event_are_cut_at_the_configured_sizes(
    limited: Daemon, appliance: Appliance, mosquitto: Mosquitto
):
    listener = Listener()
    async with listener.listening(mosquitto, INSTANCE):
        job_id = await failed_job(appliance, now(), now())

        async def published() -> bool:
            async with limited.socket(HELLO) as socket:
                jobs, _ = await socket.snapshot()
            return job_id in jobs and is_cut(jobs[job_id])

        await eventually(published)
        failed = await appliance.log("Job failed", level="ERROR", attrs={"job_id": job_id, "error": ERROR})
        await eventually(lambda: [event for event in listener.events if event["event_id"] == failed])
    assert {k: listener.events[-1].get(k) for k in CUT_ERROR} == CUT_ERROR
    old = await failed_job(appliance, "2026-01-02 10:00:00", "2026-01-02 10:05:00")
    assert is_cut(await limited.job(old))


async def test_of_thousands_of_external_ids_the_newest_are_known_and_each_leads_to_the_job(
    limited: Daemon, appliance: Appliance
):
    job_id = await appliance.job(status="running", started_at=now())
    names = [f"unified-live-failover-vm-{n:04}-1758553933" for n in range(2_800)]
    await appliance.run(
        "INSERT INTO log_events (job_id, level, message, external_job_id, ts) SELECT %s, 'INFO', 'a line',"
        " CONCAT('unified-live-failover-vm-', LPAD(seq, 4, '0'), '-1758553933'),"
        f" UTC_TIMESTAMP(6) + INTERVAL seq MICROSECOND FROM seq_0_to_{len(names) - 1}",
        job_id,
    )

    async def published() -> bool:
        document = await limited.job(job_id)
        return document is not None and document.get("external_ids_cut") == len(names)

    await eventually(published)
    for name in (names[-1], names[-100], names[0]):
        document = await limited.job(name)
        assert document["job_id"] == job_id
        assert set(document["external_ids"]) == set(names[-100:])
