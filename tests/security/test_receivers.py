"""A receiver of traces or webhooks that is false, or hostile, gets no secret and costs neither memory nor time."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from ssl import SSLContext

import pytest
import uvloop
from msgspec.structs import replace

from correlator.config.loading import load
from correlator.config.schema import Otlp, Tls, TracesUrl
from correlator.config.webhooks import Authorization, Webhook, WebhookUrl
from correlator.doctor.bundle import secrets
from correlator.doctor.service import Setting
from correlator.sinks import webhooks
from correlator.sinks.otlp.receiver import JSON, judge, receiver
from correlator.sinks.receiver import (
    MAX_ANSWER,
    MAX_REASON,
    MAX_RESPONSE,
    Receiver,
    Response,
    open_session,
    tls_context,
)
from correlator.tasks import TURN
from tests.support.accepting import accepting
from tests.support.certificates import Certificates
from tests.support.eventually import PATIENCE
from tests.support.servers import free_port
from tests.support.yardstick import turns_of_another_task

TOKEN = "ot-hush-5104"

SILENCE = 2.0
"""Seconds after which a receiver that never answers is given up. The others have `PATIENCE`."""


@dataclass
class Reply:
    """A server that answers a request with `head`, and a moment later with `parts`; then it closes, or not."""

    head: bytes = b""
    parts: Iterable[bytes] = ()
    closes: bool = True
    received: bytearray = field(default_factory=bytearray)

    @contextlib.asynccontextmanager
    async def listening(self, ssl: SSLContext | None = None) -> AsyncIterator[str]:
        port = free_port()
        async with accepting(self._talk, port, ssl=ssl):
            yield f"127.0.0.1:{port}/v1/traces"

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            self.received += await reader.readuntil(b"\r\n\r\n")
            writer.write(self.head)
            await asyncio.sleep(0.02)  # The head is read by itself.
            for part in self.parts:
                writer.write(part)
                await writer.drain()
            if not self.closes:
                await reader.read()


def of_traces(url: str, ca: Path | None = None, headers: Path | None = None) -> Receiver:
    return receiver(Otlp(url=TracesUrl.parse(url), headers_file=headers, tls=Tls(ca=ca))).http


def of_webhooks(url: str, ca: Path | None = None, headers: Path | None = None) -> Receiver:
    token = Authorization("" if headers is None else headers.read_text().partition(": ")[2])
    return webhooks.receiver(Webhook(url=WebhookUrl(url), authorization=token), tls_context(Tls(ca=ca), "ca"))


async def response_of(target: Receiver, *, within: float = PATIENCE) -> Response:
    async with open_session(allow_private=True) as session:
        return await replace(target, timeout=within).post(session, b"{}")


@pytest.mark.parametrize("target", [of_traces, of_webhooks])
@pytest.mark.parametrize("certificate", ["other", "ended", "self", "right"])
async def test_a_receiver_with_a_wrong_certificate_gets_no_request(
    certificates: Certificates, tmp_path: Path, certificate: str, target: Callable[..., Receiver]
) -> None:
    reply = Reply(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    (tmp_path / "headers").write_text(f"Authorization: Bearer {TOKEN}")
    async with reply.listening(ssl=certificates.server(certificate)) as address:
        response = await response_of(target(f"https://{address}", certificates.ca, tmp_path / "headers"))
    if certificate == "right":
        assert response.status == 200
        assert f"Authorization: Bearer {TOKEN}".encode() in reply.received
    else:
        assert (response.status, bytes(reply.received)) == (None, b"")
        assert "certificate" in response.error


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
REPLIES: dict[str, tuple[Reply, int | None, str]] = {
    "a short body": (Reply(OK + b"Content-Length: 100\r\n\r\n", [b"{"]), 200, ""),
    "a body that stops": (Reply(OK + b"Content-Length: 100\r\n\r\n", [b"{"], closes=False), 200, ""),
    "a chunk without an end": (Reply(OK + CHUNKED, [b"2\r\n{}\r\n"], closes=False), 200, ""),
    "no chunk": (Reply(OK + CHUNKED, [b"malformed\r\n"], closes=False), 200, ""),
    "an endless body": (Reply(b"HTTP/1.1 400 Bad Request\r\n\r\n", repeat(b"x" * 65_536)), 400, "HTTP 400 Bad Request"),
    "endless headers": (Reply(OK, repeat(b"X-Y: %b\r\n" % (b"x" * 1_000))), None, "log says more"),
    "endless informational answers": (Reply(b"", repeat(b"HTTP/1.1 100 Go on\r\n\r\n" * 1_000)), None, "log says more"),
    "no HTTP": (Reply(bytes(range(256))), None, "log says more"),
    "nothing": (Reply(), None, "log says more"),
    "silence": (Reply(closes=False), None, f"no response within {SILENCE:g} s"),
    "a redirect": (
        Reply(b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n"),
        307,
        "HTTP 307 Temporary Redirect, and redirects are not followed",
    ),
}


@pytest.mark.parametrize("name", REPLIES)
async def test_any_answer_is_read_in_bounded_time_and_bytes_and_decides_by_its_status(name: str) -> None:
    """A success whose body is slow or broken is a success: the same request again might be stored twice."""
    reply, status, words = REPLIES[name]
    reply = dataclasses.replace(reply, received=bytearray())
    async with reply.listening() as address:
        within = SILENCE if name == "silence" else PATIENCE
        response = await response_of(of_webhooks(f"http://{address}"), within=within)
    assert (response.status, response.public.endswith(words), bool(response.public)) == (status, True, status != 200)
    assert "127.0.0.1" not in response.public
    assert len(response.body) < 3 * MAX_RESPONSE
    assert reply.received.count(b"POST") == 1


async def test_informational_answers_of_a_receiver_let_other_tasks_run() -> None:
    def answer(listener: socket.socket) -> None:
        with listener.accept()[0] as client, contextlib.suppress(OSError):
            client.recv(65_536)
            client.sendall(b"HTTP/1.1 103 E\r\nA:b\r\n\r\n" * 40_000)
            client.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        answering = asyncio.create_task(asyncio.to_thread(answer, listener))
        async with turns_of_another_task() as longest:
            response = await response_of(of_webhooks(f"http://127.0.0.1:{listener.getsockname()[1]}"))
        await answering
    assert response.status is None
    assert longest() < 4 * TURN, f"{longest() * 1000:.0f} ms"


@pytest.mark.parametrize("new_loop", [asyncio.SelectorEventLoop, uvloop.new_event_loop])
@pytest.mark.parametrize("tls", [False, True])
def test_an_answer_without_end_is_left_after_a_bounded_number_of_bytes(
    certificates: Certificates, new_loop: Callable[[], asyncio.AbstractEventLoop], *, tls: bool
) -> None:
    """Each loop reads in its own way, and TLS in another one."""
    reply = Reply(parts=repeat(b"HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n" * 100))

    async def answer() -> Response:
        async with reply.listening(ssl=certificates.server("right") if tls else None) as address:
            target = of_webhooks(f"{'https' if tls else 'http'}://{address}", certificates.ca)
            return await response_of(target, within=SILENCE)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        response = runner.run(answer())
    assert (response.status, response.error.partition(": ")[2]) == (
        None, f"the receiver's answer has more than {MAX_ANSWER} bytes"
    )  # fmt: skip


async def test_the_text_of_a_receiver_is_one_short_line_without_control_characters() -> None:
    body = b'{"message":"\\u001b[2J\\n' + b"x" * 10_000 + b'"}'
    reply = Reply(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    async with reply.listening() as address:
        words = judge(await response_of(of_traces(f"http://{address}")), JSON).words
    assert words.startswith("HTTP 400 Bad Request: \\x1b[2J\\n")
    assert len(words) < MAX_REASON + 100


def test_headers_that_hold_a_secret_are_shown_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "headers"
    file.write_text(f"Authorization: Bearer {TOKEN}\nX-Key: other-{TOKEN}\n")
    environ = {
        "HOME": str(tmp_path), "CORRELATOR_OTLP__URL": "http://h", "CORRELATOR_OTLP__HEADERS_FILE": str(file),
    }  # fmt: skip
    config = load(None, environ)
    assert TOKEN not in f"{config!r} {receiver(config.otlp)!r}"
    assert {TOKEN, f"other-{TOKEN}"} <= set(secrets(Setting(config, None, environ)))
