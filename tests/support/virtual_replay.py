"""The slow replay in virtual time: what clients see of the recording where no machine delays anything."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast

from correlator.jobs import job_document, joblog
from correlator.jobs.forecast.place import EndedRun, StepTimes
from correlator.jobs.model.facts import Fact
from correlator.jobs.model.rows import Micros
from tests.support import slow_replay
from tests.support.client_fold import Document
from tests.support.forecast_index import knowing
from tests.support.past_runs import PastRun, in_the_past
from tests.support.recorded_facts import reading_of, row_of
from tests.support.replay import Insert, Replayer, Tables, Transaction, no_rows, write
from tests.support.settled_ends import Life
from tests.support.virtual_time import VirtualTimeLoop

BEGAN = datetime(2025, 9, 25, 12, 0, 0, 300_000)  # noqa: DTZ001 - recorded times have no zone
LATENCY = 0.05
"""Seconds after its commit at which the index has a transaction."""

READ_EVERY = 0.5


class Sighting(NamedTuple):
    """The document of a running job that has a forecast, as it was `at` so many seconds since 1970."""

    at: float
    job: Document


def replayed(
    transactions: Sequence[Transaction], past: Iterable[PastRun], slower: float
) -> tuple[dict[str, Life], list[Sighting]]:
    """Replay the transactions, and read the documents of its jobs meanwhile. `past`: the earlier runs."""
    loop = VirtualTimeLoop()
    try:
        replayer = _IndexReplayer(past, loop)
        reading = loop.create_task(replayer.read_documents())
        replaying = loop.create_task(slow_replay.replay(replayer, transactions, slower, began=BEGAN))
        while not replaying.done():
            loop.run(10.0)
        reading.cancel()
        loop.run()
        return replaying.result(), replayer.seen
    finally:
        loop.close()


class _IndexReplayer(Replayer):
    """Passes the rows of transactions, and the tables of their jobs, to an index that has read earlier runs."""

    def __init__(self, past: Iterable[PastRun], loop: VirtualTimeLoop) -> None:
        self.seen: list[Sighting] = []
        self._index = knowing(*_ended(past))
        self._tables = no_rows()
        self._loop, self._zero = loop, loop.time() - BEGAN.replace(tzinfo=UTC).timestamp()

    async def apply(self, transaction: Transaction) -> None:
        write(self._tables, transaction)
        facts = list(self._facts(transaction))
        self._loop.call_later(LATENCY, lambda: self._index.apply(facts, self._now()))

    async def tables(self) -> Tables:
        return self._tables

    async def read_documents(self) -> None:
        """Read the documents of all jobs at intervals, after the renewal of the forecasts that are due."""
        while True:
            await asyncio.sleep(READ_EVERY)
            now = self._now()
            while self._index.forecasts.has_due(now, learn=True):
                self._index.renew_forecasts(now, learn=True)
            for shown in self._index.published.all():
                if shown.forecast is not None and shown.forecast.forecast is not None:
                    self.seen.append(Sighting(now / 1e6, dict(job_document.document(shown))))

    def _facts(self, transaction: Transaction) -> Iterator[Fact]:
        job_ids: dict[str, None] = {}
        for operation in transaction.operations:
            key = operation.row["id"] if isinstance(operation, Insert) else operation.id
            row = self._tables[operation.table][cast(Any, key)]
            if operation.table == "log_events":
                yield joblog.read(row_of(row), self._index.advance_clock())[0]
            job_id = row["id"] if operation.table == "job_tracking" else row.get("job_id")
            if job_id in self._tables["job_tracking"]:
                job_ids[str(job_id)] = None
        for job_id in job_ids:
            yield reading_of(self._tables, job_id, self._index.advance_clock())

    def _now(self) -> Micros:
        return round((self._loop.time() - self._zero) * 1e6)


def _ended(past: Iterable[PastRun]) -> Iterator[EndedRun]:
    """The runs as the history reads them: a job's own times have whole seconds."""
    for began, run in in_the_past(past, BEGAN.replace(tzinfo=UTC)):
        start = began.timestamp()
        steps = tuple(StepTimes(name, round((start + a) * 1e6), round((start + b) * 1e6)) for name, a, b in run.steps)
        began_at, ended_at = (int(at) * 1_000_000 for at in (start, start + run.seconds))
        yield EndedRun(run.operation, "", began_at, ended_at, True, steps)
