"""The event stream: the messages of the websocket over plain HTTP, with positions that a browser resumes from."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support.appliance import Appliance
from tests.support.client_fold import ClientFold
from tests.support.daemon import HELLO, Daemon
from tests.support.eventually import eventually
from tests.support.stream_clients import CheckedEventStream
from tests.support.subscriptions import Wanted

STREAM = "/api/v1/stream"


@asynccontextmanager
async def streamed(
    daemon: Daemon,
    wanted: Wanted | None = None,
    *,
    last: str | None = None,
    fold: ClientFold | None = None,
    **headers: str,
) -> AsyncIterator[CheckedEventStream]:
    assert daemon.session is not None
    sent = headers if last is None else headers | {"Last-Event-ID": last}
    async with daemon.session.get(STREAM, params=(wanted or Wanted()).query(), headers=sent) as response:
        assert response.status == 200, await response.text()
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert "no-cache" in response.headers["Cache-Control"]
        yield CheckedEventStream(response, fold or ClientFold())


async def shown(daemon: Daemon, appliance: Appliance, name: str, **row: Any) -> str:
    job_id = await appliance.job(name, **row)
    assert (await daemon.get(f"/api/v1/jobs/{name}?wait=5"))[0] == 200
    return job_id


def about_jobs(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what comes by the clock."""
    return [m for m in messages if m["type"] not in ("status", "bookmark")]


async def test_the_messages_are_those_of_the_websocket(daemon: Daemon, appliance: Appliance):
    job_id = await shown(daemon, appliance, "gui-1")
    wanted = Wanted(status=("running", "failed"), logs="INFO")
    async with streamed(daemon, wanted) as stream, daemon.socket() as socket:
        for message in (HELLO, wanted.message(1)):
            await socket.say(message)
        first = [m for _, m in await stream.until("synced")]
        assert [m["type"] for m in about_jobs(first)] == ["welcome", "snapshot", "synced"]
        for message in about_jobs(first):
            while (twin := await socket.next())["type"] != message["type"]:
                pass
            if twin["type"] == "welcome":
                twin["at"] = message["at"]  # each its own moment
            assert twin == message

        await appliance.log("a line", attrs={"job_id": job_id})
        await appliance.step(job_id, 1, "validation")
        other = await shown(daemon, appliance, "gui-2")
        await appliance.end(other)
        await eventually(lambda: _is_terminal(daemon, "gui-2"))
        await appliance.end(job_id, "failed", "no space left")
        await appliance.log("Job failed", "ERROR", {"job_id": job_id, "error": "no space left"}, job_id=job_id)

        over_stream: list[dict[str, Any]] = []
        over_websocket: list[dict[str, Any]] = []
        while not over_stream or over_stream[-1].get("message") != "Job failed":
            over_stream.append((await stream.next())[1])
        while not over_websocket or over_websocket[-1].get("message") != "Job failed":
            over_websocket.append(await socket.next())
        assert about_jobs(over_stream) == about_jobs(over_websocket)
        assert {m["type"] for m in about_jobs(over_websocket)} == {"put", "delta", "delete", "log"}
        assert stream.fold.jobs[1].keys() == {job_id}


async def test_an_id_is_a_position_that_holds_and_stands_from_synced_on(daemon: Daemon, appliance: Appliance):
    for number in range(120):
        await appliance.job(f"gui-{number}", metadata=json.dumps({"text": "x" * 900}))
    await eventually(lambda: _jobs_in_memory(daemon, 120))
    async with streamed(daemon, Wanted(logs="DEBUG")) as stream:
        before = await stream.until("synced")
        assert sum(m["type"] == "snapshot" for _, m in before) > 1
        *earlier, (own, synced) = before
        assert {i for i, _ in earlier} == {None}
        assert own == f"{stream.fold.epoch}:{synced['seq']}"
        job_id = next(iter(stream.fold.jobs[1]))
        await appliance.log("a line", attrs={"job_id": job_id})
        after = await stream.until("log")
        assert len(after) > 1
        for own, message in after:
            assert own == (f"{stream.fold.epoch}:{message['seq']}" if "seq" in message else None)
        assert stream.retry is not None


async def test_last_event_id_brings_what_was_missed_and_no_more(daemon: Daemon, appliance: Appliance):
    same = await shown(daemon, appliance, "gui-same")
    ends = await shown(daemon, appliance, "gui-ends")
    wanted = Wanted(status=("running",))
    fold = ClientFold()
    async with streamed(daemon, wanted, fold=fold) as stream:
        await stream.until("synced")
        last = stream.last_id
    await appliance.end(ends)
    comes = await shown(daemon, appliance, "gui-comes")
    await eventually(lambda: _is_terminal(daemon, "gui-ends"))
    async with streamed(daemon, wanted, last=last, fold=fold) as stream:
        events = about_jobs([m for _, m in await stream.until("synced")])
        assert events[0]["resumed"] is True
        assert sorted(m["type"] for m in events[1:-1]) == ["delete", "put", "put"]
        assert {m["job_id"] for m in events[1:-1]} == {ends, comes}
        assert events[-1]["count"] == 2
        assert fold.jobs[1].keys() == {same, comes}
        assert fold.resyncs == []
        last = stream.last_id
    assert await daemon.stop() == 0
    await daemon.start()
    async with streamed(daemon, wanted, last=last, fold=fold) as stream:
        await stream.until("synced")
        assert fold.resyncs == ["epoch"]
        assert fold.jobs[1].keys() == {same, comes}


