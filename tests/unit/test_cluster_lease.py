"""The lease of an instance: one writer in every interleaving, a prompt takeover, and none without a reason."""

import pytest

from correlator.cluster.lease import COUNTED, POLL_EVERY, TAKE_AFTER, Seen, Standby
from tests.support.lease_model import Phase, start, worlds

OWNER = Seen(7, "other")


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
    standby = polls(Standby("me"), *[(alive, OWNER)] * count)
    assert not standby.may_take
    standby = polls(standby, (alive, OWNER), now=standby.polled_at)
    assert standby.may_take
    assert standby.expected == OWNER.seq


def test_a_renewal_or_a_new_owner_begins_the_silence_again():
    quiet = polls(Standby("me"), *[(Seen(5, "other"), OWNER)] * 100)
    for alive, owner in ((Seen(6, "other"), OWNER), (Seen(5, "other"), Seen(8, "third"))):
        assert not polls(quiet, *[(alive, owner)] * 4, now=quiet.polled_at).may_take


def test_time_in_which_the_standby_could_not_read_or_did_not_run_is_no_silence():
    alive = Seen(5, "other")
    standby = Standby("me")
    for n in range(100):
        standby = standby.polled(n * 10 * COUNTED, alive, OWNER)
    assert standby.quiet == 0.0
    for n in range(100):
        standby = standby.missed().polled(5000.0 + n * POLL_EVERY, alive, OWNER)
    assert standby.quiet == 0.0
    assert not standby.missed().may_take


def test_without_an_owner_or_after_its_release_the_lease_is_taken_at_once():
    assert polls(Standby("me"), (None, None)).may_take
    released = polls(Standby("me"), (Seen(5, "other", released=True), OWNER))
    assert released.may_take
    assert released.expected == OWNER.seq


def test_a_release_of_an_earlier_owner_does_not_count_against_the_present_one():
    assert not polls(Standby("me"), (Seen(5, "earlier", released=True), OWNER)).may_take


def test_a_lost_acknowledgement_of_the_own_attempt_is_recognized():
    standby = polls(Standby("me"), (Seen(5, "other"), Seen(9, "me")))
    assert standby.owns
    assert not standby.may_take
