"""Requests of a gateway to collectors over NATS, which answer from MariaDB."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest

from correlator.cluster import keys, rpc
from correlator.cluster.connection import NoResponder
from correlator.cluster.rpc import Caller, Code, RemoteError
from correlator.errors import SourceUnavailable
from correlator.gateway.archive import RpcArchive, WaitingIdsSender
from correlator.jobs.index import Index
from correlator.ops.cluster_metrics import REQUESTS_REJECTED
from correlator.pipeline.hub import WaitingIds
from correlator.pipeline.pipeline import LocalHub
from correlator.pipeline.queries import FindLines, IsContext, JobNames, JobQuery, LineQuery, LogLines
from correlator.sinks.cluster import gateway_requests
from tests.support.answering_collectors import ArchiveInMemory, reading
from tests.support.archive_queries import at, unix
from tests.support.cluster import connected
from tests.support.cluster_collectors import answering, appliances, collector
from tests.support.eventually import PATIENCE, eventually


@contextlib.asynccontextmanager
async def gateway(url: str, *scope: str) -> AsyncIterator[RpcArchive]:
    async with connected(url, "gw1", "gateway") as connection:
        yield RpcArchive(Caller(connection), lambda: scope)


async def found_by(archive: RpcArchive, name: str) -> tuple[str, str] | None:
    """(appliance, job ID), once the collectors have subscribed."""

    async def find():
        with contextlib.suppress(SourceUnavailable):
            return (await archive.find(name),)

    (found,) = await eventually(find)
    return found and (found[0].instance, found[0].job_id)


async def test_jobs_of_two_appliances_that_left_memory_are_found_and_paged_to_the_end(nats, mariadb):
    async with appliances(mariadb, 2) as (one, two), gateway(nats.url, "dc1", "dc2") as archive:
        for n in range(30):
            await (one if n % 3 else two).job(f"u{n:02}", started_at=at(n // 2), status="completed")
        await two.job("e", started_at=at(100), external_job_id="ext-1", context_id="vm-ctx", status="failed")
        await two.insert("job_steps", id=7, job_id="e", name="copy", seq=1, status="failed", started_at=at(100))
        for n in range(1, 8):
            await two.log(f"line {n}", job_id="e", ts=at(100 + n, micros=0), attrs=json.dumps({"n": n}))
        async with collector(nats.url, "dc1", one), collector(nats.url, "dc2", two):
            assert await found_by(archive, "ext-1") == ("dc2", "e")
            assert await found_by(archive, "u01") == ("dc1", "u01")
            assert await found_by(archive, "nobody") is None
            assert await archive.ask(IsContext("vm-ctx"))
            seen, before = list[tuple[str, str]](), None
            while True:
                page = await archive.page(JobQuery(), before, 4)
                assert page.reason is None
                seen += [(job.instance, job.job_id) for job in page.jobs]
                if (before := page.next_before) is None:
                    break
            jobs = sorted(range(30), key=lambda n: (n // 2, n), reverse=True)
            assert seen == [("dc2", "e"), *(("dc1" if n % 3 else "dc2", f"u{n:02}") for n in jobs)]

            names = JobNames("e", ("ext-1",), frozenset({7}), unix(100) * 1_000_000, None, "dc2")
            lines = await archive.ask(LogLines(names, None, 5, LineQuery()))
            rest = await archive.ask(LogLines(names, lines.next_after, 5, LineQuery()))
            assert [one.message for one in (*lines.lines, *rest.lines)] == [f"line {n}" for n in range(1, 8)]
            assert lines.lines[0].attrs == {"n": 1}
            earlier = await archive.ask(LogLines(names, None, 2, LineQuery(), rest.lines[0].event_id))
            assert [one.message for one in earlier.lines] == ["line 4", "line 5"]
            found = await archive.ask(FindLines(20, LineQuery(words=frozenset({"LINE"}), until=unix(106) * 1_000_000)))
            assert [(one.message, one.instance) for one in found.lines] == [
                (f"line {n}", "dc2") for n in range(5, 0, -1)
            ]


async def test_a_collector_that_is_away_is_named_at_once_and_answers_again_when_it_is_back(nats, mariadb):
    async with appliances(mariadb, 1) as (one,), gateway(nats.url, "dc1") as archive:
        await one.job("u1", started_at=at(1))
        async with collector(nats.url, "dc1", one):
            assert await found_by(archive, "u1") == ("dc1", "u1")

        async def away() -> str:
            try:
                await archive.find("u1")
            except SourceUnavailable as error:
                return error.public
            return ""

        await eventually(lambda: _is(away(), "dc1: no collector is connected to the cluster"))
        async with collector(nats.url, "dc1", one):
            assert await found_by(archive, "u1") == ("dc1", "u1")
            await asyncio.to_thread(nats.kill)
            await eventually(lambda: _is(away(), "dc1: the cluster cannot be reached"))
            await asyncio.to_thread(nats.start)
            assert await found_by(archive, "u1") == ("dc1", "u1")


async def _is(text, expected: str) -> bool:
    return bool(await text == expected)


async def test_a_flood_of_requests_is_rejected_and_the_collector_goes_on(nats, monkeypatch):
    """While the database hangs, more requests than the bound get a reply at once, and a later one is answered."""
    monkeypatch.setattr(rpc, "WITHIN", PATIENCE)
    archive = ArchiveInMemory([reading("u", 1, context_id="c")])
    archive.go.clear()
    async with (
        connected(nats.url, "dc1") as connection,
        connected(nats.url, "gw1", "gateway") as client,
        answering(connection, LocalHub(Index(), archive), "dc1"),
    ):

        async def ask(method: str = "IsContext") -> object:
            payload = rpc.encode_request(IsContext("c"), PATIENCE)
            reply = await client.request(keys.rpc("dc1", method), payload, within=PATIENCE)
            try:
                return rpc.decode_reply(reply.data, bool)
            except RemoteError as error:
                return error.code

        async def subscribed() -> bool:
            with contextlib.suppress(NoResponder):
                return await ask("unknown") is Code.UNSUPPORTED
            return False

        await eventually(subscribed)
        rejected = REQUESTS_REJECTED._value.get()
        flood = [asyncio.create_task(ask()) for _ in range(1000)]
        await eventually(lambda: REQUESTS_REJECTED._value.get() - rejected == 1000 - gateway_requests.MAX_RUNNING)
        archive.go.set()
        answers = await asyncio.gather(*flood)
        assert answers.count(Code.BUSY) == 1000 - gateway_requests.MAX_RUNNING
        assert answers.count(True) == gateway_requests.MAX_RUNNING
        assert await ask() is True


async def test_the_collectors_query_for_what_a_client_of_a_gateway_waits_for(nats):
    async with connected(nats.url, "dc1") as connection, connected(nats.url, "gw1", "gateway") as client:
        hub = LocalHub(Index())
        async with answering(connection, hub, "dc1"):
            waiting = WaitingIds(lambda _: False)
            wanting = WaitingIdsSender(lambda: [(None, waiting)], lambda message: client.publish(keys.WANT, message))
            task = asyncio.create_task(wanting.run())
            try:
                with waiting.watched_id("soon"):

                    async def watched() -> bool:
                        wanting.wake()
                        return hub.waiting_ids.has_waiting_ids()

                    await eventually(watched)
                assert hub.waiting_ids.unknown_ids(10) == ["soon"]
            finally:
                task.cancel()


@pytest.mark.parametrize("instance", ["dc2", None])
async def test_a_wanted_id_of_another_appliance_is_not_queried_for(nats, instance):
    async with connected(nats.url, "dc1") as connection, connected(nats.url, "gw1", "gateway") as client:
        hub = LocalHub(Index())
        async with answering(connection, hub, "dc1"):
            await eventually(lambda: connection.connected)
            message = b'{"ids":["x"]}' if instance is None else b'{"ids":["x"],"instance":"dc2"}'

            async def arrived() -> list[str]:
                await client.publish(keys.WANT, message)
                await client.publish(keys.WANT, b'{"ids":["last"]}')
                return hub.waiting_ids.unknown_ids(10)

            found = await eventually(arrived)
            assert ("x" in found) == (instance is None)
