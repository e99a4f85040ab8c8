"""The doorbell: an event in the server's binary log triggers a read of the tables before the next poll.

The daemon uses nothing from the log but the names of the changed tables (`binlog`). A missed event costs a poll
interval, an unneeded one costs a query. So a failure of the doorbell is a state, logged once and retried, and never an
error of the source.

The doorbell is one connection that registers as a replica and requests what is written from now on. It is read at most
once a millisecond, so that a server busy with other tables costs little; no commit of the server waits for it.
Heartbeats distinguish a quiet server from an unreachable one. A statement reaches the binary log a moment before its
rows are visible, and the event does not count its rows: a read right after a wake-up may find nothing, or only a part,
and so the tail reads again a few times within milliseconds (`DoorbellRetry`).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from correlator.errors import SourceUnavailable
from correlator.ops import metrics
from correlator.sources import binlog
from correlator.sources.db.login import transport_of
from correlator.sources.db.mariadb import MariaDBDatabase, MariaDBSession
from correlator.sources.db.session import TABLES, number, rows_of
from correlator.tasks import Backoff

AGAIN_AFTER = (0.001, 0.002, 0.004)
"""Seconds between the retries for pending statements. After the last one the regular poll finds their rows."""

log = logging.getLogger(__name__)

OnChange: TypeAlias = Callable[[Mapping[str, int]], None]
"""Gets the number of statements by the table that they changed."""

HEARTBEAT = 2.0
SILENT_AFTER = 7.0
"""Seconds between the server's heartbeats, and without any after which the connection counts as lost."""

AT_ONCE = 64 << 10
"""Most bytes that are parsed before other tasks run."""

ROOM = 0.001
"""Seconds between two reads of the socket. Events that arrive meanwhile are read together."""

WARN_EVERY = 600.0
"""Seconds between two warnings in the log. Readiness and a metric show failures in between."""

ACCESS_DENIED = frozenset({1045, 1227})
"""ER_ACCESS_DENIED_ERROR, ER_SPECIFIC_ACCESS_DENIED_ERROR."""


