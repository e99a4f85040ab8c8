"""An index that has read the runs of one operation, what its clients see of a job, and what a restart makes of it."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from msgspec.structs import replace

from correlator.forecast.points import EndedRun, StepTimes
from correlator.jobs.index import Index
from correlator.model.facts import Fact, Kind, Reading
from correlator.model.persisted import PersistedJob, PersistedLegacy
from correlator.model.published import Outcome
from correlator.model.rows import JobRecord, Micros, StepRecord
from correlator.state.checkpoint import StoredForecasts, decode_forecasts
from tests.support.documents import document_of
from tests.support.forecasts import BASE, OPERATION, SECOND, ended


def long_ago(number: int) -> Micros:
    """The start of an earlier run."""
    return BASE - 86_400 * SECOND + number * 200 * SECOND


def usual(count: int = 20, *, operation: tuple[str, str] = OPERATION) -> list[EndedRun]:
    """Runs of 90 s or so: a snapshot of 10 s, a copy of 60 to 79 s, an attachment of 15 s."""
    return [
        ended(
            ("snapshot", 10),
            ("copy", 60 + 7 * n % 20),
            ("attach", 15),
            start=long_ago(n),
            operation=operation,
        )
        for n in range(count)
    ]


def brief(count: int) -> list[EndedRun]:
    """Runs of 4 to 8 s with two steps at once, for the jobs of `fact_strategies`, which last some seconds."""
    found = []
    for n in range(count):
        start = long_ago(n)
        steps = StepTimes("s", start, start + (1 + n % 3) * SECOND), StepTimes("x", start + SECOND, start + 3 * SECOND)
        found.append(EndedRun(OPERATION, "", start, start + (4 + n % 5) * SECOND, True, steps))
    return found


jumps = st.one_of(*(st.integers(low * SECOND, high * SECOND) for low, high in ((0, 3), (0, 100), (-3600, 3600))))
"""Microseconds from one fact to the next, by a clock that is set now and then."""


def knowing(*runs: EndedRun, **settings: Any) -> Index:
    """An index that is ready, and has read these runs as its history."""
    index = Index(**settings)
    index.loading = False
    index.forecasts.begin_history(BASE - 1)
    index.forecasts.learn_history(runs)
    index.forecasts.end_history()
    return index


def read(
    index: Index, at: float, *steps: StepRecord, status: str | None = "running", job_id: str = "j", **columns: Any
) -> Outcome:
    """The tables say so, `at` seconds after the job began."""
    columns = {"started_at": BASE, "job_type": OPERATION[0], "operation": OPERATION[1], **columns}
    record = JobRecord(job_id, status=status, **columns)
    return index.apply([Reading(job_id, index.advance_clock(), record, steps)], BASE + round(at * SECOND))


def step(number: int, name: str, started_at: float, ended_at: float | None = None) -> StepRecord:
    """A step that began so many seconds after the job did."""
    end = None if ended_at is None else BASE + round(ended_at * SECOND)
    status = "running" if ended_at is None else "completed"
    return StepRecord(number, name, number, status, BASE + round(started_at * SECOND), end)


def learned(index: Index) -> int:
    """The completed runs of `OPERATION` that were learned."""
    operation = index.forecasts.forecaster.operation(OPERATION)
    assert operation is not None
    return operation.completed


def pass_time(index: Index, until: float, *, since: float = 0.0) -> list[Outcome]:
    """Check what is due, once a second."""
    found = []
    for at in range(int(since) + 1, int(until) + 1):
        now = BASE + at * SECOND
        found.append(index.renew_forecasts(now, learn=True))
        while index.forecasts.has_due(now, learn=True):
            found.append(index.renew_forecasts(now, learn=True))
    return found


def document(index: Index, job_id: str = "j") -> dict[str, Any]:
    shown = index.published.get(job_id)
    assert shown is not None
    return document_of(shown)


def forecast(index: Index, job_id: str = "j") -> Any:
    found = document(index, job_id)["forecast"]
    assert found is not None
    return found


def seconds_left(index: Index, at: float, quantile: str = "p50") -> float:
    shown = index.published.get("j")
    assert shown is not None
    assert shown.forecast is not None
    assert shown.forecast.forecast is not None
    end = shown.forecast.forecast.p50 if quantile == "p50" else shown.forecast.forecast.p90
    return (end - BASE) / SECOND - at


def kinds(outcomes: list[Outcome]) -> list[Kind]:
    return [event.kind for outcome in outcomes for event in outcome.events]


def complete(index: Index, job_id: str, began: float, took: float, status: str = "completed") -> None:
    start, end = BASE + round(began * SECOND), BASE + round((began + took) * SECOND)
    read(index, began, job_id=job_id, started_at=start)
    read(index, began + took, job_id=job_id, started_at=start, completed_at=end, status=status)


def documents(index: Index) -> dict[str, dict[str, Any]]:
    """The documents of all jobs, without their revisions."""
    return {job.job_id: {**document(index, job.job_id), "rev": 0} for job in index.published.all()}


def of_operation(fact: Fact) -> Fact:
    """The same fact about a job of `OPERATION`."""
    if not isinstance(fact, Reading) or fact.record is None:
        return fact
    return replace(fact, record=replace(fact.record, job_type=OPERATION[0], operation=OPERATION[1]))


class Disk:
    """What the checkpoint of an index has: each `write` adds only what has changed, as the daemon does."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._forecasts = StoredForecasts(index.forecasts)
        self._jobs: dict[str, PersistedJob | PersistedLegacy | None] = {}
        self._values: dict[str, bytes | None] = {}
        self._state = index.state()

    def write(self) -> None:
        self._jobs |= {job_id: self._index.persisted(job_id) for job_id in self._index.changed_ids()}
        self._values |= self._forecasts.changed(1000)
        self._state = self._index.state()

    def continues(self, index: Index) -> None:
        """Go on with the writes of `index`, which was restored from here."""
        self._index, self._forecasts = index, StoredForecasts(index.forecasts)

    def restarted(self, now: Micros, **settings: Any) -> Index:
        """A new daemon that reads the checkpoint."""
        new = Index(**settings)
        decoded = decode_forecasts({name: value for name, value in self._values.items() if value is not None})
        assert decoded is not None
        StoredForecasts(new.forecasts).restore(decoded)
        jobs = [job for job in self._jobs.values() if isinstance(job, PersistedJob)]
        legacy = [row for row in self._jobs.values() if isinstance(row, PersistedLegacy)]
        for _ in new.restore(jobs, legacy, self._state, now):
            pass
        new.loading = False
        return new


def restarted(index: Index, now: Micros) -> Index:
    """A daemon that continues where `index` stopped."""
    disk = Disk(index)
    disk.write()
    return disk.restarted(now)
