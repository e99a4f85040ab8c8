"""Random clients of a random index: whatever they do, each ends with the documents that its filters select."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

from correlator.model.rows import Level
from correlator.pipeline.hub import ResumeRing
from correlator.sinks.http.grants import Grant
from correlator.sinks.streaming.limits import Limits
from correlator.sinks.streaming.messages import Resume
from correlator.sinks.streaming.subscriptions import Filter
from tests.support.streams_harness import DaemonStreams, GatewayStreams, StreamClient, settle
from tests.support.subscriptions import plain

NOW = 1_758_550_000_000_000


class RandomClients:
    """Clients that connect, change their subscriptions, freeze, thaw, disconnect and reconnect, at random."""

    def __init__(self, world: DaemonStreams) -> None:
        self.world = world
        self.random = world.random
        self.clients: list[StreamClient] = []
        self.filters: dict[StreamClient, dict[int, Filter]] = {}
        self.resumed = self.lagged = 0

    async def step(self) -> None:
        if not self.clients or self.random.random() < 0.6:
            self.world.change()
        await self.random.choice(
            [self.connect, self.resubscribe, self.reconnect, self.reconnect, self.freeze, self.thaw, self.sweep]
        )()

    async def connect(self) -> None:
        if len(self.clients) < 8:
            client = StreamClient()
            self.world.connect(client)
            self.clients.append(client)
            self.filters[client] = {1: self.world.filter()}
            await self._subscribe(client, 1, None)

    async def resubscribe(self) -> None:
        """Another subscription, or another filter for one that it has."""
        if self.clients:
            client, sub = self.random.choice(self.clients), self.random.choice((1, 2))
            client.thaw()
            self.world.streams.fanout.flush()
            self.world.streams.fanout.unsubscribe(client, sub)
            client.fold.unsubscribe(sub)
            self.filters[client][sub] = self.world.filter()
            await self._subscribe(client, sub, None)

    async def reconnect(self) -> None:
        """Disconnect at any moment, and connect again after some changes."""
        if not self.clients:
            return
        client = self.random.choice(self.clients)
        self.clients.remove(client)
        client.read(self.random.randrange(3))
        self.world.streams.remove(client)
        again = StreamClient(client.fold)
        for _ in range(self.random.choice((0, 1, 5, 60))):
            self.world.change()
        resume = self.world.connect(again)
        self.clients.append(again)
        self.filters[again] = filters = self.filters.pop(client)
        known = {sub: resume if sub in again.fold.jobs else None for sub in filters}
        for sub in filters:  # no position holds before every subscription has its snapshot
            again.fold.subscribe(sub, resume=known[sub] is not None)
        for sub in filters:
            self.resumed += known[sub] is not None
            await self._subscribe(again, sub, known[sub])

    async def freeze(self) -> None:
        if self.clients:
            self.random.choice(self.clients).frozen = True

    async def thaw(self) -> None:
        if self.clients:
            self.random.choice(self.clients).thaw()

    async def sweep(self) -> None:
        for _ in self.world.streams.fanout.sweep():
            await asyncio.sleep(0)
        self.lagged += self.world.streams.fanout.lagging
        await asyncio.sleep(0)

    async def _subscribe(self, client: StreamClient, sub: int, resume: Resume | None) -> None:
        level: Level | None = self.random.choice((None, "INFO"))
        await self.world.subscribe(sub, self.filters[client][sub], level, client=client, resume=resume)


RUNS = [(0, 300), (1, 300), *(pytest.param(seed, 600, marks=pytest.mark.long) for seed in range(100))]
"""Seeds, and the steps of each run."""


@pytest.mark.parametrize("world_of", [DaemonStreams, GatewayStreams])
@pytest.mark.parametrize(("seed", "steps"), RUNS)
async def test_every_client_ends_with_the_documents_of_its_filters(seed, steps, world_of):
    limits = Limits(
        lagging_over=6000,
        caught_up_under=2000,
        backlog_part=3000,
        swept_at_once=2,
        snapshot_part=3000,
        max_visited=3,
        max_added=2,
    )
    world = world_of(seed, resume_ring=ResumeRing(150), limits=limits)
    clients = RandomClients(world)
    for _ in range(steps):
        await clients.step()
    for client in clients.clients:
        client.thaw()
    await settle(world, clients.clients)
    for client in clients.clients:
        for sub, which in clients.filters[client].items():
            assert plain(client.fold.jobs[sub]) == plain(world.wanted(which))
    assert clients.resumed
    assert clients.lagged


RESTRICTED = [Grant(job="e1").narrowed(Filter(jobs=frozenset({"e1"}))), Grant(vm="vm1").narrowed(Filter())]


@pytest.mark.parametrize("world_of", [DaemonStreams, GatewayStreams])
@pytest.mark.parametrize("which", RESTRICTED, ids=["job", "vm"])
async def test_a_client_with_a_token_for_a_job_or_a_vm_reconnects_and_gets_no_other_job(which, world_of):
    world, client = world_of(7, resume_ring=ResumeRing(40)), StreamClient()
    for _ in range(30):
        world.streams.remove(client)
        for _ in range(world.random.choice((0, 1, 5, 60))):
            world.change()
        client = StreamClient(client.fold, is_restricted=True)
        await world.subscribe(1, which, client=client, resume=world.connect(client))
        await settle(world, [client])
        wanted = world.wanted(which)
        assert {*re.findall(r"job\d+", json.dumps(client.messages))} <= wanted.keys()
        assert plain(client.fold.jobs[1]) == plain(wanted)


@pytest.mark.parametrize("world_of", [DaemonStreams, GatewayStreams])
async def test_a_client_of_a_vm_gets_no_state_of_a_job_that_is_of_another_vm_now(world_of):
    world, client = world_of(7, resume_ring=ResumeRing(40)), StreamClient(is_restricted=True)
    which = Grant(vm="vm1").narrowed(Filter())
    await world.subscribe(1, which, client=client)
    for _ in range(100):
        world.change()
        await settle(world, [client])
        for message in client.messages:
            if message["type"] == "put":
                assert message["job"]["metadata"]["vm_name"] == "vm1"
        client.messages.clear()
    assert plain(client.fold.jobs[1]) == plain(world.wanted(which))
