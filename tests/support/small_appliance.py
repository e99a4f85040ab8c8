"""A small appliance in a SQLite file whose external IDs are hostile, and the token of a daemon that serves it."""

from __future__ import annotations

import json
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

from tests.support.replay import SQLiteReplayer

TOKEN = "open-sesame-4711"
NAMES = ("gui-1", "SVR 2019/Prod#1+x", "two\nlines", "<script>alert(1)</script>", "../../etc/passwd", "' OR 1=1 -- ")
"""The external IDs of its jobs."""


async def write_small_appliance(path: Path) -> None:
    """One running job per name, each with one log line."""
    async with SQLiteReplayer.connect(path):
        pass  # this makes the tables
    began = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
    with sqlite3.connect(path) as connection:
        for n, name in enumerate(NAMES):
            connection.execute(
                "INSERT INTO job_tracking (id, job_type, operation, status, started_at, context_id, metadata)"
                " VALUES (?, 'failover', 'unified-live-failover', 'running', ?, 'ctx', ?)",
                (f"00000000-0000-4000-8000-{n:012}", began, json.dumps({"gui_job_id": name})),
            )
            connection.execute(
                "INSERT INTO log_events (job_id, level, message, attrs, ts) VALUES (?, 'WARN', 'a line', ?, ?)",
                (f"00000000-0000-4000-8000-{n:012}", json.dumps({"n": n}), began),
            )
    connection.close()
