"""Builds the source for the database of a configuration, and the pipeline and hub that it feeds. Nothing connects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from correlator.config.schema import Config
from correlator.config.tls import client_context
from correlator.config.values import MysqlUrl, SqliteUrl, titles
from correlator.jobs import sizes
from correlator.jobs.horizon import Horizon
from correlator.jobs.index import Index
from correlator.model.published import Titles
from correlator.pipeline.local_hub import LocalHub
from correlator.pipeline.pipeline import Pipeline
from correlator.sources.archive.archive import DatabaseArchive
from correlator.sources.db import zones
from correlator.sources.db.mariadb import Address, MariaDBDatabase
from correlator.sources.db.session import Database
from correlator.sources.db.sqlite import SQLiteDatabase
from correlator.sources.doorbell import Doorbell
from correlator.sources.follow import Follower
from correlator.sources.log.tail import Tail
from correlator.sources.tables.legacy import Legacy
from correlator.sources.tables.reconcile import Reconcile


@dataclass(frozen=True, slots=True)
class Following:
    """The source, and the pipeline and hub that it feeds."""

    database: Database
    hub: LocalHub
    pipeline: Pipeline
    tail: Tail
    source: Follower
    archive: DatabaseArchive


def following(config: Config, stalled_after: Callable[[], float]) -> Following:
    """Build the source for the database in `config`, and the pipeline and hub that it feeds.

    `stalled_after`: returns `jobs.stalled_after` as it is now, in seconds.
    """
    database = source_of(config)
    keep = (*config.jobs.external_id_keys, *sizes.KEPT_KEYS)
    limits = sizes.Sizes(metadata=int(config.jobs.max_metadata), error=int(config.jobs.max_error), keep=keep)
    archive = DatabaseArchive(database, id_keys=config.jobs.external_id_keys, legacy=config.jobs.legacy, limits=limits)
    index = Index(
        id_keys=config.jobs.external_id_keys,
        stalled_after=stalled_after,
        retention=config.jobs.retention,
        max_jobs=config.jobs.max_jobs,
        titles=Titles(titles(config.labels.operations), titles(config.labels.steps)),
        horizon=Horizon(read_to=0),
    )
    # Seconds without progress before a source is stuck: a query may wait for two others on its session.
    patience = config.database.connect_timeout + 3 * config.database.query_timeout + 30
    reconcile = Reconcile(
        interval=config.database.reconcile_interval,
        retention=config.jobs.retention,
        max_jobs=config.jobs.max_jobs,
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
    interval, keys = config.database.reconcile_interval, config.jobs.external_id_keys
    legacy = (
        Legacy(config.jobs.retention, keys, interval, patience, config.jobs.max_jobs) if config.jobs.legacy else None
    )
    source = Follower(
        database,
        tail,
        reconcile,
        history=config.jobs.history,
        patience=patience,
        legacy=legacy,
        limits=limits,
        in_cluster=config.cluster.url is not None,
    )
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
