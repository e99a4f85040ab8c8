"""A server of streams whose connections all end with it, also one that it has only just accepted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from ssl import SSLContext

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def accepting(
    handle: Handle, port: int, *, limit: int = 1 << 16, ssl: SSLContext | None = None
) -> AsyncIterator[None]:
    """Serve at 127.0.0.1. `handle` runs in a task for each connection, which ends with the task or with the block."""
    tasks: set[asyncio.Future[None]] = set()

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(handle(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        # Not in `handle`: a task that is cancelled before its first step runs nothing of it.
        task.add_done_callback(lambda _: writer.transport.abort())

    server = await asyncio.start_server(accepted, "127.0.0.1", port, limit=limit, ssl=ssl)
    try:
        yield
    finally:
        # asyncio loses a connection that is being accepted when the server closes: it is never closed.
        await _some_turns()
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await _some_turns()  # until aborted transports are closed


async def _some_turns() -> None:
    """Let the event loop do what a few of its turns do one after the other."""
    for _ in range(10):
        await asyncio.sleep(0)
