"""An appliance's tables filled at once: a recording repeated with new ids, or jobs of one kind."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.facts import STEPS
from tests.support.mariadb import Database
from tests.support.replay import MIXED, TIMES, Tables, Value, expected, load, shift

BUSY = MIXED.with_name("busy.jsonl.gz")

_JOB = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})")
_SECOND = re.compile(r"-1795(\d{6})\b")
"""The Unix second in a constructed job ID."""

_STEP = re.compile(r'"step_id":(\d+)')
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", "\0": "\\0"})

Rows = Iterable[Mapping[str, Value]]


def busy(rows: int) -> dict[str, Iterator[dict[str, Value]]]:
    """`rows` rows of the log: the recording `busy` again and again, each time with new ids, 10 minutes later."""
    tables = expected(shift(load(BUSY)))
    log = sorted(tables["log_events"].values(), key=_number)
    times = -(-rows // len(log))

    def repeated(table: str, source: list[dict[str, Value]]) -> Iterator[dict[str, Value]]:
        span = _number(source[-1]) - _number(source[0]) + 1 if table != "job_tracking" else 0
        for turn in range(times):
            for row in source:
                yield _renewed(table, row, turn, span, timedelta(minutes=10 * (turn + 1 - times)))

    def first(count: int, found: Iterator[dict[str, Value]]) -> Iterator[dict[str, Value]]:
        for _, row in zip(range(count), found, strict=False):
            yield row

    return {
        "job_tracking": repeated("job_tracking", _parents_first(tables)),
        "job_steps": repeated("job_steps", sorted(tables["job_steps"].values(), key=_number)),
        "log_events": first(rows, repeated("log_events", log)),
    }


def jobs(count: int, steps: int = 10, *, status: str = "completed") -> dict[str, Rows]:
    """`count` jobs of `steps` steps that began within the last hours, in the words of a real appliance."""
    now = datetime.now(UTC).replace(tzinfo=None)
    ids = [str(uuid.uuid5(uuid.NAMESPACE_OID, f"bench-{n}")) for n in range(count)]

    def began(n: int) -> datetime:
        return now - timedelta(seconds=60 + n % 7200)

    return {
        "job_tracking": (
            {
                "id": job_id,
                "job_type": "failover",
                "operation": "unified-live-failover",
                "status": status,
                "external_job_id": f"unified-live-failover-bench{n}-1758553933",
                "metadata": f'{{"failover_job_id":"unified-live-failover-bench{n}-1758553932",'
                f'"failover_type":"live","vm_name":"bench{n}","vmware_vm_id":"4205a841"}}',
                "started_at": str(began(n).replace(microsecond=0)),
                "completed_at": str((began(n) + timedelta(seconds=50)).replace(microsecond=0))
                if status == "completed"
                else None,
                "percent_complete": 100 if status == "completed" else None,
                "owner": "system",
                "context_id": f"ctx-bench{n}-20250922",
                "job_category": "failover",
            }
            for n, job_id in enumerate(ids)
        ),
        "job_steps": (
            {
                "job_id": job_id,
                "name": f"{STEPS[k % len(STEPS)]}-{k}",
                "seq": k + 1,
                "status": "completed" if status == "completed" or k < steps - 1 else "running",
                "started_at": str(began(n) + timedelta(milliseconds=1000 * k + 435)),
                "completed_at": str(began(n) + timedelta(milliseconds=1000 * k + 950))
                if status == "completed" or k < steps - 1
                else None,
            }
            for n, job_id in enumerate(ids)
            for k in range(steps)
        ),
    }


async def fill(database: Database, tables: Mapping[str, Rows]) -> None:
    """LOAD DATA of all rows, each table in one statement."""
    async with database.connect(init_command="SET time_zone = '+00:00'") as connection, connection.cursor() as cursor:
        await cursor.execute("SET foreign_key_checks = 0, unique_checks = 0")
        for table, rows in tables.items():
            path = database.server.folder / f"{table}.tsv"
            if columns := _written(path, rows):
                await cursor.execute(
                    f"LOAD DATA INFILE '{path}' INTO TABLE {table} CHARACTER SET utf8mb4 ({', '.join(columns)})"
                )
            path.unlink(missing_ok=True)


def _number(row: Mapping[str, Value]) -> int:
    return int(row["id"] or 0)


def _written(path: Path, rows: Rows) -> list[str]:
    columns: list[str] = []
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            columns = columns or list(row)
            file.write("\t".join(_cell(row[c]) for c in columns) + "\n")
    return columns


def _cell(value: Value) -> str:
    return "\\N" if value is None else str(value).translate(_ESCAPES)


def _parents_first(tables: Tables) -> list[dict[str, Value]]:
    return sorted(tables["job_tracking"].values(), key=lambda row: str(row["started_at"]))


def _renewed(table: str, row: dict[str, Value], turn: int, span: int, by: timedelta) -> dict[str, Value]:
    """`row` as another, later job of the same kind would have written it."""

    def job(found: re.Match[str]) -> str:
        return f"{(int(found[0][:8], 16) + turn * 0x9E3779B1) % (1 << 32):08x}{found[1]}"

    def second(found: re.Match[str]) -> str:
        return f"-{1795 + turn}{found[1]}"

    def step(found: re.Match[str]) -> str:
        return f'"step_id":{int(found[1]) + turn * _STEPS}'

    new: dict[str, Value] = {}
    for column, value in row.items():
        if column in TIMES[table] and isinstance(value, str):
            moved = datetime.fromisoformat(value) + by
            new[column] = moved.isoformat(sep=" ", timespec="microseconds" if "." in value else "seconds")
        elif isinstance(value, str):
            new[column] = _STEP.sub(step, _SECOND.sub(second, _JOB.sub(job, value)))
        elif column == "step_id" and isinstance(value, int):
            new[column] = value + turn * _STEPS
        elif column == "id" and isinstance(value, int):
            new[column] = value + turn * (_STEPS if table == "job_steps" else span)
        else:
            new[column] = value
    return new


_STEPS = 4000
"""More than the ids that the recording gives to its steps."""
