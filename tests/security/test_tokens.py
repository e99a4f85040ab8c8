"""What a token may do over HTTP: each route asks for what it declares, and connections end with their token."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest

from correlator.jobs.index import Index
from correlator.ops import metrics
from correlator.pipeline.pipeline import LocalHub
from correlator.sinks.http.access import Access, Rules
from correlator.sinks.http.floods import FREE_GUESSES, MAX_WAITING
from correlator.sinks.http.grants import REASONS, Grant, Need
from correlator.sinks.http.server import HttpSink, Listener
from tests.support.daemon import HELLO, Daemon
from tests.support.eventually import PATIENCE, eventually
from tests.support.http_listener import served
from tests.support.metric_values import value
from tests.support.small_appliance import NAMES

READER = Grant("reader", b"the-token-that-reads", frozenset({"read"}))
SCRAPER = Grant("scraper", b"the-token-that-scrapes", frozenset({"metrics"}))
BEARER = {grant.name: {"Authorization": f"Bearer {grant.secret.decode()}"} for grant in (READER, SCRAPER)}

OPEN = {"/", "/i/{instance}", "/ws", "/health/live", "/health/ready"}
"""What needs no token, besides files of the page, whose names end in a suffix."""


class Nobody:
    """A fleet without appliances."""

    def hub_of(self, instance: str) -> None:
        return None

    def describe(self) -> list[object]:
        return []


@pytest.fixture
def hub():
    hub = LocalHub(Index())
    hub.status.loading = False
    return hub


READS = (Need.READ, Need.JOB)
"""What a token that reads opens. Tokens for one job: see test_job_tokens.py."""


def declared(hub: LocalHub, fleet: Nobody | None) -> list[tuple[str, str, Need]]:
    """The method, the path and the need of each route that the router of a listener has."""
    access = Access(listen_host="127.0.0.1", clock=time.monotonic)
    sink = HttpSink(Listener("127.0.0.1", 0), access, fleet=fleet)  # type: ignore[arg-type]
    found = []
    for route in sink.application(hub).router.routes():
        assert route in sink.routes.needs, f"{route.method} {route.resource}: it says not what it needs"
        assert route.resource is not None
        found.append((route.method, route.resource.canonical, sink.routes.needs[route]))
    return found


@pytest.mark.parametrize("fleet", [None, Nobody()], ids=["daemon", "gateway"])
def test_every_route_declares_what_it_needs_and_only_what_is_listed_here_needs_no_token(hub, fleet):
    routes = declared(hub, fleet)
    without = {
        path.removeprefix("/i/{instance}") or "/i/{instance}"
        for _, path, need in routes
        if need in (Need.NOTHING, Need.HOST)
    }
    assert {path for path in without if not re.search(r"\.(css|d\.ts|html|js|svg|ico)$", path)} == OPEN - (
        set() if fleet else {"/i/{instance}"}
    )
    assert {path.removeprefix("/i/{instance}") for _, path, need in routes if need is Need.METRICS} == {"/metrics"}
    assert {method for method, _, need in routes if need in READS} == {"GET", "HEAD", "POST"}


async def test_each_route_answers_a_token_only_within_its_scope(hub):
    """Whatever the router has, asked as it is: without a token, with one for metrics, with one that reads."""
    asked = [(method, re.sub(r"\{\w+\}", "x", path), need) for method, path, need in declared(hub, None)]
    async with served(hub, tokens=(READER, SCRAPER), unknown_id_wait=0) as url, aiohttp.ClientSession(url) as session:

        async def status(method: str, path: str, headers: dict[str, str]) -> int:
            async with session.request(method, path, headers=headers) as response:
                return response.status

        wrong = {}
        for method, path, need in asked:
            if need in (Need.NOTHING, Need.HOST):
                continue
            found = [await status(method, path, headers) for headers in ({}, BEARER["scraper"], BEARER["reader"])]
            good = [401, *([403, "served"] if need in READS else ["served", 403])]
            if [one if one in (401, 403) else "served" for one in found] != good:
                wrong[method, path] = found
        assert wrong == {}
        assert await status("GET", "/no/such/path", {}) == 401
        assert await status("GET", "/no/such/path", BEARER["scraper"]) == 403
        assert await status("GET", "/no/such/path", BEARER["reader"]) == 404


async def closed_with(session: aiohttp.ClientSession, hello: dict[str, object], origin: str | None = None) -> int:
    """The close code of a websocket that sends `hello`, or 0 if it is welcomed."""
    async with session.ws_connect("/ws", origin=origin) as ws:
        await ws.send_json(hello)
        answer = await ws.receive(PATIENCE)
        return ws.close_code or 1005 if answer.type is aiohttp.WSMsgType.CLOSE else 0


async def test_a_token_for_metrics_opens_neither_a_websocket_nor_a_stream_and_gets_no_ticket(hub):
    async with served(hub, tokens=(READER, SCRAPER)) as url, aiohttp.ClientSession(url) as session:
        assert await closed_with(session, HELLO | {"token": SCRAPER.secret.decode()}) == 4403
        assert await closed_with(session, HELLO | {"token": READER.secret.decode()}) == 0
        async with session.post("/api/v1/ticket", headers=BEARER["scraper"]) as response:
            assert response.status == 403
            assert "scope read" in (await response.json())["detail"]


async def test_connections_end_when_their_token_expires_and_others_stay(hub):
    clock = 1_000.0
    ends = Grant("ends", b"a-token-that-ends", frozenset({"read"}), until=2_000.0)
    headers = {"Authorization": "Bearer a-token-that-ends"}
    async with (
        served(hub, tokens=(READER, ends), now=lambda: clock) as url,
        aiohttp.ClientSession(url) as session,
        session.ws_connect("/ws") as ending,
        session.ws_connect("/ws") as staying,
        session.get("/api/v1/stream", headers=headers) as stream,
    ):
        await ending.send_json(HELLO | {"token": "a-token-that-ends"})
        await staying.send_json(HELLO | {"token": READER.secret.decode()})
        for ws in (ending, staying):
            assert (await ws.receive_json(timeout=PATIENCE))["type"] == "welcome"
        clock = 2_000.0
        assert (await ending.receive(PATIENCE)).type is aiohttp.WSMsgType.CLOSE
        assert ending.close_code == 4401
        assert b'"code":4401' in await stream.content.read()
        await staying.send_json({"type": "ping"})
        assert (await staying.receive_json(timeout=PATIENCE))["type"] == "pong"
        async with session.get("/api/v1/jobs", headers=headers) as response:
            assert response.status == 401


def test_a_connection_stays_while_its_token_has_the_rights_with_which_it_began():
    narrow = Grant("t", b"t", frozenset({"read"}), frozenset({"dc1"}))
    wide = Grant("t", b"t", frozenset({"read", "metrics"}))
    access = Access(listen_host="x", clock=time.monotonic, rules=Rules([narrow]))
    access.change(Rules([wide]))
    assert access.holds(narrow)
    for less in (
        Grant("t", b"t", frozenset({"metrics"})),
        Grant("t", b"t", frozenset({"read"}), frozenset({"dc1", "dc2"})),
        Grant("t", b"t", wide.scope, until=1.0),
        Grant("t", b"another", wide.scope),
    ):
        access.change(Rules([less]))
        assert not access.holds(wide), less


ENDED = Grant("ended", b"the-token-that-ended", frozenset({"read"}), until=1.0)


def counts() -> dict[str, float]:
    return {reason: value(metrics.REFUSED.labels(reason)) for reason in REASONS}


def counted(before: dict[str, float]) -> dict[str, float]:
    """The refusals since then, by their reason."""
    return {reason: count - before[reason] for reason, count in counts().items() if count != before[reason]}


@pytest.mark.parametrize(
    ("headers", "status", "reason"),
    [
        ({}, 401, "no_token"),
        ({"Authorization": "Basic Z3VpOmE="}, 401, "no_token"),
        ({"Authorization": "Bearer a-guess-of-somebody"}, 401, "wrong_token"),
        ({"Authorization": f"Bearer {ENDED.secret.decode()}"}, 401, "expired"),
        (BEARER["scraper"], 403, "scope"),
        (BEARER["reader"] | {"Host": "evil.example"}, 403, "host"),
        (BEARER["reader"] | {"Origin": "https://evil.example"}, 403, "origin"),
        (BEARER["reader"] | {"Sec-Fetch-Site": "cross-site"}, 403, "origin"),
        (BEARER["reader"], 200, None),
    ],
)
async def test_each_request_that_is_refused_is_counted_by_its_reason(hub, headers, status, reason):
    async with served(hub, tokens=(READER, SCRAPER, ENDED)) as url, aiohttp.ClientSession(url) as session:
        before = counts()
        async with session.get("/api/v1/jobs", headers=headers) as response:
            assert response.status == status
            assert response.headers.get("WWW-Authenticate") == ("Bearer" if status == 401 else None)
        assert counted(before) == ({reason: 1} if reason else {})


@pytest.mark.parametrize(
    ("hello", "origin", "code", "reason"),
    [
        ({}, None, 4401, "no_token"),
        ({"token": "a-guess-of-somebody"}, None, 4403, "wrong_token"),
        ({"token": ENDED.secret.decode()}, None, 4401, "expired"),
        ({"token": SCRAPER.secret.decode()}, None, 4403, "scope"),
        ({"token": READER.secret.decode()}, "https://evil.example", 4403, "origin"),
        ({"token": READER.secret.decode()}, None, 0, None),
    ],
)
async def test_each_websocket_that_is_refused_is_counted_by_its_reason(hub, hello, origin, code, reason):
    async with served(hub, tokens=(READER, SCRAPER, ENDED)) as url, aiohttp.ClientSession(url) as session:
        before = counts()
        assert await closed_with(session, HELLO | hello, origin=origin) == code
        assert counted(before) == ({reason: 1} if reason else {})


async def test_a_ticket_that_has_been_used_and_guesses_that_come_too_fast_are_counted(hub):
    async with served(hub, tokens=(READER,)) as url, aiohttp.ClientSession(url) as session:
        async with session.post("/api/v1/ticket", headers=BEARER["reader"]) as response:
            ticket = (await response.json())["ticket"]
        before = counts()
        found = []
        for _ in range(2):
            async with session.get("/api/v1/jobs", params={"ticket": ticket}) as response:
                found.append(response.status)
        assert (found, counted(before)) == ([200, 401], {"ticket": 1})

        async def guess(n: int) -> tuple[int, str | None]:
            async with session.get("/api/v1/jobs", headers={"Authorization": f"Bearer a-guess-{n:09}"}) as response:
                return response.status, response.headers.get("Retry-After")

        guesses = [asyncio.create_task(guess(n)) for n in range(60)]
        await eventually(lambda: counted(before).get("guesses", 0) >= 60 - MAX_WAITING - FREE_GUESSES - 1)
        for path, status in (("/api/v1/jobs", 200), ("/health/ready", 200)):
            async with session.get(path, headers=BEARER["reader"]) as response:
                assert response.status == status, "a token that is known from this address waits for nobody"
        headers = {"Authorization": "Bearer another-guess-of-it"}
        async with session.get("/health/ready", headers=headers) as response:
            assert set((await response.json())["parts"]["database"]) == {"ok"}, "a probe is answered at once"
        for guessing in guesses:
            guessing.cancel()
        answers = {one.result() for one in guesses if one.done() and not one.cancelled()}
        assert answers == {(401, None), (429, "2")}


async def test_the_journal_says_who_was_refused_and_who_read_the_logs_and_holds_no_token(
    appliance_file: Path, tmp_path: Path
):
    (tmp_path / "gui").write_text(READER.secret.decode())
    (tmp_path / "probe").write_text(SCRAPER.secret.decode())
    (tmp_path / "correlator.toml").write_text(
        f"[[http.tokens]]\nname = 'gui'\nfile = '{tmp_path / 'gui'}'\n"
        f"[[http.tokens]]\nname = 'probe'\nfile = '{tmp_path / 'probe'}'\nscope = ['metrics']\n"
        "[log]\nlevel = 'error'\nformat = 'json'\n"
    )
    daemon = Daemon(tmp_path, database__url=f"sqlite://{appliance_file}")
    daemon.arguments = ("--config", str(tmp_path / "correlator.toml"))
    asked = (
        (f"/api/v1/job/log?id={quote(NAMES[0], safe='')}", BEARER["reader"], 200),
        ("/api/v1/events?text=a", BEARER["reader"], 200),
        ("/api/v1/jobs", BEARER["scraper"], 403),
        ("/metrics", BEARER["scraper"], 200),
        ("/api/v1/jobs", {"Authorization": "Bearer a-guess-of-somebody"}, 401),
    )
    try:
        await daemon.start()
        assert daemon.session is not None
        for path, headers, status in asked:
            async with daemon.session.get(path, headers=headers) as response:
                assert response.status == status, path
                await response.read()
    finally:
        await daemon.close()
    lines = [json.loads(line) for line in daemon.log().splitlines() if "correlator.audit" in line]
    assert [(line["message"], line["token"], line.get("reason")) for line in lines] == [
        ("a log is downloaded", "gui", None),
        ("all logs are searched", "gui", None),
        ("a login was refused: this token does not have the scope read", "probe", "scope"),
        ("a login was refused: this token is not known", "", "wrong_token"),
    ]
    assert {line["address"] for line in lines} == {"127.0.0.1"}
    assert lines[0]["job_id"]
    assert not [word for word in ("that-reads", "that-scrapes", "a-guess") if word in daemon.log()]
