"""The tables in an SQLite file, the default of the demo and of tests. Read only; each call runs in a thread.

SQLite has one writer at a time and no dirty reads, so a hole is never seen alive: it settles after the grace.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import re
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from correlator.errors import Away, SourceUnavailable
from correlator.model.rows import Int64, Micros
from correlator.sources.db import zones
from correlator.sources.db.session import TABLES, Dialect, Row, Schema, Session, as_text, query_failed, rows_of
from correlator.sources.db.zones import Zone

_EPOCH = datetime.datetime(1970, 1, 1)  # noqa: DTZ001 - stored times have no zone


class SQLiteSession:
    """One connection to the file. Satisfies `correlator.sources.db.session.Session`."""

    def __init__(self, connection: sqlite3.Connection, timeout: float) -> None:
        self._connection = connection
        self._timeout = timeout
        self._lock = asyncio.Lock()

    async def query(self, sql: str, args: Sequence[object] = ()) -> Sequence[Row]:
        async with self._lock:
            call = asyncio.ensure_future(asyncio.to_thread(self._query, sql, args))
            try:
                async with asyncio.timeout(self._timeout):
                    return await asyncio.shield(call)
            except sqlite3.Error as error:
                raise query_failed(f"SQLite: {error}", Away.FAILED, sql) from error
            except TimeoutError as error:
                raise query_failed(f"SQLite: no answer within {self._timeout:g} s", Away.NO_ANSWER, sql) from error
            finally:
                if not call.done():
                    # The connection must not be closed while the thread uses it.
                    self._connection.interrupt()
                    with contextlib.suppress(sqlite3.Error):
                        await call

    def _query(self, sql: str, args: Sequence[object]) -> Sequence[Row]:
        rows: list[Row] = self._connection.execute(sql, args).fetchall()
        return [r if bytes not in map(type, r) else tuple(map(as_text, r)) for r in rows]

    async def close(self) -> None:
        async with self._lock:
            self._connection.close()


class SQLiteDatabase:
    """Satisfies `Database`. `path`: the file. `zone`: of its DATETIME columns; None is the zone of this host.

    `timeout`: seconds for one query.
    """

    driver = "sqlite3"
    dialect = Dialect(
        placeholder="?",
        local_micros="micros({})",
        utc_micros="micros({})",
        clock="SELECT strftime('%Y-%m-%d %H:%M:%f', 'now', '-{back} seconds')",
        json_text="CASE WHEN json_valid({column}) THEN json_extract({column}, '{path}') END",
        size="LENGTH(CAST({} AS BLOB))",
        member="({} -> {})",
        matches="CAST({} AS BLOB) REGEXP ?",
        joined="({} || {})",
    )

    def __init__(self, path: Path, *, zone: Zone | None = None, timeout: float = 10.0) -> None:
        self._path = path
        self._zone = zone
        self._timeout = timeout

    async def open(self, *, dirty: bool = False) -> SQLiteSession:
        del dirty  # see the top of this file
        opening = asyncio.ensure_future(asyncio.to_thread(self._connect))
        try:
            return SQLiteSession(await asyncio.shield(opening), self._timeout)
        except sqlite3.Error as error:
            raise SourceUnavailable(f"SQLite: {self._path}: {error}", Away.UNREACHABLE) from error
        except asyncio.CancelledError:
            # The thread continues: close what it opens.
            with contextlib.suppress(sqlite3.Error):
                (await opening).close()
            raise

    def _connect(self) -> sqlite3.Connection:
        uri = f"{self._path.absolute().as_uri()}?mode=ro"
        connection = sqlite3.connect(
            uri, uri=True, isolation_level=None, check_same_thread=False, timeout=min(2.0, self._timeout)
        )
        try:
            connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
            connection.create_function("micros", 1, micros, deterministic=True)
            connection.create_function("regexp", 2, _matches, deterministic=True)
            connection.execute("PRAGMA query_only = ON")
            connection.execute("SELECT 1 FROM sqlite_master LIMIT 1")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    async def schema(self, session: Session) -> Schema:
        found: dict[str, dict[str, str]] = {}
        for table in TABLES:
            rows = await rows_of(session, tuple[str, str], f"SELECT name, type FROM pragma_table_info('{table}')")
            found[table] = {name.lower(): kind.lower().split("(")[0] for name, kind in rows}
        return Schema(found)

    def log_in_with(self, password: str) -> None:
        """Do nothing: a file has no password."""

    async def connections(self, session: Session) -> int:
        del session
        return 0

    async def zone(self, session: Session) -> Zone:
        del session
        return self._zone or zones.host()

    async def replication(self, session: Session) -> None:
        del session

    async def next_id(self, session: Session) -> int:
        rows = await session.query("SELECT 1 FROM sqlite_master WHERE name = 'sqlite_sequence'")
        if not rows:
            return 0
        sql = "SELECT seq FROM sqlite_sequence WHERE name = 'log_events'"
        found = await rows_of(session, tuple[Int64], sql)
        return found[0][0] + 1 if found else 0


def _matches(pattern: str, text: bytes | None) -> bool:
    return text is not None and re.search(pattern, text.decode("utf-8", "replace")) is not None


def micros(text: object) -> Micros | None:
    """``YYYY-MM-DD HH:MM:SS[.ffffff]`` as microseconds since 1970, whatever its zone; None for anything else."""
    if not isinstance(text, str):
        return None
    try:
        when = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    return (when.replace(tzinfo=None) - _EPOCH) // datetime.timedelta(microseconds=1)
