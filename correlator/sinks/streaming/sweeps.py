"""Sweeps: checks of all clients, in steps, as many that lag have more to get than one call may send."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from correlator.ops.stalls import timed
from correlator.sinks.streaming.fanout import Fanout
from correlator.sinks.streaming.limits import Limits

SWEEP_EVERY, LAGGING_SWEEP_EVERY = 0.25, 0.1
"""Seconds between two sweeps; the second while clients lag, which get their backlogs in sweeps."""


def sweep(fanout: Fanout, limits: Limits) -> Iterator[None]:
    """Check all clients, some per step. Let the event loop run between the steps."""
    clients = deque(fanout.clients)
    fanout.flush()
    while clients:
        with timed("sweep"):
            parts = 0
            for _ in range(min(len(clients), limits.swept_at_once)):
                parts += fanout.check(clients.popleft())
                if parts >= limits.backlog_parts_at_once:
                    break
        yield
