"""The HTTP listener in the test's own process, over an index that the test writes: for what needs less patience."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from correlator.hub import Hub
from correlator.sinks.access import Access
from correlator.sinks.http import HttpSink, Listener


@contextlib.asynccontextmanager
async def served(hub: Hub, *, tokens: tuple[str, ...] = (), origins: tuple[str, ...] = ()) -> AsyncIterator[str]:
    """Its base URL."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    access = Access(listen_host="127.0.0.1", clock=time.monotonic, tokens=tokens, origins=origins)
    sink = HttpSink(Listener("127.0.0.1", 0), access, retention=86_400.0, on_ready=ready.set_result)
    task = asyncio.create_task(sink.run(hub))
    try:
        yield await ready
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
