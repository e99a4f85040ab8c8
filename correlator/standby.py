"""The part of a cluster in a term of the daemon: it waits for the lease as the standby, and then writes under it.

A standby tells the active collector whether both follow the same database (`Counterpart`); `Standbys` receives that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import platform
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from correlator.bounded import BoundedDict
from correlator.cluster import keys, received
from correlator.cluster.connection import ClusterUnavailable, Connection, Fenced, Refused, seq_of
from correlator.cluster.fence import Fence
from correlator.cluster.lease import Lease
from correlator.cluster.received import Alive, Parser
from correlator.config import rendering
from correlator.config.rendering import differences
from correlator.config.schema import Cluster, Config
from correlator.errors import OtherDatabase, SourceUnavailable
from correlator.ops import cluster_metrics
from correlator.pipeline.hub import Hub, wall_clock
from correlator.pipeline.pipeline import LocalHub
from correlator.sinks import Sink
from correlator.sinks.cluster.gateway_requests import GatewayRequests
from correlator.sinks.cluster.sink import ClusterSink, alive_report
from correlator.sinks.event_log import EventLog
from correlator.sources.db import identity
from correlator.sources.db.session import Database, closing
from correlator.state.checkpoint import MOMENT, Saved
from correlator.state.checkpoint_stream import StreamCheckpoint, StreamCopy, newest
from correlator.tasks import TaskGroup, end_tasks

if TYPE_CHECKING:
    from nats.aio.msg import Msg

log = logging.getLogger(__name__)


RENEWALS_PING_EVERY = 1.0
"""Seconds between two pings of the connection for the lease: it has little to send, and leaves a server that hangs."""

REPORT_EVERY = 5.0
VALID_FOR = 20.0
"""Seconds between two reports of a standby, and seconds after which one no longer counts."""

MAX_STANDBYS = 16
MAX_REPORT = 10_000


class Report(Struct, frozen=True):
    """The report of the standby `name`, on `host`."""

    name: str = ""
    host: str = ""
    other_database: bool = False


class Standbys:
    """Satisfies `correlator.sinks.Sink`. It keeps the last report of each standby."""

    def __init__(self, connection: Connection, instance: str) -> None:
        self._connection = connection
        self._instance = instance
        self._reports: BoundedDict[str, tuple[float, Report]] = BoundedDict(MAX_STANDBYS)

    async def run(self, hub: Hub) -> None:
        """Receive the reports until cancelled."""
        del hub
        async with self._connection.subscribed(keys.standby(self._instance), self._on_report):
            await asyncio.Event().wait()

    def describe(self) -> dict[str, Any]:
        """Return members of the cluster's part of readiness: an error if a standby follows another database."""
        now = time.monotonic()
        hosts = {one.host for at, one in self._reports.values() if one.other_database and now - at < VALID_FOR}
        if not hosts:
            return {}
        return {"ok": False, "error": _sentence(self._instance, ", ".join(sorted(hosts)))}

    async def _on_report(self, message: Msg) -> None:
        read = partial(received.decode, message.data, Report, MAX_REPORT)
        report = self._connection.parser.parse(message.subject, read)
        if report is None:
            return
        before = self._reports.pop(report.name, None)
        if report.other_database and (before is None or not before[1].other_database):
            log.error("%s", _sentence(self._instance, report.host))
        self._reports[report.name] = (time.monotonic(), report)


def _sentence(instance: str, hosts: str) -> str:
    return (
        f"a collector on {hosts} has the name {instance} too and follows another database, so it never takes over: give"
        " one of the two appliances another cluster.instance"
    )


COMPARE_EVERY = 60.0
COMPARE_WITHIN = 2.0
"""Seconds between two comparisons of a standby's database with that of the checkpoint, and for one."""

READ_WITHIN = 1.0
"""Seconds for an answer of the cluster to that."""

RESTORE_WITHIN = 10.0
"""Seconds to read the checkpoint in the cluster. After them the tables are read, as at a first start."""


