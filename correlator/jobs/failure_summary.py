"""What the jobs that failed alike have in common: counted job by job, and added up over the appliances of a fleet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from correlator.failures.groups import FailedJob
from correlator.jobs.encoding import rfc3339
from correlator.model.replies import FailedJobRef, FailureDay, FailureGroup, OperatorNote
from correlator.model.rows import Micros

MAX_NAMES, MAX_JOBS, MAX_DAYS = 20, 5, 400
"""Names of a kind, jobs, and days of one group that are shown. The names and jobs are those that failed last."""

_DAY = 86_400_000_000
"""Microseconds of a day."""


class Summary:
    """Counts the jobs of one group. Add the newest first."""

    def __init__(self, newest: FailedJob) -> None:
        self.newest = newest
        self._count = 0
        self._first_at = newest.ended_at
        self._days: Counter[Micros] = Counter()
        self._vms: dict[str, None] = {}
        self._operations: dict[str, None] = {}
        self._steps: dict[str, None] = {}
        self._jobs: list[FailedJobRef] = []

    def add(self, job: FailedJob) -> None:
        self._count += 1
        self._first_at = job.ended_at
        self._days[job.ended_at // _DAY] += 1
        if job.vm:
            self._vms[job.vm] = None
        for names, name in ((self._operations, job.operation), (self._steps, job.failure.step)):
            if name and len(names) < MAX_NAMES:
                names[name] = None
        if len(self._jobs) < MAX_JOBS:
            self._jobs.append(FailedJobRef(job.job_id, rfc3339(job.ended_at), job.operation or None, job.vm or None))

    def group(self, note: OperatorNote | None) -> FailureGroup:
        failure, days = self.newest.failure, sorted(self._days.items())[-MAX_DAYS:]
        return FailureGroup(
            fingerprint=failure.fingerprint,
            text=failure.text,
            step=failure.step,
            certainty=failure.certainty,
            count=self._count,
            first_at=rfc3339(self._first_at),
            last_at=rfc3339(self.newest.ended_at),
            days=tuple(FailureDay(rfc3339(number * _DAY)[:10], count) for number, count in days),
            vms=tuple(self._vms)[:MAX_NAMES],
            vm_count=len(self._vms),
            operations=tuple(self._operations),
            steps=tuple(self._steps),
            jobs=tuple(self._jobs),
            note=note,
        )


def merged(groups: Mapping[str, FailureGroup]) -> FailureGroup:
    """The group of several appliances, by appliance. VMs of the same name on two appliances are two VMs."""
    newest_first = sorted(groups, key=lambda name: groups[name].last_at, reverse=True)
    found = [groups[name] for name in newest_first]
    days: Counter[str] = Counter()
    for group in found:
        days.update({one.day: one.count for one in group.days})
    jobs = [replace(job, instance=name) for name in newest_first for job in groups[name].jobs]
    return replace(
        found[0],
        count=sum(group.count for group in found),
        first_at=min(group.first_at for group in found),
        days=tuple(FailureDay(*one) for one in sorted(days.items())[-MAX_DAYS:]),
        vms=_names(group.vms for group in found),
        vm_count=sum(group.vm_count for group in found),
        operations=_names(group.operations for group in found),
        steps=_names(group.steps for group in found),
        jobs=tuple(sorted(jobs, key=lambda job: job.ended_at, reverse=True)[:MAX_JOBS]),
        note=next((group.note for group in found if group.note is not None), None),
        instances=tuple(sorted(groups)),
    )


def _names(lists: Iterable[Iterable[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for names in lists for name in names))[:MAX_NAMES]
