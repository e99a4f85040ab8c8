"""A collector of a cluster that waits for the lease, and what it has from then on until it loses it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from correlator.cluster.batches import Fence
from correlator.cluster.errors import ClusterUnavailable, Fenced, Refused
from correlator.following import Following
from correlator.pipeline.checkpoint import Saved
from correlator.pipeline.stream_checkpoint import StreamCheckpoint
from correlator.sinks.cluster.election import Lease

log = logging.getLogger(__name__)

RESTORE_WITHIN = 10.0
"""Seconds to read the checkpoint in the cluster. After them the tables are read, as at a first start."""


@dataclass(frozen=True, slots=True)
class Tenure:
    """What the active has. `holding` ends when the lease is lost; `saved`: what the last active saved in NATS."""

    lease: Lease
    fence: Fence
    holding: asyncio.Task[None]
    stream: StreamCheckpoint
    saved: Saved | None


async def standby(
    lease: Lease,
    following: Following,
    served: asyncio.Future[str],
    group: asyncio.TaskGroup,
) -> Tenure:
    """Wait for the lease, and read the checkpoint in the cluster. Until then no request reaches the database.

    `group`: runs the renewals of the lease from then on.
    """
    following.hub.readiness["cluster"] = lease.describe
    following.hub.refusal = lambda: lease.refusal
    following.archive.refuse(lease.refusal)
    await served
    while True:
        fence = await lease.acquire()
        holding = group.create_task(lease.hold(), name="lease")
        stream = StreamCheckpoint(lease.connection, lease.instance, lease.owner, fence, lease.lose)
        try:
            saved = await _restored(stream)
        except Fenced as error:
            log.warning("the lease was lost again: %s", error)
            holding.cancel()
            await asyncio.wait({holding})
            continue
        except BaseException:
            holding.cancel()
            raise
        following.archive.refuse(None)
        return Tenure(lease, fence, holding, stream, saved)


async def abandon(waiting: asyncio.Task[Tenure]) -> None:
    """End a task that runs `standby`. If it has the lease already, release it."""
    waiting.cancel()
    await asyncio.wait({waiting})
    if not waiting.cancelled() and waiting.exception() is None:
        tenure = waiting.result()
        await tenure.lease.release()
        tenure.holding.cancel()
        await asyncio.wait({tenure.holding})


async def _restored(stream: StreamCheckpoint) -> Saved | None:
    """Read the checkpoint, again after an error. Raises: `Fenced`."""
    loop = asyncio.get_running_loop()
    until = loop.time() + RESTORE_WITHIN
    while True:
        try:
            saved = await stream.open()
        except Fenced:
            raise
        except (ClusterUnavailable, Refused) as error:
            if loop.time() >= until:
                log.warning("the checkpoint in the cluster cannot be read: %s; the tables are read", error)
                return None
            await asyncio.sleep(0.2)
        else:
            return saved
