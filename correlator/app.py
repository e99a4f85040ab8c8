"""The composition root: it builds the daemon from the configuration, starts it and stops it in order.

No other file names concrete sources and sinks. The sinks serve from the first moment, before the daemon is ready: a
client that connects during a long start sees that in readiness, and is not refused a connection. On a stop the source
ends first, so that nothing changes while the sinks close their connections under a deadline. `_run` numbers the steps
of both. An unexpected exception in any task cancels all others and ends the process with an error.
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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from correlator import __version__
from correlator.config.schema import Config
from correlator.config.values import MysqlUrl, SqliteUrl
from correlator.daemon import ending
from correlator.daemon.reload import Prepare, Reload
from correlator.daemon.signals import set_by
from correlator.daemon.supervisor import Supervisor
from correlator.jobs import sizes
from correlator.jobs.exports import Exports
from correlator.jobs.index import Index
from correlator.jobs.stored_forecasts import StoredForecasts
from correlator.ops import logs, metrics, stalls
from correlator.pipeline.checkpoint import Checkpoint, Saved
from correlator.pipeline.hub import Hub, wall_clock
from correlator.pipeline.local_hub import LocalHub
from correlator.pipeline.pipeline import Pipeline
from correlator.pipeline.saver import Saver
from correlator.sinks import Sink
from correlator.sinks.http.listener import ListenerConfig
from correlator.sinks.http.server import HttpSink, Listener
from correlator.sinks.mqtt.outbox import PendingEvent
from correlator.sinks.mqtt.sink import MqttSink
from correlator.sinks.otlp.sink import OtlpSink
from correlator.sinks.webhooks.sink import WebhookSink
from correlator.sources.archive.archive import DatabaseArchive
from correlator.sources.db import zones
from correlator.sources.db.mariadb import Address, MariaDBDatabase
from correlator.sources.db.session import Database
from correlator.sources.db.sqlite import SQLiteDatabase
from correlator.sources.doorbell.doorbell import Doorbell
from correlator.sources.follow import Follower
from correlator.sources.log.tail import Tail
from correlator.sources.tables.legacy import Legacy
from correlator.sources.tables.reconcile import Reconcile
from correlator.tls import client_context

log = logging.getLogger(__name__)

DRAIN_WITHIN = 10.0
"""Seconds that the sinks have to close their connections after a stop."""


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
    with set_by(signal.SIGTERM, signal.SIGINT) as stop, set_by(*reload_signals) as reload_requested:
        await _run(config, stop, reload_requested, load, on_ready)


async def _run(
    config: Config,
    stop: asyncio.Event,
    reload_requested: asyncio.Event,
    load: Callable[[], Config] | None,
    on_ready: Callable[[str], None] | None,
) -> None:
    # Start, 1: Build the index, the hub, the pipeline and the source. Nothing connects yet.
    following = _following(config)
    hub, pipeline = following.hub, following.pipeline
    # Start, 2: Lock and read the checkpoint. This fails here if another process uses it.
    checkpoint = Checkpoint(config.state.directory / "checkpoint.sqlite", str(config.database.url))
    saved = await _open(checkpoint)
    # Start, 3: Build the sinks, the saver and the supervisor.
    served: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    listener = ListenerConfig(config)
    mqtt = _mqtt(config, hub, saved)
    otlp = _otlp(config, hub, saved)
    webhooks = WebhookSink(config, saved.webhooks if saved is not None else ())
    sinks: list[Sink] = [_http(config, listener, served), webhooks, *(s for s in (mqtt, otlp) if s is not None)]
    unacknowledged = mqtt.unacknowledged if mqtt is not None else dict
    stored = StoredForecasts(hub.forecasts)
    exports = otlp.exports if otlp is not None else None
    saver = Saver(
        checkpoint, hub.index, stored, following.tail.cursor, unacknowledged, hub.live, exports, webhooks.pending
    )
    hub.readiness["checkpoint"] = saver.describe
    supervisor = Supervisor(hub)
    metrics.BUILD.info(_build(following.database))
    log.info("correlator %s follows %s", __version__, config.database.url)
    async with asyncio.TaskGroup() as outer:
        # Start, 4: Serve. Readiness reports that the daemon is loading.
        running = {outer.create_task(sink.run(hub), name=type(sink).__name__) for sink in sinks}
        watching = [
            outer.create_task(supervisor.run(), name="supervisor"),
            outer.create_task(stalls.heartbeat(), name="heartbeat"),
        ]
        # Start, 5: Publish what the last run knew, marked stale, before the database answers.
        if saved is not None:
            if saved.forecasts is not None and time.time() - saved.at <= config.jobs.retention:
                stored.restore(saved.forecasts)  # After a longer stop the history is read again.
            await _restore(saved, following)
        async with asyncio.TaskGroup() as inner:
            # Start, 6: Read the tables and the log. `_announce` reports readiness once they are loaded.
            reading = [
                inner.create_task(following.source.run(pipeline), name="source"),
                inner.create_task(pipeline.run(before_ready=saver.save), name="pipeline"),
                inner.create_task(saver.run(), name="saver"),
                inner.create_task(_announce(pipeline, served, supervisor, on_ready), name="announce"),
            ]
            if load is not None:
                parts = [listener.prepare, webhooks.prepare, _reloadable(following, mqtt)]
                reload = Reload(config, load, [*parts, *([otlp.prepare] if otlp is not None else [])])
                reading.append(inner.create_task(_reload(reload_requested, reload, supervisor), name="reload"))
            await stop.wait()
            # Stop, 1: Notify the service manager.
            log.info("stopping")
            supervisor.stops()
            # Stop, 2: End the source and the tasks around it. The group waits for them; nothing changes from then on.
            await ending.end({*reading, *watching})
        # Stop, 3: Have the sinks close their connections. Those that take longer than the deadline are cancelled again.
        await ending.end(running, again=DRAIN_WITHIN)
    # Stop, 4: Close the archive's sessions.
    await following.archive.close()
    # Stop, 5: Write the checkpoint. The broker may have acknowledged events during step 3.
    if not hub.index.loading:
        await saver.save()
    # Stop, 6: Unlock the checkpoint.
    await asyncio.to_thread(checkpoint.close)


async def _reload(requested: asyncio.Event, reload: Reload, supervisor: Supervisor) -> None:
    """Reload the configuration each time `requested` is set, until cancelled."""
    while True:
        await requested.wait()
        requested.clear()
        ended = supervisor.reloads()
        await reload.run()
        ended()


def _reloadable(following: Following, mqtt: MqttSink | None) -> Prepare:
    """Return what applies those keys in `reload.LIVE` of a new configuration that no other object applies."""

    def values(new: Config) -> Callable[[], None]:
        def apply() -> None:
            logs.configure(new.log.level, new.log.format, os.environ)
            following.hub.published.stalled_after = new.jobs.stalled_after
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
    following = _following(config)
    with set_by(signal.SIGTERM, signal.SIGINT) as stop:
        async with asyncio.TaskGroup() as group:
            running = [
                group.create_task(sink.run(following.hub), name=type(sink).__name__),
                group.create_task(following.source.run(following.pipeline), name="source"),
                group.create_task(following.pipeline.run(), name="pipeline"),
            ]
            await stop.wait()
            await ending.end({*running})
    await following.archive.close()


@dataclass(frozen=True, slots=True)
class Following:
    """The source, and the pipeline and hub that it feeds."""

    database: Database
    hub: LocalHub
    pipeline: Pipeline
    tail: Tail
    source: Follower
    archive: DatabaseArchive


def _following(config: Config) -> Following:
    """Build the source for the database in `config`, and the pipeline and hub that it feeds."""
    database = source_of(config)
    keep = (*config.jobs.external_id_keys, *sizes.KEPT_KEYS)
    limits = sizes.Sizes(metadata=int(config.jobs.max_metadata), error=int(config.jobs.max_error), keep=keep)
    archive = DatabaseArchive(database, id_keys=config.jobs.external_id_keys, legacy=config.jobs.legacy, limits=limits)
    index = Index(
        id_keys=config.jobs.external_id_keys,
        stalled_after=config.jobs.stalled_after,
        retention=config.jobs.retention,
        max_jobs=config.jobs.max_jobs,
    )
    # Seconds without progress before a source is stuck: a query may wait for two others on its session.
    patience = config.database.connect_timeout + 3 * config.database.query_timeout + 30
    reconcile = Reconcile(
        interval=config.database.reconcile_interval,
        retention=config.jobs.retention,
        legacy=Legacy(config.jobs.retention, config.jobs.external_id_keys) if config.jobs.legacy else None,
        patience=patience,
    )
    hub = LocalHub(index, archive, on_watch=reconcile.on_watch)
    pipeline = Pipeline(hub, max_error=limits.error)
    tail = Tail(
        poll=config.database.poll_interval,
        idle_poll=config.database.idle_poll_interval,
        grace=config.database.gap_grace,
        patience=patience,
    )
    source = Follower(database, tail, reconcile, history=config.jobs.history, patience=patience, limits=limits)
    if config.database.doorbell and isinstance(url := config.database.url, MysqlUrl):
        source.doorbell = Doorbell(_mariadb(config, url, "aiomysql"), url.database)
        hub.readiness["doorbell"] = source.doorbell.describe
    return Following(database, hub, pipeline, tail, source, archive)


def source_of(config: Config) -> Database:
    """Build the `Database` that `config.database.url` names. Does not connect."""
    url, settings = config.database.url, config.database
    if isinstance(url, SqliteUrl):
        return SQLiteDatabase(url.path, zone=_zone(config), timeout=settings.query_timeout)
    return _mariadb(config, url, settings.driver)


def _zone(config: Config) -> zones.Zone | None:
    """The configured time zone of the DATETIME columns; None: determined from the server."""
    name = config.database.timezone
    return None if name == "auto" else zones.named(name)


def _mariadb(config: Config, url: MysqlUrl, driver: Literal["auto", "aiomysql", "asyncmy"]) -> MariaDBDatabase:
    settings = config.database
    address = Address(
        host=url.host,
        port=url.port,
        user=url.user,
        password=settings.password.reveal(),
        database=url.database,
        unix_socket=str(settings.unix_socket) if settings.unix_socket is not None else "",
        tls=client_context(settings.tls) if settings.tls is not None else None,
    )
    return MariaDBDatabase(
        address,
        zone=_zone(config),
        connect_timeout=settings.connect_timeout,
        query_timeout=settings.query_timeout,
        driver=driver,
    )


def _http(config: Config, listener: ListenerConfig, served: asyncio.Future[str]) -> HttpSink:
    """Build the HTTP sink. It sets the base URL as the result of `served` once it listens."""
    listen = config.http.listen
    return HttpSink(
        Listener(listen.host, listen.port, listener.tls),
        listener.access,
        max_subscriptions=config.http.max_subscriptions,
        unknown_id_wait=config.http.unknown_id_wait,
        on_ready=served.set_result,
    )


def _mqtt(config: Config, hub: Hub, saved: Saved | None) -> MqttSink | None:
    """Build the MQTT sink, with the unacknowledged events of the last run. None if no broker is configured."""
    if config.mqtt.url is None:
        return None
    pending = [PendingEvent(job_id, payload) for job_id, payload in (saved.events if saved is not None else ())]
    mqtt = MqttSink(config.mqtt, retention=config.jobs.retention, pending_events=pending)
    hub.readiness["mqtt"] = mqtt.describe
    return mqtt


def _otlp(config: Config, hub: Hub, saved: Saved | None) -> OtlpSink | None:
    """Build the OTLP sink, with the state of the last run. None if no receiver is configured."""
    if config.otlp.url is None:
        return None
    last = saved.exports if saved is not None else None
    otlp = OtlpSink(config, Exports(config.otlp.delay, wall_clock(), time.monotonic(), last))
    hub.readiness["otlp"] = otlp.describe
    return otlp


async def _announce(
    pipeline: Pipeline,
    served: asyncio.Future[str],
    supervisor: Supervisor,
    on_ready: Callable[[str], None] | None,
) -> None:
    """Report readiness once everything is loaded and the HTTP sink listens."""
    await pipeline.ready.wait()
    gc.freeze()  # Loaded objects stay: exclude them from collections, which block the event loop.
    url = await served
    supervisor.began()
    if on_ready is not None:
        on_ready(url)
