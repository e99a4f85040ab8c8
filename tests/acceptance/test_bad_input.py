"""Bad rows, requests and frames get a clear answer; nothing else is disturbed and nothing is lost."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from tests.support.appliance import Appliance, now
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.replay import SQLiteReplayer
from tests.support.subscriptions import lines_of


async def test_malformed_rows_are_counted_and_skipped_and_those_around_them_count(tmp_path):
    path = tmp_path / "appliance.db"
    async with SQLiteReplayer.connect(path):
        pass
    async with Daemon(tmp_path, database__url=f"sqlite://{path}") as daemon:
        with sqlite3.connect(path) as connection:
            connection.execute(
                "INSERT INTO job_tracking (id, operation, status, started_at) VALUES ('u1', 'x', 'running', datetime())"
            )
            bad = [
                "not json",
                "[1]",
                '{"job_id": 7}',
                '{"job_id": "u1", "step_id": "x"}',
                '{"job_id": "\\ud800"}',
                '{"a": "' + "x" * (4 << 20) + '"}',
                '{"job_id":' * 50_000,
                None,
                "",
                "null",
                "\0",
            ]
            for attrs in bad:
                connection.execute(
                    "INSERT INTO log_events (level, message, attrs, ts) VALUES ('INFO', 'Step started', ?, 'x')",
                    (attrs,),
                )
            for message, at in (("\0\0", "2026-11-25 08:00:00"), (b"the last\xff", "2199-01-01 00:00:00.5")):
                connection.execute(
                    "INSERT INTO log_events (level, message, attrs, ts) VALUES ('WARN', ?, ?, ?)",
                    (message, '{"job_id": "u1"}', at),
                )
        connection.close()

        async def counted() -> bool:
            job = await daemon.job("u1")
            return job is not None and job["warnings"] == 2 and job["last_message"]["text"] == "the last\ufffd"

        await eventually(counted)
        assert daemon.session is not None
        async with daemon.session.get("/metrics") as response:
            text = await response.text()
        for reason in ("attrs_not_json", "attrs_not_object", "attrs_too_long", "job_id_invalid", "step_id_invalid"):
            assert f'correlator_malformed_rows_total{{reason="{reason}"}}' in text, reason
        assert "Traceback" not in daemon.log()


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
    found = await lines_of(daemon, "gui-1", limit=3)
    assert [e["event_id"] for e in found] == ids
    for event, (attrs, shown) in zip(found, stored, strict=True):
        assert event["message"] == "m\0\ud7ff😀"
        if shown is not None or attrs in (None, "", "null"):
            assert event["attrs"] == shown, attrs
    assert (await daemon.job("gui-1"))["status"] == "running"


BAD_REQUESTS = [
    ("/api/v1/jobs?limit=0", 400, "limit='0': expected a number from 1 to 500"),
    ("/api/v1/jobs?limit=many", 400, "limit='many'"),
    ("/api/v1/jobs?staus=running", 400, "there is no query parameter 'staus' here; known: context_id"),
    ("/api/v1/jobs?status=runing", 400, "expected one of pending, running"),
    ("/api/v1/stream?staus=running", 400, "there is no query parameter 'staus' here; known: context_id, id, instance"),
    ("/api/v1/jobs?since=yesterday", 400, "e.g. 2025-09-22T10:00:00Z"),
    ("/api/v1/jobs?since=2025-09-22T10:00:00", 400, "with its zone"),
    ("/api/v1/jobs?cursor=%ff", 400, "next_cursor"),
    ("/api/v1/jobs/x?wait=61", 400, "wait='61': expected a number from 0 to 60"),
    ("/api/v1/jobs/x?wait=nan", 400, "wait='nan'"),
    ("/api/v1/jobs/x?rev=1.5", 400, "rev='1.5'"),
    ("/api/v1/job", 400, "id: expected one ID of a job"),
    ("/api/v1/job?id=", 400, "id='': expected one ID of a job"),
    ("/api/v1/job?id=a&id=b", 400, "id: given 2 times; give it once"),
    ("/api/v1/job?id=..", 404, "no job is known by '..'"),
    ("/api/v1/job/events?id=x&wait=1", 400, "no query parameter 'wait'"),
    ("/api/v1/jobs/nobody%2Fevents/events", 404, "no job is known by"),
    ("/api/v1/jobs/gui-1/events?limit=1001", 400, "expected a number from 1 to 1000"),
    ("/api/v1/jobs/gui-1/events?level=LOUD", 400, "DEBUG, INFO, WARN, ERROR"),
    ("/api/v1/jobs/gui-1/events?after=%ff%00", 400, "next_after"),
    ("/api/v1/jobs/gui-1/events?afer=1", 400, "known: after, before, from, level, limit, q, since, step"),
    ("/api/v1/jobs/x?id=y", 400, "there is no query parameter 'id' here"),
    ("/api/v1/jobs/nobody", 404, "no job is known by 'nobody'"),
    ("/api/v1/operations?limit=1", 400, "there is no query parameter 'limit' here; known: none"),
    ("/api/v1/operations/-/a%2Fb", 404, "no run of the operation 'a/b' of the job type '-' is known"),
    ("/api/v1/operations/failover", 404, "there is nothing at /api/v1/operations/failover"),
    ("/api/v1/nothing", 404, "there is nothing at /api/v1/nothing"),
    ("/api/v1/resolve/%00", 404, "no job is known"),
]


async def test_a_bad_request_gets_a_problem_that_says_what_is_right(daemon: Daemon, appliance: Appliance):
    await appliance.job("gui-1")
    assert (await daemon.get("/api/v1/jobs/gui-1?wait=5"))[0] == 200
    assert daemon.session is not None
    for path, status, says in BAD_REQUESTS:
        async with daemon.session.get(path) as response:
            problem = json.loads(await response.read())
            assert (response.status, response.content_type) == (status, "application/problem+json"), path
        assert set(problem) == {"type", "title", "status", "detail"}, path
        assert says in problem["detail"], path
    async with daemon.session.delete("/api/v1/jobs/x") as response:
        assert (response.status, response.content_type) == (405, "application/problem+json")
        assert "GET" in response.headers["Allow"]
