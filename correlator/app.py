"""The composition root: the only file that names concrete sources and sinks, and the order of start and stop.

Start: the sinks serve at once (not ready yet), the source loads, then all is ready. Stop: the source stops reading,
then the sinks say goodbye under a deadline, and the process ends with 0. Anything unexpected cancels everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from correlator import __version__, logs, metrics
from correlator.checkpoint import Checkpoint, Saved
from correlator.hub import Hub
from correlator.jobs.index import Index
from correlator.pipeline import Pipeline
from correlator.reload import Prepare, Reload
from correlator.saver import Saver
from correlator.settings import Config
from correlator.sinks import Sink
from correlator.sinks.door import Door
from correlator.sinks.http import HttpSink, Listener
from correlator.sinks.mqtt import MqttSink
from correlator.sinks.topics import Owed
from correlator.sources import zones
from correlator.sources.archive import DatabaseArchive
from correlator.sources.database import Database
from correlator.sources.doorbell import Doorbell
from correlator.sources.follow import Follower
from correlator.sources.lookup import Lookup
from correlator.sources.mariadb import Address, MariaDBDatabase
from correlator.sources.reconcile import Reconcile
from correlator.sources.sqlite import SQLiteDatabase
from correlator.sources.tail import Tail
from correlator.supervisor import Supervisor
from correlator.tls import client_context
from correlator.values import MysqlUrl, SqliteUrl

log = logging.getLogger(__name__)

DRAIN_WITHIN = 10.0
"""Seconds that the sinks have to say goodbye."""


async def run(
    config: Config,
    *,
    load: Callable[[], Config] | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Run the daemon until SIGTERM, SIGINT or cancellation. `on_ready` gets the base URL once everything is loaded.

    On SIGHUP, `load` gives the configuration to take over. Raises `CorrelatorError` for what an operator can mend (an
    address in use, a token file that is not there).
    """
    hang_up = (signal.SIGHUP,) if load is not None else ()  # else it ends us, as it should when a terminal closes
    with _told(signal.SIGTERM, signal.SIGINT) as stop, _told(*hang_up) as again:
        await _run(config, stop, again, load, on_ready)


async def _run(
    config: Config,
    stop: asyncio.Event,
    again: asyncio.Event,
    load: Callable[[], Config] | None,
    on_ready: Callable[[str], None] | None,
) -> None:
    following = _following(config)
    hub, pipeline = following.hub, following.pipeline
    checkpoint = Checkpoint(config.state.directory / "checkpoint.sqlite", str(config.database.url))
    saved = await _open(checkpoint)
    served: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    door = Door(config)
    mqtt = _mqtt(config, hub, saved)
    sinks: list[Sink] = [_http(config, door, served), *([mqtt] if mqtt is not None else [])]
    unacknowledged = mqtt.unacknowledged if mqtt is not None else dict
    saver = Saver(checkpoint, hub.index, following.tail.cursor, unacknowledged, hub.live)
    hub.parts["checkpoint"] = saver.describe
    pipeline.before_ready = saver.save
    supervisor = Supervisor(hub)
    metrics.BUILD.info(_build(following.database))
    log.info("correlator %s follows %s", __version__, config.database.url)
    async with asyncio.TaskGroup() as outer:
        running = [outer.create_task(sink.run(hub), name=type(sink).__name__) for sink in sinks]
        watching = outer.create_task(supervisor.run(), name="supervisor")
        if saved is not None:
            _go_on(saved, following)
        async with asyncio.TaskGroup() as inner:
            reading = [
                inner.create_task(following.source.run(pipeline), name="source"),
                inner.create_task(pipeline.run(), name="pipeline"),
                inner.create_task(saver.run(), name="saver"),
                inner.create_task(_announce(pipeline, served, supervisor, on_ready), name="announce"),
            ]
            if load is not None:
                reload = Reload(config, load, _live(following, door, mqtt))
                reading.append(inner.create_task(_reload(again, reload, supervisor), name="reload"))
            await stop.wait()
            log.info("stopping")
            supervisor.stops()
            for task in (*reading, watching):
                task.cancel()
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=DRAIN_WITHIN)
    await following.archive.close()
    if not hub.index.loading:
        await saver.save()  # with what the broker has acknowledged meanwhile
    await asyncio.to_thread(checkpoint.close)


async def _reload(again: asyncio.Event, reload: Reload, supervisor: Supervisor) -> None:
    """Reload whenever it is asked for."""
    while True:
        await again.wait()
        again.clear()
        ended = supervisor.reloads()
        await reload.run()
        ended()


def _live(following: Following, door: Door, mqtt: MqttSink | None) -> list[Prepare]:
    """Who takes over what of a new configuration; see `reload.LIVE`."""

    def values(new: Config) -> Callable[[], None]:
        def take() -> None:
            logs.configure(new.log.level, new.log.format, os.environ)
            following.hub.index.stalled_after = new.jobs.stalled_after
            if isinstance(following.database, MariaDBDatabase):
                following.database.log_in_with(new.database.password.reveal())
            if following.source.doorbell is not None:
                following.source.doorbell.database.log_in_with(new.database.password.reveal())
            if mqtt is not None:
                mqtt.log_in_with(new.mqtt)

        return take

    return [door.prepare, values]


