"""A recording that happens now and slower, so that its jobs take seconds; and earlier runs of the same jobs."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import TypeGuard

from tests.support.past_runs import PastRun
from tests.support.replay import TIMES, Insert, Operation, Replayer, Row, Transaction, Value, expected
from tests.support.settled_ends import Life

SLOWER = 30.0
"""A replay in which a job takes some 20 seconds, so that the words for the time that is left have a meaning."""

SECONDS = 1.75
"""How much of `mixed` is then replayed: until three failovers have completed."""

FLUSHED_EVERY = 1.0
"""Seconds between two flushes of JobLog's writers. Only a batch of 100 rows is flushed at once: in the recording all
smaller ones were committed once a second. On an appliance whose jobs take minutes no batch is ever full."""

LATE = 0.1
"""Seconds by which a transaction may be written late."""


def without_percent(transactions: Iterable[Transaction], *, but_of: str) -> list[Transaction]:
    """The same from a JobLog that reports no percent, except for jobs of one type."""
    transactions = list(transactions)
    reporting = {i for i, row in expected(transactions)["job_tracking"].items() if row["job_type"] == but_of}

    def silent(operation: Operation) -> Operation | None:
        if _is_log_row(operation) and operation.row["message"] == "Job progress updated":
            job_id = json.loads(str(operation.row["attrs"]))["job_id"]
            return operation if job_id in reporting else None
        if operation.table != "job_tracking" or _key(operation) in reporting:
            return operation
        return _with(operation, {k: None if k == "percent_complete" else v for k, v in _row(operation).items()})

    changed = (replace(one, operations=tuple(filter(None, map(silent, one.operations)))) for one in transactions)
    return [one for one in changed if one.operations]


async def replay(
    replayer: Replayer, transactions: Sequence[Transaction], slower: float, *, began: datetime | None = None
) -> dict[str, Life]:
    """Commit the transactions at their times, `slower` times as slow, from `began` (in UTC, without a zone) or now on.

    Only what the jobs do is slower. JobLog's writers are not: a row of the log appears with the next flush after it was
    logged, within `FLUSHED_EVERY`, and not `slower` times as late as in the recording. So it may be later than a row of
    the tables that was committed after it in the recording, as on a quiet appliance.

    Returns the lives of the jobs that completed. Where the machine is too slow for the pace, the clock of the replay
    stands still meanwhile: no row has a time that is long over when it is written.
    """
    clock, loop = began or datetime.now(UTC).replace(tzinfo=None), asyncio.get_running_loop()
    start = loop.time()
    first = next(_paced(transactions))[0]
    times: dict[str, list[float]] = {}
    for due, committed, transaction in _slowed(transactions, slower):
        await asyncio.sleep(start + due - loop.time())
        late = loop.time() - start - due
        if late > LATE:
            start, clock = start + late, clock + timedelta(seconds=late)
        moved = tuple(_with(one, _moved(one, committed, first, clock, slower)) for one in transaction.operations)
        await replayer.apply(replace(transaction, operations=moved))
        for operation in transaction.operations:
            if operation.table == "job_tracking":
                times.setdefault(str(_key(operation)), []).append(clock.replace(tzinfo=UTC).timestamp() + due)
    found = dict[str, Life]()
    for job_id, (recorded_start, recorded_end) in lives(transactions).items():
        start_at, end_at = times[job_id][0], times[job_id][-1]
        found[job_id] = Life(start_at, end_at, delay=end_at - start_at - slower * (recorded_end - recorded_start))
    return found


def until(transactions: Sequence[Transaction], seconds: float) -> list[Transaction]:
    """Those of the first seconds of the recording, and the rows that were logged by then and committed later."""
    end = next(_paced(transactions))[0] + timedelta(seconds=seconds)
    found = []
    for committed, transaction in _paced(transactions):
        logged = (one for one in transaction.operations if _is_log_row(one) and _time(one.row["ts"]) <= end)
        operations = transaction.operations if committed <= end else tuple(logged)
        if operations:
            found.append(replace(transaction, operations=operations))
    return found


def lives(transactions: Sequence[Transaction]) -> dict[str, tuple[float, float]]:
    """When each completed job began and ended, in seconds of the recording."""
    first, times = next(_paced(transactions))[0], dict[str, list[float]]()
    for committed, transaction in _paced(transactions):
        for operation in transaction.operations:
            if operation.table == "job_tracking":
                times.setdefault(str(_key(operation)), []).append((committed - first).total_seconds())
    jobs = expected(transactions)["job_tracking"]
    completed = [str(i) for i, job in jobs.items() if job["status"] == "completed"]
    return {job_id: (times[job_id][0], times[job_id][-1]) for job_id in completed}


def longest(transactions: Sequence[Transaction], count: int) -> list[str]:
    """The completed jobs that took the most time."""
    found = lives(transactions)
    return sorted(found, key=lambda job_id: found[job_id][0] - found[job_id][1])[:count]


def with_steps(transactions: Sequence[Transaction]) -> set[str]:
    """The jobs that have a step."""
    return {str(step["job_id"]) for step in expected(transactions)["job_steps"].values()}


def past_runs(transactions: Sequence[Transaction], slower: float, *, copies: int) -> list[PastRun]:
    """The completed jobs of the recording so many times, `slower` and up to a fifth faster or slower than that."""
    first = next(_paced(transactions))[0]
    tables, rnd, runs = expected(transactions), random.Random(3), []
    for _ in range(copies):
        for job_id, (began, ended) in lives(transactions).items():
            factor, job = slower * rnd.uniform(0.8, 1.2), tables["job_tracking"][job_id]

            def seconds(at: Value, began: float = began, factor: float = factor) -> float:
                return factor * ((_time(at) - first).total_seconds() - began)

            steps = [
                (str(step["name"]), seconds(step["started_at"]), seconds(step["completed_at"]))
                for step in sorted(tables["job_steps"].values(), key=lambda step: int(step["seq"] or 0))
                if step["job_id"] == job_id and step["completed_at"]
            ]
            runs.append(PastRun((str(job["job_type"]), str(job["operation"])), factor * (ended - began), steps))
    return runs


def _paced(transactions: Iterable[Transaction]) -> Iterator[tuple[datetime, Transaction]]:
    """A transaction was committed after the latest time of its rows, and after the one before it."""
    latest = datetime.min  # noqa: DTZ901 - recorded times have no zone
    for transaction in transactions:
        latest = max([latest, *(_time(v) for operation in transaction.operations for _, v in _times(operation))])
        yield latest, transaction


def _slowed(transactions: Iterable[Transaction], slower: float) -> list[tuple[float, datetime, Transaction]]:
    """What to commit, after how many seconds, and when it was committed in the recording.

    Rows of the log that were committed together still are, if they are flushed together.
    """
    paced = list(_paced(transactions))
    first = paced[0][0]
    found = []
    for committed, transaction in paced:
        dues: dict[float, list[Operation]] = {}
        for operation in transaction.operations:
            due = slower * (committed - first).total_seconds()
            if _is_log_row(operation):
                logged = slower * (_time(operation.row["ts"]) - first).total_seconds()
                due = min(due, FLUSHED_EVERY * math.ceil(logged / FLUSHED_EVERY))
            dues.setdefault(due, []).append(operation)
        found += [(due, committed, replace(transaction, operations=tuple(some))) for due, some in dues.items()]
    return sorted(found, key=itemgetter(0))


def _is_log_row(operation: Operation) -> TypeGuard[Insert]:
    return isinstance(operation, Insert) and operation.table == "log_events"


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


def _key(operation: Operation) -> Value:
    return operation.row["id"] if isinstance(operation, Insert) else operation.id


def _row(operation: Operation) -> Row:
    return operation.row if isinstance(operation, Insert) else operation.changed


def _with(operation: Operation, row: Row) -> Operation:
    return replace(operation, row=row) if isinstance(operation, Insert) else replace(operation, changed=row)
