"""Reads the stream in slices and compares them with memory. What differs is written again, and is counted."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING

from correlator.cluster import keys
from correlator.cluster.connection import Connection
from correlator.cluster.errors import ClusterUnavailable, Refused
from correlator.jobs.bounded import chunks
from correlator.jobs.directory import JobDirectory
from correlator.ops.stalls import timed
from correlator.sinks.cluster import values
from correlator.sinks.cluster.comparison import AT_ONCE, Comparison, Stored
from correlator.sinks.cluster.dirty_keys import DirtyKeys
from correlator.sinks.cluster.timings import Timings

if TYPE_CHECKING:
    from nats.aio.msg import Msg

SLICE = 200
SLICE_BYTES = 1_000_000
"""Messages and bytes of one slice of the stream."""

UNUSED_SECONDS = 30
"""The server removes a consumer that nobody has used for so long."""


class Repair:
    """Compares the jobs of `instance` in memory with the stream."""

    def __init__(
        self, connection: Connection, instance: str, published: JobDirectory, dirty: DirtyKeys, timings: Timings
    ) -> None:
        self._connection = connection
        self._instance = instance
        self._published = published
        self._dirty = dirty
        self._timings = timings

    async def run(self, *, periodic: bool, beat: Callable[[], None]) -> int:
        """Compare all jobs once, and add what differs to the dirty keys. Returns the number of differences.

        `periodic`: there should be none, so take time, and read each difference again before it counts: a server
        that is behind may have answered. Raises: `ClusterUnavailable`, `Refused`.
        """
        limit = values.limit(self._connection.client.max_payload)
        self._dirty.incomplete = False
        comparison = Comparison(self._published, self._dirty.begin_comparison(), limit)
        differing: list[str] = []
        found: list[str] = []
        try:
            async for stored in slices(self._connection, self._instance, self._timings.answer_within):
                for part in chunks(stored, AT_ONCE):
                    with timed("cluster comparison"):
                        differing += comparison.differing(part)
                    await asyncio.sleep(0)
                beat()
                await asyncio.sleep(self._timings.slice_pause if periodic else 0)
            for some in comparison.to_write(differing):
                found += some
                await asyncio.sleep(0)
            if periodic and found:
                await asyncio.sleep(self._timings.behind_within)
                found = await self._confirmed(comparison, found, beat)
            self._dirty.add(found)
        except BaseException:
            self._dirty.incomplete = True
            raise
        finally:
            self._dirty.end_comparison()
        return len(found)

    async def _confirmed(self, comparison: Comparison, found: Sequence[str], beat: Callable[[], None]) -> list[str]:
        confirmed = []
        for job_id in found:
            subject = keys.job(self._instance, job_id)
            last = await self._connection.last(keys.STATE, subject, within=self._timings.answer_within)
            stored = Stored(job_id, None) if last is None else _stored(job_id, last.data, last.headers)
            confirmed += comparison.differing([stored])
            beat()
        return confirmed


async def slices(connection: Connection, instance: str, within: float) -> AsyncIterator[list[Stored]]:
    """Yield the newest message of each job of `instance`, in the order of the stream.

    Raises: `ClusterUnavailable` if nothing arrives for `within` seconds, `Refused`.
    """
    name, subject = secrets.token_hex(12), keys.jobs(instance)
    settings = {
        "name": name,
        "filter_subject": subject,
        "deliver_policy": "all",  # The stream keeps one message of a subject.
        "ack_policy": "none",
        "mem_storage": True,
        "num_replicas": 1,
        "inactive_threshold": UNUSED_SECONDS * 1_000_000_000,
    }
    request = {"stream_name": keys.STATE, "config": settings}
    # The API's subject has the filter, so that the server can limit a collector to its own jobs.
    await connection.api(f"CONSUMER.CREATE.{keys.STATE}.{name}.{subject}", request, within=within)
    messages: asyncio.Queue[Msg] = asyncio.Queue()
    inbox = connection.client.new_inbox()
    unsubscribe = await connection.subscribe(inbox, messages.put)
    try:
        wanted = json.dumps({"batch": SLICE, "max_bytes": SLICE_BYTES, "no_wait": True}).encode()
        while True:
            await connection.publish(f"$JS.API.CONSUMER.MSG.NEXT.{keys.STATE}.{name}", wanted, reply=inbox)
            stored = await _slice(messages, within)
            if not stored:
                return
            yield stored
    finally:
        await unsubscribe()


async def _slice(messages: asyncio.Queue[Msg], within: float) -> list[Stored]:
    """Return the messages of one slice. Empty after the last one."""
    found: list[Stored] = []
    while len(found) < SLICE:
        try:
            async with asyncio.timeout(within):
                message = await messages.get()
        except TimeoutError:
            raise ClusterUnavailable(f"nothing of the stream within {within:g} s") from None
        headers = message.headers or {}
        if message.reply.startswith(keys.ACK):  # A stored message may have a header Status of its own.
            if (job := keys.job_of(message.subject)) is not None:
                found.append(_stored(job[1], message.data, headers))
            continue
        match headers.get("Status", ""):
            case "404":  # There are no more messages.
                break
            case "409":  # The slice before this one is complete, or this one has enough bytes.
                if found:
                    break
            case status:
                raise Refused(headers.get("Description", status))
    return found


def _stored(job_id: str, payload: bytes, headers: dict[str, str] | None) -> Stored:
    removed = headers is not None and ("KV-Operation" in headers or "Nats-Marker-Reason" in headers)
    return Stored(job_id, None if removed else payload)
