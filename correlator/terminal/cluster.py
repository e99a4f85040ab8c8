"""What `cluster create` does: it creates and changes the streams of a cluster, and says what it did."""

from __future__ import annotations

import asyncio

from correlator.cluster import streams
from correlator.cluster.connection import ClusterUnavailable
from correlator.config.schema import Cluster
from correlator.doctor.cluster import CONNECT_WITHIN, Prober
from correlator.errors import ConfigError, CorrelatorError
from correlator.tasks import end_tasks


async def create(settings: Cluster) -> tuple[list[str], bool]:
    """Return a line for each stream, and whether all are as they should be.

    Raises: `CorrelatorError` if NATS cannot be reached or refuses the user.
    """
    if settings.url is None:
        raise ConfigError(["cluster.url is empty: name the NATS servers"])
    connection = Prober(settings, "provisioner")
    running = asyncio.create_task(connection.run(), name="provisioner")
    try:
        await connection.connect(CONNECT_WITHIN)
        made = await streams.create(connection, settings.replicas)
    except ClusterUnavailable as error:
        if not connection.refusals:
            raise
        text = f"{connection.refusals[0]}: run this as the provisioner of docs/cluster.md"
        raise CorrelatorError(text) from error
    finally:
        await end_tasks({running})
    return list(map(_line, made)), all(one.refusal is None for one in made)


def _line(one: streams.Made) -> str:
    if one.changed is None:
        return f"{one.name}: created"
    settings = ", ".join(map(str, one.changed))
    if one.refusal is not None:
        return f"{one.name}: foreign, and NATS refuses to change it ({one.refusal}): {settings}"
    return f"{one.name}: changed: {settings}" if one.changed else f"{one.name}: as it should be"
