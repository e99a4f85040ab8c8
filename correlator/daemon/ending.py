"""How the tasks of the daemon end."""

from __future__ import annotations

import asyncio


async def end(tasks: set[asyncio.Task[None]], again: float = 5.0) -> None:
    """Cancel `tasks` until they have ended, once every `again` seconds.

    Once is not enough: `asyncio.wait_for` of Python 3.11, which drivers use, drops a cancellation that coincides with
    its result, and the task would run on.
    """
    while tasks:
        for task in tasks:
            task.cancel()
        _, tasks = await asyncio.wait(tasks, timeout=again)
