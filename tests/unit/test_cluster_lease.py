"""The lease of an instance: one writer in every interleaving, a prompt takeover, and none without a reason."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from enum import Enum
from typing import Any, NamedTuple, cast

import pytest
from msgspec.structs import replace

from correlator.cluster.lease import COUNTED, GONE_AFTER, POLL_EVERY, TAKE_AFTER, Lease, Seen, Standby, is_lost
from tests.support.cluster import settings
from tests.support.lease_servers import ALIVE, LONG_AGO, OWNER, Servers

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
    """A state of a few collectors that take, renew, release and lose the lease of one instance, in any interleaving.

    The server is modelled by its two keys and their compare-and-set. What is written to the owner key is applied at any
    later time, in any order, and its acknowledgement may be lost; collectors may crash, or stop between any two steps.
    A batch asserts the fence of its collector, so `authors` decides what becomes of it, whenever it arrives. The rules
    are those of `correlator.cluster.lease`; one poll without a change is silence enough.
    """

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


def test_no_interleaving_has_two_accepted_writers():
    """Of two collectors: after a crash each begins as another standby, so that two may take the lease at once."""
    steps = takeovers = 0
    for before, what, after in worlds(start(2)):
        steps += 1
        takeovers += "takes" in what and before.owner is not None
        valid = 0
        for one in after.collectors:
            if one.phase is Phase.ACTIVE:
                # A batch with this fence is accepted while the owner key has this sequence, whenever it arrives.
                assert after.authors[one.fence - 1] == one.standby.holder, (before, what)
                valid += after.owner is not None and after.owner.seq == one.fence
        assert valid <= 1, (before, what)
    assert steps > 10_000
    assert takeovers > 100


ALIVE_OF_OTHER, OTHER = Seen(5, "other"), Seen(7, "other")
SILENT = [(ALIVE_OF_OTHER, OTHER)] * int(TAKE_AFTER / POLL_EVERY)


@pytest.mark.parametrize(
    ("polls", "takes_at"),
    [
        ([(None, None)], 0),
        (SILENT, None),
        ([*SILENT, SILENT[0]], OTHER.seq),
        ([*SILENT, (Seen(6, "other"), OTHER), *SILENT[2:]], None),  # a renewal begins the silence again
        ([*SILENT, (ALIVE_OF_OTHER, Seen(8, "third")), *SILENT[2:]], None),  # so does a new owner
        ([(Seen(5, "other", released=True), OTHER)], OTHER.seq),
        ([(Seen(5, "earlier", released=True), OTHER)], None),
        ([SILENT[0], (ALIVE_OF_OTHER, Seen(9, "me"))], None),
    ],
)
def test_the_lease_is_taken_after_three_seconds_of_silence_or_a_release_and_not_before(polls, takes_at):
    standby = Standby("me")
    for number, (alive, owner) in enumerate(polls):
        standby = standby.polled(number * POLL_EVERY, alive, owner)
    assert standby.may_take is (takes_at is not None)
    assert takes_at in (None, standby.expected)
    assert standby.owns is (polls[-1][1] is not None and polls[-1][1].holder == "me"), "its acknowledgement was lost"


def test_time_in_which_the_standby_could_not_read_or_did_not_run_is_no_silence():
    standby = Standby("me")
    for n in range(100):
        standby = standby.polled(n * 10 * COUNTED, ALIVE_OF_OTHER, OTHER)
    for n in range(100):
        standby = standby.missed().polled(5000.0 + n * POLL_EVERY, ALIVE_OF_OTHER, OTHER)
    assert standby.quiet == 0.0
    assert not standby.missed().may_take


# -- The lease while NATS's servers elect leaders or lag: a healthy holder keeps it, in virtual time


@pytest.fixture
def servers():
    return Servers()


@pytest.fixture
def lease(servers):
    return Lease(cast(Any, servers), cast(Any, servers), settings("nats://127.0.0.1:1"))


def held(loop, lease):
    """The task that holds the lease, and the fence."""
    acquiring = loop.create_task(lease.acquire())
    loop.run(0.1)
    assert lease.active
    holding = loop.create_task(lease.hold())
    loop.run(0.1)
    return holding, acquiring.result()


@pytest.mark.parametrize("old", [None, LONG_AGO])
def test_an_old_answer_of_a_server_that_lags_takes_the_lease_from_nobody(loop, servers, lease, old):
    holding, _ = held(loop, lease)
    for _ in range(20):
        servers.old[OWNER] = servers.old[ALIVE] = old
        loop.run(1.5)
        servers.old.clear()
        loop.run(0.5)
    assert not holding.done()


def test_an_owner_key_of_another_ends_the_lease(loop, servers, lease):
    holding, _ = held(loop, lease)
    servers.values[OWNER] = 1000, b'{"holder": "other"}'
    loop.run(6)
    assert holding.done()


def test_after_the_loss_of_its_streams_the_holder_takes_the_lease_before_its_standby_may(loop, servers, lease):
    holding, fence = held(loop, lease)
    standby = Lease(cast(Any, servers), cast(Any, servers), settings("nats://127.0.0.1:1"))
    loop.create_task(standby.acquire())
    loop.run(5)
    before = fence.seq
    servers.values.clear()
    loop.run(60)
    assert not holding.done()
    assert not standby.active
    assert servers.values[OWNER] == (fence.seq, lease.owner)
    assert fence.seq > before
    holding.cancel()
    servers.values.clear()
    loop.run(GONE_AFTER - 1)
    assert not standby.active
    loop.run(2)
    assert standby.active


@pytest.mark.parametrize("older", [True, False])
def test_after_its_owner_key_has_gone_back_the_holder_takes_it_again_unless_its_owner_lives(
    loop, servers, lease, older
):
    """A backup of NATS's files has the key of an earlier holder, or one that this holder has rewritten since."""
    holding, fence = held(loop, lease)
    loop.run(5)
    loop.create_task(fence.rewrite())
    loop.run(0.1)
    assert servers.values[OWNER] != LONG_AGO
    servers.values[OWNER] = LONG_AGO if older else (2, lease.owner)
    loop.run(10)
    assert servers.values[OWNER] == (fence.seq, lease.owner)
    assert not holding.done()
    servers.values = {OWNER: (3, b'{"holder": "other"}'), ALIVE: (4, b'{"holder": "other"}')}
    servers.after_read = lambda _: servers.put(ALIVE, b'{"holder": "other"}')
    loop.run(10)
    assert holding.done()
    assert servers.values[OWNER][0] == 3


