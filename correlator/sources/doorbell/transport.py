"""The adapter over aiomysql: the transport of a connection that has logged in.

aiomysql logs in as for every session (TLS, sockets, passwords), but its public interface sends statements only.
COM_BINLOG_DUMP is another command, whose answer never ends, so the doorbell takes over the transport. This is the only
use of a driver's private attribute; `tests/unit/test_doorbell_hook.py` fails when a version no longer has it.
"""

from __future__ import annotations

import asyncio
from typing import Any


def transport_of(connection: Any) -> asyncio.Transport:
    """The transport of an open `aiomysql.Connection`. Nothing else may use the connection from now on."""
    transport: asyncio.Transport = connection._writer.transport  # noqa: SLF001 - see the top of this file
    return transport
