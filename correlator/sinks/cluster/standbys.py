"""What the standbys of an instance report to its active collector: whether they follow the same database."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from correlator.bounded import BoundedDict
from correlator.cluster import keys, received
from correlator.cluster.connection import Connection
from correlator.pipeline.hub import Hub

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


class Standbys:
    """Satisfies `correlator.sinks.Sink`. It keeps the last report of each standby."""

    def __init__(self, connection: Connection, instance: str) -> None:
        self._connection = connection
        self._instance = instance
        self._reports: BoundedDict[str, tuple[float, Report]] = BoundedDict(MAX_STANDBYS)

    async def run(self, hub: Hub) -> None:
        """Receive the reports until cancelled."""
        del hub
        unsubscribe = await self._connection.subscribe(keys.standby(self._instance), self._on_report)
        try:
            await asyncio.Event().wait()
        finally:
            await unsubscribe()

    def describe(self) -> dict[str, Any]:
        """Return members of the cluster's part of readiness: an error if a standby follows another database."""
        now = time.monotonic()
        hosts = {one.host for at, one in self._reports.values() if one.other_database and now - at < VALID_FOR}
        if not hosts:
            return {}
        return {"ok": False, "error": _sentence(self._instance, ", ".join(sorted(hosts)))}

    async def _on_report(self, message: Msg) -> None:
        read = partial(received.decode, message.data, Report, MAX_REPORT)
        report = self._connection.parser.parse(message.subject, read)
        if report is None:
            return
        before = self._reports.pop(report.name, None)
        if report.other_database and (before is None or not before[1].other_database):
            log.error("%s", _sentence(self._instance, report.host))
        self._reports[report.name] = (time.monotonic(), report)


def _sentence(instance: str, hosts: str) -> str:
    return (
        f"a collector on {hosts} has the name {instance} too and follows another database, so it never takes over: give"
        " one of the two appliances another cluster.instance"
    )
