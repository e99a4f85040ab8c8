"""Pages of jobs, newest first: from memory, and beyond it from the database. What `/jobs` and `/entities` return.

A request reads a bounded part of the tables, so a page may be short or empty before the end of the list. Its cursor is
the place in the order of the list down to which everything has been read.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import heapq
import time
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import msgspec
from aiohttp import web
from msgspec import Struct

from correlator.errors import Away, BadRequest, SourceUnavailable
from correlator.jobs import job_document
from correlator.jobs.model.rows import Micros
from correlator.jobs.model.views import PublishedJob
from correlator.ops.stalls import timed
from correlator.pipeline.hub import Hub
from correlator.pipeline.queries import JobQuery

MAX_PAGE_BYTES = 8 << 20
"""Bytes of documents in one page of jobs; a single one may exceed it."""

MATCHED_AT_ONCE = 2_000
"""Jobs in memory that are matched with a query before the event loop runs other tasks."""

SEARCHED_AT_ONCE = 200
"""The same for a search of words: it compares every text of a job, also of its steps."""

ENCODED_AT_ONCE = 0.01
"""Seconds of encoding before the event loop runs other tasks."""

GATHER_WITHIN = 0.5
"""Seconds after which a page of jobs is returned even if it is empty."""

FIRST_WITHIN = 0.15
"""The same for a page that has a job: the user sees it at once, and asks for the next page."""

ARCHIVE_WITHIN = 3.0
"""Seconds to wait for the database; after that, a page of jobs is served from memory only."""

Place: TypeAlias = tuple[Micros, str]
"""The position of a job in the order of a list: (started_at, id)."""


class JobPage(Struct, frozen=True):
    """Jobs, newest first. `following`: where the next page begins; None after the last one.

    `reason`: why jobs of the database are missing; None if none are.
    """

    jobs: Sequence[PublishedJob]
    following: Place | None
    reason: str | None


class JobPages:
    """Reads pages of the jobs that match a query."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def read(self, query: JobQuery, cursor: str | None, limit: int) -> JobPage:
        """At most `limit` jobs from the place of `cursor` on.

        Raises:
            BadRequest: `cursor` is not the `next_cursor` of a page.
            SourceUnavailable: The database cannot be queried, and no job beyond `cursor` is in memory: an empty page
                would mean the end of the list.
        """
        before = _decode_cursor(cursor) if cursor is not None else None
        page = await self._in_memory(query, before, limit + 1)
        reason: str | None = None
        following: Place | None = None
        kept_since = self._hub.published.complete_since(self._hub.clock())
        if self._hub.archive is not None and (len(page) <= limit or place_of(page[-1])[0] < kept_since):
            try:
                page, following, reason = await self._with_archive(page, query, before, limit + 1)
            except SourceUnavailable as error:
                if not page and before is not None:
                    raise
                reason = error.public
        if len(page) > limit:
            following = place_of(page[limit - 1])
        return JobPage(page[:limit], following, reason)

    async def _in_memory(self, query: JobQuery, before: Place | None, limit: int) -> list[PublishedJob]:
        """The newest `limit` jobs in memory that match `query`, newest first."""
        found: list[PublishedJob] = []
        everything = list(self._hub.published.all())
        at_once = SEARCHED_AT_ONCE if query.words else MATCHED_AT_ONCE
        for at in range(0, len(everything), at_once):
            if at:
                await asyncio.sleep(0)
            some = everything[at : at + at_once]
            with timed("page"):
                found += [s for s in some if (before is None or place_of(s) < before) and query.matches(s)]
                found = heapq.nlargest(limit, found, key=place_of)
        return found

    async def _with_archive(
        self, page: list[PublishedJob], query: JobQuery, before: Place | None, limit: int
    ) -> tuple[list[PublishedJob], Place | None, str | None]:
        """Merge jobs of the database into a page.

        Returns it, where the next page begins if this one is not full, and why jobs of some databases are missing.

        Raises:
            SourceUnavailable: The database cannot be queried, or did not answer within `ARCHIVE_WITHIN` seconds.
        """
        known = {s.job_id for s in page}
        merged = list(page)
        loop = asyncio.get_running_loop()
        began = loop.time()
        reason: str | None = None
        certain: list[PublishedJob] | None = None
        while True:
            try:
                async with asyncio.timeout(ARCHIVE_WITHIN):
                    found = await self._hub.page(
                        query, before, limit, lambda i: i in known or self._hub.published.get(i) is not None
                    )
            except (SourceUnavailable, TimeoutError) as error:
                if certain is not None:  # The next page begins here, and says whether the database is still away.
                    return certain[:limit], before, reason
                if isinstance(error, TimeoutError):
                    raise SourceUnavailable(f"no answer within {ARCHIVE_WITHIN:g} s", Away.NO_ANSWER) from None
                raise
            for shown in found.jobs:
                # The database's collation may match more than the query does.
                if query.matches(shown):
                    merged.append(shown)
                    known.add(shown.job_id)
            merged.sort(key=place_of, reverse=True)
            before, reason = found.next_before, found.reason or reason
            if before is None:
                return merged[:limit], None, reason
            # Jobs before this position are complete; after it, the database may have further ones.
            certain = [s for s in merged if place_of(s) >= before]
            within = FIRST_WITHIN if certain else GATHER_WITHIN
            if len(certain) >= limit or loop.time() - began >= within:
                return certain[:limit], before, reason


async def encoded(parts: Iterable[bytes], most: int | None = None) -> tuple[list[bytes], bool]:
    """Encode `parts` one by one, up to `most` bytes. Returns them, and True if some were left out.

    Yields to the event loop every `ENCODED_AT_ONCE` seconds.
    """
    made: list[bytes] = []
    size, began = 0, time.monotonic()
    for part in parts:
        if most is not None and made and size + len(part) > most:
            return made, True
        made.append(part)
        size += len(part)
        if time.monotonic() - began > ENCODED_AT_ONCE:
            await asyncio.sleep(0)
            began = time.monotonic()
    return made, False


def paged(name: str, parts: Iterable[bytes], more: dict[str, Any]) -> web.Response:
    """A response with an array `name` of encoded items, and the members `more`."""
    body = b'{"%b":[%b],%b' % (name.encode(), b",".join(parts), job_document.encode(more)[1:])
    return web.Response(body=body, content_type="application/json")


async def page_response(page: JobPage, more: dict[str, Any], *, steps: bool = False) -> web.Response:
    """The response with the jobs of `page`, where it ends, and the members `more`."""
    documents = (job_document.encode(job_document.document(s, steps=steps)) for s in page.jobs)
    parts, cut = await encoded(documents, MAX_PAGE_BYTES)
    following = place_of(page.jobs[len(parts) - 1]) if cut else page.following
    members = {
        "next_cursor": _encode_cursor(following) if following is not None else None,
        "searched_to": job_document.rfc3339(following[0]) if following is not None else None,
        "complete": page.reason is None,
        "reason": page.reason,
    }
    return paged("jobs", parts, members | more)


def place_of(shown: PublishedJob) -> Place:
    return (shown.view.started_at or 0, shown.job_id)


def _encode_cursor(place: Place) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def _decode_cursor(text: str) -> Place:
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        return msgspec.json.decode(raw, type=tuple[int, str])
    except (ValueError, binascii.Error, msgspec.MsgspecError) as error:
        raise BadRequest("cursor: expected the next_cursor of the page before, as it was given") from error
