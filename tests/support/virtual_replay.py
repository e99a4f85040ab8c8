"""The slow replay in virtual time: what clients see of the recording where no machine delays anything."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast

from correlator.forecast.points import EndedRun, StepTimes
from correlator.jobs import joblog
from correlator.model.facts import Fact
from correlator.model.rows import LogRow, Micros
from tests.support import slow_replay
from tests.support.client_fold import Document
from tests.support.documents import document_of
from tests.support.forecast_index import knowing
from tests.support.past_runs import PastRun, in_the_past
from tests.support.recorded_facts import reading_of, row_of
from tests.support.replay import Insert, Replayer, Tables, Transaction, no_rows, write
from tests.support.settled_ends import Life
from tests.support.virtual_time import VirtualTimeLoop

BEGAN = datetime(2025, 9, 25, 12, 0, 0, 300_000)  # noqa: DTZ001 - recorded times have no zone
LATENCY = 0.05
"""Seconds after its commit at which the index has a log row, or what a query of the tables has found."""

TABLES_EVERY = 1.0
"""Seconds between two queries of the tables for the jobs that changed."""

READ_EVERY = 0.25


class Sighting(NamedTuple):
    """The document of a running job that has a forecast, as it was `at` so many seconds since 1970."""

    at: float
    job: Document


def replayed(
    transactions: Sequence[Transaction], past: Iterable[PastRun], slower: float, *, phase: float = 0.0, log: bool = True
) -> tuple[dict[str, Life], list[Sighting]]:
    """Replay the transactions, and read the documents of its jobs meanwhile. `past`: the earlier runs.

    `phase`: seconds after the beginning at which the tables are queried first. Without `log` JobLog drops all rows.
    """
    loop = VirtualTimeLoop()
    try:
        replayer = _IndexReplayer(past, loop, log=log)
        reading = loop.create_task(replayer.read_documents())
        querying = loop.create_task(replayer.query_tables(phase))
        replaying = loop.create_task(slow_replay.replay(replayer, transactions, slower, began=BEGAN))
        while not replaying.done():
            loop.run(10.0)
        reading.cancel()
        querying.cancel()
        loop.run()
        return replaying.result(), replayer.seen
    finally:
        loop.close()


class _IndexReplayer(Replayer):
    """Passes rows of the log to an index that has read earlier runs; and what the tables say, as `Reconcile` does.

    A job is read from the tables when it has changed there, once a second; and as soon as the index asks for it.
    """

    def __init__(self, past: Iterable[PastRun], loop: VirtualTimeLoop, *, log: bool) -> None:
        self.seen: list[Sighting] = []
        self._index = knowing(*_ended(past))
        self._tables = no_rows()
        self._written: set[str] = set()
        """The jobs that have changed since the tables were queried."""
        self._log = log
        self._loop, self._zero = loop, loop.time() - BEGAN.replace(tzinfo=UTC).timestamp()

    async def apply(self, transaction: Transaction) -> None:
        write(self._tables, transaction)
        rows = []
        for operation in transaction.operations:
            key = operation.row["id"] if isinstance(operation, Insert) else operation.id
            row = self._tables[operation.table][cast(Any, key)]
            if operation.table == "log_events":
                rows.append(row_of(row))
            elif operation.table in ("job_tracking", "job_steps"):
                self._written.add(str(row["id" if operation.table == "job_tracking" else "job_id"]))
        if rows and self._log:
            self._loop.call_later(LATENCY, self._apply_rows, rows)

    async def tables(self) -> Tables:
        return self._tables

    async def query_tables(self, phase: float) -> None:
        """Query the jobs that changed in the tables, each `TABLES_EVERY`, first after `phase`. In seconds."""
        await asyncio.sleep(phase)
        while True:
            written, self._written = self._written, set()
            self._query(written)
            await asyncio.sleep(TABLES_EVERY)

    def _apply_rows(self, rows: Iterable[LogRow]) -> None:
        observed_at = self._index.advance_clock()
        self._apply([joblog.read(row, observed_at)[0] for row in rows])

    def _query(self, job_ids: Iterable[str]) -> None:
        known = [i for i in job_ids if i in self._tables["job_tracking"]]
        readings = [reading_of(self._tables, i, self._index.advance_clock()) for i in sorted(known)]
        self._loop.call_later(LATENCY, self._apply, readings)

    def _apply(self, facts: Sequence[Fact]) -> None:
        outcome = self._index.apply(facts, self._now())
        if job_ids := outcome.unread | outcome.ended:
            self._query(job_ids)

    async def read_documents(self) -> None:
        """Read the documents of all jobs at intervals, after the renewal of the forecasts that are due."""
        while True:
            await asyncio.sleep(READ_EVERY)
            now = self._now()
            while self._index.forecasts.has_due(now, learn=True):
                self._index.renew_forecasts(now, learn=True)
            for shown in self._index.published.all():
                if shown.forecast is not None and shown.forecast.forecast is not None:
                    self.seen.append(Sighting(now / 1e6, document_of(shown)))

    def _now(self) -> Micros:
        return round((self._loop.time() - self._zero) * 1e6)


def _ended(past: Iterable[PastRun]) -> Iterator[EndedRun]:
    """The runs as the history reads them: a job's own times have whole seconds."""
    for began, run in in_the_past(past, BEGAN.replace(tzinfo=UTC)):
        start = began.timestamp()
        steps = tuple(StepTimes(name, round((start + a) * 1e6), round((start + b) * 1e6)) for name, a, b in run.steps)
        began_at, ended_at = (int(at) * 1_000_000 for at in (start, start + run.seconds))
        yield EndedRun(run.operation, "", began_at, ended_at, True, steps)
