"""The checkpoint file: the position in the log, the state of the index, and events without acknowledgement.

It is one SQLite file, and each write is one transaction: the file always holds the state of one moment. A file that is
damaged, of another database or of another version is renamed, and the daemon starts without it: everything in it can
be read from the tables again, except for the unacknowledged events.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from correlator.errors import CheckpointInUse
from correlator.model.persisted import (
    Cursor,
    IndexState,
    PersistedEvent,
    PersistedExports,
    PersistedJob,
    PersistedLegacy,
)
from correlator.state import forecasts as stored_forecasts
from correlator.state.checkpoint import VERSION, Changes, Saved, encoded

log = logging.getLogger(__name__)

APPLICATION_ID = 0x434F5252
SCHEMA = (
    "CREATE TABLE state (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE jobs (job_id TEXT PRIMARY KEY, value BLOB NOT NULL)",
    "CREATE TABLE legacy (job_id TEXT PRIMARY KEY, value BLOB NOT NULL)",
    "CREATE TABLE events (number INTEGER PRIMARY KEY, sink TEXT NOT NULL, head BLOB NOT NULL, body BLOB NOT NULL)",
    "CREATE TABLE forecasts (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE exports (job_id TEXT PRIMARY KEY, exported INTEGER NOT NULL) WITHOUT ROWID",
)
"""`events`: those that are pending, encoded by their sinks. The state has `exports` while ended jobs are exported, and
`position` in a cluster."""


class Checkpoint:
    """The file at `path`, for the database that `source` names. Every call blocks: call it in a worker thread.

    Only one call may run at a time. Raises: `CheckpointInUse` if another process has locked the file, `sqlite3.Error`
    or `OSError` if it cannot be read or written.
    """

    def __init__(self, path: Path, source: str) -> None:
        self.path = path
        self._source = source
        self._connection: sqlite3.Connection | None = None
        self._events: set[int] | None = None
        """The numbers that the table has; None: those of the last run, to be removed."""

    def open(self) -> Saved | None:
        """Lock the file and return what the last run saved; None if there is nothing usable."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            saved = self._read(self._connect())
        except sqlite3.OperationalError as error:
            code = getattr(error, "sqlite_errorcode", None)
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                text = f"{self.path} is in use by another correlator: give each its own state.directory"
                raise CheckpointInUse(text) from error
            if code not in (None, sqlite3.SQLITE_ERROR):
                raise
            self.set_aside(str(error))  # A table is missing; or, without a code, a text in the file is not UTF-8.
            return None
        except (sqlite3.DatabaseError, msgspec.MsgspecError, LookupError, TypeError, ValueError) as error:
            self.set_aside(str(error))
            return None
        return saved

    def set_aside(self, why: str) -> None:
        """Rename the file, so that it can be examined, and create an empty one."""
        self.close()
        self._events = None
        name = f"{self.path.name}.unusable-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        aside = self.path.with_name(name)
        with contextlib.suppress(FileNotFoundError):
            self.path.rename(aside)
            log.warning("the checkpoint cannot be used (%s): set aside as %s; everything is read again", why, aside)
        for suffix in ("-wal", "-shm", "-journal"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        self._connect()

    def write(self, changes: Changes) -> None:
        """Write `changes` in one transaction."""
        connection = self._connection or self._connect()
        encode = msgspec.msgpack.encode
        with _transaction(connection):
            state = {"at": changes.at, "source": self._source, "cursor": changes.cursor, "memory": changes.memory}
            connection.executemany(
                "INSERT OR REPLACE INTO state VALUES (?, ?)", [(name, encode(value)) for name, value in state.items()]
            )
            for table, kind in (("jobs", PersistedJob), ("legacy", PersistedLegacy)):
                others: list[tuple[str]] = []
                connection.executemany(
                    f"INSERT OR REPLACE INTO {table} VALUES (?, ?)", _values(changes.jobs, kind, others)
                )
                connection.executemany(f"DELETE FROM {table} WHERE job_id = ?", others)
            gone_forecasts = [(name,) for name, value in changes.forecasts.items() if value is None]
            connection.executemany("DELETE FROM forecasts WHERE name = ?", gone_forecasts)
            connection.executemany(
                "INSERT OR REPLACE INTO forecasts VALUES (?, ?)",
                [(name, value) for name, value in changes.forecasts.items() if value is not None],
            )
            _write_exports(connection, changes.exports)
            if self._events is None:
                connection.execute("DELETE FROM events")
            stored, events = self._events or set(), changes.events
            gone, new = stored - events.keys(), sorted(events.keys() - stored)
            connection.executemany("DELETE FROM events WHERE number = ?", [(n,) for n in gone])
            connection.executemany("INSERT INTO events VALUES (?, ?, ?, ?)", [(n, *events[n]) for n in new])
            if changes.position is not None:
                connection.execute("INSERT OR REPLACE INTO state VALUES ('position', ?)", (changes.position,))
        self._events = set(changes.events)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connect(self) -> sqlite3.Connection:
        """Open, check and lock the file. No connection stays open if that fails."""
        # Mode 0600 whatever the umask is. O_NOFOLLOW: a symbolic link by another user is not followed.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=0.5)
        try:
            _prepare(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _read(self, connection: sqlite3.Connection) -> Saved | None:
        state = dict(connection.execute("SELECT name, value FROM state"))
        if not state:
            return None
        decode = msgspec.msgpack.decode
        source = decode(state["source"], type=str)
        if source != self._source:
            raise Unusable(f"it is of {source}")
        events = connection.execute("SELECT sink, head, body FROM events ORDER BY number").fetchall()
        jobs = msgspec.msgpack.Decoder(PersistedJob)
        legacy = msgspec.msgpack.Decoder(PersistedLegacy)
        return Saved(
            decode(state["at"], type=float),
            decode(state["cursor"], type=Cursor),
            decode(state["memory"], type=IndexState),
            tuple(jobs.decode(value) for (value,) in connection.execute("SELECT value FROM jobs")),
            tuple(legacy.decode(value) for (value,) in connection.execute("SELECT value FROM legacy")),
            msgspec.convert(events, tuple[PersistedEvent, ...]),
            stored_forecasts.decode(dict(connection.execute("SELECT name, value FROM forecasts"))),
            _read_exports(connection, state.get("exports")),
            state.get("position"),
        )


def _write_exports(connection: sqlite3.Connection, exports: PersistedExports | None) -> None:
    if exports is None:
        connection.execute("DELETE FROM exports")
        connection.execute("DELETE FROM state WHERE name = 'exports'")
        return
    since = msgspec.msgpack.encode(exports.since)
    connection.execute("INSERT OR REPLACE INTO state VALUES ('exports', ?)", (since,))
    gone = [(job_id,) for job_id, exported in exports.jobs.items() if exported is None]
    connection.executemany("DELETE FROM exports WHERE job_id = ?", gone)
    connection.executemany(
        "INSERT OR REPLACE INTO exports VALUES (?, ?)",
        [(job_id, exported) for job_id, exported in exports.jobs.items() if exported is not None],
    )


def _read_exports(connection: sqlite3.Connection, since: bytes | None) -> PersistedExports | None:
    if since is None:
        return None
    jobs = {job_id: bool(exported) for job_id, exported in connection.execute("SELECT job_id, exported FROM exports")}
    return PersistedExports(msgspec.msgpack.decode(since, type=int), jobs)


def _values(
    jobs: Mapping[str, PersistedJob | PersistedLegacy | None],
    kind: type[PersistedJob | PersistedLegacy],
    others: list[tuple[str]],
) -> Iterator[tuple[str, bytes]]:
    """Yield the values of type `kind`, encoded one at a time: the first write has all jobs. `others`: IDs to delete."""
    for job_id, value in jobs.items():
        if isinstance(value, kind) and (row := encoded(value)):
            yield job_id, row
        else:
            others.append((job_id,))


def _prepare(connection: sqlite3.Connection) -> None:
    """Lock the file, and create tables if it is empty. Raises: `Unusable` for another program's or version's file."""
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    with _transaction(connection):
        version, application = (
            connection.execute(f"PRAGMA {p}").fetchone()[0] for p in ("user_version", "application_id")
        )
        empty = not connection.execute("SELECT 1 FROM sqlite_master").fetchone()
        if empty:
            for statement in SCHEMA:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
        elif application != APPLICATION_ID:
            raise Unusable("it is another program's file")
        elif version != VERSION:
            raise Unusable(f"it is of version {version}; this program writes version {VERSION}")


class Unusable(sqlite3.DatabaseError):
    """The file is intact, but of another program, version or database."""


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
