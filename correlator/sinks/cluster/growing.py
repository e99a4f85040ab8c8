"""Decides which jobs are written as growth instead of documents (`cluster.growth`), for the sink of a cluster.

Model. A document that the stream has acknowledged may be continued: while its job only grows, each later state is
written as growth on a page, and the document stays as it is in the stream. Any other change is written as a document.

Invariants. A job that a page names stays on it until a newer document is acknowledged: a gateway that starts reads the
newest document and the newest page. While a document is in flight, its job cannot grow, because the stream may have
the new document or the one before it. A document is continued for `WHOLE_EVERY` seconds, and a job leaves its page when
it has not grown for `RESTS_AFTER`; so a gateway of a version that cannot read growth is at most 30 s behind.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator

from msgspec import Struct

from correlator.cluster import growth, received
from correlator.cluster.growth import PAGE_JOBS, PAGES, Growth
from correlator.jobs.directory import JobDirectory
from correlator.jobs.encoding import MAX_MICROS, MIN_MICROS
from correlator.model.published import MAX_RUNNING, PublishedJob, only_grows
from correlator.model.rows import Micros

WHOLE_EVERY = 30.0
"""Seconds for which a document in the stream is continued by growth."""

RESTS_AFTER = 3.0
"""Seconds after which a job that has not grown is written as a document."""


class _Whole(Struct, frozen=True):
    """A document: its job as it was, its checksum, and when it was made."""

    shown: PublishedJob
    checksum: int
    at: float


class _Member(Struct, frozen=True):
    """A job on a page, with the text of its growth, and when it last grew."""

    page: int
    encoded: bytes
    at: float


class GrowingJobs:
    """Of one stream, while one process writes it. `clock`: returns seconds. Event loop's thread only."""

    def __init__(
        self, clock: Callable[[], float], *, whole_every: float = WHOLE_EVERY, rests_after: float = RESTS_AFTER
    ) -> None:
        self._clock = clock
        self._whole_every = whole_every
        self._rests_after = rests_after
        self._whole: OrderedDict[str, _Whole] = OrderedDict()
        """The documents that may be continued, the oldest first."""
        self._in_flight: dict[str, _Whole | None] = {}
        """The documents of the batch that is not acknowledged. None: a removal, or a document not to be continued."""
        self._members: OrderedDict[str, _Member] = OrderedDict()
        """The jobs on pages, the one that grew longest ago first."""
        self._pages: list[dict[str, None]] = [{} for _ in range(PAGES)]
        self._stored: set[int] = set()
        """The pages of which the stream may have a message that names a job."""
        self._emptying: list[int] = []
        self._continued: dict[int, set[str]] = {}
        """Page of another run → the jobs that it names, until the stream has newer documents of theirs."""
        self._enabled = False

    def enable(self) -> None:
        """Continue the documents that are acknowledged from now on: the stream has no page of another writer."""
        self._enabled = True

    def clear(self) -> None:
        """The stream may be another one: what it has is not known."""
        self._enabled = False
        self._whole.clear()
        self._in_flight.clear()
        self._members.clear()
        self._continued.clear()
        for page in self._pages:
            page.clear()

    # -- to write

    def can_grow(self, shown: PublishedJob) -> bool:
        """True if growth on the document in the stream says all that has changed."""
        return self._encoded(shown) is not None

    def grow(self, shown: PublishedJob) -> int | None:
        """Put the newest growth of a job on its page. Returns the page; None if a document has to be written."""
        if (encoded := self._encoded(shown)) is None:
            return None
        job_id = shown.job_id
        page = self._page_for(job_id)
        if page is not None:
            self._pages[page][job_id] = None
            self._members[job_id] = _Member(page, encoded, self._clock())
            self._members.move_to_end(job_id)
            self._stored.add(page)
        return page

    def jobs(self, page: int) -> Collection[str]:
        """The jobs of a page."""
        return tuple(self._pages[page])

    def payload(self, page: int) -> bytes:
        """The message of a page."""
        return growth.page(self._members[job_id].encoded for job_id in self._pages[page])

    def replace(self, job_id: str, shown: PublishedJob | None, stored: bytes) -> None:
        """A document of a job, or its removal (None), is about to be written."""
        self._whole.pop(job_id, None)
        can = self._enabled and shown is not None and not shown.view.terminal and _may_grow(shown)
        whole = _Whole(shown, growth.checksum(stored), self._clock()) if can and shown is not None else None
        is_continued = any(job_id in jobs for jobs in self._continued.values())
        if whole is not None or job_id in self._members or is_continued:
            self._in_flight[job_id] = whole

    def acknowledged(self) -> None:
        """The stream has what was about to be written."""
        for job_id, whole in self._in_flight.items():
            if (member := self._members.pop(job_id, None)) is not None:
                del self._pages[member.page][job_id]
            if whole is not None:
                self._whole[job_id] = whole
        left = ((page, jobs.difference(self._in_flight)) for page, jobs in self._continued.items())
        self._continued = {page: jobs for page, jobs in left if jobs}
        self._stored.difference_update(self._emptying)
        self._in_flight.clear()
        self._emptying = []

    def unacknowledged(self) -> None:
        """The stream may have what was about to be written, or not."""
        self._in_flight.clear()
        self._emptying = []

    def rested(self) -> Iterator[str]:
        """Yield the jobs to write as documents because they have not grown for some seconds."""
        now = self._clock()
        while self._whole and next(iter(self._whole.values())).at + self._whole_every <= now:
            self._whole.popitem(last=False)
        while self._members:
            job_id, member = next(iter(self._members.items()))
            if member.at + self._rests_after > now:
                return
            self._whole.pop(job_id, None)
            self._members[job_id] = _Member(member.page, member.encoded, now)
            self._members.move_to_end(job_id)
            yield job_id

    def emptied(self) -> list[int]:
        """Return the pages that have no job any more, but name some in the stream: they are about to be emptied."""
        self._emptying = [page for page in self._stored if not self._pages[page] and page not in self._continued]
        return self._emptying

    # -- for a comparison with the stream

    @property
    def is_enabled(self) -> bool:
        """True if the stream has only pages of this process."""
        return self._enabled

    def __iter__(self) -> Iterator[str]:
        """The jobs on all pages: their documents in the stream are older than memory."""
        return iter(self._members)

    def found(self, page: int, payload: bytes, published: JobDirectory) -> list[str]:
        """Note a page of another run that the stream has. Returns the jobs in memory that it names.

        It is emptied once the stream has newer documents of them: until then they are what it says.
        """
        named: list[str] = []
        with contextlib.suppress(received.Unreadable):
            named = [one.job_id for one in received.page(payload) if published.get(one.job_id) is not None]
        if page < PAGES:
            self._stored.add(page)
            if named:
                self._continued[page] = set(named)
        return named

    # -- internal

    def _encoded(self, shown: PublishedJob) -> bytes | None:
        whole, last = self._whole.get(shown.job_id), shown.view.last
        if whole is None or last is None or not only_grows(whole.shown, shown):
            return None
        if not _is_exact(shown.updated_at) or not _is_exact(last.at):
            return None
        return growth.encode(Growth(shown.job_id, whole.checksum, shown.updated_at, last.at, last.level, last.text))

    def _page_for(self, job_id: str) -> int | None:
        if (member := self._members.get(job_id)) is not None:
            return member.page
        free = (n for n, page in enumerate(self._pages) if len(page) < PAGE_JOBS and n not in self._continued)
        return next(free, None)


def _may_grow(shown: PublishedJob) -> bool:
    """True if few steps run, and a gateway can compute the durations from the times in the document.

    It cannot if a time is out of range, because the document then has the nearest time that can be written.
    """
    view = shown.view
    running = [step.started_at for step in view.steps if step.status == "running"]
    return len(running) <= MAX_RUNNING and all(at is None or _is_exact(at) for at in (view.started_at, *running))


def _is_exact(at: Micros) -> bool:
    return MIN_MICROS <= at <= MAX_MICROS
