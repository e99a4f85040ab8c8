"""The endpoints for operations: what earlier runs took, from memory."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson
import pytest
from yarl import URL

from correlator.forecast.forecaster import MAX_OPERATIONS
from correlator.jobs.index import Index
from correlator.pipeline.pipeline import LocalHub
from correlator.sinks.http.openapi import openapi
from correlator.state.checkpoint import decode_operation, encode_operation
from tests.support.forecasts import BASE, SECOND, ended, learned
from tests.support.http_listener import served
from tests.support.schemas import Shapes
from tests.support.yardstick import ROUNDS

SHAPES = Shapes(openapi())
NAMES = ("live", "a/b", "a%2Fb", "100 %", "two\nlines", "?x=1#y", "überführung", "{operation}")


def hub_with(runs: Iterable[Any]) -> LocalHub:
    index = Index()
    learned(list(runs), index.forecasts.forecaster)
    return LocalHub(index)


async def asked(url: str, path: str, **headers: str) -> tuple[int, str, Any]:
    """Status, content type and body of an answer."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(URL(f"{url}/api/v1/operations{path}", encoded=True), headers=headers) as response,
    ):
        return response.status, response.content_type, orjson.loads(await response.read())


async def test_the_operations_are_listed_in_order_with_what_their_runs_took():
    runs = [ended(("copy", float(n)), start=BASE + n * SECOND) for n in range(1, 11)]
    runs += [ended(("copy", 1.0), operation=("", "live"), completed=False)]
    runs += [ended(("copy", 2.5), operation=("failover", "a"))]
    async with served(hub_with(runs)) as url:
        status, _, body = await asked(url, "")
    assert status == 200
    assert SHAPES.wrong("OperationsList", body) == []
    found = [tuple(operation.values()) for operation in body["operations"]]
    assert list(body["operations"][0]) == [
        "job_type", "operation", "runs", "typical_seconds", "p90_seconds", "failure_rate",
    ]  # fmt: skip
    assert found == [
        (None, "live", 0, None, None, 1.0),
        ("failover", "a", 1, 2.5, 2.5, 0.0),
        ("failover", "live", 10, 6.0, 10.0, 0.0),
    ]


async def test_runs_that_are_read_from_the_tables_after_the_start_are_listed():
    index = Index()
    async with served(LocalHub(index)) as url:
        index.forecasts.begin_history(BASE)
        index.forecasts.learn_history([ended(("copy", 1.0))])
        assert [one["operation"] for one in (await asked(url, ""))[2]["operations"]] == ["live"]
        assert (await asked(url, "/failover/live"))[0] == 200


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
        assert (await asked(url, "/-/a/b"))[2]["operation"] == "a/b"


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/failover/other", 404, "no run of the operation 'other' of the job type 'failover' is known"),
        ("/-/live", 404, "no run of the operation 'live' of the job type '-' is known"),
        ("/failover/live?steps=1", 400, "there is no query parameter 'steps' here"),
        ("?limit=1", 400, "there is no query parameter 'limit' here"),
    ],
)
async def test_what_is_not_known_is_a_problem_that_says_so(path, status, says):
    async with served(hub_with([ended(("copy", 1.0))])) as url:
        code, content_type, body = await asked(url, path)
    assert (code, content_type) == (status, "application/problem+json")
    assert says in body["detail"]


async def test_the_operations_need_a_token_where_one_is_configured():
    async with served(hub_with([ended(("copy", 1.0))]), tokens=("sesame",)) as url:
        for path in ("", "/failover/live"):
            assert (await asked(url, path))[0] == 401
            assert (await asked(url, path, Authorization="Bearer sesame"))[0] == 200


async def test_the_list_of_the_most_operations_costs_less_than_to_write_and_read_it_twenty_times():
    runs = [ended(*((f"step {s}", 1.0 + n) for s in range(10)), start=BASE + n * SECOND) for n in range(100)]
    stored = encode_operation(next(iter(learned(runs)))[1])
    index = Index()
    operations = ((("failover", f"operation {n}"), decode_operation(stored)) for n in range(MAX_OPERATIONS))
    index.forecasts.forecaster.restore(operations)
    async with served(LocalHub(index)) as url, aiohttp.ClientSession() as session:
        ours, bare = [], []
        for _ in range(ROUNDS):
            began = time.thread_time()  # of the listener and of the client, which share the thread
            async with session.get(f"{url}/api/v1/operations") as response:
                body = await response.json()
            answered = time.thread_time()
            for _ in range(20):
                json.loads(json.dumps(body))
            ours.append(answered - began)
            bare.append(time.thread_time() - answered)
            assert len(body["operations"]) == MAX_OPERATIONS
    assert min(ours) < min(bare), (ours, bare)
