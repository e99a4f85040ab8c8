"""The lease of an instance, kept in NATS: which of its collectors may write.

Problem. Two collectors follow the same appliance. One of them writes; the other takes over within seconds when it
dies, and never because of a short silence. A collector that was stopped and continues must not write any more.

Model. The owner key names the collector that holds the lease, as `holder`: a new random text for each attempt to take
it. It is taken by a compare-and-set of the key's sequence. The holder renews the alive key every `RENEW_EVERY`
seconds. A standby reads both keys every `POLL_EVERY` seconds. It takes the lease when neither has changed for
`TAKE_AFTER` seconds of successful polls, or at once when there never was an owner, or when the owner has released the
lease. An owner that a standby has seen and that is gone was lost with the store of NATS: its holder takes the lease
again as soon as it can write, and a standby only after `GONE_AFTER` seconds. `Standby` (standby.py) has these rules;
`Lease` is their I/O, and lasts for the whole process: it is acquired, held until it is lost or released, and acquired
again.

Invariants.

* While no server leads the streams of the keys, nobody can renew the lease, so silence proves nothing. It begins when
  one leads them again.
* No rule here depends on the clocks of two machines. Time in which a standby could not read the keys, or did not run,
  does not count as silence of the owner.
* A standby takes the key at the sequence that it saw during the whole silence: of two standbys that take it at the
  same moment one is refused, and begins again to watch the new owner.
* The lease protects nothing by itself: every write asserts the sequence of the owner key, see
  `correlator.cluster.fence`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import platform
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from correlator.cluster import keys, received, streams
from correlator.cluster.connection import ClusterUnavailable, Connection, Fenced, Refused, Unacknowledged, seq_of
from correlator.cluster.fence import Fence, put
from correlator.cluster.received import Holder
from correlator.cluster.standby import Seen, Standby, is_behind, is_lost
from correlator.config.schema import Cluster
from correlator.tasks import set_within

log = logging.getLogger(__name__)


RENEW_EVERY = 0.5
POLL_EVERY = 0.25
"""Seconds between two renewals, and between two polls of a standby."""


ANSWER_WITHIN = 1.0
"""Seconds for the answer to a poll or a renewal."""


OWNER_CHECKED_EVERY = 5.0
"""Seconds between two reads of the owner key by the active, which detect that the stream was deleted."""


BEHIND_READS = 8
"""Reads of the owner key, `POLL_EVERY` apart, that may have an old answer. After them the key has gone back."""


class Lease:
    """The lease of `settings.instance`, as this process sees it. Event loop's thread only.

    `connection`: for the keys of the lease alone, so that nothing that is written waits in front of a renewal.
    `writes`: for all that the holder writes.
    """

    def __init__(self, connection: Connection, writes: Connection, settings: Cluster) -> None:
        self._connection = connection
        self.connection = writes
        self.instance = settings.instance
        self.streams = streams.StreamCheck(connection, settings.replicas)
        self._owner_key = keys.owner(settings.instance)
        self._alive_key = keys.alive(settings.instance)
        self._alive_seq = 0
        self._known: dict[str, tuple[bytes, Seen]] = {}
        """The last value of each key."""
        self._complete = False
        """True once all streams were there."""
        self._error: str | None = None
        self._lost = asyncio.Event()
        self._owner: Seen | None = None
        self._fence: Fence | None = None
        self.holder = ""
        self.owner = b""
        """The value of the owner key while this process holds the lease; no other process writes the same."""
        self.active = False

    def describe(self) -> dict[str, Any]:
        """Describe the lease and the connections for /health/ready. A standby is not ready."""
        parts = [connection.describe() for connection in (self._connection, self.connection)]
        part = next((part for part in parts if not part["ok"]), parts[0]) | {
            "instance": self.instance,
            "role": "active" if self.active else "standby",
        }
        if not self.active:
            owner = self._owner.holder if self._owner is not None else None
            part |= {"ok": False, "active": owner, "error": self._standing()}
        elif self._error is not None:
            part |= {"ok": False, "error": part.get("error") or self._error}
        return part

    @property
    def refusal(self) -> str | None:
        """Why this process serves no client; None while it is active. It names the host of the active for them."""
        if self.active:
            return None
        host = self._owner.host if self._owner is not None else ""
        ask = f"ask the active one, on {host}" if host else "ask the active one, or try again"
        return f"this daemon is the standby of {self.instance}: {ask}"

    def _standing(self) -> str:
        """Why this process is not active."""
        away = None if self._connection.connected else self._connection.describe()["error"]
        error = away or self._error
        if error is None:
            problem = self.streams.problem
            return f"this is the standby of {self.instance}" + (f", and {problem}" if problem is not None else "")
        return f"waiting for the lease of {self.instance}, following and publishing nothing until then: {error}"

    async def acquire(self, is_barred: Callable[[], Awaitable[bool]] | None = None) -> Fence:
        """Wait as the standby until this process holds the lease. Returns the fence of its writes.

        `is_barred`: asked before the lease is taken; it is not while that returns True.
        """
        self.active = False
        self._lost.clear()
        self.holder = f"{self._connection.name}-{secrets.token_hex(4)}"
        self.owner = json.dumps({"holder": self.holder, "at": int(time.time()), "host": platform.node()}).encode()
        standby, renewable = Standby(self.holder), True
        while True:
            try:
                if not self._complete:
                    await self._require_streams()
                alive, owner = await self._read_keys()
            except (ClusterUnavailable, Refused) as error:
                self._failed(error)
                standby = standby.missed()
                await asyncio.sleep(POLL_EVERY)
                continue
            self._note_owner(owner)
            standby = standby.polled(asyncio.get_running_loop().time(), alive, owner)
            seq = owner.seq if owner is not None and standby.owns else None
            if standby.may_take and not (is_barred is not None and await is_barred()):
                could, renewable = renewable, not standby.by_silence or await self._can_be_renewed()
                if could and renewable:
                    seq = await self._own(standby.expected)
                if renewable:  # Since now, if it was not: its holder has as long for it as ever.
                    standby = standby.refused()
            if seq is not None:
                log.info("this process is the active collector of %s", self.instance)
                self.active, self._alive_seq = True, alive.seq if alive is not None else 0
                self._fence = Fence(self.connection, keys.STATE, self._owner_key, self.owner, seq)
                return self._fence
            await asyncio.sleep(POLL_EVERY)

    async def hold(self, report: Callable[[], Mapping[str, Any]] = dict) -> None:
        """Renew the lease until it is lost, or until cancelled. After the latter it may be called again.

        `report`: returns what the alive key says of the active besides the holder, e.g. the state of the database.
        """
        loop = asyncio.get_running_loop()
        checked = loop.time()
        while not self._lost.is_set():
            began = loop.time()
            if not await self._renew(report(), released=False):
                break
            if began - checked >= OWNER_CHECKED_EVERY:
                checked = began
                if not await self._is_owner():
                    break
            await set_within(self._lost, max(0.0, began + RENEW_EVERY - loop.time()))
        self.active = False
        log.warning("the lease of %s was lost: another collector is active", self.instance)

    def lose(self) -> None:
        """End `hold`: a fenced write of this process was refused."""
        self._lost.set()

    async def release(self, report: Mapping[str, Any] = {}) -> None:
        """Hand the lease over: a standby takes it at its next poll. Does nothing if it is lost or NATS is away.

        Call it when no `hold` runs. `report`: the last one.
        """
        if self.active:
            self.active = False
            await self._renew(report, released=True)
            log.info("the lease of %s was released", self.instance)

    async def _require_streams(self) -> None:
        """Raises: `ClusterUnavailable` unless all streams are there."""
        found = await streams.infos(self._connection)
        if (problem := streams.problem(found)) is not None and None in found.values():
            raise ClusterUnavailable(problem)
        self._complete = True

    async def _read_keys(self) -> tuple[Seen | None, Seen | None]:
        """Read the alive key and the owner key."""
        alive = await self._connection.last(keys.ALIVE, self._alive_key, within=ANSWER_WITHIN)
        owner = await self._connection.last(keys.STATE, self._owner_key, within=ANSWER_WITHIN)
        return self._seen(self._alive_key, alive), self._seen(self._owner_key, owner)

    def _seen(self, subject: str, message: Any) -> Seen | None:
        """What a key says; a value that cannot be read has no holder. Each value is read once."""
        if message is None:
            return None
        seq, known = seq_of(message), self._known.get(subject)
        if known is not None and (known[1].seq, known[0]) == (seq, message.data):
            return known[1]
        read = partial(received.decode, message.data, Holder, received.MAX_KEY)
        value = self._connection.parser.parse(subject, read) if message.data else None  # Else somebody removed it.
        found = value or Holder()
        seen = Seen(seq, found.holder, found.released, found.host)
        self._known[subject] = message.data, seen
        return seen

    def _note_owner(self, owner: Seen | None) -> None:
        if owner is not None and owner.holder not in {self.holder, self._owner.holder if self._owner else ""}:
            log.info("the lease of %s is held by %s on %s", self.instance, owner.holder, owner.host or "another host")
        self._error, self._owner = None, owner

    async def _can_be_renewed(self) -> bool:
        """True if servers lead both streams of the lease. One that is alone answers too, and names no leader."""
        try:
            for name in (keys.ALIVE, keys.STATE):
                if streams.is_leaderless(await streams.info(self._connection, name, within=ANSWER_WITHIN)):
                    raise ClusterUnavailable(f"no server leads {name}, as most of its servers are away")
        except (ClusterUnavailable, Refused) as error:
            self._failed(error)
            return False
        return True

    async def _own(self, expected: int) -> int | None:
        """Take the owner key. Returns its sequence, None if that failed or the outcome is unknown."""
        try:
            return await put(self._connection, self._owner_key, self.owner, expected=expected)
        except Fenced:
            return None
        except (Unacknowledged, Refused) as error:
            self._failed(error)
            return None

    async def _renew(self, report: Mapping[str, Any], *, released: bool) -> bool:
        """Write the alive key. Returns False if the lease is lost."""
        value = json.dumps({**report, "holder": self.holder, "released": released}).encode()
        for _ in range(2):
            try:
                self._alive_seq = await put(
                    self._connection, self._alive_key, value, expected=self._alive_seq, within=ANSWER_WITHIN
                )
                self._error = None
                return True
            except Fenced:  # By another collector, or by an earlier renewal without an acknowledgement.
                try:
                    alive, owner = await self._read_keys()
                except (ClusterUnavailable, Refused) as error:
                    self._failed(error)
                    return True
                if self._is_lost(owner) or (owner is None and not await self._is_owner()):
                    return False
                self._alive_seq = alive.seq if alive is not None else 0
            except (ClusterUnavailable, Refused) as error:
                self._failed(error)
                return True
        return True

    async def _is_owner(self) -> bool:
        """Read the owner key. An answer that is older than what this process wrote is of a server that is behind.

        A key that is gone was lost with the store of NATS, and is written again. So is one that stays older, as in a
        backup of that store, unless its collector has renewed the lease.
        """
        assert self._fence is not None
        for reads in range(1, BEHIND_READS + 1):
            try:
                alive, owner = await self._read_keys()
            except (ClusterUnavailable, Refused):  # Unknown.
                return True
            if self._is_lost(owner):
                return False
            if not is_behind(self._fence.seq, owner):
                return True
            lives = alive is not None and owner is not None and alive.holder == owner.holder != self.holder
            is_gone = owner is None or (reads == BEHIND_READS and not lives)
            if is_gone and (seq := await self._own(owner.seq if owner is not None else 0)) is not None:
                log.warning("NATS has lost what its streams had: the lease of %s was taken again", self.instance)
                self._fence.rewritten(seq)
                return True
            await asyncio.sleep(POLL_EVERY)
        return False

    def _is_lost(self, owner: Seen | None) -> bool:
        return is_lost(self.holder, self._fence.seq if self._fence is not None else 0, owner)

    def _failed(self, error: Exception) -> None:
        if self._error is None:
            log.warning("the lease of %s cannot be read or written: %s", self.instance, error)
        self._error = str(error)
