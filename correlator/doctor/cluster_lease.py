"""The checks of the lease of one appliance, of all appliances at a gateway, and of how far the process is behind."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial

from msgspec import Struct

from correlator.cluster import keys, received
from correlator.cluster.errors import ClusterUnavailable, Refused
from correlator.config.cluster import Cluster
from correlator.config.rendering import differences
from correlator.doctor.check import Check, failure, ok, some, warning
from correlator.doctor.daemon import samples
from correlator.doctor.prober import Prober

LEASE, APPLIANCES, LAG = "cluster.lease", "cluster.appliances", "cluster.lag"

RENEWED_WITHIN = 2.0
"""Seconds within which a collector that is alive renews its key: it does so every 0.5 s."""

BEHIND_AFTER = 30.0
"""Seconds by which a process may be behind."""

MAX_APPLIANCES = 1000


class Alive(Struct, frozen=True):
    """The alive key of an appliance. `renewed`: whether it was while the check ran; `seen`: when it was last.

    `value` None: it cannot be read.
    """

    instance: str
    renewed: bool
    seen: str
    value: received.Alive | None


async def inspect(
    connection: Prober,
    settings: Cluster,
    *,
    gateway: bool,
    metrics: str | None,
    ours: Mapping[str, str],
    leaderless: Sequence[str],
) -> list[Check]:
    """Read the alive keys, and the metrics of the running process.

    `ours`: see `rendering.of_instance`; `leaderless`: the streams that no server leads.
    """
    name = APPLIANCES if gateway else LEASE
    lag = [judge_lag(metrics, gateway=gateway)] if metrics is not None else []
    if keys.STATE in leaderless or keys.ALIVE in leaderless:
        return [without_majority(name, leaderless), *lag]
    try:
        instances = await _instances(connection) if gateway else [settings.instance]
        found = await _alive(connection, instances)
    except (ClusterUnavailable, Refused) as error:
        return [failure(name, f"the alive keys cannot be read: {error}")]
    alive = found[0] if found else None
    return [judge_appliances(found) if gateway else judge_lease(settings.instance, alive, ours), *lag]


def without_majority(name: str, leaderless: Sequence[str]) -> Check:
    """Judge leases that nobody can renew: what is known of their holders proves nothing."""
    words = f"no lease can be taken or renewed: most servers of {some(leaderless)} are away"
    lines = ["No standby can take over. Active collectors go on, and write later what they cannot write now."]
    return failure(name, words, lines)


async def _instances(connection: Prober) -> list[str]:
    """Return the appliances that have ever had a collector, as long as the server keeps its memory."""
    found = await connection.api(f"STREAM.INFO.{keys.ALIVE}", {"subjects_filter": keys.EVERY_ALIVE})
    subjects = sorted((found.get("state") or {}).get("subjects") or {})
    return [subject.rpartition(".")[2] for subject in subjects[:MAX_APPLIANCES]]


async def _alive(connection: Prober, instances: Sequence[str]) -> list[Alive]:
    """Read the keys that exist twice: whether they are renewed depends on no clock."""
    before = {one: await connection.last(keys.ALIVE, keys.alive(one)) for one in instances}
    if any(before.values()):
        await asyncio.sleep(RENEWED_WITHIN)
    found = []
    for instance, first in before.items():
        message = await connection.last(keys.ALIVE, keys.alive(instance)) if first is not None else None
        if first is None or message is None:
            continue
        headers = message.headers or {}
        renewed = headers.get("Nats-Sequence") != (first.headers or {}).get("Nats-Sequence")
        read = partial(received.decode, message.data, received.Alive, received.MAX_KEY)
        value = connection.parser.parse(keys.alive(instance), read)
        found.append(Alive(instance, renewed, headers.get("Nats-Time-Stamp", "?")[:19] + "Z", value))
    return found


def judge_lease(instance: str, alive: Alive | None, ours: Mapping[str, str]) -> Check:
    """Judge the lease of the appliance of this collector, and whether its settings are those of the active one."""
    fix = ["systemctl status correlator", "journalctl -u correlator -n 50"]
    if alive is None:
        return warning(LEASE, f"no collector of {instance} has held the lease yet", fix=fix)
    value = alive.value
    if value is None:
        return warning(LEASE, f"the alive key of {instance} cannot be read; its collector writes it again", fix=fix)
    holder = value.holder or "?"
    words = f"{holder} holds the lease of {instance}"
    if not alive.renewed:
        return failure(LEASE, f"nobody holds the lease of {instance}: last renewed at {alive.seen}", [holder], fix)
    if problem := value.problem() or value.warning:
        words += f", and its database is {value.database}" if value.database != "live" else ""
        return warning(LEASE, f"{words}: {problem}", [_summary(value)])
    if found := differences(value.settings, ours):
        lines = [f"{name}: {values}" for name, values in found.items()]
        fix = [f"{name} = {value.settings[name]}" for name in found if name in value.settings]
        return warning(LEASE, f"{words}, with other settings: a takeover changes what is served", lines, fix)
    return ok(LEASE, words, [_summary(value)])


def _summary(value: received.Alive | None) -> str:
    return f"version {value.version}, {value.jobs} jobs" if value is not None else "its alive key cannot be read"


def judge_appliances(found: list[Alive]) -> Check:
    """Judge the appliances that a gateway serves."""
    if not found:
        return warning(APPLIANCES, "no appliance has a collector yet")
    silent = [f"{one.instance} (last seen {one.seen})" for one in found if not one.renewed]
    lines = [f"{one.instance}: {_summary(one.value)}" for one in found[:20]]
    if silent:
        return warning(APPLIANCES, f"no collector is alive of {some(silent)}", lines)
    ill = [f"{one.instance}: {problem}" for one in found if (problem := _problem(one.value)) is not None]
    if ill:
        return warning(APPLIANCES, f"{len(ill)} of {len(found)} appliances have a problem: {some(ill)}", lines)
    versions = sorted({one.value.version for one in found if one.value is not None and one.value.version})
    words = f"{len(found)} appliances, all with a collector"
    return ok(APPLIANCES, f"{words}, of the versions {' and '.join(versions)}" if len(versions) > 1 else words, lines)


def _problem(value: received.Alive | None) -> str | None:
    return "its alive key cannot be read" if value is None else value.problem() or value.warning


def judge_lag(metrics: str, *, gateway: bool) -> Check:
    """Judge how far the running process is behind, by its metrics."""
    name = "correlator_gateway_stale_seconds" if gateway else "correlator_cluster_queue_age_seconds"
    waiting = "correlator_gateway_behind_messages" if gateway else "correlator_cluster_pending"
    age = max((value for _, value in samples(metrics, name)), default=None)
    count = max((value for _, value in samples(metrics, waiting)), default=0.0)
    if not any(value == 1 for _, value in samples(metrics, "correlator_cluster_connected")):
        return warning(LAG, "the running process is not connected to the cluster", ["Its journal has the reason."])
    if age is None:
        return warning(LAG, "the running gateway has not read the stream yet")
    what = f"{count:.0f} messages to read" if gateway else f"{count:.0f} jobs and events to write"
    if age > BEHIND_AFTER:
        return warning(LAG, f"the running process is {age:.0f} s behind, with {what}")
    return ok(LAG, f"{age:.1f} s, with {what}")
