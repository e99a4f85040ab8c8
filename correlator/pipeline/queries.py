"""What clients ask that memory cannot answer: filters of jobs and lines, and the questions with their answers.

A question is a struct, and its class states the form of its answer. A daemon answers it from the database
(`LocalHub.ask`, `Archive`). A gateway asks the collectors the same, over `correlator.cluster.rpc`: there the class is
the method, and question and answer are JSON. A test fixes their form. `FindJob` and `OlderJobs` are asked over the
cluster only, with public documents without `rev`, as in the stream: a hub answers them from memory as well
(`Hub.find`, `Hub.page`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, reduce
from typing import Any, Generic, Protocol, TypeVar, get_args

from msgspec import Raw, Struct

from correlator.jobs import encoding, fold
from correlator.model.facts import Reading
from correlator.model.published import FoundLine, JobView, LogLine, PublishedJob
from correlator.model.replies import (
    NO_RUNS,
    Burst,
    Difference,
    FailureGroup,
    FailureVariant,
    NextRuns,
    OperationRuns,
    OperationWithSteps,
    Resolved,
    SimilarFailure,
)
from correlator.model.rows import LEVELS, Int64, LegacyRecord, Level, Micros

A = TypeVar("A")
J = TypeVar("J")


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
        yield lambda s: fold.vm_name(s.view) == query.vm_name
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
    yield fold.vm_name(view)


def _texts(shown: PublishedJob) -> Iterator[str | None]:
    yield from _names(shown.view)
    yield shown.view.operation
    yield shown.view.error
    for step in encoding.steps_of(shown):
        yield step.name
        yield step.error_message


class LineQuery(Struct, frozen=True):
    """A filter of log lines: AND between its members. `level`: the lowest. `steps`: IDs; empty: every line.

    `text`: what the message or attrs contain, in upper or lower case; so they do each of `words`. `since`: the earliest
    time; `until`: the first that is too late.
    """

    level: Level = "DEBUG"
    steps: frozenset[Int64] = frozenset()
    text: str = ""
    since: Micros | None = None
    until: Micros | None = None
    words: frozenset[str] = frozenset()

    @property
    def texts(self) -> tuple[str, ...]:
        """What a line has to contain. The longest word comes first, as the fewest lines have it."""
        return tuple(filter(None, (self.text, *sorted(self.words, key=lambda word: (-len(word), word)))))

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels that match; empty: all."""
        return tuple(LEVELS[LEVELS.index(self.level) :]) if self.level != "DEBUG" else ()


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


# -- answers


class ArchivePage(Struct, frozen=True):
    """One page of jobs from the database. A page may be short, or empty, before the end of the list.

    `next_before`: where the next page begins; None after the last page. `legacy`: rows that no JobLog job owns.
    """

    readings: Sequence[Reading]
    next_before: tuple[Micros, str] | None
    legacy: Sequence[LegacyRecord] = ()


class OtherJobs(Struct, Generic[J], frozen=True, omit_defaults=True):
    """The same as clients see it: jobs that are not in memory, with the current `seq` as their `rev`.

    `reason`: why jobs of some appliances are missing; None if none are.
    """

    jobs: Sequence[J] = ()
    next_before: tuple[Micros, str] | None = None
    reason: str | None = None


class LinesPage(Struct, frozen=True):
    """One page of a job's log lines, oldest first. A page may be short, or empty, before the end.

    `next_after`: where the next page begins; None after the last line of an ended job. `more`: the next page exists
    already. `next_before`, of a page that was read backward: the event ID that the page before it ends below; None at
    the begin of the log. `reason`: why lines may be missing; None if none are.
    """

    lines: Sequence[LogLine]
    next_after: str | None = None
    more: bool = False
    next_before: Int64 | None = None
    reason: str | None = None


class LinesFound(Struct, frozen=True):
    """Lines of any jobs, newest first by ID, of each appliance. There may be few, or none, before the end of the log.

    `places`: by appliance ("" at a daemon), the event ID below which the search goes on; empty: it is over. `searched`:
    the share of the log that has been examined, from 0 to 1, and about the time down to which; None: all. `reason`: why
    lines of some appliances are missing; None if none are.
    """

    lines: Sequence[FoundLine] = ()
    places: dict[str, Int64] = {}
    searched: float = 1.0
    searched_to: Micros | None = None
    reason: str | None = None


class FailuresFound(Struct, frozen=True, omit_defaults=True):
    """Groups of jobs that failed alike, those that failed last first. `following`: the next `before`; None: no more.

    `reaches`: all failed jobs that started then or later are counted, in microseconds; None: that is not known.
    `reason`: why failed jobs may be missing; None if none are.
    """

    groups: Sequence[FailureGroup] = ()
    following: tuple[Micros, str] | None = None
    reaches: Micros | None = None
    reason: str | None = None


