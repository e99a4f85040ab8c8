"""The timings of the cluster sink, in seconds. Tests use shorter ones."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Deadlines and intervals of one sink, in seconds."""

    answer_within: float = 5.0
    """To wait for the acknowledgement of a batch, and for any other answer."""

    epoch_checked_every: float = 10.0
    """Between two checks of the epoch: another writer may have damaged it."""

    compare_every: float = 600.0
    """Between two comparisons of memory with the stream."""

    slice_pause: float = 0.02
    """Between two slices of a periodic comparison, which is in no hurry."""

    behind_within: float = 2.0
    """A server of the cluster is not longer behind the others than this."""

    rewrite_owner_every: float = 3600.0
    """Between two writes of an owner key: an old key pins the first sequence of the stream."""

    due_every: float = 1.0
    """Between two checks whether a comparison is due."""

    flush_within: float = 4.0
    """At the end, to write what is pending."""


DEFAULT = Timings()
