"""What outlives the daemon: where the source resumes, what was known, which events are still to be told.

One SQLite file, a transaction each time: what it holds is what was true at one moment. A file that is damaged, of
another database or of another version is set aside, and the next run begins anew: everything can be read again.
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
from msgspec import Struct

from correlator.errors import CheckpointInUse
from correlator.jobs.model import Cursor, Kept, LegacyRecord, Memory

log = logging.getLogger(__name__)

APPLICATION_ID = 0x434F5252
VERSION = 1
"""Of the file: a change of the tables, or of a value that they hold, makes it another one."""

_SCHEMA = (
    "CREATE TABLE state (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE jobs (job_id TEXT PRIMARY KEY, value BLOB NOT NULL)",
    "CREATE TABLE legacy (job_id TEXT PRIMARY KEY, value BLOB NOT NULL)",
    "CREATE TABLE events (number INTEGER PRIMARY KEY, job_id TEXT NOT NULL, payload BLOB NOT NULL)",
)


class Saved(Struct, frozen=True):
    """What an earlier run left. `at`: Unix seconds; `events`: (job id, payload), in order."""

    at: float
    cursor: Cursor
    memory: Memory
    jobs: tuple[Kept, ...]
    legacy: tuple[LegacyRecord, ...]
    events: tuple[tuple[str, bytes], ...]


class Changes(Struct, frozen=True):
    """What is to be kept now. Of `jobs`, None is nothing any more. `events`: all that are owed, by number."""

    at: float
    cursor: Cursor
    memory: Memory
    jobs: Mapping[str, Kept | LegacyRecord | None]
    events: Mapping[int, tuple[str, bytes]]


class Checkpoint:
    """The file at `path`, for the database that `source` names. Every call blocks: it is for a thread.

    Raises `CheckpointInUse` where another process has it, and `sqlite3.Error` or `OSError` where it cannot be written.
    """

    def __init__(self, path: Path, source: str) -> None:
        self.path = path
        self._source = source
        self._connection: sqlite3.Connection | None = None
        self._events: set[int] | None = None

    def open(self) -> Saved | None:
        """What the last run left, None where there is nothing to go on with."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            saved = self._read(self._connect())
        except sqlite3.OperationalError as error:
            code = getattr(error, "sqlite_errorcode", None)
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                text = f"{self.path} is in use by another correlator: give each its own state.directory"
                raise CheckpointInUse(text) from error
            if code is not None:
                raise
            self.set_aside(str(error))  # Python's own: a text in it is no UTF-8
            return None
        except (sqlite3.DatabaseError, msgspec.MsgspecError, LookupError, TypeError, ValueError) as error:
            self.set_aside(str(error))
            return None
        return saved

    def set_aside(self, why: str) -> None:
        """Begin a new file; the old one stays beside it, to be looked at."""
        self.close()
        self._events = None
        name = f"{self.path.name}.unusable-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        aside = self.path.with_name(name)
        with contextlib.suppress(FileNotFoundError):
            self.path.rename(aside)
            log.warning("the checkpoint cannot be used (%s): set aside as %s; all is read again", why, aside)
        for suffix in ("-wal", "-shm", "-journal"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        self._connect()

    def write(self, changes: Changes) -> None:
        """One transaction: all of it, or nothing."""
        connection = self._connection or self._connect()
        encode = msgspec.msgpack.encode
        with _transaction(connection):
            state = {"at": changes.at, "source": self._source, "cursor": changes.cursor, "memory": changes.memory}
            connection.executemany(
                "INSERT OR REPLACE INTO state VALUES (?, ?)", [(name, encode(value)) for name, value in state.items()]
            )
            for table, kind in (("jobs", Kept), ("legacy", LegacyRecord)):
                others: list[tuple[str]] = []
                connection.executemany(
                    f"INSERT OR REPLACE INTO {table} VALUES (?, ?)", _values(changes.jobs, kind, others)
                )
                connection.executemany(f"DELETE FROM {table} WHERE job_id = ?", others)
            if self._events is None:  # the numbers of an earlier run
                connection.execute("DELETE FROM events")
            told = self._events or set()
            gone = [(n,) for n in told - changes.events.keys()]
            new = [(n, *changes.events[n]) for n in sorted(changes.events.keys() - told)]
            connection.executemany("DELETE FROM events WHERE number = ?", gone)
            connection.executemany("INSERT INTO events VALUES (?, ?, ?)", new)
        self._events = set(changes.events)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connect(self) -> sqlite3.Connection:
        """A connection to a file that is ours, whole and locked; none stays behind where that fails."""
        # For its owner alone, whatever the umask is; and no link that somebody else put there is followed.
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
        events = connection.execute("SELECT number, job_id, payload FROM events ORDER BY number").fetchall()
        jobs = msgspec.msgpack.Decoder(Kept)
        legacy = msgspec.msgpack.Decoder(LegacyRecord)
        return Saved(
            decode(state["at"], type=float),
            decode(state["cursor"], type=Cursor),
            decode(state["memory"], type=Memory),
            tuple(jobs.decode(value) for (value,) in connection.execute("SELECT value FROM jobs")),
            tuple(legacy.decode(value) for (value,) in connection.execute("SELECT value FROM legacy")),
            msgspec.convert(tuple((job_id, payload) for _, job_id, payload in events), tuple[tuple[str, bytes], ...]),
        )


def _values(
    jobs: Mapping[str, Kept | LegacyRecord | None], kind: type[Kept | LegacyRecord], others: list[tuple[str]]
) -> Iterator[tuple[str, bytes]]:
    """Those of a kind, one encoded at a time: the first write may be of all jobs. The rest goes to `others`."""
    for job_id, value in jobs.items():
        if isinstance(value, kind) and (encoded := _encoded(value)):
            yield job_id, encoded
        else:
            others.append((job_id,))


def _prepare(connection: sqlite3.Connection) -> None:
    """Lock the file, and make its tables where it is empty. Raises `Unusable` for one that is not ours."""
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    with _transaction(connection):
        version, application = (
            connection.execute(f"PRAGMA {p}").fetchone()[0] for p in ("user_version", "application_id")
        )
        empty = not connection.execute("SELECT 1 FROM sqlite_master").fetchone()
        if empty:
            for statement in _SCHEMA:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
        elif application != APPLICATION_ID:
            raise Unusable("it is another program's file")
        elif version != VERSION:
            raise Unusable(f"it is of version {version}; this program writes version {VERSION}")


def _encoded(value: Kept | LegacyRecord) -> bytes | None:
    """None for what holds a text that is no Unicode, say: the tables tell of that job again."""
    try:
        return msgspec.msgpack.encode(value)
    except (ValueError, OverflowError, TypeError, RecursionError) as error:
        log.debug("a job is left out of the checkpoint: %s", error)
        return None


class Unusable(sqlite3.DatabaseError):
    """A whole file, but none that this program can go on with."""


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
