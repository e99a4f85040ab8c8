"""Ports of this host that a user has taken while the program that belongs there is down: no secret is sent there."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from correlator import listeners
from correlator.errors import ForeignListener
from tests.support.daemon import Daemon, correlator
from tests.support.eventually import eventually
from tests.support.hostile_database import OK, greeting, packet
from tests.support.listening_user import SERVICE, STRANGER, ListeningUser, listening_as

PASSWORD, BROKER_PASSWORD, TOKEN = "password-of-the-database", "password-of-the-broker", "token-of-the-daemon"

READY = b'{"ready":true,"parts":{}}'
HTTP = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(READY), READY)

as_root = pytest.mark.skipif(os.getuid() != 0, reason="listens as another user")


@pytest.mark.parametrize(
    ("uid", "stranger"),
    [
        *((0, False), (101, False), (999, False), (1000, True), (60_000, True)),
        *((61_184, False), (65_519, False), (65_534, False)),  # DynamicUser=, and nobody
        *((65_536, True), (100_999, True), (1_000_000_000, True)),
    ],
)
def test_people_are_strangers_and_root_services_and_oneself_are_not(uid, stranger):
    assert listeners.is_stranger(uid) == (stranger and uid != os.getuid())
    assert not listeners.is_stranger(os.getuid())


@pytest.mark.parametrize("family", ["127.0.0.1", "::1", "dual", "unix"])
@pytest.mark.parametrize("accepted", [False, True])
def test_the_owner_of_the_other_end_is_known_before_and_after_it_accepts(family, accepted, tmp_path):
    if family == "unix":
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(tmp_path / "socket"))
    else:
        version = socket.AF_INET if family == "127.0.0.1" else socket.AF_INET6
        host = {"dual": "::"}.get(family, family)
        listener = socket.create_server((host, 0), family=version, dualstack_ipv6=family == "dual")
        host = "127.0.0.1" if family == "dual" else family
        client = socket.create_connection((host, listener.getsockname()[1]))
    with listener, client:
        if accepted:
            with listener.accept()[0]:
                assert listeners.owner_of_peer(client) == os.getuid()
        else:
            assert listeners.owner_of_peer(client) == os.getuid()


def test_nobody_is_known_at_the_other_end_of_a_connection_to_another_host():
    """Even if a user of this host listens at a port with that number."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:

        class Elsewhere:
            family = client.family

            def getsockname(self) -> tuple[str, int]:
                return ("192.0.2.1", client.getsockname()[1])

            def getpeername(self) -> tuple[str, int]:
                return ("192.0.2.2", client.getpeername()[1])

        assert listeners.owner_of_peer(Elsewhere()) is None
        listeners.check_listener(Elsewhere(), "the password", "nothing")


@pytest.fixture
def users(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[ListeningUser]]:
    """One user at the ports of the database, the broker and the daemon."""
    ok = packet(2, OK)
    with (
        listening_as(request.param, tmp_path / "database", hello=greeting(), answer=ok) as database,
        listening_as(request.param, tmp_path / "broker", answer=b"\x20\x03\0\0\0") as broker,
        listening_as(request.param, tmp_path / "daemon", answer=HTTP) as daemon,
    ):
        yield [database, broker, daemon]


def settings(users: list[ListeningUser], tmp_path: Path) -> Daemon:
    """The configuration of a daemon that is down, as are its database and its broker."""
    database, broker, daemon = users
    (tmp_path / "token").write_text(TOKEN)
    found = Daemon(
        tmp_path,
        database__url=f"mysql://u@127.0.0.1:{database.port}/x",
        database__password=PASSWORD,
        mqtt__url=f"mqtt://127.0.0.1:{broker.port}",
        mqtt__username="u",
        mqtt__password=BROKER_PASSWORD,
        http__tokens_file=tmp_path / "token",
    )
    found.becomes({"CORRELATOR_HTTP__LISTEN": f"127.0.0.1:{daemon.port}"})
    return found


COMMANDS = (("jobs",), ("watch", "x"), ("logs", "x"), ("show", "x"), ("history", "x"))


@as_root
@pytest.mark.parametrize("users", [STRANGER], indirect=True)
async def test_the_doctor_sends_no_secret_to_a_user_and_says_who_it_is(users, tmp_path):
    down = settings(users, tmp_path)
    _, said, _ = await correlator(down, "doctor", CORRELATOR_TOKEN=TOKEN)
    assert [user.received for user in users] == [b"", b"", b""]
    for user in users:
        assert f"uid {STRANGER}, which has no name here listens at port {user.port} of this host" in said, said
        assert f"ss -ltnp 'sport = :{user.port}'" in said, said


@as_root
@pytest.mark.parametrize("users", [STRANGER], indirect=True)
async def test_no_command_sends_the_token_to_a_user(users, tmp_path):
    down = settings(users, tmp_path)
    url = f"http://127.0.0.1:{users[2].port}"
    for command in COMMANDS:
        code, _, errors = await correlator(down, *command, CORRELATOR_TOKEN=TOKEN, CORRELATOR_URL=url)
        assert users[2].received == b"", command
        assert "the token was not sent" in errors, (command, errors)
        assert code != 0


@as_root
@pytest.mark.parametrize("command", ["run", "tap"])
@pytest.mark.parametrize("users", [STRANGER], indirect=True)
async def test_the_daemon_and_tap_send_no_password_to_a_user(users, tmp_path, command):
    down = settings(users, tmp_path)
    down.becomes({})
    down.command = command
    try:
        await down.launch()
        await eventually(lambda: "the password of the database was not sent" in down.log())
        if command == "run":
            await eventually(lambda: "the password of the broker was not sent" in down.log())
    finally:
        await down.close()
    assert [user.received for user in users] == [b"", b"", b""]


@as_root
@pytest.mark.parametrize("users", [SERVICE], indirect=True)
async def test_secrets_are_sent_to_services_of_this_host(users, tmp_path):
    down = settings(users, tmp_path)
    await correlator(down, "doctor", CORRELATOR_TOKEN=TOKEN)
    database, broker, daemon = (user.received for user in users)
    assert b"mysql_native_password" in database  # the answer to its challenge
    assert BROKER_PASSWORD.encode() in broker
    assert TOKEN.encode() in daemon


@as_root
def test_a_socket_of_a_user_gets_no_password(tmp_path):
    """In a folder where users may write, such as /tmp. Who listens is whoever called `listen`."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(path)
        os.seteuid(STRANGER)
        try:
            listener.listen()
        finally:
            os.seteuid(0)
        client.connect(path)
        with pytest.raises(ForeignListener, match=f"uid {STRANGER}, which has no name here listens at {path}"):
            listeners.check_listener(client, "the password", "nothing")
