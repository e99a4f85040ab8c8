"""The points at which a job is compared with earlier runs: where it is, what those did there, and on which scale."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from heapq import nsmallest
from math import exp, inf, log
from typing import NamedTuple

from msgspec import Struct, field

from correlator.forecast.window import KEEP, Floats, Tails, Window, floats
from correlator.model.document import MAX_SECONDS
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
    """The seconds from `start` to `end`, from 0 to `MAX_SECONDS`: the two may come from clocks that disagree."""
    return min((end - start) / 1_000_000, MAX_SECONDS) if end > start else 0.0


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


class JobPlace(Struct):
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
        place = JobPlace(self.start)
        moments = [
            place.moments[0]
            for event in events_of(self.first_steps(), self.percents)
            if event.at < self.end and place.apply(event)
        ]
        for i, (keys, at, elapsed) in enumerate(moments):
            until = moments[i + 1].at if i + 1 < len(moments) else self.end
            yield Visit(keys, seconds(at, self.end), seconds(at, until), elapsed)


def place_of(start: Micros, steps: Iterable[StepTimes] = (), percents: Iterable[tuple[Micros, float]] = ()) -> JobPlace:
    """The place of a job with these steps. O(steps): for jobs that were restored, or that a table corrected."""
    place = JobPlace(start)
    for event in events_of(steps, percents):
        place.apply(event)
    return place


def events_of(steps: Iterable[StepTimes], percents: Iterable[tuple[Micros, float]] = ()) -> list[PlaceEvent]:
    """The events of these steps and reported percents, in order."""
    events: list[PlaceEvent] = []
    for name, start, end in steps:
        events.append(PlaceEvent(start, _STARTED, name))
        if end is not None:
            events.append(PlaceEvent(end, _ENDED if end > start else _ENDED_AT_ONCE, name))
    events += [PlaceEvent(at, _REPORTED, percent=percent) for at, percent in percents]
    events.sort()
    return events


# -- points


MIN_RUNS = 3
"""Runs at a point below which the next coarser point answers, and of an operation below which nothing does."""

MIN_SCALED = 4
"""Runs at a point from which on the scale is learned well enough to be used."""

RIDGE = 3.0
"""Doubt about the worth of a trait, in squared units of the trait: about so many runs that show nothing."""

FADE = 0.995
"""Weight that one more run takes from the older ones in the worth of the traits: half after 140 runs."""

VM_FADE = 0.8
"""The same in the trait of a VM: half after 3 of its runs."""

VM_WORTH = (0.0, 1.2)
PACE_WORTH = (-0.3, 1.2)
"""Bounds of the worth. A slow start may mean a fast rest, but not by much; a VM's past never means its opposite."""

MAX_TRAIT = 3.0
"""Bound of the pace and of the scale, as logarithms: a factor of 20."""

MAX_LOG_RATIO = 4.0
"""Bound of log(remaining / median) in what is learned, so that one hung run does not outweigh all others."""

CHANGE_AFTER = 5
"""Runs in a row, all longer or all shorter than nine tenths of the known ones, that make a change of regime. Of
independent runs, one in 50,000 would do so by chance.
"""

CHANGE_MARGIN = 1.02
"""How far outside a run must be. Runs that differ by less are alike, whatever their order."""

_SOFT = 0.01
"""Share of the median that is added to both sides of a ratio, so that the logarithm of a zero duration is bounded."""

_TINY = 1e-9

_VM_WEIGHTS = [(1 - VM_FADE**runs) / (1 - VM_FADE) for runs in range(64)]
"""The faded number of a VM's runs. From 64 on it no longer grows."""


