"""The time by the appliance's clock: the database reports it with the queries of each round.

Problem: jobs, steps and rows have the times of the appliance. A daemon whose clock is ahead takes a job that has just
begun for one that runs for hours, and one whose clock is behind misses all that is late.

Model: a query names the database's time and takes a while, so that it gives a range for the time by that clock. The
host's clock is used if it is within that range, or `NEAR` it; otherwise the time moves into the range, if it is not in
it. Between two queries time passes by a clock that nobody sets. Before the first one, it is the host's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from correlator.model.rows import Micros

log = logging.getLogger(__name__)

NEAR: Micros = 1_000_000
"""Microseconds by which the host's clock may be outside of the range that a query gives."""


def uptime() -> Micros:
    """Microseconds by a clock that nobody sets."""
    return time.monotonic_ns() // 1000


class ApplianceClock:
    """Call it for the Unix time in microseconds. `host`: the clock of this host. Event loop's thread only."""

    def __init__(self, host: Callable[[], Micros], uptime: Callable[[], Micros] = uptime) -> None:
        self._host = host
        self._uptime = uptime
        self._begin: Micros | None = None
        """The time at which `uptime` was 0. None before the first query."""
        self._follows_host = True

    def __call__(self) -> Micros:
        return self._host() if self._begin is None else self._begin + self._uptime()

    def read(self, at: Micros, took: Micros) -> Micros:
        """Note that a query which took so long named the database's time `at`. Returns by how much that moves it.

        A query that took long says little, and moves nothing that it does not contradict.
        """
        before, up = self(), self._uptime()
        first, last = at - up, at - up + took
        host = self._host() - up
        known = self._begin if self._begin is not None else (first + last) // 2
        follows_host = first - NEAR <= host <= last + NEAR
        self._begin = host if follows_host else min(max(known, first), last)
        if follows_host is not self._follows_host:
            self._follows_host = follows_host
            if follows_host:
                log.info("the clocks of the database and of this host agree again")
            else:
                off = (host - self._begin) / 1_000_000
                log.warning(
                    "the clock of this host is %.0f s %s the database's, by which the times of jobs are: jobs are"
                    " judged by the database's clock. Set this host's clock with NTP (correlator doctor shows both)",
                    abs(off),
                    "ahead of" if off > 0 else "behind",
                )
        return self() - before
