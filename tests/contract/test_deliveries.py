"""What docs/guarantees.md promises of every delivery, over the real receivers: MQTT, webhooks, traces, cluster events.

What only one of them promises is in `tests/integration/`, which of its events a bound drops in `tests/unit/`.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise

import pytest

from correlator.sinks.cluster import sink as cluster
from correlator.sinks.otlp import sink as otlp
from tests.support.deliveries import DELIVERIES, LATE, Arrived, Delivery, Servers
from tests.support.eventually import eventually
from tests.support.mosquitto import Mosquitto
from tests.support.nats import Nats


@pytest.fixture(scope="module")
def servers(mosquitto: Mosquitto) -> Iterator[Servers]:
    with Nats() as nats:
        yield Servers(mosquitto, nats)


PAHO = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""paho leaves open the socket of a connection that is not made."""


@pytest.fixture(params=[pytest.param(name, marks=PAHO if name == "mqtt" else ()) for name in DELIVERIES])
def kind(request: pytest.FixtureRequest) -> type[Delivery]:
    found: type[Delivery] = DELIVERIES[request.param]
    return found


@pytest.fixture
async def delivery(kind: type[Delivery], servers: Servers) -> AsyncIterator[Delivery]:
    async with kind.at(servers) as one:
        yield one
    gc.collect()


def first(arrived: Arrived) -> dict[str, list[int]]:
    """The events of each job, in the order in which they arrived for the first time."""
    found: dict[str, list[int]] = {}
    for job_id, number in dict.fromkeys(arrived):
        found.setdefault(job_id, []).append(number)
    return found


async def all_arrive(delivery: Delivery, due: dict[str, list[int]], *, repeats: bool) -> None:
    """Wait for all events, in the order of each job. `repeats`: some may arrive again, where none is stored once."""

    async def complete() -> bool:
        arrived = await delivery.arrived()
        assert first(arrived) == due
        return True

    await eventually(complete)
    await delivery.idle()
    assert [*delivery.left()] == []
    if delivery.once or not repeats:
        arrived = await delivery.arrived()
        assert len(arrived) == len({*arrived})


async def test_each_event_arrives_once_and_those_of_a_job_in_their_order(delivery):
    due: dict[str, list[int]] = {}
    async with delivery.running():
        for n in range(90):
            delivery.happen(n, job_id="abc"[n % 3])
            due.setdefault("abc"[n % 3], []).append(n)
            if n % 10 == 0:
                await asyncio.sleep(0.01)
        await all_arrive(delivery, due, repeats=False)


@pytest.mark.parametrize("fault", ["refuse", "black_hole"])
async def test_an_outage_is_said_and_what_happens_meanwhile_arrives_once_it_is_over(kind, servers, fault, caplog):
    async with kind.at(servers, silence=0.5) as delivery, delivery.running():
        delivery.happen(1, 2)
        await all_arrive(delivery, {"a": [1, 2]}, repeats=True)
        getattr(delivery.proxy, fault)()
        delivery.happen(*range(3, 30))
        part = await eventually(lambda: (part := delivery.part())["error"] and part)
        assert (part["ok"], part["pending"] > 0, len(delivery.left())) == (False, True, 27)
        assert not (delivery.public and "127.0.0.1" in part["error"]), "readiness needs no token"
        await asyncio.sleep(0.2)
        said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert all(a != b for a, b in pairwise(said)), "a failure is logged once until it changes"
        delivery.proxy.heal()
        await all_arrive(delivery, {"a": [*range(1, 30)]}, repeats=True)
        assert delivery.part().get("ok", True)


async def test_connections_that_break_in_the_middle_of_answers_lose_no_event(delivery):
    async with delivery.running():
        for n in range(4):
            await delivery.idle()
            delivery.proxy.cut(after=7 * n)
            delivery.happen(*range(20 * n, 20 * n + 20))
            await eventually(lambda: not delivery.proxy.cutting)
        await all_arrive(delivery, {"a": [*range(80)]}, repeats=True)


async def test_what_a_run_leaves_is_sent_by_the_next_one(delivery):
    async with delivery.running():
        delivery.happen(1)
        await all_arrive(delivery, {"a": [1]}, repeats=False)
        delivery.proxy.refuse()
        delivery.happen(*range(2, 9))
        await eventually(lambda: len(delivery.left()) == 7)
        killed = delivery.left()
        delivery.proxy.heal()
        await all_arrive(delivery, {"a": [*range(1, 9)]}, repeats=False)
    await delivery.begin(killed)
    async with delivery.running():
        delivery.happen(9)
        await all_arrive(delivery, {"a": [*range(1, 10)]}, repeats=True)
        times = Counter(await delivery.arrived())
        assert {times["a", n] for n in range(2, 9)} == {1 if delivery.once else 2}, "the checkpoint was an older one"


async def has_arrived(delivery: Delivery, number: int) -> bool:
    return ("a", number) in await delivery.arrived()


async def test_a_stop_neither_loses_nor_repeats_what_is_on_its_way(delivery):
    delivery.proxy.delay = 0.02
    async with delivery.running():
        delivery.happen(1)
        await all_arrive(delivery, {"a": [1]}, repeats=False)
        delivery.happen(*range(2, 100))
        await eventually(lambda: delivery.flushes or has_arrived(delivery, 2), every=0.001)
    left = delivery.left()
    assert not (delivery.flushes and left)
    delivery.proxy.heal()
    await delivery.begin(left)
    async with delivery.running():
        await all_arrive(delivery, {"a": [*range(1, 100)]}, repeats=False)


async def test_of_too_many_events_the_oldest_are_dropped_and_counted(kind, servers):
    async with kind.at(servers, most=5) as delivery:
        before = delivery.dropped()
        async with delivery.running():
            await delivery.idle()
            delivery.proxy.refuse()
            delivery.happen(0)
            await eventually(lambda: delivery.part()["error"])
            for n in range(1, 12):
                delivery.happen(n)
                await asyncio.sleep(0.02)
            await eventually(lambda: len(delivery.left()) == 5)
            delivery.proxy.heal()
            await delivery.idle()
        arrived = first(await delivery.arrived())["a"]
        assert arrived[-4:] == [8, 9, 10, 11], "of the last five one may be older: what is on its way stays"
        assert delivery.dropped() - before == 12 - len(arrived)


async def test_a_receiver_that_is_too_slow_is_said_once_until_it_has_everything(delivery, caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.setattr(otlp, "MAX_SPANS", 1)
    monkeypatch.setattr(cluster, "UNWRITTEN_AFTER", LATE)
    async with delivery.running():
        delivery.happen(0)
        await all_arrive(delivery, {"a": [0]}, repeats=False)
        delivery.proxy.delay = 0.25
        delivery.happen(*range(1, 60))
        slow = ("too slow", "are not in the cluster")
        await eventually(lambda: any(words in str(delivery.part()["error"]) for words in slow))
        assert not delivery.part()["ok"]
        delivery.proxy.heal()
        await all_arrive(delivery, {"a": [*range(60)]}, repeats=False)
        await eventually(lambda: delivery.part().get("ok", True))
    said = [text for text in caplog.messages if "too slow" in text]
    assert len(said) == (0 if delivery.once else 1)
