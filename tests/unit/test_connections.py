"""Connections of clients, without sockets: when each of them is closed, and when it is not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from itertools import chain
from typing import Any

import orjson
import pytest
from aiohttp import WSMessage, WSMsgType
from aiohttp.test_utils import make_mocked_request

from correlator.errors import BadRequest
from correlator.jobs.index import Index
from correlator.model.messages import CloseCode, Get
from correlator.ops import metrics
from correlator.pipeline.pipeline import LocalHub
from correlator.pipeline.queries import JobQuery
from correlator.sinks.http.access import Access, Rules
from correlator.sinks.http.frames import PING, close_frame
from correlator.sinks.http.grants import ANYBODY
from correlator.sinks.http.sse import EventStreamClient, EventStreams, _wanted, with_positions
from correlator.sinks.http.websocket import WebsocketConnection, Websockets
from correlator.sinks.streaming.limits import Limits
from correlator.sinks.streaming.messages import Message
from correlator.sinks.streaming.sessions import Streams
from correlator.sinks.streaming.subscriptions import Filter
from correlator.sinks.turns import Refused
from tests.support.grants import granted
from tests.support.metric_values import value


class Transport:
    """Takes everything at once."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def close(self) -> None: ...

    def abort(self) -> None: ...


def access(*tokens: str) -> Access:
    return Access(listen_host="here", clock=time.monotonic, rules=Rules(granted(*tokens)))


async def test_a_token_revoked_while_an_event_stream_begins_ends_it():
    hub, rules, transport = LocalHub(Index()), access("revoked"), Transport()
    streams = Streams(hub)
    events = EventStreams(hub, rules, streams)

    def framing(messages: Sequence[Message], /) -> bytes:
        return b"".join(b"data: %b\n\n" % one.body for one in messages)

    reader = EventStreamClient(transport, "1.2.3.4", framing, *granted("revoked"))  # type: ignore[arg-type]
    rules.change(Rules(granted("other")))  # after the token was checked, before the stream has joined
    await events._begin(reader, Filter(JobQuery(), None), None, "")
    assert reader.over.is_set()
    data = [orjson.loads(line[6:]) for line in transport.written.splitlines() if line.startswith(b"data: ")]
    assert [m["type"] for m in data] == ["welcome", "bye"]
    assert data[-1]["code"] == CloseCode.UNAUTHORISED


async def test_a_client_whose_frames_wait_for_its_gets_does_not_count_as_gone():
    hub, rules, ws = LocalHub(Index()), access(), None
    limits = Limits()
    streams = Streams(hub, limits)
    reader = WebsocketConnection(Transport(), "1.2.3.4", ws, streams)  # type: ignore[arg-type]
    sockets: Any = Websockets(hub, rules, streams)
    reader.ready = True
    streams.add(reader)
    for _ in range(32):
        await reader.gets.acquire()
    answering = asyncio.create_task(sockets._handle_message(reader, Get("x")))
    await asyncio.sleep(0)
    assert not answering.done(), "a connection has 32 of them at once"
    reader.received_at -= limits.ping_seconds + limits.pong_within + 2
    reader.pinged_at = reader.received_at + limits.ping_seconds + 1
    reader.gets.release()
    await answering
    assert reader.ping(time.monotonic())


def test_a_client_is_gone_that_has_not_answered_a_ping_in_time_and_only_then():
    limits, transport = Limits(), Transport()
    client = WebsocketConnection(transport, "1.2.3.4", None, Streams(LocalHub(Index()), limits))  # type: ignore[arg-type]
    client.received_at = client.pinged_at = 0.0
    asked, late = limits.ping_seconds + 0.1, limits.ping_seconds + 0.2 + limits.pong_within
    assert client.ping(limits.ping_seconds)
    assert not transport.written
    assert client.ping(asked)
    assert transport.written == PING
    assert client.ping(late - 0.2)
    assert not client.ping(late)
    client.received_at = asked + 1
    assert client.ping(late)


