"""IDs that clients of a gateway wait for, from the gateway to the collectors that query for them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from correlator.cluster import rpc
from correlator.cluster.received import Unreadable
from correlator.gateway.archive import WaitingIdsSender
from correlator.pipeline.hub import WATCHED_FOR, WaitingIds


def test_the_form_of_the_message_is_that_of_earlier_versions():
    assert rpc.encode_wanted(["a", "b"]) == b'{"ids":["a","b"]}'
    assert rpc.encode_wanted(["a"], "dc1") == b'{"ids":["a"],"instance":"dc1"}'


def test_an_appliance_queries_for_what_everybody_or_itself_is_asked_for():
    assert rpc.wanted_ids(b'{"ids":["a","b"],"newer":1}', "dc1") == ("a", "b")
    assert rpc.wanted_ids(b'{"ids":["a"],"instance":"dc1"}', "dc1") == ("a",)
    assert rpc.wanted_ids(b'{"ids":["a"],"instance":"dc2"}', "dc1") == ()


def test_a_message_has_a_bound_in_bytes():
    with pytest.raises(Unreadable):
        rpc.wanted_ids(b'{"ids":["' + b"x" * 200_000 + b'"]}', "dc1")


def test_ids_that_no_job_can_have_are_dropped_and_a_message_has_a_bounded_number():
    many = json.dumps({"ids": ["", "x" * 256, "ok", *map(str, range(200))]}).encode()
    found = rpc.wanted_ids(many, "dc1")
    assert found[:2] == ("ok", "0")
    assert len(found) == rpc.MAX_WANTED_IDS - 2


def test_what_the_collectors_own_clients_wait_for_stays_watched():
    gateway = Gateway()
    waiting = gateway.hubs[None]
    with waiting.watched_id("a"):
        waiting.watch_for(["a", "b"], 30.0)
        gateway.now += 31.0
        assert waiting.unknown_ids(10) == ["a"]
    assert waiting.unknown_ids(10) == []


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 20))))
def test_the_number_of_wanted_ids_is_bounded_and_each_is_watched_once(steps):
    now, last = 1000.0, dict[str, float]()
    waiting = WaitingIds(lambda _: False, clock=lambda: now, max_watched_for=3)
    for name, after in steps:
        now += after
        waiting.watch_for([name], 30.0)
        last.pop(name, None)
        last[name] = now
        newest = [n for n, at in reversed(last.items()) if at + 30.0 >= now][:3]
        assert waiting.unknown_ids(10) == newest


class Gateway:
    """The waiting IDs of a gateway, with a clock of its own, and the messages that it published."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.known: set[str] = set()
        self.hubs: dict[str | None, WaitingIds] = {
            None: WaitingIds(self.known.__contains__, clock=lambda: self.now),
        }
        self.sent: list[dict[str, Any]] = []
        self.wanting = WaitingIdsSender(self.hubs.items, self.publish, lambda: self.now)

    async def publish(self, message: bytes) -> None:
        self.sent.append(json.loads(message))

    def messages(self) -> list[dict[str, Any]]:
        """The messages that are due now."""
        found = []
        while (message := self.wanting.next_message()[0]) is not None:
            found.append(json.loads(message))
        return found


def test_an_id_is_published_when_somebody_begins_to_wait_and_then_every_20_seconds():
    gateway = Gateway()
    gateway.hubs[None].watch_id("a")
    assert gateway.messages() == [{"ids": ["a"]}]
    assert gateway.wanting.next_message() == (None, 20.0)
    gateway.now += 19.5
    assert gateway.wanting.next_message() == (None, 0.5)
    gateway.now += 0.5
    assert gateway.messages() == [{"ids": ["a"]}]
    gateway.hubs[None].unwatch_id("a")
    gateway.now += 20
    assert gateway.wanting.next_message() == (None, None)


def test_an_id_that_a_job_has_or_that_was_waited_for_too_long_is_not_published():
    gateway = Gateway()
    gateway.hubs[None].watch_id("a")
    gateway.hubs[None].watch_id("b")
    gateway.known.add("b")
    assert gateway.messages() == [{"ids": ["a"]}]
    gateway.now += WATCHED_FOR + 1
    assert gateway.wanting.next_message() == (None, None)


def test_what_one_appliance_is_waited_for_names_it():
    gateway = Gateway()
    gateway.hubs["dc1"] = WaitingIds(lambda _: False, clock=lambda: gateway.now)
    gateway.hubs["dc1"].watch_id("a")
    gateway.hubs[None].watch_id("b")
    assert gateway.messages() == [{"ids": ["b"]}, {"ids": ["a"], "instance": "dc1"}]


def test_many_ids_are_several_messages_the_newest_first():
    gateway = Gateway()
    for n in range(250):
        gateway.hubs[None].watch_id(str(n))
    found = gateway.messages()
    assert [len(m["ids"]) for m in found] == [100, 100, 50]
    assert [name for m in found for name in m["ids"]] == [str(n) for n in reversed(range(250))]
