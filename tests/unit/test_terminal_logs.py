"""`logs` against a fake daemon: pages, the stream, what it drops, a lost connection, an unknown ID, the end."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import pytest
from aiohttp import web

from correlator.client.client import Client
from correlator.client.messages import LogMessage
from correlator.errors import NotFound
from correlator.sources.archive import lines as archived
from correlator.terminal import logs as command
from correlator.terminal.logs import LogsOrder, Printer, mentions
from tests.support.eventually import PATIENCE, eventually
from tests.support.fake_daemon import FakeDaemon
from tests.support.messages import delta, job, snapshot, synced, welcome

AT = "2026-11-26T10:00:00.000000Z"
STEPS = {"7": {"seq": 1, "name": "copy"}, "8": {"seq": 2, "name": "attach"}}


def line(event_id: int, step_id: int | None = None, **members: Any) -> dict[str, Any]:
    return {"event_id": event_id, "level": "INFO", "message": f"line {event_id}", "step_id": step_id, "attrs": None,
            "at": AT, **members}  # fmt: skip


class Scripted(FakeDaemon):
    """A daemon with one job, whose lines are those of `lines`, in pages of two."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, Any]] = []
        self.job: dict[str, Any] | None = job("a", 1, steps=STEPS)
        self.found: list[dict[str, Any]] = []
        """The pages of the search for lines of any job."""
        self.reason: str | None = None
        """Why lines may be missing from the pages."""
        self.failures = 0
        """Requests for lines to answer with 503 before the next page."""

    def reply(self, request: web.Request) -> web.Response:
        if request.path == "/api/v1/events":
            return web.json_response(self.found[int(request.query.get("cursor", 0))])
        if request.path.endswith("/events"):
            if self.failures > 0:
                self.failures -= 1
                return web.json_response({"detail": "busy"}, status=503, content_type="application/problem+json")
            lines = [one for one in self.lines if request.query.get("q", "") in json.dumps(one)]
            if "before" in request.query:
                below = [one for one in lines if one["event_id"] < int(request.query["before"])]
                return web.json_response(
                    {"events": below[-2:], "next_before": below[-2]["event_id"] if len(below) > 2 else None}
                )
            start = int(request.query.get("from", 0))
            first = int(request.query.get("after", sum(one["event_id"] < start for one in lines)))
            some = lines[first : first + 2]
            more = len(lines) > first + 2
            missing = {"complete": self.reason is None, "reason": self.reason}
            return web.json_response({"events": some, "next_after": str(first + len(some)), "more": more, **missing})
        if self.job is None:
            return web.json_response({"detail": "no job"}, status=404, content_type="application/problem+json")
        return web.json_response(self.job)

    async def begin(self, ws: web.WebSocketResponse) -> None:
        await self.wait_for(ws, "hello")
        await ws.send_json(welcome())
        await self.wait_for(ws, "subscribe")
        await ws.send_json([snapshot(1, job("a", 1, steps=STEPS)), synced(1)])

    async def send_lines(self, ws: web.WebSocketResponse, *lines: dict[str, Any]) -> None:
        """Send lines, which are in the pages from then on too."""
        self.lines += lines
        await ws.send_json([{"type": "log", "sub": [1], "job_id": "a", **one} for one in lines])

    async def end(self, ws: web.WebSocketResponse) -> None:
        self.job = job("a", 20, steps=STEPS, status="completed", terminal=True)
        await ws.send_json(delta("a", 1, 20, status="completed", terminal=True))
        await self.wait_for(ws, "never")


@pytest.fixture
async def fake():
    async with Scripted().running() as fake:
        yield fake


async def printed(fake: FakeDaemon, **order: Any) -> tuple[list[int], str]:
    """The ids of the lines that are printed, and standard error."""
    out, err = io.StringIO(), io.StringIO()
    async with asyncio.timeout(PATIENCE), Client(fake.url) as client:
        await command.logs(client, LogsOrder("a", **order), Printer(out, "json"), err, settle=0.01)
    return [json.loads(one)["event_id"] for one in out.getvalue().splitlines()], err.getvalue()


async def test_lines_of_any_job_are_printed_as_they_are_found_with_a_note_on_what_is_missing(fake):
    names: dict[str, Any] = {"job_id": "u1", "vm_name": "web-1", "operation": "copy"}
    nobody: dict[str, Any] = dict.fromkeys(names)
    more = {"complete": False, "reason": "dc2 is away", "searched_to": None}
    fake.found = [
        {"events": [line(9, **names, attrs={"code": 503})], "next_cursor": "1", "searched": 0.2},
        {"events": [], "next_cursor": "2", "searched": 0.456},
        {"events": [line(5, **nobody), line(4, **names)], "next_cursor": "3", "searched": 0.5, **more},
    ]

    async def found(limit: int, output: command.Output = "plain") -> tuple[str, str]:
        out, err = io.StringIO(), io.StringIO()
        async with asyncio.timeout(PATIENCE), Client(fake.url) as client:
            await command.find_lines(client, {"text": "line"}, limit, out, output, err)
        return out.getvalue(), err.getvalue()

    out, err = await found(2)
    assert out == f"{AT} INFO  u1 web-1: line 9  code=503\n{AT} INFO  line 5\n"
    assert err == "correlator: the list is incomplete: dc2 is away\n"
    assert fake.requests[-1].query == {"text": "line", "limit": "2", "cursor": "2"}
    assert (await found(5))[1] == err
    out, err = await found(1, "json")
    assert (json.loads(out), err) == (
        fake.found[0]["events"][0],
        "correlator: these are the newest 1, in 20 % of the logs: --limit asks for others\n",
    )


