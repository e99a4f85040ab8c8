"""Checks of the cluster: its servers, the streams, what the user may do, the lease, and how far it is behind.

The checks connect with the certificate or the credentials of the configuration, in the role of the process that has it.
They change nothing: what is written for a check expects a sequence that no key has, so that NATS refuses it after the
permission was checked; a consumer of a check ends with it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from shlex import quote
from typing import Any

from msgspec import Struct

from correlator.cluster import keys, received, streams
from correlator.cluster.connection import ClusterUnavailable, Connection, Refused, is_login_refused, text_of
from correlator.config.rendering import differences
from correlator.config.schema import Cluster
from correlator.config.values import is_loopback
from correlator.doctor.daemon import samples
from correlator.doctor.report import Check, failure, ok, some, warning
from correlator.errors import ConfigError
from correlator.tasks import end_tasks

SERVER, STREAMS, RIGHTS = "cluster.server", "cluster.streams", "cluster.permissions"
LEASE, APPLIANCES, LAG = "cluster.lease", "cluster.appliances", "cluster.lag"


class Prober(Connection):
    """A connection that collects what the server refuses to it."""

    def __init__(self, settings: Cluster, role: str) -> None:
        super().__init__(settings, role)
        self.refusals: list[str] = []

    async def _on_error(self, error: Exception) -> None:
        if self.connected:
            self.refusals.append(text_of(error))
        else:
            await super()._on_error(error)


CONNECT_WITHIN = 5.0
"""Seconds until a server must have accepted the login."""

PROVISIONER = "Run the command with the certificate of the provisioner, if the server has the users of deploy/nats/."

DOMAIN = 'cluster.domain = "correlator"'
"""What names the API of JetStream to the accounts of deploy/nats/."""

FULL, NEARLY_FULL = 0.95, 0.8
"""Shares of the bytes that a stream may have."""


async def inspect(settings: Cluster, *, gateway: bool, metrics: str | None, ours: Mapping[str, str]) -> list[Check]:
    """Run the checks. `metrics`: of the running process, None if it does not answer; `ours`: see `of_instance`."""
    if settings.url is None:
        if gateway:
            return [failure(SERVER, "cluster.url is empty", fix=['cluster.url = "nats://127.0.0.1:4222"'])]
        return [ok(SERVER, "cluster.url is empty: this daemon is in no cluster")]
    role = "gateway" if gateway else "collector"
    try:
        connection = Prober(settings, role)
    except ConfigError as error:
        return [failure(SERVER, "; ".join(error.problems))]
    running = asyncio.create_task(connection.run(), name="doctor-cluster")
    try:
        began = time.monotonic()
        try:
            await connection.connect(CONNECT_WITHIN)
        except ClusterUnavailable as error:
            return [_unreachable(settings, str(error))]
        checks = [_judge_server(connection, time.monotonic() - began)]
        try:
            found = await streams.infos(connection)
        except (ClusterUnavailable, Refused) as error:
            return [*checks, _no_streams(connection, role, error)]
        checks.append(judge_streams(found, settings, gateway=gateway))
        if all(info is not None for info in found.values()):
            checks.append(await inspect_permissions(connection, settings, gateway=gateway))
            checks.append(await _inspect_lease(connection, settings, leaderless(found), ours, gateway=gateway))
            checks += [judge_lag(metrics, gateway=gateway)] if metrics is not None else []
        return checks
    finally:
        await end_tasks({running})


def _judge_server(connection: Connection, took: float) -> Check:
    client = connection.client
    url = client.connected_url
    where = url.netloc if url is not None else "?"
    known = sorted(server.netloc for server in client.servers)
    version = client.connected_server_version
    words = f"{where}, NATS {version.major}.{version.minor}.{version.patch}, in {took * 1000:.0f} ms"
    lines = [f"servers: {some(known)}"] if len(known) > 1 else []
    if url is not None and url.scheme == "nats" and not is_loopback(url.hostname or ""):
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
        return failure(SERVER, words, ["docs/cluster.md says how to install a server that is new enough."])
    host = settings.url.servers[0].partition("//")[2].rpartition(":")[0] if settings.url is not None else ""
    host = host.strip("[]")
    if is_loopback(host):
        return failure(SERVER, words, fix=["systemctl start nats-server", "systemctl status nats-server"])
    lines = [f"On {host}: is nats-server running, and may this host connect to it?"]
    return failure(SERVER, words, lines, [f"getent hosts {quote(host)}"])


def _no_streams(connection: Prober, role: str, error: Exception) -> Check:
    if connection.refusals:
        lines = [*connection.refusals[:3], f"deploy/nats/ has the permissions of a {role}; they need {DOMAIN}."]
        return failure(STREAMS, f"the user may not ask for the streams: {error}", lines)
    return failure(STREAMS, f"JetStream does not answer: {error}", ["It may be off, or have no majority of servers."])


def judge_streams(found: Mapping[str, dict[str, Any] | None], settings: Cluster, *, gateway: bool) -> Check:
    """Judge what JetStream reports of each stream. None: there is no such stream."""
    if missing := [name for name, info in found.items() if info is None]:
        none = len(missing) == len(found)
        words = "there are no streams: none was created yet, or NATS has lost them" if none else "streams are missing"
        lines = [f"missing: {', '.join(missing)}", PROVISIONER]
        return failure(STREAMS, words, lines, [streams.COMMAND])
    infos = {name: info for name, info in found.items() if info is not None}
    bad = [*(f"{name} has no leader" for name in leaderless(infos)), *_filled(infos, FULL)]
    if bad:
        return failure(STREAMS, some(bad), ["Writes are refused. A majority of the servers has to run, with space."])
    doubtful = [*_filled(infos, NEARLY_FULL), *_lagging(infos)]
    # A gateway has no replicas of its own in its configuration.
    foreign = [
        f"{name}: {setting}"
        for name, info in infos.items()
        for setting in streams.foreign(name, info["config"], 1 if gateway else settings.replicas)
    ]
    replicas = infos[keys.STATE]["config"]["num_replicas"]
    state = infos[keys.STATE]["state"]
    words = f"{len(infos)} streams, {replicas} {'replica' if replicas == 1 else 'replicas'}"
    words += f", {state['messages']} keys, {state['bytes'] / 1e6:.1f} MB"
    if foreign:
        lines = [*foreign, *doubtful, words, PROVISIONER]
        return warning(STREAMS, f"{len(foreign)} settings of the streams are foreign", lines, [streams.COMMAND])
    if doubtful:
        return warning(STREAMS, some(doubtful), [words])
    lines = ["A lost server loses the stream until the collectors have written it again."] if replicas == 1 else []
    return ok(STREAMS, words, lines)


def leaderless(infos: Mapping[str, dict[str, Any] | None]) -> list[str]:
    """Return the streams that no server leads."""
    return [name for name, info in infos.items() if streams.is_leaderless(info)]


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


# Permissions at NATS: what the role needs is allowed, and a gateway may write no job. NATS checks the permission for a
# subject before anything else, and reports a refusal on the connection. A request for a check asks for what cannot be
# done, so an answer of any kind is the permission.

ANSWER_WITHIN = 2.0
"""Seconds after which a request without an answer was refused."""

IMPOSSIBLE = {"Nats-Expected-Last-Subject-Sequence": str(2**62)}
"""A header with which no message is stored."""

PROBE_NAME = "correlator-doctor"


async def inspect_permissions(connection: Prober, settings: Cluster, *, gateway: bool) -> Check:
    """Try what the role needs, all at once."""
    tries = _tries_of_gateway(connection, settings) if gateway else _tries_of_collector(connection, settings)
    results = await asyncio.gather(*(_allowed(act) for act in tries.values()))
    denied = [what for what, allowed in zip(tries, results, strict=True) if not allowed]
    role = "gateway" if gateway else "collector"
    if denied and not connection.refusals:
        lines = ["A stream without a majority of its servers answers nothing: cluster.streams, and the logs of NATS."]
        words = f"NATS refuses nothing, and does not answer {len(denied)} of {len(tries)} requests"
        return failure(RIGHTS, words, [*lines, *(f"no answer: {what}" for what in denied)])
    if denied:
        lines = [*(f"refused: {what}" for what in denied), f"deploy/nats/ has the permissions of a {role}."]
        return failure(RIGHTS, f"NATS refuses {len(denied)} of {len(tries)} things that a {role} does", lines)
    if gateway:
        job = keys.job(settings.instance, PROBE_NAME)
        if await _allowed(partial(_write, connection, job)):
            lines = ["A gateway reads only: the permissions of deploy/nats/accounts.conf are enough."]
            return warning(RIGHTS, "this user may write jobs, which a gateway does not need", lines)
        return ok(RIGHTS, "may read every appliance, and write no job")
    foreign = keys.job(f"{settings.instance[:50]}-{secrets.token_hex(4)}", PROBE_NAME)
    if await _allowed(partial(_write, connection, foreign)):
        lines = ["The permissions of deploy/nats/ let a collector write its own appliance only."]
        return warning(RIGHTS, f"may write {settings.instance}, and other appliances too", lines)
    return ok(RIGHTS, f"may write {settings.instance}, and no other appliance")


def _tries_of_collector(connection: Prober, settings: Cluster) -> dict[str, Callable[[], Awaitable[object]]]:
    instance = settings.instance
    written = (
        keys.job(instance, PROBE_NAME),
        keys.owner(instance),
        keys.EPOCH,
        keys.alive(instance),
        keys.checkpoint(instance, PROBE_NAME),
        f"{keys.event(instance, PROBE_NAME)}.check",  # Gateways subscribe events, which have no further token.
    )
    read = (
        (keys.STATE, keys.owner(instance)),
        (keys.STATE, keys.EPOCH),
        (keys.ALIVE, keys.alive(instance)),
        (keys.CHECKPOINT, keys.checkpoint_owner(instance)),
    )
    tries: dict[str, Callable[[], Awaitable[object]]] = {}
    for subject in written:
        tries[f"write {subject}"] = partial(_write, connection, subject)
    for stream, subject in read:
        tries[f"read {subject}"] = partial(_read, connection, stream, subject)
    for stream in (keys.STATE, keys.CHECKPOINT):
        tries[f"read {stream}"] = partial(_read_several, connection, stream)
    tries[f"subscribe {keys.WANT}"] = partial(_subscribe, connection, keys.WANT)
    tries[f"subscribe {keys.standby(instance)}"] = partial(_subscribe, connection, keys.standby(instance))
    tries[f"subscribe {keys.rpc(instance, '*')}"] = partial(_subscribe, connection, keys.rpc(instance, "*"))
    return tries


def _tries_of_gateway(connection: Prober, settings: Cluster) -> dict[str, Callable[[], Awaitable[object]]]:
    return {
        f"read {keys.EPOCH}": partial(_read, connection, keys.STATE, keys.EPOCH),
        f"read {keys.EVERY_ALIVE}": partial(_read, connection, keys.ALIVE, keys.alive(settings.instance)),
        f"consume {keys.STATE}": partial(_consume, connection, keys.STATE, "$KV.cor.>"),
        f"subscribe {keys.line('*')}": partial(_subscribe, connection, keys.line("*")),
    }


async def _allowed(act: Callable[[], Awaitable[object]]) -> bool:
    try:
        await act()
    except Refused:
        return True  # JetStream answered
    except ClusterUnavailable:
        return False
    return True


async def _write(connection: Prober, subject: str) -> None:
    await connection.request(subject, headers=IMPOSSIBLE, within=ANSWER_WITHIN)


async def _read(connection: Prober, stream: str, subject: str) -> None:
    await connection.last(stream, subject, within=ANSWER_WITHIN)


async def _read_several(connection: Prober, stream: str) -> None:
    """Ask for many messages at once, beyond the end of the stream."""
    request = b'{"seq":%d,"next_by_subj":">","batch":1}' % 2**62
    await connection.request(f"{connection.api_subject}.DIRECT.GET.{stream}", request, within=ANSWER_WITHIN)


async def _consume(connection: Prober, stream: str, subject: str) -> None:
    name = f"{PROBE_NAME}-{secrets.token_hex(6)}"
    inbox = connection.client.new_inbox()
    settings = {"name": name, "deliver_subject": inbox, "deliver_policy": "new", "ack_policy": "none"}
    more = {"filter_subject": subject, "mem_storage": True, "num_replicas": 1, "inactive_threshold": 1_000_000_000}
    request = {"stream_name": stream, "config": settings | more}
    await connection.api(f"CONSUMER.CREATE.{stream}.{name}.{subject}", request, within=ANSWER_WITHIN)
    await connection.api(f"CONSUMER.DELETE.{stream}.{name}", within=ANSWER_WITHIN)


async def _subscribe(connection: Prober, subject: str) -> None:
    """Subscribe for a moment. A refusal arrives before the answer to a ping that follows it."""
    async with connection.subscribed(subject, _ignore):
        await connection.client.flush(int(ANSWER_WITHIN))
        refused = f'subscription to "{subject}"'.lower()
        if any(refused in line.lower() for line in connection.refusals):
            raise ClusterUnavailable(f"not allowed: {subject}")


async def _ignore(_: object) -> None:
    pass


# The lease of one appliance, all appliances at a gateway, and how far the process is behind.

RENEWED_WITHIN = 2.0
"""Seconds within which a collector that is alive renews its key: it does so every 0.5 s."""

BEHIND_AFTER = 30.0
"""Seconds by which a process may be behind."""

MAX_APPLIANCES = 1000


class AliveKey(Struct, frozen=True):
    """The alive key of an appliance. `renewed`: whether it was while the check ran; `seen`: when it was last.

    `value` None: it cannot be read.
    """

    instance: str
    renewed: bool
    seen: str
    value: received.Alive | None


async def _inspect_lease(
    connection: Prober, settings: Cluster, leaderless: Sequence[str], ours: Mapping[str, str], *, gateway: bool
) -> Check:
    """Read the alive keys. `leaderless`: the streams that no server leads; `ours`: see `rendering.of_instance`."""
    name = APPLIANCES if gateway else LEASE
    if keys.STATE in leaderless or keys.ALIVE in leaderless:
        return without_majority(name, leaderless)
    try:
        found = await _alive_keys(connection, await _instances(connection) if gateway else [settings.instance])
    except (ClusterUnavailable, Refused) as error:
        return failure(name, f"the alive keys cannot be read: {error}")
    return judge_appliances(found) if gateway else judge_lease(settings.instance, found[0] if found else None, ours)


def without_majority(name: str, leaderless: Sequence[str]) -> Check:
    """Judge leases that nobody can renew: what is known of their holders proves nothing."""
    words = f"no lease can be taken or renewed: most servers of {some(leaderless)} are away"
    lines = ["No standby can take over. Active collectors go on, and write later what they cannot write now."]
    return failure(name, words, lines)


async def _instances(connection: Prober) -> list[str]:
    """Return the appliances that have ever had a collector, as long as the server keeps its memory."""
    found = await connection.api(
        f"STREAM.INFO.{keys.ALIVE}", {"subjects_filter": keys.EVERY_ALIVE}, received.StreamInfo
    )
    subjects = sorted((found.get("state") or {}).get("subjects") or {})
    return [subject.rpartition(".")[2] for subject in subjects[:MAX_APPLIANCES]]


async def _alive_keys(connection: Prober, instances: Sequence[str]) -> list[AliveKey]:
    """Read the keys that exist twice: whether they are renewed depends on no clock."""
    before = {one: await connection.last(keys.ALIVE, keys.alive(one)) for one in instances}
    if any(before.values()):
        await asyncio.sleep(RENEWED_WITHIN)
    found = []
    for instance, first in before.items():
        message = await connection.last(keys.ALIVE, keys.alive(instance)) if first is not None else None
        if first is None or message is None or not message.data:  # The last: somebody removed it.
            continue
        headers = message.headers or {}
        renewed = headers.get("Nats-Sequence") != (first.headers or {}).get("Nats-Sequence")
        read = partial(received.decode, message.data, received.Alive, received.MAX_KEY)
        value = connection.parser.parse(keys.alive(instance), read)
        found.append(AliveKey(instance, renewed, headers.get("Nats-Time-Stamp", "?")[:19] + "Z", value))
    return found


def judge_lease(instance: str, alive: AliveKey | None, ours: Mapping[str, str]) -> Check:
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
        return warning(LEASE, f"{words}: {problem}", [_alive_summary(value)])
    if found := differences(value.settings, ours):
        lines = [f"{name}: {values}" for name, values in found.items()]
        fix = [f"{name} = {value.settings[name]}" for name in found if name in value.settings]
        return warning(LEASE, f"{words}, with other settings: a takeover changes what is served", lines, fix)
    return ok(LEASE, words, [_alive_summary(value)])


def _alive_summary(value: received.Alive | None) -> str:
    return f"version {value.version}, {value.jobs} jobs" if value is not None else "its alive key cannot be read"


def judge_appliances(found: list[AliveKey]) -> Check:
    """Judge the appliances that a gateway serves."""
    if not found:
        return warning(APPLIANCES, "no appliance has a collector yet")
    silent = [f"{one.instance} (last seen {one.seen})" for one in found if not one.renewed]
    lines = [f"{one.instance}: {_alive_summary(one.value)}" for one in found[:20]]
    if silent:
        return warning(APPLIANCES, f"no collector is alive of {some(silent)}", lines)
    ill = [f"{one.instance}: {problem}" for one in found if (problem := _alive_problem(one.value)) is not None]
    if ill:
        return warning(APPLIANCES, f"{len(ill)} of {len(found)} appliances have a problem: {some(ill)}", lines)
    versions = sorted({one.value.version for one in found if one.value is not None and one.value.version})
    words = f"{len(found)} appliances, all with a collector"
    return ok(APPLIANCES, f"{words}, of the versions {' and '.join(versions)}" if len(versions) > 1 else words, lines)


def _alive_problem(value: received.Alive | None) -> str | None:
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