def _build(database: Database) -> dict[str, str]:
    """What runs, for the metric."""
    return {
        "version": __version__,
        "python": platform.python_version(),
        "loop": type(asyncio.get_running_loop()).__module__.partition(".")[0],
        "driver": getattr(database, "driver_name", "sqlite3"),
    }


async def _open(checkpoint: Checkpoint) -> Saved | None:
    """What an earlier run left. A disk that cannot be read or written is no reason not to start."""
    try:
        return await asyncio.to_thread(checkpoint.open)
    except (sqlite3.Error, OSError) as error:
        log.warning("the checkpoint at %s cannot be used: %s; all is read from the tables", checkpoint.path, error)
        return None


def _go_on(saved: Saved, following: Following) -> None:
    """Show what an earlier run knew, and have the source resume where it was."""
    age = max(0.0, time.time() - saved.at)
    following.tail.resume(saved.cursor)
    following.pipeline.restore(saved.jobs, saved.legacy, saved.memory, age)
    log.info("going on from %.0f s ago, at row %d of the log", age, saved.cursor.head)


async def tap(config: Config, sink: Sink) -> None:
    """Follow the log with nothing but `sink`, until SIGTERM, SIGINT or cancellation. Serves nobody."""
    following = _following(config)
    with _told(signal.SIGTERM, signal.SIGINT) as stop:
        async with asyncio.TaskGroup() as group:
            running = [
                group.create_task(sink.run(following.hub), name=type(sink).__name__),
                group.create_task(following.source.run(following.pipeline), name="source"),
                group.create_task(following.pipeline.run(), name="pipeline"),
            ]
            await stop.wait()
            for task in running:
                task.cancel()
    await following.archive.close()


@dataclass(frozen=True, slots=True)
class Following:
    """What follows a database, and the hub that it feeds."""

    database: Database
    hub: Hub
    pipeline: Pipeline
    tail: Tail
    source: Follower
    archive: DatabaseArchive


def _following(config: Config) -> Following:
    """What follows the database that `config` names, and the hub that it feeds."""
    database = source_of(config)
    archive = DatabaseArchive(database, id_keys=config.jobs.external_id_keys, legacy=config.jobs.legacy)
    index = Index(
        id_keys=config.jobs.external_id_keys,
        stalled_after=config.jobs.stalled_after,
        retention=config.jobs.retention,
        max_jobs=config.jobs.max_jobs,
    )
    hub = Hub(index, archive)
    pipeline = Pipeline(hub)
    # A query may wait for two others on its session: each has its deadline.
    patience = config.database.connect_timeout + 3 * config.database.query_timeout + 30
    reconcile = Reconcile(
        interval=config.database.reconcile_interval,
        retention=config.jobs.retention,
        legacy=config.jobs.legacy,
        lookup=Lookup(config.jobs.external_id_keys),
        patience=patience,
    )
    hub.on_hold = reconcile.held
    tail = Tail(
        poll=config.database.poll_interval,
        idle_poll=config.database.idle_poll_interval,
        grace=config.database.gap_grace,
        patience=patience,
    )
    source = Follower(database, tail, reconcile, history=config.jobs.history, patience=patience)
    if config.database.doorbell and isinstance(url := config.database.url, MysqlUrl):
        source.doorbell = Doorbell(_mariadb(config, url, "aiomysql"), url.database)
        hub.parts["doorbell"] = source.doorbell.describe
    return Following(database, hub, pipeline, tail, source, archive)


def source_of(config: Config) -> Database:
    """The database that `config` names."""
    url, settings = config.database.url, config.database
    if isinstance(url, SqliteUrl):
        return SQLiteDatabase(url.path, zone=_zone(config), timeout=settings.query_timeout)
    return _mariadb(config, url, settings.driver)


def _zone(config: Config) -> zones.Zone | None:
    """The zone of DATETIME columns, where it is configured."""
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


def _http(config: Config, door: Door, served: asyncio.Future[str]) -> HttpSink:
    """`served` gets the base URL."""
    listen = config.http.listen
    return HttpSink(
        Listener(listen.host, listen.port, door.tls),
        door.access,
        retention=config.jobs.retention,
        max_subscriptions=config.http.max_subscriptions,
        on_ready=served.set_result,
    )


def _mqtt(config: Config, hub: Hub, saved: Saved | None) -> MqttSink | None:
    """The broker's sink, where one is configured, with the events that an earlier run still owed."""
    if config.mqtt.url is None:
        return None
    owed = [Owed(job_id, payload) for job_id, payload in (saved.events if saved is not None else ())]
    mqtt = MqttSink(config.mqtt, retention=config.jobs.retention, owed=owed)
    hub.parts["mqtt"] = mqtt.describe
    return mqtt


async def _announce(
    pipeline: Pipeline,
    served: asyncio.Future[str],
    supervisor: Supervisor,
    on_ready: Callable[[str], None] | None,
) -> None:
    await pipeline.ready.wait()
    url = await served
    supervisor.began()
    if on_ready is not None:
        on_ready(url)


@contextlib.contextmanager
def _told(*numbers: signal.Signals) -> Iterator[asyncio.Event]:
    """An event that these signals set, where this is the main thread."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    caught = []
    for number in numbers:
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, told.set)
            caught.append(number)
    try:
        yield told
    finally:
        for number in caught:
            loop.remove_signal_handler(number)
