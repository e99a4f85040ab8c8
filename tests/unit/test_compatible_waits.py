"""The requests that the appliance's own endpoint holds for IDs that no job has yet: how many, and when places free."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from correlator.sinks.http.compatible import MAX_WAITING_REQUESTS, not_found
from tests.support.eventually import PATIENCE, eventually
from tests.support.http_listener import served
from tests.support.pipeline_harness import PipelineHarness

LONGER_THAN_THE_TEST = 600.0
"""Seconds for which an unknown ID is held: a request that is answered was not held."""


async def test_only_so_many_requests_for_unknown_ids_are_held_until_one_ends_or_its_client_goes():
    harness = PipelineHarness()
    held: dict[str, asyncio.Task[tuple[int, Any]]] = {}

    async def status(name: str) -> tuple[int, Any]:
        async with session.get(f"{url}/api/v1/failover/{name}/status") as response:
            return response.status, await response.json()

    async def refused(name: str) -> None:
        async with asyncio.timeout(PATIENCE):
            assert await status(name) == (404, not_found(name))

    def is_full() -> bool:
        return harness.hub.waiting_ids.waiters == MAX_WAITING_REQUESTS

    def hold(name: str) -> None:
        held[name] = tasks.create_task(status(name))

    async with (
        served(harness.hub, unknown_id_wait=LONGER_THAN_THE_TEST) as url,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
        asyncio.TaskGroup() as tasks,
    ):
        for number in range(MAX_WAITING_REQUESTS):
            hold(f"gui-{number}")
        await eventually(is_full)
        await refused("one-too-many")
        assert not any(task.done() for task in held.values())

        harness.read(external_job_id="gui-7")
        code, body = await held.pop("gui-7")
        assert (code, body["job_details"]["external_job_id"]) == (200, "gui-7")
        hold("after-an-answer")
        await eventually(is_full)
        await refused("one-too-many")

        held.pop("gui-8").cancel()  # the client closes its connection
        await eventually(lambda: harness.hub.waiting_ids.waiters == MAX_WAITING_REQUESTS - 1)
        hold("after-a-client-has-gone")
        await eventually(is_full)
        await refused("one-too-many")
        assert not any(task.done() for task in held.values())

        harness.hub.close()
    assert {task.result()[0] for task in held.values()} == {503}
