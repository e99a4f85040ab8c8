"""deploy/nats on a real server: what a role must do is allowed, and what it must not do is refused."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from correlator.cluster import keys, streams
from correlator.cluster.connection import ClusterUnavailable, Connection
from correlator.config.schema import NatsUrl
from tests.support.background import in_background
from tests.support.cluster import running
from tests.support.deployed_nats import DeployedNats, DeployedNode
from tests.support.eventually import eventually
from tests.support.paths import DEPLOY
from tests.support.servers import free_port

SHORT = 0.7
"""Seconds after which an unanswered request was refused: the server drops what a user may not publish."""


@pytest.fixture(scope="module")
def deployed() -> Iterator[DeployedNats]:
    with DeployedNats() as server:
        yield server


class Refusals:
    """The permissions that the server refused to a connection, as it says so."""

    def __init__(self, connection: Connection) -> None:
        self.said: list[str] = []
        before = connection.client._error_cb

        async def on_error(error: Exception) -> None:
            self.said.append(str(error).lower())
            await before(error)

        connection.client._error_cb = on_error

    async def of(self, kind: str, subject: str) -> None:
        """Wait for the refusal of a `publish` or `subscription`."""
        await eventually(lambda: any(f'{kind} to "{subject.lower()}"' in line for line in self.said))


async def test_a_collector_reads_its_own_jobs_by_a_consumer_and_none_of_others(deployed: DeployedNats):
    stream, root = keys.STATE, "$KV.cor"

    def consumer(subject: str) -> dict[str, object]:
        config = {"name": "c", "filter_subject": subject, "ack_policy": "none", "inactive_threshold": 10**10}
        return {"stream_name": stream, "config": config}

    async with deployed.connected("collector-dc1") as collector:
        await streams.ensure(collector, 1)
        mine, others = f"{root}.dc1.>", f"{root}.dc2.>"
        made = await collector.api(f"CONSUMER.CREATE.{stream}.c.{mine}", consumer(mine))
        assert made["config"]["filter_subject"] == mine
        for subject in (others, f"{root}.>"):
            with pytest.raises(ClusterUnavailable):
                await collector.api(f"CONSUMER.CREATE.{stream}.c.{subject}", consumer(subject), within=SHORT)
        with pytest.raises(ClusterUnavailable):
            await collector.api(f"CONSUMER.CREATE.{stream}.c", consumer(others), within=SHORT)


OF_OTHERS = (
    keys.job("dc2", "1"),
    keys.owner("dc2"),
    keys.alive("dc2"),
    keys.checkpoint("dc2", "job", "1"),
    keys.event("dc2", "1"),
    keys.line("dc2"),
    keys.rpc("dc2", "find"),
    "$JS.API.STREAM.DELETE.KV_cor",
    "$JS.API.STREAM.PURGE.KV_cor",
    "$JS.API.STREAM.MSG.DELETE.KV_cor",
    "$JS.API.STREAM.CREATE.another",
    "$JS.API.STREAM.MSG.GET.KV_cor_checkpoint",
    "$JS.API.DIRECT.GET.KV_cor",
    "$JS.API.DIRECT.GET.KV_cor_checkpoint.$KV.cor_checkpoint.dc2.job.1",
    "_INBOX.cor.gateway.x.1",
    "anything",
)

OF_COLLECTORS = [
    *(keys.job("dc1", "1"), keys.owner("dc1"), keys.EPOCH, keys.alive("dc1"), keys.event("dc1", "1")),
    *(keys.checkpoint("dc1", "job", "1"), keys.line("dc1")),
    *("$JS.API.STREAM.CREATE.KV_cor", "$JS.API.STREAM.UPDATE.KV_cor", "$JS.API.STREAM.DELETE.KV_cor"),
    *("$JS.API.STREAM.PURGE.KV_cor", "$JS.API.STREAM.MSG.DELETE.KV_cor"),
    *("$JS.API.DIRECT.GET.KV_cor_checkpoint.$KV.cor_checkpoint.dc1.job.1", "_INBOX.cor.collector.dc1.1"),
    *("$JS.API.DIRECT.GET.KV_cor_checkpoint", "$JS.API.CONSUMER.CREATE.KV_cor_checkpoint.c.$KV.cor_checkpoint.>"),
]

LISTENED_TO = [
    ("collector-dc1", "_INBOX.cor.gateway.>"),
    ("collector-dc1", "_INBOX.cor.collector.dc2.>"),
    ("collector-dc1", "_INBOX.>"),
    ("collector-dc1", keys.line("dc2")),
    ("collector-dc1", "cor.v1.*.rpc.*"),
    ("collector-dc1", ">"),
    ("gateway", "_INBOX.cor.collector.>"),
    ("gateway", "$KV.>"),
    ("gateway", "cor.v1.*.rpc.*"),
    ("gateway", ">"),
]


async def test_a_collector_may_publish_nothing_of_another_appliance(deployed: DeployedNats):
    async with deployed.connected("collector-dc1") as collector:
        await refuses(collector, OF_OTHERS)


async def test_a_gateway_may_write_nothing_and_read_no_checkpoint(deployed: DeployedNats):
    async with deployed.connected("gateway", "here") as gateway:
        await refuses(gateway, OF_COLLECTORS)


async def refuses(connection: Connection, subjects: Sequence[str]) -> None:
    refusals = Refusals(connection)
    for subject in subjects:
        await connection.publish(subject, b"{}")
    for subject in subjects:
        await refusals.of("publish", subject)


async def test_no_role_may_listen_to_the_answers_and_requests_of_others(deployed: DeployedNats):
    async with deployed.connected("collector-dc1") as collector, deployed.connected("gateway") as gateway:
        refusals = {"collector-dc1": (collector, Refusals(collector)), "gateway": (gateway, Refusals(gateway))}
        for user, subject in LISTENED_TO:
            connection, said = refusals[user]
            await connection.client.subscribe(subject)
            await said.of("subscription", subject)


@pytest.mark.parametrize(("user", "reason"), [("stranger", "authorization violation"), ("", "certificate|eof")])
async def test_an_unknown_certificate_and_a_client_without_one_are_refused(
    deployed: DeployedNats, user: str, reason: str
):
    connection = Connection(deployed.section(user), "collector")
    async with in_background(connection.run()):
        await eventually(lambda: re.search(reason, connection.describe()["error"].lower()))
        assert not connection.connected


async def test_three_nodes_keep_each_stream_three_times_and_one_may_be_lost():
    routes = [free_port() for _ in range(3)]
    first = DeployedNode(1, routes)
    nodes = [first, *(DeployedNode(number, routes, first.certificates) for number in (2, 3))]
    with contextlib.ExitStack() as stack:
        for node in nodes:
            await asyncio.to_thread(stack.enter_context, node)
        await eventually(lambda: all(node.healthy() for node in nodes))
        urls = ",".join(node.url for node in nodes)
        section = replace(first.section("collector-dc1"), url=NatsUrl.parse(urls), replicas=3)
        async with running(Connection(section, "collector")) as connection:
            await streams.ensure(connection, 3)
            assert await streams.ensure(connection, 1) == []
            info = await streams.info(connection, keys.STATE) or {}
            assert info["config"]["num_replicas"] == 3
            names = {info["cluster"]["leader"], *(replica["name"] for replica in info["cluster"]["replicas"])}
            assert names == {"nats-1", "nats-2", "nats-3"}
            await asyncio.to_thread(nodes[2].kill)

            async def written() -> bool:
                try:
                    return b'"seq"' in (await connection.request(keys.checkpoint("dc1", "x"), b"1")).data
                except ClusterUnavailable:
                    return False

            await eventually(written)
            await asyncio.to_thread(nodes[2].start)
            await eventually(lambda: all(node.healthy() for node in nodes))
        for node in nodes:
            # No server got an address that is not in the certificate. One that ends or begins resets connections.
            errors = [line for line in (node.folder / "log").read_text().splitlines() if "handshake error" in line]
            assert not [line for line in errors if "connection reset" not in line]
            with socket.create_connection(("127.0.0.1", node.port)) as client:
                assert b"connect_urls" not in client.recv(4096)


@pytest.mark.parametrize("name", ["nats-server.conf", "three-nodes.conf"])
def test_both_configurations_write_to_the_disk_before_they_acknowledge(name: str):
    text = (DEPLOY / "nats" / name).read_text()
    assert "sync_interval: always" in text
    reserved = sum(settings["max_bytes"] for settings in streams.wanted(1).values() if settings["storage"] == "file")
    assert f"max_file_store: {12}GB" in text
    assert reserved < 12e9
