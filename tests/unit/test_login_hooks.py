"""The private parts of aiomysql and asyncmy that `correlator/sources/db/login.py` overrides or calls.

Checked with aiomysql 0.3.2 and asyncmy 0.2.18. Neither has a public way to check what a server says during the login
(https://github.com/aio-libs/aiomysql, https://github.com/long2ice/asyncmy). After an upgrade fails here, adapt that
file: `tests/security/test_login.py` shows whether the checks are still made.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import socket
import types
from collections.abc import Coroutine, Generator
from typing import Any

import aiomysql.connection
import asyncmy.connection
import pytest

from correlator.sources.db import login
from correlator.tasks import TURN
from tests.support.eventually import PATIENCE
from tests.support.hostile_database import OK, HostileDatabase, greeting


@pytest.mark.parametrize(
    ("theirs", "names"),
    [
        (aiomysql.connection.Connection, ("_connect", "_request_authentication", "_read_packet")),
        (asyncmy.connection.Connection, ("connect", "_request_authentication", "read_packet")),
    ],
    ids=["aiomysql", "asyncmy"],
)
def test_each_method_that_is_overridden_or_called_is_one_of_the_driver(theirs, names):
    for name in names:
        assert inspect.iscoroutinefunction(getattr(theirs, name)) or callable(getattr(theirs, name)), name


@pytest.mark.parametrize("driver", ["aiomysql", "asyncmy"])
async def test_after_the_login_a_connection_has_only_methods_of_its_driver(driver):
    """Packets of results are read as fast as without the checks."""
    server = HostileDatabase(greeting(), (OK, OK))
    terms = login.Terms(None, unix_socket=False, password=True)
    async with server.listening() as port:
        connection = await login.connect(
            driver, terms, host="127.0.0.1", port=port, user="u", password="p", connect_timeout=PATIENCE
        )
        assert not {"read_packet", "_read_packet"} & set(vars(connection))
        assert login.transport_of(connection).get_extra_info("socket").type == socket.SOCK_STREAM
        connection.close()


@types.coroutine
def cancelled_at_its_first_pause(work: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Run `work`, and cancel it where it first gives other tasks a turn without waiting for anything."""
    waits_for = work.send(None)
    while waits_for is not None:
        waits_for = work.send((yield waits_for))
    return work.throw(asyncio.CancelledError())


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
async def test_a_login_that_is_cancelled_at_a_pause_leaves_no_connection_to_the_garbage_collection():
    ended = asyncio.Event()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(3 * TURN)  # so that a pause is due before the next packet
        writer.write(greeting())
        await reader.read()
        writer.close()
        await writer.wait_closed()
        ended.set()

    terms = login.Terms(None, unix_socket=False, password=True)
    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        options = {"host": "127.0.0.1", "port": port, "user": "u", "password": "p", "connect_timeout": PATIENCE}
        with pytest.raises(asyncio.CancelledError):
            await cancelled_at_its_first_pause(login.connect("aiomysql", terms, **options))
        async with asyncio.timeout(PATIENCE):
            await ended.wait()
    gc.collect()


@pytest.mark.parametrize("size", [0, 64, 250, 251, 70_000])
def test_the_definition_of_a_column_is_read_only_if_it_is_whole(size: int):
    length = next(
        head + size.to_bytes(n, "little")
        for most, head, n in ((250, b"", 1), (0xFFFF, b"\xfc", 2), (0xFFFFFF, b"\xfd", 3))
        if size <= most
    )
    whole = b"\x03def\0\1t\1t" + length + b"c" * size + b"\1c" + b"\x0c" + bytes(12)
    login.check_column(whole)
    for end in {*range(0, len(whole), max(1, size // 20)), len(whole) - 1}:
        with pytest.raises(ValueError, match="leads out of its packet"):
            login.check_column(whole[:end])
    for wrong in (0xFB, 0xFE, 0xFF):
        with pytest.raises(ValueError, match="leads out of its packet"):
            login.check_column(bytes([wrong]) + whole[1:])
