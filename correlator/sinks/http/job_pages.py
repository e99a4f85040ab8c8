"""Pages of jobs, newest first: from memory, and beyond it from the database. What `/jobs` and `/entities` return.

A request reads a bounded part of the tables, so a page may be short or empty before the end of the list. Its cursor is
the place in the order of the list down to which everything has been read.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec
from aiohttp import web
from msgspec import Struct

from correlator.errors import Away, BadRequest, SourceUnavailable
from correlator.jobs import encoding
from correlator.jobs.directory import Place, place_of
from correlator.model.published import PublishedJob
from correlator.ops.stalls import timed
from correlator.pipeline.hub import Hub
from correlator.pipeline.queries import JobQuery
from correlator.sinks.turns import AT_ONCE, Work, encoded

T = TypeVar("T")

MAX_PAGE_BYTES = 8 << 20
"""Bytes of documents in one page of jobs; a single one may exceed it."""

VISITED_AT_ONCE = 50
"""Jobs that are matched with a query between two checks of the time; as many as a page still needs, if that is more."""

GATHER_WITHIN = 0.5
"""Seconds after which a page of jobs is returned even if it is empty."""

FIRST_WITHIN = 0.15
"""The same for a page that has a job: the user sees it at once, and asks for the next page."""

ARCHIVE_WITHIN = 3.0
"""Seconds to wait for the database; after that, a page of jobs is served from memory only."""


class JobPage(Struct, frozen=True):
    """Jobs, newest first. `following`: where the next page begins; None after the last one.

    `reason`: why jobs of the database are missing; None if none are.
    """

    jobs: Sequence[PublishedJob]
    following: Place | None
    reason: str | None


class JobPages:
    """Reads pages of the jobs that match a query, in the turns of `work`."""

    def __init__(self, hub: Hub, work: Work) -> None:
        self._hub = hub
        self._work = work

    async def respond(
        self,
        query: JobQuery,
        cursor: str | None,
        limit: int,
        address: str,
        *,
        more: Callable[[JobPage], dict[str, Any]] = lambda _: {},
        steps: bool = False,
    ) -> web.Response:
        """The page as a response to `address`, with the members `more`. See `read`; raises `Refused` besides."""
        before = decode_cursor(cursor, tuple[int, str]) if cursor is not None else None
        async with self._work.lists.turn(address):
            self._work.replies.check(address)
            found = await self._in_memory(query, before, limit + 1)
            if not self._needs_archive(found, limit):
                page = _page(found, limit, None, None)
                return await self._response(page, more(page), steps=steps)
        async with self._work.queries.turn(address):
            page = await self._completed(found, query, before, limit)
        async with self._work.lists.turn(address):
            self._work.replies.check(address)
            return await self._response(page, more(page), steps=steps)

    async def read(self, query: JobQuery, cursor: str | None, limit: int) -> JobPage:
        """At most `limit` jobs from the place of `cursor` on.

        Raises:
            BadRequest: `cursor` is not the `next_cursor` of a page.
            SourceUnavailable: The database cannot be queried, and no job beyond `cursor` is in memory: an empty page
                would mean the end of the list.
        """
        before = decode_cursor(cursor, tuple[int, str]) if cursor is not None else None
        found = await self._in_memory(query, before, limit + 1)
        return await self._completed(found, query, before, limit)

    def _needs_archive(self, found: Sequence[PublishedJob], limit: int) -> bool:
        kept_since = self._hub.published.complete_since(self._hub.clock())
        return self._hub.archive is not None and (len(found) <= limit or place_of(found[-1])[0] < kept_since)

    async def _completed(self, found: list[PublishedJob], query: JobQuery, before: Place | None, limit: int) -> JobPage:
        """The page that begins with the jobs in memory, with those of the database if it needs them."""
        following: Place | None = None
        reason: str | None = None
        if self._needs_archive(found, limit):
            try:
                found, following, reason = await self._with_archive(found, query, before, limit + 1)
            except SourceUnavailable as error:
                if not found and before is not None:
                    raise
                reason = error.public
        return _page(found, limit, following, reason)

    async def _in_memory(self, query: JobQuery, before: Place | None, limit: int) -> list[PublishedJob]:
        """The newest `limit` jobs in memory that match `query`, newest first."""
        found: list[PublishedJob] = []
        while True:
            with timed("page"):
                ended, before = self._match(query, before, limit, found)
            if ended:
                return found[:limit]
            await asyncio.sleep(0)

    def _match(
        self, query: JobQuery, before: Place | None, limit: int, found: list[PublishedJob]
    ) -> tuple[bool, Place | None]:
        """Add matching jobs to `found` for `AT_ONCE` seconds. Returns whether that was all, and where to go on."""
        matches, began = query.matcher(), time.monotonic()
        while some := self._hub.published.newest(before, max(VISITED_AT_ONCE, limit - len(found))):
            found += filter(matches, some)
            before = place_of(some[-1])
            if len(found) >= limit:
                break
            if time.monotonic() - began > AT_ONCE:
                return False, before
        return True, before

    async def _response(self, page: JobPage, more: dict[str, Any], *, steps: bool) -> web.Response:
        """The response with the jobs of `page`, where it ends, and the members `more`."""
        published, documents = self._hub.published, self._hub.documents

        def bodies() -> Iterator[bytes]:
            for shown, body in zip(page.jobs, documents.cached(page.jobs, steps=steps), strict=True):
                if body is not None:
                    yield body
                elif published.get(shown.job_id) is shown:
                    yield documents.encoded(shown, all_jobs=True, steps=steps)
                else:
                    yield encoding.text(shown, steps=steps)

        parts, cut = await encoded(bodies(), MAX_PAGE_BYTES)
        following = place_of(page.jobs[len(parts) - 1]) if cut else page.following
        members = {
            "next_cursor": encode_cursor(following) if following is not None else None,
            "searched_to": encoding.rfc3339(following[0]) if following is not None else None,
            "complete": page.reason is None,
            "reason": page.reason,
        }
        return paged("jobs", parts, members | more)

    async def _with_archive(
        self, page: list[PublishedJob], query: JobQuery, before: Place | None, limit: int
    ) -> tuple[list[PublishedJob], Place | None, str | None]:
        """Merge jobs of the database into a page.

        Returns it, where the next page begins if this one is not full, and why jobs of some databases are missing.

        Raises:
            SourceUnavailable: The database cannot be queried, or did not answer within `ARCHIVE_WITHIN` seconds.
        """
        known = {s.job_id for s in page}
        matches = query.matcher()

        def is_known(job_id: str) -> bool:
            # A job that has come into memory since its place was searched there is one of the database.
            return job_id in known or ((shown := self._hub.published.get(job_id)) is not None and not matches(shown))

        merged = list(page)
        loop = asyncio.get_running_loop()
        began = loop.time()
        reason: str | None = None
        certain: list[PublishedJob] | None = None
        while True:
            try:
                async with asyncio.timeout(ARCHIVE_WITHIN):
                    found = await self._hub.page(query, before, limit, is_known)
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


def paged(name: str, parts: Iterable[bytes], more: dict[str, Any]) -> web.Response:
    """A response with an array `name` of encoded items, and the members `more`."""
    body = b'{"%b":[%b],%b' % (name.encode(), b",".join(parts), encoding.encode(more)[1:])
    return web.Response(body=body, content_type="application/json")


def encode_cursor(place: object) -> str:
    """A place as text for a URL."""
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def decode_cursor(text: str, kind: type[T]) -> T:
    """The place that `encode_cursor` encoded. Raises `BadRequest` for any other text."""
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        return msgspec.json.decode(raw, type=kind)
    except (ValueError, binascii.Error, msgspec.MsgspecError) as error:
        raise BadRequest("cursor: expected the next_cursor of the page before, as it was given") from error


def _page(found: Sequence[PublishedJob], limit: int, following: Place | None, reason: str | None) -> JobPage:
    """The page of at most `limit` of the jobs; one more says that there is another page."""
    if len(found) > limit:
        following = place_of(found[limit - 1])
    return JobPage(found[:limit], following, reason)
