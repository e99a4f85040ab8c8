"""Queries that clients make and the database answers: filters of jobs, pages, and the `Archive` protocol.

`correlator.sources.archive` implements `Archive`. It is a protocol because sources are built on top of this package.

A gateway asks a collector the same, over `correlator.cluster.rpc`: one pair of structs per method, at the end of this
file. Their jobs are public documents without `rev`, as in the stream, and with their steps. A test fixes the encoded
form of each struct.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, reduce
from typing import Protocol

from msgspec import Raw, Struct

from correlator.jobs import job_document, job_view
from correlator.model.facts import Reading
from correlator.model.published import JobView, LogLine, PublishedJob
from correlator.model.replies import OperationRuns, OperationWithSteps, Resolved, ResolvedBy
from correlator.model.rows import LEVELS, Int64, LegacyRecord, Level, Micros


class Found(Struct, frozen=True):
    """The job that an ID names in the database. Exactly one of `reading` and `legacy` is set."""

    resolved: Resolved
    reading: Reading | None = None
    legacy: LegacyRecord | None = None


class JobQuery(Struct, frozen=True):
    """A filter of jobs: OR inside a member, AND between them; an empty member does not filter.

    `text`: in any ID or in the VM's name. `words`: each also in the operation, in the name of a step, or in an error.
    Both are compared without regard to case. `vm_name`: exactly this one. `since`, `until`: the job
    started at or after the one, and before the other. `instance`: appliances, at a gateway; an archive of one appliance
    ignores it.
    """

    status: frozenset[str] = frozenset()
    job_type: frozenset[str] = frozenset()
    operation: frozenset[str] = frozenset()
    context_id: frozenset[str] = frozenset()
    parent_job_id: frozenset[str] = frozenset()
    instance: frozenset[str] = frozenset()
    text: str = ""
    words: frozenset[str] = frozenset()
    vm_name: str = ""
    since: Micros | None = None
    until: Micros | None = None

    def matcher(self) -> Callable[[PublishedJob], bool]:
        """Return the function that says whether a job matches. It checks only what the filter names."""
        return _matcher(self)

    def matches(self, shown: PublishedJob) -> bool:
        return _matcher(self)(shown)


@lru_cache(256)
def _matcher(query: JobQuery) -> Callable[[PublishedJob], bool]:
    tests = list(_tests(query))
    return reduce(_both, tests) if tests else lambda _: True


def _both(one: Callable[[PublishedJob], bool], other: Callable[[PublishedJob], bool]) -> Callable[[PublishedJob], bool]:
    return lambda shown: one(shown) and other(shown)


def _tests(query: JobQuery) -> Iterator[Callable[[PublishedJob], bool]]:
    """One test for each member that filters, the cheapest first."""
    status, job_type, operation, context_id = query.status, query.job_type, query.operation, query.context_id
    parents, instances, since, until = query.parent_job_id, query.instance, query.since, query.until
    if status:
        yield lambda s: s.view.status in status
    if job_type:
        yield lambda s: s.view.job_type in job_type
    if operation:
        yield lambda s: s.view.operation in operation
    if context_id:
        yield lambda s: s.view.context_id in context_id
    if parents:
        yield lambda s: s.view.parent_job_id in parents
    if instances:
        yield lambda s: s.instance in instances
    if since is not None:
        yield lambda s: (s.view.started_at or 0) >= since
    if until is not None:
        yield lambda s: (s.view.started_at or 0) < until
    if query.vm_name:
        yield lambda s: job_view.vm_name(s.view) == query.vm_name
    if query.text:
        yield lambda s: _mention(_names(s.view), (query.text,))
    if query.words:
        yield lambda s: _mention(_texts(s), query.words)


def _mention(texts: Iterable[str | None], parts: Iterable[str]) -> bool:
    """True if each of `parts` is in one of `texts`, in upper or lower case."""
    lowered = [text.lower() for text in texts if text]
    return all(any(part in text for text in lowered) for part in map(str.lower, parts))


def _names(view: JobView) -> Iterator[str]:
    yield from view.names()
    yield job_view.vm_name(view)


def _texts(shown: PublishedJob) -> Iterator[str | None]:
    yield from _names(shown.view)
    yield shown.view.operation
    yield shown.view.error
    for step in job_document.steps_of(shown):
        yield step.name
        yield step.error_message


class LineQuery(Struct, frozen=True):
    """A filter of log lines: AND between its members. `level`: the lowest. `steps`: IDs; empty: every line.

    `text`: what the message or attrs contain, in upper or lower case. `since`: the earliest time.
    """

    level: Level = "DEBUG"
    steps: frozenset[Int64] = frozenset()
    text: str = ""
    since: Micros | None = None

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels that match; empty: all."""
        return tuple(LEVELS[LEVELS.index(self.level) :]) if self.level != "DEBUG" else ()


class LineArchive(Protocol):
    """Log lines and contexts that memory does not have. Every call may raise `correlator.errors.SourceUnavailable`."""

    async def is_context(self, name: str) -> bool:
        """Return True if `name` is the context of a job."""

    async def lines(self, names: JobNames, after: str | int | None, limit: int, query: LineQuery) -> LinesPage:
        """Return log lines of a job, oldest first: from the begin, after a `next_after`, or from an event ID on.

        Raises:
            BadRequest: `after` is a text, but not a position of this API.
        """

    async def lines_before(self, names: JobNames, before: int, limit: int, query: LineQuery) -> EarlierLines:
        """Return the last log lines of a job whose event ID is below `before`, oldest first."""


