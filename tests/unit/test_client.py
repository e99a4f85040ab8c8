"""The client against a server of our own: it comes back, resumes, and says plainly what is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import WSMsgType, web

from correlator import client as client_module
from correlator.client import IDS_IN_ONE, Client, NotACorrelator, Refused, Unreachable
from correlator.errors import BadRequest
from correlator.replica import Update
from correlator.replica.messages import Wanted
from tests.servers import free_port


def job(job_id: str, rev: int, **members: Any) -> dict[str, Any]:
    return {"job_id": job_id, "rev": rev, "status": "running", **members}


def welcome(epoch="e", *, resumed=False, seq=0):
    return {"type": "welcome", "epoch": epoch, "seq": seq, "resumed": resumed, "ping_seconds": 25}


def snapshot(sub, *jobs, seq=10):
    return {"type": "snapshot", "sub": sub, "seq": seq, "more": False, "jobs": list(jobs)}


def synced(sub, seq=10):
    return {"type": "synced", "sub": sub, "seq": seq, "count": 0, "unknown": []}


def put(document, seq, sub=(1,)):
    return {"type": "put", "sub": list(sub), "seq": seq, "job_id": document["job_id"], "rev": document["rev"],
            "job": document}  # fmt: skip


Talk = Callable[[web.WebSocketResponse], Awaitable[None]]


class Fake:
    """An HTTP server; every websocket is given to the next of `talks`, the last of them again and again."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.talks: list[Talk] = []
        self.heard: list[dict[str, Any]] = []
        self.seen: list[web.Request] = []
        self.replies: list[web.Response] = []

    async def ws(self, request: web.Request) -> web.StreamResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        talk = self.talks.pop(0) if len(self.talks) > 1 else self.talks[0]
        await talk(ws)
        await ws.close()
        return ws

    async def rest(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        return self.replies.pop(0) if self.replies else web.Response(status=404, text="nothing here")

    async def listen(self, ws: web.WebSocketResponse, kind: str) -> None:
        async for frame in ws:
            assert frame.type is WSMsgType.TEXT
            said = json.loads(frame.data)
            self.heard.append(said)
            if said["type"] == kind:
                return


@pytest.fixture
async def fake() -> AsyncIterator[Fake]:
    fake = Fake()
    app = web.Application()
    app.add_routes([web.get("/ws", fake.ws), web.get("/{path:.*}", fake.rest)])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", fake.port).start()
    yield fake
    await runner.cleanup()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(client_module, "SILENT_AFTER", 0.3)


async def updates_until(client: Client, wanted: Wanted, done: Callable[[Update], bool], **options: Any) -> list[Update]:
    found = []
    async with asyncio.timeout(10), contextlib.aclosing(client.follow(wanted, **options)) as updates:
        async for update in updates:
            found.append(update)
            if done(update):
                break
    return found


async def test_it_says_hello_subscribes_and_hands_on_what_comes(fake):
    async def talk(ws):
        await fake.listen(ws, "hello")
        await ws.send_json(welcome())
        await fake.listen(ws, "subscribe")
        await ws.send_json([snapshot(1, job("a", 1)), synced(1)])
        await fake.listen(ws, "never")

    fake.talks = [talk]
    async with Client(fake.url, token="t") as client:
        found = await updates_until(client, Wanted(jobs=("a",)), lambda u: u.synced)
    assert dict(found[-1].jobs) == {"a": job("a", 1)}
    assert fake.heard == [
        {"type": "hello", "version": 1, "token": "t"},
        {"type": "subscribe", "id": 1, "jobs": ["a"]},
    ]


async def test_a_connection_that_ends_is_made_again_and_resumed(fake):
    async def first(ws):
        await ws.send_json([welcome(), snapshot(1, job("a", 1)), synced(1, 7)])
        await ws.send_json({"type": "bye", "code": 1012, "retry_ms": [0, 10]})
        await ws.close(code=1012)

    async def second(ws):
        await fake.listen(ws, "hello")
        await ws.send_json(welcome(resumed=True))
        await fake.listen(ws, "subscribe")
        await ws.send_json([put(job("a", 8, status="completed"), 8), synced(1, 8)])
        await fake.listen(ws, "never")

    fake.talks = [first, second]
    async with Client(fake.url) as client:
        found = await updates_until(client, Wanted(), lambda u: "completed" in str(dict(u.jobs)) and u.synced)
    assert [u.connection.state for u in found if u.connection.state == "offline"] == ["offline"]
    assert fake.heard == [
        {"type": "hello", "version": 1, "resume": {"epoch": "e", "seq": 7}},
        {"type": "subscribe", "id": 1, "resume": True},
    ]


async def test_a_daemon_that_says_nothing_is_taken_for_dead(fake):
    async def silent(ws):
        await ws.send_json(welcome())
        await fake.listen(ws, "never")

    fake.talks = [silent]
    async with Client(fake.url) as client:
        found = await updates_until(client, Wanted(), lambda u: u.connection.state == "offline")
    assert "does not answer" in (found[-1].connection.error or "")


async def test_many_ids_are_parted_into_frames_that_the_daemon_takes(fake):
    async def talk(ws):
        await ws.send_json(welcome())
        for _ in range(3):
            await fake.listen(ws, "subscribe")
        await ws.send_json([synced(1), synced(2), synced(3)])
        await fake.listen(ws, "never")

    fake.talks = [talk]
    names = tuple(f"{n:04}" + "\U0001f680" * 251 for n in range(2 * IDS_IN_ONE + 1))
    async with Client(fake.url) as client:
        await updates_until(client, Wanted(jobs=names), lambda u: u.synced)
    subscribed = [said for said in fake.heard if said["type"] == "subscribe"]
    assert tuple(name for said in subscribed for name in said["jobs"]) == names
    assert max(len(json.dumps(said, ensure_ascii=False).encode()) for said in subscribed) < 64 * 1024


async def test_the_daemons_clock_is_told_by_its_bookmarks(fake):
    async def talk(ws):
        at = "2100-01-01T00:00:00.000000Z"
        await ws.send_json([welcome(), synced(1), {"type": "bookmark", "seq": 1, "at": at}])
        await fake.listen(ws, "never")

    fake.talks = [talk]
    async with Client(fake.url) as client:
        found = await updates_until(client, Wanted(), lambda u: u.synced)
    assert found[-1].ahead > 365 * 86400


async def test_nobody_there_is_said_with_what_helps():
    url = f"http://127.0.0.1:{free_port()}"
    async with Client(url) as client:
        for ask in (client.job("a"), updates_until(client, Wanted(), lambda _: True)):
            with pytest.raises(
                Unreachable, match=r"(?s)cannot be reached: Connection refused.*--url or CORRELATOR_URL"
            ) as e:
                await ask
            assert url in str(e.value)


async def test_the_patient_wait_for_a_daemon_that_is_not_there_yet():
    async with Client(f"http://127.0.0.1:{free_port()}") as client:
        found = await updates_until(client, Wanted(), lambda u: u.connection.state == "offline", patient=True)
    assert "cannot be reached" in (found[-1].connection.error or "")


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (4401, Refused, "asks for a token: give one with --token-file or CORRELATOR_TOKEN"),
        (4403, Refused, "does not know this token"),
        (4400, NotACorrelator, "another version"),
    ],
)
async def test_a_close_code_that_waiting_does_not_mend_ends_it(fake, code, kind, words):
    async def talk(ws):
        await ws.close(code=code)

    fake.talks = [talk]
    async with Client(fake.url) as client:
        with pytest.raises(kind, match=words):
            await updates_until(client, Wanted(), lambda u: u.connection.state == "offline", patient=True)


