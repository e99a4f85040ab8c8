"""Bad rows, requests and frames get a clear answer; nothing else is disturbed and nothing is lost."""

from __future__ import annotations

import sqlite3

from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.replay import SQLiteReplayer


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
                "\u00b2",
                "\u0663",
                "9" * 5000,
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
