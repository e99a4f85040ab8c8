"""Whether the end that is forecast of jobs comes closer to the real one while they run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from statistics import mean

from tests.support.client_fold import Document


def assert_ends_settle(jobs: Iterable[Sequence[Document]], at_least: int = 5) -> None:
    """The p50 of these jobs is closer to their ends in the last third of their lives than in the first.

    `jobs`: the documents of each, the last one ended. `at_least`: jobs with a forecast in both thirds.
    """
    misses = [found for job in jobs if (found := _thirds(job))]
    assert len(misses) >= at_least, misses
    first, last = (mean(one[third] for one in misses) for third in (0, 1))
    assert last < first, (first, last)


def _thirds(job: Sequence[Document]) -> tuple[float, float] | None:
    """The mean error of p50 in seconds, in the first and in the last third of a job's life; None without both."""
    began, ended = (datetime.fromisoformat(job[n]["updated_at"]) for n in (0, -1))
    errors: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for forecast in (one["forecast"] for one in job if one.get("forecast")):
        at, p50 = (datetime.fromisoformat(text) for text in (forecast["as_of"], forecast["ends_at"]["p50"]))
        errors[min(2, int(3 * (at - began) / (ended - began)))].append(abs((p50 - ended).total_seconds()))
    return (mean(errors[0]), mean(errors[2])) if errors[0] and errors[2] else None
