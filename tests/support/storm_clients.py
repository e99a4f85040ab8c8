"""The storms: what a crowd of clients does, in a process of its own (`tests/support/storms.py`).

Each function runs until it is cancelled, and counts what it got.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import aiohttp


async def lists(url: str, counts: dict[str, int], *, connections: int, path: str = "/api/v1/jobs?limit=100") -> None:
    """Connections that ask for a list of jobs, again and again. ``{n}`` in `path` is another number each time."""
    numbers = itertools.count()
    await _ask(url, counts, connections, lambda: path.replace("{n}", str(next(numbers) % 20)))


async def _ask(url: str, counts: dict[str, int], connections: int, path: Callable[[], str]) -> None:
    """Connections that repeat a request, each as soon as it has the reply."""

    async def one() -> None:
        while True:
            try:
                async with session.get(path()) as response:
                    await response.read()
                    key = str(response.status)
            except (OSError, aiohttp.ClientError) as error:
                key = type(error).__name__
                await asyncio.sleep(0.1)
            counts[key] = counts.get(key, 0) + 1

    async with (
        aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as session,
        asyncio.TaskGroup() as tasks,
    ):
        for _ in range(connections):
            tasks.create_task(one())
