"""A receiver of traces or webhooks that is false, or hostile, gets no secret and costs neither memory nor time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from correlator.config.loading import load
from correlator.config.otlp import Otlp
from correlator.config.tls import Tls
from correlator.config.webhooks import Authorization, Webhook, WebhookUrl
from correlator.doctor.bundle import secrets
from correlator.doctor.service import Setting
from correlator.sinks.otlp.receiver import judge, receiver
from correlator.sinks.receiver import MAX_REASON, MAX_RESPONSE, Receiver, Response, open_session, tls_context
from correlator.sinks.webhooks import request
from tests.support.certificates import Certificates

TOKEN = "ot-hush-5104"

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]


@contextlib.asynccontextmanager
async def listening(handle: Handle, **options: object) -> AsyncIterator[str]:
    server = await asyncio.start_server(handle, "127.0.0.1", 0, **options)  # type: ignore[arg-type]
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/traces"


def of_traces(url: str, ca: Path | None = None, headers: Path | None = None) -> Receiver:
    return receiver(Otlp(url=url, headers_file=headers, tls=Tls(ca=ca)))


def of_webhooks(url: str, ca: Path | None = None, headers: Path | None = None) -> Receiver:
    token = Authorization("" if headers is None else headers.read_text().partition(": ")[2])
    return request.receiver(Webhook(url=WebhookUrl(url), authorization=token), tls_context(Tls(ca=ca), "ca"))


async def response_of(target: Receiver) -> Response:
    async with open_session(allow_private=True) as session:
        return await target.post(session, b"{}")


@pytest.mark.parametrize("target", [of_traces, of_webhooks])
@pytest.mark.parametrize("certificate", ["other", "ended", "self", "right"])
async def test_a_receiver_with_a_wrong_certificate_gets_no_request(
    certificates: Certificates, tmp_path: Path, certificate: str, target: Callable[..., Receiver]
) -> None:
    after = bytearray()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        after.extend(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()

    (tmp_path / "headers").write_text(f"Authorization: Bearer {TOKEN}")
    async with listening(talk, ssl=certificates.server(certificate)) as address:
        response = await response_of(target(f"https://{address}", certificates.ca, tmp_path / "headers"))
    if certificate == "right":
        assert response.status == 200
        assert f"Authorization: Bearer {TOKEN}".encode() in after
    else:
        assert (response.status, bytes(after)) == (None, b"")
        assert "certificate" in response.error


async def test_an_answer_without_end_is_read_to_its_bound() -> None:
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"x" * 8_192)
                await writer.drain()
                sent += 8_192
        writer.close()

    async with listening(flood) as address:
        response = await response_of(of_traces(f"http://{address}"))
    assert response.status == 400
    assert sent < 100 * MAX_RESPONSE  # what the kernel buffers


async def test_the_text_of_a_receiver_is_one_short_line_without_control_characters() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = b'{"message":"\\u001b[2J\\n' + b"x" * 10_000 + b'"}'
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        writer.close()

    async with listening(talk) as address:
        words = judge(await response_of(of_traces(f"http://{address}"))).words
    assert words.startswith("HTTP 400 Bad Request: \\x1b[2J\\n")
    assert len(words) < MAX_REASON + 100


@pytest.mark.parametrize("target", [of_traces, of_webhooks])
async def test_a_redirect_is_not_followed_with_the_headers(target: Callable[..., Receiver]) -> None:
    requests: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async with listening(talk) as address:
        response = await response_of(target(f"http://{address}"))
    assert (response.status, len(requests)) == (307, 1)
    assert response.error == "HTTP 307 Temporary Redirect, and redirects are not followed"


def test_headers_that_hold_a_secret_are_shown_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "headers"
    file.write_text(f"Authorization: Bearer {TOKEN}\nX-Key: other-{TOKEN}\n")
    environ = {
        "HOME": str(tmp_path), "CORRELATOR_OTLP__URL": "http://h", "CORRELATOR_OTLP__HEADERS_FILE": str(file),
    }  # fmt: skip
    config = load(None, environ)
    assert TOKEN not in f"{config!r} {receiver(config.otlp)!r}"
    assert {TOKEN, f"other-{TOKEN}"} <= set(secrets(Setting(config, None, environ)))
