"""A database server, or somebody in between, that asks for the password: it is not sent where others could read it."""

from __future__ import annotations

import contextlib
import random
import re
import ssl
from pathlib import Path

import pytest

from correlator.config.schema import Tls, client_context
from correlator.errors import Away, SourceUnavailable
from correlator.sources.db.mariadb import Address, MariaDBDatabase, MariaDBSession
from tests.support.certificates import Certificates
from tests.support.daemon import Daemon, correlator
from tests.support.eventually import PATIENCE, eventually
from tests.support.hostile_database import (
    CAPABILITIES,
    OK,
    PLUGIN_AUTH,
    SALT,
    SSL,
    HostileDatabase,
    greeting,
    switch,
)

PASSWORD = "the password of the account"

KEY = b"\x01-----BEGIN KEY KEY-----\n" + b"A" * 392 + b"\n-----END KEY KEY-----\n"
"""A public key of the server, for `sha256_password` and `caching_sha2_password`."""

FULL = b"\x01\x04"
"""`caching_sha2_password`: the password is not in the cache, send it."""

NATIVE, SHA2 = "mysql_native_password", "caching_sha2_password"
UNNAMED = CAPABILITIES & ~PLUGIN_AUTH
"""A server from before methods had names."""

UNSAFE: dict[str, tuple[str, int, tuple[bytes, ...]]] = {
    "clear-at-once": ("mysql_clear_password", CAPABILITIES, ()),
    "clear": (NATIVE, CAPABILITIES, (switch("mysql_clear_password"),)),
    "clear-after-a-safe-one": (NATIVE, CAPABILITIES, (switch(NATIVE), switch("mysql_clear_password"))),
    "clear-without-names": (NATIVE, UNNAMED, (switch("mysql_clear_password"),)),
    "old": (NATIVE, CAPABILITIES, (switch("mysql_old_password"),)),
    "old-in-one-byte": (NATIVE, CAPABILITIES, (b"\xfe",)),
    "old-in-one-byte-without-names": (NATIVE, UNNAMED, (b"\xfe",)),
    "old-with-a-challenge": (NATIVE, UNNAMED, (b"\xfe" + SALT,)),
    "old-without-a-name": (NATIVE, CAPABILITIES, (b"\xfe\0" + SALT,)),
    "dialog": (NATIVE, CAPABILITIES, (switch("dialog", b"\x04Password: "),)),
    "sha256-at-once": ("sha256_password", CAPABILITIES, ()),
    "sha256": (NATIVE, CAPABILITIES, (switch("sha256_password"),)),
    "sha2": (NATIVE, CAPABILITIES, (switch(SHA2), FULL)),
    "sha2-at-once": (SHA2, CAPABILITIES, (FULL,)),
    "sha2-with-a-key": (SHA2, CAPABILITIES, (KEY,)),
    "unknown": (NATIVE, CAPABILITIES, (switch("a_method_of_tomorrow"),)),
}
"""What a server asks for: the method and the flags of its greeting, and its packets after that."""


def source(port: int, driver: str, tls: ssl.SSLContext | None = None, within: float = PATIENCE) -> MariaDBDatabase:
    address = Address(port=port, database="x", password=PASSWORD, tls=tls)
    driver = "asyncmy" if driver == "doorbell" else driver
    return MariaDBDatabase(address, driver=driver, connect_timeout=within, query_timeout=within)  # type: ignore[arg-type]


async def opened(database: MariaDBDatabase, driver: str) -> MariaDBSession:
    return await (database.open_with_aiomysql() if driver == "doorbell" else database.open())


@pytest.fixture(params=["aiomysql", "asyncmy", "doorbell"])
def driver(request: pytest.FixtureRequest) -> str:
    """What opens the connection."""
    return str(request.param)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    made = Certificates.create(tmp_path_factory.mktemp("certificates"))
    made.make("server", "IP:127.0.0.1")
    made.make("other", "DNS:elsewhere")
    return made


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("then", [(), (switch("mysql_clear_password"),)])
async def test_where_tls_was_taken_out_of_the_greeting_nothing_is_sent(
    certificates: Certificates, driver: str, verify: bool, then: tuple[bytes, ...]
) -> None:
    server = HostileDatabase(greeting(), then)
    async with server.listening() as port:
        context = client_context(Tls(ca=certificates.ca, verify=verify))
        with pytest.raises(SourceUnavailable) as given_up:
            await opened(source(port, driver, context), driver)
    assert (server.connections, server.received) == (1, [])
    assert given_up.value.reason is Away.UNSAFE_LOGIN
    assert "the server offers no TLS" in str(given_up.value)


