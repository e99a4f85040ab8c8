"""The composition root: the only file that names concrete sources and sinks, and the order of start and stop.

Start: the sinks serve at once (not ready yet), the source loads, then all is ready. Stop: the source stops reading,
then the sinks say goodbye under a deadline, and the process ends with 0. Anything unexpected cancels everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sqlite3
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from correlator import __version__, systemd
from correlator.checkpoint import Checkpoint, Saved
from correlator.config import read_tokens
from correlator.hub import Hub
from correlator.jobs.index import Index
from correlator.pipeline import Pipeline
from correlator.saver import Saver
from correlator.settings import Config
from correlator.sinks import Sink
from correlator.sinks.access import Access
from correlator.sinks.http import HttpSink, Listener
from correlator.sinks.mqtt import MqttSink
from correlator.sinks.topics import Owed
from correlator.sources import zones
from correlator.sources.archive import DatabaseArchive
from correlator.sources.database import Database
from correlator.sources.follow import Follower
from correlator.sources.lookup import Lookup
from correlator.sources.mariadb import Address, MariaDBDatabase
from correlator.sources.reconcile import Reconcile
from correlator.sources.sqlite import SQLiteDatabase
from correlator.sources.tail import Tail
from correlator.tls import client_context
from correlator.values import SqliteUrl

log = logging.getLogger(__name__)

DRAIN_WITHIN = 10.0
"""Seconds that the sinks have to say goodbye."""


async def run(config: Config, *, on_ready: Callable[[str], None] | None = None) -> None:
    """Run the daemon until SIGTERM, SIGINT or cancellation. `on_ready` gets the base URL once everything is loaded.

    Raises `CorrelatorError` for what an operator can mend (an address in use, a token file that is not there).
    """
    following = _following(config)
    hub, pipeline = following.hub, following.pipeline
    checkpoint = Checkpoint(config.state.directory / "checkpoint.sqlite", str(config.database.url))
    saved = await _open(checkpoint)
    served: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    sinks = list(sinks_of(config, hub, served, saved.events if saved is not None else ()))
    mqtt = next((sink for sink in sinks if isinstance(sink, MqttSink)), None)
    saver = Saver(checkpoint, hub.index, following.tail.cursor, mqtt.unacknowledged if mqtt is not None else dict)
    hub.parts["checkpoint"] = saver.describe
    pipeline.before_ready = saver.save
    log.info("correlator %s follows %s", __version__, config.database.url)
    with _told_to_stop() as stop:
        async with asyncio.TaskGroup() as outer:
            running = [outer.create_task(sink.run(hub), name=type(sink).__name__) for sink in sinks]
            if saved is not None:
                _go_on(saved, following)
            async with asyncio.TaskGroup() as inner:
                reading = [
                    inner.create_task(following.source.run(pipeline), name="source"),
                    inner.create_task(pipeline.run(), name="pipeline"),
                    inner.create_task(saver.run(), name="saver"),
                    inner.create_task(_announce(pipeline, served, on_ready), name="announce"),
                ]
                await stop.wait()
                log.info("stopping")
                systemd.notify("STOPPING=1", os.environ)
                for task in reading:
                    task.cancel()
            for task in running:
                task.cancel()
            await asyncio.wait(running, timeout=DRAIN_WITHIN)
        await following.archive.close()
        if not hub.index.loading:
            await saver.save()  # with what the broker has acknowledged meanwhile
        await asyncio.to_thread(checkpoint.close)


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
    with _told_to_stop() as stop:
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
    reconcile = Reconcile(
        interval=config.database.reconcile_interval,
        retention=config.jobs.retention,
        legacy=config.jobs.legacy,
        lookup=Lookup(config.jobs.external_id_keys),
    )
    hub.on_hold = reconcile.held
    tail = Tail(
        poll=config.database.poll_interval,
        idle_poll=config.database.idle_poll_interval,
        grace=config.database.gap_grace,
    )
    source = Follower(database, tail, reconcile, history=config.jobs.history)
    return Following(hub, pipeline, tail, source, archive)


def source_of(config: Config) -> Database:
    """The database that `config` names."""
    url, settings = config.database.url, config.database
    zone = None if settings.timezone == "auto" else zones.named(settings.timezone)
    if isinstance(url, SqliteUrl):
        return SQLiteDatabase(url.path, zone=zone, timeout=settings.query_timeout)
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
        zone=zone,
        connect_timeout=settings.connect_timeout,
        query_timeout=settings.query_timeout,
        driver=settings.driver,
    )


def sinks_of(
    config: Config, hub: Hub, served: asyncio.Future[str], events: Iterable[tuple[str, bytes]] = ()
) -> Iterator[Sink]:
    """What `config` wants served. `served` gets the base URL; `events` are those that an earlier run still owed."""
    http = config.http
    access = Access(
        listen_host=http.listen.host,
        clock=time.monotonic,
        tokens=read_tokens(config),
        origins=http.allowed_origins,
        hosts=http.allowed_hosts,
        max_readers=http.max_readers,
        max_per_address=http.max_readers_per_address,
    )
    tls = None
    if http.tls_cert is not None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(http.tls_cert, http.tls_key)
    yield HttpSink(
        Listener(http.listen.host, http.listen.port, tls),
        access,
        retention=config.jobs.retention,
        max_subscriptions=http.max_subscriptions,
        on_ready=served.set_result,
    )
    if config.mqtt.url is not None:
        owed = [Owed(job_id, payload) for job_id, payload in events]
        mqtt = MqttSink(config.mqtt, retention=config.jobs.retention, owed=owed)
        hub.parts["mqtt"] = mqtt.describe
        yield mqtt


async def _announce(pipeline: Pipeline, served: asyncio.Future[str], on_ready: Callable[[str], None] | None) -> None:
    await pipeline.ready.wait()
    url = await served
    systemd.notify("READY=1", os.environ)
    if on_ready is not None:
        on_ready(url)


@contextlib.contextmanager
def _told_to_stop() -> Iterator[asyncio.Event]:
    """An event that SIGTERM and SIGINT set, where this is the main thread."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    caught = []
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, stop.set)
            caught.append(number)
    try:
        yield stop
    finally:
        for number in caught:
            loop.remove_signal_handler(number)
