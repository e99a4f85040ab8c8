"""What is on its way in the log is not announced from the tables, however long the log could not be read."""

from collections.abc import Sequence

import pytest

from correlator.jobs.horizon import LOG_SEEN_AT_ONCE, Horizon, Part
from correlator.jobs.index import Index
from correlator.jobs.missing_rows import GRACE
from correlator.model.facts import Kind, Reading
from correlator.model.persisted import PersistedJob
from correlator.model.published import Event, Lost
from correlator.model.rows import JobRecord, LogRow
from correlator.pipeline.pipeline import LocalHub, Pipeline

NOW = 1_758_553_933_000_000
SECOND = 1_000_000


class World:
    """A daemon that has been live; its log is as far behind as `caught_up` says.

    `ahead`: microseconds that its clock is ahead. `events`, `lost`: what was announced, and counted as lost.
    """

    def __init__(self) -> None:
        self.now = NOW
        self.ahead = 0
        self.events: list[Event] = []
        self.lost: list[Lost] = []
        self._start(Index(horizon=Horizon(read_to=0)))
        self.read("running")
        self.row(1, "job started")
        self.pipeline.status.loaded()
        self.caught_up()

    def _start(self, index: Index) -> None:
        self.index = index
        hub = LocalHub(index, clock=lambda: self.now + self.ahead)
        self.pipeline = Pipeline(hub)
        hub.subscribe(lambda batch: self.events.extend(batch.events))

    def restarts(self) -> None:
        job, state = self.index.persisted("j"), self.index.state()
        assert isinstance(job, PersistedJob)
        self._start(Index(horizon=Horizon(read_to=0)))
        list(self.index.restore([job], (), state, self.now))
        self.pipeline.status.loaded()

    def caught_up(self) -> None:
        self.index.horizon.report(Part.LOG, self.now + self.ahead, self.now - NOW + SECOND)

    def read(self, status: str) -> None:
        record = JobRecord("j", status=status, started_at=NOW, completed_at=NOW if status == "completed" else None)
        self.lost += self.pipeline.readings([Reading("j", self.pipeline.advance_clock(), record, ())]).lost

    def row(self, row_id: int, message: str) -> None:
        self.pipeline.rows([LogRow(row_id, message, NOW, attrs='{"job_id":"j"}')])

    def later(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += SECOND
            self.pipeline.expire()

    def follows(self, seconds: int) -> None:
        """Read the log, and the tables, once a second."""
        for _ in range(seconds):
            self.caught_up()
            self.read("completed")
            self.later(1)

    def ended(self) -> Sequence[int | None]:
        return [e.event_id for e in self.events if e.kind is Kind.JOB_COMPLETED]


def test_a_catch_up_of_a_minute_gives_one_event_for_a_transition_that_is_in_the_log_too():
    world = World()
    world.read("completed")
    world.later(60)
    world.row(2, "job completed")
    world.caught_up()
    world.later(60)
    assert world.ended() == [2]


def test_a_transition_without_a_row_is_announced_a_grace_after_the_log_has_been_read():
    world = World()
    world.read("completed")
    world.later(60)
    world.follows((GRACE - LOG_SEEN_AT_ONCE) // SECOND)
    assert (world.ended(), world.lost) == ([], [])
    world.follows(2 * LOG_SEEN_AT_ONCE // SECOND + 1)
    assert (world.ended(), world.lost) == ([None], ["job_ended"])


@pytest.mark.parametrize("restarts", [False, True])
def test_a_row_that_waited_while_the_log_could_not_be_read_is_the_event_and_no_loss(restarts):
    world = World()
    world.read("completed")
    world.later(30)  # LOCK TABLES log_events WRITE: JobLog waits as well.
    if restarts:
        world.restarts()
    world.follows(3)
    world.row(2, "job completed")
    world.follows(60)
    assert (world.ended(), world.lost) == ([2], [])


@pytest.mark.parametrize("ahead", [7200, -7200])
def test_while_the_log_is_read_a_grace_is_a_grace_whenever_the_clock_is_set(ahead):
    world = World()
    world.read("completed")
    world.ahead = ahead * SECOND
    world.follows(GRACE // SECOND)
    assert world.ended() == []
    world.follows(2)
    assert world.ended() == [None]
