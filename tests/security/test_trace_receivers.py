"""A receiver of traces that is false, or hostile, gets no secret and costs neither memory nor time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from correlator.config.loading import load
from correlator.config.otlp import Otlp
from correlator.config.tls import Tls
from correlator.doctor.bundle import secrets
from correlator.doctor.service import Setting
from correlator.sinks.otlp.receiver import MAX_ANSWER, MAX_WORDS, TraceAnswer, TraceVerdict, receiver, session
from tests.support.certificates import Certificates

TOKEN = "ot-hush-5104"

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]


@contextlib.asynccontextmanager
async def listening(handle: Handle, **options: object) -> AsyncIterator[str]:
    server = await asyncio.start_server(handle, "127.0.0.1", 0, **options)  # type: ignore[arg-type]
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/traces"


async def answer_of(settings: Otlp) -> TraceAnswer:
    async with session() as http:
        return await receiver(settings).send(http, b"{}")


@pytest.mark.parametrize("certificate", ["other", "ended", "self", "right"])
async def test_a_receiver_with_a_wrong_certificate_gets_no_request(
    certificates: Certificates, tmp_path: Path, certificate: str
) -> None:
    after = bytearray()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        after.extend(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()

    (tmp_path / "headers").write_text(f"Authorization: Bearer {TOKEN}")
    async with listening(talk, ssl=certificates.server(certificate)) as address:
        tls = Tls(ca=certificates.ca)
        answer = await answer_of(Otlp(url=f"https://{address}", headers_file=tmp_path / "headers", tls=tls))
    if certificate == "right":
        assert answer.verdict is TraceVerdict.ACCEPTED
        assert f"Authorization: Bearer {TOKEN}".encode() in after
    else:
        assert (answer.verdict, bytes(after)) == (TraceVerdict.AGAIN, b"")
        assert "certificate" in answer.words


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
        answer = await answer_of(Otlp(url=f"http://{address}", timeout=60.0))
    assert answer.verdict is TraceVerdict.REFUSED
    assert sent < 100 * MAX_ANSWER  # what the kernel buffers


async def test_the_text_of_a_receiver_is_one_short_line_without_control_characters() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = b'{"message":"\\u001b[2J\\n' + b"x" * 10_000 + b'"}'
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        writer.close()

    async with listening(talk) as address:
        words = (await answer_of(Otlp(url=f"http://{address}"))).words
    assert words.startswith("HTTP 400 Bad Request: \\x1b[2J\\n")
    assert len(words) < MAX_WORDS + 100


async def test_a_redirect_is_not_followed_with_the_headers(tmp_path: Path) -> None:
    requests: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async with listening(talk) as address:
        answer = await answer_of(Otlp(url=f"http://{address}"))
    assert (answer.verdict, len(requests)) == (TraceVerdict.MISPLACED, 1)


def test_headers_that_hold_a_secret_are_shown_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "headers"
    file.write_text(f"Authorization: Bearer {TOKEN}\nX-Key: other-{TOKEN}\n")
    environ = {
        "HOME": str(tmp_path), "CORRELATOR_OTLP__URL": "http://h", "CORRELATOR_OTLP__HEADERS_FILE": str(file),
    }  # fmt: skip
    config = load(None, environ)
    assert TOKEN not in f"{config!r} {receiver(config.otlp)!r}"
    assert {TOKEN, f"other-{TOKEN}"} <= set(secrets(Setting(config, None, environ)))
