"""A gateway with a real NATS server: it serves what the stream says, and its clients resume at any gateway."""

from __future__ import annotations

import asyncio
import re

import aiohttp
import orjson
from msgspec.structs import replace

from correlator.cluster import keys, streams
from correlator.gateway.fleet import NOT_READ
from correlator.jobs import encoding
from correlator.sinks.streaming.sessions import BEHIND
from tests.support.cluster import connected
from tests.support.documents import document_of
from tests.support.eventually import eventually
from tests.support.faults.proxy import Proxy
from tests.support.gateways import running
from tests.support.markdown import read
from tests.support.stream_clients import CheckedWebsocket, Refused
from tests.support.stream_writer import StreamWriter, job


def served(shown, rev, instance="dc1"):
    """The document of a job as a gateway has it."""
    document = document_of(replace(shown, rev=rev, instance=instance))
    return orjson.loads(encoding.encode(document))


async def writer(connection, instance="dc1"):
    made = StreamWriter(connection, instance)
    await made.begin()
    await made.alive()
    return made


async def test_a_client_resumes_at_another_gateway_and_after_a_restart(nats):
    async with connected(nats.url) as connection:
        dc1 = await writer(connection)
        await dc1.put(job("a"), job("b"), job("c"))
        client = CheckedWebsocket()
        async with running(nats.url) as gateway, client.connected(gateway.url):
            pass
        await dc1.put(job("a", "failed"))
        await dc1.remove("b")
        async with running(nats.url) as gateway, running(nats.url) as another:
            for one in (gateway, another):
                async with client.connected(one.url):
                    assert client.welcome["resumed"]
                    assert {name: shown["status"] for name, shown in client.jobs.items()} == {
                        "a": "failed",
                        "c": "running",
                    }
                await dc1.put(job("c"))
            assert "snapshot" not in [message["type"] for message in client.messages]
            assert client.fold.resyncs == []


async def test_each_appliance_has_its_own_paths_and_jobs(nats):
    async with connected(nats.url) as connection:
        dc1, dc2 = await writer(connection), await writer(connection, "dc2")
        await dc1.put(job("a"), job("same", started_at=1))
        seq = await dc2.put(job("b"), job("same", started_at=2))
        async with running(nats.url) as gateway:
            async with (
                CheckedWebsocket().connected(gateway.url) as fleet,
                CheckedWebsocket().connected(f"{gateway.url}/i/dc1") as own,
            ):
                assert fleet.jobs.keys() == {"a", "b", "same"}
                assert fleet.jobs["same"] == served(job("same", started_at=2), seq, "dc2")
                assert {i: shown["instance"] for i, shown in own.jobs.items()} == {"a": "dc1", "same": "dc1"}
                await dc2.remove("same")
                await eventually(lambda: fleet.jobs["same"]["instance"] == "dc1")
                assert fleet.jobs["same"] == served(job("same", started_at=1), seq + 1)
                assert own.jobs["same"] == await gateway.job("same", "/i/dc1")
            assert (await gateway.get("/i/dc2/api/v1/jobs"))[1]["jobs"][0]["job_id"] == "b"
            assert (await gateway.get("/i/dc2/api/v1/jobs/a"))[0] == 503  # its collector is away, and might know it
            assert (await gateway.get("/i/nobody/api/v1/jobs"))[0] == 404
            assert (await gateway.get("/i/dc1/health/ready"))[0] == 200
            async with aiohttp.ClientSession() as session, session.get(f"{gateway.url}/i/dc1") as page:
                assert (page.url.path, page.status) == ("/i/dc1/", 200)
                (script,) = re.findall(r'src="(page-[^"]+)"', await page.text())
                async with session.get(f"{gateway.url}/i/dc1/{script}") as response:
                    assert (response.status, response.headers["Content-Encoding"]) == (200, "gzip")
                    assert "immutable" in response.headers["Cache-Control"]


async def test_before_the_stream_was_read_nothing_is_said_of_any_job(nats):
    async with connected(nats.url) as connection, running(nats.url, read=False) as gateway:
        dc1 = StreamWriter(connection, "dc1")
        for path in ("api/v1/jobs/a", "api/v1/jobs", "api/v1/jobs/a/events", "api/v1/instances", "i/dc1/api/v1/jobs"):
            status, problem = await gateway.get(f"/{path}")
            assert (status, problem["detail"]) == (503, NOT_READ), path
        await dc1.begin()
        await dc1.put(job("a"))
        await eventually(lambda: gateway.gateway.fleet.hub.refusal() is None)
        assert (await gateway.get("/api/v1/jobs"))[1]["jobs"][0]["job_id"] == "a"
        assert (await gateway.get("/i/dc9/api/v1/jobs"))[0] == 404


