"""Builds the sinks of a term that publish to other programs, with what the last run left for them.

A sink that is not configured is not imported either: with all of them the process is larger, and starts later.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from correlator.config import rendering
from correlator.config.schema import Config
from correlator.daemon.reload import Prepare
from correlator.following import Following
from correlator.jobs.exports import Exports
from correlator.pipeline.hub import Hub, wall_clock
from correlator.sinks import Sink
from correlator.sinks.webhooks.sink import WebhookSink
from correlator.state.rows import Saved

if TYPE_CHECKING:
    from correlator.collector import Tenure
    from correlator.sinks.cluster.sink import ClusterSink
    from correlator.sinks.mqtt.sink import MqttSink
    from correlator.sinks.otlp.sink import OtlpSink


def mqtt_sink(config: Config, hub: Hub, saved: Saved | None) -> MqttSink | None:
    """Build the MQTT sink, with the unacknowledged events of the last run. None if no broker is configured."""
    if config.mqtt.url is None:
        return None
    from correlator.sinks.mqtt.outbox import PendingEvent  # noqa: PLC0415
    from correlator.sinks.mqtt.sink import MqttSink  # noqa: PLC0415

    pending = [PendingEvent(job_id, payload) for job_id, payload in (saved.events if saved is not None else ())]
    mqtt = MqttSink(config.mqtt, retention=config.jobs.retention, pending_events=pending)
    hub.readiness["mqtt"] = mqtt.describe
    return mqtt


def otlp_sink(config: Config, hub: Hub, saved: Saved | None) -> OtlpSink | None:
    """Build the OTLP sink, with the state of the last run. None if no receiver is configured."""
    if config.otlp.url is None:
        return None
    from correlator.sinks.otlp.sink import OtlpSink  # noqa: PLC0415

    last = saved.exports if saved is not None else None
    otlp = OtlpSink(config, Exports(config.otlp.delay, time.monotonic(), last))
    hub.readiness["otlp"] = otlp.describe
    return otlp


def cluster_sink(
    config: Config, following: Following, tenure: Tenure | None, saved: Saved | None
) -> ClusterSink | None:
    """Build the cluster sink, with the state of the last run, and have the alive key say how this daemon is."""
    if tenure is None:
        return None
    # A daemon without a cluster has no metrics of one.
    from correlator.ops import cluster_metrics  # noqa: PLC0415
    from correlator.sinks.cluster.sink import ClusterSink, alive_report  # noqa: PLC0415

    def lost(_: str) -> None:
        cluster_metrics.FENCED.inc()
        lease.lose()

    cluster_metrics.TAKEOVERS.inc()
    hub, lease, started_at = following.hub, tenure.lease, wall_clock()
    sink = ClusterSink(
        lease.connection,
        lease.instance,
        lease.owner,
        tenure.fence,
        lost,
        lambda: hub.index.horizon.log_read_to,
        events=saved.cluster if saved is not None else (),
        position=saved.position if saved is not None else None,
    )
    settings = rendering.of_instance(config)
    hub.readiness["cluster"] = lambda: lease.describe() | sink.describe()
    lease.report = lambda: {
        **alive_report(hub, started_at, config.jobs.external_id_keys, settings),
        **sink.unwritten(),
        "warning": next(filter(None, (hub.readiness[part]().get("error") for part in ("cluster", "checkpoint"))), None),
    }
    return sink


def checks(config: Config) -> list[Prepare]:
    """Return what checks a new configuration for the sinks that a standby has not built yet, and applies nothing."""

    def traces(new: Config) -> Callable[[], None]:
        if new.otlp.url is not None:
            from correlator.sinks.otlp.receiver import receiver  # noqa: PLC0415

            receiver(new.otlp)
        return lambda: None

    return [WebhookSink(config).prepare, traces]


def gateway_requests(tenure: Tenure | None) -> Sink | None:
    """Build what answers gateways while this process holds the lease. None without a cluster."""
    if tenure is None:
        return None
    from correlator.sinks.cluster.gateway_requests import GatewayRequests  # noqa: PLC0415 - it has metrics of a cluster

    return GatewayRequests(tenure.lease.connection, tenure.lease.instance)


def standby_reports(tenure: Tenure | None, hub: Hub) -> Sink | None:
    """Build what receives the reports of the standbys, and have readiness name one that follows another database."""
    if tenure is None:
        return None
    from correlator.sinks.cluster.standbys import Standbys  # noqa: PLC0415 - only in a cluster

    found, of_cluster = Standbys(tenure.lease.connection, tenure.lease.instance), hub.readiness["cluster"]
    hub.readiness["cluster"] = lambda: of_cluster() | found.describe()
    return found
