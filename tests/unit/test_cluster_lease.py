"""The lease of an instance: one writer in every interleaving, a prompt takeover, and none without a reason."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from random import Random
from typing import Any, cast

import pytest
from hypothesis import Phase, given
from hypothesis import settings as example_settings
from hypothesis import strategies as st

from correlator.cluster import keys
from correlator.cluster.connection import Fenced, Refused, Unacknowledged
from correlator.cluster.fence import OwnedStream, StreamMessage
from correlator.cluster.lease import POLL_EVERY, Lease
from correlator.cluster.standby import COUNTED, GONE_AFTER, TAKE_AFTER, Seen, Standby
from tests.support.cluster import settings
from tests.support.lease_servers import ALIVE, LONG_AGO, OWNER, Link, Network, Servers
from tests.support.virtual_time import VirtualTimeLoop

WRITTEN = keys.job("dc1", "a"), keys.job("dc1", "b")
FAULTY, QUIET = 25.0, 10.0
"""Seconds in which there are faults, and after which all is well."""

faults = st.lists(
    st.tuples(
        st.sampled_from(["stop", "deaf", "crash", "release", "no leader"]),
        st.integers(0, 2),
        st.floats(0.0, FAULTY - 9.0),
        st.sampled_from([0.5, 4.0, 9.0]),
    ),
    min_size=2,
    max_size=8,
)
"""What happens to which of three collectors, when, and for how many seconds."""


class Process:
    """A collector that takes, renews and loses the real lease, and writes through the real fence while it holds it.

    `terms`: gets the value of the owner key of each of its terms. `idle`: it has nothing to write, so no refused write
    tells it that it has lost the lease.
    """

    def __init__(self, loop: VirtualTimeLoop, link: Link, terms: list[bytes], *, idle: bool) -> None:
        self.link = link
        self.terms = terms
        self.idle = idle
        self.writes = 0
        """Writes that were acknowledged."""
        self._loop = loop
        self._releasing = asyncio.Event()
        self.start()

    def start(self) -> None:
        self.lease = Lease(cast(Any, self.link), cast(Any, self.link), settings("nats://127.0.0.1:1"))
        self._releasing.clear()
        self.task = self._loop.create_task(self._run(self.lease))

    def crash(self) -> None:
        """End at once, and start again. What it has sent may still arrive."""
        self.task.cancel()
        self.start()

    def release(self) -> None:
        """Hand the lease over, as a stop does, and ask for it again."""
        if self.lease.active:
            self._releasing.set()

    async def _run(self, lease: Lease) -> None:
        while True:
            fence = await lease.acquire()
            self.terms.append(lease.owner)
            tasks = [
                asyncio.create_task(lease.hold()),
                asyncio.create_task(self._releasing.wait()),
                asyncio.create_task(
                    self._write(lease, OwnedStream(fence, rewrite_every=3600.0 if len(self.terms) % 3 == 0 else 0.0))
                ),
            ]
            try:
                await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
            for ended in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(ended, Exception):
                    raise ended
            if self._releasing.is_set():
                self._releasing.clear()
                await lease.release()

    async def _write(self, lease: Lease, stream: OwnedStream) -> None:
        for number in itertools.count():
            await asyncio.sleep(0.2)
            if self.idle:
                continue
            try:
                value = b"%b\n%d" % (lease.owner, number)
                await stream.write([StreamMessage(name, value) for name in WRITTEN], 1.0)
                self.writes += 1
            except Fenced:
                lease.lose()
                return
            except (Unacknowledged, Refused):
                pass


def hit(loop: VirtualTimeLoop, servers: Servers, process: Process, what: str, seconds: float) -> None:
    """Let a fault begin."""
    until = loop.time() + seconds
    match what:
        case "stop":
            process.link.stopped = until
        case "deaf":
            process.link.deaf = until
        case "crash":
            process.crash()
        case "release":
            process.release()
        case _:
            servers.leads = False
            loop.call_later(seconds, setattr, servers, "leads", True)


class Stored:
    """What the servers have stored. `wrong`: what they should not have; `terms`: the owners that got the lease."""

    def __init__(self, servers: Servers) -> None:
        self.wrong: list[str] = []
        self.terms: list[bytes] = []
        self._owner = b""
        self._former: set[bytes] = set()
        self._last: dict[bytes, int] = {}
        servers.after_write = self._noted

    def _noted(self, subject: str, value: bytes) -> None:
        if subject == OWNER and value != self._owner:
            if value in self._former:
                self.wrong.append(f"{value!r} owns again, after {self._owner!r}")
            if self._owner in self.terms:  # Else it may take the lease again: it knows nothing of the first time.
                self._former.add(self._owner)
            self._owner = value
        elif subject in WRITTEN:
            author, _, number = value.rpartition(b"\n")
            if author != self._owner:
                self.wrong.append(f"a write of {author!r}, but {self._owner!r} owns")
            elif int(number) < self._last.get(author, 0):
                self.wrong.append(f"write {int(number)} of {author!r} after its write {self._last[author]}")
            self._last[author] = int(number)


def test_whatever_happens_only_the_holder_of_the_lease_writes_in_order_and_soon_there_is_one():
    """Of three collectors; after a crash each begins as another standby, and what it sent may come late."""
    seen = Counter[str]()

    # To make an example shorter would take minutes.
    @example_settings(max_examples=100, phases=(Phase.explicit, Phase.reuse, Phase.generate))
    @given(faults, st.integers(0, 1 << 32))
    def test(faults: list[tuple[str, int, float, float]], seed: int) -> None:
        with contextlib.closing(VirtualTimeLoop()) as loop:
            servers, network = Servers(), Network(loop, Random(seed))
            stored = Stored(servers)
            processes = [Process(loop, Link(servers, network, f"c{n}"), stored.terms, idle=n == 2) for n in range(3)]
            for what, who, at, seconds in faults:
                loop.call_later(at, hit, loop, servers, processes[who], what, seconds)
            loop.run(FAULTY)
            network.calm = True
            loop.run(QUIET)
            assert stored.wrong == []
            assert [one.task.done() for one in processes] == [False] * 3
            assert [one.lease.active for one in processes].count(True) == 1
            before = sum(one.writes for one in processes)
            for one in processes:
                one.idle = False
            loop.run(1.0)
            assert sum(one.writes for one in processes) > before
            assert [one.lease.active for one in processes].count(True) == 1
            assert stored.wrong == []
            seen.update(takeovers=len(stored.terms) - 1)
            seen.update(late=sum(subject in WRITTEN for subject in servers.refused))
            loop.cancel_all()

    test()
    assert min(seen["takeovers"], seen["late"]) > 3, seen


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
