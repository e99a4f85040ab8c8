"""The status of a fleet: an appliance that is silent makes it stale, and one that has retired does not."""

from __future__ import annotations

import math

import pytest

from correlator.cluster import streams
from correlator.cluster.received import UNWRITTEN_AFTER, Alive
from correlator.gateway.fleet import OFFLINE_AFTER, RETIRED_AFTER, Appliance, RemoteStatus

LIVE = Alive(database="live")


def appliance(name: str, clock: list[float]) -> Appliance:
    return Appliance(name, lambda: (0.0, math.inf), lambda: clock[0])


@pytest.fixture
def clock():
    return [1_000_000.0]


def test_a_silent_appliance_makes_the_fleet_stale_until_it_has_been_silent_for_a_day(clock):
    """Alone it is down then. One that was never alive retires a day after it became known."""
    well, silent, never = appliance("dc1", clock), appliance("dc2", clock), appliance("dc3", clock)
    fleet = RemoteStatus(lambda: [well, silent], lambda: None, lambda: clock[0])
    own = RemoteStatus(lambda: [silent], lambda: None, lambda: clock[0])
    of_new = RemoteStatus(lambda: [well, never], lambda: None, lambda: clock[0])
    for one in (fleet, own, of_new):
        one.loading = False
    silent.renewed(LIVE, 0, None)

    def after(seconds: float) -> tuple[str, str, str]:
        clock[0] += seconds
        well.renewed(LIVE, 0, None)
        for one in (fleet, own, of_new):
            one.judge()
        return fleet.database, own.database, of_new.database

    assert after(OFFLINE_AFTER / 2) == ("live", "live", "stale")
    assert after(OFFLINE_AFTER) == ("stale", "stale", "stale")
    assert after(RETIRED_AFTER / 2) == ("stale", "down", "stale")
    assert after(RETIRED_AFTER / 2) == ("live", "down", "live")
    silent.renewed(LIVE, 0, None)
    assert after(OFFLINE_AFTER) == ("stale", "stale", "live")


def test_an_appliance_that_is_not_live_is_named_with_its_state_and_no_word_of_its_collector(clock):
    first, second = appliance("dc1", clock), appliance("dc2", clock)
    fleet = RemoteStatus(lambda: [first, second], lambda: None, lambda: clock[0])
    fleet.loading = False
    first.renewed(Alive(), 0, None)
    second.renewed(Alive(database="stale", error="job_steps cannot be read"), 0, None)
    fleet.judge()
    assert (fleet.database, fleet.public_error) == ("stale", "dc1: its database is down, and 1 more")
    first.renewed(LIVE, 0, None)
    fleet.judge()
    assert (fleet.database, fleet.public_error) == ("stale", "dc2: its database is stale")


def test_a_clock_that_differs_makes_nobody_offline_and_an_old_value_makes_nobody_alive(clock):
    listens: list[float | None] = [None]
    one = Appliance("dc1", lambda: (listens[0], clock[0]) if listens[0] is not None else None, lambda: clock[0])
    fleet = RemoteStatus(lambda: [one], lambda: None, lambda: clock[0])
    fleet.loading = False

    def state() -> tuple[bool | None, str]:
        fleet.judge()
        return one.online(), fleet.database

    one.renewed(LIVE, 0, 0.0)  # What the key had when the reading began, however new it is.
    assert state() == (None, "stale")
    listens[0] = clock[0]
    for at in (0, 1 << 50, -(1 << 50)):
        one.renewed(LIVE, at, None)
        assert state() == (True, "live")
    clock[0] += OFFLINE_AFTER
    assert state() == (False, "stale")


def test_an_appliance_is_unknown_until_a_renewal_should_have_come_also_after_a_reconnection(clock):
    listens: list[float | None] = [clock[0]]
    one = Appliance("dc1", lambda: (listens[0], clock[0]) if listens[0] is not None else None, lambda: clock[0])
    one.renewed(LIVE, 0, 300.0)
    assert (one.online(), one.error(), one.behind()) == (
        None,
        "no sign of life of the collector has come since the cluster can be read and written",
        300.0,
    )
    clock[0] += OFFLINE_AFTER
    assert (one.online(), one.behind()) == (False, 300.0 + OFFLINE_AFTER)
    listens[0] = None
    assert one.online() is None
    listens[0] = clock[0]
    assert one.online() is None


def test_an_appliance_is_unknown_and_not_offline_while_no_collector_could_write(clock):
    listens = [clock[0], clock[0]]
    one = Appliance("dc1", lambda: (listens[0], listens[1]), lambda: clock[0])
    one.renewed(LIVE, 0, None)
    clock[0] += 60
    assert (one.online(), one.error()) == (
        None,
        "no sign of life of the collector has come since the cluster can be read and written",
    )
    listens[1] += OFFLINE_AFTER - 0.1
    assert one.online() is None
    listens[1] += 0.1
    assert (one.online(), one.error()) == (False, "the collector is offline")
    one.renewed(LIVE, 0, None)
    assert one.online() is True


@pytest.mark.parametrize(
    ("active", "age"),
    [
        ([], 0.0),
        ([0.3], 0.3),
        ([7.0, 0.3], 0.3),
        ([7.0, 8.0], 7.0),
        ([9.0, 0.1, 8.0, 0.2], 0.2),
        ([9.0, 0.1, 8.0, 7.0], 7.0),
        ([None, None], math.inf),
    ],
)
def test_a_stream_can_be_written_while_enough_servers_answer_its_leader(active, age):
    replicas = [{"name": f"n{n}", "active": int((a or 0) * 1e9)} for n, a in enumerate(active)]
    assert streams.quorum_age({"cluster": {"leader": "n9", "replicas": replicas}}) == pytest.approx(age)


def test_a_stream_without_a_leader_or_replicas_that_are_offline_count_as_nobody():
    offline = [{"name": n, "active": 1, "offline": True} for n in ("n1", "n2")]
    assert streams.quorum_age({"cluster": {"leader": "n9", "replicas": offline}}) == math.inf
    assert streams.quorum_age({"cluster": {"replicas": []}}) == streams.quorum_age(None) == math.inf
    assert streams.quorum_age({"config": {}}) == 0.0  # one server alone


def test_changes_that_the_cluster_lacks_make_an_appliance_stale_with_their_age_and_the_reason(clock):
    one = appliance("dc1", clock)
    fleet = RemoteStatus(lambda: [one], lambda: None, lambda: clock[0])
    fleet.loading = False
    for seconds, database in ((UNWRITTEN_AFTER - 0.1, "live"), (42.0, "stale")):
        one.renewed(Alive(database="live", unwritten_seconds=seconds, write_error="maximum bytes exceeded"), 0, None)
        fleet.judge()
        assert fleet.database == database
    assert fleet.error is not None
    assert fleet.error.endswith("changes of the last 42 s are not in the cluster")
    assert "maximum bytes exceeded" in (one.error() or "")
    assert one.behind() == 42.0
