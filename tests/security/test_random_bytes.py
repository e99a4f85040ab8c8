"""Bytes without sense at all that listens: no 5xx, no exception, flat memory, and others are served meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import re
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest

from tests.support.certificates import Certificates
from tests.support.daemon import HELLO, Daemon
from tests.support.eventually import PATIENCE
from tests.support.mariadb import Database
from tests.support.raw_http import Answer, connected, exchange, frame, get, receive, request, upgrade
from tests.support.small_appliance import TOKEN

WARM_AFTER = 20.0
MAX_GROWTH = 5.0
"""MB of memory from then on. A run that is over before may grow twice that from its middle on."""

SERVED_WITHIN = 1.0
"""Seconds in which a reader is served beside noise, and `SLOWER` times as much as one of a daemon without noise is."""
SLOWER = 5

LEAST_ANSWERS = 6
"""Answers to each kind of noise, however long they take on a busy machine."""

WORDS = (
    b"GET", b"POST", b"OPTIONS", b"HTTP/1.1", b"HTTP/0.9", b"Host:", b"\r\n", b"\r\n\r\n", b"\n", b"\0", b"%00", b"%ff",
    b"/api/v1/jobs", b"/ws", b"/api/v1/stream?id=", b"/api/v1/ticket", b"/metrics", b"/..%2f", b"?limit=", b"&cursor=",
    b"Content-Length: ", b"Transfer-Encoding: chunked", b"Expect: 100-continue", b"Authorization: Bearer ", b"ticket=",
    b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Key: ", b"Last-Event-ID: ", b"Origin: null",
    b"18446744073709551616", b"-1", b"nan", b"1e309", b"\xed\xa0\x80", b"\xff\xfe", b"{", b"[", b'"', b"\\ud800",
    b'{"type":"hello","version":1}', b'{"type":"subscribe","id":1,"jobs":["', b'"logs":"DEBUG"', b'"resume":true',
)  # fmt: skip
"""What a parser stumbles over sooner than over mere noise."""

REQUESTS = (
    get("/api/v1/jobs?limit=3&status=running"),
    get("/api/v1/jobs/gui-1?wait=0.01&rev=1", 'If-None-Match: "x-1"'),
    get("/api/v1/jobs/gui-1/events?limit=5&level=WARN&after=0"),
    get("/api/v1/resolve/gui-1"),
    get("/api/v1/operations/failover/live"),
    get("/api/v1/failover/gui-1/status"),
    get("/metrics", "Accept: application/openmetrics-text"),
    get("/client.js", "If-None-Match: *"),
    get("/health/ready"),
    request("POST", "/api/v1/ticket", "Content-Length: 4", body=b"null"),
    request("OPTIONS", "/api/v1/jobs", "Origin: http://gui", "Access-Control-Request-Method: GET"),
    get("/api/v1/stream?id=gui-1&logs=DEBUG", "Last-Event-ID: x:1"),
    upgrade(),
)


@dataclass
class Attack:
    """What was sent at one listener, and how it answered."""

    port: int
    until: float
    dice: random.Random
    tls: ssl.SSLContext | None = None
    answers: Counter[int | None] = field(default_factory=Counter)
    bad: list[bytes] = field(default_factory=list)

    async def run(self, throw: Callable[[Attack], Awaitable[None]]) -> None:
        while time.monotonic() < (self.until if self.answers.total() >= LEAST_ANSWERS else self.until + PATIENCE):
            with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError):
                await throw(self)

    def count(self, sent: bytes, answer: Answer) -> None:
        self.answers[answer.status] += 1
        if any(status >= 500 and status != 505 for status in answer.statuses):
            self.bad.append(sent[:2000] + b" -> " + answer.raw[:500])

    def noise(self, most: int) -> bytes:
        dice = self.dice
        if dice.random() < 0.3:
            return dice.randbytes(dice.randrange(most))
        return b"".join(dice.choice(WORDS) for _ in range(dice.randrange(1, 20)))

    def mangled(self, text: bytes) -> bytes:
        """With some bytes flipped, taken away, repeated or put in."""
        dice = self.dice
        raw = bytearray(text)
        for _ in range(dice.randrange(1, 6)):
            at = dice.randrange(len(raw) + 1)
            to = min(len(raw), at + dice.randrange(1, 20))
            match dice.randrange(4):
                case 0 if at < len(raw):
                    raw[at] ^= 1 << dice.randrange(8)
                case 1:
                    del raw[at:to]
                case 2:
                    raw[at:at] = raw[at:to] * dice.randrange(1, 50)
                case _:
                    raw[at:at] = self.noise(200)
        return bytes(raw)

    def request(self) -> bytes:
        """One with faults anywhere, or with faults in nothing but what is asked for."""
        text = self.dice.choice(REQUESTS).replace(b"Connection: close\r\n", b"")
        if self.dice.random() < 0.5:
            return self.mangled(text)
        method, target, rest = text.split(b" ", 2)
        return b"%b /%b %b" % (method, quote(self.mangled(target[1:]), safe="/?&=%").encode(), rest)


async def noise(attack: Attack) -> None:
    sent = attack.noise(1 << 16)
    attack.count(sent, await exchange(attack.port, sent, quiet=0.02, first=0.02, tls=attack.tls))


async def wrong_requests(attack: Attack) -> None:
    sent = b"".join(attack.request() for _ in range(attack.dice.randrange(1, 4)))
    attack.count(sent, await exchange(attack.port, sent, quiet=0.05, first=0.05, tls=attack.tls))


async def half_tls(attack: Attack) -> None:
    """The beginning of a handshake, or one with a fault; also to a port without TLS."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    hello = outgoing.read()
    sent = attack.mangled(hello) if attack.dice.random() < 0.5 else hello[: attack.dice.randrange(len(hello))]
    attack.count(sent, await exchange(attack.port, sent, quiet=0.02, first=0.02))


