"""Hostile and faulty clients: no other client is affected, and each gets the reason."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any
from unittest.mock import AsyncMock, Mock, create_autospec

import aiohttp
import pytest
from aiohttp import web

from correlator.jobs.index import Index
from correlator.model.facts import Reading
from correlator.model.messages import CloseCode
from correlator.model.rows import JobRecord
from correlator.pipeline.pipeline import LocalHub
from correlator.pipeline.queries import LinesPage
from correlator.sinks.http import connections
from correlator.sinks.http.connections import Connections, HttpConnection, Peer
from correlator.sinks.http.floods import FLOOD_DELAY, Floods
from correlator.sinks.http.frames import MAX_FRAME
from correlator.sinks.http.websocket import WebsocketConnection
from correlator.sinks.streaming.limits import Limits
from correlator.web import files
from tests.support.background import in_background
from tests.support.certificates import Certificates
from tests.support.eventually import PATIENCE, eventually
from tests.support.http_listener import served
from tests.support.raw_http import connected, request, upgrade
from tests.support.storm_streams import Raw, frame, messages, raw

NOW = time.time_ns() // 1000
HELLO = {"type": "hello", "version": 1}


@pytest.fixture
def hub() -> LocalHub:
    index = Index()
    index.loading = False
    for n in range(2000):
        index.apply(
            [Reading(f"j{n}", index.advance_clock(), JobRecord(f"j{n}", status="running", started_at=NOW), ())], NOW
        )
    hub = LocalHub(index)
    hub.status.loading = False
    return hub


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    made = Certificates.create(tmp_path_factory.mktemp("certificates"))
    made.make("daemon", "IP:127.0.0.1")
    return made


async def closed_with(ws: aiohttp.ClientWebSocketResponse) -> int:
    async with asyncio.timeout(60):
        while (message := await ws.receive()).type is not aiohttp.WSMsgType.CLOSE:
            assert message.type is aiohttp.WSMsgType.TEXT, message
        return int(message.data)


async def messages_until(ws: aiohttp.ClientWebSocketResponse, kind: str) -> list[dict[str, Any]]:
    """All messages up to the first of a kind."""
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(60):
        while not any(m["type"] == kind for m in found):
            said = json.loads((await ws.receive()).data)
            found += said if isinstance(said, list) else [said]
    return found


class Rounds:
    """The rounds of the loop that `count` has seen."""

    number = 0

    async def count(self) -> None:
        while True:
            self.number += 1
            await asyncio.sleep(0)


async def test_pings_without_end_are_too_many(hub, client):
    async with served(hub) as url, client.ws_connect(f"{url}/ws", autoping=False) as ws:
        await ws.send_json(HELLO)
        await messages_until(ws, "welcome")
        for _ in range(3000):
            await ws.ping(b"x" * 125)
        async with asyncio.timeout(60):
            while (message := await ws.receive()).type is aiohttp.WSMsgType.PONG:
                pass
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 4429)


async def test_unfinished_frames_of_known_clients_are_bounded_and_one_that_sends_little_goes_on(hub):
    async def begin(ws: Raw) -> None:
        """Begin a frame of the largest size: all of it may come at once."""
        ws.writer.write(messages(HELLO))
        await ws.until(b"welcome")
        ws.writer.write(frame(bytes(MAX_FRAME))[:-1])
        await ws.until(CloseCode.TRY_LATER.to_bytes(2, "big"))

    async with served(hub) as url, contextlib.AsyncExitStack() as opened:
        clients = [await opened.enter_async_context(raw(url)) for _ in range(300)]
        begun = [await opened.enter_async_context(in_background(begin(ws))) for ws in clients[1:]]
        await eventually(lambda: any(one.done() and one.result() is None for one in begun))
        clients[0].writer.write(messages(HELLO, {"type": "ping"}))
        await clients[0].until(b"pong")
        assert sum(one.done() for one in begun) < 60, "256 such frames are 16 MiB"


async def test_frames_that_come_at_once_are_handled_a_few_in_each_round_of_the_loop(hub, client, monkeypatch):
    rounds, pongs = Rounds(), Counter[int]()
    monkeypatch.setattr(WebsocketConnection, "pong", lambda *_: pongs.update([rounds.number]))
    async with served(hub) as url, in_background(rounds.count()):
        for _ in range(4):
            async with raw(url) as ws:
                ws.writer.write(messages(HELLO) + 200 * frame(b"", 9))
                await eventually(lambda: pongs.total() == 200)
                assert max(pongs.values()) <= 5
                pongs.clear()


async def test_a_websocket_whose_pieces_wait_behind_what_others_send_gets_them_in_their_order(hub, monkeypatch):
    """Its handshake and its first frames come one after the other, while hundreds of requests wait to be parsed."""
    monkeypatch.setattr(connections, "PARSED_AT_ONCE", 1)
    crowded = b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"a%d:b\r\n" % n for n in range(110)) + b"\r\n"
    async with served(hub) as url, contextlib.AsyncExitStack() as opened:
        port = int(url.rpartition(":")[2])
        crowd = [await opened.enter_async_context(connected(port)) for _ in range(100)]
        ws_reader, ws_writer = await opened.enter_async_context(connected(port))
        for reader, writer in [*crowd, (ws_reader, ws_writer)]:
            writer.write(request("GET", "/health/live", "Connection: keep-alive"))
            await reader.readuntil(b"}")
        sent = messages(HELLO) + 20 * messages({"type": "ping"})
        pieces = [upgrade(), *(sent[at : at + 7] for at in range(0, len(sent), 7))]
        for n, piece in enumerate(pieces):
            for at in range(n, n + 10):
                crowd[at % len(crowd)][1].write(crowded)
            await asyncio.sleep(0)
            ws_writer.write(piece)
        async with asyncio.timeout(PATIENCE):
            for _ in range(20):
                await ws_reader.readuntil(b'"pong"')


async def test_connections_at_once_begin_a_few_in_each_round_and_a_probe_at_once(hub, monkeypatch):
    rounds, begun = Rounds(), Counter[int]()
    made = HttpConnection.connection_made

    def connection_made(self: HttpConnection, transport: asyncio.BaseTransport) -> None:
        begun.update([rounds.number])
        made(self, transport)

    monkeypatch.setattr(HttpConnection, "connection_made", connection_made)

    def connected(path: str) -> socket.socket:
        """A connection that waits in the kernel, with its request."""
        client = opened.enter_context(socket.create_connection(address))
        client.sendall(request("GET", path))
        client.setblocking(False)
        return client

    async with served(hub) as url:
        with contextlib.ExitStack() as opened:
            address = ("127.0.0.1", int(url.rpartition(":")[2]))
            crowd = [connected("/api/v1/resolve/nobody") for _ in range(300)]
            probe = connected("/health/live")
            async with in_background(rounds.count()):
                loop = asyncio.get_running_loop()
                assert (await loop.sock_recv(probe, 100)).startswith(b"HTTP/1.1 200")
                assert begun.total() < len(crowd) // 2
                await eventually(lambda: begun.total() == len(crowd) + 1)
                assert max(begun.values()) <= 4  # the probe besides the others


async def test_first_bytes_and_ends_that_come_at_once_are_noticed_a_few_in_each_round(hub, monkeypatch):
    rounds, spoke, ended = Rounds(), Counter[int](), Counter[int]()
    asks, lost = Connections.asks, web.RequestHandler.connection_lost

    def noted_asks(self: Connections, peer: Peer) -> None:
        spoke.update([rounds.number])
        asks(self, peer)

    def noted_lost(self: web.RequestHandler, exc: BaseException | None) -> None:
        ended.update([rounds.number])
        lost(self, exc)

    monkeypatch.setattr(Connections, "asks", noted_asks)
    monkeypatch.setattr(web.RequestHandler, "connection_lost", noted_lost)

    async with served(hub) as url, in_background(rounds.count()):
        clients = [socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) for _ in range(300)]
        await eventually(lambda: hub.readiness["connections"]()["open"] == len(clients))
        for client in clients:
            client.sendall(b"GET /api/v1/resolve/nobody HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await eventually(lambda: spoke.total() == len(clients))
        assert max(spoke.values()) <= 32
        await eventually(lambda: all(client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) for client in clients))
        for client in clients:
            client.close()
        await eventually(lambda: ended.total() == len(clients))
        assert max(ended.values()) <= 16


class TlsClient:
    """A TLS client over a bare socket. It sends its first message at once, and the next one in `answer`."""

    def __init__(self, url: str, context: ssl.SSLContext, address: str = "127.0.0.1") -> None:
        self._received, self._sent = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._received, self._sent, server_hostname="127.0.0.1")
        with pytest.raises(ssl.SSLWantReadError):
            self._tls.do_handshake()
        port = int(url.rpartition(":")[2])
        self.socket = socket.create_connection(("127.0.0.1", port), source_address=(address, 0))
        self.socket.sendall(self._sent.read())
        self.socket.setblocking(False)

    def has_begun(self) -> bool:
        """True if the server has answered its first message."""
        with contextlib.suppress(BlockingIOError):
            return bool(self.socket.recv(1, socket.MSG_PEEK))
        return False

    def has_ended(self) -> bool:
        """True if the server has closed the connection. What it has sent is dropped."""
        with contextlib.suppress(BlockingIOError):
            try:
                while self.socket.recv(1 << 16):
                    pass
            except ConnectionError:
                pass
            return True
        return False

    async def answer(self) -> None:
        self._received.write(self.socket.recv(1 << 16))
        self._tls.do_handshake()
        await asyncio.get_running_loop().sock_sendall(self.socket, self._sent.read())


async def test_three_tls_handshakes_are_under_way_and_the_next_begins_when_one_ends(hub, certificates):
    async with served(hub, tls=certificates.server("daemon"), handshake_turn=PATIENCE) as url:
        clients = [TlsClient(url, certificates.client()) for _ in range(12)]
        waiting = list(clients)
        while len(waiting) > 3:
            await eventually(lambda: sum(client.has_begun() for client in waiting) >= 3)
            for _ in range(20):
                await asyncio.sleep(0)
            first, *more = [client for client in waiting if client.has_begun()]
            assert len(more) == 2
            waiting.remove(first)
            await first.answer()
        for client in clients:
            client.socket.close()


async def test_handshakes_of_many_addresses_that_go_no_further_delay_another_one_little(hub, certificates):
    listener = {"tls": certificates.server("daemon"), "handshake_turn": 1.0, "full_turns": 1}
    async with served(hub, **listener) as url, contextlib.AsyncExitStack() as opened:
        addresses = [*(f"127.0.7.{n}" for n in range(1, 101)), "127.0.0.1"]
        clients = [TlsClient(url, certificates.client(), address) for address in addresses]
        for client in clients:
            opened.callback(client.socket.close)
        await eventually(clients[-1].has_begun, within=20.0)  # with full turns after 33 s


@pytest.mark.parametrize(
    ("sent", "tls"),
    [
        pytest.param(b"\x16\x03\x01 no handshake", True, id="no-tls"),
        pytest.param(b"\0 no request\r\n\r\n", False, id="no-http"),
        pytest.param(b"GET /nothing HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", False, id="no-such-path"),
        pytest.param(upgrade() + b"\xff" * 60, False, id="no-websocket-frame"),
        pytest.param(upgrade() + 20 * frame((1000).to_bytes(2, "big"), 8), False, id="close-frames"),
    ],
)
async def test_a_refused_connection_leaves_nothing_to_the_garbage_collector(hub, certificates, sent, tls):
    async def refused(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        with contextlib.suppress(ConnectionError, TimeoutError):
            await asyncio.wait_for(reader.read(2000), PATIENCE)
        writer.transport.abort()

    async with served(hub, tls=certificates.server("daemon") if tls else None) as url:
        gc.collect()
        gc.disable()
        try:
            await asyncio.gather(*(refused(int(url.rpartition(":")[2])) for _ in range(10)))
            await eventually(lambda: not any(type(each) is HttpConnection for each in gc.get_objects()))
        finally:
            gc.enable()


async def test_a_client_that_does_not_answer_in_its_tls_handshake_does_not_stop_others(hub, certificates):
    async with served(hub, tls=certificates.server("daemon")) as url:
        clients = [TlsClient(url, certificates.client()) for _ in range(12)]
        await eventually(lambda: all(client.has_begun() for client in clients))
        for client in clients:
            client.socket.close()


async def test_beyond_the_bound_the_oldest_tls_handshake_of_the_address_with_most_ends(hub, certificates):
    async with served(hub, tls=certificates.server("daemon"), handshakes=3) as url:
        far = TlsClient(url, certificates.client(), "127.0.0.2")
        await eventually(far.has_begun)
        clients: list[TlsClient] = []
        for _ in range(6):
            clients.append(TlsClient(url, certificates.client()))
            await eventually(clients[-1].has_begun)
        await eventually(lambda: all(client.has_ended() for client in clients[:4]))
        for client in (far, *clients[4:]):
            await client.answer()
            assert not client.has_ended()
        for client in (far, *clients):
            client.socket.close()


async def test_beyond_the_limit_requests_are_refused_without_aiohttp_and_probes_answered(hub, monkeypatch):
    made = create_autospec(HttpConnection.connection_made, side_effect=HttpConnection.connection_made)
    monkeypatch.setattr(HttpConnection, "connection_made", made)
    monkeypatch.setattr(connections, "resource", Mock(getrlimit=lambda _: (64, 64)))  # 24 of one address

    async def answer(client: socket.socket) -> bytes:
        found = b""
        with contextlib.suppress(ConnectionError):
            while more := await loop.sock_recv(client, 4096):
                found += more
        return found

    def connected(sent: bytes = b"") -> socket.socket:
        client = opened.enter_context(socket.create_connection(address))
        client.sendall(sent)
        client.setblocking(False)
        return client

    waits, probe = request("GET", "/api/v1/jobs/nobody?wait=60"), request("GET", "/health/live")
    loop = asyncio.get_running_loop()
    async with served(hub) as url, asyncio.timeout(PATIENCE):
        with contextlib.ExitStack() as opened:
            address = ("127.0.0.1", int(url.rpartition(":")[2]))
            kept = [connected(waits) for _ in range(24)]
            await eventually(lambda: made.call_count == len(kept))
            await asyncio.sleep(0)
            crowd = [connected(waits) for _ in range(300)]
            asked = connected(probe)
            rounds = Rounds()
            async with in_background(rounds.count()):
                assert (await answer(asked)).startswith(b"HTTP/1.1 200")
                assert rounds.number < 50, "many are refused in one round"
            head, _, body = (await answer(crowd[-1])).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert b"Retry-After: 2\r\n" in head
            assert f"Content-Length: {len(body)}\r\n".encode() in head
            assert json.loads(body)["status"] == 503

            late, asks = connected(), connected()
            await asyncio.sleep(0.05)  # They are accepted before they ask.
            late.sendall(waits)
            asks.sendall(request("HEAD", "/health/live"))
            assert (await answer(late)).startswith(b"HTTP/1.1 503")
            assert (await answer(asks)).startswith(b"HTTP/1.1 200")
            assert made.call_count == len(kept) + 2, "the two probes"


async def test_an_address_that_reads_logs_slowly_leaves_those_of_others_their_share(hub, client, monkeypatch):
    reading, released = 0, asyncio.Event()

    async def lines(*_: Any, **__: Any) -> LinesPage:
        nonlocal reading
        reading += 1
        await released.wait()
        return LinesPage(())

    async def read_by(requests: int) -> None:
        await eventually(lambda: reading == requests)

    monkeypatch.setattr(hub, "ask", lines)

    async def asked(address: int) -> int:
        headers = {"X-Forwarded-For": f"192.0.2.{address}"}
        async with client.get(f"{url}/api/v1/jobs/j0/log", headers=headers) as response:
            await response.read()
            return int(response.status)

    async with served(hub, proxies=("127.0.0.1",)) as url, asyncio.TaskGroup() as tasks:
        sent = []
        for address in range(4):
            sent += [tasks.create_task(asked(address)) for _ in range(4)]
            await read_by(len(sent))
            assert await asked(address) == (429 if address < 3 else 503)
        released.set()
    assert {one.result() for one in sent} == {200}


async def test_what_a_client_sends_after_its_close_frame_is_hardly_read(hub, client, monkeypatch):
    queues: list[CountedFrames] = []
    begin = WebsocketConnection.__init__

    def counted(connection: WebsocketConnection, transport: Any, address: str, ws: Any, *more: Any) -> None:
        queues.append(CountedFrames(ws._reader))
        ws._reader = queues[-1]
        begin(connection, transport, address, ws, *more)

    monkeypatch.setattr(WebsocketConnection, "__init__", counted)
    async with served(hub) as url, raw(url) as ws:
        ws.writer.write(messages(HELLO))
        await ws.until(b"welcome")
        ws.writer.write(30_000 * frame(b"", 9))
        assert (4429).to_bytes(2, "big") in await ws.until((4429).to_bytes(2, "big"))
        with contextlib.suppress(ConnectionError):
            while await ws.reader.read(1 << 16):
                pass
    assert queues[0].read_frames < 5_000


class CountedFrames:
    """The frames of a connection, counted when they are read, by whomever."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self.read_frames = 0

    async def read(self) -> Any:
        self.read_frames += 1
        return await self._queue.read()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)


