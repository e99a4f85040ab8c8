"""The access rules of a gateway hold for the fleet and for each appliance, and count their connections together."""

from __future__ import annotations

import aiohttp
import pytest

from tests.support.cluster import connected
from tests.support.daemon import HELLO
from tests.support.gateways import running
from tests.support.stream_writer import StreamWriter, job

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
        session.ws_connect("ws"),
        session.ws_connect("i/dc1/ws"),
    ):
        for base in BASES:
            assert await closed_with(session, f"{base}/ws") == 4429
            async with session.get(f"{base}/api/v1/stream") as answer:
                assert answer.status == 429
