"""The order in which everything is looked at, and what is handed from one look to the next.

First this host, the daemon and the broker, all at once; then the database, which is asked about what the broker holds
and compared with what the daemon counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence

from msgspec import Struct

from correlator import __version__
from correlator.app import source_of
from correlator.config import read_tokens
from correlator.doctor import account, broker, daemon, day, host, kept, retained, service, tables, usage
from correlator.doctor.check import Check, Report, failure
from correlator.doctor.link import Link, guarded
from correlator.doctor.service import Setting
from correlator.errors import SourceUnavailable
from correlator.sources.database import INDISPENSABLE, Database, Schema
from correlator.sources.queries import Queries
from correlator.values import SqliteUrl

LOOK_WITHIN = 30.0
LOG_WITHIN = 60.0
"""Seconds for one look, and for the day of log and tables."""


class Examined(Struct, frozen=True):
    """The report, and what was found on the way that a support bundle wants."""

    report: Report
    daemon: daemon.Found
    checkpoint: kept.Kept | None
    broker_version: str


async def examine(setting: Setting, url: str | None = None, token: str = "") -> Examined:
    """Look at everything. `url`, `token`: of the running daemon, where they are not those of the configuration."""
    config = setting.config
    token = token or min(read_tokens(config), default="")
    found: daemon.Found = daemon.Found(())
    heard: broker.Found = broker.Found(())

    async def at_daemon() -> Sequence[Check]:
        nonlocal found
        found = await daemon.look(config, url, token)
        return found.checks

    async def at_broker() -> Sequence[Check]:
        nonlocal heard
        heard = await broker.look(config.mqtt, running=found.publishes)
        return heard.checks

    async def at_unit() -> Sequence[Check]:
        return (await service.unit(),)

    # The daemon first: of the broker it is asked whether what the daemon says is true.
    of_daemon = await guarded(daemon.PORT, LOOK_WITHIN, at_daemon)
    of_broker, of_unit = await asyncio.gather(
        guarded(broker.LOGIN, LOOK_WITHIN, at_broker), guarded(service.UNIT_CHECK, LOOK_WITHIN, at_unit)
    )
    database = _Tables(setting, found, heard)
    of_database = await database.look()
    figures: kept.Kept | None = None

    async def at_checkpoint() -> Sequence[Check]:
        nonlocal figures
        check, figures = await asyncio.to_thread(kept.checkpoint, config)
        return (check,)

    checks = [
        host.configuration(setting),
        *await guarded(host.SECRETS, LOOK_WITHIN, lambda: _one(asyncio.to_thread(host.secrets, setting))),
        host.versions(),
        *of_database,
        *of_broker,
        *database.retained,
        *of_unit,
        *of_daemon,
        *await guarded(host.DIRECTORY, LOOK_WITHIN, lambda: _one(asyncio.to_thread(host.directory, config))),
        *await guarded(kept.CHECKPOINT, LOOK_WITHIN, at_checkpoint),
    ]
    report = Report(__version__, service.stamp(), tuple(checks))
    return Examined(report, found, figures, heard.version)


class _Tables:
    """The looks at the database, one after the other over one link."""

    def __init__(self, setting: Setting, found: daemon.Found, heard: broker.Found) -> None:
        self._config = setting.config
        self._daemon = found
        self._broker = heard
        self.retained: list[Check] = []

    async def look(self) -> list[Check]:
        config = self._config
        try:
            database = source_of(config)
        except (SourceUnavailable, OSError) as error:  # no such driver; certificates that are none
            self._judge_retained(None)
            return [failure(account.LOGIN, str(error))]
        link = Link(database)
        try:
            checks = await guarded(account.LOGIN, LOOK_WITHIN, lambda: _one(account.login(config, link)))
            if checks[0].status == "failure":
                self._judge_retained(None)
                return checks
            if not isinstance(config.database.url, SqliteUrl):
                checks += await guarded(account.TLS, LOOK_WITHIN, lambda: _one(account.encryption(config, link)))
                checks += await guarded(account.RIGHTS, LOOK_WITHIN, lambda: _one(account.rights(config, link)))
            checks += await guarded(tables.CLOCK, LOOK_WITHIN, lambda: _one(tables.clock(config, link)))
            return checks + await self._contents(database, link)
        finally:
            await link.close()

    async def _contents(self, database: Database, link: Link) -> list[Check]:
        """What needs the schema to be known."""
        config = self._config
        schema = Schema({})

        async def at_schema() -> Sequence[Check]:
            nonlocal schema
            schema = await database.schema(link)
            return (tables.judge_schema(schema, legacy=config.jobs.legacy),)

        checks = await guarded(tables.SCHEMA, LOOK_WITHIN, at_schema)
        if not schema.has("log_events", *INDISPENSABLE):
            self._judge_retained(None)
            return checks
        queries: list[Queries] = []

        async def at_zone() -> Sequence[Check]:
            queries.append(Queries(database.dialect, schema, await database.zone(link)))
            return (await tables.time_zone(config, database, queries[0], link),)

        checks += await guarded(tables.ZONE, LOOK_WITHIN, at_zone)
        if queries:
            checks += await guarded(usage.ROWS, LOG_WITHIN, lambda: self._usage(queries[0], link))
        await self._ask_retained(queries, link)
        return checks

    async def _usage(self, queries: Queries, link: Link) -> Sequence[Check]:
        config = self._config
        now = await day.now(queries, link)
        log = await day.read_log(config, queries, link, now)
        found = await day.read_tables(queries, link, now)
        checks = [usage.judge_rows(log, found)]
        if not queries.schema.has("job_tracking", "id"):
            return checks
        nowhere, unsure = await day.look_up(config, queries, link, usage.candidates(log, found))
        bare, more = await day.look_up(config, queries, link, unclaimed := usage.unclaimed(log, found))
        return [
            *checks,
            usage.judge_ids(log, found),
            usage.judge_unresolved(log, found, nowhere, unsure),
            usage.judge_legacy(log, found, bare + unclaimed[len(unclaimed) - more :], legacy=config.jobs.legacy),
            usage.judge_drops(log, found, now * 1_000_000, self._daemon.corrections),
        ]

    async def _ask_retained(self, queries: Sequence[Queries], link: Link) -> None:
        """Which of the jobs that the broker holds no table has."""
        job_ids = retained.job_ids(self._config.mqtt, self._broker.retained)
        unknown: list[str] | None = None

        async def at_tables() -> Sequence[Check]:
            nonlocal unknown
            unknown = await day.unknown(queries[0], link, job_ids) if queries else None
            return ()

        failed = await guarded(retained.RETAINED, LOOK_WITHIN, at_tables)
        self._judge_retained(None if failed else unknown)

    def _judge_retained(self, unknown: Sequence[str] | None) -> None:
        if any(check.name == broker.ACL for check in self._broker.checks):
            self.retained = [retained.judge_retained(self._config.mqtt, self._broker.retained, unknown)]


async def _one(look: Awaitable[Check]) -> Sequence[Check]:
    return (await look,)
