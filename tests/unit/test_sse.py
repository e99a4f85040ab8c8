"""Event streams: the bytes of their events."""

import pytest
from aiohttp.test_utils import make_mocked_request

from correlator.errors import BadRequest
from correlator.jobs.index import Index
from correlator.pipeline.local_hub import LocalHub
from correlator.sinks.http.access import NO_TOKEN, Access
from correlator.sinks.http.sse import EventStreamClient, EventStreams, _position, _wanted
from correlator.sinks.streaming.messages import Message, Resume
from correlator.sinks.streaming.sessions import Streams


def streams() -> EventStreams:
    hub = LocalHub(Index(), epoch="e")
    return EventStreams(hub, Access(listen_host="localhost", clock=lambda: 0.0), Streams(hub))


def test_a_position_is_sent_with_the_last_message_that_it_covers():
    framing = streams()._framing
    reader = EventStreamClient(None, "1.2.3.4", framing, NO_TOKEN)
    assert reader.framing([Message(b"1", 7)]) == b"data: 1\n\n"  # its snapshot is not complete: no position is true
    reader.synced()
    assert reader.framing is framing
    messages = [Message(b"1", 7), Message(b"2", 7), Message(b"3"), Message(b"4", 8)]
    assert framing(messages) == b"data: 1\n\nid: e:7\ndata: 2\n\ndata: 3\n\nid: e:8\ndata: 4\n\n"


def test_an_event_has_the_name_event_and_all_other_messages_have_none():
    framing = streams()._framing
    late = Message(b"2", 7, is_event=True)
    assert framing([Message(b"1", 7), late]) == b"data: 1\n\nid: e:7\nevent: event\ndata: 2\n\n"
    reader = EventStreamClient(None, "1.2.3.4", framing, NO_TOKEN)
    assert reader.framing([late]) == b"event: event\ndata: 2\n\n"


def test_a_last_event_id_is_a_position_or_none():
    assert _position("abc:17") == Resume("abc", 17)
    assert [_position(t) for t in ("", "abc", ":1", "abc:", "abc:-1", "abc:1.5", "abc:٣", "abc:" + "9" * 20)] == [
        None
    ] * 8


def test_one_empty_id_selects_no_job_and_no_id_selects_all():
    def jobs(query: str) -> frozenset[str] | None:
        return _wanted(make_mocked_request("GET", f"/api/v1/stream?{query}"))[0].jobs

    assert [jobs(q) for q in ("", "id=", "id=&status=running", "id=a&id=b")] == [
        None,
        frozenset(),
        frozenset(),
        {"a", "b"},
    ]
    for query in ("id=&id=", "id=&id=a"):
        with pytest.raises(BadRequest, match="1 to 255 characters"):
            jobs(query)
