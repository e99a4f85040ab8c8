"""The composition root of a gateway: it builds the fleet, reads the stream, and serves until it is stopped.

The listener opens at once, as that of a daemon does: readiness reports that the stream is being read, and clients that
resume wait for it. The cluster may be away at any time: what memory has is served, marked as stale.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from correlator import __version__
from correlator.cluster import keys, received, streams
from correlator.cluster.connection import ClusterUnavailable, Connection
from correlator.cluster.rpc import Caller
from correlator.config.schema import Config
from correlator.daemon import DRAIN_WITHIN, Process, Supervisor, announce, process_of, reload_on_request, report_build
from correlator.gateway.archive import RpcArchive, WaitingIdsSender
from correlator.gateway.fleet import SHARE, Fleet
from correlator.gateway.stream import OrderedConsumer, StreamEnd
from correlator.jobs.remote import RemoteJobs
from correlator.model.facts import Status
from correlator.ops import cluster_metrics, event_loop, logs, memory, metrics
from correlator.pipeline.hub import WaitingIds
from correlator.pipeline.job_metrics import STATUSES
from correlator.sinks.http.server import ListenerConfig
from correlator.tasks import TaskGroup, end_tasks

if TYPE_CHECKING:
    from nats.aio.msg import Msg

log = logging.getLogger(__name__)

JUDGE_EVERY = 0.5
"""Seconds between two checks of the appliances."""


async def run(
    config: Config,
    *,
    load: Callable[[], Config] | None = None,
    on_ready: Callable[[str], None] | None = None,
    beat: Callable[[], None] = lambda: None,
) -> None:
    """Run the gateway until SIGTERM, SIGINT or cancellation. See `Process` for the arguments.

    `config` has the URL of a cluster, as `loading.load` with `gateway` checks.

    Raises: `CorrelatorError` for a problem that an operator can fix, such as an address in use.
    """
    with process_of(config, load, on_ready, beat) as process:
        await Gateway(config).run(process)


class Gateway:
    """One gateway. Nothing connects before `run`. `share`: see `Fleet`."""

    def __init__(self, config: Config, *, share: int = SHARE) -> None:
        self._config = config
        self.connection = connection = Connection(config.cluster, "gateway")
        self._check = streams.StreamCheck(connection)
        caller = Caller(connection)
        self._instances = names = sorted(set(config.cluster.instances))
        documents = [keys.EPOCH, *map(keys.everything, names)] if names else ["$KV.cor.>"]
        self._jobs = OrderedConsumer(connection, keys.STATE, documents, self._on_jobs, self._reset, _epoch)
        signs = [keys.alive(name) for name in names or ["*"]]
        self._alive = alive = OrderedConsumer(connection, keys.ALIVE, signs, self._on_alive)
        self._sender = WaitingIdsSender(self._waiting_ids, self._want)
        self.fleet = fleet = Fleet(
            lambda scope: RpcArchive(caller, scope),
            cluster_error=self._error,
            ends_before=StreamEnd(connection).is_before,
            on_watch=self._sender.wake,
            on_removed=_forget_metrics,
            listening=lambda: alive.listening,
            describe_cluster=self._describe,
            parser=connection.parser,
            share=share,
            instances=names,
        )
        self._views(config)()
        self._listener = ListenerConfig(config, gateway=True)
        self.supervisor = Supervisor(fleet.hub)
        self._http = self._listener.sink(self.supervisor.serves, fleet)
        self._synced = asyncio.Event()
        self._current_at: float | None = None

    async def run(self, process: Process) -> None:
        """Serve until `process` is stopped."""
        report_build("nats")
        _count_jobs(self.fleet.hub.published)
        cluster_metrics.BEHIND.set_function(lambda: self._jobs.behind)
        cluster_metrics.STALE.set_function(self._stale_seconds)
        log.info("correlator gateway %s reads %s", __version__, self._config.cluster.url)
        async with TaskGroup() as group, self._read(process, group), self._serve(group):
            await process.stop.wait()
            log.info("stopping")
            self.supervisor.stops()

    @contextlib.asynccontextmanager
    async def _read(self, process: Process, group: TaskGroup) -> AsyncIterator[None]:
        """Connect and read: lines and events from now on, those of unknown jobs wait. End: close the connection."""
        reloaded = [self._views, self._listener.prepare, _log_level]
        reading = {
            group.create_task(work, name=name)
            for name, work in (
                ("connection", self.connection.run()),
                ("streams", self._check.run()),
                ("jobs", self._jobs.run()),
                ("alive", self._alive.run()),
                ("writable", self._alive.follow_writable()),
                ("lines", self._subscribe()),
                ("judge", self._judge()),
                ("waiting-ids", self._sender.run()),
                ("views", self.fleet.fill()),
                ("supervisor", self.supervisor.run(process.beat)),
                ("heartbeat", event_loop.heartbeat()),
                ("memory", memory.return_free_memory()),
                ("announce", announce(process, self.supervisor, self._synced)),
                ("reload", reload_on_request(process, self.supervisor, reloaded)),
            )
        }
        yield
        await end_tasks(reading)

    @contextlib.asynccontextmanager
    async def _serve(self, group: TaskGroup) -> AsyncIterator[None]:
        """Serve: readiness reports that the stream is being read. End: clients connect to another gateway meanwhile."""
        serving = {group.create_task(self._http.run(self.fleet.hub), name="http")}
        yield
        await end_tasks(serving, again=DRAIN_WITHIN)

    def _reset(self, epoch: str) -> None:
        """Forget what was read. The positions of clients have become invalid, but at a start."""
        has_read = bool(self.fleet.hub.epoch)
        self.fleet.reset(epoch)
        if has_read:
            self._http.disconnect()

    def _on_jobs(self, messages: Any) -> int | None:
        if (taken := self.fleet.read(messages)) is None:
            self._jobs.restart()
        if not self._jobs.synced:
            event_loop.spare_loaded()
            return taken
        self.fleet.synced()
        if not self._synced.is_set():
            self._synced.set()
            jobs, appliances = len(self.fleet.hub.published), len(self.fleet.appliances)
            log.info("the stream has been read: %d jobs of %d appliances", jobs, appliances)
        return taken

    def _on_alive(self, messages: Any) -> None:
        self.fleet.read_alive(messages, None if self._alive.synced else self._alive.server_time)

    def _waiting_ids(self) -> Iterator[tuple[str | None, WaitingIds]]:
        return self.fleet.waiting_ids()

    def _views(self, config: Config) -> Callable[[], None]:
        """Return what has the fleet serve the appliances that tokens may see; satisfies `daemon.Prepare`."""
        sets = {frozenset(token.instances) for token in config.http.tokens if token.instances}
        return lambda: self.fleet.show(sets)

    async def _want(self, message: bytes) -> None:
        with contextlib.suppress(ClusterUnavailable):  # The IDs are published again.
            await self.connection.publish(keys.WANT, message)

    def _error(self) -> str | None:
        """Why the stream cannot be read now, or None."""
        if not self.connection.connected:
            return f"NATS is unreachable: {self.connection.describe().get('error') or 'not connected'}"
        if not self._jobs.synced:
            return f"the stream is being read: {self._jobs.error}" if self._jobs.error else "the stream is being read"
        return None

    def _describe(self) -> dict[str, Any]:
        found = self.connection.describe() | self._check.describe()
        error = self._error()
        return found if error is None else {**found, "ok": False, "error": error}

    def _stale_seconds(self) -> float | None:
        return None if self._current_at is None else time.monotonic() - self._current_at

    async def _judge(self) -> None:
        with self.fleet.hub.live.heartbeat("appliances", 30.0) as beat:
            while True:
                beat()
                if self._jobs.synced and self.connection.connected:
                    self._current_at = time.monotonic()
                cluster_metrics.CONNECTED.set(self.connection.connected)
                self.fleet.judge()
                for name, appliance in self.fleet.appliances.items():
                    cluster_metrics.ONLINE.labels(name).set(appliance.online() is True)
                    if appliance.last_seen is not None:
                        cluster_metrics.SEEN.labels(name).set(appliance.last_seen / 1_000_000)
                await asyncio.sleep(JUDGE_EVERY)

    async def _subscribe(self) -> None:
        async def lines(message: Msg) -> None:
            await self.fleet.read_lines(message.subject, message.data)

        async def event(message: Msg) -> None:
            self.fleet.read_event(message.subject, message.data)

        subscribed = self.connection.subscribed
        async with AsyncExitStack() as subscriptions:
            for name in self._instances or ["*"]:
                await subscriptions.enter_async_context(subscribed(keys.line(name), lines))
                await subscriptions.enter_async_context(subscribed(keys.events(name), event))
            await asyncio.Event().wait()


def _count_jobs(published: RemoteJobs) -> None:
    """Have a scrape get the numbers of jobs as they are then."""

    def count(status: Status) -> Callable[[], float]:
        return lambda: published.counts[status]

    for status in STATUSES:
        metrics.JOBS.labels(status).set_function(count(status))
    metrics.JOBS_STALLED.set_function(lambda: published.stalled)


def _forget_metrics(name: str) -> None:
    for metric in (cluster_metrics.ONLINE, cluster_metrics.SEEN, cluster_metrics.CROWDED):
        with contextlib.suppress(KeyError):  # It was never judged.
            metric.remove(name)


def _log_level(config: Config) -> Callable[[], None]:
    return lambda: logs.configure(config.log.level, config.log.format, os.environ)


async def _epoch(connection: Connection) -> str | None:
    """The epoch of the stream of documents; None if no collector has written one that can be read."""
    found = await connection.last(keys.STATE, keys.EPOCH)
    return connection.parser.parse(keys.EPOCH, partial(received.epoch, found.data)) if found is not None else None
