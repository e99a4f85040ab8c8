"""Pages of log lines: in whatever order ids become visible, each is returned once; the text of a place is checked."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from correlator.errors import BadRequest
from correlator.sources.archive import lines
from correlator.sources.archive.lines import LinePlace


def read(place: LinePlace, rows: set[int], mine: set[int], limit: int) -> tuple[list[int], LinePlace]:
    """One page as `lines.Reader` makes it, from the ids that are visible at this moment."""
    returned = sorted(place.holes & rows & mine)[:limit]
    seen = returned[-1] if len(returned) == limit else max(place.holes, default=0)
    place = place.settle(i for i in place.holes & rows if i <= seen)
    new = sorted(i for i in rows & mine if i > place.upto)[: limit - len(returned)]
    if len(returned) < limit:
        seen_to = new[-1] if len(returned) + len(new) == limit else max(rows, default=0)
        place = place.advance(seen_to, set(range(place.upto + 1, seen_to + 1)) - rows)
    return returned + new, lines.decode_place(place.encode())


@given(st.integers(0, 10_000), st.integers(1, 5), st.sampled_from([1, 2, 3]))
def test_every_row_is_returned_once_whenever_it_is_committed(seed, limit, stride):
    rnd = random.Random(seed)
    ids = [stride * n for n in range(1, 60)]
    mine = set(rnd.sample(ids, 20))
    order = ids.copy()
    for i in range(len(order) - 1):  # commits come a little out of order, and some much later
        j = min(len(order) - 1, i + rnd.choice((0, 0, 1, 3, 20)))
        order[i], order[j] = order[j], order[i]
    visible: set[int] = set()
    place, returned = LinePlace(0), list[int]()
    while order:
        for _ in range(rnd.randrange(5)):
            if order:
                visible.add(order.pop(0))
        page, place = read(place, visible, mine, limit)
        returned += page
    for _ in range(30):
        page, place = read(place, visible, mine, limit)
        returned += page
    assert sorted(returned) == sorted(mine)


def test_what_is_below_the_floor_is_given_up():
    assert LinePlace(10, frozenset({3, 5, 8})).forget(5) == LinePlace(10, frozenset({8}))


def test_a_regular_step_of_ids_costs_next_to_nothing():
    holes = frozenset(i for i in range(1, lines.MAX_SPAN) if i % 3)
    assert len(LinePlace(lines.MAX_SPAN, holes).encode()) < 200


def test_too_many_irregular_holes_lose_the_oldest():
    rnd = random.Random(1)
    holes = frozenset(i for i in range(1, lines.MAX_SPAN) if rnd.random() < 0.5)
    text = LinePlace(lines.MAX_SPAN, holes).encode()
    kept = lines.decode_place(text)
    assert len(text) <= lines.MAX_TEXT
    assert kept.holes == frozenset(sorted(holes)[-len(kept.holes) :])
    assert len(kept.holes) > 1000


@given(st.integers(0, 1 << 62), st.frozensets(st.integers(1, 5000)))
def test_a_place_survives_its_text(upto, holes):
    assert lines.decode_place(LinePlace(upto, holes).encode()) == LinePlace(upto, holes)


@pytest.mark.parametrize("text", ["", "x", "AAAA", "17", "ä", "!!!!", "null", "lAIAAMQA", LinePlace(3).encode()[:-2]])
def test_any_other_text_is_refused_in_words(text):
    with pytest.raises(BadRequest, match=r"^after: "):
        lines.decode_place(text)


@given(st.binary(max_size=60))
def test_no_text_does_anything_but_be_refused(raw):
    text = raw.decode("latin-1")
    try:
        place = lines.decode_place(text)
    except BadRequest:
        return
    assert place.upto >= 0
