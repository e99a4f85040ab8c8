"""A fleet that follows recordings: appliances with collectors, gateways over three NATS servers, and their clients.

`Fleet.differences` is the oracle: it compares what every process and every client shows with the recorded tables.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

import orjson

from correlator.cluster import keys, streams
from correlator.model.messages import CloseCode
from tests.support.client_fold import Document
from tests.support.cluster import connected
from tests.support.cluster_harness import read_stream
from tests.support.collectors import collector, is_active
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.expected_jobs import differences
from tests.support.gateways import GatewayProcess
from tests.support.mariadb import Database
from tests.support.nats import Nats, NatsCluster
from tests.support.replay import MariaDBReplayer, Tables, Transaction, expected
from tests.support.stream_clients import CheckedReader, CheckedStream, CheckedWebsocket, Refused
from tests.support.subscriptions import Truth, documents, lines_of, plain
from tests.support.whole_jobs import lifecycle_rows


@contextlib.asynccontextmanager
async def accepted(client: CheckedReader, url: str) -> AsyncIterator[None]:
    """Connect to a gateway, again for as long as it is behind what the client has got from another one."""
    async with contextlib.AsyncExitStack() as stack:

        async def connect() -> bool:
            try:
                await stack.enter_async_context(client.connected(url))
            except Refused as refused:
                if refused.code not in (CloseCode.TRY_LATER, HTTPStatus.SERVICE_UNAVAILABLE):
                    raise
                return False
            return True

        await eventually(connect, every=0.1)
        yield


@dataclass
class Appliance:
    """One appliance, its recording, and its collectors, of which one holds the lease."""

    instance: str
    database: Database
    transactions: Sequence[Transaction]
    collectors: Sequence[Daemon]
    committed: int = 0
    tables: Tables = field(init=False)
    """What the tables contain after the last transaction."""

    def __post_init__(self) -> None:
        self.tables = expected(self.transactions)

    async def replay(self, until: float) -> None:
        """Commit the transactions up to this share of all of them, as fast as it goes."""
        async with MariaDBReplayer.connect(self.database) as replayer:
            for transaction in self.transactions[self.committed : round(until * len(self.transactions))]:
                await replayer.apply(transaction)
                self.committed += 1

    async def passes(self, share: float) -> None:
        """Wait until this share of the transactions is committed."""
        await eventually(lambda: self.committed >= share * len(self.transactions), every=0.005)

    async def active(self) -> Daemon:
        """Wait until one of the collectors is active, and return it."""

        async def found() -> Daemon | None:
            for one in self.collectors:
                if one.running and await is_active(one):
                    return one
            return None

        one = await eventually(found)
        assert one is not None
        return one

    def standby(self, active: Daemon) -> Daemon:
        return next(one for one in self.collectors if one is not active)


class Clients:
    """Clients of two gateways: one on each transport stays where it is, the other moves to the other gateway."""

    def __init__(self, gateways: Sequence[Daemon]) -> None:
        self._one, self._two = (gateway.url for gateway in gateways)
        self._staying, self._moving = (CheckedWebsocket(), CheckedStream()), (CheckedWebsocket(), CheckedStream())

    @contextlib.asynccontextmanager
    async def staying(self) -> AsyncIterator[None]:
        websocket, stream = self._staying
        async with websocket.connected(self._one), stream.connected(self._two):
            yield

    @contextlib.asynccontextmanager
    async def moving(self, *, moved: bool) -> AsyncIterator[None]:
        websocket, stream = self._moving
        one, two = (self._two, self._one) if moved else (self._one, self._two)
        async with accepted(websocket, one), accepted(stream, two):
            yield

    @property
    def all(self) -> list[CheckedReader]:
        return [*self._staying, *self._moving]

    @property
    def epochs(self) -> set[str]:
        return {client.fold.epoch for client in self.all}

    @property
    def legacy(self) -> set[str]:
        """The jobs that a client got at some time as jobs of `failover_jobs` alone."""
        return {job_id for client in self.all for job_id in client.fold.legacy}

    def started_afresh(self) -> list[str]:
        """The reasons why a client got a snapshot again, in words."""
        found = [f"{client}: resync {client.fold.resyncs}" for client in self.all if client.fold.resyncs]
        websocket, stream = self._moving
        found += [] if websocket.welcome["resumed"] else ["the websocket did not resume at the other gateway"]
        return found + ([] if stream.resumed == [True] else ["the event stream did not resume at the other gateway"])


def without_place(shown: Mapping[str, Document]) -> dict[str, Document]:
    """Documents without what differs between a collector and a gateway."""
    return {i: {k: v for k, v in document.items() if k not in ("rev", "instance")} for i, document in shown.items()}


def unlike(held: Mapping[str, Document], due: Mapping[str, Document]) -> str:
    """The first difference of two lists of documents, in words. Empty if they are equal."""
    if held.keys() != due.keys():
        return f"{len(held)} jobs, not {len(due)}"
    for job_id, document in held.items():
        one, two = plain(document), plain(due[job_id])
        if members := [name for name in one | two if one.get(name) != two.get(name)]:
            return f"{job_id}: {[(name, one.get(name), two.get(name)) for name in members]}"[:500]
    return ""


class Fleet:
    """Two appliances with their collectors, and two gateways, over three NATS servers."""

    def __init__(self, nats: NatsCluster, appliances: Sequence[Appliance], gateways: Sequence[Daemon]) -> None:
        self.nats, self.appliances, self.gateways = nats, appliances, gateways

    async def start(self) -> None:
        collectors = [one for appliance in self.appliances for one in appliance.collectors]
        await asyncio.gather(*(one.start(ready=False) for one in [*collectors, *self.gateways]))
        await asyncio.gather(*(appliance.active() for appliance in self.appliances))
        for gateway in self.gateways:
            await eventually(lambda: is_active(gateway))  # noqa: B023

    async def replay(self, until: float) -> None:
        """Commit this share of both recordings, at once."""
        await asyncio.gather(*(appliance.replay(until) for appliance in self.appliances))

    async def node(self, *, leads: bool) -> Nats:
        """A server that leads the stream of documents, or neither that nor the leases."""
        async with connected(self.nats.url, role="doctor") as connection:
            leaders = []
            for name in (keys.STATE, keys.ALIVE):
                info = await streams.info(connection, name)
                assert info is not None
                leaders.append(info["cluster"]["leader"])
        if leads:
            return self.nats.named(leaders[0])
        return next(server for server in self.nats.servers if server.name not in leaders)

    async def lists_differ(self, clients: Clients) -> list[str]:
        """The differences of all lists and clients from the tables, and of the gateways from each other."""
        one, two = [await documents(gateway) for gateway in self.gateways]
        found = [f"the gateways: {d}"] if (d := unlike(one, two)) else []
        found += [f"client {n}: {d}" for n, c in enumerate(clients.all) if (d := unlike(c.jobs, one))]
        for appliance in self.appliances:
            own = {i: document for i, document in one.items() if document["instance"] == appliance.instance}
            found += differences(appliance.tables, own)[:5]
            shown = without_place(await documents(await appliance.active()))
            if d := unlike(without_place(own), shown):
                found.append(f"gateway and collector of {appliance.instance}: {d}")
        return found

    async def snapshots_differ(self, process: Daemon) -> list[str]:
        """What of the single documents, the websocket and the event stream of a process differs from its list."""
        websocket, stream = CheckedWebsocket(), CheckedStream()
        async with websocket.connected(process.url), stream.connected(process.url):
            due = await documents(process)
            shown = {"single": {i: await process.job(i) for i in due}, "websocket": websocket.jobs}
            shown |= {"event stream": stream.jobs}
            return [f"{name} of {process.url}: {d}" for name, jobs in shown.items() if (d := unlike(jobs, due))]

    async def log_differs(self, appliance: Appliance, gateway: Daemon, jobs: Sequence[str]) -> list[str]:
        """The jobs whose log lines at a gateway are not those of the tables."""
        due = Truth(appliance.tables, {}).rows_of_jobs()
        found = []
        for job_id in jobs:
            ids = [line["event_id"] for line in await lines_of(gateway, job_id, limit=1000)]
            if sorted(ids) != due[job_id]:
                found.append(f"{job_id}: {len(ids)} lines, not {len(due[job_id])}")
        return found

    async def events_differ(self, appliance: Appliance) -> list[str]:
        """What is wrong with the events in the stream: each lifecycle row is one event."""
        due = set(lifecycle_rows(appliance.tables))
        async with connected(self.nats.url, role="doctor") as connection:
            stored = await read_stream(connection, keys.EVENTS, f"cor.v1.{appliance.instance}.event.>")
        ids = [event["event_id"] for event in (orjson.loads(payload) for _, _, payload in stored)]
        ids = [i for i in ids if i is not None]
        found = [f"{appliance.instance}: {len(ids) - len(set(ids))} events twice"] if len(ids) > len(set(ids)) else []
        found += [f"{appliance.instance}: events missing: {missing}"] if (missing := sorted(due - set(ids))) else []
        return found + ([f"{appliance.instance}: events of no row: {more}"] if (more := sorted(set(ids) - due)) else [])


@contextlib.asynccontextmanager
async def recorded_fleet(
    folder: Path, nats: NatsCluster, recordings: Mapping[str, tuple[Database, Sequence[Transaction], int]]
) -> AsyncIterator[Fleet]:
    """A fleet at work. `recordings`: of each instance the database, the recording and the number of collectors."""
    async with contextlib.AsyncExitStack() as stack:
        appliances = []
        for instance, (database, transactions, count) in recordings.items():
            options: dict[str, Any] = {"cluster__instance": instance, "cluster__replicas": 3}
            collectors = [
                await stack.enter_async_context(collector(folder / f"{instance}-{n}", database, nats.url, **options))
                for n in range(count)
            ]
            appliances.append(Appliance(instance, database, transactions, collectors))
        gateways = [GatewayProcess(folder / name, nats.url) for name in ("g1", "g2")]
        for gateway in gateways:
            stack.push_async_callback(gateway.close)
        fleet = Fleet(nats, appliances, gateways)
        await fleet.start()
        yield fleet
