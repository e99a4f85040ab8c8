"""Tables with very many rows, written in seconds: for tests of what must not depend on how much there is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.support.mariadb import Database

ROWS_A_STATEMENT = 2_000


def job_id(number: int) -> str:
    """The same UUID for the same number."""
    return f"{number:08x}-0000-4000-8000-{number:012x}"


def ago(**span: float) -> str:
    """A time before now, in UTC, as tables hold it."""
    return (datetime.now(UTC) - timedelta(**span)).strftime("%Y-%m-%d %H:%M:%S")


async def fill(database: Database, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> int:
    """Insert `rows` in one transaction, many in a statement; returns how many they are. Times are in UTC."""
    found = list(rows)
    one = f"({', '.join(['%s'] * len(columns))})"
    setup = "SET time_zone = '+00:00', foreign_key_checks = 0, unique_checks = 0"
    async with database.connect(autocommit=False, init_command=setup) as connection, connection.cursor() as cursor:
        for i in range(0, len(found), ROWS_A_STATEMENT):
            part = found[i : i + ROWS_A_STATEMENT]
            sql = f"INSERT INTO {table} ({', '.join(columns)}) VALUES {', '.join([one] * len(part))}"
            await cursor.execute(sql, [value for row in part for value in row])
        await connection.commit()
    async with database.connect() as connection, connection.cursor() as cursor:
        await cursor.execute(f"ANALYZE TABLE {table}")
    return len(found)


async def past_jobs(database: Database, count: int, *, days: int = 400) -> None:
    """Jobs 0 to `count`, ended, evenly over the `days` before yesterday; metadata of each holds an ID of its own."""
    begun = f"UTC_TIMESTAMP() - INTERVAL 2 DAY - INTERVAL seq * {86_400 * days / count:f} SECOND"
    uuid = "LOWER(CONCAT(LPAD(HEX(seq), 8, '0'), '-0000-4000-8000-', LPAD(HEX(seq), 12, '0')))"
    metadata = """CONCAT('{"failover_job_id": "gui-', seq, '"}')"""
    setup = "SET time_zone = '+00:00', foreign_key_checks = 0, unique_checks = 0"
    async with database.connect(init_command=setup) as connection, connection.cursor() as cursor:
        await cursor.execute(
            "INSERT INTO job_tracking (id, operation, job_type, status, external_job_id, metadata, started_at,"
            f" completed_at, updated_at) SELECT {uuid}, 'op', 'failover', 'failed', CONCAT('engine-', seq), {metadata},"
            f" {begun}, {begun}, {begun} FROM seq_0_to_{count - 1}"
        )
        await cursor.execute("ANALYZE TABLE job_tracking")


async def pending_failovers(database: Database, ids: Iterable[tuple[str, str]], status: str = "pending") -> None:
    """Rows of failover_jobs that nobody has brought up to date: (job_id, created_at)."""
    await fill(
        database,
        "failover_jobs",
        ("job_id", "vm_id", "job_type", "status", "source_vm_name", "created_at", "updated_at"),
        ((name, "1", "live", status, "vm", at, at) for name, at in ids),
    )


async def silent_jobs(database: Database, count: int, *, hours: float = 20.0, steps: int = 3) -> None:
    """Jobs that run for `hours` without a sign of life, as if their processes had died, `steps` each."""
    at = ago(hours=hours)
    ids = [job_id(10_000_000 + n) for n in range(count)]
    columns = ("id", "operation", "job_type", "status", "started_at", "created_at", "updated_at")
    await fill(database, "job_tracking", columns, ((i, "op", "failover", "running", at, at, at) for i in ids))
    await fill(
        database,
        "job_steps",
        ("job_id", "name", "seq", "status", "started_at"),
        ((i, f"step-{n}", n, "running", at) for i in ids for n in range(steps)),
    )


async def counters(database: Database) -> dict[str, int]:
    """Statements and rows of the whole server since its start (SHOW GLOBAL STATUS, which sends rows itself)."""
    names = "'Com_select', 'Handler_read_rnd_next', 'Rows_sent'"
    async with database.connect() as connection, connection.cursor() as cursor:
        await cursor.execute(f"SHOW GLOBAL STATUS WHERE Variable_name IN ({names})")
        return {name: int(value) for name, value in await cursor.fetchall()}
