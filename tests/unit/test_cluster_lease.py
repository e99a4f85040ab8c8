"""The lease of an instance: one writer in every interleaving, a prompt takeover, and none without a reason."""

from typing import Any, cast

import pytest

from correlator.cluster.lease import COUNTED, GONE_AFTER, POLL_EVERY, TAKE_AFTER, Lease, Seen, Standby
from tests.support.cluster import settings
from tests.support.lease_model import Phase, start, worlds
from tests.support.lease_servers import ALIVE, LONG_AGO, OWNER, Servers

OTHERS = Seen(7, "other")


def polls(standby, *seen, now=0.0, every=POLL_EVERY):
    """Poll once for each (alive, owner), `every` seconds apart."""
    for alive, owner in seen:
        now += every
        standby = standby.polled(now, alive, owner)
    return standby


@pytest.mark.parametrize("collectors", [2, 3])
def test_no_interleaving_has_two_accepted_writers(collectors):
    steps = takeovers = 0
    for before, what, after in worlds(start(collectors)):
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


def test_the_lease_is_taken_after_three_seconds_of_silence_and_not_before():
    alive = Seen(5, "other")
    count = int(TAKE_AFTER / POLL_EVERY)
    standby = polls(Standby("me"), *[(alive, OTHERS)] * count)
    assert not standby.may_take
    standby = polls(standby, (alive, OTHERS), now=standby.polled_at)
    assert standby.may_take
    assert standby.expected == OTHERS.seq


def test_a_renewal_or_a_new_owner_begins_the_silence_again():
    quiet = polls(Standby("me"), *[(Seen(5, "other"), OTHERS)] * 100)
    for alive, owner in ((Seen(6, "other"), OTHERS), (Seen(5, "other"), Seen(8, "third"))):
        assert not polls(quiet, *[(alive, owner)] * 4, now=quiet.polled_at).may_take


def test_time_in_which_the_standby_could_not_read_or_did_not_run_is_no_silence():
    alive = Seen(5, "other")
    standby = Standby("me")
    for n in range(100):
        standby = standby.polled(n * 10 * COUNTED, alive, OTHERS)
    assert standby.quiet == 0.0
    for n in range(100):
        standby = standby.missed().polled(5000.0 + n * POLL_EVERY, alive, OTHERS)
    assert standby.quiet == 0.0
    assert not standby.missed().may_take


def test_without_an_owner_or_after_its_release_the_lease_is_taken_at_once():
    assert polls(Standby("me"), (None, None)).may_take
    released = polls(Standby("me"), (Seen(5, "other", released=True), OTHERS))
    assert released.may_take
    assert released.expected == OTHERS.seq


def test_a_release_of_an_earlier_owner_does_not_count_against_the_present_one():
    assert not polls(Standby("me"), (Seen(5, "earlier", released=True), OTHERS)).may_take


def test_a_lost_acknowledgement_of_the_own_attempt_is_recognized():
    standby = polls(Standby("me"), (Seen(5, "other"), Seen(9, "me")))
    assert standby.owns
    assert not standby.may_take


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
