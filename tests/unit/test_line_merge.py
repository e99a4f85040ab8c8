"""Log lines from pages and from the stream: whatever is late, lost or repeated, each line is printed once."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from correlator.client.line_merge import LineMerge, Page, in_order
from correlator.client.messages import LogMessage
from tests.support.held import held


def line(event_id: int, at: str | None = None) -> LogMessage:
    return LogMessage(job_id="j", event_id=event_id, at=at)


class FakeLog:
    """A log whose ids become visible out of order, and its pages: a position knows the ids that were not visible."""

    def __init__(self) -> None:
        self.visible: set[int] = set()
        self._returned: set[int] = set()

    def page(self, limit: int) -> Page:
        new = sorted(self.visible - self._returned)
        self._returned |= set(new[:limit])
        return Page([line(i) for i in new[:limit]], "next", more=len(new) > limit)


@given(st.integers(0, 100_000), st.integers(1, 8), st.integers(1, 8), st.integers(1, 6))
def test_every_line_is_returned_once_whatever_the_stream_loses(seed, remembered, max_streamed, limit):
    rnd = random.Random(seed)
    log, merge, returned = FakeLog(), LineMerge(remembered, max_streamed), list[LogMessage]()

    def read_pages() -> None:
        more = True
        while more:
            page = log.page(limit)
            returned.extend(merge.add_page(page))
            more = page.more
        assert not merge.pages_needed

    read_pages()
    order = list(range(1, 60))
    for i in range(len(order) - 1):
        j = min(len(order) - 1, i + rnd.choice((0, 0, 1, 3, 20)))
        order[i], order[j] = order[j], order[i]
    pending: list[int] = []  # committed, and not yet sent by the stream
    while order:
        some = [order.pop(0) for _ in range(min(len(order), rnd.randrange(1, 6)))]
        log.visible.update(some)
        pending += some
        if rnd.random() < 0.2:
            read_pages()
        if rnd.random() < 0.7:
            returned.extend(merge.add_streamed(line(i) for i in pending))
            pending.clear()
            if merge.pages_needed:
                read_pages()
        elif rnd.random() < 0.3:
            pending.clear()  # dropped, or lost with the connection
            read_pages()
    read_pages()
    assert sorted(one.event_id for one in returned) == list(range(1, 60))


def test_the_ids_that_are_stored_are_bounded_however_many_lines_come():
    merge, size = LineMerge(remembered=100, max_streamed=50), 0
    for start in range(0, 50_000, 1_000):
        merge.add_page(Page([line(i) for i in range(start, start + 1_000)], "next", more=True))
        size = size or held(merge)
    merge.add_page(Page([], "next"))
    for i in range(50_000, 50_050):
        merge.add_streamed([line(i)])
    assert merge.pages_needed
    assert held(merge) < size + 50 * 1_000


def test_lines_of_two_pages_are_in_the_order_of_time_and_one_page_is_held_back():
    first, held = in_order([], [line(1, "00"), line(3, "02"), line(4, "05")])
    assert (first, len(held)) == ([], 3)
    second, held = in_order(held, [line(2, "01"), line(5, "03")])
    assert [one.event_id for one in second] == [1, 2, 3]
    assert [one.event_id for one in held] == [5, 4]
    assert in_order(held, []) == ([], held)
