"""What the journal says about who asked: refused logins, downloads of logs, searches through all logs.

These lines have a logger of their own, `correlator.audit`, and are written at any `log.level`. A line that would come
again and again is written once a minute, with the number of those in between; what an attacker sends from many
addresses is bounded as well. Metrics count everything.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable

from correlator.bounded import BoundedDict
from correlator.sinks.http.floods import Pace
from correlator.sinks.http.grants import Denied, Grant

log = logging.getLogger("correlator.audit")
log.setLevel(logging.INFO)

AGAIN_AFTER = 60.0
"""Seconds until a line with the same subject is written again."""

MAX_SUBJECTS = 10_000
"""Subjects that are remembered."""

BURST, RATE = 30, 0.5
"""Refused logins that are written at once, and per second, of all addresses together."""

NOT_LOGGED = ("no_token", "host", "origin")
"""Refusals that are no login: each page that asks for a token, and each scanner, makes some."""


class Audit:
    """Writes the lines. `clock`: monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._written: BoundedDict[Hashable, tuple[float, int]] = BoundedDict(MAX_SUBJECTS)
        """For a subject: when its next line may be written, and how many were not since the last one."""
        self._pace = Pace(BURST, RATE, clock)
        self._unwritten = 0
        """Refused logins of which no line was written because there were too many addresses."""

    def refused(self, denied: Denied, address: str) -> None:
        """A token was refused, or was used for something that it is not for."""
        if denied.reason in NOT_LOGGED:
            return
        suppressed = self._suppressed(("refused", denied.reason, address))
        if suppressed is None:
            return
        if not self._pace.allows():
            self._unwritten += 1 + suppressed
            return
        others, self._unwritten = self._unwritten, 0
        more = {"suppressed": suppressed, "of_others": others}
        log.warning(
            "a login was refused: %s",
            denied,
            extra={"reason": denied.reason, "token": _name(denied.grant), "address": address}
            | {name: count for name, count in more.items() if count},
        )

    def downloaded(self, grant: Grant, address: str, job_id: str) -> None:
        """The log of a job is sent as a file."""
        self._note("a log is downloaded", ("log", grant.name, address, job_id), grant, address, job_id=job_id)

    def searched(self, grant: Grant, address: str) -> None:
        """The logs of all jobs were searched."""
        self._note("all logs are searched", ("search", grant.name, address), grant, address)

    def _note(self, what: str, subject: Hashable, grant: Grant, address: str, **more: str) -> None:
        suppressed = self._suppressed(subject)
        if suppressed is not None:
            counted = {"suppressed": suppressed} if suppressed else {}
            log.info(what, extra={"token": _name(grant), "address": address, **more, **counted})

    def _suppressed(self, subject: Hashable) -> int | None:
        """How many lines with this subject were not written since the last one; None: this one is not either."""
        now = self._clock()
        due, count = self._written.pop(subject, (now, 0))
        if now < due:
            self._written[subject] = due, count + 1
            return None
        self._written[subject] = now + AGAIN_AFTER, 0
        return count


def _name(grant: Grant | None) -> str:
    return grant.name if grant is not None else ""
