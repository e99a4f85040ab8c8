"""A request is sent again if a server hangs, or leads the stream no more, in virtual time."""

import asyncio
import contextlib
import random
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from nats.errors import ProtocolError

from correlator.cluster import received, streams
from correlator.cluster.connection import (
    ASK_AGAIN,
    ASKED,
    MAX_WINDOW,
    MIN_WINDOW,
    WINDOW_GOAL,
    ClusterUnavailable,
    Connection,
    NoAnswer,
    NoResponder,
    Refused,
    SendWindow,
    Unacknowledged,
    answer_of,
    new_client,
)
from correlator.cluster.fence import put
from correlator.doctor.cluster import judge_streams
from tests.support.cluster import settings
from tests.support.yardstick import assert_costs

WITHIN = 1.0


class Servers(Connection):
    """Of the requests so many reach a server that hangs. `asked`: all so far; `open`: those without an answer yet."""

    def __init__(self, hanging: int, error: Exception | None = None, data: bytes = b"value") -> None:
        super().__init__(settings("nats://127.0.0.1:1"), "collector")
        self.hanging, self.error, self.data, self.asked, self.open = hanging, error, data, 0, 0
        self.seq = "7"

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
            return SimpleNamespace(headers={"Nats-Sequence": self.seq}, data=self.data)
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


# -- Answers of JetStream of any form: an error of the cluster, or something that can be used

INFO = {
    "type": "io.nats.jetstream.api.v1.stream_info_response",
    "config": {"name": "KV_cor", "num_replicas": 3, "max_bytes": 8_000_000, "subjects": ["$KV.cor.>"]},
    "created": "2026-03-01T10:00:00Z",
    "state": {"messages": 5, "bytes": 500, "last_seq": 9, "subjects": {"a": 1}},
    "cluster": {"leader": "n1", "replicas": [{"name": "n2", "current": True, "active": 5_000_000}]},
    "ts": "2026-03-01T10:00:00.123456789Z",
    "seq": 9,
    "num_pending": 0,
    "delivered": {"consumer_seq": 0, "stream_seq": 0},
}
REFUSAL = {"error": {"code": 404, "err_code": 10059, "description": "stream not found"}}
ODD: tuple[Any, ...] = (None, [], {}, "abc", -5, 1.5, 2**70, True, [5], {"a": [1]})


def broken(dice: random.Random, value: Any) -> Any:
    """A copy of an answer of which some values are others, or are missing."""
    if dice.random() < 0.05:
        return dice.choice(ODD)
    if isinstance(value, dict):
        return {name: broken(dice, one) for name, one in value.items() if dice.random() > 0.03}
    return [broken(dice, one) for one in value] if isinstance(value, list) else value


def test_an_answer_of_jetstream_of_any_form_is_an_error_of_the_cluster_or_can_be_used(loop):
    dice, used, errors = random.Random(5), 0, 0
    for _ in range(1_500):
        answer = broken(dice, dice.choice((INFO, INFO, INFO, REFUSAL)))
        servers = Servers(0, data=msgspec.json.encode(answer))
        calls = (
            loop.create_task(streams.info(servers, "KV_cor", within=WITHIN)),
            loop.create_task(servers.api("CONSUMER.CREATE.KV_cor", form=received.ConsumerInfo, within=WITHIN)),
            loop.create_task(put(servers, "$KV.cor.a", b"", expected=0, within=WITHIN)),
        )
        loop.run(1.0)
        failures = [call.exception() for call in calls]
        assert all(one is None or isinstance(one, ClusterUnavailable | Refused) for one in failures), (answer, failures)
        errors += sum(one is not None for one in failures)
        if failures[0] is None and (info := calls[0].result()) is not None:
            streams.problem({"KV_cor": info})
            streams.quorum_age(info)
            judge_streams(dict.fromkeys(streams.wanted(1), info), settings("nats://127.0.0.1:1"), gateway=False)
            used += info["state"]["last_seq"] >= 0
    assert min(used, errors) > 100


def test_an_answer_of_jetstream_that_is_too_large_is_not_parsed():
    with pytest.raises(ClusterUnavailable, match="more than"):
        answer_of(b'{"a":[' + b"[]," * 400_000 + b"[]]}", "STREAM.INFO.KV_cor", received.Answer)


FILLS = (b" ", b"\t", b"\r", b"\n", b"a", b"1", b"'", b"{", b"a ", b" 1")
"""What a line may go on with, again and again."""


@pytest.mark.parametrize(
    "begin",
    [b"INFO", b"INFO {", b"MSG", b"MSG a", b"MSG a 1 b", b"HMSG a 1 b", b"-ERR", b"-ERR '", b"PING", b"+OK", b""],
)
def test_no_line_that_a_server_begins_takes_more_time_than_another_of_its_length(begin):
    async def parsed(lines):
        for line in lines:
            with contextlib.suppress(ProtocolError):
                await new_client()._ps.parse(line)

    odd = [begin + one * 3_000 + other * 3_000 for one in FILLS for other in FILLS]
    usual = [b"MSG " + b"a" * (len(line) - 4) for line in odd]
    assert_costs(10, lambda: asyncio.run(parsed(usual)), lambda: asyncio.run(parsed(odd)))


@pytest.mark.parametrize("said", ["abc", "", "-7", "²", "9" * 5_000, "1e3"])
def test_a_place_that_is_no_number_is_an_error_of_the_cluster(loop, said):
    servers = Servers(0)
    servers.seq = said
    reading = loop.create_task(servers.last("KV_cor", "key", within=WITHIN))
    loop.run(1.0)
    assert isinstance(reading.exception(), ClusterUnavailable)


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
