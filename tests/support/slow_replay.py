"""A recording that happens now and slower, so that its jobs take seconds; and earlier runs of the same jobs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from tests.support.past_runs import PastRun
from tests.support.replay import TIMES, Insert, Operation, Replayer, Row, Transaction, Value, expected


def without_percent(transactions: Iterable[Transaction], *, but_of: str) -> list[Transaction]:
    """The same from a JobLog that reports no percent, except for jobs of one type."""
    transactions = list(transactions)
    reporting = {i for i, row in expected(transactions)["job_tracking"].items() if row["job_type"] == but_of}

    def silent(operation: Operation) -> Operation:
        key = operation.row["id"] if isinstance(operation, Insert) else operation.id
        if operation.table != "job_tracking" or key in reporting:
            return operation
        return _with(operation, {k: None if k == "percent_complete" else v for k, v in _row(operation).items()})

    return [replace(one, operations=tuple(map(silent, one.operations))) for one in transactions]


async def replay(replayer: Replayer, transactions: Sequence[Transaction], slower: float) -> None:
    """Commit the transactions at their times, `slower` times as slow, with times of now."""
    began, loop = datetime.now(UTC).replace(tzinfo=None), asyncio.get_running_loop()
    start = loop.time()
    paced = list(_paced(transactions))
    first = paced[0][0]
    for committed, transaction in paced:
        await asyncio.sleep(start + slower * (committed - first).total_seconds() - loop.time())
        moved = tuple(
            _with(operation, _moved(operation, committed, first, began, slower)) for operation in transaction.operations
        )
        await replayer.apply(replace(transaction, operations=moved))


def past_runs(transactions: Sequence[Transaction], slower: float, *, copies: int) -> list[PastRun]:
    """The completed jobs of the recording so many times, `slower` and up to a fifth faster or slower than that."""
    began: dict[Value, datetime] = {}
    ended: dict[Value, datetime] = {}
    for committed, transaction in _paced(transactions):
        for operation in transaction.operations:
            if operation.table == "job_tracking" and isinstance(operation, Insert):
                began[operation.row["id"]] = committed
            elif operation.table == "job_tracking" and not isinstance(operation, Insert):
                ended[operation.id] = committed
    tables, rnd, runs = expected(transactions), random.Random(3), []
    for _ in range(copies):
        for job_id, job in tables["job_tracking"].items():
            if job["status"] != "completed" or job_id not in ended:
                continue
            factor, start = slower * rnd.uniform(0.8, 1.2), began[job_id]

            def seconds(at: datetime, start: datetime = start, factor: float = factor) -> float:
                return factor * (at - start).total_seconds()

            steps = [
                (str(step["name"]), seconds(_time(step["started_at"])), seconds(_time(step["completed_at"])))
                for step in sorted(tables["job_steps"].values(), key=lambda step: int(step["seq"] or 0))
                if step["job_id"] == job_id and step["completed_at"]
            ]
            runs.append(PastRun((str(job["job_type"]), str(job["operation"])), seconds(ended[job_id]), steps))
    return runs


def _paced(transactions: Iterable[Transaction]) -> Iterator[tuple[datetime, Transaction]]:
    """A transaction was committed after the latest time of its rows, and after the one before it."""
    latest = datetime.min  # noqa: DTZ901 - recorded times have no zone
    for transaction in transactions:
        latest = max([latest, *(_time(v) for operation in transaction.operations for _, v in _times(operation))])
        yield latest, transaction


def _times(operation: Operation) -> Iterator[tuple[str, str]]:
    for column, value in _row(operation).items():
        if column in TIMES[operation.table] and isinstance(value, str):
            yield column, value


def _moved(operation: Operation, committed: datetime, first: datetime, began: datetime, slower: float) -> Row:
    moved = dict(_row(operation))
    for column, value in _times(operation):
        at = _time(value)
        if "." not in value and at == committed.replace(microsecond=0):
            at = committed  # The column has whole seconds.
        new = began + slower * (at - first)
        moved[column] = f"{new:%F %T.%f}" if "." in value else f"{new:%F %T}"
    return moved


def _time(value: Value) -> datetime:
    return datetime.fromisoformat(str(value))


def _row(operation: Operation) -> Row:
    return operation.row if isinstance(operation, Insert) else operation.changed


def _with(operation: Operation, row: Row) -> Operation:
    return replace(operation, row=row) if isinstance(operation, Insert) else replace(operation, changed=row)
