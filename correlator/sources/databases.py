"""The database that a configuration names, and what wakes its readers."""

from __future__ import annotations

from correlator.config.schema import Config, client_context
from correlator.config.values import SqliteUrl
from correlator.sources.db import zones
from correlator.sources.db.mariadb import Address, MariaDBDatabase
from correlator.sources.db.session import Database
from correlator.sources.db.sqlite import SQLiteDatabase
from correlator.sources.doorbell import Doorbell


def database_of(config: Config) -> Database:
    """Build the `Database` that `config.database.url` names. Does not connect."""
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


def doorbell_of(config: Config, database: Database) -> Doorbell | None:
    """Build what wakes the tail by the binary log; None if it is not wanted, or if `database` has none."""
    return Doorbell(database) if config.database.doorbell and isinstance(database, MariaDBDatabase) else None
