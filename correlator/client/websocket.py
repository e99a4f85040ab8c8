"""The client's side of the daemon's websocket."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from datetime import datetime

import aiohttp
import msgspec

from correlator.client.errors import Failures
from correlator.client.messages import MAX_MESSAGE, Bookmark, Bye, Welcome, decode
from correlator.client.replica import Replica
from correlator.model.messages import ClientMessage, Wanted

CONNECT_WITHIN = 10.0

IDS_IN_ONE = 50
"""IDs in one subscription. With 255 characters of 4 bytes each, the frame is still one that the daemon accepts."""


@contextlib.asynccontextmanager
async def connected(
    session: aiohttp.ClientSession, url: str, failures: Failures
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """Open the websocket, and close it at the end.

    Raises:
        Unreachable, Refused, NotACorrelator: the handshake failed.
    """
    timeout = aiohttp.ClientWSTimeout(ws_close=1.0)
    try:
        async with asyncio.timeout(CONNECT_WITHIN):
            ws = await session.ws_connect(url + "/ws", timeout=timeout, max_msg_size=MAX_MESSAGE)
    except aiohttp.WSServerHandshakeError as error:
        raise failures.of_handshake(error.status) from error
    except (aiohttp.ClientError, OSError) as error:
        raise failures.unreachable(error) from error
    try:
        yield ws
    finally:
        await ws.close()


def split(wanted: Wanted) -> list[Wanted]:
    """Split a subscription into parts of at most `IDS_IN_ONE` IDs."""
    if wanted.jobs is None or len(wanted.jobs) <= IDS_IN_ONE:
        return [wanted]
    starts = range(0, len(wanted.jobs), IDS_IN_ONE)
    return [msgspec.structs.replace(wanted, jobs=wanted.jobs[at : at + IDS_IN_ONE]) for at in starts]


class Exchange:
    """Exchange of messages with the daemon, over one connection after the other.

    `silent_after`: seconds without a message after which a connection is given up.
    """

    def __init__(self, replica: Replica, token: str, silent_after: float) -> None:
        self._replica = replica
        self._token = token
        self._silent_after = silent_after
        self._retry_in: float | None = None
        self.ahead = 0.0
        """Seconds that the daemon's clock is ahead of the local clock."""

    async def open(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        await ws.send_str(_frame(self._replica.hello(self._token)))

    async def next(self, ws: aiohttp.ClientWebSocketResponse) -> bool:
        """Receive one frame and send the answers; False if the connection has ended.

        Raises:
            TimeoutError: no frame arrived for `silent_after` seconds.
            ValueError: a message is invalid.
        """
        async with asyncio.timeout(self._silent_after):
            frame = await ws.receive()
            if frame.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                return False
            for message in decode(frame.data):
                for answer in self._replica.receive(message):
                    await ws.send_str(_frame(answer))
                match message:
                    case Bye(retry_ms=(low, high)):
                        self._retry_in = random.uniform(low, high) / 1000
                    case Welcome(at=str(at)) | Bookmark(at=str(at)):
                        self.ahead = datetime.fromisoformat(at).timestamp() - time.time()
        return True

    def pop_retry_delay(self) -> float | None:
        """Return, once, the seconds to wait before reconnecting that the daemon's last bye gave; None without a bye."""
        delay, self._retry_in = self._retry_in, None
        return delay


def _frame(message: ClientMessage) -> str:
    return msgspec.json.encode(message).decode()
