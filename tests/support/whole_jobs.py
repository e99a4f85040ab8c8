"""A short recording made of a long one: a few jobs from beginning to end, in the order in which they were committed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from tests.support.replay import Insert, Operation, Row, Tables, Transaction, expected
from tests.support.subscriptions import Truth

LIFECYCLE = {
    f"{what} {how}"
    for what, hows in (("job", "started completed failed cancelled"), ("step", "started completed failed skipped"))
    for how in hows.split()
}
"""The messages of rows that are events, in lower case."""


def whole_jobs(transactions: Sequence[Transaction], most: int) -> list[Transaction]:
    """The transactions of the first `most` jobs that ended, and of which no lifecycle row is missing in the log.

    Nothing about such a job is found out by reading its tables again, so all is shown as soon as the rows are read.
    """
    tables = expected(transactions)
    lines = Truth(tables, {}).lines()
    chosen = set(_complete(tables, lines)[:most])
    owner: dict[tuple[str, str | int | None], str] = {("job_tracking", i): str(i) for i in tables["job_tracking"]}
    owner |= {("job_steps", i): str(step["job_id"]) for i, step in tables["job_steps"].items()}
    owner |= {("log_events", i): job_id for i, job_id in lines.items()}
    found = []
    for transaction in transactions:
        operations = tuple(one for one in transaction.operations if owner.get((one.table, _key(one))) in chosen)
        if operations:
            found.append(replace(transaction, operations=operations))
    return found


def lifecycle_rows(tables: Tables) -> dict[int, str]:
    """The rows that are events, with their jobs."""
    rows = tables["log_events"]
    return {i: job_id for i, job_id in Truth(tables, {}).lines().items() if _message(rows[i]) in LIFECYCLE}


def _complete(tables: Tables, lines: dict[int, str]) -> list[str]:
    """The jobs whose lifecycle rows are just those that their tables ask for."""
    due = Counter(
        (str(i), f"job {how}") for i, job in tables["job_tracking"].items() for how in ("started", job["status"])
    )
    for step in tables["job_steps"].values():
        due.update((str(step["job_id"]), f"step {how}") for how in ("started", step["status"]))
    rows = tables["log_events"]
    found = Counter((job_id, _message(rows[i])) for i, job_id in lines.items() if _message(rows[i]) in LIFECYCLE)
    unlike = {job_id for job_id, message in due.keys() | found.keys() if due[job_id, message] != found[job_id, message]}
    return [str(i) for i in tables["job_tracking"] if i not in unlike]


def _message(row: Row) -> str:
    return str(row["message"]).lower()


def _key(operation: Operation) -> str | int | None:
    return operation.row["id"] if isinstance(operation, Insert) else operation.id
