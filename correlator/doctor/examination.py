"""Runs all checks in their order, and passes findings from one check to the next.

This host, the daemon and the broker come first; then the database, which is asked about the jobs that the broker
holds, and compared with what the daemon has counted. A check that fails never prevents an independent one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from msgspec import Struct

from correlator import __version__
from correlator.config import rendering
from correlator.config.loading import read_tokens
from correlator.config.schema import Config
from correlator.config.values import SqliteUrl
from correlator.doctor import (
    account,
    broker,
    checkpoint_file,
    cluster,
    daemon,
    day,
    fixes,
    host,
    retained,
    service,
    tables,
    traces,
    usage,
    webhooks,
)
from correlator.doctor.check import Check, Report, failure
from correlator.doctor.link import Link, guarded
from correlator.doctor.service import Setting
from correlator.errors import ConfigError, SourceUnavailable
from correlator.following import source_of
from correlator.sources.db.queries import Queries
from correlator.sources.db.session import INDISPENSABLE, Database

CHECK_WITHIN = 30.0
"""Seconds for one check."""

LOG_WITHIN = 60.0
"""Seconds for the checks of one day of log and tables."""


class Examined(Struct, frozen=True):
    """The report, and the findings that a support bundle contains."""

    report: Report
    daemon: daemon.Found
    checkpoint: checkpoint_file.CheckpointFigures | None
    broker_version: str


class _DatabaseFindings(Struct, frozen=True):
    """`unknown_jobs`: the requested jobs that no table has; None if the tables could not be queried."""

    checks: tuple[Check, ...]
    unknown_jobs: Sequence[str] | None = None


async def examine(setting: Setting, url: str | None = None, token: str = "") -> Examined:
    """Run all checks. `url` and `token` are those of the running daemon, if they differ from the configuration."""
    config = setting.config
    token = token or _own_token(config)
    # 1. The daemon, as the check of the broker compares the broker with what the daemon reports.
    answer = await guarded(daemon.PORT, CHECK_WITHIN, daemon.inspect(config, url, token))
    of_daemon = daemon.Found((answer,)) if isinstance(answer, Check) else answer
    # 2. The broker, the cluster, the receivers of traces and of webhooks, and the systemd unit, concurrently.
    reply, of_cluster, of_receiver, of_webhooks, of_unit = await asyncio.gather(
        guarded(broker.LOGIN, CHECK_WITHIN, broker.inspect(config.mqtt, running=of_daemon.publishes)),
        _examine_cluster(config, of_daemon, gateway=False),
        guarded(traces.RECEIVER, CHECK_WITHIN, traces.inspect(config)),
        guarded(webhooks.WEBHOOKS, CHECK_WITHIN, webhooks.inspect(config.webhooks, of_daemon.ready)),
        guarded(service.UNIT_CHECK, CHECK_WITHIN, service.unit()),
    )
    of_broker = broker.Found((reply,)) if isinstance(reply, Check) else reply
    # 3. The database, and whether it has the jobs that the broker holds.
    retained_jobs = retained.job_ids(config.mqtt, of_broker.retained)
    of_database = await _examine_database(setting, retained_jobs, of_daemon)
    of_retained: list[Check] = []
    if any(check.name == broker.ACL for check in of_broker.checks):
        of_retained = [retained.judge_retained(config.mqtt, of_broker.retained, of_database.unknown_jobs)]
    # 4. The files of this host.
    of_secrets = await guarded(host.SECRETS, CHECK_WITHIN, asyncio.to_thread(host.secrets, setting))
    of_directory = await guarded(host.DIRECTORY, CHECK_WITHIN, asyncio.to_thread(host.directory, config))
    read = await guarded(
        checkpoint_file.CHECKPOINT, CHECK_WITHIN, asyncio.to_thread(checkpoint_file.checkpoint, config)
    )
    of_checkpoint, figures = (read, None) if isinstance(read, Check) else read
    checks = [
        host.configuration(setting),
        of_secrets,
        host.versions(),
        *of_database.checks,
        *of_broker.checks,
        *of_retained,
        *of_cluster,
        of_receiver,
        of_webhooks,
        of_unit,
        *of_daemon.checks,
        of_directory,
        of_checkpoint,
    ]
    report = Report(__version__, service.stamp(), tuple(fixes.copyable(setting, check) for check in checks))
    return Examined(report, of_daemon, figures, of_broker.version)


async def examine_gateway(setting: Setting, url: str | None = None, token: str = "") -> Examined:
    """Run the checks of a gateway, which has no database and no broker."""
    config = setting.config
    token = token or _own_token(config)
    answer = await guarded(daemon.PORT, CHECK_WITHIN, daemon.inspect(config, url, token))
    of_daemon = daemon.Found((answer,)) if isinstance(answer, Check) else answer
    of_cluster, of_unit = await asyncio.gather(
        _examine_cluster(config, of_daemon, gateway=True),
        guarded(service.UNIT_CHECK, CHECK_WITHIN, service.unit(service.GATEWAY_UNIT)),
    )
    of_secrets = await guarded(host.SECRETS, CHECK_WITHIN, asyncio.to_thread(host.secrets, setting))
    checks = [host.configuration(setting), of_secrets, host.versions(), *of_cluster, of_unit, *of_daemon.checks]
    report = Report(__version__, service.stamp(), tuple(fixes.copyable(setting, check) for check in checks))
    return Examined(report, of_daemon, None, "")


def _own_token(config: Config) -> str:
    """Return a token that the daemon accepts; "" if it needs none, or its file cannot be used."""
    try:
        return min(read_tokens(config), default="")
    except ConfigError:  # one of `Setting.problems`
        return ""


async def _examine_cluster(config: Config, of_daemon: daemon.Found, *, gateway: bool) -> list[Check]:
    ours = rendering.of_instance(config)
    inspecting = cluster.inspect(config.cluster, gateway=gateway, metrics=of_daemon.metrics, ours=ours)
    found = await guarded(cluster.SERVER, CHECK_WITHIN, inspecting)
    return [found] if isinstance(found, Check) else found


async def _examine_database(
    setting: Setting, retained_jobs: Sequence[str], of_daemon: daemon.Found
) -> _DatabaseFindings:
    """The checks of the database, one after the other over one link."""
    config = setting.config
    try:
        database = source_of(config)
    except (SourceUnavailable, OSError) as error:  # the driver is not installed, or a certificate cannot be read
        return _DatabaseFindings((failure(account.LOGIN, str(error)),))
    link = Link(database)
    try:
        checks = [await guarded(account.LOGIN, CHECK_WITHIN, account.login(setting, link))]
        if checks[0].status == "failure":
            return _DatabaseFindings(tuple(checks))
        if not isinstance(config.database.url, SqliteUrl):
            checks.append(await guarded(account.TLS, CHECK_WITHIN, account.encryption(config, link)))
            checks.append(await guarded(account.RIGHTS, CHECK_WITHIN, account.rights(config, link)))
            checks.append(await guarded(account.CONNECTIONS, CHECK_WITHIN, account.connections(link)))
        checks.append(await guarded(tables.CLOCK, CHECK_WITHIN, tables.clock(config, link)))
        contents = await _examine_contents(setting, database, link, retained_jobs, of_daemon)
        return _DatabaseFindings((*checks, *contents.checks), contents.unknown_jobs)
    finally:
        await link.close()


async def _examine_contents(
    setting: Setting,
    database: Database,
    link: Link,
    retained_jobs: Sequence[str],
    of_daemon: daemon.Found,
) -> _DatabaseFindings:
    """The checks that need the schema."""
    config = setting.config
    schema = await guarded(tables.SCHEMA, CHECK_WITHIN, database.schema(link))
    if isinstance(schema, Check):
        return _DatabaseFindings((schema,))
    checks = [tables.judge_schema(schema, legacy=config.jobs.legacy)]
    if not schema.has("log_events", *INDISPENSABLE):
        return _DatabaseFindings(tuple(checks))
    zone = await guarded(tables.ZONE, CHECK_WITHIN, database.zone(link))
    if isinstance(zone, Check):
        return _DatabaseFindings((*checks, zone))
    queries = Queries(database.dialect, schema, zone)
    checks.append(await guarded(tables.ZONE, CHECK_WITHIN, tables.time_zone(config, database, queries, link)))
    used = await guarded(usage.ROWS, LOG_WITHIN, _examine_usage(setting, queries, link, of_daemon))
    checks += [used] if isinstance(used, Check) else used
    unknown = await guarded(retained.RETAINED, CHECK_WITHIN, day.unknown(queries, link, list(retained_jobs)))
    return _DatabaseFindings(tuple(checks), None if isinstance(unknown, Check) else unknown)


async def _examine_usage(setting: Setting, queries: Queries, link: Link, of_daemon: daemon.Found) -> list[Check]:
    """The checks of one day of log and tables. `of_daemon`: what the running daemon has counted and knows."""
    config = setting.config
    now = await day.now(queries, link)
    log = await day.read_log(config, queries, link, now)
    found = await day.read_tables(queries, link, now)
    checks = [usage.judge_rows(log, found)]
    if not queries.schema.has("job_tracking", "id"):
        return checks
    nowhere, unsure = await day.look_up(config, queries, link, usage.candidates(log, found))
    unowned, undecided = await day.unowned(config, queries, link, now, usage.unclaimed(log, found))
    checks += [
        usage.judge_ids(log, found),
        usage.judge_unresolved(log, found, nowhere, unsure),
        usage.judge_legacy(log, found, unowned, undecided, legacy=config.jobs.legacy),
        usage.judge_drops(log, found, now * 1_000_000, of_daemon.corrections),
    ]
    if of_daemon.operations is not None:
        checks.append(usage.judge_operations(found, of_daemon.operations))
    return checks
