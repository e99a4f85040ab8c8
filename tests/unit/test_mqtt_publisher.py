"""Messages that the publisher leaves out, what it reports of them, and which one a broker closed at."""

from __future__ import annotations

import asyncio
import math
from types import SimpleNamespace
from typing import Any

from correlator.sinks.mqtt.connection import TimedOut
from correlator.sinks.mqtt.publisher import CLOSES, MAX_OVERSIZED, TRY_AGAIN_AFTER, OversizedMessages, Publisher
from correlator.sinks.mqtt.topics import MqttMessage

LARGE_ONE, SMALL_ONE = ("a", b"x" * 9_000), ("b", b"x")


def test_a_broker_that_sends_what_it_retains_before_an_acknowledgement_does_not_time_out(loop):
    publisher = Publisher(60.0, "mqtt://broker", 5.0, lambda _: None, loop.time)
    silent: Any = SimpleNamespace(
        maximum_packet_size=1_000, receive_maximum=20, maximum_qos=2, retain_available=True, publish=never,
        retained_at=-math.inf,
    )  # fmt: skip
    publisher.begin(silent, mqtt5=True)
    loop.create_task(publisher.send(silent, MqttMessage("job/a/state", b"x")))
    deadlines = loop.create_task(publisher.enforce_deadlines(silent))
    for _ in range(10):
        loop.run(4.0)
        silent.retained_at = loop.time()
    assert not deadlines.done()
    loop.run(4.0)
    assert not deadlines.done()
    loop.run(2.0)
    assert isinstance(deadlines.exception(), TimedOut)


async def never(*_: Any, **__: Any) -> None:
    await asyncio.Event().wait()


async def test_other_tasks_run_between_two_messages_that_are_left_out():
    publisher = Publisher(60.0, "mqtt://broker", 5.0, lambda _: None)
    turns: list[int] = []
    strict: Any = SimpleNamespace(maximum_packet_size=1, receive_maximum=20, publish=never)
    publisher.begin(strict, mqtt5=True)
    for number in (1, 2):
        asyncio.get_running_loop().call_soon(turns.append, number)
        await publisher.send(strict, MqttMessage("job/a/state", b"x"))
        assert turns == [*range(1, number + 1)]


def test_the_largest_message_is_left_out_until_it_changes_or_has_another_chance():
    oversized = OversizedMessages()
    assert [oversized.closed([SMALL_ONE, LARGE_ONE], 0) for _ in range(CLOSES)] == [None] * (CLOSES - 1) + ["a"]
    assert oversized.is_left_out(*LARGE_ONE, now=1)
    assert not oversized.is_left_out(*SMALL_ONE, now=1)
    assert not oversized.is_left_out("a", b"y" * 9_000, now=1)
    assert not oversized.is_left_out(*LARGE_ONE, now=TRY_AGAIN_AFTER)
    assert oversized.closed([LARGE_ONE], TRY_AGAIN_AFTER) == "a"
    assert oversized.is_left_out(*LARGE_ONE, now=TRY_AGAIN_AFTER + 1)
    oversized.acknowledged("a")
    assert not oversized.is_left_out(*LARGE_ONE, now=TRY_AGAIN_AFTER + 1)


def test_neither_a_small_message_nor_none_is_ever_to_blame():
    oversized = OversizedMessages()
    assert [oversized.closed(flying, 0) for _ in range(CLOSES) for flying in ([SMALL_ONE], [])] == [None] * 2 * CLOSES
    assert not oversized.is_left_out(*SMALL_ONE, now=1)


def test_topics_that_are_left_out_are_bounded():
    oversized = OversizedMessages()
    for n in range(MAX_OVERSIZED + 1):
        oversized.closed([(f"t{n}", LARGE_ONE[1])], 0, certain=True)
    assert [oversized.is_left_out(topic, LARGE_ONE[1], now=1) for topic in ("t0", "t1")] == [False, True]
