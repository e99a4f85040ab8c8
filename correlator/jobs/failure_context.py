"""What surrounds a failed job: earlier runs that completed, the next runs, jobs that failed together, similar texts.

Pure. Everything here says what the rows say, and calls nothing a cause.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from correlator.failures.groups import FailedJob
from correlator.jobs.encoding import seconds
from correlator.jobs.fold import vm_name
from correlator.model.facts import Status
from correlator.model.published import JobView, PublishedJob
from correlator.model.replies import Burst, Difference, LongStep, NextRuns, SimilarFailure
from correlator.model.rows import Micros, StepRecord

MIN_RUNS, MAX_RUNS = 3, 20
"""Completed runs that are compared with a failed job."""

OF_TEN = 0.9
"""The share of the compared runs that a step must differ from."""

BURST_GAP = 30_000_000
"""Microseconds between the ends of two jobs that failed together, at most."""

MIN_BURST = 3


def difference(job: JobView, runs: Sequence[JobView], vm: str | None) -> Difference | None:
    """What differs from the completed `runs`, the newest first. `vm`: they were of this VM; None: of any."""
    runs = runs[:MAX_RUNS]
    if len(runs) < MIN_RUNS:
        return None
    had: Counter[str] = Counter()
    took: dict[str, list[float]] = {}
    order: dict[str, None] = {}
    for run in runs:
        order.update(dict.fromkeys(step.name for step in run.steps))
        had.update({step.name for step in run.steps})
        for step in run.steps:
            if (lasted := _seconds(step)) is not None:
                took.setdefault(step.name, []).append(lasted)
    own = {step.name for step in job.steps}
    missing = [name for name in order if name not in own and had[name] >= OF_TEN * len(runs)]
    longer = []
    for step in job.steps:
        lasted, others = _seconds(step), sorted(took.get(step.name, ()))
        if lasted is not None and len(others) >= MIN_RUNS and lasted > (p90 := _p90(others)):
            longer.append(LongStep(step.name, lasted, p90))
    return Difference(len(runs), vm, tuple(missing), tuple(longer))


def _seconds(step: StepRecord) -> float | None:
    return seconds(step.started_at, step.completed_at)


def _p90(ordered: Sequence[float]) -> float:
    """The least value that nine of ten do not exceed."""
    return ordered[min(len(ordered) - 1, int(OF_TEN * len(ordered)))]


def burst(job: FailedJob, older: Iterable[FailedJob], newer: Iterable[FailedJob]) -> Burst | None:
    """The burst of a job. `older`, `newer`: those that failed before and after it, from its end on."""
    together = [job]
    for others in (older, newer):
        last = job.ended_at
        for other in others:
            if abs(other.ended_at - last) > BURST_GAP:
                break
            together.append(other)
            last = other.ended_at
    if len(together) < MIN_BURST:
        return None
    ends = [one.ended_at for one in together]
    alike = sum(one.failure.fingerprint == job.failure.fingerprint for one in together)
    return Burst(len(together), alike, (max(ends) - min(ends)) / 1_000_000)


def next_runs(failed: Sequence[FailedJob], runs: Iterable[PublishedJob], known_since: Mapping[str, Micros]) -> NextRuns:
    """What came after each of the jobs `failed`. `runs`: those of each VM that started at `known_since` or later."""
    after: dict[tuple[str, str], list[tuple[Micros, PublishedJob]]] = {}
    for run in runs:
        key = (run.view.operation or "", vm_name(run.view))
        after.setdefault(key, []).append((run.view.started_at or 0, run))
    counts: Counter[str] = Counter()
    recovered = []
    for job in failed:
        later = [one for one in after.get((job.operation, job.vm), ()) if one[0] >= job.ended_at]
        later = [one for one in later if one[1].job_id != job.job_id]
        certain = known_since.get(job.vm, job.ended_at + 1) <= job.ended_at
        next_run = min(later, key=lambda one: one[0])[1] if later and certain else None
        counts[verdict := _verdict(job, next_run)] += 1
        if verdict == "completed" and next_run is not None:
            recovered.append(seconds(job.ended_at, next_run.view.ended_at) or 0.0)
    completed, alike, otherwise = (counts[name] for name in ("completed", "failed_alike", "failed_otherwise"))
    return NextRuns(len(failed), completed, alike, otherwise, counts["unknown"], tuple(recovered))


def _verdict(job: FailedJob, run: PublishedJob | None) -> str:
    if run is not None and run.view.status is Status.COMPLETED:
        return "completed"
    if run is None or run.view.status is not Status.FAILED or run.failure is None:
        return "unknown"
    return "failed_alike" if run.failure.fingerprint == job.failure.fingerprint else "failed_otherwise"


def similar(job: FailedJob, other: FailedJob, count: int) -> SimilarFailure | None:
    """The failure of `other`, if exactly one word of its template differs. `count`: its jobs."""
    words, others = job.failure.template.split(), other.failure.template.split()
    if len(words) != len(others) or job.failure.fingerprint == other.failure.fingerprint:
        return None
    differs = [pair for pair in zip(words, others, strict=True) if pair[0] != pair[1]]
    if not differs and job.failure.step != other.failure.step:
        differs = [(job.failure.step or "", other.failure.step or "")]
    if len(differs) != 1 or len(words) < MIN_WORDS:
        return None
    return SimilarFailure(other.failure.fingerprint, other.failure.text, count, *differs[0])


MIN_WORDS = 3
"""Words of a text of which one may differ: of two words, one says everything."""