async def frames(attack: Attack) -> None:
    """After a handshake as it should be: noise, and frames of noise."""
    dice = attack.dice
    async with connected(attack.port, attack.tls) as (reader, writer):
        writer.write(upgrade())
        sent = b""
        if dice.random() < 0.7:
            sent += frame(json.dumps(HELLO | {"token": TOKEN}).encode())
        for _ in range(dice.randrange(1, 8)):
            payload = attack.mangled(b'{"type":"subscribe","id":1,"jobs":["gui-1"],"logs":"DEBUG","resume":true}')
            sent += (
                attack.noise(1 << 10)
                if dice.random() < 0.3
                else frame(payload, dice.randrange(16), final=dice.random() < 0.9)
            )
        writer.write(sent)
        attack.count(sent, await receive(reader, quiet=0.05, first=0.05, within=1.0))


async def tickets(attack: Attack) -> None:
    body = attack.noise(1 << 12)
    word = f"Bearer {TOKEN}" if attack.dice.random() < 0.5 else "Bearer " + attack.dice.randbytes(9).hex()
    sent = request("POST", "/api/v1/ticket", f"Authorization: {word}", f"Content-Length: {len(body)}", body=body)
    attack.count(sent, await exchange(attack.port, sent, quiet=0.05, first=0.05, tls=attack.tls))


async def streams(attack: Attack) -> None:
    """Event streams that are asked for oddly, and broken off."""

    def parameter() -> str:
        name = attack.dice.choice(("id", "status", "job_type", "context_id", "logs", "ticket"))
        return f"{name}=%{attack.dice.randrange(256):02x}" + re.sub(r"[^!-~]", "?", attack.noise(60).decode("latin-1"))

    query = "&".join(parameter() for _ in range(attack.dice.randrange(4)))
    position = re.sub(r"[^ -~]", "", attack.noise(60).decode("latin-1"))
    sent = get(f"/api/v1/stream?{query}", f"Last-Event-ID: {position}", f"Authorization: Bearer {TOKEN}")
    attack.count(sent, await exchange(attack.port, sent, quiet=0.05, first=0.05, tls=attack.tls))


