"""Writes documents into the streams of a cluster, as a collector does: for tests of gateways alone."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice

from correlator.cluster import keys, streams
from correlator.cluster.connection import Connection
from correlator.cluster.fence import StreamMessage, write_pipelined
from correlator.model.facts import Line, Status
from correlator.model.published import JobView, PublishedJob
from correlator.sinks.cluster import documents

AT = 1_758_553_933_000_000
AT_ONCE = 250
"""Documents of which the last is acknowledged: NATS stores them in the order in which they come."""

PURGE = {"KV-Operation": "PURGE", "Nats-TTL": "86400s"}


def job(job_id: str, status: str = "running", *, started_at: int = AT, ids: Iterable[str] = ()) -> PublishedJob:
    last = Line(AT, 0, "INFO", "the last line")
    view = JobView(
        job_id, Status(status), external_ids=tuple(ids), job_type="failover", started_at=started_at, last=last
    )
    return PublishedJob(view, 0, AT)


class StreamWriter:
    """The writer of one appliance. `epoch`: of the whole stream; it is written if there is none."""

    def __init__(self, connection: Connection, instance: str) -> None:
        self._connection = connection
        self._instance = instance

    async def begin(self, epoch: str = "epoch-1") -> None:
        await streams.create(self._connection, 1)
        if await self._connection.last(keys.STATE, keys.EPOCH) is None:
            await self.set_epoch(epoch)

    async def set_epoch(self, epoch: str) -> None:
        await self._connection.request(keys.EPOCH, epoch.encode())

    async def put(self, *jobs: PublishedJob) -> int:
        """Write documents in one batch. Returns the sequence of the last one."""
        return await self._write([StreamMessage(*self._stored(shown)) for shown in jobs])

    async def fill(self, jobs: Iterable[PublishedJob]) -> None:
        """Write many documents, several thousand in a second: one acknowledgement in `AT_ONCE` is waited for."""
        left = iter(jobs)
        while several := list(islice(left, AT_ONCE)):
            for shown in several[:-1]:
                await self._connection.publish(*self._stored(shown))
            await self._connection.request(*self._stored(several[-1]))

    def _stored(self, shown: PublishedJob) -> tuple[str, bytes]:
        return keys.job(self._instance, shown.job_id), documents.encode(shown)

    async def remove(self, job_id: str, reason: str = "retention") -> int:
        return await self._write(
            [StreamMessage(keys.job(self._instance, job_id), b"", {**PURGE, "Cor-Reason": reason})]
        )

    async def _write(self, messages: list[StreamMessage]) -> int:
        seq = 0
        for at in range(0, len(messages), 250):
            seq = await write_pipelined(self._connection, messages[at : at + 250], {}, 10.0)
        return seq

    async def alive(self, **members: object) -> None:
        value = {"holder": "h", "version": "1.2.3", "database": "live", "error": None, "lag_seconds": 0.0, "jobs": 1}
        await self._connection.request(keys.alive(self._instance), json.dumps(value | members).encode())

    async def event(self, kind: str, job_id: str) -> None:
        payload = {"event_id": None, "kind": kind, "job_id": job_id, "step_id": None, "step_name": None, "error": None}
        encoded = json.dumps(payload | {"at": "2025-09-22T15:12:13.000000Z"}).encode()
        await self._connection.request(keys.event(self._instance, job_id), encoded)
