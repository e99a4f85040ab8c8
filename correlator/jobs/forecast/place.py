"""Where a job is: its last event, and the points of its operation that earlier runs are compared at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import nsmallest
from typing import NamedTuple

from msgspec import Struct

from correlator.model.rows import Micros

MAX_NAME = 128
"""Characters of a step's name that distinguish it. It bounds the keys that are kept."""

MAX_PARALLEL = 8
"""Steps that run at once and are still distinguished. Beyond that nearly every run would be at a point of its own."""

MAX_STEPS = 96
"""Steps of one run that are learned from: those that start first."""

_ENDED, _STARTED, _ENDED_AT_ONCE, _REPORTED = range(4)
"""The order of events of one time: a step's end comes before the next one's start, unless it ends as it starts."""


def seconds(start: Micros, end: Micros) -> float:
    """The seconds from `start` to `end`, at least 0: the two may come from clocks that disagree."""
    return (end - start) / 1_000_000 if end > start else 0.0


class StepTimes(NamedTuple):
    """One execution of a step. `ended_at` None: it runs."""

    name: str
    started_at: Micros
    ended_at: Micros | None


class PlaceEvent(NamedTuple):
    """A step started or ended, or a percent was reported. They sort in the order in which they happened."""

    at: Micros
    rank: int
    name: str = ""
    percent: float = 0.0


def start_of(step: StepTimes) -> PlaceEvent:
    """The event of a step's start."""
    return PlaceEvent(step.started_at, _STARTED, step.name)


def end_of(step: StepTimes) -> PlaceEvent | None:
    """The event of a step's end. None if it runs."""
    if step.ended_at is None:
        return None
    return PlaceEvent(step.ended_at, _ENDED if step.ended_at > step.started_at else _ENDED_AT_ONCE, step.name)


class Moment(NamedTuple):
    """An event of a job, at which it is compared with earlier runs.

    `keys`: the points, from fine to coarse. `elapsed`: seconds that the job needed up to the event; up to a reported
    percent, those of the step alone.
    """

    keys: tuple[str, ...]
    at: Micros
    elapsed: float


_Event = tuple[Micros, int, str]
"""The time of an event, its order among those of its time, and its point."""


class Place(Struct):
    """Where one running job is. The order of its events does not matter: the latest by time is the last event.

    A job that ran again or was corrected in the tables gets a new place, by `place_of`. Every method is O(1).
    """

    start: Micros
    moments: tuple[Moment, ...] = ()
    """The events to compare at, the last one first. Empty at the start of the job.

    After a reported percent it is that, then the last start or end of a step: the tables of an appliance do not say
    which percents the earlier runs reported.
    """
    last: _Event | None = None
    last_of_step: _Event | None = None
    """The last start or end of a step."""
    running: dict[str, int] = {}
    """How often each running step has started more often than ended. Negative: an end is known before its start."""
    last_step: str | None = None
    """The name of the step that started last."""
    last_step_at: Micros = 0
    tenths: int = 0
    """The reported percent, in whole tens. It only rises."""
    events: int = 0
    """The number of events so far."""

    def percent_reported(self, percent: float, at: Micros) -> bool:
        """Apply the percent that the job itself reports. Only the first report in each ten is an event: True."""
        return self.apply(PlaceEvent(at, _REPORTED, percent=percent))

    def apply(self, event: PlaceEvent) -> bool:
        """Apply an event. False: it changes nothing."""
        at, rank, name, percent = event
        if rank == _REPORTED:
            tenths = int(percent // 10)
            if not self.tenths < tenths < 10:
                return False
            self.tenths = tenths
            self._advance(at, rank, f"@{tenths}")
            return True
        name = name[:MAX_NAME]
        count = self.running.get(name, 0) + (1 if rank == _STARTED else -1)
        if count:
            self.running[name] = count
        else:
            self.running.pop(name, None)
        if rank == _STARTED and (self.last_step is None or (at, name) >= (self.last_step_at, self.last_step)):
            self.last_step, self.last_step_at = name, at
        self._advance(at, rank, f"{name}+" if rank == _STARTED else f"{name}-")
        return True

    def _advance(self, at: Micros, rank: int, key: str) -> None:
        event = (at, rank, key)
        self.events += 1
        if rank != _REPORTED and (self.last_of_step is None or event >= self.last_of_step):
            self.last_of_step = event
        if self.last is None or event >= self.last:
            self.last = event
        if self.last == self.last_of_step:
            self.moments = (self._moment(self.last, self.start),)
            return
        reported = self._moment(self.last, self.last_step_at if self.last_step else self.start)
        step = self.last_of_step
        self.moments = (reported,) if step is None else (reported, self._moment(step, self.start))

    def _moment(self, event: _Event, since: Micros) -> Moment:
        at, rank, key = event
        keys: tuple[str, ...] = (key,)
        if 0 < len(self.running) <= MAX_PARALLEL:
            names = sorted([name for name, count in self.running.items() if count > 0])
            others = len(names) if rank in (_ENDED, _ENDED_AT_ONCE) else len(names) - 1
            if others > 0:
                keys = ("\n".join((key, *names)), key)
        return Moment(keys, at, seconds(since, at))


class Visit(Struct, frozen=True, gc=False):
    """What a run did at one point, in seconds: the time to its end, to its next event, and since its start."""

    keys: tuple[str, ...]
    remaining: float
    wait: float
    elapsed: float


class EndedRun(Struct, frozen=True, gc=False):
    """A job that ended. `entity`: the VM, or "" if it is not known. `percents`: (time, percent) as reported."""

    operation: tuple[str, str]
    entity: str
    start: Micros
    end: Micros
    completed: bool
    steps: tuple[StepTimes, ...] = ()
    percents: tuple[tuple[Micros, float], ...] = ()

    @property
    def seconds(self) -> float:
        return seconds(self.start, self.end)

    def first_steps(self) -> list[StepTimes]:
        """The first `MAX_STEPS` steps, in the order of their starts."""
        return nsmallest(MAX_STEPS, self.steps, key=lambda step: (step.started_at, step.name))

    def visits(self) -> Iterator[Visit]:
        """The points that the run was at, after its start and before its end, in order, in its first steps."""
        place = Place(self.start)
        moments = [
            place.moments[0]
            for event in events_of(self.first_steps(), self.percents)
            if event.at < self.end and place.apply(event)
        ]
        for i, (keys, at, elapsed) in enumerate(moments):
            until = moments[i + 1].at if i + 1 < len(moments) else self.end
            yield Visit(keys, seconds(at, self.end), seconds(at, until), elapsed)


def place_of(start: Micros, steps: Iterable[StepTimes] = (), percents: Iterable[tuple[Micros, float]] = ()) -> Place:
    """The place of a job with these steps. O(steps): for jobs that were restored, or that a table corrected."""
    place = Place(start)
    for event in events_of(steps, percents):
        place.apply(event)
    return place


def events_of(steps: Iterable[StepTimes], percents: Iterable[tuple[Micros, float]] = ()) -> list[PlaceEvent]:
    """The events of these steps and reported percents, in order."""
    events: list[PlaceEvent] = []
    for step in steps:
        events.append(start_of(step))
        if (end := end_of(step)) is not None:
            events.append(end)
    events += [PlaceEvent(at, _REPORTED, percent=percent) for at, percent in percents]
    events.sort()
    return events
