"""What a collector answers to gateways: jobs, pages and log lines that only its database has, from its hub.

A reply is bounded (`rpc.MAX_RESULT_BYTES`). A page of jobs or lines that is larger becomes shorter, and its cursor says
where the next one begins. A job's document is the one of the stream, and a log line that is larger alone is cut.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import orjson
from msgspec.structs import replace

from correlator.cluster import rpc
from correlator.cluster.rpc import Method
from correlator.jobs import job_document, joblog, sizes
from correlator.jobs.model.views import LogLine, PublishedJob
from correlator.pipeline.hub import Hub
from correlator.pipeline.queries import EarlierLines, LinesPage
from correlator.pipeline.rpc_messages import (
    FindResult,
    IsContextResult,
    LegacyResult,
    LinesBeforeParams,
    LinesParams,
    NameParams,
    OperationParams,
    OperationResult,
    OperationsParams,
    OperationsResult,
    PageParams,
)
from correlator.sinks.cluster import values
from correlator.sinks.cluster.responder import Handler

PAGES_AT_ONCE = 4
"""Pages of jobs and of lines that are read and encoded at a time: each may have 4 MiB before it is cut."""

MAX_JOBS = 501
MAX_LINES = 1000
"""Most jobs, and most log lines, of one page."""

ROOM = rpc.MAX_RESULT_BYTES - 1_000
"""Bytes of the jobs or lines of a page."""

MAX_TEXT = 100_000
"""Bytes of the message, and of the attrs, of a log line that is cut."""

ENCODED_AT_ONCE = 0.01
"""Seconds of encoding before the event loop runs other tasks."""


class Answers:
    """The answers from one hub. Each may raise `SourceUnavailable`."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._pages = asyncio.Semaphore(PAGES_AT_ONCE)

    def handlers(self) -> Mapping[Method, Handler]:
        return {
            Method.FIND: Handler(NameParams, self.find),
            Method.PAGE: Handler(PageParams, self.page),
            Method.LINES: Handler(LinesParams, self.lines),
            Method.LINES_BEFORE: Handler(LinesBeforeParams, self.lines_before),
            Method.IS_CONTEXT: Handler(NameParams, self.is_context),
            Method.LEGACY_RECORD: Handler(NameParams, self.legacy_record),
            Method.OPERATIONS: Handler(OperationsParams, self.operations),
            Method.OPERATION: Handler(OperationParams, self.operation),
        }

    async def find(self, params: NameParams) -> bytes:
        found = await self._hub.find(params.name)
        if found is None:
            return _encoded(FindResult())
        shown, resolved = found
        return _encoded(FindResult(msgspec.Raw(values.encode(shown)), resolved.resolved_by, resolved.also))

    async def page(self, params: PageParams) -> bytes:
        async with self._pages:
            limit = min(max(1, params.limit), MAX_JOBS)
            found = await self._hub.page(params.query, params.before, limit, lambda _: False)
            jobs = sorted(found.jobs, key=place_of, reverse=True)
            parts = await _fitting(jobs, values.encode, ROOM)
            following = found.next_before if len(parts) == len(jobs) else place_of(jobs[len(parts) - 1])
            return job_document.encode({"jobs": _fragments(parts), "next_before": following})

    async def lines(self, params: LinesParams) -> bytes:
        async def read(limit: int) -> LinesPage:
            return await self._hub.lines(params.names, params.after, limit, params.query)

        return await self._lines(params.limit, read, "next_after", "more")

    async def lines_before(self, params: LinesBeforeParams) -> bytes:
        async def read(limit: int) -> EarlierLines:
            return await self._hub.lines_before(params.names, params.before, limit, params.query)

        return await self._lines(params.limit, read, "next_before")

    async def _lines(
        self, most: int, read: Callable[[int], Awaitable[LinesPage | EarlierLines]], *members: str
    ) -> bytes:
        """Read a page of lines that fits into a reply. `members`: those of the page besides its lines."""
        limit = min(max(1, most), MAX_LINES)
        async with self._pages:
            while True:
                page = await read(limit)
                parts = await _fitting(page.lines, _line, ROOM)
                if len(parts) == len(page.lines):
                    more = {name: getattr(page, name) for name in members}
                    return job_document.encode({"lines": _fragments(parts), **more})
                limit = len(parts)  # The cursor after some of these lines is known only after they were read alone.

    async def is_context(self, params: NameParams) -> bytes:
        return _encoded(IsContextResult(await self._hub.is_context(params.name)))

    async def legacy_record(self, params: NameParams) -> bytes:
        return _encoded(LegacyResult(await self._hub.legacy_record(params.name)))

    async def operations(self, _: OperationsParams) -> bytes:
        return _encoded(OperationsResult(tuple(await self._hub.operations())))

    async def operation(self, params: OperationParams) -> bytes:
        return _encoded(OperationResult(await self._hub.operation((params.job_type, params.operation))))


def place_of(shown: PublishedJob) -> tuple[int, str]:
    return (shown.view.started_at or 0, shown.job_id)


async def _fitting(items: Sequence[Any], encode: Callable[[Any], bytes], room: int) -> list[bytes]:
    """Encode `items` one by one, as many as fit into `room` bytes; at least one, which must fit alone."""
    made: list[bytes] = []
    began = time.monotonic()
    for item in items:
        part = encode(item)
        room -= len(part) + 1
        if made and room < 0:
            break
        made.append(part)
        if time.monotonic() - began > ENCODED_AT_ONCE:
            await asyncio.sleep(0)
            began = time.monotonic()
    return made


def _line(line: LogLine) -> bytes:
    encoded = _encoded_line(line)
    if len(encoded) <= ROOM:
        return encoded
    message, full = sizes.cut_text(line.message, MAX_TEXT)
    if full is not None:
        message += f" … ({full} bytes)"
    return _encoded_line(replace(line, message=message, attrs=_cut_attrs(line.attrs)))


def _cut_attrs(attrs: Any) -> Any:
    """The members of attrs that fit, and the sizes of the others, as metadata are cut; null if it is no object."""
    if not isinstance(attrs, dict):
        return None
    members = [(sizes.published_name(name), job_document.encode(value).decode()) for name, value in attrs.items()]
    return joblog.metadata_object(sizes.cut_object(members, {}, sizes.Sizes().keep, MAX_TEXT))


def _encoded_line(line: LogLine) -> bytes:
    return job_document.encode(
        {
            "event_id": line.event_id,
            "level": line.level,
            "message": line.message,
            "step_id": line.step_id,
            "attrs": line.attrs,
            "at": line.at,
        }
    )


def _fragments(parts: Iterable[bytes]) -> list[orjson.Fragment]:
    return [orjson.Fragment(part) for part in parts]


def _encoded(result: msgspec.Struct) -> bytes:
    return msgspec.json.encode(result)
