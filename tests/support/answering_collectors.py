"""Collectors in one process: their answers to gateways, from databases in memory, without a cluster between them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

from msgspec.structs import asdict

from correlator.cluster.connection import Connection, NoAnswer, NoResponder
from correlator.cluster.rpc import MAX_BYTES, Caller, decode_request
from correlator.gateway.archive import RpcArchive
from correlator.jobs.index import Index
from correlator.model.facts import Reading
from correlator.model.published import FoundLine, LogLine
from correlator.model.replies import Resolved
from correlator.model.rows import JobRecord, LegacyRecord, StepRecord
from correlator.pipeline.pipeline import LocalHub
from correlator.pipeline.queries import ArchivePage, FindLines, Found, LinesFound, LinesPage, LogLines
from correlator.sinks.cluster.gateway_requests import Answers, Responder

SECOND = 1_000_000
BASE = 1_758_550_000 * SECOND
AWAY = NoResponder("nobody")


def reading(job_id: str, second: int | None, *, steps: Sequence[int] = (), **record: Any) -> Reading:
    """The tables of a job that started so many seconds after `BASE`."""
    started = None if second is None else BASE + second * SECOND
    row = JobRecord(job_id, status="completed", started_at=started, updated_at=BASE, **record)
    return Reading(job_id, 1, row, tuple(StepRecord(i, f"s{i}", n, "completed") for n, i in enumerate(steps, 1)))


class ArchiveInMemory:
    """A database of which every page has at most `page_size` jobs or lines. `error`: what every query raises."""

    def __init__(self, jobs: Sequence[Reading] = (), lines: Sequence[LogLine] = (), page_size: int = 1000) -> None:
        self.jobs = sorted(jobs, key=self.place, reverse=True)
        self.log = list(lines)
        self.legacy: dict[str, LegacyRecord] = {}
        self.page_size = page_size
        self.error: Exception | None = None
        self.asked: list[tuple[Any, ...]] = []
        self.go = asyncio.Event()
        self.go.set()

    @staticmethod
    def place(one: Reading) -> tuple[int, str]:
        """The position of a job in the order of a list."""
        assert one.record is not None
        return (one.record.started_at or 0, one.job_id)

    async def _ask(self, *what: Any) -> None:
        self.asked.append(what)
        await self.go.wait()
        if self.error is not None:
            raise self.error

    async def find(self, name: str, _: Any) -> Found | None:
        await self._ask("find", name)
        if (legacy := self.legacy.get(name)) is not None:
            return Found(Resolved(name, "legacy", ()), legacy=legacy)
        for by, column in (("uuid", "job_id"), ("external_id", "external_job_id"), ("context_id", "context_id")):
            if found := [r for r in self.jobs if getattr(r.record, column) == name]:
                also = tuple(r.job_id for r in found[1:])
                return Found(Resolved(found[0].job_id, by, also), reading=found[0])  # type: ignore[arg-type]
        return None

    async def oldest(self) -> int | None:
        return None

    async def is_context(self, name: str) -> bool:
        await self._ask("is_context", name)
        return any(r.record is not None and r.record.context_id == name for r in self.jobs)

    async def page(self, query: Any, before: Any, limit: int, _: Any, known: Any) -> ArchivePage:
        await self._ask("page", before, limit)
        size = min(limit, self.page_size)
        rest = [r for r in self.jobs if before is None or self.place(r) < before]
        found = [r for r in rest[:size] if not known(r.job_id)]
        return ArchivePage(found[::-1], self.place(rest[size - 1]) if len(rest) > size else None)

    async def lines(self, asked: LogLines) -> LinesPage:
        await self._ask("lines", asked.after, asked.limit)
        after, limit = asked.after, asked.limit
        if asked.before is not None:
            rest = [line for line in self.log if line.event_id < asked.before]
            page, more = rest[-limit:], len(rest) > limit
            return LinesPage(page, None, more, page[0].event_id if more else None)
        first = int(after) + 1 if isinstance(after, str) else after or 0
        rest = [line for line in self.log if line.event_id >= first]
        page, more = rest[:limit], len(rest) > limit
        return LinesPage(page, str(page[-1].event_id) if page else None, more)

    async def find_lines(self, asked: FindLines) -> LinesFound:
        """All lines are of any job, and match. `page_size` of them are searched for each page."""
        before = asked.places.get("", 1 << 60)
        await self._ask("find_lines", before, asked.limit)
        rest = [line for line in reversed(self.log) if line.event_id < before]
        page = [FoundLine(**asdict(line)) for line in rest[: min(asked.limit, self.page_size)]]
        if len(page) == len(rest):
            return LinesFound(page)
        return LinesFound(page, {"": page[-1].event_id}, 1 - len(rest) / len(self.log), page[-1].at)


class Collectors:
    """What a gateway's `Caller` is connected to. `hubs`: a collector each.

    `replies`: by collector, what it replies, or what is raised, in place of its own answer.
    """

    def __init__(self, **archives: ArchiveInMemory) -> None:
        self.archives = archives
        self.hubs = {name: LocalHub(Index(), archive) for name, archive in archives.items()}
        self.replies: dict[str, bytes | Exception] = {}
        self.sizes: list[int] = []
        """The bytes of each reply."""
        self.requests: list[tuple[str, str]] = []
        """The collector and the method of each."""
        self.deadlines: list[tuple[float, float]] = []
        """Seconds that the collector and the connection have for each."""
        self.go = asyncio.Event()
        """While it is not set, requests wait for `replies`."""
        self.go.set()
        self.now = 100.0
        self._responders = {name: Responder(Answers(hub).to) for name, hub in self.hubs.items()}
        self.caller = Caller(cast("Connection", self), lambda: self.now)

    def archive(self, *scope: str) -> RpcArchive:
        """What a gateway asks about some of the collectors, or about all."""
        return RpcArchive(self.caller, lambda: scope or sorted(self.hubs))

    async def request(self, subject: str, payload: bytes, *, within: float) -> SimpleNamespace:
        """As `Connection.request`."""
        _, _, instance, _, method = subject.split(".")
        self.requests.append((instance, method))
        self.deadlines.append((decode_request(payload).within, within))
        await self.go.wait()
        given = self.replies.get(instance) if instance in self.hubs or instance in self.replies else AWAY
        if isinstance(given, Exception):
            raise given
        if given is not None:
            return SimpleNamespace(data=given)
        reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def send(answer: bytes) -> None:
            assert len(answer) <= MAX_BYTES
            self.sizes.append(len(answer))
            if not reply.done():
                reply.set_result(answer)

        await self._responders[instance].receive(method, payload, send)
        try:
            async with asyncio.timeout(within):
                return SimpleNamespace(data=await reply)
        except TimeoutError:
            raise NoAnswer("too late") from None
