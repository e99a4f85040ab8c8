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


async def past_jobs(database: Database, count: int) -> None:
    """Jobs 0 to `count`, ended, evenly over the 400 days before yesterday; metadata of each holds an ID of its own."""
    begun = f"UTC_TIMESTAMP() - INTERVAL 2 DAY - INTERVAL seq * {400 * 86_400 / count:f} SECOND"
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


def vm(number: int) -> str:
    """The name of the VM of a job of `year_of_jobs`."""
    return f"vm-{number:06}"


async def year_of_jobs(database: Database, count: int, recent: int, failed: int) -> str:
    """Ended jobs 0 to `count`, the newest first, one for each VM; the ID of job `failed`.

    The first `recent` began within 20 hours, the others evenly over the year before. Each has 3 steps. Job `failed`
    failed in its step "copy", and has 20 lines in each step; so did every ninth, without lines.
    """
    recent_every, every = 72_000 / recent, 365 * 86_400 / count
    begun = f"UTC_TIMESTAMP() - INTERVAL IF(seq < {recent}, {recent_every:f} * seq, 90000 + {every:f} * seq) SECOND"
    uuid = "LOWER(CONCAT(LEFT(MD5(seq), 8), '-0000-4000-8000-', LPAD(HEX(seq), 12, '0')))"
    name = "LPAD(seq, 6, '0')"
    fails = f"(seq = {failed} OR seq MOD 9 = 0)"
    error = "'no space left on volume'"
    setup = "SET time_zone = '+00:00', foreign_key_checks = 0, unique_checks = 0"
    async with database.connect(init_command=setup) as connection, connection.cursor() as cursor:
        await cursor.execute(
            "INSERT INTO job_tracking (id, operation, job_type, status, external_job_id, metadata, error_message,"
            f" started_at, completed_at, updated_at) SELECT {uuid}, 'unified-live-failover', 'failover',"
            f" IF({fails}, 'failed', 'completed'), CONCAT('unified-live-failover-vm-', {name}, '-1758553933'),"
            f""" CONCAT('{{"vm_name": "vm-', {name}, '"}}'), IF({fails}, {error}, NULL),"""
            f" {begun}, {begun} + INTERVAL 90 SECOND, {begun} + INTERVAL 90 SECOND FROM seq_0_to_{count - 1}"
        )
        await cursor.execute(
            "INSERT INTO job_steps (job_id, name, seq, status, started_at, completed_at, error_message)"
            " SELECT id, ELT(seq, 'validation', 'snapshot', 'copy'), seq, IF(status = 'failed' AND seq = 3, 'failed',"
            " 'completed'), started_at + INTERVAL 30 * seq - 30 SECOND, started_at + INTERVAL 30 * seq SECOND,"
            f" IF(status = 'failed' AND seq = 3, {error}, NULL) FROM job_tracking, seq_1_to_3"
        )
        of_failed = f"id = (SELECT {uuid} FROM seq_{failed}_to_{failed})"
        await cursor.execute(
            "INSERT INTO log_events (job_id, step_id, level, message, ts) SELECT job_id, id, IF(n.seq = 20"
            " AND status = 'failed', 'ERROR', 'INFO'), CONCAT(name, ' line ', n.seq),"
            f" started_at + INTERVAL n.seq SECOND FROM job_steps, seq_1_to_20 AS n WHERE job_{of_failed} ORDER BY 5"
        )
        await cursor.execute("ANALYZE TABLE job_tracking, job_steps")
        await cursor.execute(f"SELECT id FROM job_tracking WHERE {of_failed}")
        return str((await cursor.fetchone())[0])


async def jobs_without_rows(database: Database, count: int) -> None:
    """`count` jobs that have ended an hour ago or more, nearly all without rows: one that ends now gives an event."""
    await year_of_jobs(database, count, count, 5)
    async with database.connect() as connection, connection.cursor() as cursor:
        for table in ("job_tracking", "job_steps"):
            earlier = "started_at = started_at - INTERVAL 1 HOUR, completed_at = completed_at - INTERVAL 1 HOUR"
            await cursor.execute(f"UPDATE {table} SET {earlier}")
        await connection.commit()


async def pending_failovers(database: Database, ids: Iterable[tuple[str, str]], status: str = "pending") -> None:
    """Rows of failover_jobs that nobody has brought up to date: (job_id, created_at)."""
    await fill(
        database,
        "failover_jobs",
        ("job_id", "vm_id", "job_type", "status", "source_vm_name", "created_at", "updated_at"),
        ((name, "1", "live", status, "vm", at, at) for name, at in ids),
    )


async def silent_jobs(database: Database, count: int, hours: float = 20.0) -> None:
    """Jobs that run for that long without a sign of life, as if their processes had died, with 3 steps each."""
    at = ago(hours=hours)
    ids = [job_id(10_000_000 + n) for n in range(count)]
    columns = ("id", "operation", "job_type", "status", "started_at", "created_at", "updated_at")
    await fill(database, "job_tracking", columns, ((i, "op", "failover", "running", at, at, at) for i in ids))
    await fill(
        database,
        "job_steps",
        ("job_id", "name", "seq", "status", "started_at"),
        ((i, f"step-{n}", n, "running", at) for i in ids for n in range(3)),
    )


async def counters(database: Database) -> dict[str, int]:
    """Statements and rows of the whole server since its start (SHOW GLOBAL STATUS, which sends rows itself)."""
    reads = ", ".join(f"'Handler_read_{how}'" for how in ("key", "next", "prev", "rnd_next"))
    names = f"'Com_select', 'Rows_sent', {reads}"
    async with database.connect() as connection, connection.cursor() as cursor:
        await cursor.execute(f"SHOW GLOBAL STATUS WHERE Variable_name IN ({names})")
        return {name: int(value) for name, value in await cursor.fetchall()}
