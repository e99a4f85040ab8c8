"""The documents of the jobs in memory, on their way into the stream `KV_cor`.

`next_batch` makes a batch from the keys that are dirty, with each document as it is at that moment, and `write` sends
it. Making one takes several steps of the event loop, so that no call blocks it for long.
"""

from __future__ import annotations

import asyncio
import logging

from correlator.cluster import keys
from correlator.cluster.batches import Message
from correlator.cluster.connection import Connection
from correlator.cluster.streams import MARKER_TTL
from correlator.jobs.directory import JobDirectory
from correlator.ops import cluster_metrics
from correlator.ops.stalls import timed
from correlator.sinks.cluster import values
from correlator.sinks.cluster.dirty_keys import DirtyKeys

log = logging.getLogger(__name__)

MAX_KEYS = 256
FULL_AT = 256_000
"""A batch is complete with so many keys, or from this number of bytes on, or that of the window of the connection: one
more document may be in it."""

AT_ONCE = 32
"""Documents that are made in one step."""

REASON_HEADER = "Cor-Reason"
PURGE = {"KV-Operation": "PURGE", "Nats-Rollup": "sub", "Nats-TTL": f"{MARKER_TTL}s"}


class Documents:
    """Makes batches of the keys in `dirty` for `connection`."""

    def __init__(self, connection: Connection, instance: str, published: JobDirectory, dirty: DirtyKeys) -> None:
        self._connection = connection
        self._instance = instance
        self._published = published
        self._dirty = dirty

    async def next_batch(self) -> list[Message]:
        """Return the next batch, whose keys are in flight from now on. Empty if no key is dirty."""
        batch: list[Message] = []
        size, limit = 0, values.limit(self._connection.client.max_payload)
        full_at = min(FULL_AT, self._connection.window.share)
        while len(batch) < MAX_KEYS and size < full_at:
            with timed("cluster batch"):
                for _ in range(min(AT_ONCE, MAX_KEYS - len(batch))):
                    job_id = self._dirty.pop_next()
                    if job_id is None:
                        return batch
                    message = self._message(job_id, limit)
                    if message is not None:
                        batch.append(message)
                        size += len(message.payload)
                    if size >= full_at:
                        break
            await asyncio.sleep(0)
        return batch

    def _message(self, job_id: str, limit: int) -> Message | None:
        subject = keys.job(self._instance, job_id)
        shown = self._published.get(job_id)
        if shown is None:
            reason = {REASON_HEADER: self._dirty.removal(job_id)}
            return Message(subject, b"", {**PURGE, **reason})
        try:
            return Message(subject, values.encode(shown, limit))
        except ValueError as error:
            cluster_metrics.REFUSED.inc()
            log.warning("the job %s is not in the cluster: %s", job_id, error)
            return None