async def test_a_client_that_sent_too_much_waits_before_it_is_served_again(hub, client):
    async with served(hub) as url:
        async with raw(url) as ws:
            ws.writer.write(messages(HELLO) + 2_000 * frame(b"", 9))
            await ws.until((4429).to_bytes(2, "big"))
        began = time.monotonic()
        async with raw(url):
            assert time.monotonic() - began > FLOOD_DELAY / 2


async def test_behind_a_trusted_proxy_only_the_client_that_sent_too_much_waits(hub, client, monkeypatch):
    delays: list[tuple[str, bool]] = []
    delay = Floods.delay

    def noted(self: Floods, address: str) -> float:
        found = delay(self, address)
        delays.append((address, found > 0))
        return found

    monkeypatch.setattr(Floods, "delay", noted)
    async with served(hub, proxies=("127.0.0.1",)) as url:
        for address in ("10.0.0.1", "10.0.0.2", "10.0.0.1"):
            headers = {"X-Forwarded-For": address}
            async with client.ws_connect(f"{url}/ws", autoping=False, headers=headers) as ws:
                await ws.send_json(HELLO)
                for _ in range(15 if len(delays) == 1 else 1):
                    await ws.send_json([{"type": "ping"}] * 100)
                if len(delays) == 1:
                    assert await closed_with(ws) == 4429
    assert delays == [("10.0.0.1", False), ("10.0.0.2", False), ("10.0.0.1", True)]


