"""Delays and deadlines of the webhooks. Those of an attempt are in the configuration (`timeout`)."""

from __future__ import annotations

from msgspec import Struct


class Timings(Struct, frozen=True):
    """All of them, in seconds, but for the factor."""

    retry_base: float = 2.0
    retry_factor: float = 2.0
    retry_cap: float = 300.0
    """The limit of the first delay after a failure, its growth, and its maximum. See `correlator.backoff`."""

    max_retry_after: float = 3_600.0
    """The longest Retry-After of a receiver that is respected."""

    give_up_after: float = 24 * 3_600.0
    """For which an event is tried again."""

    after_start: float = 3_600.0
    """For which, at least, a new run tries an event of the last one again."""

    late_after: float = 60.0
    on_time_below: float = 30.0
    """A receiver that accepts events is too slow once one has waited for the first, until none has for the second."""

    goodbye_within: float = 3.0
    """That requests in flight have to end when the daemon stops. Those that do not are sent again."""


DEFAULT = Timings()
