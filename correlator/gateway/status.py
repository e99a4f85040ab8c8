"""What a gateway says of the databases behind it, from what their collectors report and from its own connection."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from correlator.cluster.received import REPORTED_FOR, Alive
from correlator.jobs.encoding import micros
from correlator.model.rows import Micros
from correlator.pipeline.hub import DatabaseStatus

OFFLINE_AFTER = 3.0
"""Seconds without a sign of life of a collector: it renews its key every 0.5 s."""

DOWN_AFTER = 15.0
"""Seconds after which an appliance that is behind is down, as a daemon's own database."""


RETIRED_AFTER = 24 * 3600.0
"""Seconds of silence after which an appliance no longer makes the whole fleet stale: nobody waits for it."""


class Appliance:
    """What is known of one collector. No clock of another machine counts: a renewal that arrives is a sign of life.

    `listens_since`: returns the monotonic seconds since which renewals arrive here; None: they do not. `seen`:
    monotonic seconds of the last sign of life; `last_seen`: its time by the server's clock.
    """

    def __init__(self, name: str, listens_since: Callable[[], float | None]) -> None:
        self.name = name
        self._listens_since = listens_since
        self.known_since = time.monotonic()
        self.alive = Alive()
        self.seen: float | None = None
        self.last_seen: Micros | None = None
        self._renewed_at: float | None = None
        self._unreadable_at = float("-inf")
        """When a document of it came that cannot be read."""

    def note_unreadable(self) -> None:
        """A document of it cannot be read."""
        self._unreadable_at = time.monotonic()

    def renewed(self, alive: Alive | None, at: Micros, age: float | None) -> None:
        """Note a value of the alive key, stored at `at`. `age`: seconds before the reading began; None: it came since.

        An unreadable one is a sign of life too.
        """
        now = time.monotonic()
        self.seen, self.last_seen = now - (age or 0.0), at
        if age is None:
            self._renewed_at = now
        self.alive = alive or Alive(error="the report of the collector cannot be read")

    @property
    def complete_since(self) -> Micros | None:
        """All jobs that started at or after this time are in the stream; None if that is not known."""
        text = self.alive.complete_since
        try:
            return micros(text) if text is not None else None
        except ValueError:
            return None

    def online(self) -> bool | None:
        """Whether a collector is alive. None: that is not known yet, as this process has not listened for so long."""
        now, since = time.monotonic(), self._listens_since()
        if self._renewed_at is not None and now - self._renewed_at < OFFLINE_AFTER:
            return True
        return None if since is None or now - max(since, self.known_since) < OFFLINE_AFTER else False

    def retired(self) -> bool:
        """True if no collector has been alive for long, since this process knows the appliance."""
        return time.monotonic() - (self.known_since if self.seen is None else self.seen) >= RETIRED_AFTER

    def is_read(self) -> bool:
        """True if a collector is alive, and reads its database."""
        return bool(self.online()) and self.alive.database == "live"

    def behind(self) -> float:
        """Seconds since what is known was current; 0 while its database is live, and all of it is written."""
        if self.seen is None:
            return 0.0
        silent = 0.0 if self.online() else time.monotonic() - self.seen
        lag = self.alive.lag_seconds if self.alive.database != "live" else 0.0
        return silent + max(lag, self.alive.unwritten_seconds if self.alive.is_unwritten else 0.0)

    def error(self) -> str | None:
        """Why its jobs are not current, or None."""
        if (online := self.online()) is None:
            return "no sign of life of the collector has come yet"
        if not online:
            return "the collector is offline"
        return self.alive.problem()

    def warning(self) -> str | None:
        """What else is wrong, or None."""
        if time.monotonic() - self._unreadable_at < REPORTED_FOR:
            return "a document of it cannot be read: an older one is shown, until its collector writes it again"
        return self.alive.warning


class RemoteStatus(DatabaseStatus):
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
        down = behind >= DOWN_AFTER and not any(one.is_read() for one in appliances)
        more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
        self.set_state("down" if down else "stale", errors[0] + more, what="an appliance is not live")