async def test_behind_a_trusted_proxy_a_client_with_long_requests_takes_its_own_part_of_memory(hub):
    wide = [f"Cookie: {'😀'.encode().decode('latin-1')}{'x' * 7_600}" for _ in range(4)]
    async with served(hub, tokens=("t" * 32,), proxies=("127.0.0.1",)) as url, contextlib.AsyncExitStack() as opened:

        async def status(address: str) -> bytes:
            """Of a websocket that stays without a hello."""
            port = int(url.rpartition(":")[2])
            reader, writer = await opened.enter_async_context(connected(port))
            writer.write(upgrade("/ws", f"X-Forwarded-For: {address}", *wide))
            return (await reader.readline()).split()[1]

        found = [await status("192.0.2.1") for _ in range(110)]
        assert Counter(found).keys() == {b"101", b"429"}
        assert 90 < found.count(b"101") < 97, "about 180 kB each, of 16 MiB"
        assert await status("192.0.2.2") == b"101"
        await opened.aclose()

        async def is_admitted() -> bool:
            return await status("192.0.2.1") == b"101"

        await eventually(is_admitted)  # what has ended counts no longer


SAID = {"say": json.dumps([HELLO, {"type": "subscribe", "id": 7, "jobs": ["j1"]}])}


async def test_messages_in_the_address_are_handled_as_a_first_frame(hub, client):
    async with served(hub) as url:
        async with client.ws_connect(f"{url}/ws", params=SAID) as ws:
            found = await messages_until(ws, "synced")
            assert [m["type"] for m in found if m["type"] != "status"] == ["welcome", "snapshot", "synced"]
        async with client.ws_connect(f"{url}/ws", params={"say": "[{"}) as ws:
            await ws.send_json(HELLO)
            assert [m["type"] for m in await messages_until(ws, "welcome")] == ["error", "welcome"]


