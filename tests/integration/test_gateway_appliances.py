"""Appliances that get another name, are removed, or lose a stream, as a gateway and a collector show them."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from correlator.cluster import keys, streams
from correlator.config.schema import Cluster, NatsUrl
from correlator.ops.metrics import REGISTRY
from tests.support.appliance import Appliance
from tests.support.background import in_background
from tests.support.cluster import connected, create_streams
from tests.support.cluster_harness import read_stream
from tests.support.collectors import cluster_part, collector, is_active
from tests.support.eventually import eventually
from tests.support.gateways import RunningGateway, running
from tests.support.mariadb import Database
from tests.support.nats import Nats
from tests.support.stream_writer import StreamWriter, job

EVERYTHING = {
    keys.STATE: "$KV.cor.dc1.>",
    keys.ALIVE: keys.alive("dc1"),
    keys.CHECKPOINT: "$KV.cor_checkpoint.dc1.>",
    keys.EVENTS: "cor.v1.dc1.>",
}


async def renewing(writer: StreamWriter) -> None:
    while True:
        await writer.alive()
        await asyncio.sleep(0.3)


async def online(gateway: RunningGateway) -> dict[str, Any]:
    status, body = await gateway.get("/api/v1/instances")
    return {one["instance"]: one["online"] for one in body["instances"]} if status == 200 else {}


async def test_after_another_name_the_fleet_shows_the_jobs_of_the_collector_that_lives(nats: Nats):
    async with connected(nats.url) as connection:
        old, new = StreamWriter(connection, "dc1"), StreamWriter(connection, "zz9")
        await old.begin()
        await old.put(job("a"), job("b"))

        async def shows(name: str, status: str) -> bool:
            document = await gateway.job(name)
            assert (document["instance"], document["status"]) == ("zz9", status)
            return True

        async with running(nats.url) as gateway:
            async with in_background(renewing(old)):
                await eventually(lambda: online(gateway))
            async with in_background(renewing(new)):
                # One that ended in the meantime, and one that goes on and writes no more: the same age as before.
                await new.put(job("a", "completed"), job("b"), job("other"))
                await eventually(lambda: shows("a", "completed"))
                await eventually(lambda: shows("b", "running"))
                assert (await gateway.get("/i/dc1/api/v1/jobs/a"))[1]["status"] == "running"
        # A gateway that starts later says the same.
        async with in_background(renewing(new)), running(nats.url) as gateway:
            await new.put(job("c"))
            await eventually(lambda: shows("a", "completed"))


async def test_an_appliance_that_is_removed_right_after_its_stop_is_forgotten_an_empty_one_not(nats: Nats):
    async with connected(nats.url) as connection:
        removed, empty = StreamWriter(connection, "dc1"), StreamWriter(connection, "dc2")
        await removed.begin()
        await removed.put(job("a"))
        async with running(nats.url) as gateway, in_background(renewing(empty)):
            async with in_background(renewing(removed)):
                await eventually(lambda: both_are_online(gateway))
            for (
                stream,
                subject,
            ) in EVERYTHING.items():  # As docs/cluster.md says, within the three seconds of a silence.
                await connection.api(f"STREAM.PURGE.{stream}", {"filter": subject})
            await removed.set_epoch("another")

            async def forgotten() -> bool:
                assert await online(gateway) == {"dc2": True}
                return True

            await eventually(forgotten)


async def both_are_online(gateway: RunningGateway) -> bool:
    return await online(gateway) == {"dc1": True, "dc2": True}


async def test_keys_that_somebody_removed_are_no_garbage(nats: Nats):
    async with connected(nats.url) as connection:
        writer = StreamWriter(connection, "dc1")
        await writer.begin()
        await writer.put(job("a"))
        await writer.remove("a")
        for key in (keys.alive("dc1"), keys.owner("dc1"), keys.job("dc1", "b")):
            await connection.request(key, b"", headers={"KV-Operation": "DEL"})
        async with running(nats.url) as gateway:
            await writer.put(job("c"))
            await eventually(lambda: gateway.job("c"))
            assert gateway.gateway.connection.parser.describe() == {}


@pytest.mark.parametrize("stream", [keys.EVENTS, keys.CHECKPOINT, keys.ALIVE, keys.STATE])
async def test_a_stream_that_is_gone_is_named_and_used_again_once_it_is_created(
    tmp_path: Path, database: Database, appliance: Appliance, nats: Nats, stream: str
):
    await create_streams(nats.url)
    async with (
        connected(nats.url) as connection,
        collector(tmp_path / "one", database, nats.url) as daemon,
        running(nats.url, read=False) as gateway,
    ):
        await daemon.start()
        first = await appliance.job()
        await eventually(lambda: gateway.job(first))
        await connection.api(f"STREAM.DELETE.{stream}")

        async def named() -> bool:
            ours, theirs = await cluster_part(daemon), (await gateway.get("/health/ready"))[1]["parts"]["cluster"]
            for part in (ours, theirs):
                assert f"the stream {stream} does not exist: create with {streams.COMMAND}" in str(part.get("error"))
            return True

        await eventually(named)
        second = await appliance.job()
        await create_streams(nats.url)
        await appliance.end(second)

        async def works() -> bool:
            assert (await cluster_part(daemon))["ok"] is True
            stored = await read_stream(connection, stream, EVERYTHING[stream])
            subjects = {subject for subject, _, _ in stored}
            if stream == keys.EVENTS:
                assert keys.event("dc1", second) in subjects
            if stream == keys.CHECKPOINT:
                assert keys.checkpoint("dc1", "job", second) in subjects
            assert subjects
            assert (await gateway.job(second))["status"] == "completed"
            return await is_active(daemon)

        await eventually(works, every=0.3)
        assert (await daemon.text("/metrics")).count("correlator_cluster_takeovers_total 1.0") == 1


async def test_an_appliance_that_writes_more_than_its_share_loses_its_own_oldest_jobs_and_no_other(nats, caplog):
    """Its external IDs take twenty times as much memory as the document has bytes."""

    def lost() -> float:
        return REGISTRY.get_sample_value("correlator_appliance_crowded_total", {"appliance": "dc1"}) or 0.0

    async with connected(nats.url) as connection:
        flood, other = StreamWriter(connection, "dc1"), StreamWriter(connection, "dc2")
        await flood.begin()
        await other.put(*(job(f"of-dc2-{n}") for n in range(5)))
        async with (
            running(nats.url, share=1_000_000) as gateway,
            in_background(renewing(flood)),
            in_background(renewing(other)),
        ):
            await eventually(lambda: both_are_online(gateway))
            before, ids = lost(), [f"{n:03x}" for n in range(900)]
            for part in range(0, 40, 10):
                await flood.put(*(job(f"of-dc1-{n:02}", ids=ids) for n in range(part, part + 10)))
            await other.put(job("of-dc2-5"))
            await eventually(lambda: gateway.job("of-dc2-5"))

            one, two = (await gateway.get("/api/v1/instances"))[1]["instances"]
            assert 1 <= one["jobs"] <= 3
            assert (two["jobs"], two["error"]) == (6, None)
            assert (await gateway.job("of-dc1-39"))["instance"] == "dc1"
            assert lost() - before == 40 - one["jobs"]
            assert "its jobs take more than" in one["error"]
            for base, degraded in (("", True), ("/i/dc1", True), ("/i/dc2", False)):
                status, ready = await gateway.get(f"{base}/health/ready")
                part = ready["parts"]["cluster"]
                assert (status, not part["ok"], "dc1: its jobs take more" in part.get("error", "")) == (
                    200, degraded, degraded,
                ), (base, ready)  # fmt: skip
            assert len([record for record in caplog.records if "its jobs take more" in record.getMessage()]) == 1
            # What has left memory is asked of the collector, which this test does not have.
            status, body = await gateway.get("/api/v1/jobs/of-dc1-00")
            assert (status, "dc1: no collector" in body["detail"]) == (503, True)


async def test_gateways_divide_a_fleet_and_no_position_of_one_counts_at_another(nats: Nats):
    """One gets nothing of what the other serves: documents, growth, signs of life, events and lines."""
    async with connected(nats.url) as connection:
        writers = {name: StreamWriter(connection, name) for name in ("dc1", "dc2", "dc3")}
        for name, writer in writers.items():
            await writer.begin()
            await writer.put(job(f"of {name}"))
        async with contextlib.AsyncExitStack() as stack:
            for writer in writers.values():
                await stack.enter_async_context(in_background(renewing(writer)))
            names: list[tuple[str, ...]] = [("dc1", "dc2"), ("dc3",), ()]
            settings = [Cluster(url=NatsUrl.parse(nats.url), instance="host", instances=some) for some in names]
            first, second, whole = [await stack.enter_async_context(running(nats.url, one)) for one in settings]

            async def serves(gateway: RunningGateway, *expected: str) -> bool:
                assert await online(gateway) == dict.fromkeys(expected, True)
                status, body = await gateway.get("/api/v1/jobs")
                assert (status, sorted(one["job_id"] for one in body["jobs"])) == (200, [f"of {n}" for n in expected])
                return True

            await eventually(lambda: serves(first, "dc1", "dc2"))
            await eventually(lambda: serves(second, "dc3"))
            await eventually(lambda: serves(whole, "dc1", "dc2", "dc3"))
            await writers["dc3"].put(job("new"))
            await eventually(lambda: second.job("new"))
            await writers["dc2"].put(job("later"))
            await eventually(lambda: first.job("later", "/i/dc2"))
            assert await first.job("new") is None
            assert await second.job("later") is None
            assert (await first.get("/i/dc3/api/v1/jobs"))[0] == 404
            epochs = {one.gateway.fleet.hub.epoch for one in (first, second, whole)}
            assert len(epochs) == 3, "a client of one would resume at another one"
            await writers["dc1"].set_epoch("epoch-2")
            await eventually(lambda: second.gateway.fleet.hub.epoch not in epochs)
            await eventually(lambda: second.job("new"))
