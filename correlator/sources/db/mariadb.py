"""The tables in MariaDB: single connections without a pool, autocommit, read only, every call under a deadline.

The driver is aiomysql or asyncmy, whichever is installed. Both default to autocommit off and REPEATABLE READ, under
which a tail sees nothing new, and neither has a read timeout: this module sets all three, and checks the session before
it is used. Texts arrive as bytes and are decoded here: MariaDB accepts a lone surrogate as utf8mb4 and drivers do not,
so that one such row would make every read fail that returns it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Literal

from correlator.config.values import is_loopback
from correlator.errors import Away, ForeignListener, SourceUnavailable, drop_frames
from correlator.model.rows import Int64
from correlator.pipeline.database_errors import fault_of
from correlator.sources.db import login
from correlator.sources.db.login import Driver, NotMariaDB, Terms, UnsafeLogin
from correlator.sources.db.session import (
    TABLES,
    Dialect,
    Replication,
    Row,
    Schema,
    Session,
    closing,
    in_parts,
    number,
    query_failed,
    row_of,
    rows_of,
)
from correlator.sources.db.zones import Offset, ServerZone, Zone
from correlator.tasks import keeping_cancellation

MAX_KILLS = 100
"""Most abandoned connections that wait for their KILL."""

KILL_WITHIN = 5.0
"""Seconds to kill all of them."""

MONITORED_EVERY = 60.0
"""Seconds until an account that may not see the delay of a replica is asked again."""

MAX_MESSAGE = 512
"""Characters of an error's text: no server writes more (MYSQL_ERRMSG_SIZE)."""

_SECONDS_BEHIND = 32
"""The column Seconds_Behind_Master of SHOW REPLICA STATUS. A driver's rows have no names."""


@dataclass(frozen=True, slots=True)
class Address:
    """The server, the account and the database. `repr` hides the password."""

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
        """True if the server runs on this machine."""
        return bool(self.unix_socket) or is_loopback(self.host)


class MariaDBSession:
    """One connection. Satisfies `correlator.sources.db.session.Session`.

    `abandon(thread_id)` kills a query whose result is no longer needed: a server that scans a table does not notice
    that its client has closed the connection.
    """

    def __init__(self, connection: Any, timeout: float, abandon: Callable[[int], None] = lambda _: None) -> None:
        self.connection = connection
        """The driver's connection; None after a failure and when the session is closed."""
        self._timeout = timeout
        self._abandon = abandon
        self._lock = asyncio.Lock()

    async def query(self, sql: str, args: Sequence[object] = ()) -> Sequence[Row]:
        async with self._lock:
            if self.connection is None:
                raise SourceUnavailable("MariaDB: the connection is closed")
            try:
                async with asyncio.timeout(self._timeout):
                    rows = await keeping_cancellation(_execute(self.connection, sql, args))
                return await in_parts(rows, _decoded)
            except TimeoutError as error:
                self._drop(running=True)
                raise query_failed(f"MariaDB: no answer within {self._timeout:g} s", Away.NO_ANSWER, sql) from error
            except asyncio.CancelledError:
                # The answer may still arrive: the next query on this connection would read it as its own.
                self._drop(running=True)
                raise
            except Exception as error:
                reason, meaning = _kind(error)
                if reason is not Away.SLOW:  # With that error, the server has ended the statement only.
                    self._drop()
                raise query_failed(f"MariaDB: {_message(error)}", reason, sql, meaning) from error

    def _drop(self, *, running: bool = False) -> None:
        connection, self.connection = self.connection, None
        if connection is None:
            return
        with contextlib.suppress(Exception):
            if running:
                self._abandon(int(connection.thread_id()))
        with contextlib.suppress(Exception):
            connection.close()

    async def close(self) -> None:
        self._drop()


