"""The backlog of a lagging client: log lines in a ring buffer."""

from collections import Counter, deque
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from correlator.sinks.streaming.fanout import Backlog, LineBuffer
from correlator.sinks.streaming.limits import DEFAULT
from tests.support.streams_harness import DaemonStreams, StreamClient
from tests.support.yardstick import assert_costs


@given(st.integers(20, 200), st.lists(st.tuples(st.booleans(), st.integers(0, 60)), max_size=80))
def test_lines_keep_their_order_and_the_oldest_go_when_it_is_full(capacity, acts):
    lines, model, size = LineBuffer(capacity), deque[tuple[tuple[int, ...], bytes]](), 0
    for n, (add, length) in enumerate(acts):
        if not add:
            expected = model.popleft() if model else None
            assert lines.pop_oldest() == expected
            size -= 8 + len(expected[1]) if expected else 0
            continue
        subs: tuple[int, ...] = (n % 3,)
        line = bytes([n % 256]) * length
        gone: list[tuple[int, ...]] = []
        if 8 + length > capacity:
            gone.append(subs)
        else:
            while size + 8 + length > capacity:
                old = model.popleft()
                gone.append(old[0])
                size -= 8 + len(old[1])
            model.append((subs, line))
            size += 8 + length
        dropped: dict[tuple[int, ...], int] = {}
        assert lines.add(subs, line, dropped) == len(gone)
        assert dropped == Counter(gone)
        assert lines.size == size


def test_the_lines_of_a_subscription_that_ended_are_discarded():
    backlog = Backlog(0, LineBuffer(DEFAULT.line_buffer))
    for subs in ((1,), (1, 2), (2,)):
        backlog.add_line(subs, b"x")
        backlog.dropped[subs] = 1
    backlog.remove_subscription(1)
    assert [backlog.lines.pop_oldest() for _ in range(3)] == [((2,), b"x"), ((2,), b"x"), None]
    assert backlog.dropped == {(2,): 2}


def filling(capacity: int) -> Callable[[], None]:
    """Lines for a buffer that is full of others."""
    lines = LineBuffer(capacity)

    def fill(count: int = 1000) -> None:
        for _ in range(count):
            lines.add((1,), b"x" * 300, {})

    fill(capacity // 300)
    return fill


def test_a_line_for_a_full_buffer_costs_the_same_however_large_it_is():
    assert_costs(3, filling(DEFAULT.line_buffer // 50), filling(DEFAULT.line_buffer))


async def test_unsubscribing_writes_what_is_pending_for_that_client_alone():
    clock = [0.0]

    class Slow(StreamClient):
        def write(self, framed: bytes) -> None:
            super().write(framed)
            clock[0] += 1.0

    world, first, second = DaemonStreams(clock=lambda: clock[0]), Slow(), Slow()
    for client in (first, second):
        await world.subscribe(client=client)
    for message in ("at once", "after a rest"):
        world.job(error_message=message)
    world.streams.fanout.unsubscribe(first, 1)
    errors = [[m["set"]["error"] for m in client.messages if m["type"] == "delta"] for client in (first, second)]
    assert errors == [["after a rest"], []], "the others are written together, at their time"
