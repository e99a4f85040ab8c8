"""The tables in MariaDB. Connections of our own, autocommit, read only, each call under a deadline; no pool.

The driver is a seam: aiomysql by default, asyncmy where it is installed. Both default to autocommit off and
REPEATABLE READ, under which a tail sees nothing new, and neither has a read timeout: all three are set here, and what
a session is like is looked at before it is used. Texts come as bytes and are decoded here: MariaDB takes half a
surrogate for utf8mb4 and drivers do not, so that one row would stop every read that meets it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from ipaddress import ip_address
from typing import Any, Literal

from correlator.errors import SourceUnavailable
from correlator.sources import zones
from correlator.sources.database import TABLES, Dialect, Row, Schema, Session
from correlator.sources.zones import Zone


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server is and who asks. `password` never shows."""

    host: str = "127.0.0.1"
    port: int = 3306
    user: str = "correlator"
    password: str = ""
    database: str = "migratekit_oma"
    unix_socket: str = ""
    tls: ssl.SSLContext | None = None

    def __repr__(self) -> str:
        return f"{self.user}@{self.unix_socket or f'{self.host}:{self.port}'}/{self.database}"

    @property
    def here(self) -> bool:
        """Whether the server runs on this machine."""
        if self.unix_socket or self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False


class MariaDBSession:
    """One connection. Satisfies `correlator.sources.database.Session`."""

    def __init__(self, connection: Any, timeout: float) -> None:
        self._connection = connection
        self._timeout = timeout
        self._lock = asyncio.Lock()

    async def query(self, sql: str, args: Sequence[object] = ()) -> Sequence[Row]:
        async with self._lock:
            if self._connection is None:
                raise SourceUnavailable("MariaDB: the connection is closed")
            try:
                async with asyncio.timeout(self._timeout), self._connection.cursor() as cursor:
                    await cursor.execute(sql, tuple(args) or None)
                    return _decoded(await cursor.fetchall())
            except TimeoutError as error:
                self._drop()
                raise SourceUnavailable(f"MariaDB: no answer within {self._timeout:g} s") from error
            except asyncio.CancelledError:
                # The answer may still come: on this connection the next query would read it as its own.
                self._drop()
                raise
            except Exception as error:
                self._drop()
                raise SourceUnavailable(f"MariaDB: {_words(error)}") from error

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.close()

    async def close(self) -> None:
        self._drop()