@pytest.mark.parametrize("ask", UNSAFE)
async def test_without_tls_no_method_is_answered_that_would_show_the_password(driver: str, ask: str) -> None:
    method, flags, login = UNSAFE[ask]
    server = HostileDatabase(greeting(method, flags), login)
    async with server.listening() as port:
        with pytest.raises(SourceUnavailable) as given_up:
            await opened(source(port, driver), driver)
    assert (server.connections, server.revealed) == (1, [])
    assert not any(map(reveals, server.received)), server.received
    assert given_up.value.reason is Away.UNSAFE_LOGIN
    assert re.search(r"asked for the (password itself|login method '.*), .*Set database\.tls", str(given_up.value))


@pytest.mark.parametrize("ask", UNSAFE)
async def test_tls_with_anybody_protects_no_password(certificates: Certificates, driver: str, ask: str) -> None:
    method, flags, login = UNSAFE[ask]
    server = HostileDatabase(greeting(method, flags | SSL), login, certificates.server("other"))
    async with server.listening() as port:
        with pytest.raises(SourceUnavailable) as given_up:
            await opened(source(port, driver, client_context(Tls(verify=False))), driver)
    assert server.revealed == []
    assert not any(map(reveals, server.received)), server.received
    assert given_up.value.reason is Away.UNSAFE_LOGIN


@pytest.mark.parametrize("ask", ["clear", "sha2", "sha256"])
async def test_a_server_with_the_right_certificate_may_ask_for_the_password(
    certificates: Certificates, driver: str, ask: str
) -> None:
    server = HostileDatabase(greeting(capabilities=CAPABILITIES | SSL), UNSAFE[ask][2], certificates.server("server"))
    async with server.listening() as port:
        database = source(port, driver, client_context(Tls(ca=certificates.ca)))
        with pytest.raises(SourceUnavailable):  # it does not go on
            await opened(database, driver)
    assert server.revealed == [PASSWORD.encode() + b"\0"]


async def test_whatever_a_server_asks_for_one_after_the_other_shows_no_password(driver: str) -> None:
    dice = random.Random(38)
    names = ["mysql_native_password", "mysql_clear_password", "mysql_old_password", "sha256_password"]
    names += ["caching_sha2_password", "client_ed25519", "dialog", "MYSQL_CLEAR_PASSWORD", "auth_gssapi_client", ""]

    def said() -> bytes:
        match dice.randrange(6):
            case 0 | 1:
                return switch(dice.choice(names), dice.choice((SALT + b"\0", b"\x04Password: ", b"", SALT[:8])))
            case 2:
                return dice.choice((FULL, b"\x01\x03", KEY, b"\x01", b"\x01\x02"))
            case 3:
                return b"\xfe" + dice.randbytes(dice.randrange(12))
            case 4:
                return OK
            case _:
                return bytes([dice.choice((0, 1, 2, 0xFE))]) + dice.randbytes(dice.randrange(30))

    for _ in range(60):
        flags = CAPABILITIES & ~dice.choice((0, 0, PLUGIN_AUTH, 0x8000, 0x0020_0000))
        script = tuple(said() for _ in range(dice.randrange(6)))
        server = HostileDatabase(greeting(dice.choice(names), flags), script)
        async with server.listening() as port:
            with contextlib.suppress(SourceUnavailable):
                await (await opened(source(port, driver, within=1.0), driver)).close()
        assert not any(map(reveals, server.received)), (script, server.received)


@pytest.mark.parametrize("command", ["run", "tap", "doctor"])
async def test_no_command_sends_the_password_to_a_server_that_asks_for_it(tmp_path: Path, command: str) -> None:
    server = HostileDatabase(greeting(), (switch("mysql_clear_password"),))
    async with server.listening() as port:
        url = f"mysql://u@127.0.0.1:{port}/x"
        daemon = Daemon(tmp_path, database__url=url, database__password=PASSWORD, database__doorbell="true")
        if command == "doctor":
            _, said, _ = await correlator(daemon, "doctor")
        else:
            daemon.command = command
            async with contextlib.AsyncExitStack() as stack:
                stack.push_async_callback(daemon.close)
                await daemon.launch()
                await eventually(lambda: server.connections > 3)  # of the log, of the tables, of the doorbell
                await eventually(lambda: "mysql_clear_password" in daemon.log())
                said = daemon.log()
    assert server.revealed == []
    assert not any(map(reveals, server.received)), server.received
    assert "the server asked for the login method 'mysql_clear_password'" in said, said
    assert PASSWORD not in said


def reveals(answer: bytes) -> bool:
    """Whether the server learns the password from an answer of the client.

    An answer of `mysql_old_password` has nine bytes: passwords are found from it in seconds.
    """
    return PASSWORD.encode() in answer or (len(answer) == 9 and answer[-1] == 0)