class Point(Struct):
    """Up to `KEEP` runs at one point, on the typical run's scale, in seconds. The arrays of runs have one order.

    `remaining` is sorted; `slots` has the slot of each run in `elapsed`, the window of their times since the start, as
    they were.
    A run's worth of traits: `vm_xx` and `pace_xx` are sums of squares, `vm_xy` and `pace_xy` of products, for log
    ratios of remaining time to its median. `vm_sums` and `vm_runs` are by the index of the VM in its operation: the
    faded sum of its log ratios, and the number of its runs.
    Raises ValueError if a stored point is inconsistent.
    """

    remaining: Floats = field(default_factory=floats)
    wait: Floats = field(default_factory=floats)
    slots: bytearray = field(default_factory=bytearray)
    elapsed: Window = field(default_factory=Window)
    vm_xx: float = 0.0
    vm_xy: float = 0.0
    pace_xx: float = 0.0
    pace_xy: float = 0.0
    vm_sums: Floats = field(default_factory=floats)
    vm_runs: bytearray = field(default_factory=bytearray)
    median_elapsed: float = 0.0
    outside: int = 0
    """Runs in a row that were longer than nine tenths of the known ones; negative: shorter."""
    outside_since: Micros = 0
    """The end of the first of them."""

    def __post_init__(self) -> None:
        lengths = {len(self.remaining), len(self.wait), len(self.slots), len(self.elapsed)}
        if len(lengths) > 1 or len(self.vm_sums) != len(self.vm_runs) or sorted(self.slots) != [*range(len(self))]:
            raise ValueError("the point is inconsistent")
        if not all(0 <= r < inf for r in self.remaining) or max(self.vm_runs, default=0) >= len(_VM_WEIGHTS):
            raise ValueError("the point is inconsistent")

    def __len__(self) -> int:
        return len(self.remaining)

    @property
    def median(self) -> float:
        return self.remaining[len(self.remaining) // 2]

    def scale(self, vm: int, elapsed: float) -> float:
        """How many times as long as the typical run this one takes. `vm`: its index, or -1."""
        return self._scale(*self._traits(vm, elapsed))

    def longer(self, waited: float) -> list[float]:
        """The remaining times of the runs that waited longer than `waited`, in ascending order."""
        return [r for r, w in zip(self.remaining, self.wait, strict=True) if w > waited]

    def typical_rest(self) -> float:
        """The median time that runs still took after their wait here."""
        rests = sorted([r - w for r, w in zip(self.remaining, self.wait, strict=True)])
        return rests[len(rests) // 2]

    def learn(self, visit: Visit, vm: int, ended_at: Micros, typical: float, tails: Tails) -> None:
        """Add a run that ended at `ended_at`. `typical`: seconds that a run of the operation takes."""
        vm_trait, pace = self._traits(vm, visit.elapsed)
        scale = self._scale(vm_trait, pace)
        remaining, known = visit.remaining / scale, len(self.remaining)
        if known >= MIN_RUNS and remaining > (longest := self.remaining[-1]) > 0:
            tails.observe(known, longest, remaining)
        if known:
            soft = _SOFT * self.median + _TINY
            ratio = log((visit.remaining + soft) / (self.median + soft))
            self._weigh(vm_trait, pace, vm, max(-MAX_LOG_RATIO, min(MAX_LOG_RATIO, ratio)))
        if known > 2 * CHANGE_AFTER:
            self._notice_change(remaining, ended_at, typical)
        self._insert(remaining, visit.wait / scale, visit.elapsed)

    def forget_vm(self, vm: int) -> None:
        """Clear what is known of a VM, whose index another one gets."""
        if vm < len(self.vm_sums):
            self.vm_sums[vm] = 0.0
            self.vm_runs[vm] = 0

    def forget_vms(self) -> None:
        self.vm_sums, self.vm_runs = floats(), bytearray()

    def _traits(self, vm: int, elapsed: float) -> tuple[float, float]:
        """The traits of a run: the mean log ratio of its VM's runs, shrunk by one run; and its pace."""
        known = 0 <= vm < len(self.vm_sums)
        vm_trait = self.vm_sums[vm] / (_VM_WEIGHTS[self.vm_runs[vm]] + 1.0) if known else 0.0
        median = self.median_elapsed
        if median <= 0:
            return vm_trait, 0.0
        pace = log((elapsed + _SOFT * median) / ((1 + _SOFT) * median))
        return vm_trait, max(-MAX_TRAIT, min(MAX_TRAIT, pace))

    def _scale(self, vm_trait: float, pace: float) -> float:
        if len(self.remaining) < MIN_SCALED:
            return 1.0
        log_scale = self._vm_worth() * vm_trait + self._pace_worth() * pace
        return exp(max(-MAX_TRAIT, min(MAX_TRAIT, log_scale)))

    def _vm_worth(self) -> float:
        return max(VM_WORTH[0], min(VM_WORTH[1], self.vm_xy / (self.vm_xx + RIDGE)))

    def _pace_worth(self) -> float:
        return max(PACE_WORTH[0], min(PACE_WORTH[1], self.pace_xy / (self.pace_xx + RIDGE)))

    def _weigh(self, vm_trait: float, pace: float, vm: int, log_ratio: float) -> None:
        """Learn from one run what the traits are worth, the second from what the first leaves, and its VM's trait."""
        self.vm_xx = FADE * self.vm_xx + vm_trait * vm_trait
        self.vm_xy = FADE * self.vm_xy + vm_trait * log_ratio
        unexplained = log_ratio - self._vm_worth() * vm_trait
        self.pace_xx = FADE * self.pace_xx + pace * pace
        self.pace_xy = FADE * self.pace_xy + pace * unexplained
        if vm < 0:
            return
        if vm >= len(self.vm_sums):
            missing = vm + 1 - len(self.vm_sums)
            self.vm_sums.extend([0.0] * missing)
            self.vm_runs.extend(bytes(missing))
        self.vm_sums[vm] = VM_FADE * self.vm_sums[vm] + log_ratio
        self.vm_runs[vm] = min(self.vm_runs[vm] + 1, len(_VM_WEIGHTS) - 1)

    def _notice_change(self, remaining: float, ended_at: Micros, typical: float) -> None:
        """Count runs in a row outside of nine tenths. After a change of regime, keep only those.

        They must span the time that a run takes: runs beside each other share one cause, such as a slow minute.
        """
        known = len(self.remaining)
        longer = remaining > CHANGE_MARGIN * self.remaining[known * 9 // 10]
        shorter = remaining * CHANGE_MARGIN < self.remaining[known // 10]
        turn = longer - shorter
        if self.outside * turn <= 0:
            self.outside, self.outside_since = turn, ended_at
            return
        self.outside += turn
        count = abs(self.outside)
        if count >= CHANGE_AFTER and seconds(self.outside_since, ended_at) >= typical:
            self._keep_newest(min(count - 1, known))
            self.outside = 0

    def _keep_newest(self, count: int) -> None:
        places = [self.slots.index((self.elapsed.next - count + i) % KEEP) for i in range(count)]
        runs = [(self.remaining[p], self.wait[p], self.elapsed.numbers[self.slots[p]]) for p in places]
        self.remaining, self.wait, self.slots, self.elapsed = floats(), floats(), bytearray(), Window()
        for run in runs:
            self._insert(*run)

    def _insert(self, remaining: float, wait: float, elapsed: float) -> None:
        slot = self.elapsed.add(elapsed)
        self.median_elapsed = self.elapsed.quantile(0.5)
        if len(self.slots) == KEEP:
            oldest = self.slots.index(slot)
            del self.remaining[oldest], self.wait[oldest], self.slots[oldest]
        i = bisect_right(self.remaining, remaining)
        self.remaining.insert(i, remaining)
        self.wait.insert(i, wait)
        self.slots.insert(i, slot)
