"""The sources: they read log_events and the tables, and write what they read to a `Feed`.

A source delivers every committed row of the log exactly once per run, in any order, and reads the tables again as often
as needed. It never delivers a row that was not committed. It knows of the pipeline only the `Feed`, so that tests and
benchmarks can follow a source without an index.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from correlator.forecast.forecaster import OperationKey
from correlator.forecast.points import EndedRun
from correlator.jobs.known import KnownJobs
from correlator.model.facts import Reading
from correlator.model.published import Outcome
from correlator.model.rows import LegacyRecord, LogRow, Micros
from correlator.ops.event_loop import Heartbeats
from correlator.pipeline.hub import WaitingIds
from correlator.pipeline.source_status import SourceStatus


class Feed(Protocol):
    """The pipeline as sources see it: it applies what they read, and publishes the outcome that it returns.

    Every call is synchronous. `known` is what the index knows already, `waiting_ids` what clients wait for; a source
    only reads both. It reports its own state to `status`, and each of its tasks has a heartbeat in `live`.
    """

    known: KnownJobs
    waiting_ids: WaitingIds
    status: SourceStatus
    live: Heartbeats

    def advance_clock(self) -> int:
        """Advance the logical clock and return its time. Call it just before a table query."""

    def rows(self, rows: Sequence[LogRow]) -> Outcome: ...

    def again(self, rows: Sequence[LogRow]) -> Outcome:
        """Apply rows that were passed on before, and have been read again. Nothing of them is announced or streamed."""

    def past(self, rows: Sequence[LogRow]) -> Outcome:
        """Apply rows of the log's past. Nothing is published for them until `show_past`."""

    def show_past(self) -> bool:
        """Publish what the past changed, for some jobs per call. Call it again until it returns False."""

    def left_out(self, started_at: Micros) -> None:
        """Report that jobs which started at that time or before may not be read, as memory has no room for them."""

    def readings(self, readings: Iterable[Reading]) -> Outcome: ...

    def legacy(self, records: Iterable[LegacyRecord], gone: Iterable[str], *, past: bool = False) -> Outcome:
        """Apply rows of failover_jobs, and the IDs of rows that were deleted. Those of the `past` cause no events."""

    def decide_legacy(self, owned: Iterable[str], apart: Iterable[str]) -> Outcome:
        """Decide IDs of failover_jobs: `owned` by JobLog jobs, or `apart`. Only rows that stand apart are published."""

    def history_wanted(self) -> bool:
        """True if the runs of the time before the daemon first started are not known yet."""

    def history_begins(self, cutoff: Micros) -> None:
        """Begin to read the history: the runs that ended at or before `cutoff`, in microseconds since 1970."""

    def history(self, runs: Sequence[EndedRun]) -> None:
        """Learn runs of the history, at most 10 in a call (some 0.3 ms each), in the order of their ends."""

    def operation_read(self, operation: OperationKey) -> None:
        """Report that all earlier runs of an operation have been learned. Its running jobs get their forecasts."""

    def history_read(self) -> None:
        """End the history. From now on the jobs that end are learned."""

    def wants_fast_poll(self) -> bool:
        """True if short poll intervals pay off: jobs run that are not stalled, or clients watch jobs that change."""