class FailureDescription(Struct, frozen=True, omit_defaults=True):
    """What `FailureDetails` has besides the group. `reason`: why something may be missing."""

    template: str = ""
    variants: Sequence[FailureVariant] = ()
    next_runs: NextRuns = NO_RUNS
    similar: Sequence[SimilarFailure] = ()
    reason: str | None = None


class FailureComparison(Struct, frozen=True, omit_defaults=True):
    """What surrounds one failed job: see `Why`. `reason`: why something may be missing."""

    differs: Difference | None = None
    burst: Burst | None = None
    reason: str | None = None


# -- questions


class Question(Struct, Generic[A], frozen=True, omit_defaults=True):
    """What memory cannot answer. `A`: the form of the answer. It may raise `correlator.errors.SourceUnavailable`."""

    @classmethod
    def answer(cls) -> type[A]:
        return get_args(cls.__orig_bases__[0])[0]  # type: ignore[attr-defined,no-any-return]


class FindJob(Question[tuple[Raw, Resolved] | None], frozen=True):
    """The newest job with an ID of any kind."""

    name: str


class OlderJobs(Question[OtherJobs[Raw]], frozen=True):
    """At most `limit` jobs that match `query`, newest first by (started, ID), from just before the place `before` on.

    The answer has all matching jobs between `before` and `next_before`; it may be short or empty.
    """

    limit: Int64
    query: JobQuery = JobQuery()
    before: tuple[Micros, str] | None = None


class LogLines(Question[LinesPage], frozen=True):
    """Log lines of a job: from the begin, after a `next_after`, or from an event ID on; else the last below `before`.

    Raises `BadRequest` if `after` is a text, but not a position of this API.
    """

    names: JobNames
    after: str | Int64 | None
    limit: Int64
    query: LineQuery
    before: Int64 | None = None


class FindLines(Question[LinesFound], frozen=True):
    """Some `limit` log lines of any jobs that match `query`, the newest first, from `places` on; else from the newest.

    `instance`: of these appliances, at a gateway; an archive of one appliance ignores it.
    """

    limit: Int64
    query: LineQuery
    instance: frozenset[str] = frozenset()
    places: dict[str, Int64] = {}


class IsContext(Question[bool], frozen=True):
    """Whether `name` is the context of a job."""

    name: str


class LegacyRow(Question[LegacyRecord | None], frozen=True):
    """The row of `failover_jobs` with the job ID `name`."""

    name: str


class Operations(Question[tuple[OperationRuns, ...]], frozen=True):
    """What is known of earlier runs, sorted by operation."""


class UsualSteps(Question[OperationWithSteps | None], frozen=True):
    """One operation with its usual steps, by its job type and name."""

    job_type: str
    operation: str


class FailedAlike(Question[FailuresFound], frozen=True):
    """Some `limit` groups of the jobs that failed `since` then, of an operation and a VM; empty ones do not filter.

    The groups come in the order of (last failure, fingerprint), the greatest first, from just below `before` on.
    `fingerprints`: only these, whatever `before` says. `instance`: of these appliances, at a gateway.
    """

    limit: Int64
    since: Micros | None = None
    operation: str = ""
    vm: str = ""
    before: tuple[Micros, str] | None = None
    fingerprints: frozenset[str] = frozenset()
    instance: frozenset[str] = frozenset()


class DescribeFailure(Question[FailureDescription], frozen=True):
    """What was masked in a failure, what came after it, and which ones are similar."""

    fingerprint: str


class CompareFailure(Question[FailureComparison], frozen=True):
    """What differs from earlier runs, and which jobs failed together with this one, of the appliance `instance`."""

    job_id: str
    instance: str = ""


QUESTIONS: dict[str, type[Question[Any]]] = {kind.__name__: kind for kind in Question.__subclasses__()}


class Archive(Protocol):
    """Jobs and log lines that only the database has. Every call may raise `correlator.errors.SourceUnavailable`.

    `correlator.sources.archive` implements it; it is a protocol because sources are built on top of this package.
    """

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

    async def lines(self, asked: LogLines) -> LinesPage:
        """See `LogLines`."""

    async def find_lines(self, asked: FindLines) -> LinesFound:
        """See `FindLines`."""

    async def is_context(self, name: str) -> bool:
        """See `IsContext`."""

    async def oldest(self) -> Micros | None:
        """Return when the oldest JobLog job started; None if there is none."""