async def test_the_steps_of_a_removal_leave_nothing_of_an_appliance_which_may_come_back(nats):
    steps = read("docs/cluster.md").partition("### Remove an appliance")[2].partition("\n## ")[0]
    async with connected(nats.url) as connection:
        dc1, dc2 = await writer(connection), await writer(connection, "dc2")
        await dc1.put(job("a"))
        await dc2.put(job("b"))
        await dc2.event("job.late", "b")
        await connection.request(keys.checkpoint("dc2", "state"), b"1")
        async with running(nats.url) as gateway:

            async def names():
                await dc1.alive()
                return [one["instance"] for one in (await gateway.get("/api/v1/instances"))[1]["instances"]]

            assert await names() == ["dc1", "dc2"]
            assert (await gateway.get("/i/dc2/api/v1/jobs"))[0] == 200
            await eventually(lambda: gateway.gateway.fleet.appliances["dc2"].online() is False)
            client = CheckedWebsocket()
            async with client.connected(gateway.url):
                # The tool of NATS is not here: its requests are sent.
                for stream, subject in re.findall(r"`nats stream purge (\S+) --subject '(\S+)' --force`", steps):
                    await connection.api(f"STREAM.PURGE.{stream}", {"filter": subject})
                for stream in streams.wanted(1):
                    info = await connection.api(f"STREAM.INFO.{stream}", {"subjects_filter": ">"})
                    assert not [s for s in info["state"].get("subjects") or () if "dc2" in s]
                assert "`nats pub '$KV.cor.epoch' \"$(date +%s)\"`" in steps
                await dc1.set_epoch("epoch-2")

                async def gone():
                    return await names() == ["dc1"]

                await eventually(gone)
                await eventually(lambda: client.closed == 1012)
            async with client.connected(gateway.url):
                assert client.jobs.keys() == {"a"}
            assert (await gateway.get("/i/dc2/api/v1/jobs"))[0] == 404

            async def live():
                await dc1.alive()
                return gateway.gateway.fleet.hub.status.database == "live"

            await eventually(live)
            await dc2.put(job("c"))
            await eventually(lambda: gateway.job("c", "/i/dc2"))
            jobs = (await gateway.get("/i/dc2/api/v1/jobs"))[1]["jobs"]
            assert [shown["job_id"] for shown in jobs] == ["c"]


async def test_a_client_ahead_of_a_gateway_that_lost_its_server_is_refused_until_it_can_resume(nats):
    async with connected(nats.url) as connection, Proxy(nats.port) as proxy:
        dc1 = await writer(connection)
        await dc1.put(job("a"))
        client = CheckedWebsocket()
        async with running(nats.url) as gateway, running(f"nats://127.0.0.1:{proxy.port}") as behind:
            async with client.connected(gateway.url):
                proxy.black_hole()
                proxy.heal()  # for new connections
                await dc1.put(job("b"))
                await eventually(lambda: "b" in client.jobs)
            assert behind.gateway.fleet.hub.refusal() is None
            assert client.fold.position is not None
            last = {"Last-Event-ID": ":".join(map(str, client.fold.position))}
            status, problem = await behind.get("/api/v1/stream", headers=last)
            assert (status, problem["detail"]) == (503, BEHIND)
            refused = set()
            while True:
                try:
                    async with client.connected(behind.url):
                        break
                except Refused as refusal:
                    refused.add(refusal.code)
            assert (refused, client.welcome["resumed"], client.fold.resyncs) == ({1013}, True, [])


async def test_a_request_waits_for_a_revision_that_another_gateway_has_shown(nats):
    async with connected(nats.url) as connection:
        dc1 = await writer(connection)
        seq = await dc1.put(job("a"))
        async with running(nats.url) as gateway:
            waiting = asyncio.create_task(gateway.get("/api/v1/jobs/a", wait=30, rev=seq))
            await eventually(lambda: gateway.gateway.fleet.hub.waiting_ids.waiters)
            await dc1.put(job("a", "failed"))
            assert (await waiting)[1]["status"] == "failed"
            assert (await gateway.get("/api/v1/jobs/never", wait=0.1))[0] in (404, 503)


async def test_a_cluster_that_is_away_leaves_what_is_known_and_the_clients_connected(nats):
    async with connected(nats.url) as connection:
        dc1 = await writer(connection)
        await dc1.put(job("a"))
        async with running(nats.url) as gateway, CheckedWebsocket().connected(gateway.url) as client:
            await asyncio.to_thread(nats.stop)
            await eventually(lambda: client.messages[-1].get("source") == "stale")
            assert (await gateway.job("a"))["job_id"] == "a"
            status, ready = await gateway.get("/health/ready")
            assert (status, ready["degraded"], ready["parts"]["cluster"]["ok"]) == (200, True, False)
            await asyncio.to_thread(nats.start)
            await connection.connect(60)
            await eventually(lambda: put(dc1, "b"))
            await eventually(lambda: client.jobs.keys() == {"a", "b"})
            assert client.closed is None


async def put(dc1, name):
    try:
        return await dc1.put(job(name))
    except Exception as error:
        raise AssertionError(str(error)) from error  # not yet
