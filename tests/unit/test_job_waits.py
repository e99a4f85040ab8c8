"""Lookups of IDs for requests: what the database is asked, how often, and by how many at once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from correlator.errors import Away, NotFound, SourceUnavailable
from correlator.jobs.index import Index
from correlator.model.facts import Reading
from correlator.model.rows import JobRecord
from correlator.pipeline.pipeline import LocalHub
from correlator.sinks.http.audit import Audit
from correlator.sinks.http.failover_status import FailoverStatus
from correlator.sinks.http.grants import ANYBODY, GRANT, Denied, Grant
from correlator.sinks.http.rest import AGAIN_A_SECOND, JobWaits, Rest
from correlator.sinks.turns import Work
from tests.support.pipeline_harness import NOW
from tests.support.virtual_time import VirtualTimeLoop
from tests.support.yardstick import assert_costs

WAITING = 300


class Archive:
    """A database that has no job, and takes `takes` seconds to say so. `away`: it fails at once."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.away = False
        self.takes = 0.01
        self.most_at_once = self._now = 0

    async def find(self, name: str, advance_clock: Callable[[], int]) -> None:
        self.asked[name] += 1
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            if self.away:
                raise SourceUnavailable("it is away", Away.UNREACHABLE)
            await asyncio.sleep(self.takes)
        finally:
            self._now -= 1


class Waiting:
    """Requests that wait 60 s for IDs that nobody knows, each for one of its own unless `name` is given."""

    def __init__(self) -> None:
        self.loop = VirtualTimeLoop()
        self.archive = Archive()
        self.hub = LocalHub(Index(), self.archive, clock=lambda: NOW)  # type: ignore[arg-type]
        self.work = Work()
        self.waits = JobWaits(self.hub, self.work)

    def start(self, name: str, address: str = "a") -> asyncio.Task[Any]:
        async def wait() -> Any:
            with self.work.held.holding(address):
                return await self.waits.wait(name, address, self.loop.time() + 60)

        return self.loop.create_task(wait())

    def result(self, work: Coroutine[Any, Any, Any]) -> Any:
        task = self.loop.create_task(work)
        self.loop.run(1)
        return task.result()

    def close(self) -> None:
        self.loop.cancel_all()
        self.loop.close()


@pytest.fixture
def waiting():
    waiting = Waiting()
    yield waiting
    waiting.close()


def test_the_database_is_asked_once_about_each_id_that_requests_wait_for(waiting):
    tasks = [waiting.start(f"id-{n % WAITING}", f"a{n % 7}") for n in range(2 * WAITING)]
    waiting.loop.run(59)
    assert set(waiting.archive.asked.values()) == {1}
    assert len(waiting.archive.asked) == WAITING
    assert waiting.archive.most_at_once == 1
    assert not any(task.done() for task in tasks)
    waiting.loop.run(2)
    assert {task.result() for task in tasks} == {None}


def test_an_id_that_many_wait_for_wakes_each_of_them_once(waiting):
    """The answer of the database ends each wait for an ID, and each tells all of them that it has come."""
    ids = waiting.hub.waiting_ids

    def wakes(count: int) -> Callable[[], None]:
        for _ in range(count):
            waiting.loop.create_task(ids.changed(f"{count}", 600.0))
        waiting.loop.run()

        def wake() -> None:
            for _ in range(count):
                ids.wake_name(f"{count}")

        return wake

    assert_costs(40, wakes(300), wakes(3_000))


@pytest.mark.parametrize("endpoint", ["job", "status"])
def test_requests_that_wait_until_one_moment_are_answered_a_few_in_each_round(waiting, endpoint):
    loop, answered, rounds = waiting.loop, list[int](), list[int]()
    waiting.archive.takes = 0.0
    rest = Rest(waiting.hub, waiting.work, Audit(loop.time))
    status = FailoverStatus(waiting.hub, waiting.work, unknown_id_wait=2.0)

    def count() -> None:
        rounds.append(len(answered))
        if len(rounds) < 50:
            loop.call_soon(count)

    async def one(n: int) -> None:
        request = make_mocked_request("GET", "/?wait=2" if endpoint == "job" else "/", match_info={"id": f"id-{n}"})
        request[GRANT] = ANYBODY
        with contextlib.suppress(NotFound):
            await (rest.job(request) if endpoint == "job" else status.status(request))
        answered.append(n)
        if len(answered) == 1:
            count()

    tasks = [loop.create_task(one(n)) for n in range(150)]
    loop.run(1.9)
    assert not answered
    loop.run(10)
    assert all(task.done() for task in tasks)
    assert max(b - a for a, b in itertools.pairwise(rounds)) <= 40, rounds


