"""The comparison of memory with the stream: which keys of the stream must be written again or removed.

Memory follows the database, so it is right where the two differ. `Repair` reads the stream in slices while both sides
change: a job that is marked while the comparison runs is written anyway, and is not compared
(`DirtyKeys.begin_comparison`). What differs is written again, and is counted.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from correlator.bounded import chunks
from correlator.cluster import keys
from correlator.cluster.connection import ClusterUnavailable, Connection, Refused
from correlator.jobs.directory import JobDirectory, place_of
from correlator.ops.stalls import timed
from correlator.sinks.cluster import stored_document
from correlator.sinks.cluster.documents import ClusterTimings, DirtyKeys

if TYPE_CHECKING:
    from nats.aio.msg import Msg

SLICE = 200
SLICE_BYTES = 1_000_000
"""Messages and bytes of one slice of the stream."""


UNUSED_SECONDS = 30
"""The server removes a consumer that nobody has used for so long."""


AT_ONCE = 100
"""Documents that are made and compared in one step: a few milliseconds."""


class Repair:
    """Compares the jobs of `instance` in memory with the stream."""

    def __init__(
        self, connection: Connection, instance: str, published: JobDirectory, dirty: DirtyKeys, timings: ClusterTimings
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
        limit = stored_document.limit(self._connection.client.max_payload)
        self._dirty.incomplete = False
        comparison = StreamComparison(self._published, self._dirty.begin_comparison(), limit)
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

    async def _confirmed(
        self, comparison: StreamComparison, found: Sequence[str], beat: Callable[[], None]
    ) -> list[str]:
        confirmed = []
        for job_id in found:
            subject = keys.job(self._instance, job_id)
            last = await self._connection.last(keys.STATE, subject, within=self._timings.answer_within)
            stored = StoredValue(job_id, None) if last is None else _stored(job_id, last.data, last.headers)
            confirmed += comparison.differing([stored])
            beat()
        return confirmed


class StoredValue(NamedTuple):
    """The newest message of a key. `value` None: a marker of a removed job."""

    job_id: str
    value: bytes | None


class StreamComparison:
    """One comparison, without the jobs in `touched`, which grows while it runs. `limit`: bytes of a document."""

    def __init__(self, published: JobDirectory, touched: set[str], limit: int = stored_document.MAX_VALUE) -> None:
        self._published = published
        self._touched = touched
        self._limit = limit
        self._seen: set[str] = set()
        self.compared = 0
        """The number of jobs that were compared."""

    def differing(self, stored: Sequence[StoredValue]) -> list[str]:
        """Return those keys of a slice of the stream that differ from memory. At most `AT_ONCE` per call."""
        found = []
        for job_id, value in stored:
            if job_id in self._touched:
                continue
            shown = self._published.get(job_id)
            if shown is None:
                if value is not None:
                    found.append(job_id)
                continue
            self._seen.add(job_id)
            self.compared += 1
            if value is None or value != stored_document.encode(shown, self._limit):
                found.append(job_id)
        return found

    def to_write(self, differing: Iterable[str]) -> Iterator[list[str]]:
        """Yield, in steps, these keys and those of which the stream has nothing, in the order to write them.

        Jobs that have not ended come first, then the others, each the newest first. Call it after the last slice.
        """
        rest, ended = dict.fromkeys(differing), list[str]()
        page = self._published.newest(None, 5 * AT_ONCE)
        while page:
            found: list[str] = []
            for shown in page:
                job_id = shown.job_id
                if job_id in rest or (job_id not in self._seen and job_id not in self._touched):
                    rest.pop(job_id, None)
                    (ended if shown.view.terminal else found).append(job_id)
            before = place_of(page[-1])
            yield found
            page = self._published.newest(before, 5 * AT_ONCE)
        yield [*ended, *rest]  # The rest has left memory.


async def slices(connection: Connection, instance: str, within: float) -> AsyncIterator[list[StoredValue]]:
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


async def _slice(messages: asyncio.Queue[Msg], within: float) -> list[StoredValue]:
    """Return the messages of one slice. Empty after the last one."""
    found: list[StoredValue] = []
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


def _stored(job_id: str, payload: bytes, headers: dict[str, str] | None) -> StoredValue:
    removed = headers is not None and ("KV-Operation" in headers or "Nats-Marker-Reason" in headers)
    return StoredValue(job_id, None if removed else payload)
