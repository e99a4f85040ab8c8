"""Event streams: the bytes of their events."""

from correlator.hub import Hub
from correlator.jobs.index import Index
from correlator.sinks.access import Access
from correlator.sinks.messages import Message
from correlator.sinks.sse import EventReader, EventStreams, _position
from correlator.sinks.stream import Resume, Streams


def streams() -> EventStreams:
    hub = Hub(Index(), epoch="e")
    return EventStreams(hub, Access(listen_host="localhost", clock=lambda: 0.0), Streams(hub))


def test_a_position_is_told_with_the_last_message_that_it_covers():
    framing = streams()._framing
    reader = EventReader(None, framing)
    assert reader.framing([Message(b"1", 7)]) == b"data: 1\n\n"  # its snapshot is not complete: no position is true
    reader.synced()
    assert reader.framing is framing
    messages = [Message(b"1", 7), Message(b"2", 7), Message(b"3"), Message(b"4", 8)]
    assert framing(messages) == b"data: 1\n\nid: e:7\ndata: 2\n\ndata: 3\n\nid: e:8\ndata: 4\n\n"


def test_a_last_event_id_is_a_position_or_none():
    assert _position("abc:17") == Resume("abc", 17)
    assert [_position(t) for t in ("", "abc", ":1", "abc:", "abc:-1", "abc:1.5", "abc:٣", "abc:" + "9" * 20)] == [
        None
    ] * 8
