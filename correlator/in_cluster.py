"""A term of the daemon in a cluster: it waits for the lease as the standby, and then writes what the lease allows."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from correlator.cluster.connection import ClusterUnavailable, Connection, Fenced, Refused
from correlator.cluster.fence import Fence
from correlator.cluster.lease import Lease
from correlator.cluster.received import Parser
from correlator.config import rendering
from correlator.config.schema import Cluster, Config
from correlator.counterpart import Counterpart, StandbyReports
from correlator.ops import cluster_metrics
from correlator.pipeline.hub import Hub, wall_clock
from correlator.pipeline.pipeline import LocalHub
from correlator.sinks import Sink
from correlator.sinks.cluster.gateway_requests import GatewayRequests
from correlator.sinks.cluster.sink import ClusterSink, alive_report
from correlator.sinks.event_log import EventLog
from correlator.sources.db.session import Database
from correlator.state.checkpoint import Saved
from correlator.state.checkpoint_stream import StreamCheckpoint, StreamCopy, newest
from correlator.tasks import TaskGroup, end_tasks

log = logging.getLogger(__name__)

RENEWALS_PING_EVERY = 1.0
"""Seconds between two pings of the connection for the lease: it has little to send, and leaves a server that hangs."""

RESTORE_WITHIN = 10.0
"""Seconds to read the checkpoint in the cluster. After them the tables are read, as at a first start."""


@contextlib.asynccontextmanager
async def connected_lease(settings: Cluster) -> AsyncIterator[Lease]:
    """Yield the lease, for one term after the other. Its connections are kept until the block ends."""
    parser = Parser()
    renewals = Connection(settings, "collector", parser=parser, ping_every=RENEWALS_PING_EVERY)
    writes = Connection(settings, "collector", parser=parser)
    connecting = {asyncio.create_task(connection.run(), name="nats") for connection in (renewals, writes)}
    lease = Lease(renewals, writes, settings)
    connecting.add(asyncio.create_task(lease.streams.run(), name="streams"))
    try:
        cluster_metrics.CONNECTED.set_function(lambda: renewals.connected and writes.connected)
        cluster_metrics.LEASE.labels(lease.instance).set_function(lambda: lease.active)
        yield lease
    finally:
        await end_tasks(connecting)


class InCluster:
    """What only a term in a cluster has."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.saved: Saved | None = None
        """What the last active collector saved in NATS."""
        self.stream: StreamCheckpoint | None = None
        self._fence: Fence | None = None
        self.position: Callable[[], bytes | None] = lambda: None
        """Returns the position in the stream of documents."""
        self._report: Callable[[], dict[str, Any]] = dict

    def refusal(self) -> str | None:
        return self.lease.refusal

    def report(self) -> dict[str, Any]:
        """Return what the alive key says of this process: nothing before `sinks` was called."""
        return self._report()

    def newest(self, file: Saved | None) -> Saved | None:
        """Return what to go on from. `file`: what the file of this host has."""
        return newest(file, self.saved)

    async def stand_by(
        self, config: Config, database: Database, hub: Hub, served: asyncio.Event, group: TaskGroup
    ) -> None:
        """Wait for the lease, and keep up with the checkpoint in the cluster. Until then no request reaches `database`.

        The caller holds the lease from then on. If it ends this instead, the lease may be held already. `group`: runs
        the tasks of this function.
        """
        lease = self.lease
        counterpart = Counterpart(lease, database, rendering.of_instance(config))
        hub.readiness["cluster"] = lambda: lease.describe() | counterpart.describe()
        await served.wait()
        copy = StreamCopy(lease.connection, lease.instance)
        while True:
            waiting = {
                group.create_task(counterpart.run(), name="counterpart"),
                group.create_task(copy.follow(), name="copy of the checkpoint"),
            }
            try:
                self._fence = fence = await lease.acquire(counterpart.is_barred)
            finally:
                await end_tasks(waiting)
            holding = group.create_task(lease.hold(), name="lease")
            self.stream = stream = StreamCheckpoint(lease.instance, fence, lease.lose, copy=copy)
            try:
                self.saved = await _restored(stream)
                if lease.active:
                    return
            except Fenced as error:
                log.warning("the lease was lost again: %s", error)
            finally:
                await end_tasks({holding})

    def sinks(self, config: Config, hub: LocalHub, saved: Saved | None, event_log: EventLog) -> tuple[Sink, ...]:
        """Build what writes documents, what answers gateways, and what hears of standbys. `saved`: of the last run.

        Readiness and the alive key describe it from now on.
        """
        assert self._fence is not None, "the lease is held"
        lease, id_keys, settings = self.lease, config.jobs.external_id_keys, rendering.of_instance(config)

        def lost(_: str) -> None:
            cluster_metrics.FENCED.inc()
            lease.lose()

        cluster_metrics.TAKEOVERS.inc()
        sink = ClusterSink(
            lease.instance,
            self._fence,
            lost,
            lambda: hub.index.horizon.log_read_to,
            event_log,
            position=saved.position if saved is not None else None,
        )
        standbys = StandbyReports(lease.connection, lease.instance)
        hub.readiness["cluster"] = lambda: (
            lease.describe() | sink.describe() | standbys.describe() | lease.streams.describe()
        )
        self.position = sink.position
        self._report = partial(alive_report, hub, sink, wall_clock(), id_keys, settings)
        return sink, GatewayRequests(lease.connection, lease.instance), standbys


async def _restored(stream: StreamCheckpoint) -> Saved | None:
    """Read the checkpoint, again after an error. Raises: `Fenced`."""
    loop = asyncio.get_running_loop()
    until = loop.time() + RESTORE_WITHIN
    while True:
        try:
            saved = await stream.open()
        except Fenced:
            raise
        except (ClusterUnavailable, Refused) as error:
            if loop.time() >= until:
                log.warning("the checkpoint in the cluster cannot be read: %s; the tables are read", error)
                return None
            await asyncio.sleep(0.2)
        else:
            return saved
