"""What docs/protocol.md promises to streaming clients, on each transport, at the listener of a daemon and of a gateway.

`tests/acceptance/test_streaming_clients.py` runs the same clients through the whole program.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from correlator.model.document import MAX_ID
from correlator.model.facts import Kind, Status
from correlator.model.published import JobView, PublishedJob
from correlator.model.replies import Resolved
from correlator.ops import metrics
from correlator.pipeline.hub import ResumeRing, Shows
from correlator.sinks.streaming.limits import DEFAULT, Limits
from correlator.sinks.streaming.sessions import SWEEP_EVERY
from correlator.sinks.streaming.subscriptions import Filter
from tests.support.daemon import HELLO
from tests.support.eventually import PATIENCE, eventually
from tests.support.http_listener import served
from tests.support.metric_values import value
from tests.support.stream_clients import (
    READERS,
    CheckedReader,
    CheckedStream,
    CheckedWebsocket,
    FollowingReader,
    PollingReader,
    Refused,
    closing,
)
from tests.support.streams_harness import NOW, DaemonStreams, GatewayStreams
from tests.support.subscriptions import ALL, Wanted, plain

DAY = 86_400_000_000
HUBS: dict[str, Any] = {"daemon": DaemonStreams, "gateway": GatewayStreams}


@pytest.fixture(params=HUBS)
def world(request: pytest.FixtureRequest) -> DaemonStreams:
    """The jobs of a daemon, and then those of a gateway."""
    made: DaemonStreams = HUBS[request.param](resume_ring=ResumeRing(200))
    return made


@pytest.fixture
def jobs() -> DaemonStreams:
    """The jobs of a daemon."""
    return DaemonStreams(resume_ring=ResumeRing(10))


@pytest.fixture(params=READERS)
def kind(request: pytest.FixtureRequest) -> Any:
    """A websocket, and then an event stream."""
    return READERS[request.param]


@contextlib.asynccontextmanager
async def connected(reader: Any, *, synced: bool = True) -> AsyncIterator[Any]:
    async with closing([reader]):
        await reader.connect()
        if synced and isinstance(reader, CheckedReader):
            await eventually(lambda: reader.fold.synced)
        yield reader


async def again(reader: CheckedReader) -> list[dict[str, Any]]:
    """Connect again, and return what comes up to `synced`, after `welcome`."""
    await reader.connect()
    await eventually(lambda: reader.fold.synced)
    found = reader.about_jobs()
    return found[1 : [m["type"] for m in found].index("synced") + 1]


def types(messages: list[dict[str, Any]]) -> list[str]:
    return [m["type"] for m in messages]


FILTERED = [
    (ALL, "abc"),
    (Wanted(jobs=("a, b/ü&c", "b")), "ab"),
    (Wanted(jobs=("ctx-1", "nobody")), "c"),
    (Wanted(status=("running",)), "ab"),
    (Wanted(status=("running", "pending"), job_type=("failover",)), "ac"),
    (Wanted(context_id=("ctx-2", "ctx-3")), "b"),
    (Wanted(jobs=("a", "b"), job_type=("migration",), status=("running",)), "b"),
    (Wanted(status=("failed",)), ""),
    (Wanted(jobs=()), ""),
    (Wanted(instance=("dc0", "dc1")), "abc"),
    (Wanted(instance=("dc0",)), ""),
]


@pytest.mark.parametrize("follow", [*READERS.values(), FollowingReader])
async def test_each_filter_selects_the_same_jobs_on_each_transport(world, follow):
    world.job("a", job_type="failover", context_id="ctx-1", external_job_id="a, b/ü&c", started_at=NOW - 10)
    world.job("b", job_type="migration", context_id="ctx-2")
    world.job("c", "pending", job_type="failover", context_id="ctx-1")
    async with served(world.hub) as url:
        for wanted, names in FILTERED:
            due = set() if wanted.instance and not isinstance(world, GatewayStreams) else {*names}
            async with connected(follow(url, wanted)) as reader:
                assert set(reader.jobs) == due, wanted
                if isinstance(reader, CheckedReader):
                    assert reader.last("synced")["count"] == len(due), wanted
                    assert reader.last("synced")["unknown"] == [n for n in wanted.jobs or () if n == "nobody"]


@pytest.mark.parametrize("follow", [*READERS.values(), FollowingReader, PollingReader])
async def test_an_id_that_no_job_has_yet_leads_to_its_job_and_then_to_the_newest_of_its_jobs(world, follow):
    async with served(world.hub) as url, connected(follow(url, Wanted(jobs=("gui-7",)))) as reader:
        if isinstance(reader, CheckedReader):
            assert reader.last("synced")["unknown"] == ["gui-7"]
        await eventually(world.hub.waiting_ids.has_waiting_ids)
        world.job("other")
        for status in ("pending", "running", "failed"):
            world.job("j", status, external_job_id="gui-7", error_message="no space left")
            await eventually(lambda: [j["status"] for j in reader.jobs.values()] == [status])  # noqa: B023
        assert (reader.jobs.keys(), reader.jobs["j"]["error"]) == ({"j"}, "no space left")
        world.job("newer", external_job_id="gui-7", started_at=NOW + 1_000_000)
        await eventually(lambda: reader.jobs.keys() == {"newer"})


async def test_both_transports_send_the_same_messages(world):
    wanted = Wanted(status=("running", "failed"), logs="INFO")
    world.change()
    async with (
        served(world.hub) as url,
        connected(CheckedWebsocket(url, wanted)) as socket,
        connected(CheckedStream(url, wanted)) as stream,
    ):
        for n in range(300):
            world.change()
            if n % 10 == 0:
                await asyncio.sleep(0.001)
        world.job("last", error_message="the last")
        world.publish(world.row(10_000, "ERROR", "last"), events=[(Kind.JOB_LATE, "last")])
        await eventually(lambda: all(10_000 in r.fold.lines and r.fold.events for r in (socket, stream)))
        first, *rest = socket.about_jobs()
        other, *same = stream.about_jobs()
        assert first | {"at": 0} == other | {"at": 0}
        assert rest == same
        assert {*types(rest)} == {"snapshot", "synced", "put", "delta", "delete", "log", "event"}


async def test_a_client_that_is_cut_at_any_moment_ends_with_the_jobs_of_its_filter(kind, world):
    world.random.seed(1)
    which = world.filter()
    query: dict[str, Any] = {k: tuple(sorted(getattr(which.query, k))) for k in ("status", "job_type", "context_id")}
    wanted = Wanted(jobs=tuple(sorted(which.jobs)) if which.jobs is not None else None, **query)
    async with served(world.hub, limits=Limits(snapshot_part=3000)) as url, closing([reader := kind(url, wanted)]):
        for _ in range(30):
            await reader.connect()
            for _ in range(world.random.choice((0, 1, 5))):
                world.change()
                await asyncio.sleep(0)
            if world.random.random() < 0.5:
                await eventually(lambda: reader.fold.synced)
            reader.drop()
            world.change()
        await again(reader)
        await eventually(lambda: plain(reader.jobs) == plain(world.wanted(which)))
        assert any(reader.resumed)


async def test_a_resume_sends_what_was_missed_then_synced_and_then_what_happens(kind, world):
    for job_id in ("same", "changes", "ends", "goes"):
        world.job(job_id)
    wanted = Wanted(status=("running",), logs="DEBUG")
    async with served(world.hub) as url, connected(kind(url, wanted)) as reader:
        reader.drop()
        assert types(await again(reader)) == ["synced"], "nothing was missed"
        world.job("same", error_message="later")
        await eventually(lambda: reader.jobs["same"]["error"] == "later")
        assert types(reader.about_jobs())[2:] == ["delta"]
        reader.drop()
        before = world.hub.seq
        world.job("changes", error_message="missed")
        world.publish(world.row(1, job_id="changes"))
        world.job("ends", "completed")
        world.publish(world.read("goes", None))
        world.job("comes")
        *missed, synced = await again(reader)
        assert {*types(missed)} == {"put", "delete"}, "no line that was missed, and no snapshot"
        puts = {m["job_id"] for m in missed if m["type"] == "put"}
        assert puts - {"same"} == {"changes", "ends", "comes"}, "what changed after another resume may come again"
        assert missed[0]["seq"] > before
        assert {m["job_id"]: m["reason"] for m in missed if m["type"] == "delete"} == {"ends": "filter", "goes": "gone"}
        assert reader.jobs.keys() == {"same", "changes", "comes"}
        assert synced["count"] == len({m["job_id"] for m in missed})
        world.publish(world.row(2, job_id="same"))
        await eventually(lambda: list(reader.fold.lines) == [2])
        assert (reader.resumed, reader.fold.resyncs) == ([True, True], [])


@pytest.mark.parametrize("reason", ["gap", "epoch"])
async def test_a_position_that_is_not_known_any_more_gets_a_resync_and_a_snapshot(kind, world, reason):
    world.job("a")
    async with served(world.hub) as url, connected(kind(url)) as reader:
        reader.drop()
        if reason == "epoch":
            world.hub.epoch = "another"
        else:
            world.now += DAY  # what a gateway knows
            for n in range(201):  # what a daemon knows
                world.job("b", error_message=str(n))
        assert types(await again(reader)) == ["resync", "snapshot", "synced"]
        assert (reader.resumed, reader.fold.resyncs) == ([False], [reason])
        assert plain(reader.jobs) == plain(world.wanted(Filter()))


ODD = [
    *(None, {}, [], "x", 7, True, -1.5),
    *([{"epoch": "E", "seq": 1}], {"epoch": "E"}, {"seq": 1}, {"epoch": None, "seq": None}, {"epoch": ["E"], "seq": 1}),
    *({"epoch": "E", "seq": seq} for seq in (None, "1", 1.5, -1, 1 << 60, 1 << 70, True)),
    *({"epoch": epoch, "seq": 1} for epoch in ("", "another")),
]
ODD_IDS = ("x", ":", ":1", "E:", "E:-1", "E:1e3", "E:" + "9" * 30, "E:²", "é:1", "E:٣", "another:1")


@pytest.mark.parametrize(("transport", "positions"), [("websocket", ODD), ("sse", ODD_IDS)], ids=["websocket", "sse"])
async def test_an_odd_position_gets_everything_anew_and_never_an_error(jobs, transport, positions):
    jobs.hub.epoch = "E"
    jobs.job("a")
    async with served(jobs.hub) as url, aiohttp.ClientSession(url) as session:
        for odd in positions:
            found: list[dict[str, Any]] = []
            if transport == "sse":
                async with session.get("/api/v1/stream", headers={"Last-Event-ID": odd}) as response:
                    while types(found)[-1:] != ["synced"]:
                        line = await response.content.readline()
                        found += [json.loads(line[6:])] if line.startswith(b"data: ") else []
            else:
                async with session.ws_connect("/ws") as ws:
                    subscribe = {"type": "subscribe", "id": 1, "resume": True}
                    await ws.send_json([HELLO | {"resume": odd}, subscribe])
                    while types(found)[-1:] != ["synced"]:
                        said = await ws.receive_json()
                        found += said if isinstance(said, list) else [said]
            assert types(found) == ["welcome", "resync", "snapshot", "synced"], odd
            assert not found[0]["resumed"], odd
            assert [j["job_id"] for j in found[2]["jobs"]] == ["a"], odd


async def test_a_stop_says_bye_and_ends_each_connection_whole(kind, world):
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(contextlib.AsyncExitStack())
        url = await server.enter_async_context(served(world.hub))
        reader = await stack.enter_async_context(connected(kind(url)))
        await server.aclose()
        await eventually(lambda: reader.ended)
        assert reader.last("bye") == {"type": "bye", "code": 1012, "retry_ms": [0, 5000]}
        assert reader.closed == 1012


async def refused(reader: CheckedReader) -> int | None:
    """The code with which a client is refused; None if it is admitted."""
    try:
        async with connected(reader, synced=False):
            return None
    except Refused as refusal:
        return refusal.code


async def test_a_client_that_comes_during_a_stop_is_sent_away(kind, jobs):
    async with served(jobs.hub) as url:
        jobs.hub.close()
        assert await refused(kind(url)) == (1012 if kind is CheckedWebsocket else 503)


async def test_a_token_or_a_ticket_or_a_listed_origin_admits_and_nothing_else(kind, jobs):
    async with (
        served(jobs.hub, tokens=("sesame",), origins=("https://gui.example",)) as url,
        aiohttp.ClientSession(url) as session,
    ):
        async with session.post("/api/v1/ticket", headers={"Authorization": "Bearer sesame"}) as response:
            ticket = {"ticket": (await response.json())["ticket"]}
        unknown, wrong, foreign = (4401, 4403, 4403) if kind is CheckedWebsocket else (401, 401, 403)
        cases: list[tuple[dict[str, Any], int | None]] = [
            ({}, unknown),
            ({"token": "wrong"}, wrong),
            ({"token": "sesame"}, None),
            ({"query": ticket}, None),
            ({"query": ticket}, unknown),
            ({"token": "sesame", "headers": {"Origin": "https://gui.example"}}, None),
            ({"token": "sesame", "headers": {"Origin": url}}, None),
            ({"token": "sesame", "headers": {"Origin": "https://evil.example"}}, foreign),
        ]
        for options, code in cases:
            assert await refused(reader := kind(url, **options)) == code, options
            if "headers" in options and code is None and kind is CheckedStream:
                allowed = None if options["headers"]["Origin"] == url else "https://gui.example"
                assert reader.headers.get("Access-Control-Allow-Origin") == allowed
                assert "Origin" in reader.headers["Vary"]


@pytest.mark.parametrize(
    "limits", [{"max_readers": 2}, {"max_readers": 9, "max_per_address": 2}], ids=["all", "address"]
)
async def test_connections_are_limited_until_one_of_them_ends(kind, jobs, limits):
    too_many = 4429 if kind is CheckedWebsocket else 429
    async with (
        served(jobs.hub, **limits) as url,
        connected(CheckedWebsocket(url)),
        connected(CheckedStream(url)) as one,
    ):
        assert await refused(kind(url)) == too_many
        assert await refused(kind(url, address="127.0.0.2")) == (None if len(limits) > 1 else too_many)
        async with aiohttp.ClientSession(url) as session, session.get("/api/v1/jobs") as response:
            assert response.status == 200, "a request is no streaming client"
        one.drop()

        async def has_room() -> bool:
            return await refused(kind(url)) is None

        await eventually(has_room)
        assert jobs.hub.watchers["streaming"]() <= 2


async def test_a_websocket_without_hello_takes_no_place_of_a_client_and_makes_room_for_the_next(kind, jobs):
    """Nobody needs a token to open one. `newcomers`: how many there may be."""
    async with (
        served(jobs.hub, max_readers=1, newcomers=3) as url,
        aiohttp.ClientSession(url) as session,
        contextlib.AsyncExitStack() as opened,
    ):
        silent = [await opened.enter_async_context(session.ws_connect("/ws")) for _ in range(5)]
        assert [(await ws.receive(PATIENCE)).data for ws in silent[:2]] == [1013, 1013]
        assert jobs.hub.watchers["streaming"]() == 0
        assert await refused(kind(url)) is None
        await silent[-1].send_json(HELLO)
        assert (await silent[-1].receive_json(timeout=PATIENCE))["type"] == "welcome"
        assert jobs.hub.watchers["streaming"]() == 1


async def test_a_client_that_reads_nothing_is_closed_as_slow_and_others_go_on(kind, world):
    # So long that one that reads is no slow one however late this process gets its turn.
    limits = Limits(too_slow_after=2.0, too_slow_with_large_buffer_after=2.0, ping_seconds=0.2, pong_within=PATIENCE)
    before = value(metrics.CLIENTS_CLOSED.labels("slow"))
    async with (
        served(world.hub, limits=limits) as url,
        connected(kind(url, receive_buffer=4096)) as frozen,
        connected(kind(url, receive_buffer=4096)) as reading,
    ):
        frozen.freeze()
        for n in range(40):  # more than the buffers of the kernel hold
            world.job(error_message=f"{n} " + "x" * 300_000)
            await asyncio.sleep(0.005)
        await eventually(lambda: value(metrics.CLIENTS_CLOSED.labels("slow")) == before + 1)
        frozen.thaw()
        await eventually(lambda: frozen.ended)
        assert frozen.closed == (4508 if kind is CheckedWebsocket else None)
        world.job(error_message="the last")
        await eventually(lambda: reading.jobs["j"]["error"] == "the last")


async def test_an_idle_client_gets_bookmarks_with_its_position_at_least_every_ten_seconds(kind, world):
    assert DEFAULT.bookmark_every + 2 * SWEEP_EVERY < 10
    world.job()
    async with served(world.hub, limits=Limits(bookmark_every=0.1)) as url, connected(kind(url)) as reader:
        await eventually(lambda: types(reader.messages).count("bookmark") >= 2)
        assert reader.last("bookmark")["seq"] == world.hub.seq
        if isinstance(reader, CheckedStream):
            assert reader.stream is not None
            assert reader.stream.last_id == f"{world.hub.epoch}:{world.hub.seq}"


# -- long polls


async def test_a_request_that_waits_ends_with_the_job_with_a_change_or_with_its_time(jobs):
    async with served(jobs.hub) as url, aiohttp.ClientSession(url) as session:

        async def get(query: str, **headers: str) -> tuple[int, Any]:
            async with session.get(f"/api/v1/jobs/gui-7{query}", headers=headers) as response:
                body = await response.read()
                return response.status, (json.loads(body) if body else response.headers["ETag"])

        status, problem = await get("?wait=0.1")
        assert (status, "gui-7" in problem["detail"]) == (404, True)
        for query, change in (("?wait=60", "pending"), ("?wait=60&rev=1", "running")):
            waiting = asyncio.create_task(get(query))
            await eventually(lambda: jobs.hub.watchers["waiting"]() == 1)
            jobs.job(status=change, external_job_id="gui-7")
            status, job = await waiting
            assert (status, job["status"], job["rev"]) == (200, change, jobs.hub.seq)
        status, etag = await get("?wait=0.1&rev=2")
        assert status == 304
        assert await get("", **{"If-None-Match": etag}) == (304, etag)
        assert (await get("?wait=60&rev=1"))[0] == 200, "it has changed already"


# -- event streams


async def test_an_event_stream_says_what_it_is_and_answers_head_and_http_1_0_with_an_end(jobs):
    async with served(jobs.hub) as url, aiohttp.ClientSession(url) as session:
        async with session.get("/api/v1/stream") as response:
            assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
            assert "no-cache" in response.headers["Cache-Control"]
            assert int((await response.content.readline()).removeprefix(b"retry: ")) > 0
        async with asyncio.timeout(PATIENCE), session.head("/api/v1/stream") as response:
            assert (response.status, await response.read()) == (405, b"")
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"GET /api/v1/stream HTTP/1.0\r\nHost: localhost\r\n\r\n")
        async with asyncio.timeout(PATIENCE):
            assert (await reader.read()).split(b" ")[1] == b"505"
        writer.close()


# -- websockets


FLOOD = [[{"type": "ping"}] * 100] * 20
CLOSES: dict[str, tuple[list[Any], int]] = {
    "three bad frames": (["{", {"type": "shout"}, {"type": "subscribe", "id": 1, "status": ["runing"]}], 4400),
    "hello twice is bad too": ([HELLO, "", HELLO], 4400),
    "another version": ([{"type": "hello", "version": 2}], 4400),
    "a large frame": (["x" * 70_000], 1009),
    "a flood": (FLOOD, 4429),
    "subscriptions": ([{"type": "subscribe", "id": n} for n in range(4)], 4429),
}


@pytest.mark.parametrize("name", CLOSES)
async def test_a_websocket_that_cannot_go_on_is_closed_with_its_code_and_no_other(jobs, name):
    frames, code = CLOSES[name]
    async with served(jobs.hub, limits=Limits(max_subscriptions=3)) as url, connected(CheckedWebsocket(url)) as good:
        async with aiohttp.ClientSession() as session, session.ws_connect(f"{url}/ws") as ws:
            if name != "another version":
                await ws.send_json(HELLO)
            for frame in frames:
                await ws.send_str(frame if isinstance(frame, str) else json.dumps(frame))
            async with asyncio.timeout(PATIENCE):
                while (message := await ws.receive()).type is aiohttp.WSMsgType.TEXT:
                    pass
            assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, code)
        jobs.job()
        await eventually(lambda: good.jobs)


async def test_a_burst_of_messages_two_bad_frames_and_replaced_subscriptions_are_no_reason_to_close(jobs):
    jobs.job()
    async with served(jobs.hub, limits=Limits(max_subscriptions=3)) as url, connected(CheckedWebsocket(url)) as reader:
        for _ in range(9):
            await reader.send(*[{"type": "ping"}] * 100)
        await eventually(lambda: types(reader.messages).count("pong") == 900)
        for bad in ({"type": "shout"}, {"type": "subscribe", "id": 9, "resume": "yes"}):
            await reader.send(bad)
        await eventually(lambda: types(reader.messages).count("error") == 2)
        assert {m["code"] for m in reader.messages if m["type"] == "error"} == {"bad_request"}
        for sub in (2, 3, 2, 3, 3):
            reader.fold.subscribe(sub, resume=False)
            await reader.send({"type": "subscribe", "id": sub})
            await eventually(lambda: reader.fold.synced)
        await reader.send({"type": "unsubscribe", "id": 2})
        reader.fold.unsubscribe(2)
        reader.fold.subscribe(4, resume=False)
        await reader.send({"type": "subscribe", "id": 4})
        await eventually(lambda: reader.fold.synced)
        reader.check()


async def test_get_sends_the_whole_job_by_any_id_or_says_which_one_is_not_known(world, monkeypatch):
    world.job("j", external_job_id="gui-1", context_id="ctx-1")
    old = PublishedJob(JobView("old", Status.FAILED, external_ids=("old-1",)), 0, NOW)
    find = world.hub.find

    async def found(name: str, shows: Shows | None) -> tuple[PublishedJob, Resolved] | None:
        return (old, Resolved("old", "external_id", ())) if name == "old-1" else await find(name, shows)

    monkeypatch.setattr(world.hub, "find", found)
    async with served(world.hub) as url, connected(CheckedWebsocket(url, Wanted(jobs=("gui-1",)))) as reader:
        names = ["j", "gui-1", "ctx-1", "old-1", "nobody-1", "x" * MAX_ID]
        await reader.send(*({"type": "get", "job_id": name} for name in names))
        await eventually(lambda: len(reader.messages) >= 3 + len(names))
        puts = [(m["job_id"], m["sub"]) for m in reader.messages if m["type"] == "put"]
        assert sorted(puts) == [("j", [1])] * 3 + [("old", [])]
        errors = {(m["code"], m["job_id"]) for m in reader.messages if m["type"] == "error"}
        assert errors == {("not_found", names[-2]), ("not_found", names[-1])}


async def test_a_websocket_without_hello_is_closed_with_4408_whatever_else_it_says(jobs):
    assert DEFAULT.hello_within == 10.0
    async with served(jobs.hub, limits=Limits(hello_within=0.3)) as url, aiohttp.ClientSession() as session:
        for says in ([], [{"type": "ping"}]):
            async with session.ws_connect(f"{url}/ws") as ws:
                for message in says:
                    await ws.send_json(message)
                    assert (await ws.receive_json(timeout=PATIENCE))["code"] == "bad_request"
                assert (await ws.receive(PATIENCE)).data == 4408


async def test_a_websocket_that_answers_no_ping_is_disconnected(jobs):
    before = value(metrics.CLIENTS_CLOSED.labels("gone"))
    async with (
        served(jobs.hub, limits=Limits(ping_seconds=0.2, pong_within=0.3, unused_check_every=0.1)) as url,
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{url}/ws", autoping=False) as ws,
    ):
        await ws.send_json(HELLO)
        await eventually(lambda: value(metrics.CLIENTS_CLOSED.labels("gone")) == before + 1)