@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize("seconds", [30.0, 31.0, 32.0])
def test_silence_while_no_server_leads_is_not_the_owners_and_begins_when_one_does(
    loop, servers, lease, answers, seconds
):
    servers.values = {OWNER: LONG_AGO, ALIVE: LONG_AGO}
    loop.create_task(lease.acquire())
    loop.run(0.1)
    servers.leads, servers.answers = False, answers
    loop.run(seconds)
    assert not lease.active
    servers.leads = True
    loop.run(TAKE_AFTER - 0.1)  # Time in which the owner could renew.
    assert not lease.active
    loop.run(2)
    assert lease.active


def test_a_holder_renews_soon_after_an_election_however_long_it_took(loop, servers, lease):
    held(loop, lease)
    servers.leads = False
    loop.run(20)
    servers.leads = True
    before = servers.values[ALIVE][0]
    loop.run(2.1)
    assert servers.values[ALIVE][0] > before


@pytest.mark.parametrize(("released", "seconds"), [(True, 0.25), (False, 3.25)])
def test_a_standby_takes_a_released_lease_at_its_next_poll_and_a_silent_one_after_3_s(
    loop, servers, lease, released, seconds
):
    holding, _ = held(loop, lease)
    standby = Lease(cast(Any, servers), cast(Any, servers), settings("nats://127.0.0.1:1"))
    loop.create_task(standby.acquire())
    loop.run(60)
    assert not standby.active
    holding.cancel()
    if released:
        loop.create_task(lease.release())
    loop.run(seconds + 0.1)  # 0.1 s for the requests themselves
    assert standby.active
