"""Whether a standby and the active collector follow the same database, with the same settings.

`Counterpart` finds out at the standby and reports it to the active collector, which keeps the reports of its standbys
(`StandbyReports`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import platform
import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from correlator.bounded import BoundedDict
from correlator.cluster import keys, received
from correlator.cluster.connection import ClusterUnavailable, Connection, Refused, seq_of
from correlator.cluster.lease import Lease
from correlator.cluster.received import Alive
from correlator.config.rendering import differences
from correlator.errors import OtherDatabase, SourceUnavailable
from correlator.pipeline.hub import Hub
from correlator.sources.db import identity
from correlator.sources.db.session import Database, closing
from correlator.state.checkpoint import MOMENT

if TYPE_CHECKING:
    from nats.aio.msg import Msg

log = logging.getLogger(__name__)

REPORT_EVERY = 5.0
VALID_FOR = 20.0
"""Seconds between two reports of a standby, and seconds after which one no longer counts."""

MAX_STANDBYS = 16
MAX_REPORT = 10_000


class Report(Struct, frozen=True):
    """The report of the standby `name`, on `host`."""

    name: str = ""
    host: str = ""
    other_database: bool = False


class StandbyReports:
    """Satisfies `correlator.sinks.Sink`. It keeps the last report of each standby."""

    def __init__(self, connection: Connection, instance: str) -> None:
        self._connection = connection
        self._instance = instance
        self._reports: BoundedDict[str, tuple[float, Report]] = BoundedDict(MAX_STANDBYS)

    async def run(self, hub: Hub) -> None:
        """Receive the reports until cancelled."""
        del hub
        async with self._connection.subscribed(keys.standby(self._instance), self._on_report):
            await asyncio.Event().wait()

    def describe(self) -> dict[str, Any]:
        """Return members of the cluster's part of readiness: an error if a standby follows another database."""
        now = time.monotonic()
        hosts = {one.host for at, one in self._reports.values() if one.other_database and now - at < VALID_FOR}
        if not hosts:
            return {}
        return {"ok": False, "error": other_database_error(self._instance, ", ".join(sorted(hosts)))}

    async def _on_report(self, message: Msg) -> None:
        read = partial(received.decode, message.data, Report, MAX_REPORT)
        report = self._connection.parser.parse(message.subject, read)
        if report is None:
            return
        before = self._reports.pop(report.name, None)
        if report.other_database and (before is None or not before[1].other_database):
            log.error("%s", other_database_error(self._instance, report.host))
        self._reports[report.name] = (time.monotonic(), report)


def other_database_error(instance: str, hosts: str) -> str:
    """Return what readiness and the log say of a standby, on `hosts`, that follows another database."""
    return (
        f"a collector on {hosts} has the name {instance} too and follows another database, so it never takes over: give"
        " one of the two appliances another cluster.instance"
    )


COMPARE_EVERY = 60.0


COMPARE_WITHIN = 2.0
"""Seconds between two comparisons of a standby's database with that of the checkpoint, and for one."""


READ_WITHIN = 1.0
"""Seconds for an answer of the cluster to that."""


class Counterpart:
    """What a standby knows of the active collector: whether it follows the same database, and by the same settings.

    `settings`: those of this process that the active has to have too (`rendering.of_instance`).
    """

    def __init__(self, lease: Lease, database: Database, settings: Mapping[str, str]) -> None:
        self._lease = lease
        self._database = database
        self._settings = settings
        self._other: bool | None = None
        """Whether the checkpoint in the cluster is of another database. None: not known yet."""
        self._compared_at = -math.inf
        self._differing: dict[str, str] = {}
        self._renewal = 0
        """The sequence of the alive key as it was read last."""

    def describe(self) -> dict[str, Any]:
        """Return members of the cluster's part of readiness."""
        part: dict[str, Any] = {"differing": self._differing} if self._differing else {}
        return part | {"other_database": True, "error": str(OtherDatabase())} if self._other else part

    async def run(self) -> None:
        """Compare, and report to the active, until cancelled."""
        while True:
            try:
                await self._compare_settings()
                await self._compare_databases()
                report = Report(self._lease.connection.name, platform.node(), self._other is True)
                await self._lease.connection.publish(keys.standby(self._lease.instance), msgspec.json.encode(report))
            except (ClusterUnavailable, Refused) as error:
                log.debug("the active collector is not known: %s", error)
            await asyncio.sleep(REPORT_EVERY)

    async def is_barred(self) -> bool:
        """True if this process must not take the lease: its database is another one, or the cluster does not answer."""
        try:
            if self._other is None:
                await self._compare_databases()
        except (ClusterUnavailable, Refused):
            return True
        return self._other is True

    async def _compare_settings(self) -> None:
        """Compare with what the alive key says, if it was renewed meanwhile: it may be that of this host's last run."""
        lease = self._lease
        message = await lease.connection.last(keys.ALIVE, keys.alive(lease.instance), within=READ_WITHIN)
        seq = seq_of(message)
        renewed, self._renewal = self._renewal not in (0, seq), seq
        if message is None or not message.data or not renewed:
            return
        read = partial(received.decode, message.data, Alive, received.MAX_KEY)
        active = lease.connection.parser.parse(keys.alive(lease.instance), read) or Alive()
        found = differences(active.settings, self._settings)
        if found and found != self._differing:
            words = "; ".join(f"{name}: {values}" for name, values in found.items())
            log.warning(
                "the active collector of %s has other settings, so a takeover changes what is served: %s",
                *(lease.instance, words),
            )
        self._differing = found

    async def _compare_databases(self) -> None:
        """Compare the sample in the checkpoint with this process's database. Without an answer the verdict stays."""
        now = time.monotonic()
        if now - self._compared_at < COMPARE_EVERY and self._other is not None:
            return
        self._compared_at = now
        subject = keys.checkpoint(self._lease.instance, *MOMENT)
        message = await self._lease.connection.last(keys.CHECKPOINT, subject, within=READ_WITHIN)
        sampled = None
        if message is not None and message.data:
            read = partial(received.decode_msgpack, message.data, _Sampled)
            sampled = self._lease.connection.parser.parse(subject, read)
        sample = sampled.cursor.sample if sampled is not None else ()
        if not sample:
            self._other = None
            return
        try:
            async with asyncio.timeout(COMPARE_WITHIN):
                async with closing(self._database.open()) as session:
                    other = await identity.is_other(session, self._database.dialect, sample)
        except (SourceUnavailable, TimeoutError) as error:
            log.debug("whether the database is that of %s is not known: %s", self._lease.instance, error)
            return
        if other and not self._other:
            log.error("this process never takes the lease of %s: %s", self._lease.instance, OtherDatabase())
        self._other = other


class _Cursor(Struct, frozen=True):
    """What of a `Cursor` names its database."""

    sample: tuple[str, ...] = ()


class _Sampled(Struct, frozen=True):
    """The same of a `SavedMoment`, also of another version."""

    cursor: _Cursor = _Cursor()