async def test_an_odd_last_event_id_gets_a_snapshot(daemon: Daemon, appliance: Appliance):
    job_id = await shown(daemon, appliance, "gui-1")
    async with streamed(daemon) as stream:
        await stream.until("synced")
        epoch = stream.fold.epoch
    for odd in ("x", ":", ":1", f"{epoch}:", f"{epoch}:-1", f"{epoch}:1e3", f"{epoch}:{'9' * 30}", f"{epoch}:²", "é:1"):
        async with streamed(daemon, last=odd) as stream:
            events = about_jobs([m for _, m in await stream.until("synced")])
            assert [m["type"] for m in events] == ["welcome", "resync", "snapshot", "synced"], odd
            assert events[0]["resumed"] is False
            assert stream.fold.jobs[1].keys() == {job_id}
    async with streamed(daemon, last="") as stream:
        assert "resync" not in [m["type"] for _, m in await stream.until("synced")]


async def test_every_filter_means_what_it_means_on_the_websocket(daemon: Daemon, appliance: Appliance):
    earlier = (datetime.now(UTC) - timedelta(seconds=10)).strftime("%Y-%m-%d %H:%M:%S")
    metadata = '{"gui_job_id":"a, b/ü&c"}'
    a = await shown(daemon, appliance, "gui-a", context_id="ctx-1", metadata=metadata, started_at=earlier)
    b = await shown(daemon, appliance, "gui-b", context_id="ctx-2", job_type="migration")
    c = await shown(daemon, appliance, "gui-c", context_id="ctx-1", status="pending")
    cases = [
        (Wanted(), {a, b, c}),
        (Wanted(jobs=("a, b/ü&c", b)), {a, b}),
        (Wanted(jobs=("ctx-1", "nobody")), {c}),
        (Wanted(status=("running",)), {a, b}),
        (Wanted(status=("running", "pending"), job_type=("failover",)), {a, c}),
        (Wanted(context_id=("ctx-2", "ctx-3")), {b}),
        (Wanted(jobs=(a, b), job_type=("migration",), status=("running",)), {b}),
        (Wanted(status=("failed",)), set()),
        (Wanted(jobs=()), set()),
    ]
    for wanted, jobs in cases:
        async with streamed(daemon, wanted) as stream:
            synced = (await stream.until("synced"))[-1][1]
            assert (set(stream.fold.jobs[1]), synced["count"]) == (jobs, len(jobs)), wanted
            assert synced["unknown"] == [n for n in wanted.jobs or () if n == "nobody"]
    async with streamed(daemon, Wanted(jobs=("gui-later",), logs="WARN")) as stream:
        await stream.until("synced")
        later = await appliance.job("gui-later")
        await appliance.log("not this", attrs={"job_id": later})
        await appliance.log("this", "WARN", {"job_id": later})
        line = (await stream.until("log"))[-1][1]
        assert (line["message"], line["sub"]) == ("this", [1])
        assert later in stream.fold.jobs[1]


async def test_on_sigterm_it_says_bye_and_ends_whole(daemon: Daemon, appliance: Appliance):
    await shown(daemon, appliance, "gui-1")
    async with streamed(daemon) as stream:
        await stream.until("synced")
        assert await daemon.stop() == 0
        bye = (await stream.until("bye"))[-1][1]
        assert bye == {"type": "bye", "code": 1012, "retry_ms": [0, 5000]}
        with pytest.raises(EOFError):  # not an error: the last chunk came
            await stream.next()


async def test_a_token_or_a_ticket_admits(database, tmp_path):
    (tmp_path / "tokens").write_text("sesame\n")
    daemon = Daemon(tmp_path, database__url=database.url, http__tokens_file=tmp_path / "tokens")
    try:
        await daemon.start()
        assert daemon.session is not None
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            async with daemon.session.get(STREAM, headers=headers) as response:
                assert (response.status, response.content_type) == (401, "application/problem+json")
        async with streamed(daemon, Authorization="Bearer sesame") as stream:
            await stream.until("synced")
        async with daemon.session.post("/api/v1/ticket", headers={"Authorization": "Bearer sesame"}) as response:
            ticket = (await response.json())["ticket"]
        async with daemon.session.get(STREAM, params={"ticket": ticket}) as response:
            await CheckedEventStream(response, ClientFold()).until("synced")
        async with daemon.session.get(STREAM, params={"ticket": ticket}) as response:
            assert response.status == 401
    finally:
        await daemon.close()


