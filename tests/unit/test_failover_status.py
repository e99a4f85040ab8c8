"""The requests that the appliance's own endpoint holds for IDs that no job has yet: how many, and when places free."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from correlator.sinks import turns
from correlator.sinks.turns import Held
from tests.support.eventually import PATIENCE, eventually
from tests.support.http_listener import served
from tests.support.pipeline_harness import PipelineHarness

LONGER_THAN_THE_TEST = 600.0
"""Seconds for which an unknown ID is held: a request that is answered was not held."""

EACH = 5
"""Requests of one address that are held."""


def few(what: str, *, most: int, each: int) -> Held:
    return Held(what, most=most * EACH // each, each=EACH) if each < 1 << 20 else Held(what, most=most, each=each)


async def test_so_many_requests_of_an_address_are_held_until_one_ends_or_its_client_goes(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(turns, "Held", few)
    harness = PipelineHarness()
    held: dict[str, asyncio.Task[tuple[int, Any]]] = {}

    async def status(name: str, address: str) -> tuple[int, Any]:
        path, headers = f"{url}/api/v1/failover/{name}/status", {"X-Forwarded-For": address}
        async with session.get(path, headers=headers) as response:
            return response.status, await response.json()

    async def hold(name: str, address: str = "192.0.2.1", *, waiting: int = EACH) -> None:
        held[name] = tasks.create_task(status(name, address))
        await eventually(lambda: harness.hub.waiting_ids.waiters == waiting)

    async def no_more_are_held() -> None:
        async with asyncio.timeout(PATIENCE):
            code, problem = await status("one-too-many", "192.0.2.1")
        assert (code, problem["status"]) == (429, 429)
        assert not any(task.done() for task in held.values())

    async with (
        served(harness.hub, unknown_id_wait=LONGER_THAN_THE_TEST, proxies=("127.0.0.1",)) as url,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
        asyncio.TaskGroup() as tasks,
    ):
        for number in range(EACH):
            await hold(f"gui-{number}", waiting=number + 1)
        await no_more_are_held()

        harness.read(external_job_id="gui-3")
        code, body = await held.pop("gui-3")
        assert (code, body["job_details"]["external_job_id"]) == (200, "gui-3")
        await hold("after-an-answer")
        await no_more_are_held()

        held.pop("gui-4").cancel()  # the client closes its connection
        await eventually(lambda: harness.hub.waiting_ids.waiters == EACH - 1)
        await hold("after-a-client-has-gone")
        await hold("of-another-address", "192.0.2.2", waiting=EACH + 1)
        await no_more_are_held()

        harness.hub.close()
    assert {task.result()[0] for task in held.values()} == {503}