@pytest.mark.parametrize(
    ("tokens", "hello"), [(("secret",), {}), (("secret",), {"token": "secret"}), ((), {"token": "secret"})]
)
async def test_messages_in_the_address_need_a_token_and_may_have_none_of_their_own(hub, client, tokens, hello):
    said = {"say": json.dumps([HELLO | hello])}
    async with served(hub, tokens=tokens) as url, client.ws_connect(f"{url}/ws", params=said) as ws:
        assert await closed_with(ws) == CloseCode.UNAUTHORISED


async def test_a_restart_disconnects_a_client_without_hello_too(hub, client):
    async with served(hub) as url:
        ws = await client.ws_connect(f"{url}/ws")
    assert await closed_with(ws) == 1012


async def test_a_waiting_request_gets_503_at_a_restart(hub, client):
    async with served(hub) as url:
        waiting = asyncio.create_task(client.get(f"{url}/api/v1/jobs/nobody?wait=30"))
        await eventually(lambda: hub.watchers["waiting"]() == 1)
    response = await waiting
    assert (response.status, response.content_type) == (503, "application/problem+json")


async def test_a_ticket_makes_no_ticket(hub, client):
    async with served(hub, tokens=("secret",)) as url:
        bearer = {"Authorization": "Bearer secret"}
        tickets = f"{url}/api/v1/ticket"
        async with client.post(tickets, headers=bearer) as response:
            ticket = (await response.json())["ticket"]
        async with client.post(tickets, params={"ticket": ticket}) as response:
            assert response.status == 401
        async with client.get(f"{url}/api/v1/jobs", params={"ticket": ticket}) as response:
            assert response.status == 200


