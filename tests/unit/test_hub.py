"""What a hub delivers to its subscribers."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from correlator.errors import Away, SourceUnavailable
from correlator.jobs.index import Index
from correlator.model.facts import Reading
from correlator.model.rows import JobRecord
from correlator.pipeline import hub as hub_module
from correlator.pipeline.hub import Batch, WaitingIds
from correlator.pipeline.pipeline import LocalHub
from tests.support.yardstick import quickest


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


@pytest.fixture
def now(monkeypatch) -> list[float]:
    clock = [1000.0]
    monkeypatch.setattr(hub_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    return clock


async def test_a_second_client_that_waits_for_an_id_restarts_the_fast_polls(now):
    hub = LocalHub(Index())
    hub.waiting_ids.watch_id("x")
    now[0] += hub_module.WATCHED_FOR + 1
    assert not hub.waiting_ids.has_waiting_ids()
    hub.waiting_ids.watch_id("x")
    assert hub.waiting_ids.has_waiting_ids()
    hub.waiting_ids.unwatch_id("x")
    assert hub.waiting_ids.has_waiting_ids()
    hub.waiting_ids.unwatch_id("x")
    assert not hub.waiting_ids.has_waiting_ids()


def test_ids_whose_wait_is_over_cost_nothing_at_a_poll(now):
    few, many = LocalHub(Index()).waiting_ids, LocalHub(Index()).waiting_ids
    for ids, size in ((few, 10), (many, 5_000)):
        for n in range(size):
            ids.watch_id(f"id{n}")
    now[0] += hub_module.WATCHED_FOR + 1

    def asked(ids: WaitingIds) -> None:
        assert not any(ids.has_waiting_ids() for _ in range(500))

    one, other = quickest(lambda: asked(few), lambda: asked(many))
    assert other < 3 * one, f"{other / one:.1f} times as much with 5,000 IDs"


async def test_ids_of_other_processes_come_after_those_of_own_clients_and_for_their_time(now):
    hub = LocalHub(Index())
    hub.waiting_ids.watch_for(["a", "b"], 30)
    hub.waiting_ids.watch_id("x")
    assert [hub.waiting_ids.unknown_ids(most) for most in (1, 2, 9)] == [["x"], ["x", "b"], ["x", "b", "a"]]
    now[0] += 31
    assert hub.waiting_ids.unknown_ids(9) == ["x"]


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
