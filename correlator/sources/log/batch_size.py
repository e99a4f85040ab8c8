"""The number of rows per read, adapted to what the database can send before its deadline."""

from __future__ import annotations

from dataclasses import dataclass, field

SMALLEST = 2
"""Fewest rows per read. For the tail, the row at the head is one of them."""


@dataclass(slots=True)
class BatchSize:
    """`rows` per read, at most `most`. A read of less than `quick` seconds doubles the next, a failed one halves it."""

    most: int = 1000
    quick: float = 1.0
    rows: int = field(init=False)

    def __post_init__(self) -> None:
        self.rows = self.most

    def succeeded(self, seconds: float) -> None:
        if seconds < self.quick:
            self.rows = min(self.most, self.rows * 2)

    def failed(self) -> None:
        """Rows of 1 MB each may not arrive within the deadline."""
        self.rows = max(SMALLEST, self.rows // 2)
