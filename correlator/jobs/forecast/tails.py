"""How far runs exceed the longest one that is known: Pareto tails, learned over all operations."""

from __future__ import annotations

from math import log

from msgspec import Struct, field

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
