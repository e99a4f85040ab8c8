"""The composition root: it builds the daemon from the configuration, starts it and stops it in order.

No other file but `following` and `publishing`, which it calls, names concrete sources and sinks. The sinks serve from
the first moment, before the daemon is ready: a client that connects during a long start sees that in readiness, and is
not refused a connection. On a stop the source ends first, so that nothing changes while the sinks close their
connections under a deadline. `_term` and `_follow` number the steps of both. An unexpected exception in any task
cancels all others and ends the process with an error.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import platform
import signal
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from correlator import __version__
from correlator.config.schema import Config
from correlator.daemon.reload import Prepare, Reload, reloaded
from correlator.daemon.supervisor import Supervisor
from correlator.following import Following
from correlator.following import following as build
from correlator.ops import logs, memory, metrics, stalls
from correlator.pipeline.pipeline import Pipeline
from correlator.publishing import checks, cluster_sink, gateway_requests, mqtt_sink, otlp_sink, standby_reports
from correlator.sinks import Sink
from correlator.sinks.http.server import HttpSink, Listener, ListenerConfig
from correlator.sinks.webhooks.sink import WebhookSink
from correlator.sources.db.mariadb import MariaDBDatabase
from correlator.sources.db.session import Database
from correlator.state.forecasts import StoredForecasts
from correlator.state.rows import Saved
from correlator.state.saver import Saver
from correlator.state.sqlite import Checkpoint
from correlator.tasks import end_tasks, ends_before, set_by_signals

if TYPE_CHECKING:
    from correlator.cluster.lease import Lease
    from correlator.collector import Tenure
    from correlator.sinks.mqtt.sink import MqttSink

log = logging.getLogger(__name__)

DRAIN_WITHIN = 10.0
"""Seconds that the sinks have to close their connections after a stop."""

RENEWALS_PING_EVERY = 1.0
"""Seconds between two pings of the connection for the lease: it has little to send, and leaves a server that hangs."""


@dataclass(slots=True)
class Process:
    """What the process was started with, and its signals. See `run`. `config` has what a reload has applied since."""

    config: Config
    load: Callable[[], Config] | None
    on_ready: Callable[[str], None] | None
    stop: asyncio.Event
    reload_requested: asyncio.Event


@dataclass(frozen=True, slots=True)
class Term:
    """What a term has from its start: its parts do not depend on the last run. `served`: the base URL."""

    following: Following
    checkpoint: Checkpoint
    listener: ListenerConfig
    supervisor: Supervisor
    served: asyncio.Future[str]


async def run(
    config: Config,
    *,
    load: Callable[[], Config] | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Run the daemon until SIGTERM, SIGINT or cancellation.

    `load`: reads the configuration again; called on SIGHUP. Without it SIGHUP ends the process, as a closed terminal
    should. `on_ready`: called once with the base URL, when everything is loaded.

    Raises: `CorrelatorError` for a problem that an operator can fix, such as an address in use or a missing token file.
    """
    reload_signals = (signal.SIGHUP,) if load is not None else ()
    with set_by_signals(signal.SIGTERM, signal.SIGINT) as stop, set_by_signals(*reload_signals) as reload_requested:
        await _run(Process(config, load, on_ready, stop, reload_requested))


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
    try:
        lease = Lease(renewals, writes, settings)
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
    following = build(config, lambda: process.config.jobs.stalled_after)
    # Start, 2: Lock and read the checkpoint. This fails here if another process uses it.
    checkpoint = Checkpoint(config.state.directory / "checkpoint.sqlite", str(config.database.url))
    saved = await _open(checkpoint)
    served: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    listener = ListenerConfig(config)
    supervisor = Supervisor(following.hub)

    def serves(url: str) -> None:
        supervisor.serves()
        served.set_result(url)

    http = _http(config, listener, serves)
    term = Term(following, checkpoint, listener, supervisor, served)
    metrics.BUILD.info(_build(following.database))
    log.info("correlator %s follows %s", __version__, config.database.url)
    async with asyncio.TaskGroup() as outer:
        # Start, 3: Serve, which ends the start of the unit. Readiness reports that the daemon is loading.
        serving = {outer.create_task(http.run(following.hub), name=type(http).__name__)}
        watching = [
            outer.create_task(supervisor.run(), name="supervisor"),
            outer.create_task(stalls.heartbeat(), name="heartbeat"),
            outer.create_task(memory.return_free_memory(), name="memory"),
        ]
        # Start, 4: In a cluster, wait as the standby until this process holds the lease. Nothing asks the database.
        tenure = None
        if lease is not None:
            from correlator.collector import abandon, standby  # noqa: PLC0415 - only in a cluster
            from correlator.state.stream import newest  # noqa: PLC0415

            waiting = outer.create_task(standby(lease, following, config, served, outer), name="standby")
            reloading = outer.create_task(_reloads(process, term, checks(config)), name="reload")
            if not await ends_before(waiting, process.stop):
                supervisor.stops()
                await abandon(waiting)
                await end_tasks({reloading, *watching, *serving})
                await asyncio.to_thread(checkpoint.close)
                return
            tenure = waiting.result()
            await end_tasks({reloading})
            if tenure.saved is not None:
                following.source.expect(tenure.saved.cursor.sample)
            saved = newest(saved, tenure.saved)
        await _follow(process, term, saved, tenure, outer, watching, serving if tenure is None else set())
        await end_tasks(serving, again=DRAIN_WITHIN)
    # Stop, 5: Close the archive's sessions.
    await following.archive.close()
    # Stop, 6: Unlock the checkpoint.
    await asyncio.to_thread(checkpoint.close)
    gc.unfreeze()