class Doorbell:
    """Calls back when a table changes. `run` is its only task.

    Args:
        database: The server.
        heartbeat: Seconds between the server's heartbeats.
        silent_after: Seconds without an event or a heartbeat after which the connection counts as lost.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        database: MariaDBDatabase,
        *,
        backoff: Backoff | None = None,
        heartbeat: float = HEARTBEAT,
        silent_after: float = SILENT_AFTER,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._backoff = backoff or Backoff(0.5, 2.0, 30.0)
        self._heartbeat, self._silent_after = heartbeat, silent_after
        self._clock = clock
        self._error: str | None = "not asked yet"
        self._warned: float | None = None
        self._warning_open = False
        """True if a warning has been logged and the recovery has not."""
        metrics.DOORBELL_UP.set(0)

    def describe(self) -> dict[str, Any]:
        """The state for readiness. It is ok even while unavailable: polling still finds every change."""
        return {"ok": True, "up": self._error is None, "error": self._error}

    async def run(self, on_change: OnChange) -> None:
        """Keep a connection open until cancelled; call `on_change` for each batch of events."""
        while True:
            try:
                await self._run_connection(on_change)
            except SourceUnavailable as away:
                self._lost(str(away), away.public)
            finally:
                metrics.DOORBELL_UP.set(0)
            await asyncio.sleep(self._backoff.next())

    async def _run_connection(self, on_change: OnChange) -> None:
        """Run one connection until it fails. Raises `SourceUnavailable`."""
        session = await self._database.open_with_aiomysql()
        transport: asyncio.Transport | None = None
        try:
            file, position = await _end_of_log(session)
            await session.query(
                f"SET @mariadb_slave_capability = 4, @master_heartbeat_period = {self._heartbeat * 1e9:.0f},"
                " @master_binlog_checksum = @@global.binlog_checksum, max_statement_time = 0"
            )
            transport = transport_of(session.connection)
            changes = binlog.ChangedTables(self._database.address.database, TABLES)
            protocol = _BinlogProtocol(transport, changes, on_change, self._found, self._clock)
            transport.set_protocol(protocol)
            # A server disconnects the older of two replicas with one ID: this one is far above IDs that people assign.
            transport.write(binlog.request(file, position, random.randrange(1 << 31, 1 << 32)))
            await protocol.wait_closed(self._silent_after)
        finally:
            if transport is not None:
                transport.abort()
            await session.close()

    def _found(self) -> None:
        """Record that the server has begun to send events."""
        self._error = None
        self._backoff.reset()
        metrics.DOORBELL_UP.set(1)
        if self._warning_open:
            self._warning_open = False
            log.info("the doorbell is available again")

    def _lost(self, error: str, public: str) -> None:
        self._error = public
        now = self._clock()
        if self._warned is None or now - self._warned >= WARN_EVERY:
            self._warned, self._warning_open = now, True
            log.warning("the doorbell is unavailable, polling continues: %s", error)
        else:
            log.debug("the doorbell is unavailable: %s", error)


@dataclass(slots=True)
class DoorbellRetry:
    """Statements in the binary log whose rows have not been read. Without a doorbell, `wait` is a plain sleep.

    The doorbell calls `notify`, the tail everything else, both from one event loop.
    """

    pending: int = 0
    """Number of statements, less one for each read that found rows: those may belong to any of them."""
    _tries: int = 0
    _notified: asyncio.Event = field(default_factory=asyncio.Event)

    def notify(self, statements: int) -> None:
        """Wake the tail: `statements` have changed log_events. Their rows are visible now or in a moment."""
        self.pending += statements
        self._tries = 0
        self._notified.set()

    def rows_found(self) -> None:
        """Count a read that found rows."""
        self.pending = max(0, self.pending - 1)

    def clear(self) -> None:
        """Drop the pending statements: the tail reads everything that is there anyway."""
        self.pending = 0

    async def wait(self, seconds: float) -> None:
        """Sleep until the next read: until a wake-up, until the next retry, or for `seconds`."""
        if self.pending and self._tries < len(AGAIN_AFTER):
            seconds = min(seconds, AGAIN_AFTER[self._tries])
            self._tries += 1
        else:
            self.pending = 0
        timer = asyncio.get_running_loop().call_later(max(0.0, seconds), self._notified.set)
        try:
            await self._notified.wait()
        finally:
            timer.cancel()
        self._notified.clear()


class _BinlogProtocol(asyncio.BufferedProtocol):
    """Reads the packets of a connection on which the binary log has been requested, at most `AT_ONCE` bytes a call."""

    def __init__(
        self,
        transport: asyncio.Transport,
        changes: binlog.ChangedTables,
        on_change: OnChange,
        found: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._transport = transport
        self._changes = changes
        self._on_change = on_change
        self._found = found
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._received_at = clock()
        self._buffer = bytearray(AT_ONCE)
        self._ended: asyncio.Future[str] = self._loop.create_future()

    async def wait_closed(self, silent_after: float) -> None:
        """Wait until the connection ends or is silent for `silent_after` seconds. Raises `SourceUnavailable` then."""
        while not self._ended.done():
            left = self._received_at + silent_after - self._clock()
            if left <= 0:
                raise SourceUnavailable(f"MariaDB: no heartbeat for {silent_after:g} s")
            await asyncio.wait([self._ended], timeout=left)
        raise SourceUnavailable(self._ended.result())

    def get_buffer(self, sizehint: int) -> bytearray:
        del sizehint
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._ended.done():
            return
        self._received_at = self._clock()
        began = self._changes.began
        try:
            changed = self._changes.feed(bytes(memoryview(self._buffer)[:nbytes]))
        except binlog.Ended as ended:
            self._end(_message(ended))
            return
        if not began and self._changes.began:
            self._found()
        if changed:
            metrics.DOORBELL_WAKE_UPS.inc()
            self._on_change(changed)
        if not self._transport.is_closing():
            self._transport.pause_reading()
            self._loop.call_later(ROOM, self._read_on)

    def _read_on(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def eof_received(self) -> None:
        self._end("MariaDB: the server has closed the connection")

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"MariaDB: the connection is lost: {exc}" if exc else "MariaDB: the connection is closed")

    def _end(self, why: str) -> None:
        if not self._ended.done():
            self._ended.set_result(why)


async def _end_of_log(session: MariaDBSession) -> tuple[str, int]:
    """File and position of the end of the binary log. Raises `SourceUnavailable` if the server writes none.

    SHOW MASTER STATUS returns the same, but requires a further privilege; any account can read these variables.
    """
    found = dict(await rows_of(session, tuple[str, str], "SHOW GLOBAL STATUS LIKE 'Binlog\\_snapshot\\_%'"))
    file, position = found.get("Binlog_snapshot_file"), found.get("Binlog_snapshot_position")
    if not file or not position:
        raise SourceUnavailable("MariaDB: the server writes no binary log (log_bin is off)")
    at = int(number(position, "Binlog_snapshot_position"))
    if not 0 <= at <= binlog.MAX_POSITION:
        raise SourceUnavailable("MariaDB: the binary log goes on behind 4 GiB, where no replica can begin to read")
    return file, at


def _message(ended: binlog.Ended) -> str:
    if ended.code in ACCESS_DENIED:
        return f"MariaDB: {ended} ({ended.code}): GRANT REPLICATION SLAVE ON *.* to the account"
    return f"MariaDB: {ended} ({ended.code})" if ended.code else f"MariaDB: {ended}"
