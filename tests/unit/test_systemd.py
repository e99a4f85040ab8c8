"""The service manager's protocol: what is sent arrives as one datagram, and nothing that is missing raises."""

import os
import socket
import uuid

import pytest

from correlator.daemon.supervisor import notify, watchdog_interval


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """A service manager's socket, and its name as $NOTIFY_SOCKET has it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@correlator-{uuid.uuid4()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name.replace("@", "\0", 1) if name.startswith("@") else name)
        receiver.setblocking(False)
        yield receiver, name


def test_a_state_arrives_as_one_datagram(manager):
    receiver, name = manager
    assert notify("READY=1\nSTATUS=läuft", {"NOTIFY_SOCKET": name})
    assert receiver.recv(100) == "READY=1\nSTATUS=läuft".encode()


@pytest.mark.parametrize(
    "name", ["", "vsock:2:1", "relative", "/nope/notify", "@nobody-listens", "/a\0b", "/" + "x" * 200]
)
def test_without_a_listener_notify_returns_false_and_does_not_raise(name):
    assert notify("READY=1", {"NOTIFY_SOCKET": name}) is False


def test_outside_systemd_nothing_is_sent():
    assert notify("READY=1", {}) is False


def test_the_watchdog_is_fed_twice_in_the_time_allowed():
    assert watchdog_interval({"WATCHDOG_USEC": "30000000"}) == 15.0
    assert watchdog_interval({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}) == 15.0


@pytest.mark.parametrize(
    "environ",
    [
        {}, {"WATCHDOG_USEC": ""}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "me"},
    ],
)  # fmt: skip
def test_without_a_watchdog_for_this_process_there_is_no_interval(environ):
    assert watchdog_interval(environ) is None
