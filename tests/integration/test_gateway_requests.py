"""What a gateway does not have in memory, through its REST: from the databases of two appliances."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import aiohttp
import orjson

from correlator.cluster import keys
from correlator.cluster.connection import Connection
from correlator.jobs.index import Index
from correlator.pipeline.pipeline import LocalHub
from correlator.sinks.cluster.gateway_requests import GatewayRequests
from tests.support.archive_queries import archive_of, at, unix
from tests.support.background import in_background
from tests.support.cluster import connected
from tests.support.eventually import PATIENCE, eventually
from tests.support.gateways import RunningGateway, running
from tests.support.mariadb import MariaDB
from tests.support.source_databases import MariaDBOriginal, Original
from tests.support.stream_writer import StreamWriter, job


@contextlib.asynccontextmanager
async def collector(url: str, instance: str, appliance: Original) -> AsyncIterator[LocalHub]:
    """A collector without jobs in memory: everything has left it."""
    async with archive_of(appliance) as archive, connected(url, instance) as connection:
        hub = LocalHub(Index(), archive)
        async with in_background(GatewayRequests(connection, instance).run(hub)):
            yield hub


@contextlib.asynccontextmanager
async def appliances(mariadb: MariaDB, count: int) -> AsyncIterator[list[Original]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(MariaDBOriginal.make(mariadb, "aiomysql", rolled_back=False))
            for _ in range(count)
        ]


async def write(connection: Connection, instance: str) -> StreamWriter:
    writer = StreamWriter(connection, instance)
    await writer.begin()
    await writer.alive()
    return writer


@contextlib.asynccontextmanager
async def fleet(url: str, *instances: str) -> AsyncIterator[tuple[RunningGateway, dict[str, StreamWriter]]]:
    """A gateway of appliances that have no job in the stream yet."""
    async with connected(url) as connection:
        writers = {instance: await write(connection, instance) for instance in instances}
        async with running(url) as gateway:
            await eventually(lambda: len(gateway.gateway.fleet.appliances) == len(instances))
            yield gateway, writers


async def answered(gateway: RunningGateway, path: str, status: int = 200) -> object:
    """The body of an answer, once the collectors have subscribed."""

    async def ask():
        found, body = await gateway.get(path)
        return found == status and (body,)

    (body,) = await eventually(ask)
    return body


async def test_a_job_that_left_memory_is_found_by_any_id_with_its_log(nats, mariadb):
    async with appliances(mariadb, 2) as (one, two), fleet(nats.url, "dc1", "dc2") as (gateway, _):
        await one.job("u1", started_at=at(1), status="completed", completed_at=at(9))
        await two.job("e", started_at=at(100), external_job_id="ext-1", context_id="vm-ctx", status="failed")
        await two.insert("job_steps", id=7, job_id="e", name="copy", seq=1, status="failed", started_at=at(100))
        for n in range(1, 8):
            await two.log(f"line {n}", job_id="e", ts=at(100 + n, micros=0), attrs=json.dumps({"n": n}))
        async with collector(nats.url, "dc1", one), collector(nats.url, "dc2", two):
            by_external: dict[str, object] = await answered(gateway, "/api/v1/jobs/ext-1")  # type: ignore[assignment]
            assert (by_external["job_id"], by_external["instance"], by_external["status"]) == ("e", "dc2", "failed")
            assert await gateway.job("e") == await gateway.job("vm-ctx") == by_external
            in_dc2 = await gateway.job("ext-1", "/i/dc2")
            assert in_dc2 | {"rev": by_external["rev"]} == by_external  # beyond memory: the position of its view
            assert (await gateway.get("/i/dc1/api/v1/jobs/ext-1"))[0] == 404
            assert (await gateway.get("/api/v1/jobs/nobody"))[0] == 404
            resolved = (await gateway.get("/api/v1/resolve/ext-1"))[1]
            assert (resolved["job_id"], resolved["resolved_by"]) == ("e", "external_id")

            first = (await gateway.get("/api/v1/jobs/ext-1/events", limit=5))[1]
            rest = (await gateway.get("/api/v1/jobs/ext-1/events", limit=5, after=first["next_after"]))[1]
            assert [e["message"] for e in first["events"] + rest["events"]] == [f"line {n}" for n in range(1, 8)]
            assert first["events"][0]["attrs"] == {"n": 1}
            before = rest["events"][0]["event_id"]
            earlier = (await gateway.get("/api/v1/jobs/ext-1/events", limit=2, before=before))[1]
            assert [e["message"] for e in earlier["events"]] == ["line 4", "line 5"]
            assert (await gateway.get("/api/v1/jobs/ext-1/events", after="nonsense"))[0] == 400
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"{gateway.url}/api/v1/jobs/e/log") as response,
            ):
                assert len((await response.text()).splitlines()) == 7
            entity = (await gateway.get("/api/v1/entities/vm-ctx"))[1]
            assert (entity["kind"], [one["job_id"] for one in entity["jobs"]]) == ("context", ["e"])


async def test_while_a_collector_is_away_its_part_is_missing_and_named(nats, mariadb):
    async with appliances(mariadb, 2) as (one, two), fleet(nats.url, "dc1", "dc2") as (gateway, writers):
        await one.job("u1", started_at=at(1))
        await writers["dc2"].put(job("m", started_at=unix(2) * 1_000_000))
        await eventually(lambda: gateway.gateway.fleet.hub.published.get("m"))
        async with collector(nats.url, "dc1", one):
            assert await answered(gateway, "/api/v1/jobs/u1")
            away = "dc2: no collector is connected to the cluster"
            for path in ("/api/v1/jobs/nobody", "/api/v1/jobs/m/events", "/i/dc2/api/v1/jobs/nobody"):
                async with aiohttp.ClientSession() as session, session.get(f"{gateway.url}{path}") as response:
                    assert (response.status, response.headers["Retry-After"]) == (503, "2")
                    assert orjson.loads(await response.read())["detail"] == away
            page = (await gateway.get("/api/v1/jobs"))[1]
            assert [one["job_id"] for one in page["jobs"]] == ["m", "u1"]
            assert (page["complete"], page["reason"], page["next_cursor"]) == (False, away, None)
            own = (await gateway.get("/i/dc1/api/v1/jobs"))[1]
            assert (own["complete"], [one["job_id"] for one in own["jobs"]]) == (True, ["u1"])
            async with collector(nats.url, "dc2", two):
                assert await answered(gateway, "/api/v1/jobs/nobody", 404)
                assert (await gateway.get("/api/v1/jobs"))[1]["complete"]


async def test_a_request_that_waits_for_an_id_has_the_collectors_query_for_it_and_gets_it(nats, mariadb):
    async with (
        appliances(mariadb, 1) as (one,),
        fleet(nats.url, "dc1") as (gateway, writers),
        collector(nats.url, "dc1", one) as hub,
    ):
        assert await answered(gateway, "/api/v1/jobs/soon", 404)
        waiting = asyncio.create_task(gateway.get("/api/v1/jobs/soon", wait=60))
        await eventually(hub.waiting_ids.has_waiting_ids)
        assert hub.waiting_ids.unknown_ids(10) == ["soon"]
        await writers["dc1"].put(job("u1", ids=["soon"]))
        status, body = await waiting
        assert (status, body["job_id"], body["instance"]) == (200, "u1", "dc1")


async def test_a_collector_that_never_answers_delays_only_what_waits_for_it(nats, mariadb):
    async with (
        appliances(mariadb, 1) as (one,),
        fleet(nats.url, "dc1", "dc2") as (gateway, writers),
        collector(nats.url, "dc1", one) as hub,
        connected(nats.url, "dc2") as hung,
    ):
        received = await hung.client.subscribe(keys.rpc("dc2", "*"))
        await one.job("u1", started_at=at(1))
        await writers["dc2"].put(job("m"))
        await eventually(lambda: gateway.gateway.fleet.hub.published.get("m"))
        paths = ("/i/dc2/api/v1/jobs/a", "/api/v1/jobs/b")
        stuck = [asyncio.create_task(gateway.get(path, wait=7)) for path in paths]
        waiting = asyncio.create_task(gateway.get("/api/v1/jobs/soon", wait=60))
        await received.next_msg(timeout=PATIENCE)
        await eventually(lambda: "soon" in hub.waiting_ids.unknown_ids(10))
        await answered(gateway, "/i/dc1/api/v1/jobs/u1")
        await writers["dc1"].put(job("u2", ids=["soon"]))
        assert (await waiting)[1]["job_id"] == "u2"
        assert not any(task.done() for task in stuck)
        assert (await gateway.get("/i/dc1/api/v1/jobs/u1", wait=60))[1]["job_id"] == "u1"
        assert [status for status, _ in await asyncio.gather(*stuck)] == [503, 503]
