"""What the service manager gets: watchdog pings only while every task makes progress, and one status line."""

import os
import socket
import uuid
from unittest.mock import create_autospec

import pytest

from correlator.app import core_of
from correlator.config.loading import load
from correlator.daemon import Supervisor, notify, watchdog_interval
from correlator.jobs.index import Index
from correlator.ops import metrics
from correlator.ops.event_loop import Heartbeats
from correlator.pipeline.pipeline import LocalHub
from tests.support.background import in_background
from tests.support.eventually import eventually
from tests.support.metric_values import value
from tests.support.service_manager import ServiceManager


@pytest.fixture
def environ(manager: ServiceManager) -> dict[str, str]:
    """What a service manager gives along."""
    return {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}


@pytest.fixture
def hub() -> LocalHub:
    hub = LocalHub(Index())
    hub.status.loading = False
    hub.status.set_state("live")
    return hub


def test_while_it_loads_the_status_line_names_what_is_pending(manager, environ, hub):
    supervisor = Supervisor(hub, environ)
    hub.status.loading = True
    supervisor.serves("http://127.0.0.1:8686")
    assert manager.new_lines() == ["READY=1", "STATUS=reading the tables"], "READY=1 never comes again"
    hub.status.set_state("down", "MariaDB: refused")
    supervisor.check()
    assert manager.new_lines() == ["WATCHDOG=1", "STATUS=waiting for the database: MariaDB: refused"]
    hub.status.set_state("live")
    supervisor.check()
    assert manager.new_lines()[-1] == "STATUS=reading the tables"
    assert hub.status.describe_database()["loading"] == {"done": 0, "total": 0}
    hub.status.past_progress(250, 1000)
    supervisor.check()
    assert manager.new_lines()[-1] == "STATUS=reading the log: 25 %"
    assert hub.status.describe_database()["loading"] == {"done": 250, "total": 1000}


def test_an_unreachable_database_is_reported_and_keeps_the_watchdog_pings(manager, environ, hub):
    supervisor = Supervisor(hub, environ)
    supervisor.serves("http://127.0.0.1:8686")
    hub.status.set_state("down", "MariaDB: refused\nby its server")
    hub.readiness["mqtt"] = lambda: {"ok": False, "error": "no route"}
    manager.new_lines()
    supervisor.check()
    assert manager.new_lines() == [
        "WATCHDOG=1",
        (
            "STATUS=the database is unreachable: MariaDB: refused by its server; mqtt: no route;"
            " 0 jobs running of 0, 0 clients"
        ),
    ]


def test_a_task_that_is_stuck_is_named_and_the_watchdog_waits_in_vain(manager, environ, hub, caplog):
    now = 100.0
    hub.live = Heartbeats(lambda: now)
    supervisor = Supervisor(hub, environ)
    supervisor.serves("http://127.0.0.1:8686")
    withheld = value(metrics.WATCHDOG_WITHHELD)
    with hub.live.heartbeat("tail", 10.0) as beat:
        now += 11.0
        manager.new_lines()
        supervisor.check()
        supervisor.check()
        assert manager.new_lines() == ["STATUS=tail is stuck; 0 jobs running of 0, 0 clients"]
        assert value(metrics.WATCHDOG_WITHHELD) == withheld + 2
        assert [r.message for r in caplog.records if r.levelname == "CRITICAL"] == [
            "tail has made no progress for 11 s: watchdog ping withheld"
        ]
        beat()
        supervisor.check()
        assert manager.new_lines()[0] == "WATCHDOG=1"


async def test_it_beats_while_it_serves_and_every_task_makes_progress(hub, monkeypatch):
    beats = 0

    def beat() -> None:
        nonlocal beats
        beats += 1

    supervisor = Supervisor(hub, {"WATCHDOG_USEC": "2000"})
    checked = create_autospec(supervisor.check, side_effect=supervisor.check)
    monkeypatch.setattr(supervisor, "check", checked)

    async def checks_on() -> None:
        before = checked.call_count
        await eventually(lambda: checked.call_count > before + 2)

    async with in_background(supervisor.run(beat)):
        await checks_on()
        assert beats == 0, "it does not serve yet: a start may take long"
        supervisor.serves("http://127.0.0.1:8686")
        await eventually(lambda: beats > 2)
        with hub.live.heartbeat("tail", within=-1.0):
            await checks_on()
            before = beats
            await checks_on()
            assert beats == before
        await eventually(lambda: beats > before)


