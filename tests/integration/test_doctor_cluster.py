"""The doctor's checks of a cluster, against a real server with the permissions of deploy/nats."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any, cast

import pytest

from correlator.cluster import keys, streams
from correlator.cluster.connection import NoAnswer
from correlator.config.schema import Cluster
from correlator.doctor import cluster
from correlator.doctor.report import Check
from tests.support.background import in_background
from tests.support.cluster import connected, handled, settings
from tests.support.deployed_nats import DeployedNats
from tests.support.eventually import eventually
from tests.support.gateways import running
from tests.support.nats import Nats
from tests.support.servers import free_port

METRICS = (
    "correlator_cluster_connected 1.0\ncorrelator_cluster_queue_age_seconds {age}\ncorrelator_cluster_pending 3.0\n"
)


@pytest.fixture(scope="module")
def deployed() -> Iterator[DeployedNats]:
    with DeployedNats() as server:
        yield server


@contextlib.asynccontextmanager
async def collector(deployed: DeployedNats, instance: str = "dc1", **value: object) -> AsyncIterator[None]:
    """Streams, and an alive key that is renewed as a collector does it."""
    alive = {"holder": "one", "version": "1.0", "database": "live", "error": None, "jobs": 7} | value
    await deployed.create_streams()
    async with deployed.connected(f"collector-{instance}", instance) as connection:

        async def renew() -> None:
            while True:
                await connection.publish(keys.alive(instance), json.dumps(alive).encode())
                await asyncio.sleep(0.3)

        await connection.request(keys.alive(instance), json.dumps(alive).encode())
        async with in_background(renew()):
            yield


async def inspect(section: Cluster, *, gateway: bool = False, **options: Any) -> dict[str, Check]:
    options = {"metrics": None, "ours": {}, **options}
    return {check.name: check for check in await cluster.inspect(section, gateway=gateway, **options)}


OF_COLLECTOR = ["cluster.server", "cluster.streams", "cluster.permissions", "cluster.lease", "cluster.lag"]
OF_GATEWAY = [*OF_COLLECTOR[:3], "cluster.appliances"]


async def test_each_role_with_its_permissions_passes_every_check(deployed: DeployedNats):
    async with collector(deployed), collector(deployed, "dc2"):
        ours, gateways = await asyncio.gather(
            inspect(deployed.section("collector-dc1"), metrics=METRICS.format(age=0.1)),
            inspect(deployed.section("gateway", "here"), gateway=True),
        )
    assert {name: check.status for name, check in ours.items()} == dict.fromkeys(OF_COLLECTOR, "ok"), ours
    assert "NATS 2." in ours["cluster.server"].summary
    assert ours["cluster.permissions"].summary == "may write dc1, and no other appliance"
    assert ours["cluster.lease"].summary == "one holds the lease of dc1"
    assert {name: check.status for name, check in gateways.items()} == dict.fromkeys(OF_GATEWAY, "ok"), gateways
    assert gateways["cluster.appliances"].summary == "2 appliances, all with a collector"


async def test_a_collector_that_is_gone_is_named_to_both_roles_and_the_checks_change_no_key(deployed: DeployedNats):
    async with collector(deployed):
        pass
    async with deployed.connected("collector-dc1") as connection:

        async def sequences() -> list[int]:
            found = [await streams.info(connection, name) for name in streams.wanted(1)]
            return [info["state"]["last_seq"] for info in found if info is not None]

        before = await sequences()
        ours, gateways = await asyncio.gather(
            inspect(deployed.section("collector-dc1")), inspect(deployed.section("gateway"), gateway=True)
        )
        assert await sequences() == before
    assert ours["cluster.lease"].status == "failure"
    assert "nobody holds the lease of dc1" in ours["cluster.lease"].summary
    assert gateways["cluster.appliances"].status == "warning"
    assert "dc1" in gateways["cluster.appliances"].summary


async def test_the_checks_of_a_collector_and_of_a_gateway_are_seen_by_no_gateway(deployed: DeployedNats):
    section = deployed.section("gateway", "here")
    async with collector(deployed), running(deployed.url, section, read=False) as gateway:
        await eventually(lambda: gateway.gateway.connection.connected)
        await handled(gateway.gateway.connection)
        await asyncio.gather(inspect(deployed.section("collector-dc1")), inspect(section, gateway=True))
        await handled(gateway.gateway.connection)
        assert gateway.gateway.connection.parser.describe() == {}


async def test_what_keeps_a_user_from_its_work_is_a_failure_that_names_it(deployed: DeployedNats):
    port = free_port()
    other = replace(deployed.section("collector-dc2"), instance="dc1")
    async with collector(deployed):
        away, stranger, of_gateway, of_other = await asyncio.gather(
            inspect(settings(f"nats://127.0.0.1:{port}")),
            inspect(deployed.section("stranger")),
            inspect(deployed.section("gateway")),
            inspect(other),
        )
    assert [check.status for check in away.values()] == ["failure"]
    assert f"127.0.0.1:{port}" in away["cluster.server"].summary
    assert away["cluster.server"].fix[0] == "systemctl start nats-server"
    check = stranger["cluster.server"]
    assert check.status == "failure"
    assert "authorization" in check.summary.lower()
    assert any(fix.startswith("openssl x509 -noout -subject") for fix in check.fix)
    check = list(of_gateway.values())[-1]
    assert check.status == "failure"
    assert any("permissions violation" in line.lower() for line in check.detail), check
    assert list(of_other.values())[-1].status == "failure"


async def test_without_permissions_on_the_server_the_doctor_warns_of_the_rights_not_needed(nats: Nats):
    section = settings(nats.url)
    assert (await inspect(section))["cluster.streams"].summary.startswith("there are no streams")
    check = (await inspect(section, gateway=True))["cluster.streams"]
    assert (check.status, check.fix) == ("failure", ("correlator cluster create",))
    async with connected(nats.url) as connection:
        await streams.create(connection, 1)
    assert (await inspect(section))["cluster.permissions"].status == "warning"
    assert (await inspect(section, gateway=True))["cluster.permissions"].status == "warning"


async def test_a_holder_that_differs_or_is_not_well_is_a_warning_with_what_it_is(deployed: DeployedNats):
    section, theirs = deployed.section("collector-dc1"), {"jobs.retention": '"24h"', "mqtt.instance": '"oma"'}
    down = {"database": "down", "error": "Connection refused"}
    async with collector(deployed, settings=theirs), collector(deployed, "dc2", **down):
        same, other, of_down, replicas = await asyncio.gather(
            inspect(section, ours=theirs),
            inspect(section, ours={"jobs.retention": '"30m"', "jobs.max_jobs": "5"}),
            inspect(deployed.section("collector-dc2", "dc2")),
            inspect(replace(section, replicas=3), ours=theirs),
        )
    assert (same["cluster.lease"].status, other["cluster.lease"].status) == ("ok", "warning")
    assert "with other settings: a takeover changes what is served" in other["cluster.lease"].summary
    assert other["cluster.lease"].detail == (
        "jobs.max_jobs: not set there, 5 here",
        'jobs.retention: "24h" there, "30m" here',
        'mqtt.instance: "oma" there, not set here',
    )
    assert other["cluster.lease"].fix == ('jobs.retention = "24h"', 'mqtt.instance = "oma"')
    assert of_down["cluster.lease"].status == "warning"
    assert "down: Connection refused" in of_down["cluster.lease"].summary
    assert replicas["cluster.streams"].status == "warning"
    assert "KV_cor: num_replicas is 1, not 3" in replicas["cluster.streams"].detail
    assert replicas["cluster.streams"].fix == ("correlator cluster create",)


@pytest.mark.parametrize(
    ("metrics", "gateway", "status"),
    [
        (METRICS.format(age=0.0), False, "ok"),
        (METRICS.format(age=95.0), False, "warning"),
        (METRICS.format(age=0.0).replace("connected 1", "connected 0"), False, "warning"),
        ("correlator_cluster_connected 1.0\n", True, "warning"),
        ("correlator_cluster_connected 1.0\ncorrelator_gateway_stale_seconds 0.2\n", True, "ok"),
        ("correlator_cluster_connected 1.0\ncorrelator_gateway_stale_seconds 99.0\n", True, "warning"),
    ],
)
def test_lag_is_what_the_running_process_reports(metrics: str, gateway: bool, status: str):
    assert cluster.judge_lag(metrics, gateway=gateway).status == status


async def test_without_a_cluster_a_daemon_is_fine_and_a_gateway_is_not():
    assert (await inspect(Cluster()))["cluster.server"].status == "ok"
    check = (await inspect(Cluster(), gateway=True))["cluster.server"]
    assert (check.status, check.fix) == ("failure", ('cluster.url = "nats://127.0.0.1:4222"',))


def test_a_stream_without_a_leader_a_full_one_and_a_replica_behind_are_found():
    good = {
        name: {"config": wanted, "state": {"bytes": 1, "messages": 1}, "cluster": {"leader": "n1"}}
        for name, wanted in streams.wanted(3).items()
    }
    section = Cluster(replicas=3)
    assert cluster.judge_streams(good, section, gateway=False).status == "ok"
    leaderless = good | {keys.STATE: good[keys.STATE] | {"cluster": {"leader": ""}}}
    assert cluster.judge_streams(leaderless, section, gateway=False).status == "failure"
    full = good | {keys.STATE: good[keys.STATE] | {"state": {"bytes": streams.MAX_BYTES, "messages": 1}}}
    assert cluster.judge_streams(full, section, gateway=True).status == "failure"
    replicas = {"leader": "n1", "replicas": [{"name": "n2", "current": True}, {"name": "n3", "current": False}]}
    lagging = good | {keys.STATE: good[keys.STATE] | {"cluster": replicas}}
    check = cluster.judge_streams(lagging, section, gateway=True)
    assert (check.status, "the replica on n3 is behind" in check.summary) == ("warning", True)


class Silent:
    """A connection to servers that have no majority: they refuse nothing, and their streams do not answer."""

    def __init__(self) -> None:
        self.client = self
        self.api_subject = "$JS.API"
        self.refusals: list[str] = []

    async def request(self, subject: str, *_: object, **__: object) -> None:
        raise NoAnswer(f"no answer ({subject})")

    async def last(self, stream: str, subject: str, **_: object) -> None:
        raise NoAnswer(f"no answer ({stream}, {subject})")

    def subscribed(self, *_: object) -> Any:
        return contextlib.nullcontext()

    async def flush(self, *_: object) -> None:
        pass


async def test_streams_that_do_not_answer_are_no_missing_permissions():
    check = await cluster.inspect_permissions(cast("Any", Silent()), settings("nats://127.0.0.1:1"), gateway=False)
    assert check.status == "failure"
    assert check.summary.startswith("NATS refuses nothing, and does not answer ")
    assert not any("deploy/nats" in line for line in check.detail)
