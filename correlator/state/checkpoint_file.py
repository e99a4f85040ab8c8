"""The checkpoint file: the position in the log, the state of the index, and events without acknowledgement.

It is one SQLite file, and each write is one transaction: the file always holds the state of one moment. It names how
the database was reached; whether that is the one that is followed now is decided by whoever opens the file. A file that
is damaged or of another version is renamed, and the daemon starts without it: everything in it can
be read from the tables again, except for the unacknowledged events.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec.structs import replace

from correlator.errors import CheckpointInUse
from correlator.state.checkpoint import VERSION, Changes, Name, Saved, Unusable, rows_of, saved_of

log = logging.getLogger(__name__)

APPLICATION_ID = 0x434F5252
SCHEMA = "CREATE TABLE rows (kind TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (kind, key))"
SOURCE = ("state", "source")
"""The row with the database that the file belongs to. Besides it, the file has the rows of every store."""

OF_ONE_RUN = ("event", "memory")
"""The kinds whose rows of the last run say nothing of this one: the numbers of events begin anew."""

_WRITE = "INSERT OR REPLACE INTO rows VALUES (?, ?, ?)"


class Checkpoint:
    """The file at `path`, of a run that reaches its database by `source`. Every call blocks: call it in a worker
    thread.

    Only one call may run at a time. Raises: `CheckpointInUse` if another process has locked the file, `sqlite3.Error`
    or `OSError` if it cannot be read or written.
    """

    def __init__(self, path: Path, source: str) -> None:
        self.path = path
        self._source = source
        self._connection: sqlite3.Connection | None = None
        self._written = False
        """True once this run has written to the file."""

    def open(self) -> Saved | None:
        """Lock the file and return what the last run saved; None if there is nothing usable."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            return self.read()
        except sqlite3.OperationalError as error:
            code = getattr(error, "sqlite_errorcode", None)
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                text = f"{self.path} is in use by another correlator: give each its own state.directory"
                raise CheckpointInUse(text) from error
            if code not in (None, sqlite3.SQLITE_ERROR):
                raise
            why = str(error)  # The table is missing; or, without a code, a text in the file is not UTF-8.
        except (sqlite3.DatabaseError, LookupError, TypeError, ValueError) as error:
            why = str(error)
        self.set_aside(why)
        return None

    def read(self) -> Saved | None:
        """As `open`. Raises also `Unusable`, `LookupError`, `TypeError` or `ValueError` if the file cannot be used."""
        return self._read(self._connect())

    def set_aside(self, why: str) -> None:
        """Rename the file, so that it can be examined, and create an empty one."""
        self.close()
        self._written = False
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
        gone: list[Name] = []

        def kept() -> Iterator[tuple[object, ...]]:
            """Yield the rows, encoded one at a time: the first write has all jobs."""
            for name, value in rows_of(changes):
                if value is None:
                    gone.append(name)
                else:
                    yield *name, value

        with _transaction(connection):
            if not self._written:
                stale = OF_ONE_RUN if changes.exports is not None else (*OF_ONE_RUN, "export")
                connection.executemany("DELETE FROM rows WHERE kind = ?", [(kind,) for kind in stale])
                connection.execute(_WRITE, (*SOURCE, msgspec.msgpack.encode(self._source)))
            connection.executemany(_WRITE, kept())
            connection.executemany("DELETE FROM rows WHERE kind = ? AND key = ?", gone)
        self._written = True

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
        # SQLite reads past some damage, and would write beside it. This takes 0.1 s for 80 MB.
        (state,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        if state != "ok":
            raise Unusable(" ".join(state.split()))
        found = connection.execute("SELECT value FROM rows WHERE kind = ? AND key = ?", SOURCE).fetchone()
        if found is None:
            return None
        rows = connection.execute("SELECT kind, key, value FROM rows")
        saved = saved_of(((kind, key), value) for kind, key, value in rows)
        return replace(saved, source=msgspec.msgpack.decode(found[0], type=str))


def _prepare(connection: sqlite3.Connection) -> None:
    """Lock the file, and create the table if it is empty. Raises: `Unusable` if another program or version made it."""
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    with _transaction(connection):
        version, application = (
            connection.execute(f"PRAGMA {p}").fetchone()[0] for p in ("user_version", "application_id")
        )
        tables = connection.execute("SELECT sql FROM sqlite_master WHERE type = 'table'").fetchall()
        if not tables:
            connection.execute(SCHEMA)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
        elif application != APPLICATION_ID:
            raise Unusable("it is another program's file")
        elif version != VERSION:
            raise Unusable(f"it is of version {version}; this program writes version {VERSION}")
        elif tables != [(SCHEMA,)]:  # A column of another type would store other keys than those that are written.
            raise Unusable("its table is not the one that this program creates")


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
