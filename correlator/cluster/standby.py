"""When a standby takes the lease over: the rules of `correlator.cluster.lease`, without any I/O."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

TAKE_AFTER = 3.0
"""Seconds without a renewal: 2 s, and 1 s more, because an election of NATS's servers may delay a healthy owner."""

GONE_AFTER = 10.0
"""Seconds without an owner and without a renewal after which a standby takes a lease that had an owner."""

COUNTED = 1.0
"""The longest time between two polls that counts as silence. A longer one: the standby itself did not run."""


class Seen(Struct, frozen=True):
    """The last message of a key: its sequence in the stream, and what its value says of the holder."""

    seq: int
    holder: str = ""
    released: bool = False
    host: str = ""


class Standby(Struct, frozen=True):
    """A collector without the lease that would take it as `holder`. Each method returns the next state.

    `quiet`: seconds of silence so far; `polled_at`: monotonic seconds of the last successful poll. `had_owner`: a poll
    has found an owner.
    """

    holder: str
    alive: Seen | None = None
    owner: Seen | None = None
    quiet: float = 0.0
    polled_at: float | None = None
    had_owner: bool = False

    def polled(self, now: float, alive: Seen | None, owner: Seen | None) -> Standby:
        """Both keys have been read. None: the key does not exist."""
        had_owner = self.had_owner or owner is not None
        if (alive, owner) != (self.alive, self.owner):
            return Standby(self.holder, alive, owner, 0.0, now, had_owner)
        passed = now - self.polled_at if self.polled_at is not None else 0.0
        return Standby(self.holder, alive, owner, self.quiet + (passed if passed <= COUNTED else 0.0), now, had_owner)

    def missed(self) -> Standby:
        """The keys could not be read. The silence so far stays counted; the time until the next poll is not."""
        return replace(self, polled_at=None)

    def refused(self) -> Standby:
        """Another collector took the lease, or the attempt has failed: begin to watch from the start."""
        return Standby(self.holder, had_owner=self.had_owner)

    @property
    def owns(self) -> bool:
        """True if the owner key is of this attempt: its acknowledgement was lost, but it was stored."""
        return self.owner is not None and self.owner.holder == self.holder

    @property
    def by_silence(self) -> bool:
        """True if the owner is silent, and has not released the lease."""
        return self.owner is not None and not self._released

    @property
    def may_take(self) -> bool:
        """True if the lease is to be taken now, at the sequence `expected`."""
        if self.polled_at is None or self.owns:
            return False
        if self.owner is None:
            return not self.had_owner or self.quiet >= GONE_AFTER
        return self.quiet >= TAKE_AFTER or self._released

    @property
    def _released(self) -> bool:
        # A release by an earlier owner says nothing of the present one, which has not renewed the key yet.
        alive, owner = self.alive, self.owner
        return alive is not None and owner is not None and alive.released and alive.holder == owner.holder

    @property
    def expected(self) -> int:
        """The sequence of the owner key for the compare-and-set; 0: the key must not exist."""
        return self.owner.seq if self.owner is not None else 0


def is_lost(holder: str, seq: int, owner: Seen | None) -> bool:
    """True if another collector has written the owner key, which `holder` wrote last with sequence `seq`."""
    return owner is not None and owner.seq > seq and owner.holder != holder


def is_behind(seq: int, owner: Seen | None) -> bool:
    """True if an answer is older than `seq`: of a server that is behind, or of a stream that was created again."""
    return owner is None or owner.seq < seq