def test_a_reload_is_announced_at_its_begin_and_its_end(manager, environ, hub):
    supervisor = Supervisor(hub, environ)
    supervisor.reloads()()
    assert manager.new_lines() == [], "one before it serves does not end the start"
    supervisor.serves("http://127.0.0.1:8686")
    manager.new_lines()
    ended = supervisor.reloads()
    began = manager.new_lines()
    assert began[0] == "RELOADING=1"
    assert began[1].startswith("MONOTONIC_USEC=")
    assert int(began[1].partition("=")[2]) > 0
    ended()
    assert manager.new_lines() == ["READY=1"]


def test_no_task_counts_as_stuck_after_a_pause_of_the_whole_process(manager, environ, hub, caplog):
    now = 100.0
    hub.live = Heartbeats(lambda: now)
    supervisor = Supervisor(hub, environ)
    supervisor.serves("http://127.0.0.1:8686")
    with hub.live.heartbeat("tail", 10.0):
        now += 36.0
        manager.new_lines()
        supervisor.check(late=35.0)
    assert manager.new_lines() == ["WATCHDOG=1"]
    assert [r.message[:24] for r in caplog.records] == ["nothing ran for 35 s: th"]


def test_an_error_of_any_length_does_not_suppress_a_watchdog_ping(manager, environ, hub):
    supervisor = Supervisor(hub, environ)
    hub.status.set_state("down", "ö" * 300_000)
    supervisor.serves("http://127.0.0.1:8686")
    supervisor.check()
    ready, status, watchdog = manager.new_lines()
    assert (ready, watchdog) == ("READY=1", "WATCHDOG=1")
    assert len(status.encode()) < 2000


def test_a_task_is_stuck_when_it_is_silent_for_longer_than_it_may_and_none_that_is_over():
    now = 100.0
    live = Heartbeats(lambda: now)
    with live.heartbeat("tail", 10.0) as tail, live.heartbeat("disk", 300.0):
        now += 10.0
        assert live.stuck() == {}
        now += 5.0
        assert live.stuck() == {"tail": 15.0}
        with live.heartbeat("tail", 10.0) as second:
            now += 11.0
            assert live.stuck() == {"tail": 26.0}, "of two with one name the longest silence counts"
            second()
            assert live.stuck() == {"tail": 26.0}
        tail()
        assert live.stuck() == {}
        now += 40.0
        live.excuse(35.0)  # the whole process paused
        assert live.stuck() == {}
        now += 6.0
        assert live.stuck() == {"tail": 11.0}
    assert live.stuck() == {}


# -- The service manager's protocol: what is sent arrives as one datagram, and nothing that is missing raises


@pytest.fixture(params=["path", "abstract"])
def receiving(request, tmp_path):
    """A service manager's socket, and its name as $NOTIFY_SOCKET has it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@correlator-{uuid.uuid4()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name.replace("@", "\0", 1) if name.startswith("@") else name)
        receiver.setblocking(False)
        yield receiver, name


def test_a_state_arrives_as_one_datagram(receiving):
    receiver, name = receiving
    assert notify("READY=1\nSTATUS=läuft", {"NOTIFY_SOCKET": name})
    assert receiver.recv(100) == "READY=1\nSTATUS=läuft".encode()


@pytest.mark.parametrize(
    "name", ["", "vsock:2:1", "relative", "/nope/notify", "@nobody-listens", "/a\0b", "/" + "x" * 200]
)
def test_without_a_listener_notify_returns_false_and_does_not_raise(name):
    assert notify("READY=1", {"NOTIFY_SOCKET": name} if name else {}) is False


@pytest.mark.parametrize(
    ("watchdog", "interval"),
    [
        ("", None), ("0", None), ("soon", None), ("30000000", 15.0), ("30000000 1", None), ("30000000 me", None),
        ("30000000 {pid}", 15.0),
    ],
)  # fmt: skip
def test_the_watchdog_of_this_process_is_fed_twice_in_the_time_allowed(watchdog, interval):
    given = dict(zip(("WATCHDOG_USEC", "WATCHDOG_PID"), watchdog.format(pid=os.getpid()).split(), strict=False))
    assert watchdog_interval(given) == interval


@pytest.mark.parametrize("key", ["poll_interval", "idle_poll_interval", "reconcile_interval"])
def test_a_task_of_the_source_that_pauses_as_long_as_configured_is_not_stuck(tmp_path, key):
    file = tmp_path / "correlator.toml"
    file.write_text(f'[database]\nurl = "sqlite:///x"\n{key} = "5m"\n')
    config, now = load(file, {"HOME": str(tmp_path)}), 0.0
    source = core_of(config, lambda: config).source
    live = Heartbeats(lambda: now)
    with live.heartbeat("a task", source.patience):
        now = 300.0 + 3 * config.database.query_timeout
        assert not live.stuck()
        now += 60.0
        assert live.stuck()
