"""The hub of a gateway: it publishes what the stream says of one appliance, or of all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

from correlator.gateway.archive import RpcArchive
from correlator.gateway.status import RemoteStatus
from correlator.jobs import encoding
from correlator.jobs.document_cache import Documents
from correlator.jobs.remote import RemoteJobs
from correlator.model.facts import AttributedRow, Status
from correlator.model.published import Change, Event, PublishedJob, Reason
from correlator.model.replies import Resolved
from correlator.model.rows import Micros
from correlator.pipeline.hub import Batch, Hub, available, wall_clock
from correlator.pipeline.queries import JobQuery, OtherJobs, Question
from correlator.pipeline.resume_ring import ResumeRing

A = TypeVar("A")

NOT_READ = "this gateway has not read the stream of the cluster yet: try again in a moment"
"""What clients get before anything is known: no job here does not mean that there is none."""


async def ends_here(_: int) -> bool:
    """Without a stream, there is nothing beyond what is in memory."""
    return True


class RemoteHub(Hub):
    """Some jobs of the stream with their subscribers. Event loop's thread only.

    The fleet is the publisher: it changes `jobs`, and calls `publish`. `archive` None: memory only. `ends_before(seq)`:
    whether the stream is known to end before a position. `fleet`: the hub of all appliances, for that of one, which
    reads the same stream. `describe_cluster()`: the part `cluster` of readiness.
    """

    published: RemoteJobs
    status: RemoteStatus
    archive: RpcArchive | None

    def __init__(
        self,
        jobs: RemoteJobs,
        status: RemoteStatus,
        archive: RpcArchive | None = None,
        *,
        epoch: str = "",
        documents: Documents | None = None,
        resume_ring: ResumeRing | None = None,
        on_watch: Callable[[], None] = lambda: None,
        ends_before: Callable[[int], Awaitable[bool]] = ends_here,
        clock: Callable[[], Micros] = wall_clock,
        describe_cluster: Callable[[], dict[str, Any]] = dict,
        fleet: RemoteHub | None = None,
    ) -> None:
        super().__init__(
            jobs, status, epoch, archive, documents=documents, resume_ring=resume_ring, on_watch=on_watch, clock=clock
        )
        self.readiness["cluster"] = describe_cluster
        if fleet is not None:
            self.epoch, self.live, status.loading = fleet.epoch, fleet.live, fleet.status.loading
        self.refusal = lambda: NOT_READ if self.status.loading else None
        self._ends_before = ends_before
        self._whole_to = 0
        """The position up to which no change is missing. The stream has only the newest state of each job: while what
        was missed is read, what a job was at that position may come with a later one."""
        self._waiting: dict[asyncio.Future[None], int] = {}
        """Those that wait for a position."""

    # -- called by the fleet

    def reset(self, epoch: str) -> None:
        """Forget all jobs: what follows is another stream, or the same one from the beginning."""
        self.published.clear()
        self.epoch = epoch
        self.status.loading = True
        self._whole_to = 0

    def synced(self) -> None:
        """Everything that the stream had has been read. After a start it is known from here on what each job was."""
        if self.status.loading:
            self.status.loading = False
            self._resume_ring = ResumeRing(after=self.seq)
        self._whole_to = self.seq
        for future in [future for future, seq in self._waiting.items() if seq <= self._whole_to]:
            if not future.done():
                future.set_result(None)

    def publish(
        self,
        changes: Sequence[Change] = (),
        events: Sequence[Event] = (),
        lines: Sequence[AttributedRow] = (),
        dropped: int = 0,
    ) -> None:
        """Pass what was read together to every subscriber."""
        if not self.status.loading:
            self._resume_ring.add(changes)
        if changes or events or lines or dropped:
            self._deliver(Batch(self.seq, changes, events, lines, dropped))

    # -- called for clients

    @property
    def serves(self) -> bool:
        """False until the stream has been read: a client that resumes would have to begin again."""
        return not self.status.loading

    @property
    def running(self) -> int:
        return self.published.counts[Status.RUNNING]

    def reaches(self, seq: int) -> bool:
        return not self.status.loading and self.published.reaches(seq, self.clock())

    def changed(self) -> Iterator[tuple[str, int]]:
        return self.published.changed()

    def reason(self, job_id: str) -> Reason | None:
        return self.published.reason(job_id)

    async def reached(self, seq: int, within: float) -> bool:
        if seq > self._whole_to or self.status.loading:
            future = asyncio.get_running_loop().create_future()
            self._waiting[future] = seq
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(within):
                        await future
            finally:
                del self._waiting[future]
        return seq <= self._whole_to

    async def is_behind(self, seq: int) -> bool:
        return seq > self._whole_to and not await self._ends_before(seq)

    def _current(self, shown: PublishedJob) -> PublishedJob:
        """A job that a collector has sent: as it is published, if it is in memory, else with the current `seq`."""
        published = self.published.get(shown.job_id)
        if published is not None and published.instance == shown.instance:
            return published
        return encoding.revised(shown, self.seq)

    async def _search(self, name: str) -> tuple[PublishedJob, Resolved] | None:
        found = await available(self.archive).find(name)
        return (self._current(found[0]), found[1]) if found is not None else None

    async def page(
        self, query: JobQuery, before: tuple[Micros, str] | None, limit: int, known: Callable[[str], bool]
    ) -> OtherJobs[PublishedJob]:
        found = await available(self.archive).page(query, before, limit)
        jobs = [self._current(shown) for shown in found.jobs if not known(shown.job_id)]
        return OtherJobs(jobs, found.next_before, found.reason)

    async def ask(self, question: Question[A]) -> A:
        return await available(self.archive).ask(question)
