"""A job's log lines over REST: complete, each once, whatever the page; also those that only their attrs tie to it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from tests.support import replay
from tests.support.appliance import Appliance, now
from tests.support.daemon import Daemon
from tests.support.expected_jobs import stamp
from tests.support.mariadb import Database
from tests.support.replay import MariaDBReplayer, Transaction
from tests.support.subscriptions import Truth, settled


async def page(daemon: Daemon, name: str, **query: Any) -> dict[str, Any]:
    """The next page that has lines, or the one at the end: a page may be empty before that."""
    while True:
        status, body = await daemon.get(f"/api/v1/jobs/{quote(name, safe='')}/events?{urlencode(query)}")
        assert status == 200, body
        assert set(body) == {"events", "next_after", "more"}
        if body["events"] or not body["more"]:
            return dict(body)
        query["after"] = body["next_after"]


async def lines(daemon: Daemon, name: str, *, most: int = 1000, **query: Any) -> list[dict[str, Any]]:
    """All pages until there is nothing new; each of them is in the order of time."""
    found: list[dict[str, Any]] = []
    for _ in range(most):
        body = await page(daemon, name, **query)
        events = body["events"]
        assert [(e["at"], e["event_id"]) for e in events] == sorted((e["at"], e["event_id"]) for e in events)
        found += events
        if body["next_after"] is None or not (events or body["more"]):
            return found
        query["after"] = body["next_after"]
    raise AssertionError(f"{most} pages")


@asynccontextmanager
async def followed(database: Database, folder: Path, transactions: list[Transaction]) -> AsyncIterator[Any]:
    """(daemon, truth) once the recording is in the tables and everywhere."""
    async with Daemon(folder, database__url=database.url) as daemon:
        async with MariaDBReplayer.connect(database) as replayer:
            await replayer.replay(transactions)
        yield daemon, await settled(daemon, replay.expected(transactions))


def rows_by_job(truth: Truth) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for event_id, job_id in truth.lines().items():
        found[job_id].append(event_id)
    return found


async def test_every_row_of_every_job_is_there_once_and_as_stored(either_database, recording, tmp_path):
    transactions = replay.shift(recording)[: len(recording) // 6]
    if either_database.rolled_back:
        transactions = replay.rolled_back(transactions)
    async with followed(either_database, tmp_path, transactions) as (daemon, truth):
        due = rows_by_job(truth)
        assert sum(map(len, due.values())) > 300
        for job_id in truth.tables["job_tracking"]:
            found = await lines(daemon, job_id, limit=1000)
            assert sorted(e["event_id"] for e in found) == sorted(due.get(job_id, [])), job_id
            for event in found:
                row = truth.tables["log_events"][event["event_id"]]
                attrs = json.loads(row["attrs"]) if row["attrs"] else None
                assert (event["level"], event["message"], event["at"], event["attrs"]) == (
                    row["level"],
                    row["message"],
                    stamp(row["ts"]),
                    attrs,
                )
                assert event["step_id"] == (row["step_id"] or (attrs or {}).get("step_id"))


async def test_rows_with_huge_and_broken_attrs_are_lines_as_others(daemon: Daemon, appliance: Appliance):
    job_id = await appliance.job("gui-1")
    assert (await daemon.get("/api/v1/jobs/gui-1?wait=5"))[0] == 200
    huge = {"job_id": job_id, "text": "z" * 500_000}
    deep = "[" * 200 + "]" * 200
    stored: list[tuple[str | None, Any]] = [
        (json.dumps(huge), huge),
        ('{"text": "' + "z" * (4 << 20) + '"}', None),
        ("{broken", "{broken"),
        ("", None),
        (None, None),
        ("[1,2]", [1, 2]),
        ('"text"', "text"),
        ("null", None),
        ('{"a":"\\ud800"}', {"a": "\ufffd"}),
        ('{"n":1e400}', {"n": "1e400"}),
        ('{"n":123456789012345678901234567890}', None),
        (json.dumps({"deep": 1})[:-1] + f', "x": {deep}}}', None),
    ]
    await appliance.run("SET SESSION check_constraint_checks = 0")
    ids = []
    for attrs, _ in stored:
        ids.append(
            await appliance.insert(
                "log_events", message="m\0\ud7ff😀", level="INFO", attrs=attrs, ts=now(micros=True), job_id=job_id
            )
        )
    found = await lines(daemon, "gui-1", limit=3)
    assert [e["event_id"] for e in found] == ids
    for event, (attrs, shown) in zip(found, stored, strict=True):
        assert event["message"] == "m\0\ud7ff😀"
        if shown is not None or attrs in (None, "", "null"):
            assert event["attrs"] == shown, attrs
    assert (await daemon.job("gui-1"))["status"] == "running"
