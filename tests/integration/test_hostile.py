"""Clients that mean harm, or are merely wrong: nobody else notices, and each is told."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from correlator.hub import Hub
from correlator.jobs.index import Index
from correlator.jobs.model import JobRecord, Reading
from tests.listener import served
from tests.servers import eventually

NOW = time.time_ns() // 1000
HELLO = {"type": "hello", "version": 1}


@pytest.fixture
def hub() -> Hub:
    index = Index()
    index.loading = False
    for n in range(2000):
        index.apply([Reading(f"j{n}", index.look(), JobRecord(f"j{n}", status="running", started_at=NOW), ())], NOW)
    hub = Hub(index)
    hub.loading = None
    return hub


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def closed_with(ws: aiohttp.ClientWebSocketResponse) -> int:
    async with asyncio.timeout(10):
        while (message := await ws.receive()).type is not aiohttp.WSMsgType.CLOSE:
            assert message.type is aiohttp.WSMsgType.TEXT, message
        return int(message.data)


async def told(ws: aiohttp.ClientWebSocketResponse, kind: str) -> list[dict[str, Any]]:
    """All messages up to the first of a kind."""
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(10):
        while not any(m["type"] == kind for m in found):
            said = json.loads((await ws.receive()).data)
            found += said if isinstance(said, list) else [said]
    return found


async def test_a_thousand_subscribes_in_a_frame_are_too_many_and_hold_nobody_up(hub, client):
    async with served(hub) as url, client.ws_connect(f"{url}/ws") as ws:
        await ws.send_json([HELLO, *({"type": "subscribe", "id": 1} for _ in range(990))])
        slowest = 0.0
        for _ in range(10):
            began = time.monotonic()
            async with client.get(f"{url}/health/live") as response:
                assert response.status == 200
            slowest = max(slowest, time.monotonic() - began)
        assert slowest < 1.0
        assert await closed_with(ws) == 4429


async def test_pings_without_end_are_too_many(hub, client):
    async with served(hub) as url, client.ws_connect(f"{url}/ws", autoping=False) as ws:
        await ws.send_json(HELLO)
        await told(ws, "welcome")
        for _ in range(3000):
            await ws.ping(b"x" * 125)
        async with asyncio.timeout(10):
            while (message := await ws.receive()).type is aiohttp.WSMsgType.PONG:
                pass
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 4429)


async def test_a_wrong_message_does_not_take_the_others_of_its_frame_along(hub, client):
    async with served(hub) as url, client.ws_connect(f"{url}/ws") as ws:
        wrong = {"type": "subscribe", "id": 7, "status": ["nonsense"]}
        await ws.send_json(
            [HELLO, {"type": "unsubscribe", "id": 99}, wrong, {"type": "subscribe", "id": 1, "jobs": ["j1"]}]
        )
        messages = await told(ws, "synced")
        assert [m["sub"] for m in messages if m["type"] == "error"] == [99, 7]
        assert messages[-1]["count"] == 1


async def test_who_has_not_said_hello_is_sent_away_too(hub, client):
    async with served(hub) as url:
        ws = await client.ws_connect(f"{url}/ws")
        await eventually(lambda: hub.watchers["streaming"]() == 1)
    assert await closed_with(ws) == 1012


async def test_who_waits_is_told_that_it_was_a_restart(hub, client):
    async with served(hub) as url:
        waiting = asyncio.create_task(client.get(f"{url}/api/v1/jobs/nobody?wait=30"))
        await eventually(lambda: hub.watchers["waiting"]() == 1)
    response = await waiting
    assert (response.status, response.content_type) == (503, "application/problem+json")


async def test_a_ticket_makes_no_ticket(hub, client):
    async with served(hub, tokens=("secret",)) as url:
        bearer = {"Authorization": "Bearer secret"}
        tickets = f"{url}/api/v1/ticket"
        async with client.post(tickets, headers=bearer) as response:
            ticket = (await response.json())["ticket"]
        async with client.post(tickets, params={"ticket": ticket}) as response:
            assert response.status == 401
        async with client.get(f"{url}/api/v1/jobs", params={"ticket": ticket}) as response:
            assert response.status == 200


@pytest.mark.parametrize("path", ["/health/ready", "/client.js", "/api/v1/jobs", "/metrics"])
async def test_a_page_of_a_listed_origin_may_ask_with_headers_everywhere(hub, client, path):
    async with served(hub, tokens=("secret",), origins=("http://gui",)) as url:
        headers = {"Origin": "http://gui", "Access-Control-Request-Method": "GET"}
        async with client.options(url + path, headers=headers) as response:
            assert response.status == 204
            assert "Authorization" in response.headers["Access-Control-Allow-Headers"]
        async with client.options(url + path, headers={**headers, "Origin": "http://other"}) as response:
            assert "Access-Control-Allow-Origin" not in response.headers


async def test_metadata_of_any_depth_ends_nobody(hub, client):
    async with served(hub) as url, client.ws_connect(f"{url}/ws") as ws:
        await ws.send_json([HELLO, {"type": "subscribe", "id": 1, "jobs": ["j1"]}])
        await told(ws, "synced")
        for error in ("one", "two"):
            deep = '{"a":' * 1000 + "1" + "}" * 1000
            record = JobRecord("j1", status="running", started_at=NOW, metadata=deep, error_message=error)
            hub.publish(hub.index.apply([Reading("j1", hub.index.look(), record, ())], NOW))
            delta = (await told(ws, "delta"))[-1]
            assert delta["set"]["error"] == error
