"""A token for one job, or for one VM: it opens just that, on every route and every way, and ends in time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncGenerator
from itertools import count
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from yarl import URL

from correlator.client import AccessRefused, Client, Update
from correlator.model import job_token
from correlator.model.messages import ClientMessage
from correlator.pipeline.pipeline import LocalHub
from correlator.sinks.http.access import Access, Rules
from correlator.sinks.http.grants import Denied, Grant, Need, job_grant
from correlator.sinks.http.openapi import openapi
from correlator.sinks.http.server import HttpSink, Listener
from correlator.sinks.streaming.subscriptions import Filter
from tests.support.daemon import HELLO, Daemon
from tests.support.eventually import PATIENCE, eventually
from tests.support.http_listener import served
from tests.support.pipeline_harness import PipelineHarness
from tests.support.small_appliance import NAMES

KEY, OLD = "the key of the backend and of us", "the key that was used until now!"
ALL = Grant("all", b"a-token-that-reads-all")
A, B, C, D = (f"00000000-0000-4000-8000-00000000000{n}" for n in "abcd")


@pytest.fixture
def jobs() -> PipelineHarness:
    """A (gui-a) and D (gui-d) are of the machine vm1, B (gui-b) and C, whose ID begins as that of A, of vm2."""
    harness = PipelineHarness()
    for job_id, name, machine in (
        (A, "gui-a", "vm1"),
        (B, "gui-b", "vm2"),
        (C, "gui-a/events", "vm2"),
        (D, "gui-d", "vm1"),
    ):
        harness.read(job_id, context_id="ctx", metadata=json.dumps({"vm_name": machine, "gui_job_id": name}))
    return harness


def bearer(*, key: str = KEY, now: float | None = None, **what: Any) -> dict[str, str]:
    """The header of a token for a `job` or a `vm`."""
    made = job_token.create(key, now=time.time() if now is None else now, **what)
    return {"Authorization": f"Bearer {made}"}


def of(headers: dict[str, str]) -> str:
    return headers["Authorization"].partition(" ")[2]


def sent(harness: PipelineHarness, **more: Any) -> Any:
    return served(harness.hub, tokens=(ALL,), job_keys=(KEY,), unknown_id_wait=0, **more)


async def status(session: aiohttp.ClientSession, path: str, headers: dict[str, str], method: str = "GET") -> int:
    async with session.request(method, path, headers=headers) as response:
        return response.status


# -- every route


def routes(hub: LocalHub) -> list[tuple[str, str, Need]]:
    sink = HttpSink(Listener("127.0.0.1", 0), Access(listen_host="x", clock=time.monotonic))
    sink.application(hub)
    return [(one.method, one.resource.canonical, need) for one, need in sink.routes.needs.items() if one.resource]


OF_A_JOB = {
    "/api/v1/job", "/api/v1/job/events", "/api/v1/job/log", "/api/v1/jobs/{id}", "/api/v1/jobs/{id}/events",
    "/api/v1/jobs/{id}/log", "/api/v1/resolve/{id}", "/api/v1/failover/{id}/status", "/api/v1/stream",
    "/api/v1/entities/{name}", "/api/v1/ticket",
}  # fmt: skip
"""What a token for one job, or for one VM, may ask at all."""


def asked(path: str, name: str) -> str:
    """The address of a route, about this ID."""
    filled = re.sub(r"\{\w+\}", quote(name, safe=""), path)
    return filled if filled != path or path == "/api/v1/ticket" else f"{path}?id={quote(name, safe='')}"


async def test_a_token_for_one_job_opens_the_routes_of_this_job_and_no_other_route_at_all(jobs):
    found = routes(jobs.hub)
    assert {path for _, path, need in found if need is Need.JOB} == OF_A_JOB
    async with sent(jobs) as url, aiohttp.ClientSession(url) as session:
        for method, path, need in found:
            own, other = (asked(path, name) for name in ("gui-a", "gui-b"))
            got = await status(session, own, bearer(job="gui-a"), method)
            if need in (Need.NOTHING, Need.HOST):
                assert got != 403 or "hash" in path, (method, own)  # another hash is no address
            elif need is not Need.JOB or path == "/api/v1/entities/{name}":
                assert got == 403, (method, own)
            else:
                assert got not in (401, 403), (method, own)
                if path != "/api/v1/ticket":
                    assert await status(session, other, bearer(job="gui-a"), method) == 403, (method, other)
                    assert await status(session, asked(path, "nobody"), bearer(job="gui-a"), method) == 403
        assert await status(session, "/no/such/path", bearer(job="gui-a")) == 403


async def test_a_token_for_a_vm_opens_its_jobs_and_its_history_and_nothing_of_another_vm(jobs):
    async with sent(jobs) as url, aiohttp.ClientSession(url) as session:
        for method, path, need in routes(jobs.hub):
            if need is Need.JOB and path not in ("/api/v1/ticket", "/api/v1/stream", "/api/v1/entities/{name}"):
                for name, allowed in (("gui-a", True), (D, True), ("gui-b", False), (C, False), ("nobody", False)):
                    got = await status(session, asked(path, name), bearer(vm="vm1"), method)
                    assert (got not in (401, 403)) is allowed, (method, path, name, got)
            elif need in (Need.READ, Need.METRICS):
                assert await status(session, asked(path, "vm1"), bearer(vm="vm1"), method) == 403, (method, path)
        for name, allowed in (
            ("vm1", True),
            ("vm1?kind=vm", True),
            ("vm1?kind=context", False),
            ("vm2", False),
            ("ctx", False),
        ):
            got = await status(session, f"/api/v1/entities/{name}", bearer(vm="vm1"))
            assert got == (200 if allowed else 403), name
        async with session.get("/api/v1/entities/vm1", headers=bearer(vm="vm1")) as response:
            assert {one["job_id"] for one in (await response.json())["jobs"]} == {A, D}


async def test_a_context_that_is_called_as_a_vm_does_not_show_its_jobs_to_the_token_of_the_vm(jobs):
    jobs.read("e", context_id="vm1", metadata='{"vm_name": "vm2"}')
    async with sent(jobs) as url, aiohttp.ClientSession(url) as session:
        async with session.get("/api/v1/entities/vm1", headers=bearer(vm="vm1")) as response:
            body = await response.json()
        assert (body["kind"], {one["job_id"] for one in body["jobs"]}) == ("vm", {A, D})


# -- IDs


@pytest.mark.parametrize(
    "path",
    [
        "jobs/GUI-A", "jobs/gui-a%20", "jobs/gui-a%00", "jobs/gui-", "jobs/gui-a%2Fevents", "jobs/gui%252Da",
        "jobs/ctx", f"jobs/{A.upper()}", "jobs/gui-a/../gui-b", "jobs/gui-a%2F..%2Fgui-b", "jobs/gui-a/log/log",
        "jobs/gui-b/events", "jobs/gui-a?instance=x", "job?id=gui-b&id=gui-a", "job?id=gui-a&id=gui-b",
        "job?id=gui-a%2Fevents", "stream?id=gui-a&id=gui-b", "stream", "stream?id=", f"stream?id={A}",
        "failover/gui-b%2F/status",
    ],
)  # fmt: skip
async def test_no_other_spelling_of_an_id_and_no_second_one_opens_anything(jobs, path):
    async with (
        sent(jobs) as url,
        aiohttp.ClientSession() as session,
        session.get(URL(f"{url}/api/v1/{path}", encoded=True), headers=bearer(job="gui-a")) as response,
    ):
        assert response.status in (400, 403, 404)
        text = await response.text()
        assert not [one for one in (B, C, D) if one in text]


async def test_a_raw_slash_in_an_address_leads_from_the_job_of_a_token_to_no_other_one(jobs):
    """`gui-a/events` is the log of gui-a; where there is no gui-a, it would be the job with that ID."""
    async with sent(jobs) as url, aiohttp.ClientSession(url) as session:
        headers = bearer(job="gone")
        jobs.read("e", metadata='{"gui_job_id": "gone/events"}')
        assert await status(session, "/api/v1/jobs/gone/events", ALL_HEADERS) == 200
        assert await status(session, "/api/v1/jobs/gone/events", headers) == 404
        assert await status(session, "/api/v1/jobs/gone%2Fevents", bearer(job="gone/events")) == 200


ALL_HEADERS = {"Authorization": f"Bearer {ALL.secret.decode()}"}


async def test_an_id_that_names_another_job_later_opens_that_one_and_no_more_the_one_of_before(jobs):
    headers = bearer(job="gui-a")
    async with sent(jobs) as url, aiohttp.ClientSession(url) as session:
        assert await status(session, f"/api/v1/jobs/{A}", headers) == 200, "the document says its job_id"
        jobs.read("newer", started=jobs.now + 10_000_000, metadata='{"gui_job_id": "gui-a"}')
        async with session.get("/api/v1/jobs/gui-a", headers=headers) as response:
            assert (await response.json())["job_id"] == "newer"
        assert await status(session, "/api/v1/jobs/newer", headers) == 200
        assert await status(session, f"/api/v1/jobs/{A}", headers) == 403
        async with session.get("/api/v1/resolve/gui-a", headers=headers) as response:
            assert (await response.json())["also"] == [], "the IDs of other jobs are not for it"
        async with session.get("/api/v1/resolve/gui-a", headers=ALL_HEADERS) as response:
            assert (await response.json())["also"] == [A]


async def test_a_token_is_valid_before_its_job_exists_and_waits_for_it(jobs):
    async with sent(jobs) as url, aiohttp.ClientSession(url) as session:
        headers = bearer(job="later")
        assert await status(session, "/api/v1/jobs/later", headers) == 404
        waiting = asyncio.create_task(status(session, "/api/v1/jobs/later?wait=30", headers))
        async with session.ws_connect("/ws") as ws:
            await ws.send_json([HELLO | {"token": of(headers)}, {"type": "subscribe", "id": 1, "jobs": ["later"]}])
            got = messages(ws)
            await until("synced", got)
            jobs.read("e", metadata='{"gui_job_id": "later"}')
            assert (await until("put", got))["job_id"] == "e"
        assert await waiting == 200


# -- streams


async def messages(ws: aiohttp.ClientWebSocketResponse) -> AsyncGenerator[dict[str, Any], None]:
    """The messages of all frames, each of which comes in time."""
    while True:
        frame = await ws.receive(PATIENCE)
        assert frame.type is aiohttp.WSMsgType.TEXT, (frame.type, ws.close_code)
        parsed = json.loads(frame.data)
        for message in parsed if isinstance(parsed, list) else [parsed]:
            yield message


async def until(kind: str, got: AsyncGenerator[dict[str, Any], None]) -> dict[str, Any]:
    """The next message of this type."""
    while (message := await anext(got))["type"] != kind:
        pass
    return message


async def closed_with(session: aiohttp.ClientSession, headers: dict[str, str], **wanted: Any) -> int | str:
    """The close code that a subscription gets, or 0 if it gets a snapshot, or the reason if it alone is refused."""
    async with session.ws_connect("/ws") as ws:
        await ws.send_json([HELLO | {"token": of(headers)}, {"type": "subscribe", "id": 1, **wanted}])
        async for frame in ws:
            if '"synced"' in frame.data:
                return 0
            if '"forbidden"' in frame.data:
                return str(re.findall('"detail":"(.*?)"', frame.data)[0])
        return ws.close_code or 0


async def test_a_websocket_with_a_token_for_one_job_gets_a_subscription_of_exactly_its_id(jobs):
    async with sent(jobs) as url, aiohttp.ClientSession(url) as session:
        headers = bearer(job="gui-a")
        assert await closed_with(session, headers, jobs=["gui-a"]) == 0
        others: list[list[str]] = [[], ["gui-b"], ["gui-a", "gui-b"], ["GUI-A"], [A]]
        refused: list[dict[str, Any]] = [{"jobs": other} for other in others]
        for wanted in (*refused, {}, {"status": ["running"]}, {"context_id": ["ctx"]}):
            assert await closed_with(session, headers, **wanted) == "this token is only for the job 'gui-a'", wanted


async def test_a_subscription_that_a_token_does_not_open_is_refused_and_its_connection_goes_on(jobs):
    async with sent(jobs) as url, aiohttp.ClientSession(url) as session, session.ws_connect("/ws") as ws:
        got = messages(ws)
        await ws.send_json(
            [HELLO | {"token": of(bearer(job="gui-a"))}, {"type": "subscribe", "id": 1, "jobs": ["gui-a"]}]
        )
        await until("synced", got)
        for number, wanted in enumerate((["gui-b"], ["nobody"], [A]), 2):
            await ws.send_json({"type": "subscribe", "id": number, "jobs": wanted})
            refusal = await until("error", got)
            said = "this token is only for the job 'gui-a'"
            assert (refusal["sub"], refusal["code"], refusal["detail"]) == (number, "forbidden", said)
        jobs.read(B, "completed", metadata='{"gui_job_id": "gui-b"}')
        jobs.read(A, "completed", metadata='{"gui_job_id": "gui-a"}')
        changed = await until("delta", got)
        assert (changed["job_id"], changed["sub"]) == (A, [1])


async def test_a_client_that_follows_what_its_token_does_not_open_is_told_so(jobs):
    async with sent(jobs) as url, Client(url, token=of(bearer(job="gui-a"))) as client:

        async def followed() -> list[Update]:
            async with asyncio.timeout(PATIENCE), contextlib.aclosing(client.follow("gui-b")) as updates:
                return [update async for update in updates]

        with pytest.raises(AccessRefused, match="refuses: this token is only for the job 'gui-a'"):
            await followed()


async def test_a_get_answers_for_the_job_of_the_token_and_no_other_whether_it_exists_or_not(jobs):
    async with sent(jobs) as url, aiohttp.ClientSession(url) as session, session.ws_connect("/ws") as ws:
        await ws.send_json(HELLO | {"token": of(bearer(job="gui-a"))})
        for name in ("gui-a", A, "gui-b", B, "nobody"):
            await ws.send_json({"type": "get", "job_id": name})
        found: dict[tuple[str, int], str] = {}
        got = messages(ws)
        while len(found) < 5:
            message = await anext(got)
            if message["type"] in ("put", "error"):
                found[message["job_id"], len(found)] = message.get("code", "put")
        assert sorted((code, name) for (name, _), code in found.items()) == [
            ("not_found", B), ("not_found", "gui-b"), ("not_found", "nobody"), ("put", A), ("put", A),
        ]  # fmt: skip


@pytest.mark.parametrize("transport", ["websocket", "sse"])
async def test_a_stream_of_a_vm_has_its_jobs_also_as_they_come_and_go_and_never_another_one(jobs, transport):
    async with sent(jobs) as url, aiohttp.ClientSession(url) as session:
        headers, text = bearer(vm="vm1"), ""
        if transport == "websocket":
            ws = await session.ws_connect("/ws")
            await ws.send_json([HELLO | {"token": of(headers)}, {"type": "subscribe", "id": 1}])
        else:
            response = await session.get("/api/v1/stream", headers=headers)

        async def text_until(word: str) -> str:
            nonlocal text
            while word not in text:
                text += (
                    await ws.receive_str(timeout=PATIENCE)
                    if transport == "websocket"
                    else (await response.content.readany()).decode()
                )
            return text

        await text_until('"synced"')
        assert A in text
        assert D in text
        jobs.read(B, "completed", metadata='{"vm_name": "vm2"}')
        jobs.read("new-of-vm1", metadata='{"vm_name": "vm1"}')
        jobs.read(D, metadata='{"vm_name": "vm2", "gui_job_id": "gui-d"}')
        await text_until('"gone"')
        assert '"type":"delete"' in text, "a job that has become one of another machine leaves"
        assert '"vm2"' not in text
        jobs.read("last", metadata='{"vm_name": "vm1"}')
        await text_until('"last"')
        assert "new-of-vm1" in text
        assert not [one for one in (B, C, "gui-b") if one in text]


async def test_a_client_of_a_vm_cannot_tell_a_job_of_another_one_from_an_id_that_no_job_has(jobs):
    async with sent(jobs) as url, aiohttp.ClientSession(url) as session, session.ws_connect("/ws") as ws:
        names = ["gui-a", "gui-b", "nobody"]
        await ws.send_json([HELLO | {"token": of(bearer(vm="vm1"))}, {"type": "subscribe", "id": 1, "jobs": names}])
        message = await until("synced", messages(ws))
        assert (message["count"], message["unknown"]) == (1, ["gui-b", "nobody"])
        bodies, took = set(), []
        for name in ("gui-b", "nobody"):
            for path in (f"jobs/{name}", f"jobs/{name}?wait=0.4", f"resolve/{name}", f"failover/{name}/status"):
                began = time.monotonic()
                async with session.get(f"/api/v1/{path}", headers=bearer(vm="vm1")) as response:
                    bodies.add((response.status, (await response.json())["detail"]))
                if "wait" in path:
                    took.append(time.monotonic() - began)
        assert bodies == {(403, "this token is only for the VM 'vm1'")}
        assert min(took) >= 0.4


# -- tickets, ends, keys


async def test_a_ticket_is_as_restricted_as_its_token_and_ends_with_it(jobs):
    clock = 1_000.0
    async with sent(jobs, now=lambda: clock) as url, aiohttp.ClientSession(url) as session:

        async def ticket(**what: Any) -> str:
            async with session.post("/api/v1/ticket", headers=bearer(now=clock, **what)) as response:
                return str((await response.json())["ticket"])

        for path, code in (("jobs/gui-a", 200), ("jobs/gui-b", 403), ("jobs", 403), ("metrics", 403)):
            root = "" if path == "metrics" else "/api/v1"
            assert await status(session, f"{root}/{path}?ticket={await ticket(job='gui-a')}", {}) == code, path
        late = await ticket(job="gui-a", valid_for=10)
        clock += 11
        assert await status(session, f"/api/v1/jobs/gui-a?ticket={late}", {}) == 401
        made = await ticket(job="gui-a")
        assert await status(session, f"/api/v1/ticket?ticket={made}", {}, "POST") == 401


async def test_connections_end_with_their_token_with_the_code_of_a_revoked_one(jobs):
    clock = 1_000.0
    async with sent(jobs, now=lambda: clock) as url, aiohttp.ClientSession(url) as session:
        headers = bearer(job="gui-a", now=clock, valid_for=60)
        async with session.ws_connect("/ws") as ws, session.get("/api/v1/stream?id=gui-a", headers=headers) as stream:
            await ws.send_json([HELLO | {"token": of(headers)}, {"type": "subscribe", "id": 1, "jobs": ["gui-a"]}])
            await until("synced", messages(ws))
            clock += 61
            assert b'"code":4401' in await stream.content.read()
            async for _ in ws:
                pass
            assert ws.close_code == 4401
        assert await status(session, "/api/v1/jobs/gui-a", headers) == 401
        assert await closed_with(session, headers, jobs=["gui-a"]) == 4401
        assert await closed_with(session, bearer(job="gui-a", now=clock), jobs=["gui-a"]) == 0


@pytest.mark.parametrize("what", [{"job": "gui-a"}, {"vm": "vm1"}], ids=["job", "vm"])
async def test_the_bearer_of_a_token_takes_a_part_of_the_places_of_streams_and_locks_out_nobody(jobs, what):
    wanted = {"jobs": ["gui-a"]} if "job" in what else {}
    path = "/api/v1/stream?id=gui-a" if "job" in what else "/api/v1/stream"
    said = f"too many connections with a token for this {'job' if 'job' in what else 'VM'}: at most 10"

    def another() -> dict[str, str]:
        return bearer(**what, valid_for=60 + next(number))

    number = count()
    async with (
        sent(jobs, max_readers=14) as url,
        aiohttp.ClientSession(url) as session,
        contextlib.AsyncExitStack() as opened,
    ):
        assert (await websocket(session, opened, another()))["type"] == "welcome"
        for _ in range(8):
            stream = await opened.enter_async_context(session.get(path, headers=another()))
            assert stream.status == 200, await stream.text()
        last = await session.ws_connect("/ws")
        await last.send_json(HELLO | {"token": of(another())})
        await until("welcome", messages(last))
        for _ in range(5):
            assert await closed_with(session, another(), **wanted) == 4429
            async with session.get(path, headers=another()) as response:
                assert (response.status, (await response.json())["detail"]) == (429, said)
        async with session.ws_connect("/ws") as ws:
            await ws.send_json(HELLO | {"token": of(another())})
            assert await ws.receive() == (aiohttp.WSMsgType.CLOSE, 4429, said)
        for other in (bearer(job="gui-b"), bearer(vm="vm2"), ALL_HEADERS):
            assert (await websocket(session, opened, other))["type"] == "welcome"
        await last.close()

        async def has_room() -> bool:
            return await closed_with(session, another(), **wanted) == 0

        await eventually(has_room)


async def websocket(
    session: aiohttp.ClientSession, opened: contextlib.AsyncExitStack, headers: dict[str, str]
) -> dict[str, Any]:
    """The first message of a websocket, which stays open until `opened` ends."""
    ws = await opened.enter_async_context(session.ws_connect("/ws"))
    await ws.send_json(HELLO | {"token": of(headers)})
    return await anext(messages(ws))


def test_while_the_key_is_rotated_both_are_accepted_and_then_the_old_one_is_not():
    claims = job_token.Claims(v=1, iat=0, exp=2**40, job="a")
    access = Access(listen_host="x", clock=time.monotonic, rules=Rules(job_keys=(KEY, OLD)))
    new, old = job_grant(claims, KEY), job_grant(claims, OLD)
    assert [access.holds(new), access.holds(old)] == [True, True]
    access.change(Rules(job_keys=(KEY,)))
    assert [access.holds(new), access.holds(old)] == [True, False]
    access.change(Rules([ALL]))
    assert not access.holds(new)


async def test_a_token_of_another_key_of_another_appliance_or_for_too_long_is_refused(jobs):
    async with sent(jobs) as url, aiohttp.ClientSession(url) as session:
        for headers, code in (
            (bearer(job="gui-a", key=OLD), 401),
            (bearer(job="gui-a", instance="there"), 403),
            (bearer(job="gui-a", valid_for=2 * 86_400), 401),
            (bearer(job="gui-a", now=1), 401),
            (bearer(job="gui-a", instance="here"), 200),
        ):
            assert await status(session, "/api/v1/jobs/gui-a", headers) == code


NONE = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0"
"""The header of a token with the algorithm none."""


async def test_a_token_that_cannot_be_accepted_is_refused_with_its_reason_and_not_repeated(jobs, caplog):
    now = time.time()
    good = of(bearer(job="gui-a"))
    _, claims, signature = good.split(".")
    async with sent(jobs) as url, aiohttp.ClientSession(url) as session:
        for token, said in (
            (of(bearer(job="gui-a", now=now - 1_000)), "this token has expired"),
            (of(bearer(job="gui-a", now=now + 600)), "made in the future (iat): compare the clocks"),
            (of(bearer(job="gui-a", key=OLD)), "this token is not known"),
            (f"{NONE}.{claims}.", "this token is not known"),
            (f"{NONE}.{claims}.{signature}", "this token is not known"),
            (good[:-1], "this token is not known"),
        ):
            headers = {"Authorization": f"Bearer {token}"}
            async with session.get("/api/v1/jobs/gui-a", headers=headers) as response:
                text = await response.text()
            assert (response.status, response.content_type) == (401, "application/problem+json"), said
            assert said in json.loads(text)["detail"]
            assert not [part for part in token.split(".") if part and (part in text or part in caplog.text)], said


def test_each_path_that_is_described_is_refused_to_a_token_for_one_job_until_somebody_decides(jobs):
    needs = {re.sub(r":[^{}]*(?=\})", "", path): need for _, path, need in routes(jobs.hub)}
    for path in openapi()["paths"]:
        covered = Grant(job="gui-a").covers(needs[path])
        assert covered is (path in OF_A_JOB or needs[path] in (Need.NOTHING, Need.HOST)), path


@pytest.mark.parametrize("kind", [one.__struct_config__.tag for one in get_args(ClientMessage)])
async def test_each_message_of_a_websocket_shows_nothing_of_another_job(jobs, kind):
    said = {
        "hello": HELLO,
        "subscribe": {"type": "subscribe", "id": 1, "jobs": ["gui-b"]},
        "unsubscribe": {"type": "unsubscribe", "id": 1},
        "get": {"type": "get", "job_id": "gui-b"},
        "ping": {"type": "ping"},
    }[kind]  # a message that is added later has to be written here
    async with sent(jobs) as url, aiohttp.ClientSession(url) as session, session.ws_connect("/ws") as ws:
        for message in (HELLO | {"token": of(bearer(job="gui-a"))}, said, {"type": "ping"}):
            await ws.send_json(message)  # each in a frame of its own: an invalid one ends its frame
        text = ""
        while '"pong"' not in text and (frame := await ws.receive(PATIENCE)).type is aiohttp.WSMsgType.TEXT:
            text += frame.data
        if kind == "get":  # answered in a task of its own
            while '"not_found"' not in text:
                text += await ws.receive_str(timeout=PATIENCE)
    assert '"pong"' in text
    assert ('"forbidden"' in text) is (kind == "subscribe")
    assert not [one for one in (B, C, D) if one in text]


async def test_where_only_a_key_is_configured_nothing_is_open_to_anybody(jobs):
    async with served(jobs.hub, job_keys=(KEY,)) as url, aiohttp.ClientSession(url) as session:
        for path in ("/api/v1/jobs", "/metrics", "/api/v1/jobs/gui-a", "/api/v1/stream"):
            assert await status(session, path, {}) == 401, path
        assert await status(session, "/api/v1/jobs/gui-a", bearer(job="gui-a")) == 200


names = st.sampled_from(["gui-a", "gui-b", A, B, "ctx", ""])


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.none() | st.frozensets(names, max_size=3), names.filter(bool))
def test_a_subscription_is_narrowed_to_the_id_of_the_token_or_refused(wanted, own):
    grant = Grant(job=own, secret=b"k")
    try:
        assert grant.narrowed(Filter(jobs=wanted)).jobs == frozenset({own})
    except Denied:
        assert wanted != frozenset({own})


async def test_the_daemon_accepts_a_token_of_its_own_key_file_and_serves_the_log_of_that_job(
    appliance_file: Path, tmp_path: Path
):
    (tmp_path / "job-key").write_text(f"{KEY.replace(' ', '-')}\n")
    name = NAMES[1]
    async with Daemon(
        tmp_path, database__url=f"sqlite://{appliance_file}", http__job_token_key_file=tmp_path / "job-key"
    ) as daemon:
        headers = bearer(job=name, key=KEY.replace(" ", "-"))
        session = daemon.session
        assert session is not None

        async def log() -> str:
            async with session.get(f"/api/v1/job/log?id={quote(name, safe='')}", headers=headers) as response:
                return await response.text() if response.status == 200 else ""

        await eventually(log)
        assert "a line" in await log()
        assert await status(session, f"/api/v1/job/log?id={quote(NAMES[0], safe='')}", headers) == 403
        assert (await daemon.get("/api/v1/jobs"))[0] == 401
    lines = [line for line in daemon.log().splitlines() if "correlator.audit" in line]
    assert [('"(job token)"' in line, "address=127.0.0.1" in line) for line in lines][:1] == [(True, True)]
    assert KEY.replace(" ", "-") not in daemon.log()