async def test_lines_that_may_be_missing_are_reported_once(fake):
    fake.lines, fake.reason = [line(n) for n in range(1, 6)], "times are unread"
    ids, err = await printed(fake)
    assert (ids, err) == ([1, 2, 3, 4, 5], "correlator: lines may be missing: times are unread\n")


async def test_followed_lines_come_from_pages_and_the_stream_without_a_hole_or_a_repeat(fake):
    fake.lines = [line(n) for n in range(1, 6)]

    async def first(ws):
        await fake.begin(ws)
        await fake.send_lines(ws, line(6), line(7))
        await fake.send_lines(ws, line(9))
        fake.lines.insert(0, line(8))  # dropped by the daemon; the pages have it
        fake.lines.append(fake.lines.pop(0))
        await ws.send_json({"type": "log", "sub": [1], "dropped": 1})
        await ws.send_json([{"type": "log", "sub": [1], "job_id": "a", **line(n)} for n in (5, 9)])  # repeated
        fake.lines.append(line(10))  # while there is no connection
        await ws.send_json({"type": "bye", "code": 1012, "retry_ms": [0, 1]})

    async def second(ws):
        fake.failures = 1
        await fake.begin(ws)
        await fake.send_lines(ws, line(11))
        fake.lines.append(line(12))  # the last line, which the stream did not send
        await fake.end(ws)

    fake.scripts = [first, second]
    ids, err = await printed(fake, follow=True)
    assert sorted(ids) == list(range(1, 13))
    assert ids[:7] == list(range(1, 8))
    assert "trying again" in err
    assert "connected again" in err


async def test_an_unknown_id_is_waited_for_if_it_is_followed_and_else_an_error(fake):
    found, fake.job = fake.job, None
    with pytest.raises(NotFound, match="no job is known by 'a'"):
        await printed(fake)

    async def appear() -> None:
        await eventually(lambda: any("wait" in request.query for request in fake.requests))
        fake.lines, fake.job = [line(1)], {**found, "terminal": True, "status": "completed"}

    waiting = asyncio.create_task(appear())
    assert await printed(fake, follow=True) == ([1], "correlator: waiting for a\n")
    await waiting


async def test_all_lines_come_in_the_order_of_time_or_those_of_a_step_by_its_name_or_id(fake):
    fake.lines = [line(2, 7), line(3, 8), line(1, at="2026-11-26T09:59:59.999999Z"), line(4, 7), line(5)]
    assert await printed(fake) == ([1, 2, 3, 4, 5], "")
    assert await printed(fake, step="copy") == ([2, 4], "")
    assert await printed(fake, step="8", since="2026-11-26T10:00:00Z") == ([3], "")
    query = fake.requests[-1].query
    assert (query["step"], query["since"]) == ("8", "2026-11-26T10:00:00Z")
    with pytest.raises(NotFound, match="no step 'nope'; its steps are: copy, attach"):
        await printed(fake, step="nope")


@pytest.mark.parametrize("tail", range(1, 8))
async def test_the_last_lines_that_match_are_printed_however_the_pages_lie(fake, tail):
    fake.lines = [line(n, 7 if n in (2, 5, 6) else None) for n in range(1, 7)]
    assert await printed(fake, tail=tail) == ([1, 2, 3, 4, 5, 6][-tail:], "")
    assert await printed(fake, tail=tail, step="copy") == ([2, 5, 6][-tail:], "")


async def test_after_the_last_lines_that_have_a_text_the_new_ones_with_it_follow_each_once(fake):
    fake.lines = [line(1, message="503"), line(2, message="No 503 here"), line(3, message="503 too")]

    async def script(ws):
        await fake.begin(ws)
        await fake.send_lines(ws, line(4, message="HTTP 503"), line(5), line(6, attrs={"url": "/x", "code": 503}))
        await fake.end(ws)

    fake.scripts = [script]
    assert await printed(fake, follow=True, grep="503", tail=2) == ([2, 3, 4, 6], "")
    assert {one.query.get("q") for one in fake.requests if one.path.endswith("/events")} == {"503"}


@pytest.mark.parametrize(
    ("text", "attrs", "found"),
    [
        ("LINE", None, True),
        ("nul", None, False),
        ("pool ü", {"a": "Pool Ü"}, True),
        ('say "x"', {"a": 'say "x"'}, True),
        ('"a":1', {"a": 1}, False),
        ("broken", "{broken", True),
    ],
)
def test_a_text_is_searched_in_attributes_as_the_daemon_does(text, attrs, found):
    one = LogMessage(event_id=1, message="line 1", attrs=attrs)
    assert mentions(one, text) is found
    assert archived.attrs_contain(attrs, text) is (found and text != "LINE")


async def test_a_followed_job_that_is_deleted_is_an_error(fake):
    async def deleted(ws):
        await fake.begin(ws)
        fake.job = None
        await ws.send_json({"type": "delete", "sub": [1], "seq": 11, "job_id": "a", "reason": "gone"})
        await fake.wait_for(ws, "never")

    fake.scripts = [deleted]
    with pytest.raises(NotFound, match="deleted before it ended"):
        await printed(fake, follow=True)