class ClosedByPeer:
    """A websocket whose peer has answered the close frame."""

    async def receive(self) -> Any:
        return WSMessage(WSMsgType.CLOSE, 1013, "")


async def test_a_client_whose_frame_gets_no_turn_is_closed_with_1013_and_counted(monkeypatch):
    async def refused(*_: object) -> None:
        raise Refused("too many messages wait: repeat the request later", all_clients=True)

    hub, limits, transport = LocalHub(Index()), Limits(), Transport()
    streams = Streams(hub, limits)
    sockets: Any = Websockets(hub, access(), streams)
    monkeypatch.setattr(sockets, "_read", refused)
    client = WebsocketConnection(transport, "1.2.3.4", ClosedByPeer(), streams)  # type: ignore[arg-type]
    counted = metrics.CLIENTS_CLOSED.labels("1013")
    before = value(counted)
    await sockets._serve(None, client)
    assert transport.written == close_frame(1013, b"too many messages wait: repeat the request later")
    assert value(counted) == before + 1
    client.close()
    assert client.closing is not None
    await client.closing


async def test_the_connections_of_a_revoked_token_are_closed_some_at_a_time():
    hub, rules, (kept, revoked) = LocalHub(Index()), access("kept", "revoked"), granted("kept", "revoked")
    streams = Streams(hub)
    sockets, events = Websockets(hub, rules, streams), EventStreams(hub, rules, streams)
    grants = [kept if n % 10 == 0 else revoked for n in range(1050)]
    clients = [WebsocketConnection(Transport(), "1.2.3.4", None, streams) for _ in grants]  # type: ignore[arg-type]
    transports = [Transport() for _ in grants]
    readers = [
        EventStreamClient(transport, "1.2.3.4", with_positions(hub), grant)  # type: ignore[arg-type]
        for transport, grant in zip(transports, grants, strict=True)
    ]
    for client, grant in zip(clients, grants, strict=True):
        client.ready, client.grant = True, grant
        sockets._open[client] = None
        streams.add(client)
    for reader in readers:
        streams.add(reader)
    rules.change(Rules([kept]))

    def closed() -> list[bool]:
        return [c.closing is not None for c in clients] + [r.over.is_set() for r in readers]

    at_once, before = [], 0
    for _ in chain(sockets.close_revoked(), events.close_revoked(), [None]):
        at_once.append(sum(closed()) - before)
        before = sum(closed())
        for reader in readers:
            reader.write(b"a change")
    assert closed() == [grant is revoked for grant in grants] * 2
    assert max(at_once) <= 150, "a step of each may meet"
    ended = [transport.written for transport, grant in zip(transports, grants, strict=True) if grant is revoked]
    assert {b"a change" in written.rpartition(b'"bye"')[2] for written in ended} == {False}
    assert streams.clients() == {"websocket": 105, "sse": 1050}


# -- Event streams: the bytes of their events


def test_a_position_is_sent_with_the_last_message_that_it_covers_and_an_event_has_a_name():
    framing = with_positions(LocalHub(Index(), epoch="e"))
    reader = EventStreamClient(Transport(), "1.2.3.4", framing, ANYBODY)  # type: ignore[arg-type]
    late = Message(b"2", 7, is_event=True)
    assert reader.framing([Message(b"1", 7), late]) == b"data: 1\n\nevent: event\ndata: 2\n\n"  # no position is true
    reader.synced()
    assert reader.framing is framing
    messages = [Message(b"1", 7), late, Message(b"3"), Message(b"4", 8)]
    assert framing(messages) == (b"data: 1\n\nid: e:7\nevent: event\ndata: 2\n\ndata: 3\n\nid: e:8\ndata: 4\n\n")


def test_an_empty_id_beside_another_one_is_refused():
    for query in ("id=&id=", "id=&id=a"):
        with pytest.raises(BadRequest, match="1 to 255 characters"):
            _wanted(make_mocked_request("GET", f"/api/v1/stream?{query}"))
