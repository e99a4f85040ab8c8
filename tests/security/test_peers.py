"""Servers that mean harm: a database and a broker that lie, send noise, or ask for a file. The daemon lives on."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import aiomqtt
import pytest

from correlator.config.schema import Tls, client_context
from correlator.errors import SourceUnavailable
from correlator.sources.db.mariadb import Address, MariaDBDatabase
from tests.support.accepting import accepting
from tests.support.background import in_background
from tests.support.certificates import Certificates
from tests.support.daemon import HELLO, Daemon
from tests.support.eventually import PATIENCE, eventually
from tests.support.hostile_database import CAPABILITIES, OK, SSL, greeting, packet, read_packet
from tests.support.mariadb import Database
from tests.support.mosquitto import Mosquitto
from tests.support.servers import free_port

DRIVERS = ("aiomysql", "asyncmy")

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def listening(talk: Talk, **options: Any) -> AsyncIterator[int]:
    """A port where every connection is treated to `talk`."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await talk(reader, writer)

    port = free_port()
    async with accepting(answer, port, **options):
        yield port


GREETING = greeting()


def source(port: int, driver: str, within: float = 2.0, **more: object) -> MariaDBDatabase:
    address = Address(port=port, database="x", **more)  # type: ignore[arg-type]
    return MariaDBDatabase(address, driver=driver, connect_timeout=within, query_timeout=within)  # type: ignore[arg-type]


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_database_server_gets_no_local_file(driver: str, tmp_path: Path) -> None:
    """LOCAL INFILE: the server answers a query with the name of a file that the client is to send."""
    secret = tmp_path / "secret"
    secret.write_text("the contents of a file")
    login, received = b"", bytearray()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal login
        writer.write(GREETING)
        number, login = await read_packet(reader)
        writer.write(packet(number + 1, OK))
        await read_packet(reader)
        writer.write(packet(1, b"\xfb" + str(secret).encode()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                while more := await reader.read(1000):
                    received.extend(more)

    async with listening(talk) as port:
        with pytest.raises(SourceUnavailable):
            await source(port, driver).open()
    assert login
    assert not login[0] & 0x80  # CLIENT_LOCAL_FILES: it does not even say that it could
    assert b"contents" not in received


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_database_server_that_sends_noise_is_one_that_is_away(driver: str) -> None:
    dice = random.Random(7)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greeting = bytearray(GREETING)
        for _ in range(dice.randrange(4)):
            greeting[dice.randrange(len(greeting))] = dice.randrange(256)
        writer.write(dice.randbytes(dice.randrange(300)) if dice.random() < 0.3 else greeting)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                number, _ = await read_packet(reader)
                writer.write(packet(number + 1, OK if dice.random() < 0.7 else dice.randbytes(9)))
                while True:
                    await read_packet(reader)
                    writer.write(packet(1, dice.randbytes(dice.randrange(200))))

    async with listening(talk) as port:
        for _ in range(12):
            with pytest.raises(SourceUnavailable):
                await source(port, driver).open()


ASKED = b"SELECT /* answered by the test */"


async def relayed(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: int, answer: Callable[[], bytes]
) -> None:
    """Pass packets to the server at `target` and back, but give a query that begins with `ASKED` the `answer`.

    It is the last one of its connection.
    """
    server_reader, server_writer = await asyncio.open_connection("127.0.0.1", target)

    async def back() -> None:
        while more := await server_reader.read(1 << 16):
            writer.write(more)

    try:
        async with in_background(back()):
            while True:
                number, content = await read_packet(reader)
                if content[1:].startswith(ASKED):
                    writer.write(answer())
                    writer.write_eof()
                else:
                    server_writer.write(packet(number, content))
    finally:
        server_writer.close()
        await server_writer.wait_closed()


def column(kind: int) -> bytes:
    """The definition of a column."""
    names = b"".join(bytes([len(name)]) + name for name in (b"def", b"", b"t", b"t", b"c", b"c"))
    return names + b"\x0c" + struct.pack("<HIBHB", 45, 1 << 20, kind, 0, 0) + b"\0\0"


VALUES = (
    b"\xfb",
    b"\0",
    b"\x011",
    b"\x03nan",
    b"\x02\xff\xfe",
    b"\xfe\xff\xff\xff\xff\xff\xff\xff\x7fx",
    b"\xfd\xff\xff\xff",
)
"""Of a row: NULL, texts, and lengths of which nothing follows."""

KINDS = (1, 3, 5, 8, 10, 11, 12, 13, 16, 245, 246, 252, 253, 254, 200)
"""Types of columns. There is no type 200."""


def answer_of(dice: random.Random) -> bytes:
    """What a server may answer to a query: rows of any number of values, and an end that fits or does not."""
    columns = dice.choice((0, 1, 2, 2, 2, 200))
    end = dice.choice(
        (*[b"\xfe\0\0\2\0"] * 5, b"\xfe\0\0\x0a\0", b"\xff\x28\x04#42000", b"\0\0\0\2\0\0\0", b"", b"\xfe")
    )
    definitions = [column(dice.choice(KINDS)) for _ in range(columns)]
    if definitions and dice.random() < 0.2:
        whole = definitions[-1]
        broken = (whole[: dice.randrange(len(whole))], dice.randbytes(28), b"\xfe" + b"\xff" * 7 + b"\x7f" + whole)
        definitions[-1] = dice.choice((*broken, b"\xfd\0\0\xfb\0\xfe\xfa\x01\xfe\0", b"\xfb" + whole))
    packets = [bytes([columns]), *definitions, b"\xfe\0\0\2\0"]
    width = dice.choice((columns, 2))
    for _ in range(dice.randrange(4)):
        more = dice.choice((0, 0, 0, 0, 0, 0, -1, 1))
        usual = VALUES[:3] if dice.random() < 0.9 else VALUES
        packets.append(b"".join(dice.choice(usual) for _ in range(max(0, width + more))))
    packets.append(end + (b"\x1b[2J\n<3>forged" * 20_000 if end[:1] == b"\xff" else b""))
    del packets[len(packets) - (dice.random() < 0.1) :]
    start = dice.choice((*[1] * 9, 77))
    return b"".join(packet(start + n, content) for n, content in enumerate(packets))


@pytest.mark.parametrize("driver", DRIVERS)
async def test_an_answer_that_no_server_gives_is_rows_or_a_failure_in_few_words(
    database: Database, driver: Literal["aiomysql", "asyncmy"]
) -> None:
    dice = random.Random(11)
    outcomes, longest = Counter[str](), 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await relayed(reader, writer, database.server.port, lambda: answer_of(dice))

    async with listening(talk) as port:
        address = Address(port=port, user="correlator", database=database.name)
        served = MariaDBDatabase(address, driver=driver, connect_timeout=PATIENCE, query_timeout=PATIENCE)
        for _ in range(120):
            session = await served.open()
            try:
                rows = await session.query(ASKED.decode())
            except SourceUnavailable as error:
                longest = max(longest, len(str(error)))
                outcomes["failures"] += 1
            else:
                assert len({len(row) for row in rows}) < 2
                outcomes["rows"] += 1
            await session.close()
    assert min(outcomes["rows"], outcomes["failures"]) > 10, outcomes
    assert longest < 1_500


LIES = {
    "noise": random.Random(7).randbytes(2000),
    "huge-welcome": b"\x20\xff\xff\xff\x7f" + b"x" * (1 << 16),  # a CONNACK of 256 MB
    "huge-message": b"\x20\x03\0\0\0" + b"\x30\xff\xff\xff\x7f" + b"x" * (1 << 16),  # welcome, and a PUBLISH of 256 MB
    "false-acknowledgements": b"\x20\x03\0\0\0" + b"\x40\x02\xff\xff" * 5000,  # of what was never sent
    "odd-packets": b"\x20\x03\0\0\0" + b"\xf0\x00\xd0\x00\x62\x02\0\1" * 500,
    "not-asked-for": b"\x20\x03\0\0\0" + b"\x32\x08\0\1a\0\1\0xx" * 200,
    "silence": b"",
}


@pytest.mark.parametrize(
    "lies",
    [
        pytest.param(("noise", "huge-welcome"), id="at-first"),
        pytest.param(tuple(LIES), id="in-every-way", marks=pytest.mark.long),
    ],
)
async def test_a_daemon_outlives_a_broker_that_lies(
    appliance_file: Path, tmp_path: Path, lies: tuple[str, ...]
) -> None:
    """One daemon for each lie, side by side, as each is given up only after some seconds."""

    async def lied_to(name: str) -> None:
        calls = 0

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal calls
            await reader.read(1)
            calls += 1
            writer.write(LIES[name])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await reader.read(-1)

        (folder := tmp_path / name).mkdir()
        async with (
            listening(talk) as port,
            Daemon(folder, database__url=f"sqlite://{appliance_file}", mqtt__url=f"mqtt://127.0.0.1:{port}") as daemon,
        ):
            await eventually(lambda: calls > 1)
            async with daemon.socket(HELLO) as socket:
                assert len((await socket.snapshot())[0]) == 6
            assert daemon.memory() < 150
            assert "Traceback" not in daemon.log(), (name, daemon.log())
            assert await daemon.stop() == 0

    await asyncio.gather(*(lied_to(name) for name in lies))


async def test_foreign_retained_messages_below_the_prefix_are_removed_without_harm(
    own_mosquitto: Mosquitto, appliance_file: Path, tmp_path: Path
) -> None:
    root = "correlator/v1/test"
    left = [f"{root}/job/{name}/state" for name in ("a", "%zz", "x" * 5000, "%00", "ünï")]
    left += [f"{root}/ext/{name}" for name in ("a", "%ff", "..")]
    beside = ["correlator/v1/other/job/a/state", "elsewhere", f"{root}x/status"]
    noise = (b"", b"x" * (1 << 20), b"{" * 5000, b"\xff\xfe", b'{"epoch":7,"seq":"x","deleted":1}')
    async with aiomqtt.Client("127.0.0.1", own_mosquitto.port, protocol=aiomqtt.ProtocolVersion.V5) as client:
        for n, topic in enumerate([*left, *beside, f"{root}/status", f"{root}/index"]):
            await client.publish(topic, noise[1 + n % 4], qos=1, retain=True)
        async with Daemon(tmp_path, database__url=f"sqlite://{appliance_file}", mqtt__url=own_mosquitto.url) as daemon:

            async def retained() -> dict[str, bytes]:
                found: dict[str, bytes] = {}
                async with aiomqtt.Client("127.0.0.1", own_mosquitto.port) as other:
                    await other.subscribe("#", qos=1)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.5):
                            async for message in other.messages:
                                if message.retain:
                                    found[str(message.topic)] = bytes(message.payload)
                return found

            async def settled() -> bool:
                found = await retained()
                ours = {t for t in found if t.startswith(f"{root}/job/") and found[t].startswith(b'{"job_id"')}
                return len(ours) == 6 and not {f"{root}/job/a/state", f"{root}/ext/a"} & set(found)

            await eventually(settled)

            async def others_stay() -> bool:
                return set(beside) <= set(await retained())

            await eventually(others_stay)
            assert "Traceback" not in daemon.log()


# -- TLS: which servers are trusted with no setting but the CA


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(
    ("certificate", "why"), [("other", "not valid for|match"), ("ended", "expired"), ("self", "self.signed")]
)
async def test_a_database_server_with_a_wrong_certificate_gets_no_login(
    certificates: Certificates, driver: str, certificate: str, why: str
) -> None:
    after = bytearray()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(greeting(capabilities=CAPABILITIES | SSL))  # it speaks TLS, says the server
            head = connection.recv(4, socket.MSG_WAITALL)
            connection.recv(int.from_bytes(head[:3], "little"), socket.MSG_WAITALL)  # and so it shall, says the client
            with certificates.server(certificate).wrap_socket(connection, server_side=True) as secure:
                after.extend(secure.recv(1000))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        context = client_context(Tls(ca=certificates.ca))
        database = source(listener.getsockname()[1], driver, PATIENCE, password="secret", tls=context)
        serving = asyncio.create_task(asyncio.to_thread(serve))
        with pytest.raises(SourceUnavailable, match=why):
            await database.open()
        await serving
    assert after == b""


async def test_a_broker_with_a_wrong_certificate_gets_no_login(
    certificates: Certificates, appliance_file: Path, tmp_path: Path
) -> None:
    after = bytearray()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        after.extend(await reader.read(1000))

    context = certificates.server("other")
    async with listening(talk, ssl=context) as port, Daemon(
        tmp_path, database__url=f"sqlite://{appliance_file}", mqtt__url=f"mqtts://127.0.0.1:{port}",
        mqtt__tls__ca=certificates.ca, mqtt__username="u", mqtt__password="secret",
    ) as daemon:  # fmt: skip

        async def refused() -> bool:
            part = (await daemon.get("/health/ready"))[1]["parts"]["mqtt"]
            return "certificate verify failed" in str(part["error"])

        await eventually(refused)
        assert after == b""
        assert "secret" not in daemon.log()
        assert "Traceback" not in daemon.log()
