"""deploy/nats on a real server: what a role must do is allowed, and what it must not do is refused."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
import signal
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from correlator.cluster import keys, streams
from correlator.cluster.connection import ClusterUnavailable, Connection, seq_of
from correlator.config.schema import NatsUrl
from tests.support.background import in_background
from tests.support.cluster import handled, running
from tests.support.deployed_nats import DeployedNats, DeployedNode
from tests.support.eventually import eventually
from tests.support.paths import DEPLOY
from tests.support.servers import free_port, run_program


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


STREAMS = (keys.STATE, keys.ALIVE, keys.CHECKPOINT, keys.EVENTS)
VICTIM = {
    keys.job("dc2", "1"): keys.STATE,
    keys.owner("dc2"): keys.STATE,
    keys.alive("dc2"): keys.ALIVE,
    keys.checkpoint("dc2", "job", "1"): keys.CHECKPOINT,
    keys.checkpoint_owner("dc2"): keys.CHECKPOINT,
    keys.event("dc2", "1"): keys.EVENTS,
    keys.events_owner("dc2"): keys.EVENTS,
}
"""What the appliance dc2 has, by subject, and the stream of each."""

METHODS = (
    "INFO", "STREAM.NAMES", "STREAM.LIST", "META.LEADER.STEPDOWN", "SERVER.REMOVE", "STREAM.TEMPLATE.NAMES",
    "ACCOUNT.PURGE.correlator", "ACCOUNT.STREAM.MOVE.correlator.{s}", "ACCOUNT.STREAM.CANCEL_MOVE.correlator.{s}",
    *(f"STREAM.{name}.{{s}}" for name in (
        "CREATE", "UPDATE", "INFO", "DELETE", "PURGE", "SNAPSHOT", "RESTORE", "MSG.GET", "MSG.DELETE",
        "LEADER.STEPDOWN", "PEER.REMOVE", "TEMPLATE.CREATE", "TEMPLATE.DELETE",
    )),
    "DIRECT.GET.{s}", "DIRECT.GET.{s}.{k}",
    *("CONSUMER.CREATE.{s}", "CONSUMER.CREATE.{s}.c", "CONSUMER.CREATE.{s}.c.{k}", "CONSUMER.CREATE.{s}.c.{o}"),
    *("CONSUMER.DURABLE.CREATE.{s}.c", "CONSUMER.NAMES.{s}", "CONSUMER.LIST.{s}", "CONSUMER.INFO.{s}.theirs"),
    *("CONSUMER.DELETE.{s}.theirs", "CONSUMER.MSG.NEXT.{s}.theirs", "CONSUMER.LEADER.STEPDOWN.{s}.theirs"),
    *("CONSUMER.PAUSE.{s}.theirs", "CONSUMER.RESET.{s}.theirs", "CONSUMER.UNPIN.{s}.theirs"),
)  # fmt: skip
"""The API of JetStream. `s`: a stream, `k`: what dc2 has in it, `o`: everything of dc1 in it."""

ROLLUP: tuple[dict[str, str], ...] = (
    {},
    {"Nats-Rollup": "all"},
    {"Nats-Rollup": "sub"},
    {"KV-Operation": "PURGE", "Nats-Rollup": "sub"},
)


def requests_of(method: str, stream: str, subject: str, own: str, config: dict[str, Any]) -> list[bytes]:
    """The payloads that ask a method of the API for the worst."""
    if ".CONSUMER." in f".{method}":
        into = {"name": "c", "ack_policy": "none", "filter_subject": own, "deliver_subject": subject}
        pull = {name: value for name, value in into.items() if name != "deliver_subject"}
        every = into | {"filter_subject": subject, "deliver_policy": "all"}
        asked = [{"stream_name": stream, "config": one} for one in (into, pull, every)]
    elif method.startswith(("STREAM.UPDATE", "STREAM.CREATE")):
        worst: tuple[dict[str, Any], ...] = (
            {"max_msgs": 1},
            {"sealed": True},
            {"republish": {"src": own, "dest": subject}},
            {"max_age": 10**9},
        )
        asked = [config | one for one in worst]
    else:
        harm: tuple[dict[str, Any], ...] = ({}, {"seq": 1}, {"filter": subject}, {"last_by_subj": subject})
        asked = list(harm)
    return [b"", *(json.dumps(one).encode() for one in asked)]


async def everything_of_dc2(two: Connection) -> dict[str, Any]:
    """What the appliance dc2 has, and the settings and consumers of all streams."""
    found: dict[str, Any] = {}
    for subject, stream in VICTIM.items():
        message = await two.last(stream, subject)
        found[subject] = message and (message.data, seq_of(message))
    for name, info in (await streams.infos(two)).items():
        assert info is not None, name
        found[name] = info["config"]
    return found


@pytest.mark.parametrize(
    ("user", "instance", "own"),
    [("collector-dc1", "dc1", "$KV.cor.dc1.>"), ("gateway", "here", "$KV.cor.>")],
)
async def test_no_request_and_no_message_of_a_role_changes_anything_of_another_appliance(
    deployed: DeployedNats, user: str, instance: str, own: str
):
    """Each method of the API for each stream, asked for the worst, with answers sent to what another appliance has."""
    await deployed.create_streams()
    async with (
        deployed.connected("collector-dc2", "dc2") as two,
        deployed.connected("gateway") as other,
        deployed.connected(user, instance) as attacker,
        other.subscribed(keys.line("*"), ignored),
        other.subscribed("cor.v1.*.event.*", ignored),
    ):
        for subject in VICTIM:
            await two.request(subject, b"true")
        if user != "gateway":
            await attacker.request(keys.job("dc1", "1"), b"forged")
        before = await everything_of_dc2(two)
        said = Refusals(attacker)
        sent = 0
        for prefix, stream, method in itertools.product(("$JS.API", "$JS.correlator.API"), STREAMS, METHODS):
            victim = next(subject for subject, of in VICTIM.items() if of == stream)
            asked = f"{prefix}.{method.format(s=stream, k=victim, o=own)}"
            for payload in requests_of(method, stream, victim, own, before[stream]):
                for reply in ("", *VICTIM):
                    await attacker.publish(asked, payload, reply=reply)
                    sent += 1
            await attacker.client.flush()
        own_subjects = [keys.job("dc1", "1"), "$JS.correlator.API.DIRECT.GET.KV_cor.$KV.cor.dc1.job.1", keys.WANT]
        for subject, headers, reply in itertools.product([*VICTIM, *own_subjects], ROLLUP, ("", *VICTIM)):
            await attacker.publish(subject, b"forged", reply=reply, headers=headers)
            sent += 1
        await attacker.publish("anything", b"")
        await said.of("publish", "anything")  # All before it has been handled.
        for _ in range(5):  # What a consumer delivers, or a request is answered, comes later.
            await asyncio.sleep(0.2)
            assert await everything_of_dc2(two) == before
        assert sent > 4000


async def ignored(_: object) -> None:
    """Interest in what others publish, as of every gateway."""


CHANGES = ("CREATE", "UPDATE", "DELETE", "PURGE", "MSG.DELETE")

OF_OTHERS = (
    keys.job("dc2", "1"),
    keys.owner("dc2"),
    keys.alive("dc2"),
    keys.checkpoint("dc2", "job", "1"),
    keys.event("dc2", "1"),
    keys.line("dc2"),
    keys.rpc("dc2", "find"),
    "$JS.correlator.API.DIRECT.GET.KV_cor_alive",
    "$JS.correlator.API.DIRECT.GET.KV_cor_checkpoint.$KV.cor_checkpoint.dc2.job.1",
    *(f"{api}.STREAM.{name}.KV_cor" for api in ("$JS.API", "$JS.correlator.API") for name in CHANGES),
    *(f"{api}.CONSUMER.CREATE.KV_cor.c.$KV.cor.dc1.>" for api in ("$JS.API", "$JS.correlator.API")),
    "_INBOX.cor.gateway.x.1",
    "anything",
)

OF_COLLECTORS = [
    *(keys.job("dc1", "1"), keys.owner("dc1"), keys.EPOCH, keys.alive("dc1"), keys.event("dc1", "1")),
    *(keys.checkpoint("dc1", "job", "1"), keys.line("dc1")),
    *(f"{api}.STREAM.{name}.KV_cor" for api in ("$JS.API", "$JS.correlator.API") for name in CHANGES),
    *("$JS.correlator.API.DIRECT.GET.KV_cor_checkpoint.$KV.cor_checkpoint.dc1.job.1", "_INBOX.cor.collector.dc1.1"),
    "$JS.correlator.API.DIRECT.GET.KV_cor_checkpoint",
    "$JS.correlator.API.CONSUMER.CREATE.KV_cor_checkpoint.c.$KV.cor_checkpoint.>",
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


async def test_an_appliance_is_added_by_two_reloads_while_others_stay_connected():
    with DeployedNats() as nats:
        await nats.create_streams()
        nats.certificates.make("collector-dc3", "DNS:collector-dc3.example")
        of_dc1 = (nats.folder / "collector-dc1.conf").read_text()
        (nats.folder / "collector-dc3.conf").write_text(of_dc1.replace("dc1", "dc3"))
        async with nats.connected("gateway") as gateway, nats.connected("collector-dc1") as first:
            generations = gateway.generation, first.generation
            run_program("sed", "--in-place", "/dc1/{p; s/dc1/dc3/g}", str(nats.folder / "accounts.conf"))

            async def added() -> bool:
                os.kill(nats.pid, signal.SIGHUP)
                await asyncio.sleep(0.5)
                async with nats.connected("collector-dc3", "dc3") as third:
                    with contextlib.suppress(ClusterUnavailable):
                        return b'"seq"' in (await third.request(keys.job("dc3", "a"), b"{}")).data
                return False

            await eventually(added)
            async with nats.connected("collector-dc3", "dc3") as third:

                async def answer(message: Any) -> None:
                    await third.publish(message.reply, b"answer")

                async with third.subscribed(keys.rpc("dc3", "*"), answer):
                    await handled(third)
                    assert (await gateway.request(keys.rpc("dc3", "find"))).data == b"answer"
            assert b'"seq"' in (await first.request(keys.job("dc1", "a"), b"{}")).data
            assert (gateway.generation, first.generation) == generations


async def test_three_nodes_keep_each_stream_three_times_and_one_may_be_lost():
    routes = [free_port() for _ in range(3)]
    first = DeployedNode(1, routes)
    nodes = [first, *(DeployedNode(number, routes, first.certificates) for number in (2, 3))]
    with contextlib.ExitStack() as stack:
        for node in nodes:
            await asyncio.to_thread(stack.enter_context, node)
        await eventually(lambda: all(node.healthy() for node in nodes))
        urls = ",".join(node.url for node in nodes)
        section = replace(first.section("provisioner"), url=NatsUrl.parse(urls), replicas=3)
        async with running(Connection(section, "provisioner")) as connection:
            await streams.create(connection, 3)
            assert [one.changed for one in await streams.create(connection, 1)] == [[]] * 4
        section = replace(first.section("collector-dc1"), url=NatsUrl.parse(urls), replicas=3)
        async with running(Connection(section, "collector")) as connection:
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
