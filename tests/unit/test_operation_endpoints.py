"""The endpoints for operations: what earlier runs took, from memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson
import pytest
from yarl import URL

from correlator.jobs.index import Index
from correlator.pipeline.pipeline import LocalHub
from correlator.sinks.http.openapi import openapi
from tests.support.forecasts import BASE, SECOND, ended, learned
from tests.support.http_listener import served
from tests.support.schemas import Shapes

SHAPES = Shapes(openapi())
NAMES = ("live", "a/b", "a%2Fb", "100 %", "two\nlines", "?x=1#y", "überführung", "{operation}")


def hub_with(runs: Iterable[Any]) -> LocalHub:
    index = Index()
    learned(list(runs), index.forecasts.forecaster)
    return LocalHub(index)


async def asked(url: str, path: str) -> tuple[int, str, Any]:
    """Status, content type and body of an answer."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(URL(f"{url}/api/v1/operations{path}", encoded=True)) as response,
    ):
        return response.status, response.content_type, orjson.loads(await response.read())


async def test_the_operations_are_listed_in_order_with_what_their_runs_took():
    runs = [ended(("copy", float(n)), start=BASE + n * SECOND) for n in range(1, 11)]
    runs += [ended(("copy", 1.0), operation=("", "live"), completed=False)]
    runs += [ended(("copy", 2.5), operation=("failover", "a"))]
    index = Index()
    async with served(LocalHub(index)) as url:
        assert (await asked(url, ""))[2]["operations"] == []
        index.forecasts.begin_history(BASE)
        index.forecasts.learn_history(runs)
        status, _, body = await asked(url, "")
    assert status == 200
    assert SHAPES.wrong("OperationsList", body) == []
    assert [tuple(operation.values()) for operation in body["operations"]] == [
        (None, "live", 0, None, None, 1.0),
        ("failover", "a", 1, 2.5, 2.5, 0.0),
        ("failover", "live", 10, 6.0, 10.0, 0.0),
    ]


@pytest.mark.parametrize("path", ["", "/failover/live"])
async def test_one_address_asks_about_few_operations_at_once(monkeypatch, path):
    hub, at_once, most = hub_with([ended(("copy", 1.0))]), 0, 0
    answer = hub.ask

    async def slow(question: Any) -> Any:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.01)
        at_once -= 1
        return await answer(question)

    monkeypatch.setattr(hub, "ask", slow)
    async with served(hub) as url:
        answers = await asyncio.gather(*(asked(url, path) for _ in range(20)))
    assert [status for status, *_ in answers] == [200] * 20
    assert most == 4


async def test_an_operation_has_the_usual_steps_of_its_completed_runs():
    runs = [ended(("snapshot", 1.0), ("copy", 4.0), *([("check", 0.1)] if n % 4 == 0 else [])) for n in range(8)]
    runs += [ended(("rare", 9.0), completed=False)] * 2
    async with served(hub_with(runs)) as url:
        status, _, body = await asked(url, "/failover/live")
    assert status == 200
    assert SHAPES.wrong("OperationWithSteps", body) == []
    assert (body["runs"], body["typical_seconds"], body["failure_rate"]) == (8, 5.0, 0.2)
    assert body["steps"] == [
        {"name": "snapshot", "share": 1.0, "typical_seconds": 1.0},
        {"name": "copy", "share": 1.0, "typical_seconds": 4.0},
        {"name": "check", "share": 0.25, "typical_seconds": 0.1},
    ]


async def test_an_operation_is_found_whatever_characters_its_names_have():
    keys = [(job_type, name) for name in NAMES for job_type in (name, "")]
    async with served(hub_with(ended(("copy", 1.0), operation=key) for key in keys)) as url:
        for job_type, name in keys:
            path = f"/{quote(job_type, safe='') or '-'}/{quote(name, safe='')}"
            status, _, body = await asked(url, path)
            assert (status, body["job_type"], body["operation"]) == (200, job_type or None, name)
        assert (await asked(url, "/live/a/b"))[0] == 404
        code, content_type, body = await asked(url, "/failover/other")
        assert (code, content_type) == (404, "application/problem+json")
        assert "no run of the operation 'other' of the job type 'failover' is known" in body["detail"]
        assert (await asked(url, "/-/a/b"))[2]["operation"] == "a/b"
