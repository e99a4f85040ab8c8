"""The composition root: it builds the daemon from the configuration, starts it and stops it in order.

No other file names concrete sources and sinks, but `sources.databases`, which also the doctor uses, and `standby`. The
sinks serve from the first moment, before the daemon is ready: a client that connects during a long start sees that in
readiness, and is not refused a connection. On a stop the source ends first, so that nothing changes while the sinks
close their connections under a deadline. `_term` and `_follow` number the steps of both. An unexpected exception in any
task cancels all others and ends the process with an error.

What is not configured is not imported either: with all sinks the process is larger, and starts later.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from correlator import __version__
from correlator.config import rendering
from correlator.config.schema import Config
from correlator.config.values import titles
from correlator.daemon import (
    DRAIN_WITHIN,
    Prepare,
    Process,
    Supervisor,
    announce,
    process_of,
    reload_on_request,
    report_build,
)
from correlator.errors import Away, SourceUnavailable
from correlator.jobs import sizes
from correlator.jobs.exports import Exports
from correlator.jobs.horizon import Horizon
from correlator.jobs.index import Index
from correlator.model.published import Titles
from correlator.ops import logs, memory, stalls
from correlator.pipeline.hub import Hub, wall_clock
from correlator.pipeline.pipeline import LocalHub, Pipeline
from correlator.sinks import Sink
from correlator.sinks.event_log import EventLog
from correlator.sinks.http.server import ListenerConfig
from correlator.sinks.webhooks import WebhookSink
from correlator.sources.archive.archive import DatabaseArchive
from correlator.sources.databases import database_of
from correlator.sources.db import identity
from correlator.sources.db.mariadb import MariaDBDatabase
from correlator.sources.db.session import Database, closing
from correlator.sources.doorbell import Doorbell
from correlator.sources.follow import Follower
from correlator.sources.tables.legacy import Legacy
from correlator.sources.tables.reconcile import Reconcile
from correlator.sources.tail import Tail
from correlator.state.checkpoint import Saved, StoredForecasts
from correlator.state.checkpoint_file import Checkpoint
from correlator.state.saver import Saver
from correlator.tasks import Backoff, TaskGroup, end_tasks, ends_before, set_by_signals

if TYPE_CHECKING:
    from correlator.cluster.lease import Lease
    from correlator.sinks.cluster.gateway_requests import GatewayRequests
    from correlator.sinks.cluster.sink import ClusterSink
    from correlator.sinks.mqtt.sink import MqttSink
    from correlator.sinks.otlp.sink import OtlpSink
    from correlator.standby import Active, Standbys


log = logging.getLogger(__name__)

RENEWALS_PING_EVERY = 1.0
"""Seconds between two pings of the connection for the lease: it has little to send, and leaves a server that hangs."""


async def run(
    config: Config,
    *,
    load: Callable[[], Config] | None = None,
    on_ready: Callable[[str], None] | None = None,
    beat: Callable[[], None] = lambda: None,
) -> None:
    """Run the daemon until SIGTERM, SIGINT or cancellation. See `Process` for the arguments.

    Raises: `CorrelatorError` for a problem that an operator can fix, such as an address in use or a missing token file.
    """
    with process_of(config, load, on_ready, beat) as process:
        await _run(process)


async def _run(process: Process) -> None:
    """Run one term after the other: without a cluster there is one, else each ends with the loss of the lease."""
    if process.config.cluster.url is None:
        await _term(process, None)
        return
    # A daemon without a cluster loads nothing of it, and has no metrics of one.
    from correlator.cluster.connection import Connection  # noqa: PLC0415
    from correlator.cluster.lease import Lease  # noqa: PLC0415
    from correlator.cluster.received import Parser  # noqa: PLC0415
    from correlator.ops import cluster_metrics  # noqa: PLC0415

    settings, parser = process.config.cluster, Parser()
    renewals = Connection(settings, "collector", parser=parser, ping_every=RENEWALS_PING_EVERY)
    writes = Connection(settings, "collector", parser=parser)
    connecting = {asyncio.create_task(connection.run(), name="nats") for connection in (renewals, writes)}
    lease = Lease(renewals, writes, settings)
    connecting.add(asyncio.create_task(lease.streams.run(), name="streams"))
    try:
        cluster_metrics.CONNECTED.set_function(lambda: renewals.connected and writes.connected)
        cluster_metrics.LEASE.labels(lease.instance).set_function(lambda: lease.active)
        while not process.stop.is_set():
            await _term(process, lease)
    finally:
        await end_tasks(connecting)


async def _term(process: Process, lease: Lease | None) -> None:
    """Run until a stop, or until the lease is lost. `lease`: None without a cluster."""
    config = process.config
    # Start, 1: Build the index, the hub, the pipeline and the source. Nothing connects yet.
    core = core_of(
        config, lambda: process.config.jobs.stalled_after, lambda: lease.refusal if lease is not None else None
    )
    # Start, 2: Lock and read the checkpoint. This fails here if another process uses it.
    checkpoint = Checkpoint(config.state.directory / "checkpoint.sqlite", str(config.database.url))
    saved = await _open(checkpoint)
    listener = ListenerConfig(config)
    supervisor = Supervisor(core.hub)
    http = listener.sink(supervisor.serves)
    daemon = Daemon(core, checkpoint, listener, supervisor)
    report_build(getattr(core.database, "driver", "sqlite3"))
    log.info("correlator %s follows %s", __version__, config.database.url)
    async with TaskGroup() as outer:
        # Start, 3: Serve, which ends the start of the unit. Readiness reports that the daemon is loading.
        serving = {outer.create_task(http.run(core.hub), name=type(http).__name__)}
        watching = [
            outer.create_task(supervisor.run(process.beat), name="supervisor"),
            outer.create_task(stalls.heartbeat(), name="heartbeat"),
            outer.create_task(memory.return_free_memory(), name="memory"),
        ]
        # Start, 4: In a cluster, wait as the standby until this process holds the lease. Nothing asks the database.
        active = None
        if lease is not None:
            from correlator.standby import standby  # noqa: PLC0415 - only in a cluster
            from correlator.state.checkpoint_stream import newest  # noqa: PLC0415

            serves = supervisor.served
            waiting = outer.create_task(standby(lease, core.database, core.hub, config, serves, outer), name="standby")
            checks: list[Prepare] = [listener.prepare, partial(_reloadable, core, None), *_checks(config)]
            reloading = outer.create_task(reload_on_request(process, supervisor, checks), name="reload")
            if not await ends_before(waiting, process.stop):
                supervisor.stops()
                await end_tasks({waiting})
                await lease.release()  # It may have been taken just now.
                await end_tasks({reloading, *watching, *serving})
                await asyncio.to_thread(checkpoint.close)
                return
            active = waiting.result()
            await end_tasks({reloading})
            if active.saved is not None:
                core.source.expect(active.saved.cursor.sample)
            saved = newest(saved, active.saved)
        elif saved is not None:
            comparing = outer.create_task(_is_followed(core, saved, str(config.database.url)), name="database")
            if not await ends_before(comparing, process.stop):
                supervisor.stops()
                await end_tasks({comparing, *watching, *serving})
                await asyncio.to_thread(checkpoint.close)
                return
            if not comparing.result():
                await asyncio.to_thread(checkpoint.set_aside, f"it is of the database at {saved.source}")
                saved = None
        await _follow(process, daemon, saved, active, outer, watching, serving if active is None else set())
        await end_tasks(serving, again=DRAIN_WITHIN)
    # Stop, 5: Close the archive's sessions.
    await core.archive.close()
    # Stop, 6: Unlock the checkpoint.
    await asyncio.to_thread(checkpoint.close)
    gc.unfreeze()


@dataclass(frozen=True, slots=True)
class Daemon:
    """What a term has from its start: its parts do not depend on the last run."""

    core: Core
    checkpoint: Checkpoint
    listener: ListenerConfig
    supervisor: Supervisor


async def _follow(
    process: Process,
    daemon: Daemon,
    saved: Saved | None,
    active: Active | None,
    group: TaskGroup,
    watching: Sequence[asyncio.Task[None]],
    serving: set[asyncio.Task[None]],
) -> None:
    """Follow the log and publish until a stop, or until the lease is lost; then end all of that.

    `saved`: what the last run saved; `group` runs the sinks. `watching` ends with the source, `serving` with the
    sinks: in a cluster the HTTP sink is not among them, as it ends after the lease was handed over.
    """
    config, core, supervisor = process.config, daemon.core, daemon.supervisor
    hub, pipeline = core.hub, core.pipeline
    # Start, 5: Build the other sinks and the saver.
    event_log = EventLog(saved.events if saved is not None else ())
    mqtt = _mqtt_sink(config, event_log)
    otlp = _otlp_sink(config, saved)
    webhooks = WebhookSink(config, event_log)
    of_cluster = _cluster_sinks(core, active, saved, event_log) if active is not None else ()
    sinks: list[Sink] = [webhooks, *(s for s in (mqtt, otlp, *of_cluster) if s is not None)]
    stored = StoredForecasts(hub.forecasts)
    exports = otlp.exports if otlp is not None else None
    saver = Saver(
        daemon.checkpoint,
        hub.index,
        stored,
        core.tail.cursor,
        event_log,
        hub.live,
        exports,
        active.stream if active is not None else None,
        of_cluster[0].position if of_cluster else lambda: None,
    )
    hub.readiness["checkpoint"] = saver.describe
    publishing = {group.create_task(sink.run(hub), name=type(sink).__name__) for sink in sinks}
    report = _report(config, hub, of_cluster[0]) if of_cluster else dict
    held = active.lease.hold(report) if active is not None else asyncio.Event().wait()
    holding = group.create_task(held, name="lease")
    # Start, 6: Publish what the last run knew, marked stale, before the database answers.
    if saved is not None:
        if saved.forecasts is not None and time.time() - saved.at <= config.jobs.retention:
            stored.restore(saved.forecasts)  # After a longer stop the history is read again.
        await _restore(saved, core)
    goes_on = active.saved if active is not None else None
    async with TaskGroup() as inner:
        # Start, 7: Read the tables and the log. `announce` calls `on_ready` once they are loaded.
        reading = [
            inner.create_task(core.source.run(pipeline), name="source"),
            # After a takeover there is a checkpoint in the cluster already, so readiness does not wait for the file.
            inner.create_task(pipeline.run(before_ready=saver.begin if goes_on is None else None), name="pipeline"),
            inner.create_task(saver.run(), name="saver"),
            inner.create_task(announce(process, supervisor, pipeline.ready), name="announce"),
        ]
        parts: list[Prepare] = [daemon.listener.prepare, partial(_reloadable, core, mqtt), webhooks.prepare]
        parts += [otlp.prepare] if otlp is not None else []
        reading.append(inner.create_task(reload_on_request(process, supervisor, parts), name="reload"))
        lost = await ends_before(holding, process.stop)
        # Stop, 1: Notify the service manager.
        log.info("becoming the standby" if lost else "stopping")
        if not lost:
            supervisor.stops()
        elif mqtt is not None:
            mqtt.supersede()
        # Stop, 2: End the source and the tasks around it. The group waits for them; nothing changes from then on.
        await end_tasks({*reading, *watching})
    # Stop, 3: Have the sinks close their connections. Those that take longer than the deadline are cancelled again.
    await end_tasks(publishing | serving, again=DRAIN_WITHIN)
    # Stop, 4: Write the checkpoint, as the peers may have acknowledged events, and hand the lease over.
    await saver.finish()
    await end_tasks({holding})
    if active is not None:
        await active.lease.release(report())


async def _open(checkpoint: Checkpoint) -> Saved | None:
    """Return what the last run saved, or None. The daemon starts even if the disk cannot be read or written."""
    try:
        return await asyncio.to_thread(checkpoint.open)
    except (sqlite3.Error, OSError) as error:
        log.warning("the checkpoint at %s cannot be used: %s; all is read from the tables", checkpoint.path, error)
        return None


async def _is_followed(core: Core, saved: Saved, source: str) -> bool:
    """Return whether a checkpoint is of the database that is followed now, however that is reached.

    A checkpoint that was made at the same URL is used at once. Otherwise the database is asked for the sample of jobs,
    and until it answers nothing is served: what was saved may be another appliance's.
    """
    backoff = Backoff()
    while saved.source != source:
        if not saved.cursor.sample:
            return False
        try:
            async with closing(core.database.open()) as session:
                return not await identity.is_other(session, core.database.dialect, saved.cursor.sample)
        except SourceUnavailable as error:
            if error.reason is Away.FAILED:  # it has no job_tracking
                return False
            core.hub.status.failed(error)
        await asyncio.sleep(backoff.next())
    return True


async def _restore(saved: Saved, core: Core) -> None:
    """Publish the jobs of the last run, and have the source resume at its position in the log."""
    age = max(0.0, time.time() - saved.at)
    core.tail.resume(saved.cursor)
    past = saved.cursor.past is not None
    await core.pipeline.restore(saved.jobs, saved.legacy, saved.memory, age, past=past)
    log.info("continuing from the checkpoint of %.0f s ago, at row %d of the log", age, saved.cursor.head)


@dataclass(frozen=True, slots=True)
class Core:
    """The source, and the pipeline and hub that it feeds."""

    database: Database
    hub: LocalHub
    pipeline: Pipeline
    tail: Tail
    source: Follower
    archive: DatabaseArchive


def core_of(
    config: Config, stalled_after: Callable[[], float], refusal: Callable[[], str | None] = lambda: None
) -> Core:
    """Build the core for the database in `config`. Nothing connects.

    `stalled_after`: returns `jobs.stalled_after` as it is now, in seconds. `refusal`: returns why nothing is served
    now, and the database is not asked; None: it is.
    """
    database = database_of(config)
    keep = (*config.jobs.external_id_keys, *sizes.KEPT_KEYS)
    limits = sizes.Sizes(metadata=int(config.jobs.max_metadata), error=int(config.jobs.max_error), keep=keep)
    archive = DatabaseArchive(
        database, id_keys=config.jobs.external_id_keys, legacy=config.jobs.legacy, limits=limits, refusal=refusal
    )
    index = Index(
        id_keys=config.jobs.external_id_keys,
        stalled_after=stalled_after,
        retention=config.jobs.retention,
        max_jobs=config.jobs.max_jobs,
        titles=Titles(titles(config.labels.operations), titles(config.labels.steps)),
        horizon=Horizon(read_to=0),
    )
    reconcile = Reconcile(
        interval=config.database.reconcile_interval,
        retention=config.jobs.retention,
        max_jobs=config.jobs.max_jobs,
    )
    hub = LocalHub(index, archive, on_watch=reconcile.on_watch, refusal=refusal)
    pipeline = Pipeline(hub, max_error=limits.error)
    tail = Tail(
        poll=config.database.poll_interval,
        idle_poll=config.database.idle_poll_interval,
    )
    interval, keys = config.database.reconcile_interval, config.jobs.external_id_keys
    legacy = Legacy(config.jobs.retention, keys, interval, config.jobs.max_jobs) if config.jobs.legacy else None
    doorbell = None
    if config.database.doorbell and isinstance(database, MariaDBDatabase):
        doorbell = Doorbell(database)
        hub.readiness["doorbell"] = doorbell.describe
    pauses = config.database.poll_interval, config.database.idle_poll_interval, interval
    source = Follower(
        database,
        tail,
        reconcile,
        history=config.jobs.history,
        # After a pause, a query may wait for two others on its session.
        patience=max(pauses) + config.database.connect_timeout + 3 * config.database.query_timeout + 30,
        legacy=legacy,
        doorbell=doorbell,
        limits=limits,
    )
    return Core(database, hub, pipeline, tail, source, archive)


def _mqtt_sink(config: Config, event_log: EventLog) -> MqttSink | None:
    """Build the MQTT sink, with the unacknowledged events of the last run. None if no broker is configured."""
    if config.mqtt.url is None:
        return None
    from correlator.sinks.mqtt.sink import MqttSink  # noqa: PLC0415

    return MqttSink(config.mqtt, event_log, retention=config.jobs.retention)


def _otlp_sink(config: Config, saved: Saved | None) -> OtlpSink | None:
    """Build the OTLP sink, with the state of the last run. None if no receiver is configured."""
    if config.otlp.url is None:
        return None
    from correlator.sinks.otlp.sink import OtlpSink  # noqa: PLC0415

    last = saved.exports if saved is not None else None
    return OtlpSink(config, Exports(config.otlp.delay, time.monotonic(), last))


def _cluster_sinks(
    core: Core, active: Active, saved: Saved | None, event_log: EventLog
) -> tuple[ClusterSink, GatewayRequests, Standbys]:
    """Build what writes documents, with the state of the last run, what answers gateways, and what reads of standbys.

    Readiness describes it from now on.
    """
    # A daemon without a cluster has no metrics of one.
    from correlator.ops import cluster_metrics  # noqa: PLC0415
    from correlator.sinks.cluster.gateway_requests import GatewayRequests  # noqa: PLC0415
    from correlator.sinks.cluster.sink import ClusterSink  # noqa: PLC0415
    from correlator.standby import Standbys  # noqa: PLC0415

    def lost(_: str) -> None:
        cluster_metrics.FENCED.inc()
        lease.lose()

    cluster_metrics.TAKEOVERS.inc()
    hub, lease = core.hub, active.lease
    sink = ClusterSink(
        lease.instance,
        active.fence,
        lost,
        lambda: hub.index.horizon.log_read_to,
        event_log,
        position=saved.position if saved is not None else None,
    )
    standbys = Standbys(lease.connection, lease.instance)
    hub.readiness["cluster"] = lambda: (
        lease.describe() | sink.describe() | standbys.describe() | lease.streams.describe()
    )
    return sink, GatewayRequests(lease.connection, lease.instance), standbys


def _report(config: Config, hub: Hub, sink: ClusterSink) -> Callable[[], dict[str, Any]]:
    """Return what makes the report of this process in the alive key."""
    from correlator.sinks.cluster.sink import alive_report  # noqa: PLC0415 - see _cluster_sinks

    return partial(alive_report, hub, sink, wall_clock(), config.jobs.external_id_keys, rendering.of_instance(config))


def _checks(config: Config) -> list[Prepare]:
    """Return what checks a new configuration for the sinks that a standby has not built yet, and applies nothing."""

    def traces(new: Config) -> Callable[[], None]:
        if new.otlp.url is not None:
            from correlator.sinks.otlp.receiver import receiver  # noqa: PLC0415

            receiver(new.otlp)
        return lambda: None

    return [WebhookSink(config, EventLog()).prepare, traces]


def _reloadable(core: Core, mqtt: MqttSink | None, new: Config) -> Callable[[], None]:
    """Return what applies those keys in `daemon.LIVE` of a new configuration that no other object applies."""

    def apply() -> None:
        logs.configure(new.log.level, new.log.format, os.environ)
        if isinstance(core.database, MariaDBDatabase):
            core.database.log_in_with(new.database.password.reveal())
        if mqtt is not None:
            mqtt.set_credentials(new.mqtt)

    return apply


async def tap(config: Config, sink: Sink) -> None:
    """Follow the log with `sink` as the only sink, until SIGTERM, SIGINT or cancellation. Opens no listener."""
    core = core_of(config, lambda: config.jobs.stalled_after)
    with set_by_signals(signal.SIGTERM, signal.SIGINT) as stop:
        async with TaskGroup() as group:
            running = [
                group.create_task(sink.run(core.hub), name=type(sink).__name__),
                group.create_task(core.source.run(core.pipeline), name="source"),
                group.create_task(core.pipeline.run(), name="pipeline"),
            ]
            await stop.wait()
            await end_tasks({*running})
    await core.archive.close()