async def test_a_page_of_a_listed_origin_may_ask_with_headers_everywhere(hub, client, monkeypatch):
    monkeypatch.setattr(hub, "ask", AsyncMock(return_value=LinesPage(())))
    async with served(hub, tokens=("secret",), origins=("http://gui",)) as url:
        headers = {"Origin": "http://gui", "Access-Control-Request-Method": "GET"}
        for path in ("/health/ready", "/", "/api/v1/jobs", "/metrics", "/api/v1/jobs/j0/log"):
            async with client.options(url + path, headers=headers) as response:
                assert response.status == 204
                allowed_headers = response.headers["Access-Control-Allow-Headers"].split(", ")
                assert {"Authorization", "Last-Event-ID"} <= set(allowed_headers)
            async with client.options(url + path, headers={**headers, "Origin": "http://other"}) as response:
                assert "Access-Control-Allow-Origin" not in response.headers
            for origin, allowed in (
                ({}, None),
                ({"Origin": "http://gui"}, "http://gui"),
                ({"Origin": "http://o"}, None),
            ):
                foreign = allowed is None and bool(origin) and path not in ("/health/ready", "/")
                async with client.get(url + path, headers={"Authorization": "Bearer secret", **origin}) as response:
                    assert response.status == (403 if foreign else 200)
                    assert response.headers.get("Access-Control-Allow-Origin") == allowed
                    assert "Origin" in response.headers.getall("Vary"), "a cache must not mix the answers of origins"
                    exposed = response.headers.get("Access-Control-Expose-Headers", "")
                    assert ("ETag" in exposed and "Retry-After" in exposed) is (allowed is not None)


