"""Connections over which a token may be sent."""

from __future__ import annotations

import asyncio
import ssl
import weakref
from typing import Any

import aiohttp
from aiohttp.connector import Connection

from correlator.listeners import check_listener


class TokenConnector(aiohttp.TCPConnector):
    """Opens connections, and checks who listens before a request is sent: see `correlator.listeners`.

    A request over a connection to a user of this host who is no service raises `ForeignListener`. A verified
    certificate says who listens, so nothing else is asked then.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._checked: weakref.WeakSet[asyncio.BaseProtocol] = weakref.WeakSet()

    async def connect(self, *args: Any, **options: Any) -> Connection:
        connection = await super().connect(*args, **options)
        transport, protocol = connection.transport, connection.protocol
        if transport is None or protocol is None or protocol in self._checked:
            return connection
        context = transport.get_extra_info("sslcontext")
        if not (isinstance(context, ssl.SSLContext) and context.verify_mode is ssl.CERT_REQUIRED):
            try:
                await asyncio.to_thread(check_listener, transport.get_extra_info("socket"), "the token", _INSTEAD)
            except BaseException:
                connection.close()
                raise
        self._checked.add(protocol)
        return connection


_INSTEAD = "run the command as that user, or use https"
