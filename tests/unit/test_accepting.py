"""A made-up server leaves no connection behind: an unclosed one would be reported in whatever test comes later."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from tests.support.accepting import accepting
from tests.support.servers import free_port


async def serve_for_ever(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


@pytest.mark.parametrize("turns", range(8))
async def test_a_connection_ends_with_the_server_however_far_it_was_accepted(turns):
    port = free_port()
    with socket.socket() as client:
        async with accepting(serve_for_ever, port):
            client.connect(("127.0.0.1", port))
            for _ in range(turns):
                await asyncio.sleep(0)
        client.settimeout(5.0)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
