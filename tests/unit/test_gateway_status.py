"""The status of a fleet: an appliance that is silent makes it stale, and one that has retired does not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from correlator.cluster.received import Alive
from correlator.gateway import status
from correlator.gateway.status import OFFLINE_AFTER, RETIRED_AFTER, Appliance, RemoteStatus

LIVE = Alive(database="live")


@pytest.fixture
def clock(monkeypatch):
    now = [1_000_000.0]
    monkeypatch.setattr(status, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_a_silent_appliance_makes_the_fleet_stale_until_it_has_been_silent_for_a_day(clock):
    well, silent = Appliance("dc1"), Appliance("dc2")
    fleet, own = RemoteStatus(lambda: [well, silent], lambda: None), RemoteStatus(lambda: [silent], lambda: None)
    for one in (fleet, own):
        one.loading = False
    silent.renewed(LIVE, 0, 0.0)

    def after(seconds: float) -> tuple[str, str]:
        clock[0] += seconds
        well.renewed(LIVE, 0, 0.0)
        fleet.judge()
        own.judge()
        return fleet.database, own.database

    assert after(OFFLINE_AFTER / 2) == ("live", "live")
    assert after(OFFLINE_AFTER) == ("stale", "stale")
    assert after(RETIRED_AFTER / 2) == ("stale", "down")
    assert after(RETIRED_AFTER / 2) == ("live", "down")
    silent.renewed(LIVE, 0, 0.0)
    assert after(OFFLINE_AFTER) == ("stale", "stale")


def test_an_appliance_that_was_never_alive_retires_a_day_after_it_became_known(clock):
    well, never = Appliance("dc1"), Appliance("dc2")
    fleet = RemoteStatus(lambda: [well, never], lambda: None)
    fleet.loading = False
    for passed, state in ((0.0, "stale"), (RETIRED_AFTER, "live")):
        clock[0] += passed
        well.renewed(LIVE, 0, 0.0)
        fleet.judge()
        assert fleet.database == state


def test_an_appliance_that_is_not_live_is_named_with_the_reason_also_if_it_gives_none(clock):
    first, second = Appliance("dc1"), Appliance("dc2")
    fleet = RemoteStatus(lambda: [first, second], lambda: None)
    fleet.loading = False
    first.renewed(Alive(), 0, 0.0)
    second.renewed(Alive(database="stale", error="job_steps cannot be read"), 0, 0.0)
    fleet.judge()
    assert (fleet.database, fleet.public_error) == ("stale", "dc1: the database is not read yet, and 1 more")
    first.renewed(LIVE, 0, 0.0)
    fleet.judge()
    assert (fleet.database, fleet.public_error) == ("stale", "dc2: job_steps cannot be read")


def test_a_fleet_of_retired_appliances_is_down(clock):
    silent = Appliance("dc1")
    silent.renewed(LIVE, 0, 0.0)
    fleet = RemoteStatus(lambda: [silent], lambda: None)
    fleet.loading = False
    clock[0] += 2 * RETIRED_AFTER
    fleet.judge()
    assert fleet.database == "down"
