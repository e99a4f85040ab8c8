"""Bytes that no program of this project writes, and a client of NATS that sends them: subjects, headers, payloads."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Iterable, Mapping

from correlator.cluster import keys
from correlator.pipeline.queries import QUESTIONS
from correlator.state.checkpoint import MOMENT
from tests.support.eventually import PATIENCE

DEEP = b'{"metadata":' * 5_000 + b"1" + b"}" * 5_000

PAYLOADS = (
    b"",
    b"\xff",
    b'{"holder":"\xff"}',
    DEEP,
    b'{"holder":' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    b"[]",
    b"null",
    b'{"holder":1,"database":"live","complete_since":7}',
    b'{"database":"live","complete_since":"2025-09-22T10:00+01","lag_seconds":1e400,"jobs":%d}' % 10**40,
    b'{"job_id":"odd","status":"running"}',
    b'{"run":"r","first":1,"lines":[{"job_id":"a","event_id":1,"level":"INFO","message":"m",'
    b'"at":"2025-09-22T15:12:13.000000Z","attrs":{"n":%d}}]}' % 10**40,
    b'{"kind":"job.late","job_id":"a","at":"2025-09-22T10:00+01:00","event_id":%d}' % 10**40,
    b'{"version":1,"params":{"name":"\\ud800"}}',
    b'{"ids":["\xff"]}',
    bytes(range(256)) * 40,
)
HEADERS = (
    b"x",
    b"NATS/1.0",
    b"NATS/1.0 \xff\xff\xff\r\n\r\n",
    b"NATS/1.0 100 \xff\r\n\r\n",
    b"NATS/1.0 404 gone\r\n\r\n",
    b"NATS/1.0\r\nStatus: 404\r\nNats-Sequence: x\r\nNats-Subject: x\r\n\r\n",
    b"NATS/1.0\r\nStatus: 409\r\n\r\n",
    b"NATS/1.0\r\nNats-Last-Consumer: x\r\nStatus: 100\r\nNats-Consumer-Stalled: x\r\n\r\n",
    b"NATS/1.0\r\nCor-Reason: \xff\r\nNats-Msg-Id: \xff\r\n\r\n",
    b"\xff" * 40,
)
TOKENS = (b"a\xffb", b"a\x0cb", b"a\x0bb", b"a\x00b", b"*", b">", b"=", b"=FF", b"=ZZ", b"a.b")
"""Last parts of a subject. The server refuses none of them."""


def of_collector(instance: str) -> Mapping[str, bool]:
    """The subjects that the collectors of an appliance may write, and whether something may follow."""
    return {
        f"$KV.cor.{instance}.job": True,
        keys.owner(instance): False,
        keys.EPOCH: False,
        keys.alive(instance): False,
        keys.checkpoint(instance, "job"): True,
        keys.checkpoint(instance, *MOMENT): False,
        keys.checkpoint_owner(instance): False,
        f"cor.v1.{instance}.event": True,
        keys.events_owner(instance): False,
        keys.line(instance): False,
        keys.standby(instance): False,
    }


def of_gateway(*instances: str) -> Mapping[str, bool]:
    """The subjects that gateways may write."""
    return {keys.WANT: False} | {keys.rpc(name, method): False for name in instances for method in QUESTIONS}


def messages(subjects: Mapping[str, bool]) -> Iterable[tuple[bytes, bytes, bytes]]:
    """Yield (subject, headers, payload) of all garbage for each subject; headers may be empty."""
    for name, open_ended in subjects.items():
        subject = name.encode()
        for n, payload in enumerate(PAYLOADS):
            yield subject + (b".p%d" % n if open_ended else b""), b"", payload
        for n, headers in enumerate(HEADERS):
            yield subject + (b".h%d" % n if open_ended else b""), headers, b"{}"
        for token in TOKENS if open_ended else ():
            yield subject + b"." + token, b"", b"{}"


async def send(
    port: int, found: Iterable[tuple[bytes, bytes, bytes]], tls: ssl.SSLContext | None = None, reply: bytes = b""
) -> int:
    """Publish messages, each as it is. Returns their number. `reply`: the subject for answers."""
    incoming, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(PATIENCE):
        await incoming.readline()
        if tls is not None:
            await writer.start_tls(tls, server_hostname="127.0.0.1")
        options = {"verbose": False, "pedantic": False, "headers": True, "protocol": 1}
        writer.write(b"CONNECT %b\r\n" % json.dumps(options).encode())
        count = 0
        for subject, headers, payload in found:
            line = b"%b %b" % (subject, reply + b" " if reply else b"")
            if headers:
                size = len(headers), len(headers) + len(payload)
                writer.write(b"HPUB %b%d %d\r\n%b%b\r\n" % (line, *size, headers, payload))
            else:
                writer.write(b"PUB %b%d\r\n%b\r\n" % (line, len(payload), payload))
            await writer.drain()
            count += 1
        writer.write(b"PING\r\n")
        while (answer := await incoming.readline()) != b"PONG\r\n":
            assert b"Unknown Protocol" not in answer, answer
            if answer == b"PING\r\n":
                writer.write(b"PONG\r\n")
            assert answer, "the server closed the connection"
        writer.close()
    return count
