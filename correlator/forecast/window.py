"""The newest numbers of a series with their order statistics, and the Pareto tails beyond the longest one."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from math import log
from typing import TYPE_CHECKING, TypeAlias

from msgspec import Struct, field

KEEP = 100
"""Runs that are kept of each point, step and operation. More would answer more finely, but of an older appliance."""

if TYPE_CHECKING:
    Floats: TypeAlias = array[float]
else:
    Floats = array  # Python 3.11 cannot subscript it, and msgspec evaluates the annotations.
"""Numbers of 4 bytes each. Their 7 digits resolve a duration of weeks to a second; a list takes 8 times as much."""


def floats() -> Floats:
    """An empty array of numbers."""
    return array("f")


class Window(Struct):
    """The newest `KEEP` numbers that were added. The next one goes to slot `next`, in place of the oldest once full.

    Order statistics sort the numbers: some 5 µs. Raises ValueError if a stored window is inconsistent.
    """

    numbers: Floats = field(default_factory=floats)
    next: int = 0

    def __post_init__(self) -> None:
        full = len(self.numbers) == KEEP and 0 <= self.next < KEEP
        if not (full or self.next == len(self.numbers) < KEEP):
            raise ValueError("the window is inconsistent")

    def __len__(self) -> int:
        return len(self.numbers)

    def add(self, number: float) -> int:
        """Add a number. Returns its slot."""
        slot = self.next
        if len(self.numbers) < KEEP:
            self.numbers.append(number)
        else:
            self.numbers[slot] = number
        self.next = (slot + 1) % KEEP
        return slot

    def quantile(self, share: float) -> float:
        """The number that `share` of all numbers are below. 0 if the window is empty."""
        count = len(self.numbers)
        return sorted(self.numbers)[min(count - 1, int(count * share))] if count else 0.0

    def percentile(self, number: float) -> float:
        """The percentage of numbers below `number`; equal ones count half. 50 if the window is empty."""
        if not self.numbers:
            return 50.0
        ordered = sorted(self.numbers)
        return 50.0 * (bisect_left(ordered, number) + bisect_right(ordered, number)) / len(ordered)


# -- tails


PRIOR = ((10, 1.0), (30, 2.0), (1 << 30, 2.5))
"""(known runs below, Pareto exponent to begin with). The longest of few runs is exceeded by more."""

PRIOR_WEIGHT = 3.0
"""How many observed exceedances the prior exponent is worth."""

FORGET_ABOVE = 200.0
"""Exceedances after which both sums are halved, so that the newer ones prevail."""

LEAST_CHANCE = 1e-6
"""The smallest chance of a longer run that is extrapolated: it bounds the result."""


class Tails(Struct):
    """Maximum-likelihood exponents by the number of known runs: count of exceedances / sum of their logarithms."""

    counts: list[float] = field(default_factory=lambda: [PRIOR_WEIGHT for _ in PRIOR])
    logs: list[float] = field(default_factory=lambda: [PRIOR_WEIGHT / exponent for _, exponent in PRIOR])

    def __post_init__(self) -> None:
        if len(self.counts) != len(PRIOR) or len(self.logs) != len(PRIOR) or min(self.counts) <= 0:
            raise ValueError("the tails are inconsistent")

    def observe(self, known: int, longest: float, exceeding: float) -> None:
        """Learn that a run took `exceeding` seconds, more than the `longest` of `known` runs."""
        i = _bucket(known)
        self.counts[i] += 1
        self.logs[i] += log(exceeding / longest)
        if self.counts[i] > FORGET_ABOVE:
            self.counts[i] /= 2
            self.logs[i] /= 2

    def beyond(self, known: int, longest: float, level: float) -> float:
        """The quantile `level` (0 to 1) of a run that takes more than the `longest` of `known` runs, in seconds."""
        i = _bucket(known)
        return float(longest * max(LEAST_CHANCE, 1.0 - level) ** (-self.logs[i] / self.counts[i]))


def _bucket(known: int) -> int:
    return 0 if known < PRIOR[0][0] else 1 if known < PRIOR[1][0] else 2
