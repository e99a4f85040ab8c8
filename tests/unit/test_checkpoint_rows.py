"""The rows of a write of the checkpoint in NATS, by the groups in which they are stored."""

import msgspec
import pytest
from msgspec.structs import replace

from correlator.model.persisted import Cursor, IndexState, PersistedExports
from correlator.model.rows import LogRow
from correlator.sources.db.queries import HEAVY
from correlator.sources.gaps import MAX_KEPT, Gaps
from correlator.sources.tail import RECENT, ResetMarkers
from correlator.state.checkpoint import Changes, Name, Unusable
from correlator.state.checkpoint_stream import (
    MAX_BYTES,
    MAX_ROW,
    MAX_ROWS,
    REDO,
    Chunk,
    Content,
    Redo,
    name_of,
    replay,
)
from tests.support.saved_index import changes, filled

MAX_PAYLOAD = 1 << 20
"""Bytes of a message with its headers, by default."""

HEADERS = 1_000


def whole(written, stored=(), max_rows=MAX_ROWS):
    """A write of everything. `stored`: the rows that the stream has, with the hashes of their values."""
    return Content(written, dict(stored), everything=True, max_rows=max_rows)


def of_events(events):
    return whole(Changes(1.0, Cursor(1), IndexState(), {}, events))


def test_the_rows_of_a_write_are_the_same_each_time():
    written = changes(filled(300), n1=b"one", n2=b"two")
    names: list[Name] = [("job", "gone"), ("event", "1"), ("event", "7"), ("export", "job1")]
    stored = dict.fromkeys(names, 0)
    for everything in (True, False):
        content = Content(written, stored, everything=everything, max_rows=20)
        first = list(content.groups())
        after = content.written, content.gone
        assert list(content.groups()) == first
        assert (content.written, content.gone) == after
        assert len(first) > 10


def test_of_everything_only_those_rows_are_written_that_the_stream_does_not_have():
    written = changes(filled(300), n1=b"one")
    first = whole(written)
    assert len(list(first.groups())) > 0
    stored = {**first.written, ("job", "gone"): 1}
    later = replace(written, events={1: ("mqtt", b"j", b"other")})
    again = whole(later, stored)
    assert [[name for name, _ in group] for group in again.groups()] == [[("event", "1"), ("job", "gone")]]
    assert again.written.keys() == first.written.keys()


def test_a_group_has_no_more_bytes_than_there_is_room_for():
    events = dict.fromkeys(range(50), ("mqtt", b"j", b"x" * 1_000))
    room = iter([*[5_000] * 30, *[2_200] * 1_000])
    found = list(of_events(events).groups(lambda: next(room)))
    sizes = [sum(len(value) for _, value in group) for group in found]
    assert max(sizes) <= 5_000
    assert max(sizes[-5:]) <= 2_200


@pytest.mark.parametrize("size", [10, 1_000, 200_000, MAX_ROW - 80])
def test_a_group_fits_a_message(size):
    events = dict.fromkeys(range(2 * MAX_ROWS if size <= 1_000 else 5), ("mqtt", b"j" * 64, b"x" * size))
    found = list(of_events(events).groups())
    assert sum(name[0] == "event" for group in found for name, _ in group) == len(events)
    for group in found:
        assert len(group) <= MAX_ROWS
        assert len(group) == 1 or sum(len(value) for _, value in group) <= MAX_BYTES
        assert len(msgspec.msgpack.encode(Chunk("m" * 16, group))) + HEADERS < MAX_PAYLOAD


def test_a_group_of_small_rows_with_long_names_fits_a_message():
    exports = PersistedExports(1, {f"{n}".ljust(255, "\N{SNOWMAN}"): True for n in range(2 * MAX_ROWS)})
    written = Changes(1.0, Cursor(1), IndexState(), {}, {}, exports=exports)
    for group in whole(written).groups():
        assert len(msgspec.msgpack.encode(Chunk("m" * 16, group))) + MAX_BYTES + HEADERS < MAX_PAYLOAD


def test_a_row_that_is_too_large_is_left_out():
    events = {1: ("mqtt", b"j", b"x" * MAX_ROW), 2: ("mqtt", b"j", b"y")}
    (group,) = of_events(events).groups()
    assert [name for name, _ in group if name[0] == "event"] == [("event", "2")]


def test_the_largest_position_fits_a_row():
    """The largest ids and texts, and as many holes as a checkpoint keeps, each in a window of its own."""
    big = 1 << 62
    gaps = Gaps(head=big)
    for n in range(MAX_KEPT + 100):
        gaps.advance([big + 10 * n + 5, big + 10 * n + 10], float(n))
    markers = ResetMarkers()
    rows = [LogRow(big + n, "m" * HEAVY, big, attrs="a" * HEAVY, job_id="j" * 64) for n in range(10 * RECENT)]
    markers.add(rows)
    row = msgspec.structs.replace(rows[0], external_job_id="\N{SNOWMAN}" * 255)
    cursor = Cursor(gaps.head, row, gaps.kept(), (big, big, big, big), markers.packed())
    assert sum(len(window) for window in cursor.holes) == MAX_KEPT
    assert len(msgspec.msgpack.encode(cursor)) < 260_000


def chunk(mark, slot):
    return {name_of(slot, 0): msgspec.msgpack.encode(Chunk(mark, [(("job", "a"), b"new")]))}


@pytest.mark.parametrize("stored", [{}, chunk("another", 0), chunk("mark", 1)])
def test_a_chunk_that_is_missing_or_of_another_write_is_noticed(stored):
    with pytest.raises(Unusable, match="lacks a part"):
        replay({REDO: msgspec.msgpack.encode(Redo("mark", 0, 1))}, dict(stored))
