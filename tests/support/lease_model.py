"""All interleavings of a few collectors that take, renew, release and lose the lease of one instance.

The server is modelled by its two keys and their compare-and-set. What is written to the owner key is applied at any
later time, in any order, and its acknowledgement may be lost; collectors may crash, or stop between any two steps. A
batch asserts the fence of its collector, so `World.authors` decides what becomes of it, whenever it arrives. The rules
are those of `correlator.cluster.lease`; one poll without a change is silence enough.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from msgspec.structs import replace

from correlator.cluster.lease import TAKE_AFTER, Seen, Standby, is_lost

ATTEMPTS = 3
RENEWALS = 1
SEQUENCES = 4
IN_FLIGHT = 2
"""Bounds that keep the state space finite: attempts in all, renewals, sequences of the owner key, messages."""


class Phase(Enum):
    STANDBY = 1
    TAKING = 2
    ACTIVE = 3


class Collector(NamedTuple):
    phase: Phase
    standby: Standby
    fence: int = 0
    alive_seq: int = 0


class Sent(NamedTuple):
    """A write of the owner key in flight: `kind` is take or rewrite; `expected` is the owner key's sequence."""

    kind: str
    collector: int
    holder: str
    expected: int


class World(NamedTuple):
    owner: Seen | None
    alive: Seen | None
    collectors: tuple[Collector, ...]
    flight: frozenset[Sent]
    attempts: int
    authors: tuple[str, ...]
    """The holder that wrote the owner key at each sequence, from 1."""

    def accepted(self, sent: Sent) -> bool:
        return sent.expected == (self.owner.seq if self.owner is not None else 0)

    def put(self, n: int, collector: Collector) -> World:
        return self._replace(collectors=(*self.collectors[:n], collector, *self.collectors[n + 1 :]))


def start(collectors: int) -> World:
    names = tuple(Collector(Phase.STANDBY, Standby(f"h{n}")) for n in range(collectors))
    return World(None, None, names, frozenset(), collectors, ())


def worlds(first: World) -> Iterator[tuple[World, str, World]]:
    """Yield every step (before, what, after) that can be reached, each world's steps once."""
    known, queue = {first}, deque([first])
    while queue:
        world = queue.popleft()
        for what, after in steps(world):
            yield world, what, after
            if after not in known:
                known.add(after)
                queue.append(after)


def steps(world: World) -> Iterator[tuple[str, World]]:
    for n, collector in enumerate(world.collectors):
        if collector.phase is Phase.STANDBY:
            yield from _poll(world, n, collector)
        if collector.phase is Phase.ACTIVE:
            yield from _as_active(world, n, collector)
        if world.attempts < ATTEMPTS and collector.phase is not Phase.STANDBY:
            yield f"{n} crashes", _again(world, n)
    for sent in world.flight:
        yield from _apply(world, sent)


def _again(world: World, n: int) -> World:
    """Let a collector begin as a standby, with a new attempt; without one left it stays out."""
    standby = Standby(f"h{world.attempts}")
    return world.put(n, Collector(Phase.STANDBY, standby))._replace(attempts=world.attempts + 1)


def _poll(world: World, n: int, collector: Collector) -> Iterator[tuple[str, World]]:
    if int(collector.standby.holder[1:]) >= ATTEMPTS:
        return
    seen = collector.standby.polled(1.0, world.alive, world.owner)
    seen = replace(seen, polled_at=0.0, quiet=TAKE_AFTER if seen.quiet else 0.0)
    if seen.owns:
        assert seen.owner is not None
        alive_seq = world.alive.seq if world.alive is not None else 0
        yield (
            f"{n} finds itself owner",
            world.put(n, Collector(Phase.ACTIVE, seen.refused(), seen.owner.seq, alive_seq)),
        )
    elif seen.may_take and len(world.authors) < SEQUENCES:
        sent = Sent("take", n, seen.holder, seen.expected)
        after = world.put(n, Collector(Phase.TAKING, seen.refused()))
        yield f"{n} takes", after._replace(flight=world.flight | {sent})
    else:
        yield f"{n} polls", world.put(n, collector._replace(standby=seen))


def _as_active(world: World, n: int, collector: Collector) -> Iterator[tuple[str, World]]:
    holder = collector.standby.holder
    if len(world.authors) < SEQUENCES and len(world.flight) < IN_FLIGHT:
        yield f"{n} rewrites", world._replace(flight=world.flight | {Sent("rewrite", n, holder, collector.fence)})
    if world.owner is None or world.owner.seq != collector.fence:  # A batch is refused.
        if is_lost(holder, collector.fence, world.owner):
            yield f"{n} is fenced", _again(world, n)
        else:
            assert world.owner is not None
            yield f"{n} adopts its fence", world.put(n, collector._replace(fence=world.owner.seq))
    now = world.alive.seq if world.alive is not None else 0
    if collector.alive_seq != now:  # The compare-and-set of a renewal is refused.
        if is_lost(holder, collector.fence, world.owner):
            yield f"{n} sees its loss", _again(world, n)
        else:
            yield f"{n} adopts the alive key", world.put(n, collector._replace(alive_seq=now))
    elif now < RENEWALS:
        for released in (False, True):
            after = world._replace(alive=Seen(now + 1, holder, released))
            if released:
                yield f"{n} releases", _again(after, n)
            else:
                yield f"{n} renews", after.put(n, collector._replace(alive_seq=now + 1))


def _apply(world: World, sent: Sent) -> Iterator[tuple[str, World]]:
    """Apply a message at the server; its acknowledgement arrives, or is lost."""
    n, collector = sent.collector, world.collectors[sent.collector]
    ok = world.accepted(sent)
    after = world._replace(flight=world.flight - {sent})
    if ok:
        seq = len(world.authors) + 1
        after = after._replace(owner=Seen(seq, sent.holder), authors=(*world.authors, sent.holder))
    waits = collector.standby.holder == sent.holder
    lost = after
    if waits and sent.kind == "take" and collector.phase is Phase.TAKING:
        lost = after.put(n, collector._replace(phase=Phase.STANDBY))
        alive_seq = world.alive.seq if world.alive is not None else 0
        became = Collector(Phase.ACTIVE, collector.standby, len(after.authors), alive_seq)
        refused = Collector(Phase.STANDBY, collector.standby.refused())
        yield f"{n} has {'taken' if ok else 'not taken'} it", after.put(n, became if ok else refused)
    elif waits and ok and collector.phase is Phase.ACTIVE:
        yield f"{n} has rewritten", after.put(n, collector._replace(fence=len(after.authors)))
    yield f"the answer to {n} is lost", lost
