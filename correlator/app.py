"""The composition root: it builds the daemon from the configuration, starts it and stops it in order.

No other file names concrete sources and sinks, but `sources.databases`, which also the doctor uses, and `standby`. The
sinks serve from the first moment, before the daemon is ready: a client that connects during a long start sees that in
readiness, and is not refused a connection. On a stop the source ends first, so that nothing changes while the sinks
close their connections under a deadline. `Term` has the order of both. An unexpected exception in any task cancels all
others and ends the process with an error.

What is not configured is not imported either: with all sinks the process is larger, and starts later.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from correlator import __version__
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
from correlator.failures.known import KnownFailures
from correlator.failures.patterns import Masks
from correlator.jobs import sizes
from correlator.jobs.exports import Exports
from correlator.jobs.horizon import Horizon
from correlator.jobs.index import Index
from correlator.model.published import Titles
from correlator.ops import event_loop, logs, memory
from correlator.pipeline.pipeline import LocalHub, Pipeline
from correlator.sinks import Sink
from correlator.sinks.event_log import EventLog
from correlator.sinks.http.server import ListenerConfig
from correlator.sinks.webhooks import WebhookSink
from correlator.sources.archive.archive import DatabaseArchive
from correlator.sources.databases import database_of, doorbell_of
from correlator.sources.db import identity
from correlator.sources.db.session import Database, closing
from correlator.sources.follow import Follower
from correlator.sources.tables.legacy import Legacy
from correlator.sources.tables.reconcile import Reconcile
from correlator.sources.tail import Tail
from correlator.state.checkpoint import Saved, StoredForecasts
from correlator.state.checkpoint_file import Checkpoint
from correlator.state.saver import Saver
from correlator.tasks import Backoff, TaskGroup, end_tasks, ends_before, set_by_signals

if TYPE_CHECKING:
    from correlator.in_cluster import InCluster
    from correlator.sinks.mqtt.sink import MqttSink
    from correlator.sinks.otlp.sink import OtlpSink


log = logging.getLogger(__name__)


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
        await run_terms(process)


async def run_terms(process: Process) -> None:
    """Run one term after the other: without a cluster there is one, else each ends with the loss of the lease."""
    if process.config.cluster.url is None:
        await Term(process).run()
        return
    # A daemon without a cluster loads nothing of it, and has no metrics of one.
    from correlator.in_cluster import InCluster, connected_lease  # noqa: PLC0415

    async with connected_lease(process.config.cluster) as lease:
        while not process.stop.is_set():
            await Term(process, InCluster(lease)).run()


class Term:
    """The daemon from its start to a stop, or to the loss of the lease, as stages: each needs those before it.

    What follows the `yield` of a stage ends it, so a stop ends the stages in reverse order. After an error none of that
    runs: the groups cancel all tasks and wait for them, the checkpoint stays as it was last written, and a standby
    takes the lease because this process is silent.
    """

    def __init__(self, process: Process, cluster: InCluster | None = None) -> None:
        """Build the index, the hub, the pipeline and the source. Nothing connects."""
        self._process, self._cluster = process, cluster
        refusal = cluster.refusal if cluster is not None else lambda: None
        self._core = core_of(process.config, lambda: process.config, refusal)
        self._supervisor = Supervisor(self._core.hub)
        self._saved: Saved | None = None
        """What the last run saved; after a takeover what the last active collector saved, if that is newer."""
        self._mqtt: MqttSink | None = None

    async def run(self) -> None:
        """Run until a stop, or until the lease is lost."""
        async with contextlib.AsyncExitStack() as stages:
            enter = stages.enter_async_context
            await enter(self._open_checkpoint())
            self._group = await enter(TaskGroup())
            await enter(self._serve())
            if not await enter(self._compare() if self._cluster is None else self._stand_by(self._cluster)):
                return
            await enter(self._publish())
            await enter(self._follow())
            await self._wait()

    @contextlib.asynccontextmanager
    async def _open_checkpoint(self) -> AsyncIterator[None]:
        """Lock and read the checkpoint, which fails if another process uses it. End: close what is open."""
        config = self._process.config
        self._checkpoint = Checkpoint(config.state.directory / "checkpoint.sqlite", str(config.database.url))
        self._saved = await _open(self._checkpoint)
        yield
        await self._core.archive.close()
        await asyncio.to_thread(self._checkpoint.close)
        gc.unfreeze()

    @contextlib.asynccontextmanager
    async def _serve(self) -> AsyncIterator[None]:
        """Serve, which ends the start of the unit: readiness reports that the daemon is loading. End: the listener."""
        config, core, create = self._process.config, self._core, self._group.create_task
        self._listener = ListenerConfig(config)
        http = self._listener.sink(self._supervisor.serves)
        self._parts: list[Prepare] = [self._listener.prepare, partial(_reloadable, core, None), *_checks(config)]
        report_build(core.database.driver)
        log.info("correlator %s follows %s", __version__, config.database.url)
        self._serving = {create(http.run(core.hub), name=type(http).__name__)}
        self._watching = {
            create(self._supervisor.run(self._process.beat), name="supervisor"),
            create(event_loop.heartbeat(), name="heartbeat"),
            create(memory.return_free_memory(), name="memory"),
        }
        yield
        await end_tasks(self._watching | self._serving, again=DRAIN_WITHIN)

    @contextlib.asynccontextmanager
    async def _compare(self) -> AsyncIterator[bool]:
        """Set the checkpoint aside if it is of another database. False: a stop came while no database answered."""
        saved, source, compared = self._saved, str(self._process.config.database.url), True
        if saved is not None:
            comparing = self._group.create_task(_is_followed(self._core, saved, source), name="database")
            if not (compared := await ends_before(comparing, self._process.stop)):
                self._supervisor.stops()
                await end_tasks({comparing})
            elif not comparing.result():
                await asyncio.to_thread(self._checkpoint.set_aside, f"it is of the database at {saved.source}")
                self._saved = None
        yield compared

    @contextlib.asynccontextmanager
    async def _stand_by(self, cluster: InCluster) -> AsyncIterator[bool]:
        """Wait until this process holds the lease. False: a stop came first. End: hand the lease over.

        Nothing queries the database until then.
        """
        process, core, create = self._process, self._core, self._group.create_task
        standing_by = cluster.stand_by(process.config, core.database, core.hub, self._supervisor.served, self._group)
        waiting = create(standing_by, name="standby")
        reloading = create(reload_on_request(process, self._supervisor, self._parts), name="reload")
        if not (active := await ends_before(waiting, process.stop)):
            self._supervisor.stops()
        await end_tasks({waiting, reloading})
        if active:
            self._saved = cluster.newest(self._saved)
            if cluster.saved is not None:
                core.source.expect(cluster.saved.cursor.sample)
            self._holding = create(cluster.lease.hold(cluster.report), name="lease")
        yield active
        if active:
            await end_tasks({self._holding})
        await cluster.lease.release(cluster.report())  # Where a stop came first, it may have been taken just now.

    @contextlib.asynccontextmanager
    async def _publish(self) -> AsyncIterator[None]:
        """Publish what the last run knew, marked stale, before the database answers. End: the sinks, then the saver.

        The sinks close their connections; those that take longer than the deadline are cancelled again. The checkpoint
        is written after that, because the peers may have acknowledged events. In a cluster the listener serves until
        the lease has been handed over.
        """
        config, core, saved, cluster = self._process.config, self._core, self._saved, self._cluster
        hub = core.hub
        event_log = EventLog(saved.events if saved is not None else ())
        self._mqtt = mqtt = _mqtt_sink(config, event_log)
        otlp = _otlp_sink(config, saved)
        webhooks = WebhookSink(config, event_log)
        of_cluster = cluster.sinks(config, hub, saved, event_log) if cluster is not None else ()
        sinks: list[Sink] = [webhooks, *(sink for sink in (mqtt, otlp) if sink is not None), *of_cluster]
        self._parts = [self._listener.prepare, partial(_reloadable, core, mqtt), webhooks.prepare]
        self._parts += [otlp.prepare] if otlp is not None else []
        stored = StoredForecasts(hub.forecasts)
        self._saver = Saver(
            checkpoint=self._checkpoint,
            index=hub.index,
            forecasts=stored,
            cursor=core.tail.cursor,
            events=event_log,
            live=hub.live,
            exports=otlp.exports if otlp is not None else None,
            stream=cluster.stream if cluster is not None else None,
            position=cluster.position if cluster is not None else lambda: None,
        )
        hub.readiness["checkpoint"] = self._saver.describe
        publishing = {self._group.create_task(sink.run(hub), name=type(sink).__name__) for sink in sinks}
        if saved is not None:
            if saved.forecasts is not None and time.time() - saved.at <= config.jobs.retention:
                stored.restore(saved.forecasts)  # After a longer stop the history is read again.
            await _restore(saved, core)
        yield
        await end_tasks(publishing if cluster is not None else publishing | self._serving, again=DRAIN_WITHIN)
        await self._saver.finish()

    @contextlib.asynccontextmanager
    async def _follow(self) -> AsyncIterator[None]:
        """Read the tables and the log. End: the source and the tasks around it; nothing changes from then on."""
        process, supervisor, pipeline, saver = self._process, self._supervisor, self._core.pipeline, self._saver
        # After a takeover there is a checkpoint in the cluster already, so readiness does not wait for the file.
        begin = saver.begin if self._cluster is None or self._cluster.saved is None else None
        async with TaskGroup() as group:
            reading = {
                group.create_task(self._core.source.run(pipeline), name="source"),
                group.create_task(pipeline.run(before_ready=begin), name="pipeline"),
                group.create_task(saver.run(), name="saver"),
                group.create_task(announce(process, supervisor, pipeline.ready), name="announce"),
                group.create_task(reload_on_request(process, supervisor, self._parts), name="reload"),
            }
            yield
            await end_tasks(reading | self._watching)

    async def _wait(self) -> None:
        """Wait for a stop, or for the loss of the lease. The service manager hears of the former."""
        stop = self._process.stop
        lost = self._cluster is not None and await ends_before(self._holding, stop)
        if not lost:
            await stop.wait()
        log.info("becoming the standby" if lost else "stopping")
        if not lost:
            self._supervisor.stops()
        elif self._mqtt is not None:
            self._mqtt.supersede()


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


def core_of(config: Config, current: Callable[[], Config], refusal: Callable[[], str | None] = lambda: None) -> Core:
    """Build the core for the database in `config`. Nothing connects.

    `current`: returns the configuration as it is now. `refusal`: returns why nothing is served now, and the database
    is not asked; None: it is.
    """
    database = database_of(config)
    keep = (*config.jobs.external_id_keys, *sizes.KEPT_KEYS)
    limits = sizes.Sizes(metadata=int(config.jobs.max_metadata), error=int(config.jobs.max_error), keep=keep)
    archive = DatabaseArchive(
        database, id_keys=config.jobs.external_id_keys, legacy=config.jobs.legacy, limits=limits, refusal=refusal
    )
    index = Index(
        id_keys=config.jobs.external_id_keys,
        stalled_after=lambda: current().jobs.stalled_after,
        retention=config.jobs.retention,
        max_jobs=config.jobs.max_jobs,
        titles=Titles(titles(config.labels.operations), titles(config.labels.steps)),
        horizon=Horizon(read_to=0),
        masks=Masks(config.failures.masks),
    )
    reconcile = Reconcile(
        interval=config.database.reconcile_interval,
        retention=config.jobs.retention,
        max_jobs=config.jobs.max_jobs,
    )
    hub = LocalHub(
        index,
        archive,
        on_watch=reconcile.on_watch,
        refusal=refusal,
        known_failures=lambda: KnownFailures(current().failures.notes),
    )
    pipeline = Pipeline(hub, max_error=limits.error)
    tail = Tail(
        poll=config.database.poll_interval,
        idle_poll=config.database.idle_poll_interval,
    )
    interval, keys = config.database.reconcile_interval, config.jobs.external_id_keys
    legacy = Legacy(config.jobs.retention, keys, interval, config.jobs.max_jobs) if config.jobs.legacy else None
    if (doorbell := doorbell_of(config, database)) is not None:
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
        core.database.log_in_with(new.database.password.reveal())
        if mqtt is not None:
            mqtt.set_credentials(new.mqtt)

    return apply


async def tap(config: Config, sink: Sink) -> None:
    """Follow the log with `sink` as the only sink, until SIGTERM, SIGINT or cancellation. Opens no listener."""
    core = core_of(config, lambda: config)
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
