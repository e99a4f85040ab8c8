"""Whether the end that is shown of running jobs settles: it comes closer to the real one, and does not go to and fro.

The rule is the same for every job and every view: documents, words and drawings. Its bounds are shares of the job's
own duration, or what the view itself leaves open, so that it does not depend on the pace of the jobs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from statistics import mean, median
from typing import NamedTuple

from tests.support.client_fold import Document

LAST_MISS = 0.15
"""The median error in the last third of a job, as a share of its duration. "It ends now" would miss by 0.17."""

FIRST_MISS = 0.35
"""The same in the first third: an end that is right only once the job has nearly ended is no forecast."""

LEAST_SWING = 0.1
"""A smaller move to and fro, as a share of the duration, is not noticed, however narrow the band is."""

MOST_TURNS = 2
"""How often an end may turn back, however wide the band is: a new step may correct it, the next one correct that."""

BRIEF = 0.03
"""A document that is replaced after a smaller share of the job's life is not read: views are painted once a second."""

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


class Life(NamedTuple):
    """When a job began and ended, in seconds since 1970. `delay`: seconds of it that the machine added.

    No forecast can know these: an end that is right without them, or with a part of them, is right.
    """

    began: float
    ended: float
    delay: float = 0.0

    @property
    def duration(self) -> float:
        return self.ended - self.began


class WatchedJob(NamedTuple):
    """A job, and the ends that were shown of it while it ran, in their order."""

    name: str
    life: Life
    ends: Sequence[DisplayedEnd]

    def error(self, third: int) -> float | None:
        """The median error in one third of the job's life, in seconds, beyond what rounding and the machine explain.

        None: no end was shown then.
        """
        found = [self._error(one) for one in self.ends if self._third(one) == third]
        return median(found) if found else None

    def misses(self) -> bool:
        """True if the end was too wrong in the first third, or in the last one."""
        bounds = ((self.error(0), FIRST_MISS), (self.error(2), LAST_MISS))
        return any(error is not None and error > START + share * self.life.duration for error, share in bounds)

    def swing(self) -> list[DisplayedEnd]:
        """Three moments between which the end moved by more than the band, and back again; or it turned too often."""
        for j, turn in enumerate(self.ends):
            for sign in (1, -1):

                def beyond(one: DisplayedEnd, turn: DisplayedEnd = turn, sign: int = sign) -> bool:
                    back = sign * (turn.end - one.end)
                    return back > max(turn.band, one.band) and self._is_noticed(turn, one)

                before = next(filter(beyond, self.ends[:j]), None)
                after = next(filter(beyond, self.ends[j + 1 :]), None)
                if before is not None and after is not None:
                    return [before, turn, after]
        turns = self.turns()
        return turns if len(turns) > MOST_TURNS else []

    def turns(self) -> list[DisplayedEnd]:
        """The ends from which it went back by as much as is noticed."""
        found, direction, furthest = list[DisplayedEnd](), 0.0, self.ends[0] if self.ends else None
        for one in self.ends:
            assert furthest is not None
            move = one.end - furthest.end
            noticed = self._is_noticed(furthest, one)
            if direction * move < 0 and noticed:
                found.append(furthest)
            if noticed or direction * move > 0:
                direction, furthest = move, one
        return found

    def _third(self, one: DisplayedEnd) -> int:
        return int(3 * (one.at - self.life.began) / self.life.duration)

    def _error(self, one: DisplayedEnd) -> float:
        soonest, latest = self.life.ended - self.life.delay, self.life.ended
        return max(0.0, soonest - one.end - one.grain / 2, one.end - latest - one.grain / 2)

    def _is_noticed(self, one: DisplayedEnd, other: DisplayedEnd) -> bool:
        """True if a person sees that the end moved, by more than the machine explains.

        It seems to move by its grain while its words stay.
        """
        least = START + LEAST_SWING * self.life.duration + self.life.delay
        return abs(one.end - other.end) > max(one.grain + other.grain, least)


def watched(lives: Mapping[str, Life], said: Iterable[tuple[str, DisplayedEnd]]) -> list[WatchedJob]:
    """The jobs that lived so, by their IDs, with the ends that were said of them meanwhile."""
    ends: dict[str, list[DisplayedEnd]] = {job_id: [] for job_id in lives}
    for job_id, end in said:
        if job_id in lives and end.at < lives[job_id].ended:
            ends[job_id].append(end)
    return [WatchedJob(job_id, lives[job_id], ends[job_id]) for job_id in lives]


def in_documents(published: Iterable[Document]) -> Iterator[tuple[str, DisplayedEnd]]:
    """The ends that the documents of jobs say, by the jobs' IDs."""
    for job in published:
        if job.get("forecast"):
            ends = job["forecast"]["ends_at"]
            stamps = (job["forecast"]["as_of"], ends["p50"], ends["p90"])
            at, p50, p90 = (datetime.fromisoformat(stamp).timestamp() for stamp in stamps)
            yield job["job_id"], DisplayedEnd(at, p50, band=p90 - p50)


def lasting(lives: Mapping[str, Life], said: Iterable[tuple[str, DisplayedEnd]]) -> Iterator[tuple[str, DisplayedEnd]]:
    """The ends that stay for long enough to be read, if each stays until the next one of its job.

    Each is repeated every `BRIEF`, so that it counts for as long as it stays: as those do that are read off a screen.
    """
    for job in watched(lives, said):
        until = [*(end.at for end in job.ends[1:]), job.life.ended]
        brief = BRIEF * job.life.duration
        for end, replaced in zip(job.ends, until, strict=False):
            for n in range(int((replaced - end.at) / brief)):
                yield job.name, end._replace(at=end.at + n * brief)


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
    """The shown ends of these jobs settle. `at_least`: jobs of which an end was shown at first and at last.

    Of each job the end is not too wrong, and it does not go to and fro. Over all jobs it is closer to the real one in
    the last third of their lives than in the first.
    """
    watched = list(jobs)
    errors = [(job, first, last) for job in watched for first, last in [(job.error(0), job.error(2))]]
    both = [(first, last) for _, first, last in errors if first is not None and last is not None]
    listed = "; ".join(f"{job.name}, {job.life}: {first} s at first, {last} s at last" for job, first, last in errors)
    assert len(both) >= at_least, listed
    assert [job.name for job in watched if job.misses()] == [], listed
    # Words that are right all the time cannot become better.
    assert mean(last for _, last in both) <= mean(first for first, _ in both), listed
    swings = {job.name: (job.life, swing) for job in watched if (swing := job.swing())}
    assert swings == {}, swings