async def _follow(
    process: Process,
    term: Term,
    saved: Saved | None,
    tenure: Tenure | None,
    group: asyncio.TaskGroup,
    watching: Sequence[asyncio.Task[None]],
    serving: set[asyncio.Task[None]],
) -> None:
    """Follow the log and publish until a stop, or until the lease is lost; then end all of that.

    `saved`: what the last run saved; `group` runs the sinks. `watching` ends with the source, `serving` with the
    sinks: in a cluster the HTTP sink is not among them, as it ends after the lease was handed over.
    """
    config, following, supervisor = process.config, term.following, term.supervisor
    hub, pipeline = following.hub, following.pipeline
    # Start, 5: Build the other sinks and the saver.
    mqtt = mqtt_sink(config, hub, saved)
    otlp = otlp_sink(config, hub, saved)
    webhooks = WebhookSink(config, saved.webhooks if saved is not None else ())
    cluster = cluster_sink(config, following, tenure, saved)
    of_others = gateway_requests(tenure), standby_reports(tenure, hub)
    sinks: list[Sink] = [webhooks, *(s for s in (mqtt, otlp, cluster, *of_others) if s is not None)]
    unacknowledged = mqtt.unacknowledged if mqtt is not None else dict
    stored = StoredForecasts(hub.forecasts)
    exports = otlp.exports if otlp is not None else None
    saver = Saver(
        term.checkpoint,
        hub.index,
        stored,
        following.tail.cursor,
        unacknowledged,
        hub.live,
        exports,
        webhooks.pending,
        tenure.stream if tenure is not None else None,
        cluster.state if cluster is not None else lambda: ({}, None),
    )
    hub.readiness["checkpoint"] = saver.describe
    publishing = {group.create_task(sink.run(hub), name=type(sink).__name__) for sink in sinks}
    # Start, 6: Publish what the last run knew, marked stale, before the database answers.
    if saved is not None:
        if saved.forecasts is not None and time.time() - saved.at <= config.jobs.retention:
            stored.restore(saved.forecasts)  # After a longer stop the history is read again.
        await _restore(saved, following)
    goes_on = tenure.saved if tenure is not None else None
    async with asyncio.TaskGroup() as inner:
        # Start, 7: Read the tables and the log. `_announce` calls `on_ready` once they are loaded.
        reading = [
            inner.create_task(following.source.run(pipeline), name="source"),
            # After a takeover there is a checkpoint in the cluster already, so readiness does not wait for the file.
            inner.create_task(pipeline.run(before_ready=saver.begin if goes_on is None else None), name="pipeline"),
            inner.create_task(saver.run(), name="saver"),
            inner.create_task(_announce(pipeline, term.served, process.on_ready), name="announce"),
        ]
        parts = [webhooks.prepare, *([otlp.prepare] if otlp is not None else [])]
        reading.append(inner.create_task(_reloads(process, term, parts, mqtt), name="reload"))
        lost = tenure is not None and await ends_before(tenure.holding, process.stop)
        if tenure is None:
            await process.stop.wait()
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
    if tenure is not None:
        await tenure.lease.release()
        await end_tasks({tenure.holding})


