"""Collectors and gateways with a real NATS server: every client of a gateway ends with the collectors' documents."""

from __future__ import annotations

import contextlib
import itertools
from functools import partial
from typing import Any

import aiohttp
import orjson

from correlator.cluster import keys
from correlator.jobs import encoding
from tests.support.cluster_harness import Collector, collector, epoch_of
from tests.support.documents import document_of
from tests.support.eventually import eventually
from tests.support.gateways import RunningGateway, running
from tests.support.stream_clients import CheckedWebsocket
from tests.support.streams_harness import DaemonStreams
from tests.support.subscriptions import Wanted, plain


def due(collectors: list[Collector]) -> dict[str, Any]:
    """The documents of the collectors, as a gateway has them but for `rev`: of equal IDs, that of the newest job."""
    copies: dict[str, list[tuple[Any, dict[str, Any]]]] = {}
    for one in sorted(collectors, key=lambda one: one.instance, reverse=True):
        for shown in one.hub.published.all():
            document = {**document_of(shown), "instance": one.instance}
            del document["rev"]
            copies.setdefault(shown.job_id, []).append((shown.view.age_key, document))
    # The last of the highest keys: that of the first instance by name.
    newest = {i: max(reversed(found), key=lambda copy: copy[0])[1] for i, found in copies.items()}
    return {i: orjson.loads(encoding.encode(document)) for i, document in newest.items()}


def without_rev(documents: Any) -> dict[str, Any]:
    return {d["job_id"]: {k: v for k, v in d.items() if k != "rev"} for d in documents}


async def listed(gateway: RunningGateway, base: str = "") -> dict[str, Any]:
    """The jobs by REST, with their steps."""
    status, page = await gateway.get(f"{base}/api/v1/jobs", limit=500, steps=1)
    assert status == 200
    return without_rev(page["jobs"])


async def streamed(gateway: RunningGateway, base: str = "") -> dict[str, Any]:
    """The jobs of the snapshot of an event stream."""
    jobs: list[Any] = []
    async with aiohttp.ClientSession() as session, session.get(f"{gateway.url}{base}/api/v1/stream") as response:
        async for line in response.content:
            if line.startswith(b"data: "):
                message = orjson.loads(line[6:])
                jobs += message.get("jobs", ())
                if message["type"] == "synced":
                    break
    return without_rev(jobs)


def same(client: CheckedWebsocket, expected: dict[str, Any]) -> bool:
    return bool(plain(without_rev(client.jobs.values())) == plain(expected))


class World:
    """A collector whose index changes at random. All have the same job IDs."""

    def __init__(self, one: Collector, seed: int) -> None:
        self.one = one
        self.random = DaemonStreams(seed)
        one.index, one.hub = self.random.index, self.random.hub  # type: ignore[assignment]
        one.hub.status.loading = False


@contextlib.asynccontextmanager
async def worlds(nats: Any, *instances: str) -> Any:
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for seed, instance in enumerate(instances):
            world = World(await stack.enter_async_context(collector(nats, instance)), seed)
            world.random.change()
            await stack.enter_async_context(world.one.writing())
            found.append(world)
        yield found


async def knows(gateway: RunningGateway, instance: str) -> bool:
    """False until its collector has written that it is there."""
    status, _ = await gateway.get(f"/i/{instance}/api/v1/jobs")
    return bool(status == 200)


async def test_clients_of_all_gateways_end_with_the_documents_of_all_collectors(nats):
    async with worlds(nats, "dc1", "dc2") as (one, two), running(nats.url) as first, running(nats.url) as second:
        await eventually(partial(knows, second, "dc1"))
        clients = [CheckedWebsocket() for _ in range(3)]
        async with (
            clients[0].connected(first.url),
            clients[1].connected(second.url),
            clients[2].connected(f"{second.url}/i/dc1"),
        ):
            for _ in range(100):
                one.random.change()
                two.random.change()
                await eventually(lambda: True)
            everything, own = due([one.one, two.one]), due([one.one])
            for client, expected in zip(clients, (everything, everything, own), strict=True):
                await eventually(partial(same, client, expected), every=0.1)
            for gateway in (first, second):
                assert await listed(gateway) == await streamed(gateway) == everything
                assert await listed(gateway, "/i/dc1") == await streamed(gateway, "/i/dc1") == own
                assert (await gateway.get("/health/ready"))[0] == 200
            assert {c.fold.epoch for c in clients} == {first.gateway.fleet.hub.epoch}
            of_first, of_second = ({i: d["rev"] for i, d in client.jobs.items()} for client in clients[:2])
            assert of_first == of_second
            async with running(nats.url) as later, CheckedWebsocket().connected(later.url) as client:
                assert {i: d["rev"] for i, d in client.jobs.items()} == of_first


async def test_an_epoch_key_that_is_deleted_is_written_again_and_every_gateway_follows(nats):
    """As `nats kv del`, `nats kv purge` and `nats stream purge` delete it."""
    options = {"epoch_checked_every": 0.1}
    async with collector(nats, timings=options) as one, one.writing(), running(nats.url) as first:

        async def serves(gateway: RunningGateway, earlier: set[str | None]) -> bool:
            epoch, read = await epoch_of(one.connection), gateway.gateway.fleet.hub.epoch
            return epoch not in earlier and epoch == read and await listed(gateway) == due([one])

        epochs: set[str | None] = {None, ""}
        for headers in ({"KV-Operation": "DEL"}, {"KV-Operation": "PURGE"}, None):
            one.change("a")
            await eventually(partial(serves, first, set(epochs)))
            epochs.add(await epoch_of(one.connection))
            if headers is not None:
                await one.connection.publish(keys.EPOCH, b"", headers=headers)
            else:
                await one.connection.api(f"STREAM.PURGE.{keys.STATE}", {"filter": keys.EPOCH})
            await eventually(partial(serves, first, epochs))
            async with running(nats.url) as later:
                assert await serves(later, epochs)
        assert [each.parser.describe() for each in (one.connection, first.gateway.connection)] == [{}, {}]


async def test_every_log_line_of_a_collector_reaches_a_client_of_a_gateway_once(nats):
    async with collector(nats) as one:
        one.change("a")
        async with one.writing():
            await one.equal()
            async with (
                running(nats.url) as gateway,
                CheckedWebsocket(wanted=Wanted(logs="DEBUG")).connected(gateway.url) as client,
            ):
                numbers = itertools.count(1)
                await eventually(lambda: one.log(next(numbers)) or client.fold.lines)
                begin = next(numbers) + 100
                one.log(*range(begin, begin + 500))
                await eventually(lambda: begin + 499 in client.fold.lines)
                assert set(range(begin, begin + 500)) <= client.fold.lines.keys()
