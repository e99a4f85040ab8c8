"""Jobs are judged at the time up to which log and tables have been read, and silence is measured in watched time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from correlator.forecast.points import EndedRun
from correlator.jobs.encoding import rfc3339
from correlator.jobs.horizon import JUDGED_WITHIN, SEEN_AT_ONCE, Horizon, Part
from correlator.jobs.index import Index
from correlator.model.facts import Entry, Fact, Kind, Reading
from correlator.model.persisted import IndexState, PersistedJob
from correlator.model.published import Event, Outcome
from correlator.model.rows import JobRecord, LegacyRecord, Micros
from tests.support.forecast_index import Disk, forecast, kinds, knowing, read, step, usual
from tests.support.forecasts import BASE, OPERATION, SECOND
from tests.support.pipeline_harness import PipelineHarness
from tests.support.there import there

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


LATENESS = (Kind.JOB_LATE, Kind.JOB_OVERDUE)
SILENCE = (Kind.JOB_STALLED, Kind.JOB_RECOVERED)
ALARMS = (*LATENESS, Kind.JOB_STALLED)

# -- the horizon


def test_everything_is_known_up_to_the_earlier_of_both_parts_and_nothing_before_both_are_read():
    horizon = Horizon(read_to=0)
    assert horizon.judged_at(BASE) is None
    horizon.report(Part.TABLES, BASE, 5)
    assert horizon.judged_at(BASE) is None
    horizon.report(Part.LOG, BASE - 7, 5)
    assert horizon.judged_at(BASE + JUDGED_WITHIN - 7) == BASE - 7
    assert horizon.judged_at(BASE + JUDGED_WITHIN - 6) is None


@given(st.lists(st.tuples(st.integers(-7200, 7200), st.integers(0, 100)), max_size=20))
def test_watched_time_grows_by_what_was_seen_and_no_clock_that_is_set_moves_it(steps):
    horizon, now, uptime, seen = Horizon(read_to=0), BASE, 0, 0
    for part in Part:
        horizon.report(part, now, uptime)
    began = horizon.watched(now)
    for by_clock, passed in steps:
        now, uptime = now + by_clock * SECOND, uptime + passed * SECOND
        for part in Part:
            horizon.report(part, now, uptime)
        seen += min(passed * SECOND, SEEN_AT_ONCE)
        assert horizon.watched(horizon.read_to) - began == seen


@given(st.lists(st.tuples(st.integers(-7200, 7200), st.booleans()), max_size=20))
def test_watched_time_never_goes_back_where_whatever_happens_is_known_at_once(steps):
    horizon, now, last = Horizon(), BASE, 0
    for by_clock, judged in steps:
        now += by_clock * SECOND
        watched = there(horizon.watched_to(now) if judged else horizon.watched_now(now))
        assert watched - last == max(0, by_clock * SECOND) if last else watched == now
        last = watched


# -- late and overdue


def test_a_job_that_writes_all_the_time_is_announced_as_overdue_as_soon_as_it_is_known():
    index = knowing(*usual(), horizon=Horizon(read_to=0))
    read(index, 0, step(1, "snapshot", 0, 10), step(2, "copy", 10))
    overdue_at = announced_at = None
    for second in range(1, 400):
        now = BASE + second * SECOND
        line = Entry(second, now, "INFO", "it goes on", index.advance_clock(), "j", by="attrs")
        made = [index.apply([line], now), index.expire(now), index.renew_forecasts(now, learn=True)]
        if overdue_at is None and forecast(index)["state"] == "overdue":
            overdue_at = second
        if announced_at is None and Kind.JOB_OVERDUE in kinds(made):
            announced_at = second
        index.horizon.report(Part.LOG, now, now)
        index.horizon.report(Part.TABLES, now - SECOND // 2, now - SECOND // 2)
    assert overdue_at is not None
    assert announced_at is not None
    assert announced_at - overdue_at <= 2


def test_a_forecast_is_as_of_the_time_up_to_which_its_job_is_known():
    daemon = WatchingDaemon()
    daemon.begins("j")
    daemon.passes(80)
    daemon.sees = False
    daemon.passes(50)
    shown = there(daemon.index.published.get("j"))
    assert shown.forecast is not None
    assert shown.forecast.forecast is not None
    assert shown.forecast.forecast.as_of <= BASE + 80 * SECOND


# -- silence


def test_no_job_recovers_of_which_no_event_said_that_it_was_stalled():
    index = Index(stalled_after=lambda: 60.0)
    record = JobRecord("j", status="running", started_at=BASE - 3600 * SECOND)
    index.apply([Reading("j", index.advance_clock(), record, ())], BASE)
    index.loading = False
    assert there(index.published.get("j")).stalled
    moved = JobRecord("j", status="running", started_at=BASE - 3600 * SECOND, updated_at=BASE + SECOND)
    outcome = index.apply([Reading("j", index.advance_clock(), moved, ())], BASE + SECOND)
    assert (there(index.published.get("j")).stalled, outcome.events) == (False, [])


def test_a_checkpoint_without_watched_time_makes_no_event_of_what_was_stalled_before():
    index = Index(stalled_after=lambda: 60.0, horizon=Horizon(read_to=0))
    old = Index(stalled_after=lambda: 60.0)
    old.loading = False
    record = JobRecord("j", status="running", started_at=BASE - 3600 * SECOND)
    old.apply([Reading("j", old.advance_clock(), record, ())], BASE)
    stored = old.persisted("j")
    assert isinstance(stored, PersistedJob)
    outcomes = list(index.restore([replace(stored, silence=None)], (), IndexState(5), BASE))
    index.loading = False
    for part in Part:
        index.horizon.report(part, BASE, 1)
    outcomes.append(index.expire(BASE))
    assert there(index.published.get("j")).stalled
    assert [event for outcome in outcomes for event in outcome.events] == []


@pytest.mark.parametrize("ahead", [7200, -7200])
@pytest.mark.parametrize("when", ["always", "set"])
def test_another_clock_than_the_appliances_stalls_no_job_that_writes_and_hides_no_silent_one(ahead, when):
    daemon = WatchingDaemon(runs=UNRELATED)
    daemon.ahead = ahead if when == "always" else 0
    daemon.begins("dead")
    daemon.begins("alive")
    for second in range(200):
        if second == 20 and when == "set":
            daemon.ahead = ahead
        daemon.passes()
        daemon.writes("alive")
    assert daemon.announced(*SILENCE, job_id="alive") == []
    ((at, kind),) = daemon.announced(*SILENCE, job_id="dead")
    assert kind is Kind.JOB_STALLED
    assert 60 <= at <= 70


def test_rows_of_an_appliance_whose_clock_was_set_back_are_signs_of_life():
    daemon = WatchingDaemon(runs=UNRELATED)
    daemon.at = 3600
    daemon.begins("j")
    daemon.passes(100)
    assert [kind for _, kind in daemon.announced(*SILENCE)] == [Kind.JOB_STALLED]
    daemon.at, daemon.ahead = 200, 3500.0
    daemon.writes("j")
    daemon.at, daemon.ahead = 3700, 0.0
    daemon.passes()
    assert [kind for _, kind in daemon.announced(*SILENCE)] == [Kind.JOB_STALLED, Kind.JOB_RECOVERED]


# -- any history


@st.composite
def histories(draw):
    """For each job the second of its begin, of its end or None, and those at which it writes; and the daemon's fate."""
    jobs = []
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, 100))
        end = draw(st.none() | st.integers(begin + 1, 250))
        writes = draw(st.sets(st.integers(begin, end or 250), max_size=12))
        jobs.append((begin, end, writes))
    fates = draw(st.dictionaries(st.integers(1, 250), st.sampled_from(["away", "back", "restart"]), max_size=10))
    return jobs, fates


