"""The client against a fake daemon: it reconnects, resumes, and reports errors plainly."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from aiohttp import web

from correlator.client import (
    AccessRefused,
    BadRequest,
    Client,
    Incomplete,
    LogMessage,
    NotACorrelator,
    NotFound,
    Unreachable,
    Update,
    Wanted,
)
from correlator.client.client import IDS_IN_ONE
from correlator.terminal import listing
from tests.support.fake_daemon import FakeDaemon
from tests.support.messages import job, put, snapshot, synced, welcome
from tests.support.servers import free_port


@pytest.fixture
async def fake() -> AsyncIterator[FakeDaemon]:
    async with FakeDaemon().running() as fake:
        yield fake


async def updates_until(
    client: Client, wanted: str | Sequence[str] | Wanted, done: Callable[[Update], bool], **options: Any
) -> list[Update]:
    found = []
    async with asyncio.timeout(60), contextlib.aclosing(client.follow(wanted, **options)) as updates:
        async for update in updates:
            found.append(update)
            if done(update):
                break
    return found


async def test_a_lost_connection_is_opened_again_and_resumed(fake):
    async def first(ws):
        await ws.send_json([welcome(), snapshot(1, job("a", 1)), synced(1, 7)])
        await ws.send_json({"type": "bye", "code": 1012, "retry_ms": [0, 10]})
        await ws.close(code=1012)

    async def second(ws):
        await fake.wait_for(ws, "hello")
        await ws.send_json(welcome(resumed=True))
        await fake.wait_for(ws, "subscribe")
        await ws.send_json([put(job("a", 8, status="completed"), 8), synced(1, 8)])
        await fake.wait_for(ws, "never")

    fake.scripts = [first, second]
    async with Client(fake.url) as client:
        found = await updates_until(client, Wanted(), lambda u: "completed" in str(dict(u.jobs)) and u.synced)
    assert [u.connection.state for u in found if u.connection.state == "offline"] == ["offline"]
    assert fake.received == [
        {"type": "hello", "version": 1, "resume": {"epoch": "e", "seq": 7}},
        {"type": "subscribe", "id": 1, "resume": True},
    ]


async def test_a_silent_daemon_counts_as_disconnected(fake):
    async def silent(ws):
        await ws.send_json(welcome())
        await fake.wait_for(ws, "never")

    fake.scripts = [silent]
    async with Client(fake.url, silent_after=0.3) as client:
        found = await updates_until(client, Wanted(), lambda u: u.connection.state == "offline")
    assert "does not answer" in (found[-1].connection.error or "")


async def test_many_ids_are_split_into_frames_that_the_daemon_accepts(fake):
    async def talk(ws):
        await ws.send_json(welcome())
        for _ in range(3):
            await fake.wait_for(ws, "subscribe")
        await ws.send_json([synced(1), synced(2), synced(3)])
        await fake.wait_for(ws, "never")

    fake.scripts = [talk]
    names = tuple(f"{n:04}" + "\U0001f680" * 251 for n in range(2 * IDS_IN_ONE + 1))
    async with Client(fake.url) as client:
        await updates_until(client, Wanted(jobs=names), lambda u: u.synced)
    subscribed = [message for message in fake.received if message["type"] == "subscribe"]
    assert tuple(name for message in subscribed for name in message["jobs"]) == names
    assert max(len(json.dumps(message, ensure_ascii=False).encode()) for message in subscribed) < 64 * 1024


async def test_the_daemons_clock_is_estimated_from_its_bookmarks(fake):
    async def talk(ws):
        at = "2100-01-01T00:00:00.000000Z"
        await ws.send_json([welcome(), synced(1), {"type": "bookmark", "seq": 1, "at": at}])
        await fake.wait_for(ws, "never")

    fake.scripts = [talk]
    async with Client(fake.url) as client:
        found = await updates_until(client, Wanted(), lambda u: u.synced)
    assert found[-1].ahead > 365 * 86400


async def test_an_unreachable_daemon_is_reported_with_a_fix_unless_the_caller_is_patient():
    url = f"http://127.0.0.1:{free_port()}"
    said = rf"(?s){url}.*cannot be reached: Connection refused.*--url or CORRELATOR_URL"
    async with Client(url) as client:
        for ask in (client.job("a"), updates_until(client, Wanted(), lambda _: True)):
            with pytest.raises(Unreachable, match=said):
                await ask
        found = await updates_until(client, Wanted(), lambda u: u.connection.state == "offline", patient=True)
    assert "cannot be reached" in (found[-1].connection.error or "")


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (4401, AccessRefused, "asks for a token: give one, with --token-file or CORRELATOR_TOKEN in a terminal"),
        (4403, AccessRefused, "does not know this token"),
        (4400, NotACorrelator, "another version"),
    ],
)
async def test_a_close_code_that_a_retry_cannot_fix_raises(fake, code, kind, words):
    async def talk(ws):
        await ws.close(code=code)

    fake.scripts = [talk]
    async with Client(fake.url) as client:
        with pytest.raises(kind, match=words):
            await updates_until(client, Wanted(), lambda u: u.connection.state == "offline", patient=True)


def problem(status, detail):
    return web.json_response({"detail": detail}, status=status, content_type="application/problem+json")


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (lambda: problem(403, "this Host is not served"), AccessRefused, "this Host is not served"),
        (lambda: problem(503, "the database is unreachable"), Unreachable, "the database is unreachable"),
        (lambda: problem(429, "too many requests of this address wait"), Unreachable, "too many requests"),
        (lambda: problem(400, "limit: too much"), BadRequest, "limit: too much"),
        (lambda: web.Response(text="<html>", content_type="text/html"), NotACorrelator, "text/html"),
        (lambda: web.Response(status=302, headers={"Location": "/login"}), NotACorrelator, "302"),
        (lambda: web.Response(text="{", content_type="application/json"), NotACorrelator, "200"),
        (lambda: web.json_response({"hello": 1}), NotACorrelator, "no member `jobs`"),
    ],
)
async def test_each_failed_response_raises_its_error(fake, reply, kind, words):
    fake.replies = [reply()]
    async with Client(fake.url) as client:
        with pytest.raises(kind, match=words):
            await client.jobs({}, 10)


async def test_an_id_with_any_characters_reaches_the_daemon_unchanged(fake):
    names = ["a/b", "a%2Fb", "ü?#&+ x"]
    async with Client(fake.url + "/base/") as client:
        for name in names:
            fake.replies = [web.json_response(job(name, 1))]
            assert await client.job(name) == job(name, 1)
        fake.replies = [problem(404, "no job is known")]
        assert await client.job("a") is None
    assert [request.raw_path for request in fake.requests] == [
        "/base/api/v1/jobs/a%2Fb", "/base/api/v1/jobs/a%252Fb",
        "/base/api/v1/jobs/%C3%BC%3F%23%26%2B%20x", "/base/api/v1/jobs/a",
    ]  # fmt: skip


async def test_jobs_are_read_page_by_page_up_to_the_limit(fake):
    fake.replies = [
        web.json_response({"jobs": [job("a", 1)] * 500, "next_cursor": "n"}),
        web.json_response({"jobs": [job("b", 1)] * 100, "next_cursor": "m"}),
    ]
    async with Client(fake.url) as client:
        assert len((await client.jobs({"status": ("running", "failed")}, 600)).found) == 600
    queries = [[*request.query.items()] for request in fake.requests]
    assert queries == [
        [("status", "running"), ("status", "failed"), ("limit", "500")],
        [("status", "running"), ("status", "failed"), ("limit", "100"), ("cursor", "n")],
    ]


async def test_a_page_of_log_lines_is_read_when_it_is_wanted(fake):
    page = {"events": [{"event_id": 1, "message": "m"}] * 1_000, "next_after": "n", "more": True}
    fake.replies = [web.json_response(page) for _ in range(3)]
    count = 0
    async with Client(fake.url) as client, contextlib.aclosing(client.lines("a", "DEBUG")) as lines:
        async for _ in lines:
            if (count := count + 1) == 1_500:
                break
    assert len(fake.replies) == 1


async def test_lines_that_may_be_missing_are_an_error_after_those_that_were_found(fake):
    page = {"events": [{"event_id": 1, "message": "m"}], "next_after": "n", "more": True}
    more = {"events": [{"event_id": 2, "message": "m"}], "next_after": "n", "more": False}
    fake.replies = [web.json_response(page | {"complete": False, "reason": "times"}), web.json_response(more)]
    async with Client(fake.url) as client, contextlib.aclosing(client.lines("a", "DEBUG")) as lines:
        assert [(await anext(lines)).event_id for _ in range(2)] == [1, 2]
        with pytest.raises(Incomplete, match="times"):
            await anext(lines)


async def test_log_lines_of_an_unknown_job_and_a_server_without_a_search_of_lines_are_errors(fake):
    fake.replies = [problem(404, "x"), web.json_response({"detail": "there is no /api/v1/events here"}, status=404)]
    async with Client(fake.url) as client:
        with pytest.raises(NotFound, match=f"no job is known by 'a' at {fake.url}"):
            await anext(client.lines("a"))
        with pytest.raises(NotACorrelator, match="no member `events`"):
            await anext(client.found_lines({"text": "x"}))


@pytest.mark.parametrize(
    ("what", "logs", "wanted"),
    [
        ("abc", None, {"jobs": ["abc"]}),
        (["a", "b"], "WARN", {"jobs": ["a", "b"], "logs": "WARN"}),
        (Wanted(status=("running",)), "DEBUG", {"status": ["running"], "logs": "DEBUG"}),
    ],
)
async def test_an_id_several_or_a_filter_can_be_followed(fake, what, logs, wanted):
    older, newer = job("a", 1, started_at="2026-01-01"), job("b", 1, started_at="2026-01-02")

    async def talk(ws):
        await fake.wait_for(ws, "hello")
        await ws.send_json(welcome())
        await fake.wait_for(ws, "subscribe")
        await ws.send_json([snapshot(1, newer, older), synced(1)])
        await fake.wait_for(ws, "never")

    fake.scripts = [talk]
    async with Client(fake.url, token="t") as client:
        found = await updates_until(client, what, lambda u: u.synced, logs=logs)
    assert fake.received == [
        {"type": "hello", "version": 1, "token": "t"},
        {"type": "subscribe", "id": 1, **wanted},
    ]
    assert dict(found[-1].jobs) == {"a": older, "b": newer}
    assert found[-1].job is not None
    assert found[-1].job["job_id"] == "b"


async def test_a_message_that_is_too_large_is_an_error_that_says_so(fake):
    async def talk(ws):
        await fake.wait_for(ws, "hello")
        await ws.send_str(" " * ((64 << 20) + 1))
        await fake.wait_for(ws, "never")

    fake.scripts = [talk]
    async with Client(fake.url) as client:
        with pytest.raises(NotACorrelator, match="larger than 64 MiB"):
            await updates_until(client, Wanted(), lambda u: u.synced)


async def test_a_list_without_the_database_is_incomplete_and_has_a_reason(fake):
    why = {"complete": False, "reason": "the database is unreachable"}
    fake.replies = [web.json_response({"jobs": [job("a", 1)], "next_cursor": None} | why) for _ in range(2)]
    out, err = io.StringIO(), io.StringIO()
    async with Client(fake.url) as client:
        listed = await client.jobs({}, 50)
        assert (listed.found, listed.more, listed.incomplete) == ([job("a", 1)], False, "the database is unreachable")
        await listing.jobs(client, listing.Query(limit=50), listing.Form("json"), out, err)
    assert json.loads(out.getvalue()) == [job("a", 1)]
    assert err.getvalue() == "correlator: the list is incomplete: the database is unreachable\n"


async def test_empty_pages_before_the_last_are_skipped_and_a_search_ends_in_time(fake):
    def page(*found, following):
        return web.json_response({"jobs": list(found), "next_cursor": following, "complete": True})

    fake.replies = [
        *(page(following="n"), page(following="m"), page(job("a", 1), following=None)),
        web.json_response({"events": [], "next_after": "n", "more": True}),
        web.json_response({"events": [{"event_id": 1, "message": "m"}], "next_after": "o", "more": False}),
    ]
    async with Client(fake.url) as client:
        assert (await client.jobs({"q": "x"}, 50)).found == [job("a", 1)]
        lines = [line async for line in client.lines("b", "DEBUG")]
    assert lines == [LogMessage(job_id="b", event_id=1, message="m")]
    fake.replies = [page(following=str(n)) for n in range(9)]
    async with Client(fake.url, search_within=0.0) as client:
        listed = await client.jobs({"q": "x"}, 50)
    assert (listed.found, listed.more) == ([], True)
    assert "not searched" in str(listed.incomplete)


@pytest.mark.parametrize("url", ["ftp://h", "http://", "http://h:99999", "http://u:p@h", "http://h?q=1", "http://[::1"])
def test_an_invalid_url_is_rejected(url):
    with pytest.raises(BadRequest, match="no URL of a correlator"):
        Client(url)


async def test_a_host_alone_is_a_url_and_a_client_that_is_not_open_says_how_it_is_used():
    client = Client("appliance:8686")
    assert client.url == "http://appliance:8686"
    with pytest.raises(RuntimeError, match=r"use it as `async with Client"):
        await client.job("a")
