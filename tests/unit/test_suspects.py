"""Which message a broker closed at, from what was on its way."""

from __future__ import annotations

from correlator.sinks.mqtt.suspects import CLOSES, MAX_SUSPECTS, TRY_AGAIN_AFTER, Suspects

LARGE, SMALL = ("a", b"x" * 9_000), ("b", b"x")


def test_the_largest_message_is_left_out_after_a_few_times_and_no_other():
    suspects = Suspects()
    assert [suspects.closed([SMALL, LARGE], 0) for _ in range(CLOSES)] == [None] * (CLOSES - 1) + ["a"]
    assert suspects.is_left_out(*LARGE, now=1)
    assert not suspects.is_left_out(*SMALL, now=1)


def test_a_message_that_changed_or_was_acknowledged_is_sent():
    suspects = Suspects()
    suspects.closed([LARGE], 0, certain=True)
    assert not suspects.is_left_out("a", b"y" * 9_000, now=1)
    suspects.acknowledged("a")
    assert not suspects.is_left_out(*LARGE, now=1)


def test_a_message_that_was_left_out_has_another_chance_after_a_while():
    suspects = Suspects()
    suspects.closed([LARGE], 0, certain=True)
    assert not suspects.is_left_out(*LARGE, now=TRY_AGAIN_AFTER)
    assert suspects.closed([LARGE], TRY_AGAIN_AFTER) == "a"
    assert suspects.is_left_out(*LARGE, now=TRY_AGAIN_AFTER + 1)


def test_nothing_on_its_way_is_nothing_to_blame():
    assert Suspects().closed([], 0) is None


def test_a_small_message_is_never_to_blame():
    suspects = Suspects()
    assert [suspects.closed([SMALL], 0) for _ in range(CLOSES)] == [None] * CLOSES
    assert not suspects.is_left_out(*SMALL, now=1)


def test_suspects_are_bounded():
    suspects = Suspects()
    for n in range(MAX_SUSPECTS + 1):
        suspects.closed([(f"t{n}", LARGE[1])], 0, certain=True)
    assert not suspects.is_left_out("t0", LARGE[1], now=1)
    assert suspects.is_left_out("t1", LARGE[1], now=1)
