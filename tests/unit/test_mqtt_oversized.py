"""Which message a broker closed at, from what was on its way."""

from __future__ import annotations

from correlator.sinks.mqtt.publisher import CLOSES, MAX_OVERSIZED, TRY_AGAIN_AFTER, OversizedMessages

LARGE, SMALL = ("a", b"x" * 9_000), ("b", b"x")


def test_the_largest_message_is_left_out_after_a_few_times_and_no_other():
    oversized = OversizedMessages()
    assert [oversized.closed([SMALL, LARGE], 0) for _ in range(CLOSES)] == [None] * (CLOSES - 1) + ["a"]
    assert oversized.is_left_out(*LARGE, now=1)
    assert not oversized.is_left_out(*SMALL, now=1)


def test_a_message_that_changed_or_was_acknowledged_is_sent():
    oversized = OversizedMessages()
    oversized.closed([LARGE], 0, certain=True)
    assert not oversized.is_left_out("a", b"y" * 9_000, now=1)
    oversized.acknowledged("a")
    assert not oversized.is_left_out(*LARGE, now=1)


def test_a_message_that_was_left_out_has_another_chance_after_a_while():
    oversized = OversizedMessages()
    oversized.closed([LARGE], 0, certain=True)
    assert not oversized.is_left_out(*LARGE, now=TRY_AGAIN_AFTER)
    assert oversized.closed([LARGE], TRY_AGAIN_AFTER) == "a"
    assert oversized.is_left_out(*LARGE, now=TRY_AGAIN_AFTER + 1)


def test_nothing_on_its_way_is_nothing_to_blame():
    assert OversizedMessages().closed([], 0) is None


def test_a_small_message_is_never_to_blame():
    oversized = OversizedMessages()
    assert [oversized.closed([SMALL], 0) for _ in range(CLOSES)] == [None] * CLOSES
    assert not oversized.is_left_out(*SMALL, now=1)


def test_topics_that_are_left_out_are_bounded():
    oversized = OversizedMessages()
    for n in range(MAX_OVERSIZED + 1):
        oversized.closed([(f"t{n}", LARGE[1])], 0, certain=True)
    assert not oversized.is_left_out("t0", LARGE[1], now=1)
    assert oversized.is_left_out("t1", LARGE[1], now=1)
