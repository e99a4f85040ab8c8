"""A request is sent again if a server hangs, or leads the stream no more, in virtual time."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from correlator.cluster.connection import (
    ASK_AGAIN,
    ASKED,
    MAX_WINDOW,
    MIN_WINDOW,
    WINDOW_GOAL,
    Connection,
    NoAnswer,
    NoResponder,
    SendWindow,
    Unacknowledged,
)
from tests.support.cluster import settings

WITHIN = 1.0


class Servers(Connection):
    """Of the requests so many reach a server that hangs. `asked`: all so far; `open`: those without an answer yet."""

    def __init__(self, hanging: int, error: Exception | None = None, data: bytes = b"value") -> None:
        super().__init__(settings("nats://127.0.0.1:1"), "collector")
        self.hanging, self.error, self.data, self.asked, self.open = hanging, error, data, 0, 0

    async def request(self, subject: str, payload: bytes = b"", *, headers: Any = None, within: float = 5.0) -> Any:
        self.asked += 1
        self.open += 1
        try:
            if self.error is not None:
                raise self.error
            if self.asked <= self.hanging:
                await asyncio.sleep(within)
                raise NoAnswer("no answer")
            await asyncio.sleep(0.01)
            return SimpleNamespace(headers={"Nats-Sequence": "7"}, data=self.data)
        finally:
            self.open -= 1


@pytest.mark.parametrize("hanging", [0, 3])
def test_another_server_is_asked_soon_and_no_request_is_left(loop, hanging):
    servers = Servers(hanging)
    reading = loop.create_task(servers.last("KV_cor", "key", within=WITHIN))
    loop.run(hanging * ASK_AGAIN + 0.02)
    assert reading.result().data == b"value"
    assert (servers.asked, servers.open) == (hanging + 1, 0)


@pytest.mark.parametrize("lost", [0, 4])
def test_the_api_is_called_again_while_no_server_leads_the_stream(loop, lost):
    servers = Servers(lost, data=b'{"config": {}}')
    calling = loop.create_task(servers.api("STREAM.INFO.KV_cor", within=WITHIN))
    loop.run(lost * WITHIN / ASKED + 0.02)
    assert calling.result() == {"config": {}}
    assert (servers.asked, servers.open) == (lost + 1, 0)


@pytest.mark.parametrize(
    ("error", "seconds", "asked", "raised"),
    [(None, WITHIN, ASKED, NoAnswer), (NoResponder("nobody"), 0, 1, NoResponder)],
)
def test_if_all_hang_the_deadline_holds_and_that_nobody_keeps_the_stream_is_known_at_once(
    loop, error, seconds, asked, raised
):
    servers = Servers(100, error)
    reading = loop.create_task(servers.last("KV_cor", "key", within=WITHIN))
    loop.run(seconds + 0.01)
    assert isinstance(reading.exception(), raised)
    assert (servers.asked, servers.open) == (asked, 0)


# -- Bytes under way to NATS: never more than the link takes in a short time, and all that it takes, in virtual time


class Link:
    """A link of `rate` bytes a second, on which an acknowledgement takes `latency` seconds besides."""

    def __init__(self, loop, rate, latency=0.02):
        self.loop, self.rate, self.latency = loop, rate, latency
        self.window = SendWindow()
        self.passed = self.under_way = self.most = self.rest = 0
        self.waits = []
        self._free_at = 0.0

    async def write(self, size):
        async with self.window.passing(size):
            began = self.loop.time()
            self.under_way += size
            self.most = max(self.most, self.under_way)
            self._free_at = max(self._free_at, began) + size / self.rate
            await asyncio.sleep(self._free_at + self.latency - began)
            self.under_way -= size
            self.passed += size
            self.waits.append(self.loop.time() - began)

    async def write_on(self):
        while True:
            await self.write(min(self.window.share, 500_000))

    async def write_in_a_hurry(self):
        """Write more than the share, as the last document of a batch may exceed it, and make each batch first."""
        while True:
            await self.write(int(1.2 * self.window.share))
            await asyncio.sleep(0.01)

    async def write_rest(self):
        while True:
            size = self.window.rest
            await self.write(size)
            self.rest += size


@pytest.mark.parametrize("rate", [32_000, 125_000, 1_000_000])
def test_writes_in_no_hurry_take_little_of_the_link_while_there_are_others_and_then_all_of_it(loop, rate):
    link = Link(loop, rate)
    loop.create_task(link.write_rest())
    writing = loop.create_task(link.write_in_a_hurry())
    loop.run(20)
    link.passed = link.rest = 0
    loop.run(60)
    assert 0.02 * link.passed < link.rest < 0.15 * link.passed
    assert link.passed > 60 * rate * 0.8
    writing.cancel()
    loop.run(20)
    link.rest = 0
    loop.run(60)
    assert link.rest > 60 * rate * 0.9


@pytest.mark.parametrize("writers", [1, 2])
@pytest.mark.parametrize(
    ("rate", "latency"), [(32_000, 0.02), (125_000, 0.02), (125_000, 0.3), (10_000_000, 0.05), (125_000, 1.0)]
)
def test_the_window_is_what_the_link_takes_in_the_goal_and_the_link_is_used(loop, rate, latency, writers):
    link = Link(loop, rate, latency)
    for _ in range(writers):
        loop.create_task(link.write_on())
    loop.run(20)
    link.most, link.passed, link.waits = 0, 0, []
    loop.run(60)
    assert link.most <= max(MIN_WINDOW, min(MAX_WINDOW, 2 * WINDOW_GOAL * rate))
    assert max(link.waits) < 2 * WINDOW_GOAL + latency
    full = min(rate, 500_000 / (latency + 500_000 / rate))
    assert link.passed > 60 * full * (0.9 if latency < 0.1 else 0.25 * writers if latency > 0.5 else 0.5)


@pytest.mark.parametrize("writers", [1, 2])
def test_a_latency_that_rises_and_falls_again_costs_some_writes(loop, writers):
    link = Link(loop, 10_000_000)
    for _ in range(writers):
        loop.create_task(link.write_on())
    for latency in (0.02, 2.0, 0.9, 2.0, 0.02):
        link.latency = latency
        loop.run(30 + 20 * latency)
        assert link.window.size > 500_000
    link.rate = 125_000
    loop.run(20)
    link.waits = []
    loop.run(20)
    assert max(link.waits) < 2 * WINDOW_GOAL


def test_a_write_without_an_acknowledgement_makes_the_window_the_smallest_one(loop):
    window = SendWindow()

    async def lost(error):
        async with window.passing(10_000):
            raise error

    for error in (Unacknowledged("lost"), TimeoutError()):
        window.size = MAX_WINDOW
        task = loop.create_task(lost(error))
        loop.run(1)
        assert task.exception() is error
        assert window.size == MIN_WINDOW
        assert window.deadline(10 * MIN_WINDOW, 5.0) > 5.0 + 10 * WINDOW_GOAL


def test_a_large_write_waits_for_its_turn_and_passes_alone(loop):
    link = Link(loop, 125_000)
    for _ in range(2):
        loop.create_task(link.write_on())
    loop.run(5)
    large = loop.create_task(link.write(400_000))
    loop.run(7)
    assert large.done()
    assert link.most <= 400_000
