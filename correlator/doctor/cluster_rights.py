"""The check of permissions at NATS: what the role needs is allowed, and a gateway may write no job.

NATS checks the permission for a subject before anything else, and reports a refusal on the connection. A request for a
check asks for what cannot be done, so an answer of any kind is the permission.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable

from correlator.cluster import keys
from correlator.cluster.errors import ClusterUnavailable, Refused
from correlator.config.cluster import Cluster
from correlator.doctor.check import Check, failure, ok, warning
from correlator.doctor.prober import Prober

RIGHTS = "cluster.permissions"

ANSWER_WITHIN = 2.0
"""Seconds after which a request without an answer was refused."""

IMPOSSIBLE = {"Nats-Expected-Last-Subject-Sequence": str(2**62)}
"""A header with which no message is stored."""

NAME = "correlator-doctor"


async def inspect(connection: Prober, settings: Cluster, *, gateway: bool) -> Check:
    """Try what the role needs, all at once."""
    tries = _of_gateway(connection, settings) if gateway else _of_collector(connection, settings)
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
        job = keys.job(settings.instance, NAME)
        if await _allowed(lambda: _write(connection, job)):
            lines = ["A gateway reads only: the permissions of deploy/nats/accounts.conf are enough."]
            return warning(RIGHTS, "this user may write jobs, which a gateway does not need", lines)
        return ok(RIGHTS, "may read every appliance, and write no job")
    foreign = keys.job(f"{settings.instance[:50]}-{secrets.token_hex(4)}", NAME)
    if await _allowed(lambda: _write(connection, foreign)):
        lines = ["The permissions of deploy/nats/ let a collector write its own appliance only."]
        return warning(RIGHTS, f"may write {settings.instance}, and other appliances too", lines)
    return ok(RIGHTS, f"may write {settings.instance}, and no other appliance")


def _of_collector(connection: Prober, settings: Cluster) -> dict[str, Callable[[], Awaitable[object]]]:
    instance = settings.instance
    written = (
        keys.job(instance, NAME),
        keys.owner(instance),
        keys.EPOCH,
        keys.alive(instance),
        keys.checkpoint(instance, NAME),
        keys.event(instance, NAME),
    )
    read = (
        (keys.STATE, keys.owner(instance)),
        (keys.STATE, keys.EPOCH),
        (keys.ALIVE, keys.alive(instance)),
        (keys.CHECKPOINT, keys.checkpoint_owner(instance)),
    )
    tries: dict[str, Callable[[], Awaitable[object]]] = {}
    for subject in written:
        tries[f"write {subject}"] = _bound(_write, connection, subject)
    for stream, subject in read:
        tries[f"read {subject}"] = _bound(_read, connection, stream, subject)
    tries[f"subscribe {keys.WANT}"] = _bound(_subscribe, connection, keys.WANT)
    tries[f"subscribe {keys.standby(instance)}"] = _bound(_subscribe, connection, keys.standby(instance))
    tries[f"subscribe {keys.rpc(instance, '*')}"] = _bound(_subscribe, connection, keys.rpc(instance, "*"))
    return tries


def _of_gateway(connection: Prober, settings: Cluster) -> dict[str, Callable[[], Awaitable[object]]]:
    return {
        f"read {keys.EPOCH}": _bound(_read, connection, keys.STATE, keys.EPOCH),
        f"read {keys.EVERY_ALIVE}": _bound(_read, connection, keys.ALIVE, keys.alive(settings.instance)),
        f"consume {keys.STATE}": _bound(_consume, connection, keys.STATE, "$KV.cor.>"),
        f"subscribe {keys.line('*')}": _bound(_subscribe, connection, keys.line("*")),
    }


def _bound(
    act: Callable[..., Awaitable[object]], connection: Prober, *arguments: str
) -> Callable[[], Awaitable[object]]:
    return lambda: act(connection, *arguments)


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


async def _consume(connection: Prober, stream: str, subject: str) -> None:
    name = f"{NAME}-{secrets.token_hex(6)}"
    inbox = connection.client.new_inbox()
    settings = {"name": name, "deliver_subject": inbox, "deliver_policy": "new", "ack_policy": "none"}
    more = {"filter_subject": subject, "mem_storage": True, "num_replicas": 1, "inactive_threshold": 1_000_000_000}
    request = {"stream_name": stream, "config": settings | more}
    await connection.api(f"CONSUMER.CREATE.{stream}.{name}.{subject}", request, within=ANSWER_WITHIN)
    await connection.api(f"CONSUMER.DELETE.{stream}.{name}", within=ANSWER_WITHIN)


async def _subscribe(connection: Prober, subject: str) -> None:
    """Subscribe for a moment. A refusal arrives before the answer to a ping that follows it."""
    unsubscribe = await connection.subscribe(subject, _ignore)
    try:
        await connection.client.flush(int(ANSWER_WITHIN))
        refused = f'subscription to "{subject}"'.lower()
        if any(refused in line.lower() for line in connection.refusals):
            raise ClusterUnavailable(f"not allowed: {subject}")
    finally:
        await unsubscribe()


async def _ignore(_: object) -> None:
    pass
