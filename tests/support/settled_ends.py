"""Whether the end that is shown of running jobs settles: it comes closer to the real one, and does not go to and fro.

The rule is the same for every job and every view. Its bounds are shares of the job's own duration, or what the view
itself leaves open, so that it does not depend on the pace of the jobs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, median
from typing import NamedTuple

LAST_MISS = 0.15
"""The median error in the last third of a job, as a share of its duration. "It ends now" would miss by 0.17."""

FIRST_MISS = 0.35
"""The same in the first third: an end that is right only once the job has nearly ended is no forecast."""

LEAST_SWING = 0.1
"""A smaller move to and fro, as a share of the duration, is not noticed, however narrow the band is."""

START = 1.0
"""Seconds by which an end may be wrong because the tables have the start of a job in whole seconds."""

WORDS = re.compile(r"(?:~|about |perhaps |estimate: )(?P<number>\d+) (?P<unit>s|min)\b|(?P<few>a few seconds left)")
NOW = re.compile(r"may end at any moment|\bsoon\b")
FEW = 10.0
"""Seconds below which the remaining time is "a few seconds"."""


class DisplayedEnd(NamedTuple):
    """What was shown at a moment: that the job ends at `end`. In seconds, the times since 1970.

    `grain`: what `end` is rounded to, such as 5 for "about 35 s". `band`: how much later the view says it may be.
    """

    at: float
    end: float
    grain: float = 0.0
    band: float = 0.0

    def miss(self, end: float) -> float:
        """How far it is from the real end, beyond what rounding explains."""
        return max(0.0, abs(self.end - end) - self.grain / 2 - START)


class WatchedJob(NamedTuple):
    """A job that ran from `began` to `ended`, and the ends that were shown of it, in their order."""

    name: str
    began: float
    ended: float
    ends: Sequence[DisplayedEnd]

    def miss(self, third: int) -> float | None:
        """The median error in one third of its duration, as a share of that. None: no end was shown then."""
        duration = self.ended - self.began
        found = [one.miss(self.ended) for one in self.ends if int(3 * (one.at - self.began) / duration) == third]
        return median(found) / duration if found else None

    def swing(self) -> tuple[DisplayedEnd, DisplayedEnd, DisplayedEnd] | None:
        """Three moments between which the end moved by more than the band, and back again. None: it never did.

        An end seems to move by its grain while its words stay.
        """
        noticed = START + LEAST_SWING * (self.ended - self.began)
        for j, turn in enumerate(self.ends):
            for sign in (1, -1):

                def beyond(one: DisplayedEnd, turn: DisplayedEnd = turn, sign: int = sign) -> bool:
                    return sign * (turn.end - one.end) > max(turn.band, one.band, turn.grain + one.grain, noticed)

                before = next(filter(beyond, self.ends[:j]), None)
                after = next(filter(beyond, self.ends[j + 1 :]), None)
                if before is not None and after is not None:
                    return before, turn, after
        return None


def watched(spans: Mapping[str, tuple[float, float]], said: Iterable[tuple[str, DisplayedEnd]]) -> list[WatchedJob]:
    """The jobs that ran in these spans, by their IDs, with the ends that were said of them while they ran."""
    ends: dict[str, list[DisplayedEnd]] = {job_id: [] for job_id in spans}
    for job_id, end in said:
        if job_id in spans and end.at < spans[job_id][1]:
            ends[job_id].append(end)
    return [WatchedJob(job_id, *spans[job_id], ends[job_id]) for job_id in spans]


def in_words(at: float, words: str) -> DisplayedEnd | None:
    """The end that "about 35 s left (by 14:32)" means at `at`. None: the words name none."""
    if NOW.search(words):
        return DisplayedEnd(at, at, grain=FEW)
    match = WORDS.search(words)
    if match is None:
        return None
    if match["few"]:
        return _between(at, 0.0, FEW)
    number, unit, grain = (int(match["number"]), *((60.0, 60.0) if match["unit"] == "min" else (1.0, 5.0)))
    soonest = 0.0 if unit * number == grain else unit * number - grain / 2  # nothing is below 5 s
    return _between(at, soonest, unit * number + grain / 2)


def _between(at: float, soonest: float, latest: float) -> DisplayedEnd:
    return DisplayedEnd(at, at + (soonest + latest) / 2, grain=latest - soonest)


def assert_ends_settle(jobs: Iterable[WatchedJob], *, at_least: int) -> None:
    """The shown ends of these jobs settle. `at_least`: jobs of which an end was shown at first and at last."""
    misses, swings = [], []
    for job in jobs:
        first, last = job.miss(0), job.miss(2)
        if first is not None and last is not None:
            misses.append((first, last, job.name))
        if (swing := job.swing()) is not None:
            swings.append((job.name, [(one.at - job.began, one.end - job.ended, one.grain, one.band) for one in swing]))
    listed = [f"{name}: {100 * first:.0f} % at first, {100 * last:.0f} % at last" for first, last, name in misses]
    assert len(misses) >= at_least, listed
    assert [name for first, last, name in misses if first > FIRST_MISS or last > LAST_MISS] == [], listed
    # Words that are right all the time cannot become better.
    assert mean(last for _, last, _ in misses) <= mean(first for first, _, _ in misses), listed
    assert swings == [], swings