class MariaDBDatabase:
    """Satisfies `Database`.

    Args:
        address: The server.
        zone: The zone of DATETIME columns; None detects it.
        connect_timeout: Seconds to connect and log in.
        query_timeout: Seconds for one query.
        driver: aiomysql or asyncmy; auto prefers asyncmy if it is installed.
        connect: Opens a connection of the driver, and logs in.
    """

    dialect = Dialect(
        placeholder="%s",
        local_micros="TIMESTAMPDIFF(MICROSECOND, '1970-01-01', {})",
        utc_micros="CAST(NULLIF(UNIX_TIMESTAMP({}), 0) * 1000000 AS SIGNED)",  # a zero date is none
        clock="SELECT CAST(UTC_TIMESTAMP(6) - INTERVAL {back} SECOND AS CHAR)",
        # The server's own zone, whatever that of the session is.
        offset="CAST(ROUND(COALESCE(TIMESTAMPDIFF(SECOND, UTC_TIMESTAMP(),"
        " CONVERT_TZ(UTC_TIMESTAMP(), '+00:00', @@global.time_zone)), 0) / 900) * 900 AS SIGNED)",
        json_text="JSON_VALUE({column}, '{path}')",
        size="LENGTH({})",
        member="JSON_EXTRACT({}, {})",
        matches="BINARY {} REGEXP %s",
        joined="CONCAT({}, {})",
        briefly="SET STATEMENT max_statement_time = {seconds} FOR ",
        last_changes="SELECT table_name, update_time, TIMESTAMPDIFF(SECOND, update_time, NOW())"
        " FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name IN ({tables})",
    )

    def __init__(
        self,
        address: Address,
        *,
        zone: Zone | None = None,
        connect_timeout: float = 5.0,
        query_timeout: float = 10.0,
        driver: Literal["auto", "aiomysql", "asyncmy"] = "auto",
        connect: Callable[..., Awaitable[Any]] = login.connect,
    ) -> None:
        self.address = address
        self._zone = zone
        self._server_zone = ServerZone(here=address.here)
        self._connect_timeout = connect_timeout
        self._query_timeout = query_timeout
        self._open_connection = connect
        self.driver: Driver = installed_driver(driver)
        self._to_kill: set[int] = set()
        self._killing: asyncio.Task[None] | None = None
        self._monitored_again = -math.inf
        """When the account is asked again whether it may see the delay of a replica, in monotonic seconds."""

    def log_in_with(self, password: str) -> None:
        """Use this password from the next connection on."""
        self.address = replace(self.address, password=password)

    async def open(self, *, dirty: bool = False) -> MariaDBSession:
        return await self._open(self.driver, "READ UNCOMMITTED" if dirty else "READ COMMITTED")

    async def open_with_aiomysql(self) -> MariaDBSession:
        """A session whose connection is aiomysql's, whatever the driver is."""
        return await self._open(installed_driver("aiomysql"), "READ COMMITTED")

    async def _open(self, driver: Driver, level: str) -> MariaDBSession:
        connection = await self._connect(driver)
        session = MariaDBSession(connection, self._query_timeout, self._abandon)
        try:
            with login.naming(connection):
                await self._prepare(session, level)
        except NotMariaDB as error:
            raise self._failed(error) from error
        except SourceUnavailable:
            await session.close()
            raise
        return session

    def _abandon(self, thread_id: int) -> None:
        """Let the server kill this connection of ours soon. If it cannot be reached, the request is dropped."""
        if len(self._to_kill) < MAX_KILLS:
            self._to_kill.add(thread_id)
        if self._killing is None or self._killing.done():
            self._killing = asyncio.create_task(self._kill())

    async def _kill(self) -> None:
        """Kill all abandoned connections over a new one. An account may always kill its own connections."""
        try:
            async with asyncio.timeout(KILL_WITHIN):
                connection = await self._connect(self.driver)
                try:
                    while self._to_kill:
                        thread_id = self._to_kill.pop()  # before anything can fail: each turn makes one less
                        with contextlib.suppress(Exception):  # it has ended already
                            await keeping_cancellation(_execute(connection, f"KILL {thread_id}"))
                finally:
                    with contextlib.suppress(Exception):
                        connection.close()
        except (TimeoutError, SourceUnavailable):
            self._to_kill.clear()

    async def _connect(self, driver: Driver) -> Any:
        a = self.address
        where: dict[str, Any] = {"unix_socket": a.unix_socket} if a.unix_socket else {"host": a.host, "port": a.port}
        try:
            async with asyncio.timeout(self._connect_timeout):
                connecting = self._open_connection(
                    driver,
                    Terms(a.tls, unix_socket=bool(a.unix_socket), password=bool(a.password)),
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
                return await keeping_cancellation(connecting, lambda connection: connection.close())
        except TimeoutError as error:
            detail = f"MariaDB at {a}: no connection within {self._connect_timeout:g} s"
            raise SourceUnavailable(detail, Away.NO_ANSWER) from error
        except Exception as error:
            failed = self._failed(error)
            drop_frames(error)  # They refer to the connection that was tried, which has the error.
            raise failed from error

    def _failed(self, error: Exception) -> SourceUnavailable:
        reason, meaning = _kind(error)
        return SourceUnavailable(f"MariaDB at {self.address}: {_message(error)}", reason, meaning=meaning)

    async def _prepare(self, session: MariaDBSession, level: str) -> None:
        # The server's deadlines are shorter than ours: it then ends the statement, not the connection. The one for
        # locks is the shortest: its error names the lock. A driver that receives a warning queries and prints its text.
        # A limit of rows would cut every answer without a word, and another character set damage texts and IDs.
        await session.query(
            f"SET SESSION max_statement_time = {self._query_timeout * 0.9:.3f},"
            f" lock_wait_timeout = {max(1, int(self._query_timeout / 2))},"
            " time_zone = '+00:00', wait_timeout = 28800, sql_mode = '', max_error_count = 0,"
            f" sql_select_limit = {(1 << 64) - 1}, sql_big_selects = 1, NAMES utf8mb4 COLLATE utf8mb4_general_ci"
        )
        await session.query(f"SET SESSION TRANSACTION ISOLATION LEVEL {level}, READ ONLY")
        found = dict(
            await rows_of(
                session,
                tuple[str, str],
                # From 11.1 on, two of them exist in both spellings; before that, in one.
                "SHOW SESSION VARIABLES WHERE Variable_name IN ('autocommit',"
                " 'tx_isolation', 'transaction_isolation', 'tx_read_only', 'transaction_read_only')",
            )
        )
        wrong = {k: v for k, v in found.items() if v not in ("ON", "1", level.replace(" ", "-"))}
        if wrong or not found:
            await session.close()
            detail = f"MariaDB at {self.address}: sessions do not stay as they are set: {wrong}"
            raise SourceUnavailable(detail, Away.FAILED)

    async def schema(self, session: Session) -> Schema:
        rows = await rows_of(
            session,
            tuple[str, str, str],
            "SELECT table_name, column_name, data_type FROM information_schema.columns"
            f" WHERE table_schema = DATABASE() AND table_name IN ({', '.join(map(repr, TABLES))})",
        )
        found: dict[str, dict[str, str]] = {table: {} for table in TABLES}
        for table, column, kind in rows:
            found.setdefault(table.lower(), {})[column.lower()] = kind.lower()
        return Schema(found)

    async def connections(self, session: Session) -> int:
        return max(0, (await row_of(session, tuple[Int64], "SELECT @@SESSION.max_user_connections"))[0])

    async def zone(self, session: Session) -> Zone:
        """The configured zone; else this host's if the server runs here with its offset; else the server's offset."""
        if self._zone is not None:
            return self._zone
        self._server_zone.observe(await self.offset(session))
        return self._server_zone

    async def offset(self, session: Session) -> int:
        """Seconds east of UTC of the server's own zone, now: quarters of an hour."""
        return (await row_of(session, tuple[Offset], f"SELECT {self.dialect.offset}"))[0]

    async def replication(self, session: Session) -> Replication | None:
        """What any account may see, and the delay if the account has REPLICA MONITOR. That is asked on a session of
        its own, because a refused statement ends one; after a refusal again a minute later.
        """
        found = dict(
            await rows_of(
                session,
                tuple[str, str],
                "SHOW GLOBAL STATUS WHERE Variable_name IN"
                " ('Slave_heartbeat_period', 'Slave_running', 'Slaves_running')",
            )
        )
        period = found.get("Slave_heartbeat_period") or 0  # that of the connection without a name
        is_set_up = number(period, "Slave_heartbeat_period") > 0
        if not is_set_up and found.get("Slaves_running", "0") == "0":
            return None
        running = found.get("Slave_running") == "ON" if is_set_up else True
        if time.monotonic() < self._monitored_again:
            return Replication(running)
        try:
            async with closing(self.open()) as own:
                rows = await own.query("SHOW REPLICA STATUS")
        except SourceUnavailable as error:
            if error.reason is Away.MISSING_GRANTS:
                self._monitored_again = time.monotonic() + MONITORED_EVERY
            return Replication(running)
        if is_set_up and not rows:  # after RESET REPLICA ALL, of which the status knows nothing until a restart
            return None
        delay = rows[0][_SECONDS_BEHIND] if rows and len(rows[0]) > _SECONDS_BEHIND else None
        return Replication(running, number(delay, "Seconds_Behind_Master") if delay is not None else None)

    async def next_id(self, session: Session) -> int:
        rows = await rows_of(
            session,
            tuple[int | None],  # 2**63 behind the last ID
            "SELECT AUTO_INCREMENT FROM information_schema.tables"
            " WHERE table_schema = DATABASE() AND table_name = 'log_events'",
        )
        return (rows[0][0] or 0) if rows else 0


def installed_driver(name: Literal["auto", "aiomysql", "asyncmy"]) -> Driver:
    """The driver that is used. Raises `SourceUnavailable` if it is not installed."""
    candidates: tuple[Driver, ...] = ("asyncmy", "aiomysql") if name == "auto" else (name,)
    for candidate in candidates:
        try:
            import_module(candidate)
        except ImportError:
            continue
        return candidate
    raise SourceUnavailable(f"database.driver = {name!r} is not installed. Set it to 'auto'")


async def _execute(connection: Any, sql: str, args: Sequence[object] = ()) -> Sequence[Row]:
    """Return the rows of one statement, as the driver has them."""
    async with connection.cursor() as cursor:
        await cursor.execute(sql, tuple(args) or None)
        rows: Sequence[Row] = await cursor.fetchall()
        return rows


def _decoded(rows: Sequence[Row]) -> list[Row]:
    """`rows` with bytes decoded. By column, as all values of one have the same type or are None: twice as fast."""
    try:
        return list(zip(*map(_column, zip(*rows, strict=True)), strict=True))
    except ValueError:
        raise ValueError("the rows of an answer have different numbers of columns") from None


def _column(values: Row) -> Row:
    if isinstance(next((v for v in values if v is not None), None), bytes):
        return tuple([None if v is None else v.decode("utf-8", "replace") for v in values])
    return values


def _kind(error: BaseException) -> tuple[Away, str | None]:
    """The kind of failure and its meaning, by the server's error number."""
    if isinstance(error, (UnsafeLogin, ForeignListener)):
        return Away.UNSAFE_LOGIN, None
    if isinstance(error, NotMariaDB):
        return Away.NOT_MARIADB, None
    number = error.args[0] if error.args and isinstance(error.args[0], int) else 0
    if not isinstance(error, OSError) and (fault := fault_of(number, _message(error))) is not None:
        return fault.reason, fault.meaning
    # Those of the server are 1000 to 1999, and from 3000 on; 2000 to 2999 are the client library's.
    of_server = 1000 <= number < 2000 or number >= 3000
    return (Away.FAILED if of_server else Away.UNREACHABLE), None


_NO_SOCKET = "Transport does not expose socket instance"
"""What both drivers say if the connection is over before they have set its options."""


def _message(error: BaseException) -> str:
    """An error of the driver in one line: without its class and tuple, but with its cause."""
    if isinstance(error, RuntimeError) and _NO_SOCKET in str(error):
        return "the server closed the connection at once"
    args: Sequence[Any] = error.args
    has_number = len(args) >= 2 and isinstance(args[0], int)
    words = f"{str(args[1])[:MAX_MESSAGE]} ({args[0]})" if has_number else str(error)[:MAX_MESSAGE]
    by = error.__cause__
    cause = _message(by) if isinstance(by, Exception) and not isinstance(by, OSError) else str(by or "")[:MAX_MESSAGE]
    return (words if cause in words else f"{words}: {cause}") or type(error).__name__
