"""What is known of one job: from the log and the tables of JobLog, or from a row of `failover_jobs`."""

from __future__ import annotations

from msgspec import Struct

from correlator.jobs import fold
from correlator.jobs.directory import Family
from correlator.jobs.forecasted_job import TrackedJob
from correlator.jobs.missing_rows import Observed
from correlator.model.facts import Job, Reading
from correlator.model.rows import LegacyRecord


class Record:
    """What is known of one JobLog job.

    `facts`: the joined rows and readings. `viewed`: the facts from which the published view was derived; None if it is
    not published. `family`: its children as published; None: they have to be computed again. `steps`: the IDs by which
    rows are attributed to it, also of steps that its table has lost. `observed`: see `missing_rows.compare`. `tracked`:
    what its forecast needs while it runs, and until its run is learned; only `Forecasts` sets it.
    """

    __slots__ = ("facts", "family", "job_id", "observed", "steps", "tracked", "viewed")

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.facts = Job(job_id)
        self.viewed: Job | None = None
        self.family: Family | None = None
        self.steps: tuple[int, ...] = ()
        self.observed: Observed | None = None
        self.tracked: TrackedJob | None = None

    def read(self, reading: Reading) -> bool:
        """Join a reading of the tables. Returns True if it is news for a checkpoint."""
        before, news = self.facts.reading, fold.is_news(self.facts, reading)
        self.facts = fold.fold(self.facts, reading)
        after = self.facts.reading
        if before is not after and (
            before is None
            or after is None
            or before.children is not after.children
            or before.child_count != after.child_count
        ):
            self.family = None
        return news


class LegacyRow(Struct):
    """One row of `failover_jobs`. `silent`: it was read while loading, so its publication causes no events."""

    row: LegacyRecord
    silent: bool = False
