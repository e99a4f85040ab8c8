"""What a gateway does not have in memory: it asks the collectors, which have the databases.

An object asks the appliances of its scope, one or the whole fleet, and merges the answers. An appliance that does not
answer takes out of a page what only it has, and the page says so. Of an ID that nobody else knows, nothing can be said:
`find` raises. Jobs have `rev` 0, which the gateway replaces.

A page is merged from the lists of several appliances, each of which comes in pages that may be short, or empty, before
its end. The merged list is complete down to the highest `next_before` of all parts, and ends there; the appliances that
hold it up are asked for more until the page is full. So nothing is missing from the list or in it twice:

* A job is in the page only if every other answering appliance has given everything that is newer.
* An appliance that does not answer holds nothing up.
* Of jobs with the same start and ID, one is in the page: a cursor cannot point between them.

`WaitingIdsSender` publishes the IDs that a gateway's clients wait for, so that the collectors query for them.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar, cast

from msgspec import Raw
from msgspec.structs import astuple, replace

from correlator.bounded import BoundedDict
from correlator.cluster import received, rpc
from correlator.cluster.received import Unreadable
from correlator.cluster.rpc import WANT_EVERY, WITHIN, Caller
from correlator.errors import SourceUnavailable
from correlator.jobs import failure_summary
from correlator.jobs.directory import Place, place_of
from correlator.jobs.encoding import micros
from correlator.model.document import EXACT, MAX_ID
from correlator.model.published import PublishedJob
from correlator.model.replies import NO_RUNS, FailureVariant, NextRuns, OperationRuns, Resolved, SimilarFailure
from correlator.pipeline.failure_answers import MAX_SIMILAR, MAX_VARIANTS
from correlator.pipeline.hub import WaitingIds
from correlator.pipeline.queries import (
    CompareFailure,
    DescribeFailure,
    FailedAlike,
    FailureDescription,
    FailuresFound,
    FindJob,
    FindLines,
    IsContext,
    JobQuery,
    LegacyRow,
    LinesFound,
    LinesPage,
    LogLines,
    OlderJobs,
    Operations,
    OtherJobs,
    Question,
    UsualSteps,
)
from correlator.tasks import SharedTasks, end_tasks, set_within

T = TypeVar("T")

OTHERS_WITHIN = 1.0
"""Seconds that the other appliances have to name a newer job once one has found an ID."""

PAGE_WITHIN = 1.8
"""Seconds for a page of jobs. An appliance that takes longer is left out of it."""

GATHER_WITHIN = 0.4
"""Seconds after which appliances are not asked for more of a page that is not full."""

FEWEST_LINES = 10
"""Lines for which each appliance is asked at least, however many search."""

PARSED_AT_ONCE = 50
"""Documents that are parsed before the event loop runs other tasks."""

MAX_EMPTY = 3
"""Answers without a job, and not the end of the list, that an appliance may give for one page. A collector searches for
half a second before it gives one."""

MAX_ALSO, MAX_OPERATIONS = 1_000, 1_000
"""Other jobs with an ID, and operations of one appliance, that are passed on. Collectors know fewer."""

MAX_NAMED = 3
"""Most appliances that a reason names."""


class RpcArchive:
    """The databases of the appliances that `scope()` names. Each call may raise `SourceUnavailable`.

    `gather_within`: seconds after which appliances are not asked for more of a page that is not full.
    """

    def __init__(
        self, caller: Caller, scope: Callable[[], Sequence[str]], gather_within: float = GATHER_WITHIN
    ) -> None:
        self._caller = caller
        self._gather_within = gather_within
        self._scope = scope
        self._finding: SharedTasks[tuple[PublishedJob, Resolved] | None] = SharedTasks()

    async def find(self, name: str) -> tuple[PublishedJob, Resolved] | None:
        """Return the newest job with the ID `name`, or None. Requests for one ID share a search.

        `also` has the jobs of the other appliances after those of its own.
        """
        if not name or len(name) > MAX_ID or "\0" in name:
            return None
        return await self._finding.run(name, lambda: self._find(name))

    async def page(self, query: JobQuery, before: Place | None, limit: int) -> OtherJobs[PublishedJob]:
        """Return jobs older than `before`, newest first by (started, ID). A page may be short.

        `reason` names the appliances that did not answer. Raises: `SourceUnavailable` if none did.
        """
        instances = [name for name in self._scope() if not query.instance or name in query.instance]
        merged = MergedPage(instances, before, limit)
        query = replace(query, instance=frozenset())  # Jobs of a collector have no name of their appliance.
        errors: list[SourceUnavailable] = []
        empty: Counter[str] = Counter()
        clock = asyncio.get_running_loop().time
        until, answered = clock() + self._gather_within, False
        while due := merged.due():
            if answered and (clock() >= until or any(empty[instance] >= MAX_EMPTY for instance, _ in due)):
                break
            found = await self._each(
                [instance for instance, _ in due], lambda i: self._page(i, OlderJobs(limit, query, dict(due)[i]))
            )
            for instance, part in found.items():
                if isinstance(part, SourceUnavailable):
                    merged.drop(instance, part.public)
                    errors.append(part)
                else:
                    jobs, following = part
                    merged.add(instance, jobs, following)
                    empty[instance] += not jobs and following is not None
                    answered = True
        if errors and not answered:
            raise SourceUnavailable(_reasons(errors))
        while due := merged.holds_up_all():  # Without a filter, a collector has a job for each answer.
            for instance, _ in due:
                if query != JobQuery() and empty[instance] < MAX_EMPTY:
                    return merged.result()
                merged.drop(instance, f"{instance}: the collector finds no job, and does not get on")
        return merged.result()

    async def ask(self, question: Question[T]) -> T:
        """Return the answer: that of the appliance of a job, or of all that answer."""
        asked: Question[Any] = question
        if isinstance(asked, LogLines):
            return cast("T", await self._log(asked.names.instance, asked))
        if isinstance(asked, FindLines):
            return cast("T", await self._found_lines(asked))
        if isinstance(asked, CompareFailure):
            return cast("T", await self._ask(asked.instance, asked))
        if isinstance(asked, FailedAlike):
            return cast("T", await self._failed_alike(asked))
        found = await self._each(self._scope(), lambda i: self._ask(i, question))
        values: dict[str, Any] = _answers(found)
        merged: Any
        match asked:
            case IsContext():
                merged = bool(values)
            case LegacyRow():  # that of the first appliance that has one
                merged = values[min(values)] if values else None
            case Operations():
                merged = _merged(values)
            case UsualSteps():
                merged = min(values.items(), key=lambda item: (-item[1].runs, item[0]))[1] if values else None
            case DescribeFailure():
                merged = _description(values, [one for one in found.values() if isinstance(one, SourceUnavailable)])
        return cast("T", merged)

    async def _found_lines(self, asked: FindLines) -> LinesFound:
        """Lines of all appliances that still search, each from its own place on.

        One that does not answer keeps its place, and nothing of it counts as searched. `searched_to` is None once only
        such ones are left. Raises: `SourceUnavailable` if none answers.
        """
        scope = [name for name in self._scope() if not asked.instance or name in asked.instance]
        places = {name: asked.places.get(name, EXACT) for name in scope if not asked.places or name in asked.places}
        limit = max(FEWEST_LINES, asked.limit // max(1, len(places)))
        part = replace(asked, limit=limit, instance=frozenset())
        found = await self._each(places, lambda name: self._lines(name, replace(part, places={"": places[name]})))
        errors = [one for one in found.values() if isinstance(one, SourceUnavailable)]
        answers = {name: one for name, one in found.items() if not isinstance(one, SourceUnavailable)}
        if errors and not answers:
            raise SourceUnavailable(_reasons(errors))
        following = places | {name: one.places.get("") for name, one in answers.items()}
        searched = len(scope) - len(places) + sum(one.searched for one in answers.values())
        return LinesFound(
            [replace(line, instance=name) for name, one in answers.items() for line in one.lines],
            {name: place for name, place in following.items() if place is not None},
            searched / max(1, len(scope)),
            max((one.searched_to for one in answers.values() if one.searched_to is not None), default=None),
            _reasons(errors) if errors else None,
        )

    async def _failed_alike(self, asked: FailedAlike) -> FailuresFound:
        """Groups of all appliances, added up.

        Each appliance names its groups of the page first. Then all are asked for those that are in the page: a group
        whose last failure elsewhere was newer than the page has been in an earlier one. Raises: `SourceUnavailable` if
        no appliance answers.
        """
        scope = [name for name in self._scope() if not asked.instance or name in asked.instance]
        asked = replace(asked, instance=frozenset())
        last: dict[str, tuple[str, str]] = {}
        answers, errors = await self._failures(scope, asked)
        for found in answers.values():
            for group in found.groups:
                last[group.fingerprint] = max(last.get(group.fingerprint, ("", "")), (group.last_at, group.fingerprint))
        chosen = sorted(last.values(), reverse=True)[: asked.limit]
        more = len(last) > len(chosen) or any(found.following is not None for found in answers.values())
        if len(scope) > 1 and chosen and not asked.fingerprints:
            wanted = replace(asked, before=None, fingerprints=frozenset(name for _, name in chosen))
            answers, more_errors = await self._failures(list(answers), wanted, whole=True)
            errors += more_errors
        groups = []
        for _, name in chosen:
            of = {i: group for i, found in answers.items() for group in found.groups if group.fingerprint == name}
            whole = failure_summary.merged(of) if of else None
            if whole is not None and (asked.before is None or (micros(whole.last_at), name) < asked.before):
                groups.append(whole)
        reached = [found.reaches for found in answers.values() if found.reaches is not None]
        reasons = [found.reason for found in answers.values() if found.reason is not None]
        return FailuresFound(
            groups,
            (micros(chosen[-1][0]), chosen[-1][1]) if more and chosen else None,
            max(reached) if reached and len(reached) == len(answers) else None,
            _reasons(errors) if errors else next(iter(reasons), None),
        )

    async def _failures(
        self, scope: Sequence[str], asked: FailedAlike, *, whole: bool = False
    ) -> tuple[dict[str, FailuresFound], list[SourceUnavailable]]:
        """The answers, and why others are missing. `whole`: all of `fingerprints`, in as many replies as that takes.

        Raises: `SourceUnavailable` if no appliance answers.
        """
        found = await self._each(scope, lambda name: self._groups(name, asked, whole))
        errors = [one for one in found.values() if isinstance(one, SourceUnavailable)]
        answers = {name: one for name, one in found.items() if not isinstance(one, SourceUnavailable)}
        if errors and not answers:
            raise SourceUnavailable(_reasons(errors))
        return answers, errors

    async def _groups(self, instance: str, asked: FailedAlike, whole: bool) -> FailuresFound:
        found = last = await self._ask(instance, asked)
        try:
            for group in found.groups:
                micros(group.last_at)
        except ValueError:
            raise SourceUnavailable(f"{instance}: the collector sent a time that cannot be read") from None
        while whole and last.following is not None:
            rest = asked.fingerprints - {group.fingerprint for group in found.groups}
            last = await self._ask(instance, replace(asked, fingerprints=rest))
            if not last.groups or not {group.fingerprint for group in last.groups} <= rest:
                raise _no_progress(instance)
            found = replace(found, groups=[*found.groups, *last.groups])
        return found

    # -- one appliance

    async def _find(self, name: str) -> tuple[PublishedJob, Resolved] | None:
        tasks = {i: asyncio.create_task(_caught(self._find_at, i, name)) for i in self._scope()}
        found: dict[str, tuple[PublishedJob, Resolved] | SourceUnavailable | None] = {}
        clock = asyncio.get_running_loop().time
        until: float | None = None
        try:
            waiting = set(tasks.values())
            while waiting:
                done, waiting = await asyncio.wait(
                    waiting,
                    timeout=None if until is None else max(0.0, until - clock()),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not done:
                    break
                found = {i: task.result() for i, task in tasks.items() if task.done()}
                known = [one for one in found.values() if isinstance(one, tuple)]
                if any(resolved.resolved_by == "uuid" for _, resolved in known):
                    break
                if known and until is None:
                    until = clock() + OTHERS_WITHIN
        finally:
            await end_tasks(set(tasks.values()))
        return _newest(_answers(found))

    async def _find_at(self, instance: str, name: str) -> tuple[PublishedJob, Resolved] | None:
        found = await self._ask(instance, FindJob(name))
        return (_parsed(found[0], instance), found[1]) if found is not None else None

    async def _page(self, instance: str, question: OlderJobs) -> tuple[list[PublishedJob], Place | None]:
        result = await self._ask(instance, question, PAGE_WITHIN)
        tomorrow = time.time_ns() // 1_000 + 86_400_000_000, ""
        if result.next_before is not None and result.next_before >= (question.before or tomorrow):
            raise _no_progress(instance)
        jobs: list[PublishedJob] = []
        for n, job in enumerate(result.jobs[: question.limit], 1):
            shown = _parsed(job, instance)
            if question.before is None or place_of(shown) < question.before:  # A newer one would repeat the list.
                jobs.append(shown)
            if n % PARSED_AT_ONCE == 0:
                await asyncio.sleep(0)
        return jobs, result.next_before

    async def _log(self, instance: str, question: LogLines) -> LinesPage:
        page = await self._ask(instance, question)
        if question.before is None:
            stays = page.more and page.next_after in (None, question.after)
        else:
            stays = page.next_before is not None and page.next_before >= question.before
        if stays:
            raise _no_progress(instance)
        return page

    async def _lines(self, instance: str, question: FindLines) -> LinesFound:
        found = await self._ask(instance, question)
        if (place := found.places.get("")) is not None and place >= question.places[""]:
            raise _no_progress(instance)
        return replace(found, lines=found.lines[: question.limit], searched=min(1.0, max(0.0, found.searched)))

    async def _ask(self, instance: str, question: Question[T], within: float = WITHIN) -> T:
        return await self._caller.call(instance, question, question.answer(), within)

    async def _each(
        self, instances: Iterable[str], ask: Callable[[str], Awaitable[T]]
    ) -> dict[str, T | SourceUnavailable]:
        """The answer of each appliance, or why there is none."""
        names = list(instances)
        return dict(zip(names, await asyncio.gather(*(_caught(ask, name) for name in names)), strict=True))


async def _caught(ask: Callable[..., Awaitable[T]], *asked: str) -> T | SourceUnavailable:
    """Return the answer, or why there is none. A task that is cancelled before its first step asks for nothing."""
    try:
        return await ask(*asked)
    except SourceUnavailable as error:
        return error


def _answers(found: Mapping[str, T | SourceUnavailable | None]) -> dict[str, T]:
    """The answers but None and False, which say that the appliance has nothing.

    Raises: `SourceUnavailable` if nothing is left, and some appliance did not answer: it may have what nobody else has.
    """
    given = {i: one for i, one in found.items() if not isinstance(one, SourceUnavailable)}
    values = {i: one for i, one in given.items() if one is not None and one is not False}
    errors = [one for one in found.values() if isinstance(one, SourceUnavailable)]
    if not values and errors:
        raise SourceUnavailable(_reasons(errors))
    return values


def _merged(lists: Mapping[str, Iterable[OperationRuns]]) -> tuple[OperationRuns, ...]:
    """Each operation once, as known where it ran most often."""
    most: dict[tuple[str, str], OperationRuns] = {}
    for instance in sorted(lists):
        for one in islice(lists[instance], MAX_OPERATIONS):
            key = (one.job_type or "", one.operation)
            if key not in most or one.runs > most[key].runs:
                most[key] = one
    return tuple(most[key] for key in sorted(most))


def _description(found: Mapping[str, FailureDescription], errors: Sequence[SourceUnavailable]) -> FailureDescription:
    """What all appliances know of one failure."""
    some = [one for _, one in sorted(found.items()) if one.template]
    variants: Counter[str] = Counter()
    similar: dict[str, SimilarFailure] = {}
    for one in some:
        variants.update({variant.text: variant.count for variant in one.variants})
        for other in one.similar:
            known = similar.get(other.fingerprint)
            similar[other.fingerprint] = replace(other, count=other.count + (known.count if known is not None else 0))
    reasons = [one.reason for one in found.values() if one.reason is not None]
    return FailureDescription(
        some[0].template if some else "",
        [FailureVariant(*one) for one in variants.most_common(MAX_VARIANTS)],
        _added(one.next_runs for one in some),
        sorted(similar.values(), key=lambda one: one.count, reverse=True)[:MAX_SIMILAR],
        _reasons(errors) if errors else next(iter(reasons), None),
    )


def _added(parts: Iterable[NextRuns]) -> NextRuns:
    whole = NO_RUNS
    for part in parts:
        whole = NextRuns(*(one + other for one, other in zip(astuple(whole), astuple(part), strict=True)))
    return whole


def _newest(found: Mapping[str, tuple[PublishedJob, Resolved]]) -> tuple[PublishedJob, Resolved] | None:
    """The newest job that an ID names; of equally old ones, that of the first appliance."""
    order = sorted(sorted(found), key=lambda i: found[i][0].view.age_key, reverse=True)
    if not order:
        return None
    job, resolved = found[order[0]]
    also = list(resolved.also)
    for other in order[1:]:
        also += [found[other][0].job_id, *found[other][1].also]
    return job, replace(resolved, also=tuple(also[:MAX_ALSO]))


def _no_progress(instance: str) -> SourceUnavailable:
    return SourceUnavailable(f"{instance}: not a message of this program: a page does not get on")


def _parsed(document: Raw, instance: str) -> PublishedJob:
    try:
        return received.document(document, 0, instance)
    except Unreadable as error:
        raise SourceUnavailable(f"{instance}: the collector sent a document that cannot be read") from error


def _reasons(errors: Sequence[SourceUnavailable]) -> str:
    more = f" (and {len(errors) - MAX_NAMED} more)" if len(errors) > MAX_NAMED else ""
    return "; ".join(error.public for error in errors[:MAX_NAMED]) + more


class MergedPage:
    """Merges pages until `limit` jobs are certain. Ask those that `due` names; then `add` or `drop` each of them.

    Args:
        instances: The appliances.
        before: The place before which the page begins; None: at the newest job.
        limit: The number of jobs that fill the page.
    """

    def __init__(self, instances: Iterable[str], before: Place | None, limit: int) -> None:
        self._limit = limit
        self._next_before: dict[str, Place | None] = dict.fromkeys(sorted(instances), before)
        """How far the jobs of each appliance are known. None: it has ended."""
        self._unasked = set(self._next_before)
        self._jobs: dict[Place, tuple[PublishedJob, str]] = {}
        self._reasons: dict[str, str] = {}

    def due(self) -> list[tuple[str, Place | None]]:
        """The appliances that hold the page up, each with the place to ask from. Empty: the page is full, or ends."""
        if self._unasked:
            return [(instance, place) for instance, place in self._next_before.items() if instance in self._unasked]
        reached = self._reached()
        if reached is None or len(self._certain(reached)) >= self._limit:
            return []
        return [(instance, reached) for instance, place in self._next_before.items() if place == reached]

    def holds_up_all(self) -> list[tuple[str, Place | None]]:
        """The appliances for which the page has no job although others have given some; none, if it has one."""
        return self.due() if self._jobs and not self._certain(self._reached()) else []

    def add(self, instance: str, jobs: Iterable[PublishedJob], next_before: Place | None) -> None:
        """Add a page that an appliance gave."""
        self._next_before[instance] = next_before
        self._unasked.discard(instance)
        for job in jobs:
            known = self._jobs.get(place := place_of(job))
            if known is None or (job.view.age_key, known[1]) > (known[0].view.age_key, instance):
                self._jobs[place] = job, instance

    def drop(self, instance: str, reason: str) -> None:
        """Go on without an appliance that did not answer. What it gave before stays."""
        self.add(instance, (), None)
        self._reasons[instance] = reason

    def result(self) -> OtherJobs[PublishedJob]:
        """The page, once every appliance has given a page or was dropped. It is short if some are still `due`."""
        reached = self._reached()
        certain = self._certain(reached)
        page = certain[: self._limit]
        following = place_of(page[-1]) if len(certain) > self._limit else reached
        return OtherJobs(page, following, "; ".join(self._reasons.values()) or None)

    def _reached(self) -> Place | None:
        """The place down to which every part is complete; None: all have ended."""
        return max((place for place in self._next_before.values() if place is not None), default=None)

    def _certain(self, reached: Place | None) -> list[PublishedJob]:
        """The newest jobs down to `reached`; at most one more than fits into the page."""
        found = (place for place in self._jobs if reached is None or place >= reached)
        return [self._jobs[place][0] for place in heapq.nlargest(self._limit + 1, found)]


# -- waiting ids


MAX_IDS = 1_000
"""Most IDs of one appliance, or of the fleet, that are published: those that clients began to wait for last."""

PAUSE = 0.1
"""Seconds between two messages."""


class WaitingIdsSender:
    """Publishes the waiting IDs of a gateway. Call `wake` whenever a client begins to wait.

    Args:
        waiting_ids: Returns the waiting IDs of each appliance with its name, and those of the whole fleet with None.
        publish: Sends one message to all collectors. It must not raise; while the cluster is away, it drops it.
    """

    def __init__(
        self,
        waiting_ids: Callable[[], Iterable[tuple[str | None, WaitingIds]]],
        publish: Callable[[bytes], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._waiting_ids = waiting_ids
        self._publish = publish
        self._clock = clock
        self._woken = asyncio.Event()
        self._sent: BoundedDict[tuple[str | None, str], float] = BoundedDict(10 * MAX_IDS)
        """When each ID was published last."""

    def wake(self) -> None:
        """A client began to wait for an ID."""
        self._woken.set()

    async def run(self) -> None:
        """Publish until cancelled: new IDs at once, the others every `WANT_EVERY` seconds."""
        while True:
            self._woken.clear()
            message, wait = self.next_message()
            if message is not None:
                await self._publish(message)
                await asyncio.sleep(PAUSE)
                continue
            await set_within(self._woken, wait)

    def next_message(self) -> tuple[bytes | None, float | None]:
        """Return a message that is due and None, else None and the seconds until one may be due.

        Both are None if no client waits for an ID.
        """
        now = self._clock()
        next_at: float | None = None
        for instance, waiting_ids in self._waiting_ids():
            due: list[str] = []
            for name in waiting_ids.unknown_ids(MAX_IDS):
                sent_at = self._sent.get((instance, name))
                if sent_at is None or now - sent_at >= WANT_EVERY:
                    due.append(name)
                elif next_at is None or sent_at + WANT_EVERY < next_at:
                    next_at = sent_at + WANT_EVERY
            if due:
                for name in due[: rpc.MAX_WANTED_IDS]:
                    self._sent.pop((instance, name), None)
                    self._sent[instance, name] = now
                return rpc.encode_wanted(due, instance), None
        return None, None if next_at is None else next_at - now
