"""Answers of a daemon about the jobs that failed alike: groups, what came after, and how a failed run differs.

All failed jobs that are known are walked, some at a time: other tasks run in between, and the jobs may change. What
only the database has is read in pages, for `WITHIN` seconds at the most; after that the answer says what is missing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from itertools import islice
from typing import TypeAlias

from correlator.errors import SourceUnavailable
from correlator.failures.groups import FailedJob
from correlator.failures.known import KnownFailures
from correlator.jobs.directory import place_of
from correlator.jobs.failure_context import MAX_RUNS, MIN_RUNS, burst, difference, next_runs, similar
from correlator.jobs.failure_summary import Summary
from correlator.jobs.failures import Failures
from correlator.jobs.fold import vm_name
from correlator.model.facts import Status
from correlator.model.published import PublishedJob
from correlator.model.replies import FailureGroup, FailureVariant, NextRuns, SimilarFailure
from correlator.model.rows import Micros
from correlator.ops.event_loop import timed
from correlator.pipeline.queries import (
    CompareFailure,
    DescribeFailure,
    FailedAlike,
    FailureComparison,
    FailureDescription,
    FailuresFound,
    JobQuery,
    OtherJobs,
)

VISITED_AT_ONCE = 1_000
"""Failed jobs that are counted in one call: about a millisecond."""

MAX_GROUPS = 500
MAX_GROUP_BYTES = 600_000
"""Bounds of one answer, in groups and in characters of their names: a reply to a gateway has 900,000 bytes."""

MAX_VARIANTS, MAX_SIMILAR = 20, 5
MAX_FOLLOWED, MAX_FOLLOWED_VMS = 20, 10
"""Failed jobs, and VMs, of which the next runs are looked up."""

MAX_FOLLOWING = 100
"""Runs of a VM since the oldest of its failed jobs that are read."""

MAX_BURST = 1_000
"""Jobs before a job, and after it, that may belong to its burst."""

WITHIN = 2.0
"""Seconds for all that the database is asked for one answer."""

READING = "failed jobs of the past are still being read"

Page: TypeAlias = Callable[
    [JobQuery, tuple[Micros, str] | None, int, Callable[[str], bool]], Awaitable[OtherJobs[PublishedJob]]
]


class FailureAnswers:
    """See the module's docstring. `page`: that of the hub. `known`: returns what operators know of failures now."""

    def __init__(self, failures: Failures, page: Page, known: Callable[[], KnownFailures]) -> None:
        self._failures = failures
        self._page = page
        self._known = known

    async def alike(self, asked: FailedAlike) -> FailuresFound:
        """Answer `FailedAlike`."""
        if asked.instance:
            return FailuresFound()
        limit = min(max(1, asked.limit), MAX_GROUPS)
        summaries: dict[str, Summary | None] = {}
        chosen: list[Summary] = []
        more = False
        async for job in self._walk(asked.since):
            if (asked.operation and job.operation != asked.operation) or (asked.vm and job.vm != asked.vm):
                continue
            name = job.failure.fingerprint
            if name not in summaries:
                summaries[name] = None
                place = (job.ended_at, name)
                if name not in asked.fingerprints if asked.fingerprints else asked.before and place >= asked.before:
                    continue
                if len(chosen) >= limit and job.ended_at < chosen[-1].newest.ended_at:
                    more = True
                    continue  # One that failed at the same time may belong before the last of them.
                chosen.append(summary := Summary(job))
                summaries[name] = summary
            if (found := summaries[name]) is not None:
                found.add(job)
        more = more or len(chosen) > limit
        chosen = sorted(chosen, key=_place, reverse=True)[:limit]
        groups, room, known = list[FailureGroup](), MAX_GROUP_BYTES, self._known()
        for summary in chosen:
            failure = summary.newest.failure
            group = summary.group(known.note(failure.fingerprint, failure.text))
            if groups and (room := room - _size(group)) < 0:
                more = True
                break
            groups.append(group)
        return FailuresFound(
            groups,
            _place(chosen[len(groups) - 1]) if more and groups else None,
            self._failures.reaches,
            None if self._failures.past_read else READING,
        )

    async def describe(self, asked: DescribeFailure) -> FailureDescription:
        """Answer `DescribeFailure`."""
        groups = self._failures.groups
        newest = next(groups.of(asked.fingerprint), None)
        if newest is None:
            return FailureDescription(reason=None if self._failures.past_read else READING)
        variants: Counter[str] = Counter()
        async for job in self._walk(None):
            if job.failure.fingerprint == asked.fingerprint:
                variants[job.failure.text] += 1
        runs, reason = await self._next_runs(islice(groups.of(asked.fingerprint), MAX_FOLLOWED))
        return FailureDescription(
            newest.failure.template,
            [FailureVariant(*one) for one in variants.most_common(MAX_VARIANTS)],
            runs,
            await self._similar(newest),
            reason,
        )

    async def compare(self, asked: CompareFailure, shown: PublishedJob | None) -> FailureComparison:
        """Answer `CompareFailure`. `shown`: the job; None: there is none."""
        job = self._failures.groups.get(asked.job_id)
        if shown is None or shown.failure is None:
            return FailureComparison()
        together, differs, reason = None, None, None
        if job is not None:
            groups = self._failures.groups
            together = burst(job, groups.older(job.key, MAX_BURST), groups.newer(job.key, MAX_BURST))
        vm = vm_name(shown.view)
        try:
            async with asyncio.timeout(WITHIN):
                for name in (vm, "") if vm else ("",):
                    runs = await self._completed(shown, name)
                    if len(runs) >= MIN_RUNS:
                        differs = difference(shown.view, [run.view for run in runs], name or None)
                        break
        except (SourceUnavailable, TimeoutError) as error:
            reason = error.public if isinstance(error, SourceUnavailable) else "earlier runs were not found in time"
        return FailureComparison(differs, together, reason)

    async def _walk(self, since: Micros | None) -> AsyncIterator[FailedJob]:
        """The failed jobs that are known, the newest first."""
        key, groups = None, self._failures.groups
        while True:
            with timed("failures"):
                some = groups.older(key, VISITED_AT_ONCE)
                for job in some:
                    if since is not None and job.ended_at < since:
                        return
                    yield job
            if not some:
                return
            key = some[-1].key
            await asyncio.sleep(0)

    async def _similar(self, job: FailedJob) -> list[SimilarFailure]:
        groups, found = self._failures.groups, list[SimilarFailure]()
        for number, name in enumerate(groups.fingerprints(), 1):
            if number % VISITED_AT_ONCE == 0:
                await asyncio.sleep(0)
            if (other := next(groups.of(name), None)) is not None and (one := similar(job, other, groups.count(name))):
                found.append(one)
        return sorted(found, key=lambda one: one.count, reverse=True)[:MAX_SIMILAR]

    async def _completed(self, shown: PublishedJob, vm: str) -> list[PublishedJob]:
        """Completed runs of the same operation before this job, the newest first. `vm` empty: of any VM."""
        if not shown.view.operation:
            return []
        completed, operation = frozenset({Status.COMPLETED.value}), frozenset({shown.view.operation})
        query = JobQuery(status=completed, operation=operation, vm_name=vm)
        return (await self._jobs(query, place_of(shown), MAX_RUNS))[0][:MAX_RUNS]

    async def _next_runs(self, failed: Iterable[FailedJob]) -> tuple[NextRuns, str | None]:
        by_vm: dict[str, list[FailedJob]] = {}
        for job in failed:
            if job.vm and (job.vm in by_vm or len(by_vm) < MAX_FOLLOWED_VMS):
                by_vm.setdefault(job.vm, []).append(job)
        runs, known_since, reason = list[PublishedJob](), dict[str, Micros](), None
        try:
            async with asyncio.timeout(WITHIN):
                for vm, jobs in by_vm.items():
                    query = JobQuery(vm_name=vm, since=min(job.ended_at for job in jobs))
                    some, known_since[vm] = await self._jobs(query, None, MAX_FOLLOWING)
                    runs += some
        except (SourceUnavailable, TimeoutError) as error:
            reason = error.public if isinstance(error, SourceUnavailable) else "the next runs were not found in time"
        return next_runs([job for jobs in by_vm.values() for job in jobs], runs, known_since), reason

    async def _jobs(
        self, query: JobQuery, before: tuple[Micros, str] | None, enough: int
    ) -> tuple[list[PublishedJob], Micros]:
        """Jobs of the tables, including those in memory, the newest first, and since which start they are all there."""
        found: list[PublishedJob] = []
        while len(found) < enough:
            page = await self._page(query, before, enough - len(found), lambda _: False)
            # The database's collation may match more than the query does.
            found += sorted(filter(query.matches, page.jobs), key=place_of, reverse=True)
            if (before := page.next_before) is None:
                return found, 0
        return found, before[0] if before is not None else 0


def _place(summary: Summary) -> tuple[Micros, str]:
    return summary.newest.ended_at, summary.newest.failure.fingerprint


def _size(group: FailureGroup) -> int:
    """About the characters of a group."""
    names: Iterable[str] = (*group.vms, *group.operations, *group.steps, group.text)
    jobs = (name for job in group.jobs for name in (job.job_id, job.operation or "", job.vm_name or ""))
    return 300 + 40 * len(group.days) + sum(4 + len(name.encode()) for name in (*names, *jobs))