@pytest.mark.parametrize("origins", [(), ("http://gui",)], ids=["none-listed", "one-listed"])
async def test_every_page_may_load_the_browser_client_and_nothing_else(hub, client, origins):
    async with served(hub, tokens=("secret",), origins=origins) as url:
        open_to_all = set()
        for path in (
            *files(),
            "/health/live",
            "/health/ready",
            "/api/v1/jobs",
            "/metrics",
            "/nothing",
            "/progress.js/",
        ):
            for headers in ({"Origin": "http://o"}, {"Origin": "null"}, {"Origin": "http://o", "If-None-Match": "*"}):
                async with client.get(url + path, headers={"Authorization": "Bearer secret", **headers}) as response:
                    allowed = response.headers.getall("Access-Control-Allow-Origin", [])
                    assert allowed in ([], ["*"])
                    assert "Access-Control-Allow-Credentials" not in response.headers
                    if allowed:
                        open_to_all.add(path)
        assert open_to_all == {f"/{name}.{kind}" for name in ("client", "progress", "react") for kind in ("js", "d.ts")}
        for path in open_to_all:
            async with client.get(url + path, headers={"Origin": "http://gui"}) as response:
                assert response.headers.getall("Access-Control-Allow-Origin") == ["*"], "a browser refuses two"