def test_ids_that_others_wait_for_delay_no_lookup(waiting):
    for n in range(WAITING):
        waiting.start(f"id-{n}")
    waiting.loop.run(0.1)
    began = waiting.loop.time()

    async def other() -> float:
        assert await waiting.work.find(waiting.hub, "other", "b") is None
        return float(waiting.loop.time() - began)

    assert waiting.result(other()) <= 0.02


def test_a_database_that_is_away_is_asked_a_bounded_number_of_times_for_all_that_wait(waiting):
    waiting.archive.away = True
    tasks = [waiting.start(f"id-{n}", f"a{n}") for n in range(WAITING)]
    waiting.loop.run(55)
    assert waiting.archive.asked.total() <= WAITING + 55 * AGAIN_A_SECOND
    waiting.loop.run(6)
    for task in tasks:
        with pytest.raises(SourceUnavailable, match="it is away"):
            task.result()


def test_a_wait_survives_a_database_that_was_away_for_a_while(waiting):
    waiting.archive.away = True
    task = waiting.start("id")
    waiting.loop.run(5)
    waiting.archive.away = False
    waiting.loop.run(50)
    assert not task.done()
    waiting.loop.run(6)
    assert task.result() is None


def test_a_request_that_ends_asks_no_more(waiting):
    tasks = [waiting.start(f"id-{n}") for n in range(WAITING)]
    waiting.loop.run(0.05)
    for task in tasks:
        task.cancel()
    waiting.loop.run(0.05)
    asked = waiting.archive.asked.total()
    waiting.loop.run(30)
    assert waiting.archive.asked.total() == asked < WAITING
    assert waiting.work.waited_ids.waiting == 0


@pytest.mark.parametrize(("wait", "ends"), [(0.2, 1.0), (3.0, 3.0), (20.0, 20.0)])
def test_a_database_that_hangs_holds_no_request_longer_than_it_waits_or_a_second(waiting, wait, ends):
    waiting.archive.takes = 100.0
    waited = waiting.loop.create_task(waiting.waits.wait("id", "a", waiting.loop.time() + wait))
    waiting.loop.run(ends - 0.01)
    assert not waited.done()
    waiting.loop.run(0.02)
    assert isinstance(waited.exception(), SourceUnavailable)


def test_a_wait_that_ends_while_the_database_is_away_says_so_after_one_attempt(waiting):
    waiting.archive.away = True
    for _ in range(2):
        waited = waiting.loop.create_task(waiting.waits.wait("id", "a", waiting.loop.time()))
        waiting.loop.run(0.1)
        assert isinstance(waited.exception(), SourceUnavailable)
    waiting.archive.away = False
    waited = waiting.loop.create_task(waiting.waits.wait("id", "a", waiting.loop.time()))
    waiting.loop.run(0.1)
    assert waited.result() is None


@pytest.mark.parametrize("state", ["quick", "slow", "away", "back-after-a-second", "none"])
@pytest.mark.parametrize(("what", "query"), [("job", ""), ("job", "?wait=0"), ("job", "?wait=2"), ("status", "")])
def test_neither_time_nor_answer_tells_a_token_for_a_vm_of_a_job_that_it_must_not_see(waiting, state, what, query):
    """The same token, for a job of another VM that is in memory, and for an ID that no job has."""
    loop, hub = waiting.loop, waiting.hub
    record = JobRecord("hidden", status="running", started_at=NOW, metadata='{"vm_name": "another"}')
    hub.publish(hub.index.apply([Reading("hidden", 1, record, ())], NOW))
    if state == "none":
        hub.archive = None
    waiting.archive.away = state in ("away", "back-after-a-second")
    waiting.archive.takes = 0.3 if state == "slow" else 0.002
    rest = Rest(hub, waiting.work, Audit(loop.time))
    status = FailoverStatus(hub, waiting.work, unknown_id_wait=2.0)

    async def ask(name: str) -> tuple[str, float]:
        request = make_mocked_request("GET", f"/{query}", match_info={"id": name})
        request[GRANT] = Grant(vm="vm-1")
        began = loop.time()
        if state == "back-after-a-second":
            waiting.archive.away = True
            loop.call_later(1.0, setattr, waiting.archive, "away", False)
        with pytest.raises((Denied, SourceUnavailable)) as raised:
            await (rest.job if what == "job" else status.status)(request)
        return str(raised.value), round(loop.time() - began, 3)

    answers = [loop.create_task(ask(name)) for name in ("hidden", "of-nobody")]
    loop.run(10)
    hidden, of_nobody = (task.result() for task in answers)
    assert hidden == of_nobody