class Counterpart:
    """What a standby knows of the active collector: whether it follows the same database, and by the same settings.

    `settings`: those of this process that the active has to have too (`rendering.of_instance`).
    """

    def __init__(self, lease: Lease, database: Database, settings: Mapping[str, str]) -> None:
        self._lease = lease
        self._database = database
        self._settings = settings
        self._other: bool | None = None
        """Whether the checkpoint in the cluster is of another database. None: not known yet."""
        self._compared_at = -math.inf
        self._differing: dict[str, str] = {}
        self._renewal = 0
        """The sequence of the alive key as it was read last."""

    def describe(self) -> dict[str, Any]:
        """Return members of the cluster's part of readiness."""
        part: dict[str, Any] = {"differing": self._differing} if self._differing else {}
        return part | {"other_database": True, "error": str(OtherDatabase())} if self._other else part

    async def run(self) -> None:
        """Compare, and report to the active, until cancelled."""
        while True:
            try:
                await self._compare_settings()
                await self._compare_databases()
                report = Report(self._lease.connection.name, platform.node(), self._other is True)
                await self._lease.connection.publish(keys.standby(self._lease.instance), msgspec.json.encode(report))
            except (ClusterUnavailable, Refused) as error:
                log.debug("the active collector is not known: %s", error)
            await asyncio.sleep(REPORT_EVERY)

    async def is_barred(self) -> bool:
        """True if this process must not take the lease: its database is another one, or the cluster does not answer."""
        try:
            if self._other is None:
                await self._compare_databases()
        except (ClusterUnavailable, Refused):
            return True
        return self._other is True

    async def _compare_settings(self) -> None:
        """Compare with what the alive key says, if it was renewed meanwhile: it may be that of this host's last run."""
        lease = self._lease
        message = await lease.connection.last(keys.ALIVE, keys.alive(lease.instance), within=READ_WITHIN)
        seq = seq_of(message)
        renewed, self._renewal = self._renewal not in (0, seq), seq
        if message is None or not message.data or not renewed:
            return
        read = partial(received.decode, message.data, Alive, received.MAX_KEY)
        active = lease.connection.parser.parse(keys.alive(lease.instance), read) or Alive()
        found = differences(active.settings, self._settings)
        if found and found != self._differing:
            words = "; ".join(f"{name}: {values}" for name, values in found.items())
            log.warning(
                "the active collector of %s has other settings, so a takeover changes what is served: %s",
                *(lease.instance, words),
            )
        self._differing = found

    async def _compare_databases(self) -> None:
        """Compare the sample in the checkpoint with this process's database. Without an answer the verdict stays."""
        now = time.monotonic()
        if now - self._compared_at < COMPARE_EVERY and self._other is not None:
            return
        self._compared_at = now
        subject = keys.checkpoint(self._lease.instance, *MOMENT)
        message = await self._lease.connection.last(keys.CHECKPOINT, subject, within=READ_WITHIN)
        sampled = None
        if message is not None and message.data:
            read = partial(received.decode_msgpack, message.data, _Sampled)
            sampled = self._lease.connection.parser.parse(subject, read)
        sample = sampled.cursor.sample if sampled is not None else ()
        if not sample:
            self._other = None
            return
        try:
            async with asyncio.timeout(COMPARE_WITHIN):
                async with closing(self._database.open()) as session:
                    other = await identity.is_other(session, self._database.dialect, sample)
        except (SourceUnavailable, TimeoutError) as error:
            log.debug("whether the database is that of %s is not known: %s", self._lease.instance, error)
            return
        if other and not self._other:
            log.error("this process never takes the lease of %s: %s", self._lease.instance, OtherDatabase())
        self._other = other


class _Cursor(Struct, frozen=True):
    """What of a `Cursor` names its database."""

    sample: tuple[str, ...] = ()


class _Sampled(Struct, frozen=True):
    """The same of a `SavedMoment`, also of another version."""

    cursor: _Cursor = _Cursor()


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
        standbys = Standbys(lease.connection, lease.instance)
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
