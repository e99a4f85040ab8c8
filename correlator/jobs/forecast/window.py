"""The newest numbers of a series, with their order statistics."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
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
