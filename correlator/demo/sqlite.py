"""The demo's database file: its schema, and connections that each have a thread of their own.

Invariants: one thread uses a connection, in the order of the calls. The event loop never waits for the disk.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Self, TypeVar

Value = str | int | None
T = TypeVar("T")

BUSY_TIMEOUT = 10.0
"""Seconds to wait for the write lock: three connections write, and SQLite allows one writer at a time."""


def schema() -> str:
    """Return the statements that create the four tables."""
    return (files("correlator.demo") / "schema.sql").read_text(encoding="utf-8")


def create(path: Path) -> bool:
    """Create the file with its tables, in WAL mode. Return False, and change nothing, if they exist already."""
    connection = sqlite3.connect(path)
    try:
        if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'log_events'").fetchone():
            return False
        connection.execute("PRAGMA journal_mode = WAL")
        # One transaction, so that an interrupted call leaves no file that seems complete.
        connection.executescript(f"BEGIN; {schema()} COMMIT;")
        return True
    finally:
        connection.close()


def open_connection(path: Path) -> sqlite3.Connection:
    """Open the file for writing, in autocommit mode: a statement is a transaction unless BEGIN precedes it."""
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None)
    # A demo need not survive a power failure, and one fsync per row would make it slow on a laptop.
    connection.execute("PRAGMA synchronous = OFF")
    return connection


class Lane:
    """One connection on one thread; calls run one after the other."""

    def __init__(self, path: Path) -> None:
        """Start the thread; the file is opened by the first call."""
        self._path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="demo-sqlite")
        self._connection: sqlite3.Connection | None = None

    async def call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` with the connection, on its thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, work)

    async def execute(self, statement: str, values: Sequence[Value]) -> int | None:
        """Run one statement as one transaction; return the id of the inserted row, if there is one."""
        return await self.call(lambda connection: connection.execute(statement, values).lastrowid)

    async def close(self) -> None:
        """Wait for the calls already made, then close. If cancelled, it still closes in the background."""
        closing = self._thread.submit(self._close)
        self._thread.shutdown(wait=False)
        await asyncio.shield(asyncio.wrap_future(closing))

    async def __aenter__(self) -> Self:
        """Return the lane itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it."""
        await self.close()

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._connection is None:
            self._connection = open_connection(self._path)
        return work(self._connection)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