async def _reloads(process: Process, term: Term, parts: Sequence[Prepare], mqtt: MqttSink | None = None) -> None:
    """Reload the configuration each time that is requested, until cancelled. `parts`: what applies it besides."""
    if process.load is None:
        return
    own = [term.listener.prepare, _reloadable(term.following, mqtt)]
    reload = Reload(process.config, process.load, [*own, *parts])
    while True:
        await process.reload_requested.wait()
        process.reload_requested.clear()
        ended = term.supervisor.reloads()
        try:
            new = await reload.run()
        except asyncio.CancelledError:
            process.reload_requested.set()  # The standby has become active: its next task of this kind reloads.
            raise
        if new is not None:
            process.config = reloaded(process.config, new)  # What is built later has the new values too.
        ended()


def _reloadable(following: Following, mqtt: MqttSink | None) -> Prepare:
    """Return what applies those keys in `reload.LIVE` of a new configuration that no other object applies."""

    def values(new: Config) -> Callable[[], None]:
        def apply() -> None:
            logs.configure(new.log.level, new.log.format, os.environ)
            if isinstance(following.database, MariaDBDatabase):
                following.database.log_in_with(new.database.password.reveal())
            if following.source.doorbell is not None:
                following.source.doorbell.database.log_in_with(new.database.password.reveal())
            if mqtt is not None:
                mqtt.set_credentials(new.mqtt)

        return apply

    return values


def _build(database: Database) -> dict[str, str]:
    """Return the labels of the metric correlator_build_info."""
    return {
        "version": __version__,
        "python": platform.python_version(),
        "loop": type(asyncio.get_running_loop()).__module__.partition(".")[0],
        "driver": getattr(database, "driver_name", "sqlite3"),
    }


async def _open(checkpoint: Checkpoint) -> Saved | None:
    """Return what the last run saved, or None. The daemon starts even if the disk cannot be read or written."""
    try:
        return await asyncio.to_thread(checkpoint.open)
    except (sqlite3.Error, OSError) as error:
        log.warning("the checkpoint at %s cannot be used: %s; all is read from the tables", checkpoint.path, error)
        return None


async def _restore(saved: Saved, following: Following) -> None:
    """Publish the jobs of the last run, and have the source resume at its position in the log."""
    age = max(0.0, time.time() - saved.at)
    following.tail.resume(saved.cursor)
    past = saved.cursor.past is not None
    await following.pipeline.restore(saved.jobs, saved.legacy, saved.memory, age, past=past)
    log.info("continuing from the checkpoint of %.0f s ago, at row %d of the log", age, saved.cursor.head)


async def tap(config: Config, sink: Sink) -> None:
    """Follow the log with `sink` as the only sink, until SIGTERM, SIGINT or cancellation. Opens no listener."""
    following = build(config, lambda: config.jobs.stalled_after)
    with set_by_signals(signal.SIGTERM, signal.SIGINT) as stop:
        async with asyncio.TaskGroup() as group:
            running = [
                group.create_task(sink.run(following.hub), name=type(sink).__name__),
                group.create_task(following.source.run(following.pipeline), name="source"),
                group.create_task(following.pipeline.run(), name="pipeline"),
            ]
            await stop.wait()
            await end_tasks({*running})
    await following.archive.close()


def _http(config: Config, listener: ListenerConfig, on_ready: Callable[[str], None]) -> HttpSink:
    """Build the HTTP sink. It calls `on_ready` with the base URL once it listens."""
    listen = config.http.listen
    return HttpSink(
        Listener(listen.host, listen.port, listener.tls),
        listener.access,
        max_subscriptions=config.http.max_subscriptions,
        unknown_id_wait=config.http.unknown_id_wait,
        on_ready=on_ready,
    )


async def _announce(
    pipeline: Pipeline,
    served: asyncio.Future[str],
    on_ready: Callable[[str], None] | None,
) -> None:
    """Call `on_ready` once everything is loaded and the HTTP sink listens."""
    await pipeline.ready.wait()
    stalls.spare_loaded()
    url = await served
    if on_ready is not None:
        on_ready(url)
