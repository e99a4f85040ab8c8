"""The earlier runs of an operation at one point, and the scale on which a run is compared with them."""

from __future__ import annotations

from bisect import bisect_right
from math import exp, inf, log

from msgspec import Struct, field

from correlator.jobs.forecast.place import Visit, seconds
from correlator.jobs.forecast.tails import Tails
from correlator.jobs.forecast.window import KEEP, Floats, Window, floats
from correlator.model.rows import Micros

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
