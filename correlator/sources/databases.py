"""The database that a configuration names."""

from __future__ import annotations

from typing import Literal

from correlator.config.schema import Config, client_context
from correlator.config.values import MysqlUrl, SqliteUrl
from correlator.sources.db import zones
from correlator.sources.db.mariadb import Address, MariaDBDatabase
from correlator.sources.db.session import Database
from correlator.sources.db.sqlite import SQLiteDatabase


def database_of(config: Config) -> Database:
    """Build the `Database` that `config.database.url` names. Does not connect."""
    url, settings = config.database.url, config.database
    if isinstance(url, SqliteUrl):
        return SQLiteDatabase(url.path, zone=_zone(config), timeout=settings.query_timeout)
    return mariadb_of(config, url, settings.driver)


def _zone(config: Config) -> zones.Zone | None:
    """The configured time zone of the DATETIME columns; None: determined from the server."""
    name = config.database.timezone
    return None if name == "auto" else zones.named(name)


def mariadb_of(config: Config, url: MysqlUrl, driver: Literal["auto", "aiomysql", "asyncmy"]) -> MariaDBDatabase:
    """Build the MariaDB server at `url`, whose sessions use this driver. Does not connect."""
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