async def well_behaved(daemon: Daemon, tls: ssl.SSLContext | None, until: float) -> float:
    """The slowest of what a reader asks for meanwhile: a page of jobs, and a subscription from its handshake on."""
    slowest = 0.0
    scheme = "https" if tls else "http"
    async with aiohttp.ClientSession(
        f"{scheme}://127.0.0.1:{daemon.port}", headers={"Authorization": f"Bearer {TOKEN}"}
    ) as session:
        while time.monotonic() < until:
            began = time.monotonic()
            async with session.get("/api/v1/jobs", ssl=tls or True) as response:
                assert len((await response.json())["jobs"]) > 0
            async with session.ws_connect("/ws", ssl=tls or True) as ws:
                await ws.send_json([HELLO, {"type": "subscribe", "id": 1}])
                async with asyncio.timeout(60):
                    while b"synced" not in (await ws.receive()).data.encode():
                        pass
            slowest = max(slowest, time.monotonic() - began)
            await asyncio.sleep(0.1)  # a reader's own pace, not a wait for anything
    return slowest


@pytest.mark.parametrize("seconds", [pytest.param(5.0, id="5s"), pytest.param(60.0, id="60s", marks=pytest.mark.long)])
async def test_noise_at_every_listener_affects_no_client(
    database: Database, appliance, appliance_file: Path, certificates: Certificates, tmp_path: Path, seconds: float
) -> None:
    await appliance.job("gui-1")
    (tmp_path / "tokens").write_text(TOKEN)
    for name in ("plain", "tls", "untouched"):
        (tmp_path / name).mkdir()
    plain = Daemon(tmp_path / "plain", database__url=database.url)
    secure = Daemon(
        tmp_path / "tls", database__url=f"sqlite://{appliance_file}", http__tokens_file=tmp_path / "tokens",
        http__tls_cert=certificates.cert("right"), http__tls_key=certificates.key("right"),
    )  # fmt: skip
    untouched = Daemon(tmp_path / "untouched", database__url=database.url)
    seed = random.randrange(1 << 32)
    try:
        await untouched.start()
        await plain.start()
        secure.url = secure.url.replace("http:", "https:")
        secure.session = aiohttp.ClientSession(secure.url, connector=aiohttp.TCPConnector(ssl=certificates.client()))
        await secure.start()
        began = time.monotonic()
        warm, until = began + min(WARM_AFTER, seconds / 2), began + seconds
        attacks = [
            (throw, Attack(port, until, random.Random(f"{seed} {port == plain.port} {throw.__name__}"), tls))
            for port, tls in ((plain.port, None), (secure.port, certificates.client()))
            for throw in (noise, wrong_requests, half_tls, frames, tickets, streams)
        ]
        async with asyncio.TaskGroup() as group:
            for throw, attack in attacks:
                group.create_task(attack.run(throw))
            readers = [
                group.create_task(well_behaved(plain, None, until)),
                group.create_task(well_behaved(secure, certificates.client(), until)),
            ]
            quiet = group.create_task(well_behaved(untouched, None, until))
            await asyncio.sleep(warm - time.monotonic())
            before = [plain.memory(), secure.memory()]
        growth = [after - b for after, b in zip([plain.memory(), secure.memory()], before, strict=True)]
        sent = {f"{throw.__name__} {'tls' if a.tls else 'plain'}": dict(a.answers) for throw, a in attacks}
        summary = f"seed {seed}: growth {growth} MB, slowest {[r.result() for r in readers]} s, answers {sent}"
        logging.getLogger(__name__).info(summary)
        assert [a.bad for _, a in attacks if a.bad] == [], summary
        assert all(a.answers.total() >= LEAST_ANSWERS for _, a in attacks), summary
        assert {200, 101, 400, 404} <= {s for _, a in attacks for s in a.answers}, summary
        for daemon in (plain, secure):
            assert not re.search(r"Traceback| ERROR | CRITICAL ", daemon.log()), (seed, daemon.log())
        assert max(growth) < MAX_GROWTH * (1 if seconds > WARM_AFTER * 2 else 2), summary
        assert max(r.result() for r in readers) < SERVED_WITHIN + SLOWER * quiet.result(), (quiet.result(), summary)
        assert [await plain.stop(), await secure.stop()] == [0, 0]
    finally:
        await plain.close()
        await secure.close()
        await untouched.close()
