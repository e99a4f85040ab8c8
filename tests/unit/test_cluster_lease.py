"""The lease of an instance: one writer in every interleaving, a prompt takeover, and none without a reason."""

from typing import Any, cast

import pytest

from correlator.cluster.lease import COUNTED, GONE_AFTER, POLL_EVERY, TAKE_AFTER, Lease, Seen, Standby
from tests.support.cluster import settings
from tests.support.lease_model import Phase, start, worlds
from tests.support.lease_servers import ALIVE, LONG_AGO, OWNER, Servers


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
    loop.create_task(lease.acquire())
    loop.run(0.1)
    assert lease.active
    holding = loop.create_task(lease.hold())
    loop.run(0.1)
    return holding


@pytest.mark.parametrize("old", [None, LONG_AGO])
def test_an_old_answer_of_a_server_that_lags_takes_the_lease_from_nobody(loop, servers, lease, old):
    holding = held(loop, lease)
    for _ in range(20):
        servers.old[OWNER] = servers.old[ALIVE] = old
        loop.run(1.5)
        servers.old.clear()
        loop.run(0.5)
    assert not holding.done()


def test_an_owner_key_of_another_ends_the_lease(loop, servers, lease):
    holding = held(loop, lease)
    servers.values[OWNER] = 1000, b'{"holder": "other"}'
    loop.run(6)
    assert holding.done()


def test_after_the_loss_of_its_streams_the_holder_takes_the_lease_before_its_standby_may(loop, servers, lease):
    holding = held(loop, lease)
    standby = Lease(cast(Any, servers), cast(Any, servers), settings("nats://127.0.0.1:1"))
    loop.create_task(standby.acquire())
    loop.run(5)
    before = lease._fence.seq
    servers.values.clear()
    loop.run(60)
    assert not holding.done()
    assert not standby.active
    assert servers.values[OWNER] == (lease._fence.seq, lease.owner)
    assert lease._fence.seq > before
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
    holding = held(loop, lease)
    loop.run(5)
    lease._fence.seq = servers.put(OWNER, lease.owner)
    servers.values[OWNER] = LONG_AGO if older else (2, lease.owner)
    loop.run(10)
    assert servers.values[OWNER] == (lease._fence.seq, lease.owner)
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
    holding = held(loop, lease)
    standby = Lease(cast(Any, servers), cast(Any, servers), settings("nats://127.0.0.1:1"))
    loop.create_task(standby.acquire())
    loop.run(60)
    assert not standby.active
    holding.cancel()
    if released:
        loop.create_task(lease.release())
    loop.run(seconds + 0.1)  # 0.1 s for the requests themselves
    assert standby.active
