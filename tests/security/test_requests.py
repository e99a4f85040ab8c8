"""What a client may send over HTTP and websocket, and where that ends: sizes, times, ambiguity, paths, headers."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import json
import resource
import time
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from yarl import URL

from correlator.jobs.index import Index
from correlator.model.document import MAX_ID
from correlator.pipeline.pipeline import LocalHub
from correlator.sinks.http.access import Access, Rules
from correlator.sinks.http.connections import MAX_FIELD, MAX_TARGET
from correlator.sinks.http.frames import MAX_FRAME
from correlator.sinks.http.grants import Denied
from correlator.sinks.http.server import Listener
from tests.support.appliance import Appliance
from tests.support.background import in_background
from tests.support.daemon import HELLO, Daemon
from tests.support.eventually import PATIENCE, eventually
from tests.support.grants import granted
from tests.support.http_listener import served
from tests.support.mariadb import Database
from tests.support.raw_http import connected, exchange, frame, get, receive, request, upgrade
from tests.support.small_appliance import TOKEN


@contextlib.asynccontextmanager
async def listener(
    readiness: Mapping[str, Callable[[], dict[str, Any]]] | None = None, **rules: Any
) -> AsyncIterator[int]:
    """The port of a listener in this process, without any job. `readiness`: its parts. `rules`: see `served`."""
    index = Index()
    index.loading = False
    hub = LocalHub(index)
    hub.status.loading = False
    hub.readiness.update(readiness or {})
    async with served(hub, **rules) as url:
        yield int(url.rpartition(":")[2])


@pytest.fixture
async def port() -> AsyncIterator[int]:
    async with listener(tokens=(TOKEN,)) as port:
        yield port


BEARER = f"Authorization: Bearer {TOKEN}"

# -- time


@pytest.mark.parametrize("first", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: "], ids=["nothing", "a-header"])
async def test_a_request_that_never_ends_is_disconnected(first):
    """Byte by byte, and not a byte at all: the time counts from the connection on."""
    index = Index()
    index.loading = False
    async with (
        served(LocalHub(index), request_within=0.6) as url,
        connected(int(url.rpartition(":")[2])) as (reader, writer),
    ):
        began = time.monotonic()
        writer.write(first)
        closed = asyncio.create_task(reader.read())
        while not closed.done() and time.monotonic() < began + PATIENCE:
            writer.write(b"x" * bool(first))
            await asyncio.wait({closed}, timeout=0.05)
        assert closed.done()
        assert time.monotonic() - began > 0.4


def test_that_time_is_longer_than_proxies_keep_their_connections():
    assert 60 < Listener("", 0).request_within <= 120


async def test_slow_connections_delay_no_other_request(port):
    slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(300)]
    for _, writer in slow:
        writer.write(b"GET / HTTP/1.1\r\nX: ")
    async with asyncio.timeout(Listener("", 0).request_within / 2):  # until then the slow ones are not sent away
        assert (await exchange(port, get("/health/live"))).status == 200
    for _, writer in slow:
        writer.transport.abort()


async def test_when_all_file_descriptors_are_in_use_it_waits_and_then_serves_again(small: Daemon):
    """Connections that do nothing, more than the process may have files: what it has open goes on."""
    async with small.socket(HELLO) as before:
        resource.prlimit(small.pid, resource.RLIMIT_NOFILE, (64, 64))
        idle = [await asyncio.open_connection("127.0.0.1", small.port) for _ in range(100)]
        assert len((await before.snapshot())[0]) == 6
        for _, writer in idle:
            writer.transport.abort()

        async def served() -> bool:
            return (await exchange(small.port, get("/health/live"))).status == 200

        await eventually(served)
        await before.say({"type": "ping"})
        await before.until("pong")
    assert await small.stop() == 0


# -- size


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (get("/" + "x" * 20_000), 414),
        (get("/api/v1/jobs?q=" + "x" * 20_000), 414),
        (get("/health/live", "X-Long: " + "x" * 20_000), 431),
        (get("/health/live", *(f"X-{n}: 1" for n in range(500))), 400),
        (b"x" * 200_000, 431),
        (get("/", *(f"X-{n}: {'x' * 400}" for n in range(100))), 431),
    ],
    ids=["path", "query", "header", "headers", "no-end", "long-headers"],
)
async def test_a_request_that_is_too_long_is_refused(port, sent, status):
    answer = await exchange(port, sent)
    assert (answer.status, answer.closed, answer.header("Server")) == (status, True, "correlator")


async def test_probes_that_come_together_are_answered_a_few_in_one_round_of_the_loop():
    """Without a token, whoever sends many of them on many connections would make everything else wait."""
    calls = most = 0

    def counted() -> dict[str, Any]:
        nonlocal calls
        calls += 1
        return {}

    async def watch_rounds() -> None:
        nonlocal calls, most
        while True:
            calls, most = 0, max(most, calls)
            await asyncio.sleep(0)

    async with (
        in_background(watch_rounds()),
        listener(readiness={"counted": counted}) as port,
        contextlib.AsyncExitStack() as open_ones,
    ):
        clients = [await open_ones.enter_async_context(connected(port)) for _ in range(200)]
        for _ in range(2):  # the first time, each connection begins in a turn of its own
            for _, writer in clients:
                writer.write(get("/health/ready", "Connection: keep-alive") * 3)
            for reader, _ in clients:
                answered = 0
                while answered < 3:
                    answered += (await reader.readuntil(b"\r\n\r\n")).count(b"HTTP/1.1 200")
    assert 0 < most <= 64, "32 in one round, which may begin between two counts"


async def test_a_client_that_sends_too_many_requests_at_once_writes_nothing_to_the_log(guarded: Daemon):
    """A request that was read before the refusal is not answered behind it."""
    before = guarded.log()
    requests = get("/health/live") * 20
    for _ in range(20):
        async with connected(guarded.port) as (_reader, writer):
            with contextlib.suppress(ConnectionError):
                for _ in range(150_000 // len(requests)):
                    writer.write(requests)
                    await writer.drain()
                    await asyncio.sleep(0)
    assert (await guarded.get("/health/live"))[0] == 200
    assert "Unhandled exception" not in guarded.log()[len(before) :]


async def test_a_body_is_neither_read_into_memory_nor_unpacked(small: Daemon):
    """Nothing here takes a body, so that no bomb in it goes off."""
    before = small.memory()
    head = request("POST", "/api/v1/ticket", f"Content-Length: {1 << 40}")
    async with connected(small.port) as (reader, writer):
        writer.write(head)
        answer = asyncio.ensure_future(receive(reader))  # The end of a connection drops what is not read by then.
        for _ in range(400):
            writer.write(b"x" * (1 << 16))
            try:
                async with asyncio.timeout(0.2):
                    await writer.drain()
            except (TimeoutError, ConnectionError):
                break
        assert (await answer).status in (200, 413)
    bomb = zlib.compress(b"\0" * (200 << 20), 9)
    sent = request("POST", "/api/v1/ticket", "Content-Encoding: deflate", f"Content-Length: {len(bomb)}", body=bomb)
    assert (await exchange(small.port, sent)).status in (200, 413)
    assert small.memory() - before < 10


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "unknown"])
@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_a_body_is_not_unpacked_so_one_that_could_not_be_makes_no_error(port, encoding, framing, caplog):
    """It is dropped, and the next request of the connection is answered."""
    body = b"this is not compressed"
    length = f"Content-Length: {len(body)}"
    if framing == "chunks":
        body, length = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body), "Transfer-Encoding: chunked"
    headers = (length, f"Content-Encoding: {encoding}", "Connection: keep-alive", BEARER)
    answer = await exchange(port, request("POST", "/api/v1/ticket", *headers, body=body) + get("/api/v1/jobs", BEARER))
    assert (answer.raw.count(b"HTTP/1.1 200 OK"), answer.closed) == (2, True)
    assert [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


async def test_frames_of_thousands_of_messages_before_hello_cost_next_to_no_memory(small: Daemon):
    """Each of them, decoded, is 15 MB: anybody could end the daemon with 160 connections."""
    most = b"[" + b",".join([b"1"] * ((MAX_FRAME - 2) // 2)) + b"]"
    before = small.memory()
    async with contextlib.AsyncExitStack() as opened:
        for _ in range(40):
            reader, writer = await opened.enter_async_context(connected(small.port))
            writer.write(upgrade())
            async with asyncio.timeout(PATIENCE):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(frame(most))
                await reader.readuntil(b"bad_request")
        assert small.memory() - before < 40
    async with connected(small.port) as (reader, writer):
        address = URL("/ws").with_query(say="[" + ",".join(["1"] * 3_500) + "]")
        writer.write(upgrade(str(address)))
        async with asyncio.timeout(PATIENCE):
            await reader.readuntil(b"bad_request")


# -- ambiguity


@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Content-Length: 5", "Content-Length: 6"),
        ("Content-Length: +5",),
        ("Content-Length: 5, 5",),
        ("Content-Length: -1",),
        ("Content-Length: 0x5",),
        ("Transfer-Encoding: xchunked",),
        ("Transfer-Encoding: chunked, identity",),
        ("Transfer-Encoding : chunked",),
        ("Transfer-Encoding:\x0bchunked",),
        ("X: a\r\n folded",),
        ("X: a\0b",),
        ("X: a\nTransfer-Encoding: chunked",),
        ("Host: evil.example",),
    ],
    ids=lambda lines: " + ".join(lines).encode("unicode_escape").decode(),
)
async def test_a_request_that_two_servers_could_read_differently_is_refused(port, lines):
    """And what would be the next request of one reading is no request (RFC 9112, 6.1 and 11.2)."""
    hidden = b"0\r\n\r\n" + get("/metrics", BEARER)
    answer = await exchange(port, request("POST", "/api/v1/ticket", BEARER, *lines, body=hidden))
    assert answer.statuses == [400]
    assert answer.closed


async def test_a_request_of_http_1_0_with_chunks_is_refused(port):
    """A proxy of that version passes the header on, and takes the chunks for the next request (RFC 9112, 6.1)."""
    sent = request("POST", "/api/v1/ticket", BEARER, "Transfer-Encoding: chunked", "Connection: keep-alive")
    answer = await exchange(port, sent.replace(b"HTTP/1.1", b"HTTP/1.0") + b"0\r\n\r\n" + get("/metrics", BEARER))
    assert (answer.statuses, answer.closed) == ([400], True)


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/api/v1/ticket", (), 401),
        ("http://rebound.example/api/v1/ticket", (BEARER,), 403),
        ("/nothing", (), 401),
        ("/api/v1/ticket", (BEARER,), 200),
    ],
)
@pytest.mark.parametrize("expected", ["100-continue", "\xff", "x" * 1_000])
async def test_no_client_is_told_to_send_a_body(port, path, headers, status, expected, caplog):
    """Nothing needs one; and before the checks, the answer would say which paths there are."""
    expects = (f"Expect: {expected}", "Content-Length: 5", "Connection: keep-alive")
    answer = await exchange(port, request("POST", path, *headers, *expects))
    assert (answer.statuses, answer.header("Connection")) == ([status], "close")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"CONNECT 127.0.0.1:443 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 401),
        (upgrade("/api/v1/jobs", BEARER), 200),
        (upgrade("/nothing", BEARER), 404),
    ],
    ids=["connect", "upgrade", "upgrade-of-nothing"],
)
async def test_a_connection_ends_after_a_request_whose_client_may_go_on_in_another_protocol(port, sent, status):
    answer = await exchange(port, sent)
    assert (answer.status, answer.closed) == (status, True)


# -- paths


@pytest.mark.parametrize("path", ["/" * 8_000, "/a" * 4_000, "/api/v1/jobs" + "/" * 8_000], ids=["empty", "a", "job"])
async def test_a_path_of_many_segments_takes_no_longer_to_refuse_than_another(port, path):
    async def seconds(sent: str) -> float:
        began = time.process_time()
        for _ in range(10):
            assert (await exchange(port, get(sent, BEARER), quiet=PATIENCE)).status == 404
        return time.process_time() - began

    other = min([await seconds("/" + "x" * 8_000) for _ in range(3)])
    assert min([await seconds(path) for _ in range(3)]) < 4 * other


async def test_an_id_may_be_of_slashes_only(port):
    answer = await exchange(port, get("/api/v1/jobs/" + "/" * MAX_ID, BEARER))
    assert (answer.status, b"no job is known" in answer.body) == (404, True)


NO_PATHS = (
    "/../../../../etc/passwd", "/..%2f..%2f..%2fetc%2fpasswd", "/page/../../../../etc/passwd", "//etc/passwd",
    "/page/%2e%2e%2f%2e%2e%2fconfig.py", "/etc/passwd%00.js", "/client.js/../../config.py", "/client.js%00",
    "/client/correlator.js", "/page-*.js", "/page-0123456789abcdef012.js", "/page-0123456789abcdef0123.py",
    "/..\\..\\etc\\passwd", "/api/v1/jobs/..%2f..%2f..%2fetc%2fpasswd", "file:///etc/passwd",
)  # fmt: skip


async def test_no_path_leads_to_a_file(port):
    for path in NO_PATHS:
        answer = await exchange(port, get(path, BEARER))
        assert answer.status in (400, 404), path
        assert b"root:" not in answer.raw
        assert b"import " not in answer.raw


async def test_no_text_of_a_request_becomes_a_header_of_its_answer(port):
    evil = quote("a\r\nSet-Cookie: a=b\r\n\r\n<script>", safe="")
    for where in ("jobs/{}", "jobs/{}/events", "resolve/{}", "operations/-/{}", "jobs?status={}", "jobs?{}=1"):
        answer = await exchange(port, get("/api/v1/" + where.format(evil), BEARER))
        assert answer.status in (400, 404), where
        assert answer.header("Set-Cookie") is None
        assert answer.header("Content-Type") == "application/problem+json"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (get("/"), 200),
        (get("/client.js"), 200),
        (get("/page-0123456789abcdef0123.js"), 200),
        (get("/health/live"), 200),
        (get("/health/ready"), 200),
        (get("/nothing", BEARER), 404),
        (get("/api/v1/jobs"), 401),
        (get("/api/v1/jobs", BEARER), 200),
        (get("/api/v1/jobs?limit=x", BEARER), 400),
        (request("DELETE", "/api/v1/jobs", BEARER), 405),
        (request("POST", "/api/v1/ticket", BEARER, "Origin: https://evil.example"), 403),
        (get("/metrics", BEARER), 200),
        (get("/api/v1/stream", BEARER), 200),
        (upgrade("/ws"), 101),
    ],
    ids=lambda v: v.split(b" HTTP")[0].decode() if isinstance(v, bytes) else str(v),
)
async def test_every_answer_says_what_a_browser_may_do_with_it(port, sent, status):
    answer = await exchange(port, sent)
    assert answer.status == status
    assert answer.header("Server") == "correlator", "the versions of the libraries are nobody's business"
    assert answer.header("Cache-Control") is not None
    assert answer.header("X-Content-Type-Options") == "nosniff"
    assert answer.header("Referrer-Policy") == "no-referrer"
    assert answer.header("Cross-Origin-Resource-Policy") == "same-origin"
    policy = answer.header("Content-Security-Policy") or ""
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "*" not in policy
    is_for_others = sent.startswith(b"GET /client.js ")
    assert answer.header("Access-Control-Allow-Origin") == ("*" if is_for_others else None)


@pytest.mark.parametrize(
    ("request_line", "status", "detail"),
    [
        (b"GET /<script>alert(1)</script> HTTP/9.9", 400, "this is not a valid HTTP request"),
        (b"GET /" + b"x" * (MAX_TARGET + 1) + b" HTTP/1.1", 414, f"the address has more than {MAX_TARGET} bytes"),
        (
            b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * (MAX_FIELD + 1),
            431,
            f"a header has more than {MAX_FIELD} bytes",
        ),
    ],
    ids=["malformed", "address", "header"],
)
async def test_what_the_parser_refuses_is_a_problem_that_repeats_nothing_of_it(port, request_line, status, detail):
    answer = await exchange(port, request_line + b"\r\n\r\n")
    assert (answer.status, answer.header("Content-Type")) == (status, "application/problem+json")
    assert json.loads(answer.body)["detail"] == detail


@pytest.mark.parametrize(("origin", "status"), [("http://127.0.0.1", 204), ("https://evil.example", 403)])
async def test_a_preflight_is_answered_as_a_request_of_its_origin_would_be(port, origin, status):
    sent = request("OPTIONS", "/api/v1/jobs", f"Origin: {origin}", "Access-Control-Request-Method: GET")
    answer = await exchange(port, sent)
    assert (answer.status, answer.header("Access-Control-Allow-Origin")) == (status, None)


async def test_a_foreign_host_name_is_refused_for_every_request(port):
    """DNS rebinding: a page whose own name leads to us. Only what a load balancer asks has no name to check."""
    for path in ("/", "/client.js", "/api/v1/jobs", "/metrics", "/ws", "/api/v1/stream"):
        sent = get(path, BEARER).replace(b"Host: 127.0.0.1", b"Host: rebound.example")
        assert (await exchange(port, sent)).status == 403, path
        absolute = get(f"http://rebound.example{path}", BEARER)
        assert (await exchange(port, absolute)).status == 403, f"the address counts, not the header: {path}"
    assert (await exchange(port, get("http://localhost:1/api/v1/jobs", BEARER))).status == 200


ELSEWHERE = "Sec-Fetch-Site: cross-site"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (get("/api/v1/jobs", ELSEWHERE), 403),
        (get("/api/v1/jobs", ELSEWHERE, "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"), 403),
        (get("/metrics", ELSEWHERE), 403),
        (get("/api/v1/events?text=a", "Origin: https://evil.example"), 403),
        (get("/api/v1/events?text=a", "Origin: null"), 403),
        (get("/", ELSEWHERE, "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"), 200),
        (get("/health/live", ELSEWHERE), 200),
        (get("/progress.js", ELSEWHERE, "Sec-Fetch-Mode: cors", "Origin: https://gui.example"), 200),
        (get("/api/v1/jobs", ELSEWHERE, "Sec-Fetch-Mode: cors", "Origin: https://gui.example"), 200),
        (get("/api/v1/jobs", "Sec-Fetch-Site: same-origin"), 200),
        (get("/api/v1/jobs", "Sec-Fetch-Site: none", "Sec-Fetch-Mode: navigate"), 200),
        (get("/api/v1/jobs"), 200),
    ],
    ids=[
        *("image", "link", "metrics", "fetch", "sandboxed", "page", "probe"),
        *("element-of-a-listed-origin", "listed-origin", "own-page", "typed", "program"),
    ],
)
async def test_a_page_of_another_site_makes_no_browser_send_a_request(sent, status):
    """It could read no answer, but each is work: a search of the log, say."""
    async with listener(origins=("https://gui.example",)) as port:
        answer = await exchange(port, sent)
    assert answer.status == status
    if b"Origin: https://gui.example" in sent:
        is_for_others = sent.startswith(b"GET /progress.js ")
        assert answer.header("Access-Control-Allow-Origin") == ("*" if is_for_others else "https://gui.example")


async def test_a_link_of_another_site_with_a_ticket_is_followed():
    async with listener(tokens=(TOKEN,)) as port:
        ticket = json.loads((await exchange(port, request("POST", "/api/v1/ticket", BEARER))).body)["ticket"]
        assert (await exchange(port, get(f"/api/v1/jobs?ticket={ticket}", ELSEWHERE))).status == 200
        assert (await exchange(port, get("/api/v1/jobs", ELSEWHERE, BEARER))).status == 403


@pytest.mark.parametrize(
    ("host", "sent_token", "shown"),
    [
        ("127.0.0.1", BEARER, True),
        ("127.0.0.1", "", False),
        ("127.0.0.1", "Authorization: Bearer wrong", False),
        ("rebound.example", BEARER, False),
    ],
    ids=["token", "no-token", "wrong-token", "foreign-host"],
)
@pytest.mark.parametrize("tokens", [(), (TOKEN,)], ids=["open", "guarded"])
async def test_readiness_names_nothing_to_a_stranger(tokens, host, sent_token, shown):
    part = {"ok": False, "error": "hospital: http://10.9.8.7/ refuses", "receivers": {"hospital": {"ok": False}}}
    async with listener(tokens=tokens, readiness={"webhooks": partial(dict, part)}) as port:
        sent = get("/health/ready", *filter(None, (sent_token,))).replace(b"Host: 127.0.0.1", f"Host: {host}".encode())
        answer = await exchange(port, sent)
    body = json.loads(answer.body)
    assert (answer.status, body["ready"], body["degraded"]) == (200, True, True)
    if shown or (not tokens and host == "127.0.0.1"):
        assert body["parts"]["webhooks"] == part
    else:
        assert body["parts"]["webhooks"] == {"ok": False}
        assert all(part.keys() == {"ok"} for part in body["parts"].values()), body


# -- tokens


@pytest.mark.parametrize("query", ["token={}", "access_token={}", "ticket={}", "authorization=Bearer%20{}"])
async def test_a_token_in_the_address_is_refused(port, query):
    assert (await exchange(port, get("/api/v1/jobs?" + query.format(TOKEN)))).status == 401


async def test_each_token_is_compared_whole_whichever_it_is(monkeypatch):
    compared: list[tuple[bytes, bytes]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return a == b

    monkeypatch.setattr(hmac, "compare_digest", compare)
    access = Access(listen_host="x", clock=time.monotonic, rules=Rules(granted("one", "two", "three")))
    for given in ("one", "three", "none"):
        compared.clear()
        with contextlib.suppress(Denied):
            await access.log_in(given, "192.0.2.1")
        assert [secret for _, secret in compared] == [b"one", b"two", b"three"]


# -- websockets


async def test_no_compression_is_agreed_on(port):
    """So that a small frame cannot become a large one."""
    async with connected(port) as (reader, writer):
        writer.write(upgrade("/ws", "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"))
        answer = await receive(reader)
        assert (answer.status, answer.header("Sec-WebSocket-Extensions")) == (101, None)
        compressed = bytearray(frame(b"x" * 20))
        compressed[0] |= 0x40
        writer.write(compressed)
        answer = await receive(reader)
        assert answer.raw[:4] == b"\x88" + answer.raw[1:2] + (1002).to_bytes(2, "big")


async def test_a_frame_of_the_largest_size_is_read(port):
    async with connected(port) as (reader, writer):
        writer.write(upgrade("/ws"))
        await receive(reader)
        writer.write(frame(b'{"type":"ping"}'.ljust(MAX_FRAME)))
        assert b"\x03\xf1" not in (await receive(reader)).raw, "1009"


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(b"x" * (MAX_FRAME + 1)), 1009),
        (b"".join(frame(b"x" * 9000, 0 if n else 1, final=False) for n in range(9)), 1009),
        (frame(b"\xff\xfe"), 1007),
        (frame(b"x", 3), 1002),
        (frame(b"x" * 200, 9), 1002),
        (frame(b"x", 0), 1002),
        (frame(b'{"type":"ping"}', mask=None), 1002),
        (frame(b"", 9) + frame(b"x" * 70_000, mask=None), 1002),
        *((frame(code.to_bytes(2, "big"), 8), 1002) for code in (1006, 5000, 65535)),
        (frame(b"", 9) * 1_000, 4429),
        (frame(b"", 1, final=False) + frame(b"", 0, final=False) * 1_000, 4429),
    ],
    ids=[
        *(
            "long",
            "long-in-parts",
            "no-utf-8",
            "opcode",
            "long-ping",
            "stray-continuation",
            "unmasked",
            "unmasked-later",
        ),
        *(
            "close-1006",
            "close-5000",
            "close-65535",
            "pings-before-hello",
            "fragments-before-hello",
        ),
    ],
)
async def test_a_frame_that_is_none_closes_its_connection(port, sent, code):
    async with connected(port) as (reader, writer):
        writer.write(upgrade())
        await receive(reader)
        writer.write(sent)
        raw = (await receive(reader)).raw
        assert raw[:1] + raw[2:4] == b"\x88" + code.to_bytes(2, "big")


def changed(old: bytes, new: bytes) -> bytes:
    """A websocket's handshake, except for this."""
    assert old in upgrade()
    return upgrade().replace(old, new)


