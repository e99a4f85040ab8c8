"""What the service manager and `/health/live` learn: whether every task makes progress, and one line of truth.

The watchdog hears of us only while no task is stuck. A database or broker that is away is no sickness: whoever waits
for one goes round.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping

from correlator import metrics, systemd
from correlator.hub import Hub

log = logging.getLogger(__name__)

EVERY = 1.0
STOPPED_FOR = 10.0
"""Seconds that we come too late ourselves, after which nobody's silence proves anything."""

LONGEST = 500
"""Characters of a status: the service manager takes 4,096 bytes at once, and the database may say any number."""

START_WITHIN = 60
"""Seconds by which each sign of life prolongs a start: reading a long history takes longer than any fixed time."""


class Supervisor:
    """`ready`: whether the daemon has said that it is."""

    def __init__(self, hub: Hub, environ: Mapping[str, str] = os.environ) -> None:
        self._hub = hub
        self._environ = environ
        self._every = min(EVERY, systemd.watchdog_interval(environ) or EVERY)
        self._stuck: dict[str, float] = {}
        self._told = ""
        self.ready = False

    async def run(self) -> None:
        """Look once a second, for ever."""
        while True:
            due = time.monotonic() + self._every
            await asyncio.sleep(self._every)
            late = max(0.0, time.monotonic() - due)
            metrics.LOOP_LAG.observe(late)
            self.look(late)

    def look(self, late: float = 0.0) -> None:
        """Judge, and tell the service manager. `late`: by how many seconds this look comes too late itself."""
        if late > STOPPED_FOR:
            log.warning("nothing ran for %.0f s: the process or its machine was stopped, or its loop was held", late)
            self._hub.live.excuse(late)
        stuck = self._hub.live.stuck()
        for name in stuck.keys() - self._stuck.keys():
            log.critical("%s has made no progress for %.0f s: the watchdog is not told that we live", name, stuck[name])
        for name in self._stuck.keys() - stuck.keys():
            log.warning("%s goes on", name)
        self._stuck = stuck
        lines = []
        if stuck:
            metrics.WATCHDOG_WITHHELD.inc()
        else:
            lines.append("WATCHDOG=1")
            if not self.ready:
                lines.append(f"EXTEND_TIMEOUT_USEC={START_WITHIN * 1_000_000}")
        if (told := self.status()) != self._told:
            self._told = told
            lines.append(f"STATUS={told}")
        if lines:
            systemd.notify("\n".join(lines), self._environ)

    def began(self) -> None:
        """Everything is loaded: say so."""
        self.ready = True
        self._told = self.status()
        systemd.notify(f"READY=1\nSTATUS={self._told}", self._environ)

    def stops(self) -> None:
        self._told = "stopping"
        systemd.notify("STOPPING=1\nSTATUS=stopping", self._environ)

    def reloads(self) -> Callable[[], None]:
        """A reload begins; call what is returned when it has ended, well or not."""
        if not self.ready:
            return lambda: None  # READY=1 would end the start
        systemd.reloading(self._environ)

        def ended() -> None:
            systemd.notify("READY=1", self._environ)

        return ended

    def status(self) -> str:
        """What `systemctl status` shows: what is wrong first, then what is served."""
        hub, parts = self._hub, {name: describe() for name, describe in self._hub.parts.items()}
        told = [f"{name} is stuck" for name in self._stuck]
        if hub.loading is not None:
            done, total = hub.loading
            wait = f"waiting for the database: {hub.source_error}" if hub.source_error else "reading the tables"
            told.append(f"reading the log: {100 * done // total} %" if total else wait)
            return _line(told)
        if hub.source != "live":
            told.append(f"the database is away: {hub.source_error}")
        told += [
            f"{name}: {part['error']}"
            for name, part in parts.items()
            if name != "database" and not part.get("ok", True) and part.get("error")
        ]
        running = len(hub.index.active())
        told.append(f"{_count(running, 'job')} running of {len(hub.index)}, {_count(hub.readers, 'reader')}")
        return _line(told)


def _line(told: list[str]) -> str:
    return "; ".join(told).replace("\n", " ")[:LONGEST]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