async def test_metadata_of_any_depth_disconnects_no_client(hub, client):
    async with served(hub) as url, client.ws_connect(f"{url}/ws") as ws:
        await ws.send_json([HELLO, {"type": "subscribe", "id": 1, "jobs": ["j1"]}])
        await messages_until(ws, "synced")
        for error in ("one", "two"):
            deep = '{"a":' * 1000 + "1" + "}" * 1000
            record = JobRecord("j1", status="running", started_at=NOW, metadata=deep, error_message=error)
            hub.publish(hub.index.apply([Reading("j1", hub.index.advance_clock(), record, ())], NOW))
            delta = (await messages_until(ws, "delta"))[-1]
            assert delta["set"]["error"] == error


class Endless:
    """An archive whose searches do not end."""

    def __init__(self) -> None:
        self.running = self.most = 0

    async def find(self, name: str, advance_clock: Callable[[], int]) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.Event().wait()
        finally:
            self.running -= 1


async def test_ids_that_websockets_ask_for_use_the_share_of_the_address_as_requests_do(client):
    archive: Any = Endless()
    hub = LocalHub(Index(), archive)
    hub.index.loading = hub.status.loading = False
    async with served(hub) as url, client.ws_connect(f"{url}/ws") as ws, client.ws_connect(f"{url}/ws") as other:
        await ws.send_json([HELLO, *({"type": "get", "job_id": f"nobody-{n}"} for n in range(20))])
        await other.send_json([HELLO, {"type": "subscribe", "id": 1, "jobs": ["nobody"]}])
        await eventually(lambda: archive.running == 4)
        asking = [asyncio.create_task(client.get(f"{url}/api/v1/failover/nobody-{n}/status")) for n in range(20)]
        await messages_until(other, "synced")  # which waits for its turn for a bounded time
        assert archive.most == 4
        for request in asking:
            request.cancel()


async def test_pages_of_a_log_use_the_share_of_the_address(client):
    archive: Any = Endless()
    archive.ask = archive.lines = lambda *given, **more: archive.find("", int)
    hub = LocalHub(Index(), archive)
    hub.index.loading = hub.status.loading = False
    hub.publish(hub.index.apply([Reading("j", 1, JobRecord("j", status="running", started_at=NOW), ())], NOW))
    async with served(hub) as url:
        asking = [asyncio.create_task(client.get(f"{url}/api/v1/jobs/j/events")) for n in range(20)]
        await eventually(lambda: archive.running == 4)
        async with client.get(f"{url}/api/v1/jobs/j") as response:
            assert response.status == 200
        assert archive.most == 4
        for request in asking:
            request.cancel()


