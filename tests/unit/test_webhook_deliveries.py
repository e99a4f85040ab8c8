"""The queue of a receiver: every event at least once, in order per job, through outages, refusals and restarts."""

import random

import pytest

from correlator.sinks.event_log import EventLog
from correlator.sinks.webhooks import Deliveries, Delivery
from tests.support.held import held
from tests.support.there import there

HOUR = 3600.0
DAY = 24 * HOUR


def delivery(number, job="a", at=0.0, body=b"{}"):
    return Delivery(number, job, f"evt_{number}", body, at)


def queue(*deliveries, **settings):
    made = Deliveries(EventLog(), uniform=lambda: 1.0, **settings)
    for each in deliveries:
        assert made.add(each) == []
    return made


def popped(deliveries, now):
    return there(deliveries.pop_next(now))


class World:
    """A receiver, and a daemon that sends to it in virtual time, writes a checkpoint each second and may be killed."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.now = 0.0
        self.number = 0
        self.checkpoint: list[Delivery] = []
        self.received: list[Delivery] = []
        self.given_up: list[int] = []
        self.requests: list[float] = []
        self.is_away = False
        self.refused: set[str] = set()
        self.begin()

    def begin(self):
        """A daemon starts from the checkpoint; the numbers are those of its run, the IDs are not."""
        self.deliveries = Deliveries(EventLog(), uniform=self.random.random)
        restored, self.checkpoint = self.checkpoint, []
        for one in restored:
            self.deliveries.add(one)
            self.checkpoint.append(one)
        self.in_flight: list[Delivery] = []

    def event(self, job):
        self.number += 1
        one = delivery(self.number, job, self.now)
        assert self.deliveries.add(one) == []
        self.checkpoint.append(one)

    def run(self, seconds):
        until = self.now + seconds
        while True:
            while (found := self.deliveries.pop_next(self.now)) is not None:
                self.requests.append(self.now)
                self.in_flight.append(found)
            if self.in_flight:
                self.finish(self.in_flight.pop(self.random.randrange(len(self.in_flight))))
                continue
            due = self.deliveries.due(self.now)
            if due is None or due > until:
                self.now = until
                return
            self.now = max(due, self.now)

    def finish(self, one):
        if self.is_away:
            self.given_up += self.deliveries.failed(one, self.now, away=True)
        elif one.message_id in self.refused:
            self.given_up += self.deliveries.failed(one, self.now, away=False)
        else:
            self.received.append(one)
            self.deliveries.delivered(one)
            if self.random.random() < 0.9:  # Otherwise the daemon is killed before the next checkpoint.
                self.checkpoint.remove(one)

    def ids(self, job):
        return [one.message_id for one in self.received if one.job_id == job]


@pytest.mark.parametrize("seed", range(8))
def test_after_hours_away_and_a_kill_every_event_arrives_soon_in_order_per_job(seed):
    world = World(seed)
    jobs = [f"job{n}" for n in range(20)]
    for _ in range(100):
        world.event(world.random.choice(jobs))
    world.run(5)
    world.is_away = True
    for minute in range(60):
        world.event(world.random.choice(jobs))
        world.run(300)
        if minute == 30:
            world.begin()
    requests_while_away = [at for at in world.requests if at > 5]
    assert len(requests_while_away) < 400, "a receiver that is away must not be flooded"
    world.is_away = False
    world.run(600)
    assert len(world.deliveries) == 0
    assert {one.message_id for one in world.received} == {f"evt_{n}" for n in range(1, 161)}
    for job in jobs:
        first_times = list(dict.fromkeys(world.ids(job)))
        assert first_times == sorted(first_times, key=lambda i: int(i[4:]))
    assert world.given_up == []


def test_an_event_that_is_refused_holds_back_its_own_job_alone():
    world = World(2)
    world.refused = {"evt_1"}
    for job in ("a", "a", "b", "b"):
        world.event(job)
    world.run(60)
    assert (world.ids("a"), world.ids("b")) == ([], ["evt_3", "evt_4"])
    world.run(DAY + 400)
    assert world.given_up == [1]
    assert world.ids("a") == ["evt_2"]


def test_events_are_given_up_by_a_failure_after_a_day_and_not_before():
    made = queue(delivery(1, "a"), delivery(2, "b", at=HOUR), delivery(3, "c", at=2 * HOUR))
    assert made.failed(popped(made, DAY - 1), DAY - 1, away=True) == []
    now = DAY + HOUR
    assert made.failed(popped(made, now), now, away=True) == [1, 2]
    assert [*made] == [3]


def test_while_the_receiver_is_away_one_request_at_a_time_asks_for_it():
    made = queue(*(delivery(n, f"job{n}") for n in range(1, 10)))
    flying = [popped(made, 0.0) for _ in range(4)]
    assert made.pop_next(0.0) is None
    for one in flying:
        made.failed(one, 0.0, away=True)
    due = there(made.due(0.0))
    assert made.pop_next(due - 0.01) is None
    probe = popped(made, due)
    assert made.pop_next(due) is None
    made.delivered(probe)
    assert [popped(made, due) for _ in range(4)]


def test_retry_after_is_respected_up_to_an_hour_also_if_requests_that_were_in_flight_succeed():
    made = queue(*(delivery(n, f"job{n}") for n in range(1, 9)))
    flying = [popped(made, 0.0) for _ in range(4)]
    made.failed(flying[0], 1.0, away=True, retry_after=120.0)
    for one in flying[1:]:
        made.delivered(one)
    assert made.pop_next(120.9) is None
    assert made.due(2.0) == 121.0
    fifth = popped(made, 121.0)
    assert fifth.number == 5, "a pause of its own, by backoff, ends with a success"
    made.failed(fifth, 121.0, away=True, retry_after=1e9)
    assert made.due(121.0) == 121.0 + HOUR


def test_nothing_grows_while_events_are_dropped():
    made = queue(max_events=10)
    sizes = []
    for n in range(2000):
        made.add(delivery(n, f"job{n % 7}"))
        if n in (100, 1999):
            sizes.append(held(made))
    assert len(made) == 10
    assert sizes[1] < 1.2 * sizes[0]


def test_what_was_in_flight_when_all_events_were_dropped_changes_nothing():
    made = queue(*(delivery(n, f"job{n}") for n in range(1, 4)))
    late = popped(made, 0.0)
    made.failed(popped(made, 0.0), 0.0, away=True)
    assert made.clear() == [1, 2, 3]
    assert made.failed(late, 0.0, away=True) == []
    made.delivered(late)
    assert (len(made), made.size, made.due(0.0), made.oldest()) == (0, 0, None, None)
