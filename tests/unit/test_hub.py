"""What a hub delivers to its subscribers."""

from __future__ import annotations

import asyncio

import pytest

from correlator.errors import Away, SourceUnavailable
from correlator.jobs.index import Index
from correlator.model.facts import Reading
from correlator.model.rows import JobRecord
from correlator.pipeline.hub import WATCHED_FOR, Batch, WaitingIds
from correlator.pipeline.pipeline import LocalHub
from tests.support.yardstick import assert_costs


def test_a_subscriber_that_raises_takes_the_batch_from_no_other():
    index, got = Index(), list[tuple[str, int]]()
    hub = LocalHub(index)

    def fail(_: Batch) -> None:
        raise RuntimeError("a defect of the second subscriber")

    hub.subscribe(lambda batch: got.append(("first", batch.seq)))
    hub.subscribe(fail)
    hub.subscribe(lambda batch: got.append(("third", batch.seq)))
    with pytest.raises(RuntimeError, match="second"):
        hub.publish(index.apply([Reading("j", 1, JobRecord("j", status="running"), ())], 1))
    assert got == [("first", 1), ("third", 1)]


# -- IDs that clients wait for: each of them gets its full time, however long others have waited


class Clock:
    """Monotonic seconds. `waiting()`: no job has any of the IDs."""

    now = 1000.0

    def waiting(self) -> WaitingIds:
        return WaitingIds(lambda _: False, clock=lambda: self.now)


def test_a_second_client_that_waits_for_an_id_restarts_the_fast_polls():
    clock = Clock()
    ids = clock.waiting()
    ids.watch_id("x")
    clock.now += WATCHED_FOR + 1
    assert not ids.has_waiting_ids()
    ids.watch_id("x")
    assert ids.has_waiting_ids()
    ids.unwatch_id("x")
    assert ids.has_waiting_ids()
    ids.unwatch_id("x")
    assert not ids.has_waiting_ids()


def test_ids_whose_wait_is_over_cost_nothing_at_a_poll():
    clock = Clock()
    few, many = clock.waiting(), clock.waiting()
    for ids, size in ((few, 10), (many, 5_000)):
        for n in range(size):
            ids.watch_id(f"id{n}")
    clock.now += WATCHED_FOR + 1

    def asked(ids: WaitingIds) -> None:
        assert not any(ids.has_waiting_ids() for _ in range(500))

    assert_costs(3, lambda: asked(few), lambda: asked(many))


def test_ids_of_other_processes_come_after_those_of_own_clients_and_for_their_time():
    clock = Clock()
    ids = clock.waiting()
    ids.watch_for(["a", "b"], 30)
    ids.watch_id("x")
    assert [ids.unknown_ids(most) for most in (1, 2, 9)] == [["x"], ["x", "b"], ["x", "b", "a"]]
    clock.now += 31
    assert ids.unknown_ids(9) == ["x"]


async def test_draining_ends_a_wait_for_an_id_at_once():
    hub = LocalHub(Index())
    waiting = asyncio.create_task(hub.appearance("x", 3600))
    await asyncio.sleep(0)
    hub.close()
    assert await waiting is None
    assert await hub.appearance("x", 3600) is None


async def test_readiness_says_why_the_database_is_away_without_its_host_account_or_query():
    hub = LocalHub(Index())
    error = SourceUnavailable("MariaDB at u@10.1.2.3:3306/db: Access denied for 'u' (1045)", Away.LOGIN_REFUSED)
    hub.status.set_state("down", str(error), error.public)
    assert hub.readiness["database"]()["error"] == "the database refuses the login"
    assert hub.status.error == str(error)  # for the service's status line and the log
