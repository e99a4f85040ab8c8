"""The private parts of aiomysql and asyncmy that `correlator/sources/db/login.py` overrides or calls.

Checked with aiomysql 0.3.2 and asyncmy 0.2.18. Neither has a public way to check what a server says during the login
(https://github.com/aio-libs/aiomysql, https://github.com/long2ice/asyncmy). After an upgrade fails here, adapt that
file: `tests/security/test_login.py` shows whether the checks are still made.
"""

from __future__ import annotations

import asyncio
import inspect
import socket

import aiomysql.connection
import asyncmy.connection
import pytest

from correlator.sources.db import login
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


@pytest.mark.parametrize("driver", ["aiomysql", "asyncmy"])
async def test_a_login_that_is_cancelled_closes_its_connection(driver):
    """A connection of aiomysql that is left to the garbage collection makes a ResourceWarning, which fails the run."""
    ended = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        ended.set()
        writer.close()

    terms = login.Terms(None, unix_socket=False, password=True)
    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        options = {"host": "127.0.0.1", "port": port, "user": "u", "password": "p", "connect_timeout": PATIENCE}
        connecting = asyncio.create_task(login.connect(driver, terms, **options))
        await asyncio.sleep(0.1)
        connecting.cancel()
        async with asyncio.timeout(PATIENCE):
            await ended.wait()
        with pytest.raises(asyncio.CancelledError):
            await connecting