async def test_a_bad_query_gets_a_problem_and_no_stream(daemon: Daemon):
    assert daemon.session is not None
    cases = [
        (
            "staus=running",
            "there is no query parameter 'staus' here; known: context_id, id, instance, job_type, logs, status",
        ),
        ("status=runing", "expected one of pending, running, completed, failed, cancelled"),
        ("status=skipped", "expected one of pending, running, completed, failed, cancelled"),
        ("logs=LOUD", "expected one of DEBUG, INFO, WARN, ERROR"),
        ("logs=", "expected one of DEBUG, INFO, WARN, ERROR"),
        ("id=&id=x", "1 to 255 characters"),
        ("id=" + "x" * 256, "1 to 255 characters"),
        ("&".join(["id=x"] * 1001), "at most 1000"),
        ("sub=2", "there is no query parameter 'sub'"),
    ]
    for query, says in cases:
        async with daemon.session.get(f"{STREAM}?{query}") as response:
            problem = json.loads(await response.read())
            assert (response.status, response.content_type) == (400, "application/problem+json"), query[:50]
        assert says in problem["detail"], query[:50]


async def test_a_page_of_a_listed_origin_may_read_it_and_no_other(database, tmp_path):
    daemon = Daemon(tmp_path, database__url=database.url, http__allowed_origins="https://gui.example")
    try:
        await daemon.start()
        async with streamed(daemon, Origin="https://gui.example") as stream:
            assert stream.response.headers["Access-Control-Allow-Origin"] == "https://gui.example"
            assert "Origin" in stream.response.headers["Vary"]
            await stream.until("synced")
        async with streamed(daemon, Origin=daemon.url) as stream:
            assert "Access-Control-Allow-Origin" not in stream.response.headers
        assert daemon.session is not None
        async with daemon.session.get(STREAM, headers={"Origin": "https://evil.example"}) as response:
            assert (response.status, response.content_type) == (403, "application/problem+json")
            assert "Access-Control-Allow-Origin" not in response.headers
        asks = {"Origin": "https://gui.example", "Access-Control-Request-Headers": "last-event-id"}
        async with daemon.session.options(STREAM, headers=asks) as response:
            assert response.status == 204
            assert "Last-Event-ID" in response.headers["Access-Control-Allow-Headers"]
    finally:
        await daemon.close()


async def test_a_client_that_leaves_is_not_counted_any_more(daemon: Daemon):
    async with streamed(daemon) as stream, streamed(daemon) as other:
        await stream.until("synced")
        await other.until("synced")
        assert await _streams(daemon) == 2
        stream.response.close()
        await eventually(lambda: _is_alone(daemon))
        other.response.close()


async def test_head_and_http_1_0_get_an_answer_that_ends(daemon: Daemon):
    assert daemon.session is not None
    async with asyncio.timeout(60), daemon.session.head(STREAM) as response:
        assert response.status in (200, 405)
        assert await response.read() == b""
    assert (await daemon.get("/health/ready"))[0] == 200  # on the same connection
    reader, writer = await asyncio.open_connection("127.0.0.1", daemon.port)
    writer.write(b"GET /api/v1/stream HTTP/1.0\r\nHost: localhost\r\n\r\n")
    async with asyncio.timeout(60):
        answer = await reader.read()
    assert answer.split(b"\r\n")[0].split(b" ")[1] == b"505"
    writer.close()
    await writer.wait_closed()


async def test_curl_shows_it_as_it_happens(daemon: Daemon, appliance: Appliance):
    job_id = await shown(daemon, appliance, "gui-1")
    curl = await asyncio.create_subprocess_exec(
        "curl", "--silent", "--no-buffer", f"{daemon.url}{STREAM}?id=gui-1&logs=INFO", stdout=asyncio.subprocess.PIPE
    )
    assert curl.stdout is not None
    try:
        async with asyncio.timeout(60):
            await curl.stdout.readuntil(b'"type":"synced"')
            await appliance.log("seen by curl", attrs={"job_id": job_id})
            await curl.stdout.readuntil(b"seen by curl")
            assert await daemon.stop() == 0
            await curl.stdout.readuntil(b'"type":"bye"')
            assert await curl.wait() == 0
    finally:
        if curl.returncode is None:
            curl.kill()
            await curl.wait()


async def _metric(daemon: Daemon, name: str) -> float:
    assert daemon.session is not None
    async with daemon.session.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


async def _streams(daemon: Daemon) -> float:
    return await _metric(daemon, 'correlator_readers{transport="sse"}')


async def _is_alone(daemon: Daemon) -> bool:
    return await _streams(daemon) == 1


async def _jobs_in_memory(daemon: Daemon, count: int) -> bool:
    return await _metric(daemon, "correlator_jobs{") == count


async def _is_terminal(daemon: Daemon, name: str) -> bool:
    return bool((await daemon.job(name))["terminal"])