@settings(max_examples=60)
@given(histories(), st.sampled_from([False, False, True]))
def test_in_any_history_no_alarm_is_false_none_is_missing_and_none_follows_an_end(history, legacy):
    jobs, fates = history
    daemon = WatchingDaemon(stalled_after=30.0, legacy=legacy)
    while daemon.at < 400:
        for n, (begin, end, writes) in enumerate(jobs):
            if daemon.at == begin:
                daemon.begins(f"j{n}")
            if daemon.at in writes and (end is None or daemon.at < end):
                daemon.writes(f"j{n}")
            if daemon.at == end:
                daemon.ends(f"j{n}", begin)
        fate = fates.get(daemon.at)
        if fate == "restart":
            daemon.restarts()
        elif fate is not None:
            daemon.sees = fate == "back"
        if daemon.at > 250:
            daemon.sees = True
        daemon.passes()
    for n, (begin, end, writes) in enumerate(jobs):
        announced = daemon.announced(job_id=f"j{n}")
        assert announced[0][1] is Kind.JOB_STARTED
        if end is not None:
            assert announced[-1][1] is Kind.JOB_COMPLETED
            assert [(at, kind) for at, kind in announced if kind in ALARMS and at > end + 1] == []
        _is_late_once([one for one in announced if one[1] in LATENESS], begin, lasts=end is None and not legacy)
        _is_silent_in_turn([one for one in announced if one[1] in SILENCE], {begin, *writes}, lasts=end is None)


def _is_late_once(announced, begin, *, lasts):
    assert all(at - begin > LONGEST for at, kind in announced if kind is Kind.JOB_OVERDUE), announced
    assert len({kind for _, kind in announced}) == len(announced)
    if lasts:
        assert announced[-1][1] is Kind.JOB_OVERDUE


def _is_silent_in_turn(announced, written, *, lasts):
    assert [kind for _, kind in announced] == ([Kind.JOB_STALLED, Kind.JOB_RECOVERED] * 9)[: len(announced)]
    for at, kind in announced:
        assert kind is Kind.JOB_RECOVERED or at - max(second for second in written if second < at) >= 30, announced
    if lasts:
        assert announced[-1][1] is Kind.JOB_STALLED


# -- readiness


def test_readiness_is_degraded_while_no_job_is_judged_and_says_why():
    world = PipelineHarness(horizon=Horizon(read_to=0))
    status = world.pipeline.status
    status.answered()

    def part():
        found = status.describe_database()
        return found["ok"], found["state"], found["judged_at"]

    assert part() == (False, "live", None)
    assert "not to their end yet" in status.describe_database()["error"]
    status.caught_up()
    status.tables_read()
    assert part() == (True, "live", rfc3339(world.now))
    read_to, world.now = world.now, world.now + JUDGED_WITHIN + 1
    assert part() == (False, "live", None)
    assert f"only up to {rfc3339(read_to)}" in status.describe_database()["error"]
    status.tables_read()
    assert part() == (False, "live", None)
    status.caught_up()
    assert part() == (True, "live", rfc3339(world.now))
