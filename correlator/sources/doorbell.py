"""The doorbell: the server's binary log tells that a table has changed, so that it is read now, not at the next poll.

Nothing is taken from the log but that. A doorbell that does not ring costs a poll interval, one that rings for nothing
costs a look; so whatever happens to it is a state, said once and tried again, and never an error of the source.

One connection, in the place of a replica: it asks for what is written from now on. It is read at most once a
millisecond, so that a server busy with other tables costs little; no commit of the server ever waits for it. Heartbeats
tell a quiet server from one that is gone.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from correlator import metrics
from correlator.backoff import Backoff
from correlator.errors import SourceUnavailable
from correlator.sources import binlog
from correlator.sources.database import TABLES
from correlator.sources.mariadb import MariaDBDatabase, MariaDBSession

log = logging.getLogger(__name__)

Ring: TypeAlias = Callable[[Mapping[str, int]], None]
"""Gets how many statements changed which table."""

HEARTBEAT = 2.0
SILENT_AFTER = 7.0
"""Seconds after which the server says that it is there, and after which it is taken to be gone."""

ROOM = 0.001
"""Seconds between two reads: what comes meanwhile is read together."""

SAY_AGAIN = 600.0
"""Seconds between two warnings, whatever goes wrong meanwhile: readiness and a metric tell of the rest."""

NO_RIGHT = frozenset({1045, 1227})
"""ER_ACCESS_DENIED_ERROR, ER_SPECIFIC_ACCESS_DENIED_ERROR."""


class Doorbell:
    """`database`: where to listen; its driver has to be aiomysql. `name`: the database that holds the tables."""

    def __init__(
        self,
        database: MariaDBDatabase,
        name: str,
        *,
        backoff: Backoff | None = None,
        heartbeat: float = HEARTBEAT,
        silent_after: float = SILENT_AFTER,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.database = database
        self._name = name
        self._backoff = backoff or Backoff(0.5, 2.0, 30.0)
        self._heartbeat, self._silent_after = heartbeat, silent_after
        self._clock = clock
        self._error: str | None = "not asked yet"
        self._warned: float | None = None
        self._told = False
        """Whether the last warning is still to be taken back."""
        metrics.DOORBELL_UP.set(0)

    def describe(self) -> dict[str, Any]:
        """For readiness. It is well even when it is away: everything is seen all the same, a poll interval later."""
        return {"ok": True, "up": self._error is None, "error": self._error}

    async def run(self, ring: Ring) -> None:
        """Listen, for ever."""
        while True:
            try:
                await self._listen(ring)
            except SourceUnavailable as away:
                self._lost(str(away))
            finally:
                metrics.DOORBELL_UP.set(0)
            await asyncio.sleep(self._backoff.next())

    async def _listen(self, ring: Ring) -> None:
        """One connection, until it fails. Raises `SourceUnavailable`."""
        session = await self.database.open()
        transport: asyncio.Transport | None = None
        try:
            file, position = await _end_of_log(session)
            await session.query(
                f"SET @mariadb_slave_capability = 4, @master_heartbeat_period = {self._heartbeat * 1e9:.0f},"
                " @master_binlog_checksum = @@global.binlog_checksum, max_statement_time = 0"
            )
            transport = _transport(session)
            ear = _Ear(transport, binlog.Changes(self._name, TABLES), ring, self._found)
            transport.set_protocol(ear)
            # Two replicas of one number throw each other out: ours is far above those that people give.
            transport.write(binlog.request(file, position, random.randrange(1 << 31, 1 << 32)))
            await ear.listen(self._silent_after)
        finally:
            if transport is not None:
                transport.abort()
            await session.close()

    def _found(self) -> None:
        """The server has begun to send."""
        self._error = None
        self._backoff.reset()
        metrics.DOORBELL_UP.set(1)
        if self._told:
            self._told = False
            log.info("the doorbell is back")

    def _lost(self, error: str) -> None:
        self._error = error
        now = self._clock()
        if self._warned is None or now - self._warned >= SAY_AGAIN:
            self._warned, self._told = now, True
            log.warning("the doorbell is away, which leaves polling: %s", error)
        else:
            log.debug("the doorbell is away: %s", error)


class _Ear(asyncio.Protocol):
    """Takes over a connection on which the log has been asked for."""

    def __init__(
        self, transport: asyncio.Transport, changes: binlog.Changes, ring: Ring, found: Callable[[], None]
    ) -> None:
        self._transport = transport
        self._changes = changes
        self._ring = ring
        self._found = found
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()
        self._ended: asyncio.Future[str] = self._loop.create_future()

    async def listen(self, silent_after: float) -> None:
        """Until the connection ends, or nothing has come for `silent_after` seconds. Raises `SourceUnavailable`."""
        while not self._ended.done():
            left = self._heard + silent_after - self._loop.time()
            if left <= 0:
                raise SourceUnavailable(f"MariaDB: no heartbeat for {silent_after:g} s")
            await asyncio.wait([self._ended], timeout=left)
        raise SourceUnavailable(self._ended.result())

    def data_received(self, data: bytes) -> None:
        if self._ended.done():
            return
        self._heard = self._loop.time()
        began = self._changes.began
        try:
            changed = self._changes.feed(data)
        except binlog.Ended as ended:
            self._end(_words(ended))
            return
        if not began and self._changes.began:
            self._found()
        if changed:
            metrics.DOORBELL_RINGS.inc()
            self._ring(changed)
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
    """Where the binary log ends now. Raises `SourceUnavailable` where there is none.

    SHOW MASTER STATUS says it too, and wants one right more; these variables are everybody's.
    """
    found: dict[str, Any] = dict(await session.query("SHOW GLOBAL STATUS LIKE 'Binlog\\_snapshot\\_%'"))
    file, position = found.get("Binlog_snapshot_file"), found.get("Binlog_snapshot_position")
    if not file or not position:
        raise SourceUnavailable("MariaDB: the server writes no binary log (log_bin is off)")
    return str(file), int(position)


def _transport(session: MariaDBSession) -> asyncio.Transport:
    """What is beneath a connection of aiomysql's, which knows no command but queries."""
    transport: asyncio.Transport = session._connection._writer.transport  # noqa: SLF001
    return transport


def _words(ended: binlog.Ended) -> str:
    if ended.code in NO_RIGHT:
        return f"MariaDB: {ended} ({ended.code}): GRANT REPLICATION SLAVE ON *.* to the account"
    return f"MariaDB: {ended} ({ended.code})" if ended.code else f"MariaDB: {ended}"
