"""The access rules of a gateway hold for the fleet and for each appliance, and count their connections together."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from correlator.config.tokens import Token
from correlator.model import job_token
from tests.support.cluster import connected
from tests.support.daemon import HELLO
from tests.support.eventually import PATIENCE, eventually
from tests.support.gateways import running
from tests.support.stream_writer import AT, StreamWriter, job

TOKEN = "t0ken-of-the-gui-1"
BASES = ("", "/i/dc1")
ORIGIN = "https://gui.example"


@pytest.fixture
async def stream(nats):
    """The URL of a server whose stream has one job of the appliance dc1."""
    async with connected(nats.url) as connection:
        dc1 = StreamWriter(connection, "dc1")
        await dc1.begin()
        await dc1.put(job("a"))
        yield nats.url


async def closed_with(session, url, hello=HELLO, origin=None):
    """The close code of a websocket that sends `hello`, or 0 if it is welcomed."""
    async with session.ws_connect(url, origin=origin) as ws:
        await ws.send_json(hello)
        answer = await ws.receive()
        return ws.close_code if answer.type is aiohttp.WSMsgType.CLOSE else 0


@pytest.mark.parametrize("base", BASES)
async def test_a_token_is_needed_for_all_but_health_and_the_page(stream, tmp_path, base):
    (tmp_path / "tokens").write_text(f"{TOKEN}\n")
    async with (
        running(stream, tokens_file=tmp_path / "tokens") as gateway,
        aiohttp.ClientSession(f"{gateway.url}{base}/") as session,
    ):

        async def statuses(headers):
            api = (f"api/v1/{name}" for name in ("jobs", "jobs/a", "stream", "operations"))
            found = {}
            for path in ("health/ready", "", "metrics", *api):
                async with session.get(path, headers=headers) as answer:
                    found[path] = answer.status
            return found

        without = await statuses({})
        assert {path for path, status in without.items() if status == 200} == {"health/ready", ""}
        assert {status for status in without.values() if status != 200} == {401}
        assert 401 not in (await statuses({"Authorization": f"Bearer {TOKEN}"})).values()
        assert await closed_with(session, "ws") == 4401
        assert await closed_with(session, "ws", {**HELLO, "token": TOKEN}) == 0
        async with session.post("api/v1/ticket", headers={"Authorization": f"Bearer {TOKEN}"}) as answer:
            ticket = (await answer.json())["ticket"]
        assert await closed_with(session, f"ws?ticket={ticket}") == 0
        assert await closed_with(session, f"ws?ticket={ticket}") == 4401


async def test_pages_of_other_origins_and_unknown_hosts_are_refused(stream):
    async with running(stream, allowed_origins=(ORIGIN,)) as gateway, aiohttp.ClientSession(gateway.url) as session:
        for jobs, ws in ((f"{base}/api/v1/jobs", f"{base}/ws") for base in BASES):
            for origin, allowed in ((ORIGIN, ORIGIN), ("https://evil.example", None)):
                async with session.get(jobs, headers={"Origin": origin}) as answer:
                    assert answer.headers.get("Access-Control-Allow-Origin") == allowed
                assert await closed_with(session, ws, origin=origin) == (0 if allowed else 4403)
            async with session.options(jobs, headers={"Origin": ORIGIN}) as answer:
                assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (204, ORIGIN)
            async with session.get(jobs, headers={"Host": "evil.example"}) as answer:
                assert answer.status == 403


async def test_the_connections_of_all_appliances_count_together(stream):
    async with (
        running(stream, max_readers=2) as gateway,
        aiohttp.ClientSession(f"{gateway.url}/") as session,
        session.ws_connect("ws") as one,
        session.ws_connect("i/dc1/ws") as other,
    ):
        for ws in (one, other):
            await ws.send_json(HELLO)
            assert (await ws.receive_json())["type"] == "welcome"
        for base in BASES:
            assert await closed_with(session, f"{base}/ws") == 4429
            async with session.get(f"{base}/api/v1/stream") as answer:
                assert answer.status == 429


async def test_the_places_of_a_token_for_one_job_count_together_and_the_rest_is_left_to_others(stream, tmp_path):
    key = "the-key-of-the-backend-and-of-us!"
    (tmp_path / "key").write_text(f"{key}\n")

    def hello(job_id: str, valid_for: float = 60.0) -> dict[str, Any]:
        return HELLO | {"token": job_token.create(key, now=time.time(), valid_for=valid_for, job=job_id)}

    async with (
        running(stream, max_readers=12, job_token_key_file=tmp_path / "key") as gateway,
        aiohttp.ClientSession(f"{gateway.url}/") as session,
        contextlib.AsyncExitStack() as opened,
    ):
        for n in range(10):
            ws = await opened.enter_async_context(session.ws_connect(f"{BASES[n % 2]}/ws".lstrip("/")))
            await ws.send_json(hello("a", 60 + n))
            assert (await ws.receive_json())["type"] == "welcome"
        for base in BASES:
            assert await closed_with(session, f"{base}/ws", hello("a")) == 4429
            headers = {"Authorization": f"Bearer {hello('a')['token']}"}
            async with session.get(f"{base}/api/v1/stream?id=a", headers=headers) as answer:
                assert answer.status == 429
                assert "with a token for this job" in (await answer.json())["detail"]
            assert await closed_with(session, f"{base}/ws", hello("b")) == 0


OF_TWO = "a-token-of-two-appliances"
SHOWN = ("dc1", "dc2")


@pytest.fixture
async def fleet(nats):
    """The URL of a server, and the writers of three appliances. Each has a job; `same` is one of dc1 and of dc3."""
    async with connected(nats.url) as connection:
        writers = {name: StreamWriter(connection, name) for name in (*SHOWN, "dc3")}
        for name, writer in writers.items():
            await writer.begin()
            await writer.put(job(f"of-{name}", ids=[f"ext-{name}"]))
            await writer.alive()
        await writers["dc1"].put(job("same", started_at=AT))
        await writers["dc3"].put(job("same", started_at=AT + 1_000_000))
        yield nats.url, writers


def tokens(folder: Path, *instances: str) -> tuple[Token, ...]:
    (folder / "two").write_text(OF_TWO)
    (folder / "all").write_text(TOKEN)
    return (Token(name="two", file=folder / "two", instances=instances), Token(name="all", file=folder / "all"))


ASKED = (
    "jobs?steps=1", "jobs?instance=dc3", "jobs?q=dc3", "jobs/of-dc3", "jobs/ext-dc3", "job?id=of-dc3",
    "jobs/of-dc3/log", "jobs/of-dc3/events", "resolve/ext-dc3", "resolve/same", "jobs/same", "entities/of-dc3",
    "events?text=the", "events?text=the&instance=dc3", "operations", "operations/failover/x", "instances",
    "failover/ext-dc3/status",
)  # fmt: skip


async def test_a_token_of_two_appliances_gets_what_these_have_and_nothing_of_the_third(fleet, tmp_path):
    url, writers = fleet
    bearer = {"Authorization": f"Bearer {OF_TWO}"}
    async with (
        running(url, tokens=tokens(tmp_path, *SHOWN), unknown_id_wait=0.0) as gateway,
        aiohttp.ClientSession(gateway.url, headers=bearer) as session,
    ):
        for path in ASKED:
            async with session.get(f"/api/v1/{path}") as answer:
                asked = path.partition("/")[2] or path.partition("=")[2]
                text = (await answer.text()).replace(asked.partition("/")[0].partition("&")[0], "")
                assert "dc3" not in text, (path, answer.status, text)
        _, page = await gateway.get("/api/v1/jobs", bearer)
        assert {(one["job_id"], one["instance"]) for one in page["jobs"]} == {
            ("of-dc1", "dc1"), ("of-dc2", "dc2"), ("same", "dc1"),
        }  # fmt: skip
        assert [one["instance"] for one in (await gateway.get("/api/v1/instances", bearer))[1]["instances"]] == [*SHOWN]
        for base, status in (("/i/dc1", 200), ("/i/dc3", 403), ("/i/no-such", 403)):
            assert (await gateway.get(f"{base}/api/v1/jobs", bearer))[0] == status, base
        for base, code in (("/i/dc1", 0), ("/i/dc3", 4403), ("", 0)):
            assert await closed_with(session, f"{base}/ws", {**HELLO, "token": OF_TWO}) == code, base
        async with (
            session.ws_connect("/ws") as ws,
            aiohttp.ClientSession(gateway.url) as without,
            without.ws_connect("/ws") as late,
            session.get("/api/v1/stream") as stream,
        ):
            for client in (ws, late):
                await client.send_json([{**HELLO, "token": OF_TWO}, {"type": "subscribe", "id": 1}])
            await writers["dc3"].put(job("later", ids=["dc3-too"]))
            await writers["dc1"].put(job("last", ids=["the-end"]))
            got = []
            for client in (ws, late):
                texts: list[str] = []
                while "the-end" not in "".join(texts):
                    texts.append(await client.receive_str(timeout=PATIENCE))
                got.append("".join(texts))
            stream_text = b""
            while b"the-end" not in stream_text:
                stream_text += await stream.content.readany()
            for found in (*got, stream_text.decode()):
                assert "of-dc2" in found
                assert "dc3" not in found
        async with session.post("/api/v1/ticket") as answer:
            ticket = (await answer.json())["ticket"]
        async with (
            aiohttp.ClientSession(gateway.url) as without,
            without.get(f"/api/v1/jobs?ticket={ticket}") as answer,
        ):
            assert "dc3" not in await answer.text()


async def test_a_reload_gives_a_token_other_appliances_and_closes_what_was_open_with_more(fleet, tmp_path):
    url, _ = fleet
    bearer = {"Authorization": f"Bearer {OF_TWO}"}
    async with (
        running(url, tokens=tokens(tmp_path, *SHOWN)) as gateway,
        aiohttp.ClientSession(gateway.url) as session,
        session.ws_connect("/ws") as narrowed,
        session.ws_connect("/ws") as kept,
    ):
        for ws, token in ((narrowed, OF_TWO), (kept, TOKEN)):
            await ws.send_json({**HELLO, "token": token})
            assert (await ws.receive_json(timeout=PATIENCE))["type"] == "welcome"

        async def shown() -> set[str]:
            status, page = await gateway.get("/api/v1/jobs", bearer)
            return {one["instance"] for one in page["jobs"]} if status == 200 else set()

        assert await shown() == {"dc1", "dc2"}
        gateway.reload(tokens=tokens(tmp_path, "dc2", "dc3"))
        assert (await narrowed.receive(PATIENCE)).type is aiohttp.WSMsgType.CLOSE
        assert narrowed.close_code == 4401

        async def has_changed() -> bool:
            return await shown() == {"dc2", "dc3"}

        await eventually(has_changed)
        await kept.send_json({"type": "ping"})
        assert (await kept.receive_json(timeout=PATIENCE))["type"] == "pong"
