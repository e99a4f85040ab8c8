"""The HTTP listener in the test's own process, over an index that the test writes, with timings of its own."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from correlator.pipeline.hub import Hub
from correlator.sinks.http.access import Access, Rules
from correlator.sinks.http.grants import Grant
from correlator.sinks.http.server import HttpSink, Listener
from correlator.sinks.streaming.limits import DEFAULT, Limits
from tests.support.background import in_background


@contextlib.asynccontextmanager
async def served(
    hub: Hub,
    *,
    tokens: tuple[str | Grant, ...] = (),
    job_keys: tuple[str, ...] = (),
    origins: tuple[str, ...] = (),
    proxies: tuple[str, ...] = (),
    max_readers: int = 10_000,
    max_per_address: int = 10_000,
    limits: Limits = DEFAULT,
    unknown_id_wait: float = 3.0,
    now: Callable[[], float] = time.time,
    **listener: Any,
) -> AsyncIterator[str]:
    """The listener's base URL. `tokens`: with all rights, or with those of a grant. `job_keys`: of tokens for one job.

    `now`: Unix seconds, by which grants end. `listener`: further settings of `Listener`.
    """
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    rules = Rules(
        grants=[one if isinstance(one, Grant) else Grant(secret=one.encode()) for one in tokens],
        job_keys=job_keys,
        instance="here",
        origins=origins,
        proxies=proxies,
        max_readers=max_readers,
        max_per_address=max_per_address,
    )
    access = Access(listen_host="127.0.0.1", clock=time.monotonic, now=now, rules=rules)
    sink = HttpSink(
        Listener("127.0.0.1", 0, **listener),
        access,
        limits=limits,
        unknown_id_wait=unknown_id_wait,
        on_ready=ready.set_result,
    )
    async with in_background(sink.run(hub)):
        yield await ready