class Archive(LineArchive, Protocol):
    """Jobs and log lines that only the database has. Every call may raise `correlator.errors.SourceUnavailable`."""

    async def find(self, name: str, advance_clock: Callable[[], int]) -> Found | None:
        """Return the newest job that `name` names, or None. Call `advance_clock` just before each table query."""

    async def page(
        self,
        query: JobQuery,
        before: tuple[Micros, str] | None,
        limit: int,
        advance_clock: Callable[[], int],
        known: Callable[[str], bool],
    ) -> ArchivePage:
        """Return jobs older than `before`, newest first by (started, ID), without those for which `known` is true."""


class JobNames(Struct, frozen=True):
    """The names that a log row may use for its job, and the job's first and last time. `ended` None: it runs.

    `instance`: see `PublishedJob`.
    """

    job_id: str
    external_ids: tuple[str, ...]
    step_ids: frozenset[Int64]
    started: Micros
    ended: Micros | None
    instance: str = ""


class ArchivePage(Struct, frozen=True):
    """One page of jobs from the database. A page may be short, or empty, before the end of the list.

    `next_before`: where the next page begins; None after the last page. `legacy`: rows that no JobLog job owns.
    """

    readings: Sequence[Reading]
    next_before: tuple[Micros, str] | None
    legacy: Sequence[LegacyRecord] = ()


class OtherJobs(Struct, frozen=True):
    """The same as clients see it: jobs that are not in memory, with the current `seq` as their `rev`.

    `reason`: why jobs of some appliances are missing; None if none are.
    """

    jobs: Sequence[PublishedJob]
    next_before: tuple[Micros, str] | None
    reason: str | None = None


class LinesPage(Struct, frozen=True):
    """One page of a job's log lines. A page may be short, or empty, before the end.

    `next_after`: where the next page begins; None after the last line of an ended job. `more`: the next page exists
    already.
    """

    lines: Sequence[LogLine]
    next_after: str | None
    more: bool


class EarlierLines(Struct, frozen=True):
    """The last log lines before an event ID. A page may be short, or empty, before the begin of the log.

    `next_before`: the event ID that the page before this one ends below; None at the begin of the log.
    """

    lines: Sequence[LogLine]
    next_before: int | None


# -- requests of a gateway to a collector, and its replies


class NameParams(Struct, frozen=True, omit_defaults=True):
    """What `find`, `is_context` and `legacy_record` ask about: any ID, a context, a job ID of `failover_jobs`."""

    name: str


class FindResult(Struct, frozen=True, omit_defaults=True):
    """The newest job with an ID; `job` is empty if there is none. `also`: older jobs with the same ID."""

    job: Raw = Raw()
    resolved_by: ResolvedBy = "uuid"
    also: tuple[str, ...] = ()


class IsContextResult(Struct, frozen=True, omit_defaults=True):
    is_context: bool = False


class LegacyResult(Struct, frozen=True, omit_defaults=True):
    record: LegacyRecord | None = None


class PageParams(Struct, frozen=True, omit_defaults=True):
    """At most `limit` jobs that match `query`, newest first, from just before the place `before` on."""

    limit: Int64
    query: JobQuery = JobQuery()
    before: tuple[Micros, str] | None = None


class PageResult(Struct, frozen=True, omit_defaults=True):
    """All matching jobs between `before` and `next_before`, newest first; a page may be short or empty.

    `next_before`: where the next page begins; None after the last one.
    """

    jobs: tuple[Raw, ...] = ()
    next_before: tuple[Micros, str] | None = None


class LinesParams(Struct, frozen=True, omit_defaults=True):
    """Log lines of a job, oldest first. `after`: a `next_after`, or the first event ID."""

    names: JobNames
    limit: Int64
    after: str | Int64 | None = None
    query: LineQuery = LineQuery()


class LineResult(Struct, frozen=True, omit_defaults=True):
    """A log line. `attrs` is not parsed yet."""

    event_id: Int64
    level: Level
    message: str
    at: Micros
    step_id: Int64 | None = None
    attrs: Raw = Raw(b"null")


class LinesResult(Struct, frozen=True, omit_defaults=True):
    """A `LinesPage`."""

    lines: tuple[LineResult, ...]
    next_after: str | None = None
    more: bool = False


class LinesBeforeParams(Struct, frozen=True, omit_defaults=True):
    """The last log lines of a job below the event ID `before`."""

    names: JobNames
    before: Int64
    limit: Int64
    query: LineQuery = LineQuery()


class LinesBeforeResult(Struct, frozen=True, omit_defaults=True):
    """The same as `EarlierLines`."""

    lines: tuple[LineResult, ...]
    next_before: Int64 | None = None


class OperationsParams(Struct, frozen=True, omit_defaults=True):
    """All operations."""


class OperationsResult(Struct, frozen=True, omit_defaults=True):
    operations: tuple[OperationRuns, ...] = ()


class OperationParams(Struct, frozen=True, omit_defaults=True):
    """One operation, by its job type and name."""

    job_type: str
    operation: str


class OperationResult(Struct, frozen=True, omit_defaults=True):
    found: OperationWithSteps | None = None
