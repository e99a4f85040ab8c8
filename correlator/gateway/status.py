"""What a gateway says of the databases behind it, from what their collectors report and from its own connection."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from correlator.cluster.received import Alive
from correlator.jobs import document_parser
from correlator.jobs.model.rows import Micros
from correlator.pipeline.status import Status

OFFLINE_AFTER = 3.0
"""Seconds without a sign of life of a collector: it renews its key every 0.5 s."""

DOWN_AFTER = 15.0
"""Seconds after which an appliance that is behind is down, as a daemon's own database."""


RETIRED_AFTER = 24 * 3600.0
"""Seconds of silence after which an appliance no longer makes the whole fleet stale: nobody waits for it."""


class Appliance:
    """What is known of one collector. `seen`: monotonic seconds of its last sign of life; `last_seen`: its time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.known_since = time.monotonic()
        self.alive = Alive()
        self.seen: float | None = None
        self.last_seen: Micros | None = None

    def renewed(self, alive: Alive | None, at: Micros, age: float) -> None:
        """Note a value of the alive key, stored at `at`, `age` seconds ago. An unreadable one is a sign of life too."""
        self.seen, self.last_seen = time.monotonic() - age, at
        self.alive = alive or Alive(error=f"the report of the collector of {self.name} cannot be read")

    @property
    def complete_since(self) -> Micros | None:
        """All jobs that started at or after this time are in the stream; None if that is not known."""
        text = self.alive.complete_since
        try:
            return document_parser.micros(text) if text is not None else None
        except ValueError:
            return None

    def online(self) -> bool:
        return self.seen is not None and time.monotonic() - self.seen < OFFLINE_AFTER

    def retired(self) -> bool:
        """True if no collector has been alive for long, since this process knows the appliance."""
        return time.monotonic() - (self.known_since if self.seen is None else self.seen) >= RETIRED_AFTER

    def behind(self) -> float:
        """Seconds since what is known was current; 0 while its database is live."""
        if self.seen is None:
            return 0.0
        silent = 0.0 if self.online() else time.monotonic() - self.seen
        return silent + (self.alive.lag_seconds if self.alive.database != "live" else 0.0)

    def error(self) -> str | None:
        """What is wrong, or None."""
        if not self.online():
            return "the collector is offline"
        return None if self.alive.database == "live" else self.alive.error or "the database is not read yet"


class RemoteStatus(Status):
    """The status of one appliance, or of all. `judge` computes it, twice a second.

    `cluster_error`: returns why the stream cannot be read, or None.
    """

    def __init__(
        self, appliances: Callable[[], Collection[Appliance]], cluster_error: Callable[[], str | None]
    ) -> None:
        super().__init__()
        self._appliances = appliances
        self._cluster_error = cluster_error
        self._current: float | None = None
        """Monotonic seconds at which everything was last known to be current."""

    @property
    def lag_seconds(self) -> float:
        if self.database == "live" or self._current is None:
            return 0.0
        return round(time.monotonic() - self._current, 3)

    @property
    def problem(self) -> str:
        """Why the jobs are not current, for the operator."""
        return self.error or "the stream is being read"

    def judge(self) -> None:
        """Compute the state: live if every appliance is, down if none of them is known to be up.

        Those that have retired count only if all have.
        """
        now = time.monotonic()
        known = self._appliances()
        appliances = [one for one in known if not one.retired()] or known
        if (error := self._cluster_error()) is not None or self.loading:
            why = error or "the stream is being read"
            self.set_state("down" if self.loading else "stale", why, what="the cluster is not followed")
            return
        behind = max((one.behind() for one in appliances), default=0.0)
        errors = [f"{one.name}: {text}" for one in appliances if (text := one.error()) is not None]
        self._current = now - behind
        if not errors:
            self.set_state("live")
            return
        down = len(errors) == len(appliances) and behind >= DOWN_AFTER
        more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
        self.set_state("down" if down else "stale", errors[0] + more, what="an appliance is not live")