KEY, VERSION = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", b"Sec-WebSocket-Version: 13\r\n"
NO_UPGRADE, NO_OPTION = "the header Upgrade: websocket is missing", "the header Connection: Upgrade is missing"
WRONG_KEY, WRONG_VERSION = (
    "expected one header with 16 bytes in base64",
    "expected one header Sec-WebSocket-Version: 13",
)


@pytest.mark.parametrize(
    ("sent", "status", "says"),
    [
        pytest.param(get("/ws"), 426, "connect with a client of RFC 6455", id="plain"),
        pytest.param(changed(b"HTTP/1.1", b"HTTP/1.0"), 426, "needs HTTP/1.1", id="http-1.0"),
        pytest.param(changed(b"Upgrade: websocket\r\n", b""), 426, NO_UPGRADE, id="no-upgrade"),
        pytest.param(changed(b"Upgrade: websocket", b"Upgrade: h2c"), 426, NO_UPGRADE, id="upgrade-to-another"),
        pytest.param(changed(b"Connection: Upgrade\r\n", b""), 426, NO_OPTION, id="no-connection"),
        pytest.param(changed(b"Connection: Upgrade", b"Connection: keep-alive"), 426, NO_OPTION, id="wrong-connection"),
        pytest.param(changed(VERSION, b""), 426, WRONG_VERSION, id="no-version"),
        pytest.param(changed(b"Version: 13", b"Version: 8"), 426, WRONG_VERSION, id="old-version"),
        pytest.param(
            changed(VERSION, VERSION + b"Sec-WebSocket-Version: 8\r\n"), 426, WRONG_VERSION, id="two-versions"
        ),
        pytest.param(changed(KEY, b""), 400, WRONG_KEY, id="no-key"),
        pytest.param(changed(KEY, b"Sec-WebSocket-Key: short\r\n"), 400, WRONG_KEY, id="short-key"),
        pytest.param(changed(KEY, b"Sec-WebSocket-Key: \xff\xfe\r\n"), 400, WRONG_KEY, id="key-beyond-ascii"),
        pytest.param(changed(KEY, KEY.replace(b"==", b"=")), 400, WRONG_KEY, id="key-that-is-no-base64"),
        pytest.param(changed(KEY, KEY + KEY), 400, WRONG_KEY, id="two-keys"),
        pytest.param(upgrade("/ws", "Sec-WebSocket-Protocol: chat"), 400, "no subprotocols", id="subprotocol"),
        pytest.param(upgrade("/ws?say=1&say=2"), 400, "say: given 2 times; give it once", id="two-frames"),
        pytest.param(upgrade("/ws?sya=1"), 400, "no query parameter 'sya' here; known: say", id="misspelled-parameter"),
        pytest.param(upgrade("/ws?" + "a&" * 4_000), 400, "query parameters; known: say", id="many-parameters"),
        pytest.param(upgrade("/ws", "Content-Length: 5") + b"hello", 400, "without a body", id="body"),
        pytest.param(
            upgrade("/ws", "Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n",
            400,
            "without a body",
            id="chunks",
        ),
        pytest.param(upgrade("/ws", BEARER).replace(b"GET", b"POST"), 405, "expected GET", id="post"),
        pytest.param(upgrade("/ws", BEARER).replace(b"GET", b"OPTIONS"), 405, "expected GET", id="options"),
    ],
)
async def test_a_handshake_that_is_wrong_is_refused_with_what_is_wrong_and_what_is_right(
    port, sent, status, says, caplog
):
    answer = await exchange(port, sent)
    assert (answer.status, answer.header("Content-Type")) == (status, "application/problem+json")
    assert says in json.loads(answer.body)["detail"]
    named = {"Sec-WebSocket-Version": "13", "Upgrade": "websocket"}
    assert [answer.header(name) for name in named] == [value if status == 426 else None for value in named.values()]
    assert answer.closed or status == 405
    assert (await exchange(port, upgrade())).status == 101
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


async def test_a_handshake_may_have_other_options_and_an_empty_body(port):
    for sent in (
        changed(b"Connection: Upgrade", b"Connection: keep-alive, upgrade"),
        changed(b"Upgrade: websocket", b"upgrade: WebSocket"),
        upgrade("/ws", "Content-Length: 0"),
    ):
        assert (await exchange(port, sent)).status == 101, sent


async def test_hostile_json_is_answered_with_a_problem(small: Daemon):
    deep, huge_number = "[" * 30_000, '{"type":"subscribe","id":' + "9" * 5000 + "}"
    hostile = (deep, '{"type":"hello","version":1,"resume":' + deep, '{"type":"get","job_id":"\\ud800"}', huge_number)
    for said in hostile:
        async with small.socket(HELLO) as bad, small.socket(HELLO) as good:
            await bad.ws.send_str(said)
            assert (await bad.until("error"))["code"] == "bad_request", said[:100]
            assert len((await good.snapshot())[0]) == 6
    assert "Traceback" not in small.log()


# -- what a database makes of it

EVIL = (
    "' OR '1'='1", "'; DROP TABLE job_tracking; -- ", '" OR ""="', "\\' OR 1=1 -- ", "%", "_", "gui\\",
    "x' UNION SELECT 1 -- ", "%s", "{0}", "`", "/*", "\x1a", "\0", "\ud800", "é\u0301", "a" * 300, "\U0001f600", "0x27",
)  # fmt: skip


NUMBERS = ("9" * 400, str(1 << 63), str(1 << 64), "-" + "9" * 30, "1e309", "NaN", "0x10")


@pytest.fixture(params=["sqlite", "mariadb"])
async def either(
    request: pytest.FixtureRequest, appliance_file: Path, database: Database, appliance: Appliance, tmp_path: Path
) -> AsyncIterator[Daemon]:
    """A daemon with a job, gui-1, on either kind of database."""
    await appliance.job("gui-1")
    url = database.url if request.param == "mariadb" else f"sqlite://{appliance_file}"
    async with Daemon(tmp_path, database__url=url) as daemon:
        yield daemon


async def test_no_text_becomes_sql_and_no_number_of_any_size_leads_anywhere(either: Daemon):
    """Nor a pattern: each is compared as the text it is."""
    many = len((await either.get("/api/v1/jobs"))[1]["jobs"])
    for text in EVIL:
        word = quote(text, safe="", errors="surrogatepass")
        for path in ("jobs/{}", "jobs/{}/events", "resolve/{}"):
            url = f"{either.url}/api/v1/{path.format(word)}"
            assert await status(either, url) == 404, (path, text)
        for name in ("q", "job_type", "operation", "context_id", "parent_job_id"):
            url = f"{either.url}/api/v1/jobs?{name}={word}"
            found = await body(either, url)
            assert len(found["jobs"]) == 0, (name, text)
        async with either.socket(HELLO) as socket:
            if text.isprintable() and len(text) < 256:
                jobs, synced = await socket.snapshot(jobs=[text], context_id=[text])
                assert (jobs, synced["unknown"]) == ({}, [text])
    for number in NUMBERS:
        cursor = base64.urlsafe_b64encode(f'[{number},"a"]'.encode()).decode().rstrip("=")
        place = base64.urlsafe_b64encode(msgspec.msgpack.encode((1, (1 << 64) - 1, 1 << 63, b""))).decode().rstrip("=")
        for target, right in (
            (f"jobs?limit={number}", (400,)),
            (f"jobs?cursor={cursor}", (200, 400)),
            (f"jobs/gui-1?rev={number}", (400,)),
            (f"jobs/gui-1?wait={number}", (400,)),
            (f"jobs/gui-1/events?after={number}", (400,)),
            (f"jobs/gui-1/events?after={place}", (200, 400)),
            (f"jobs/gui-1/events?limit={number}", (400,)),
            (f"jobs?since={number}", (400,)),
            (f"jobs/{number}", (404,)),
        ):
            assert await status(either, f"{either.url}/api/v1/{target}") in right, target
    assert len((await either.get("/api/v1/jobs"))[1]["jobs"]) == many
    assert await either.job("gui-1") is not None
    assert "Traceback" not in either.log()


async def status(daemon: Daemon, url: str) -> int:
    assert daemon.session is not None
    async with daemon.session.get(URL(url, encoded=True)) as response:
        return response.status


async def body(daemon: Daemon, url: str) -> dict[str, list[object]]:
    assert daemon.session is not None
    async with daemon.session.get(URL(url, encoded=True)) as response:
        assert response.status == 200, await response.text()
        found: dict[str, list[object]] = json.loads(await response.read())
        return found
