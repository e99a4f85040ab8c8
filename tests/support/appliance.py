"""One job written by hand, row by row, as JobLog would: for tests that need to know the moment of each commit."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from typing import Any

from tests.support.mariadb import Database


def now(*, micros: bool = False) -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f" if micros else "%Y-%m-%d %H:%M:%S")


class Appliance:
    """Writes to a database over a connection of its own; each call is one committed statement."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def insert(self, table: str, **row: Any) -> int:
        columns, marks = ", ".join(row), ", ".join(["%s"] * len(row))
        async with self._connection.cursor() as cursor:
            await cursor.execute(f"INSERT INTO {table} ({columns}) VALUES ({marks})", tuple(row.values()))
            return int(cursor.lastrowid)

    async def run(self, sql: str, *args: Any) -> None:
        async with self._connection.cursor() as cursor:
            await cursor.execute(sql, args or None)

    async def job(self, external_id: str | None = None, **row: Any) -> str:
        """A running job's row; its ID stands where `row` or, by default, the column says."""
        job_id = row.pop("id", None) or str(uuid.uuid4())
        defaults = {
            "id": job_id,
            "operation": "unified-live-failover",
            "job_type": "failover",
            "status": "running",
            "started_at": now(),
            "owner": "system",
        }
        if external_id is not None:
            defaults["external_job_id"] = external_id
        await self.insert("job_tracking", **(defaults | row))
        return job_id

    async def end(self, job_id: str, status: str = "completed", error: str | None = None) -> None:
        await self.run(
            "UPDATE job_tracking SET status = %s, error_message = %s, completed_at = UTC_TIMESTAMP() WHERE id = %s",
            status,
            error,
            job_id,
        )

    async def step(self, job_id: str, seq: int, name: str, status: str = "running") -> int:
        ended = None if status == "running" else now(micros=True)
        return await self.insert(
            "job_steps",
            job_id=job_id,
            seq=seq,
            name=name,
            status=status,
            started_at=now(micros=True),
            completed_at=ended,
        )

    async def log(self, message: str, level: str = "INFO", attrs: dict[str, Any] | None = None, **row: Any) -> int:
        text = json.dumps(attrs) if attrs is not None else None
        return await self.insert(
            "log_events", message=message, level=level, attrs=text, **({"ts": now(micros=True)} | row)
        )


def connected(database: Database) -> Any:
    """The connection for an `Appliance`, in UTC like the servers of the tests."""
    return database.connect(init_command="SET time_zone = '+00:00'")