class MariaDBDatabase:
    """`zone`: of the DATETIME columns; None finds it out. `driver`: aiomysql, asyncmy, or auto."""

    dialect = Dialect(
        placeholder="%s",
        local_micros="TIMESTAMPDIFF(MICROSECOND, '1970-01-01', {})",
        utc_micros="CAST(UNIX_TIMESTAMP({}) * 1000000 AS SIGNED)",
        clock="SELECT CAST(UTC_TIMESTAMP() - INTERVAL {back} SECOND AS CHAR)",
    )

    def __init__(
        self,
        address: Address,
        *,
        zone: Zone | None = None,
        connect_timeout: float = 5.0,
        query_timeout: float = 10.0,
        driver: Literal["auto", "aiomysql", "asyncmy"] = "auto",
    ) -> None:
        self._address = address
        self._zone = zone
        self._connect_timeout = connect_timeout
        self._query_timeout = query_timeout
        self._driver, self.driver_name = load_driver(driver)

    def log_in_with(self, password: str) -> None:
        """The password from the next connection on."""
        self._address = replace(self._address, password=password)

    async def open(self, *, dirty: bool = False) -> MariaDBSession:
        a = self._address
        where: dict[str, Any] = {"unix_socket": a.unix_socket} if a.unix_socket else {"host": a.host, "port": a.port}
        try:
            async with asyncio.timeout(self._connect_timeout):
                connection = await self._driver.connect(
                    **where,
                    user=a.user,
                    password=a.password,
                    db=a.database,
                    charset="utf8mb4",
                    use_unicode=False,
                    autocommit=True,
                    ssl=a.tls,
                    connect_timeout=self._connect_timeout,
                )
        except TimeoutError as error:
            raise SourceUnavailable(f"MariaDB at {a}: no connection within {self._connect_timeout:g} s") from error
        except Exception as error:
            no_tls = getattr(error.__cause__, "reason", None) == "WRONG_VERSION_NUMBER"
            raise SourceUnavailable(f"MariaDB at {a}: {_NO_TLS if no_tls else _words(error)}") from error
        session = MariaDBSession(connection, self._query_timeout)
        await self._prepare(session, "READ UNCOMMITTED" if dirty else "READ COMMITTED")
        return session

    async def _prepare(self, session: MariaDBSession, level: str) -> None:
        for statement in (
            # The deadline of the server comes a little before ours: it then ends the statement, not the connection.
            f"SET SESSION max_statement_time = {self._query_timeout * 0.9:.3f}, lock_wait_timeout = 5",
            "SET SESSION time_zone = '+00:00', wait_timeout = 28800, sql_mode = ''",
            f"SET SESSION TRANSACTION ISOLATION LEVEL {level}",
            "SET SESSION TRANSACTION READ ONLY",
        ):
            await session.query(statement)
        found: dict[str, str] = dict(
            await session.query(
                # From 11.1 on both spellings of two of them are there, before that one.
                "SHOW SESSION VARIABLES WHERE Variable_name IN ('autocommit',"
                " 'tx_isolation', 'transaction_isolation', 'tx_read_only', 'transaction_read_only')"
            )
        )
        wrong = {k: v for k, v in found.items() if v not in ("ON", "1", level.replace(" ", "-"))}
        if wrong or not found:
            await session.close()
            raise SourceUnavailable(f"MariaDB at {self._address}: sessions do not stay as they are set: {wrong}")
        if self._address.tls is not None:
            # Where a server offers no TLS, aiomysql goes on in the clear without a word.
            cipher = await session.query("SHOW SESSION STATUS LIKE 'Ssl_cipher'")
            if not cipher or not cipher[0][1]:
                await session.close()
                raise SourceUnavailable(f"MariaDB at {self._address}: {_NO_TLS}")

    async def schema(self, session: Session) -> Schema:
        marks = ",".join(["%s"] * len(TABLES))
        rows = await session.query(
            "SELECT table_name, column_name, data_type FROM information_schema.columns"
            f" WHERE table_schema = DATABASE() AND table_name IN ({marks})",
            tuple(TABLES),
        )
        found: dict[str, dict[str, str]] = {table: {} for table in TABLES}
        for table, column, kind in rows:
            found[table.lower()][column.lower()] = kind.lower()
        return Schema(found)

    async def zone(self, session: Session) -> Zone:
        """As configured; else this host's, if the server is here and its offset is ours; else the server's offset."""
        if self._zone is not None:
            return self._zone
        # In one statement: the session's own time zone stays what others on it rely on.
        rows = await session.query(
            "SELECT TIMESTAMPDIFF(SECOND, UTC_TIMESTAMP(), CONVERT_TZ(UTC_TIMESTAMP(), '+00:00', @@global.time_zone))"
        )
        offset = round(int(rows[0][0] or 0) / 900) * 900
        if self._address.here and offset == zones.host_offset():
            return zones.host()
        return zones.fixed(offset)

    async def reset_signs(self, session: Session) -> tuple[int, float]:
        rows = await session.query(
            "SELECT AUTO_INCREMENT FROM information_schema.tables"
            " WHERE table_schema = DATABASE() AND table_name = 'log_events'"
        )
        uptime = await session.query("SHOW GLOBAL STATUS LIKE 'Uptime'")
        return (int(rows[0][0] or 0) if rows else 0), float(uptime[0][1]) if uptime else 0.0


def load_driver(name: str) -> tuple[Any, str]:
    """The driver's module and its name. Raises `SourceUnavailable` if it is asked for and not installed."""
    for candidate in ("asyncmy", "aiomysql") if name == "auto" else (name,):
        try:
            return import_module(candidate), candidate
        except ImportError:
            continue
    raise SourceUnavailable(f"database.driver = {name!r} is not installed: pip install {name}, or set it to 'auto'")


def _decoded(rows: Sequence[Row]) -> Sequence[Row]:
    """`rows` with texts for bytes. Column by column, as all values of one are of a kind, or None: twice as fast."""
    return list(zip(*map(_column, zip(*rows, strict=True)), strict=True))


def _column(values: Row) -> Row:
    if isinstance(next((v for v in values if v is not None), None), bytes):
        return tuple([None if v is None else v.decode("utf-8", "replace") for v in values])
    return values


_NO_TLS = "database.tls is set, but the server offers no TLS"


def _words(error: BaseException) -> str:
    """An error of the driver in one line, without the class and tuple around it, but with its cause."""
    args: Sequence[Any] = error.args
    words = f"{args[1]} ({args[0]})" if len(args) >= 2 and isinstance(args[0], int) else str(error)
    cause = str(error.__cause__ or "")
    return (words if cause in words else f"{words}: {cause}") or type(error).__name__
