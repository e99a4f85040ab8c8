"""Runs all checks in their order, and passes findings from one to the next.

This host, the daemon and the broker come first; then the database, which is asked about the jobs that the broker
holds, and compared with what the daemon has counted. A check that fails never prevents an independent one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from msgspec import Struct

from correlator import __version__
from correlator.config import rendering
from correlator.config.schema import Config
from correlator.doctor import cluster, daemon, database, host, mqtt, receivers, service
from correlator.doctor.report import Check, CheckReport, copyable, guarded
from correlator.doctor.service import Setting


class Examined(Struct, frozen=True):
    """The report, and the findings that a support bundle contains."""

    report: CheckReport
    daemon: daemon.DaemonFindings
    checkpoint: host.CheckpointFigures | None
    broker_version: str


async def examine(
    setting: Setting, url: str | None = None, token: str = "", *, broker: mqtt.BrokerTimings = mqtt.PATIENT
) -> Examined:
    """Run all checks. `url` and `token` are those of the running daemon, if they differ from the configuration.

    `broker`: how long the broker has for what.

    A gateway has no database, no broker, no receivers and no checkpoint.
    """
    config = setting.config
    # 1. The daemon, as the check of the broker compares the broker with what the daemon reports.
    answer = await guarded(daemon.PORT, daemon.inspect(config, url, token or service.token_of(config)))
    of_daemon = daemon.DaemonFindings((answer,)) if isinstance(answer, Check) else answer
    of_secrets = await guarded(host.SECRETS, asyncio.to_thread(host.secrets, setting))
    of_listener = await guarded(host.LISTENER, asyncio.to_thread(host.listener, config))
    of_host = [host.configuration(setting), of_secrets, of_listener, host.versions()]
    if setting.gateway:
        of_unit = await guarded(host.UNIT_CHECK, host.unit_state(service.GATEWAY_UNIT))
        of_cluster = await _examine_cluster(config, of_daemon, gateway=True)
        return _examined(setting, [*of_host, *of_cluster, of_unit, *of_daemon.checks], of_daemon)
    # 2. The broker, the cluster, the receivers of traces and of webhooks, and the systemd unit, concurrently.
    reply, of_cluster, of_receiver, of_webhooks, of_unit = await asyncio.gather(
        guarded(mqtt.LOGIN, mqtt.inspect(config.mqtt, running=of_daemon.publishes, timings=broker)),
        _examine_cluster(config, of_daemon, gateway=False),
        guarded(receivers.RECEIVER, receivers.inspect_traces(config)),
        guarded(receivers.WEBHOOKS, receivers.inspect_webhooks(config.webhooks, of_daemon.ready)),
        guarded(host.UNIT_CHECK, host.unit_state()),
    )
    of_broker = mqtt.BrokerFindings((reply,)) if isinstance(reply, Check) else reply
    # 3. The database, and whether it has the jobs that the broker holds.
    retained_jobs = mqtt.job_ids(config.mqtt, of_broker.retained)
    of_database = await database.inspect(setting, retained_jobs, of_daemon)
    of_retained: list[Check] = []
    if any(check.name == mqtt.ACL for check in of_broker.checks):
        of_retained = [mqtt.judge_retained(config.mqtt, of_broker.retained, of_database.unknown_jobs)]
    # 4. The files of this host.
    of_directory = await guarded(host.DIRECTORY, asyncio.to_thread(host.directory, config))
    read = await guarded(host.CHECKPOINT, asyncio.to_thread(host.checkpoint, config))
    of_checkpoint, figures = (read, None) if isinstance(read, Check) else read
    checks = [
        *of_host,
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
    return _examined(setting, checks, of_daemon, figures, of_broker.version)


def _examined(
    setting: Setting,
    checks: Sequence[Check],
    of_daemon: daemon.DaemonFindings,
    figures: host.CheckpointFigures | None = None,
    broker_version: str = "",
) -> Examined:
    report = CheckReport(__version__, service.stamp(), tuple(copyable(setting, check) for check in checks))
    return Examined(report, of_daemon, figures, broker_version)


async def _examine_cluster(config: Config, of_daemon: daemon.DaemonFindings, *, gateway: bool) -> list[Check]:
    ours = rendering.of_instance(config)
    inspecting = cluster.inspect(config.cluster, gateway=gateway, metrics=of_daemon.metrics, ours=ours)
    found = await guarded(cluster.SERVER, inspecting)
    return [found] if isinstance(found, Check) else found