def problem(status, detail):
    return web.json_response({"detail": detail}, status=status, content_type="application/problem+json")


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (lambda: problem(401, "a token"), Refused, "asks for a token"),
        (lambda: problem(403, "this Host is not served"), Refused, "this Host is not served"),
        (lambda: problem(503, "the database is away"), Unreachable, "the database is away"),
        (lambda: problem(400, "limit: too much"), BadRequest, "limit: too much"),
        (lambda: web.Response(text="<html>", content_type="text/html"), NotACorrelator, "text/html"),
        (lambda: web.Response(status=302, headers={"Location": "/login"}), NotACorrelator, "302"),
        (lambda: web.Response(status=404, text="nope"), NotACorrelator, "404"),
        (lambda: web.json_response([1]), NotACorrelator, "200"),
        (lambda: web.Response(text="{", content_type="application/json"), NotACorrelator, "200"),
        (lambda: web.json_response({"hello": 1}), NotACorrelator, "no jobs"),
    ],
)
async def test_an_answer_that_is_none_is_said_plainly(fake, reply, kind, words):
    fake.replies = [reply()]
    async with Client(fake.url) as client:
        with pytest.raises(kind, match=words):
            await client.jobs({}, 10)


async def test_an_id_with_any_characters_reaches_the_daemon_as_it_is(fake):
    names = ["a/b", "a%2Fb", "ü?#&+ x"]
    async with Client(fake.url + "/base/") as client:
        for name in names:
            fake.replies = [web.json_response(job(name, 1))]
            assert await client.job(name) == job(name, 1)
        fake.replies = [problem(404, "no job is known")]
        assert await client.job("a") is None
    assert [request.raw_path for request in fake.seen] == [
        "/base/api/v1/jobs/a%2Fb", "/base/api/v1/jobs/a%252Fb",
        "/base/api/v1/jobs/%C3%BC%3F%23%26%2B%20x", "/base/api/v1/jobs/a",
    ]  # fmt: skip


async def test_jobs_are_read_page_by_page_up_to_the_limit(fake):
    fake.replies = [
        web.json_response({"jobs": [job("a", 1)] * 500, "next_cursor": "n"}),
        web.json_response({"jobs": [job("b", 1)] * 100, "next_cursor": "m"}),
    ]
    async with Client(fake.url) as client:
        assert len(await client.jobs({"status": ("running", "failed")}, 600)) == 600
    queries = [[*request.query.items()] for request in fake.seen]
    assert queries == [
        [("status", "running"), ("status", "failed"), ("limit", "500")],
        [("status", "running"), ("status", "failed"), ("limit", "100"), ("cursor", "n")],
    ]


@pytest.mark.parametrize("url", ["ftp://h", "http://", "http://h:99999", "http://u:p@h", "http://h?q=1", "http://[::1"])
def test_what_is_no_url_is_said(url):
    with pytest.raises(BadRequest, match="no URL of a correlator"):
        Client(url)


def test_a_host_alone_is_a_url():
    assert Client("appliance:8686").url == "http://appliance:8686"
