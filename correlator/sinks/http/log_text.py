"""A job's whole log as a text file, sent page by page: neither the daemon nor the client holds it in memory."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any

from aiohttp import web

from correlator.errors import Away, SourceUnavailable
from correlator.jobs.job_document import encode, rfc3339, steps_of
from correlator.jobs.model.views import JobView, LogLine, PublishedJob
from correlator.ops.logs import escape
from correlator.pipeline.hub import Hub
from correlator.pipeline.queries import JobNames, LineQuery, LinesPage
from correlator.sinks.http.streamed import StreamedResponse
from correlator.sinks.turns import Work

PAGE = 1000
"""Lines of one page; a page has at most 4 MiB."""

WRITE_WITHIN = 60.0
"""Seconds in which a client accepts a page. After that, its connection is closed."""

ATTEMPTS = 5
"""Times that a page is read, a second apart, while the database cannot answer."""

_IDENTITY = ("job_id", "step_id", "external_job_id", "step_name")
"""Attributes that name the job and the step of a line, which the text shows already."""


class LogText:
    """Sends logs as text. An error after the first page aborts the connection: the client sees that it is not whole."""

    def __init__(self, hub: Hub, work: Work) -> None:
        self._hub = hub
        self._sent = work.downloads

    async def send(
        self, request: web.Request, shown: PublishedJob, names: JobNames, query: LineQuery
    ) -> web.StreamResponse:
        """Send the lines of a job that match `query`, the oldest first.

        Raises:
            Refused: Too many logs are being sent.
            SourceUnavailable: The first page cannot be read.
        """
        address = request.remote or ""
        self._sent.check(address)
        with self._sent.holding(address):
            pages = self._pages(partial(self._hub.lines, names, limit=PAGE, query=query))
            first = await anext(pages)
            response = StreamedResponse(
                headers={"Content-Disposition": f'attachment; filename="{_file_name(shown.view)}"'}
            )
            response.content_type, response.charset = "text/plain", "utf-8"
            await response.prepare(request)
            steps = {step.id: step.name for step in steps_of(shown)}
            try:
                if response.has_body:
                    await _write(response, first, steps)
                    async for lines in pages:
                        await _write(response, lines, steps)
                await response.write_eof()
            except (SourceUnavailable, TimeoutError, ConnectionError):
                if request.transport is not None:
                    request.transport.abort()
        return response

    async def _pages(self, read: Any) -> AsyncIterator[list[LogLine]]:
        """The lines in the order of time. Pages follow the IDs, so as many lines as the last one had are held back."""
        held: list[LogLine] = []
        page = await read(None)
        while True:
            merged = sorted([*held, *page.lines], key=lambda line: (line.at, line.event_id))
            ready = len(merged) - (len(page.lines) if page.lines else len(held)) if page.more else len(merged)
            held = merged[ready:]
            yield merged[:ready]
            if not page.more:
                return
            page = await self._persist(partial(read, page.next_after))

    async def _persist(self, read: Any) -> LinesPage:
        for _ in range(ATTEMPTS):
            if self._hub.draining:
                raise SourceUnavailable("the correlator restarts")
            try:
                page: LinesPage = await read()
            except SourceUnavailable:
                await asyncio.sleep(1)
            else:
                return page
        raise SourceUnavailable("the log was not read to its end", Away.NO_ANSWER)


async def _write(response: StreamedResponse, lines: Sequence[LogLine], steps: Mapping[int, str]) -> None:
    if lines:
        async with asyncio.timeout(WRITE_WITHIN):
            await response.write("".join(text(line, steps) for line in lines).encode())


def text(line: LogLine, steps: Mapping[int, str]) -> str:
    """``2025-09-22T10:00:00.123456Z WARN  step-name: message  name=value`` and a line break; no control characters."""
    name = steps.get(line.step_id) if line.step_id is not None else None
    step = f"{name}: " if name else ""
    attributes = "".join(f"  {part}" for part in _attributes(line.attrs))
    return f"{rfc3339(line.at)} {line.level:5} {escape(f'{step}{line.message}{attributes}')}\n"


def _attributes(attrs: Any) -> list[str]:
    if not isinstance(attrs, dict):
        return [] if attrs is None else [_value(attrs)]
    return [f"{name}={_value(value)}" for name, value in attrs.items() if name not in _IDENTITY and value != ""]


def _value(value: Any) -> str:
    return value if isinstance(value, str) else encode(value).decode()


def _file_name(view: JobView) -> str:
    """The job's first external ID, else its job ID, with the characters that every file system and header accepts."""
    name = next(iter(view.external_ids), view.job_id)
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:100] + ".log"
