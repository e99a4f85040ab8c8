"""A daemon's index that sees an appliance, or does not: outages, restarts and clocks that are set, second by second."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec.structs import replace

from correlator.forecast.points import EndedRun
from correlator.jobs.horizon import Horizon, Part
from correlator.model.facts import Entry, Fact, Kind, Reading
from correlator.model.published import Event, Outcome
from correlator.model.rows import JobRecord, LegacyRecord, Micros
from tests.support.forecast_index import Disk, knowing
from tests.support.forecasts import BASE, OPERATION, SECOND

RUNS = [
    EndedRun(OPERATION, "", BASE - (2000 - n) * SECOND, BASE - (1900 - 2 * n) * SECOND, True, ()) for n in range(20)
]
"""Earlier runs of 100 to 119 s without steps."""

LONGEST = 119.0

UNRELATED = [replace(run, operation=("other", "")) for run in RUNS]
"""Earlier runs of an operation that no job has: none is late."""


class WatchingDaemon:
    """`at` is the second, by the appliance's clock. The daemon's is `ahead` seconds ahead.

    `stalled_after`: seconds. `legacy`: its jobs are rows of failover_jobs. `events`: what was announced, each with its
    second.
    """

    def __init__(self, *, stalled_after: float = 60.0, runs: Sequence[EndedRun] = RUNS, legacy: bool = False) -> None:
        self.at = 0
        self.ahead = 0.0
        self.sees = True
        self.events: list[tuple[int, Event]] = []
        self._settings: dict[str, Any] = {"stalled_after": lambda: stalled_after}
        self.index = knowing(*runs, horizon=Horizon(read_to=0), **self._settings)
        self._disk = Disk(self.index)
        self._unread: list[Callable[[int], Fact]] = []
        self._rows = 0
        self._legacy: dict[str, LegacyRecord] | None = {} if legacy else None

    @property
    def now(self) -> Micros:
        """The time by the daemon's clock."""
        return BASE + round((self.at + self.ahead) * SECOND)

    # -- what jobs do

    def begins(self, job_id: str) -> None:
        self._reads(job_id, "running", BASE + self.at * SECOND)
        self.writes(job_id, Kind.JOB_STARTED)

    def writes(self, job_id: str, kind: Kind | None = None) -> None:
        if self._legacy is not None:
            self._legacy[job_id] = replace(self._legacy[job_id], updated_at=BASE + self.at * SECOND)
            return
        self._rows += 1
        row = Entry(self._rows, BASE + self.at * SECOND, "INFO", "text", 0, job_id, kind=kind)
        self._unread.append(lambda observed_at: replace(row, observed_at=observed_at))

    def ends(self, job_id: str, started: int) -> None:
        self._reads(job_id, "completed", BASE + started * SECOND, BASE + self.at * SECOND)
        self.writes(job_id, Kind.JOB_COMPLETED)

    def _reads(self, job_id: str, status: str, started: Micros, ended: Micros | None = None) -> None:
        if self._legacy is not None:
            word, number = "snapshotting" if ended is None else "completed", len(self._legacy)
            self._legacy[job_id] = LegacyRecord(
                number, job_id, word, created_at=started, started_at=started, completed_at=ended, apart=True
            )
            return
        job_type, operation = OPERATION
        record = JobRecord(
            job_id, status=status, started_at=started, completed_at=ended, job_type=job_type, operation=operation
        )
        self._unread.append(lambda observed_at: Reading(job_id, observed_at, record, ()))

    # -- what the daemon does

    def passes(self, seconds: int = 1) -> None:
        """Let time pass. Once a second the daemon reads what it sees, and judges before and after that."""
        for _ in range(seconds):
            self.at += 1
            self._judge()
            if self.sees:
                self.read()
            self._judge()
            self._disk.write()

    def read(self) -> None:
        """Read all that happened, one by one, and judge in between, as one task reads and another one judges."""
        began = self.now
        for made in self._unread:
            self._note(self.index.apply([made(self.index.advance_clock())], self.now))
            self._judge()
        self._unread.clear()
        if self._legacy is not None:
            self._note(self.index.apply_legacy(self._legacy.values(), (), self.now))
        for part in Part:
            self.index.horizon.report(part, began, self.at * SECOND)

    def restarts(self) -> None:
        """A new process continues from the checkpoint. It has seen nothing yet."""
        self.index = self._disk.restarted(self.now, horizon=Horizon(read_to=0), **self._settings)
        self._disk.continues(self.index)
        self._judge()

    def _judge(self) -> None:
        self._note(self.index.expire(self.now))
        self._note(self.index.renew_forecasts(self.now, learn=False))
        while self.index.forecasts.has_due(self.now, learn=False):
            self._note(self.index.renew_forecasts(self.now, learn=False))

    def _note(self, outcome: Outcome) -> None:
        self.events += [(self.at, event) for event in outcome.events]

    # -- what it announced

    def announced(self, *kinds: Kind, job_id: str | None = None) -> list[tuple[int, Kind]]:
        return [
            (at, event.kind)
            for at, event in self.events
            if (not kinds or event.kind in kinds) and job_id in (None, event.job_id)
        ]