async def test_event_streams_keep_the_bound_of_ids_as_websockets_do(hub, client):
    async with served(hub, limits=Limits(max_ids=3)) as url, client.get(f"{url}/api/v1/stream?id=a&id=b") as one:
        assert one.status == 200
        async with client.get(f"{url}/api/v1/stream?id=c&id=d") as two:
            assert (two.status, "too many IDs" in await two.text()) == (503, True)


async def test_an_address_that_flooded_holds_few_handshakes(hub, client):
    async with served(hub, limits=Limits(max_delayed_handshakes=3)) as url, contextlib.AsyncExitStack() as opened:
        port = int(url.rpartition(":")[2])
        begun = [await opened.enter_async_context(connected(port)) for _ in range(5)]
        async with client.ws_connect(f"{url}/ws") as ws:
            await ws.send_json(HELLO)
            for _ in range(30):
                await ws.send_str(json.dumps([{"type": "ping"}] * 100))
            while not ws.closed:
                await ws.receive(timeout=PATIENCE)
            assert ws.close_code == CloseCode.TOO_MANY
        for _, writer in begun:  # they come at once, so that none has waited for long when the last one comes
            writer.write(upgrade())
        async with asyncio.timeout(PATIENCE):
            lines = await asyncio.gather(*(reader.readline() for reader, _ in begun))
        assert sorted(line.split()[1] for line in lines) == [b"101"] * 3 + [b"429"] * 2


async def test_searches_end_when_the_clients_that_asked_for_them_have_gone(client):
    archive: Any = Endless()
    async with served(LocalHub(Index(), archive)) as url:
        asking = [asyncio.create_task(client.get(f"{url}/api/v1/jobs/nobody-{n}")) for n in range(40)]
        await eventually(lambda: archive.running > 0)  # the others wait for their turn
        for request in asking:
            request.cancel()
        await eventually(lambda: archive.running == 0)


@pytest.mark.parametrize("proxies", [(), ("127.0.0.1",)], ids=["no-proxy-is-trusted", "a-trusted-proxy"])
async def test_a_site_of_five_hundred_clients_that_share_an_address_is_served(hub, proxies):
    site = {"X-Forwarded-For": "192.0.2.1"}
    hello = json.dumps(HELLO)[:-1] + " " * 24_000 + "}"  # as much as client.js sends before the welcome
    async with contextlib.AsyncExitStack() as opened:
        url = await opened.enter_async_context(served(hub, proxies=proxies))
        session = await opened.enter_async_context(
            aiohttp.ClientSession(headers=site, connector=aiohttp.TCPConnector(limit=0))
        )

        async def one() -> None:
            ws = await opened.enter_async_context(session.ws_connect(f"{url}/ws"))
            await ws.send_str(hello)
            await messages_until(ws, "welcome")

        await asyncio.gather(*(one() for _ in range(500)))


async def test_clients_without_a_hello_behind_a_trusted_proxy_use_the_share_of_their_own_address(hub, client):
    part = frame(b"x" * 60_000)[:-1]

    async def hello_from(url: str, address: str) -> Any:
        async with client.ws_connect(f"{url}/ws", headers={"X-Forwarded-For": address}) as ws:
            await ws.send_json(HELLO)
            async with asyncio.timeout(PATIENCE):
                return await ws.receive()

    async with contextlib.AsyncExitStack() as opened:
        url = await opened.enter_async_context(served(hub, proxies=("127.0.0.1",)))
        for _ in range(300):
            reader, writer = await opened.enter_async_context(connected(int(url.rpartition(":")[2])))
            writer.write(upgrade("/ws", "X-Forwarded-For: 192.0.2.1"))
            await reader.readuntil(b"\r\n\r\n")
            writer.write(part)

        async def is_full() -> Any:
            return (await hello_from(url, "192.0.2.1")).data == CloseCode.TRY_LATER

        await eventually(is_full)
        assert "welcome" in str((await hello_from(url, "192.0.2.2")).data)
