"""What the service manager is told: life only while every task makes progress, and one line of truth."""

import os

import pytest

from correlator import metrics
from correlator.hub import Hub
from correlator.jobs.index import Index
from correlator.liveness import Liveness
from correlator.supervisor import Supervisor
from tests.manager import Manager


@pytest.fixture
def environ(manager: Manager) -> dict[str, str]:
    """What a service manager gives along."""
    return {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}


@pytest.fixture
def hub() -> Hub:
    hub = Hub(Index())
    hub.loading = None
    hub.set_source("live")
    return hub


def test_until_it_is_ready_every_look_prolongs_the_start_and_tells_what_is_waited_for(manager, environ, hub):
    supervisor = Supervisor(hub, environ)
    hub.loading = (0, 0)
    hub.set_source("down", "MariaDB: refused")
    supervisor.look()
    assert manager.heard() == [
        "WATCHDOG=1",
        "EXTEND_TIMEOUT_USEC=60000000",
        "STATUS=waiting for the database: MariaDB: refused",
    ]
    hub.set_source("live")
    hub.loading = (250, 1000)
    supervisor.look()
    assert manager.heard()[-1] == "STATUS=reading the log: 25 %"


def test_ready_is_told_once_and_from_then_on_nothing_prolongs_the_start(manager, environ, hub):
    supervisor = Supervisor(hub, environ)
    supervisor.began()
    assert manager.heard() == ["READY=1", "STATUS=0 jobs running of 0, 0 readers"]
    supervisor.look()
    assert manager.heard() == ["WATCHDOG=1"]


def test_a_database_that_is_away_is_told_and_is_no_sickness(manager, environ, hub):
    supervisor = Supervisor(hub, environ)
    supervisor.began()
    hub.set_source("down", "MariaDB: refused\nby its server")
    hub.parts["mqtt"] = lambda: {"ok": False, "error": "no route"}
    manager.heard()
    supervisor.look()
    assert manager.heard() == [
        "WATCHDOG=1",
        "STATUS=the database is away: MariaDB: refused by its server; mqtt: no route; 0 jobs running of 0, 0 readers",
    ]


def test_a_task_that_is_stuck_is_named_and_the_watchdog_waits_in_vain(manager, environ, hub, caplog):
    now = 100.0
    hub.live = Liveness(lambda: now)
    supervisor = Supervisor(hub, environ)
    supervisor.began()
    withheld = metrics.WATCHDOG_WITHHELD._value.get()
    with hub.live.part("tail", 10.0) as beat:
        now += 11.0
        manager.heard()
        supervisor.look()
        supervisor.look()
        assert manager.heard() == ["STATUS=tail is stuck; 0 jobs running of 0, 0 readers"]
        assert metrics.WATCHDOG_WITHHELD._value.get() == withheld + 2
        assert [r.message for r in caplog.records if r.levelname == "CRITICAL"] == [
            "tail has made no progress for 11 s: the watchdog is not told that we live"
        ]
        beat()
        supervisor.look()
        assert manager.heard()[0] == "WATCHDOG=1"


def test_a_reload_is_told_from_its_beginning_to_its_end(manager, environ, hub):
    supervisor = Supervisor(hub, environ)
    supervisor.began()
    manager.heard()
    ended = supervisor.reloads()
    began = manager.heard()
    assert began[0] == "RELOADING=1"
    assert began[1].startswith("MONOTONIC_USEC=")
    assert int(began[1].partition("=")[2]) > 0
    ended()
    assert manager.heard() == ["READY=1"]


def test_a_reload_before_it_is_ready_does_not_end_the_start(manager, environ, hub):
    supervisor = Supervisor(hub, environ)
    supervisor.reloads()()
    assert manager.heard() == []


def test_after_a_pause_of_the_whole_process_nobody_is_stuck(manager, environ, hub, caplog):
    now = 100.0
    hub.live = Liveness(lambda: now)
    supervisor = Supervisor(hub, environ)
    supervisor.began()
    with hub.live.part("tail", 10.0):
        now += 36.0
        manager.heard()
        supervisor.look(late=35.0)
    assert manager.heard() == ["WATCHDOG=1"]
    assert [r.message[:24] for r in caplog.records] == ["nothing ran for 35 s: th"]


def test_an_error_of_any_length_does_not_keep_a_sign_of_life_from_being_heard(manager, environ, hub):
    supervisor = Supervisor(hub, environ)
    hub.set_source("down", "ö" * 300_000)
    supervisor.began()
    supervisor.look()
    ready, status, watchdog = manager.heard()
    assert (ready, watchdog) == ("READY=1", "WATCHDOG=1")
    assert len(status.encode()) < 2000
