"""A catch-up with the log: what is on its way in the log is not announced from the tables."""

from correlator.jobs.index import Index
from correlator.jobs.missing_rows import GRACE
from correlator.jobs.model.changes import Event
from correlator.jobs.model.facts import Kind, Reading
from correlator.jobs.model.rows import JobRecord, LogRow
from correlator.pipeline.local_hub import LocalHub
from correlator.pipeline.pipeline import Pipeline

NOW = 1_758_553_933_000_000
SECOND = 1_000_000


class World:
    """A daemon that has been live; its log is as far behind as `caught_up` says."""

    def __init__(self) -> None:
        self.now = NOW
        self.events: list[Event] = []
        self.hub = LocalHub(Index(), clock=lambda: self.now)
        self.pipeline = Pipeline(self.hub)
        self.hub.subscribe(lambda batch: self.events.extend(batch.events))
        self.read("running")
        self.row(1, "job started")
        self.pipeline.status.loaded()
        self.pipeline.status.caught_up()

    def read(self, status: str) -> None:
        record = JobRecord("j", status=status, started_at=NOW, completed_at=NOW if status == "completed" else None)
        self.pipeline.readings([Reading("j", self.pipeline.advance_clock(), record, ())])

    def row(self, row_id: int, message: str) -> None:
        self.pipeline.rows([LogRow(row_id, message, NOW, attrs='{"job_id":"j"}')])

    def later(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += SECOND
            self.pipeline.expire()

    def ended(self) -> list[int | None]:
        return [e.event_id for e in self.events if e.kind is Kind.JOB_COMPLETED]


def test_a_catch_up_of_a_minute_gives_one_event_for_a_transition_that_is_in_the_log_too():
    world = World()
    world.read("completed")
    world.later(60)
    world.row(2, "job completed")
    world.pipeline.status.caught_up()
    world.later(60)
    assert world.ended() == [2]


def test_a_transition_whose_row_never_comes_is_announced_once_the_log_has_been_read():
    world = World()
    world.read("completed")
    world.later(60)
    assert world.ended() == []
    world.pipeline.status.caught_up()
    world.later(1)
    assert world.ended() == [None]


def test_while_the_log_is_read_to_its_end_a_grace_is_a_grace():
    world = World()
    world.read("completed")
    for _ in range(GRACE // SECOND + 1):
        world.pipeline.status.caught_up()
        world.later(1)
    assert world.ended() == [None]
