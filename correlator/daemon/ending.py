"""How the tasks of the daemon end, and what is waited for until then."""

from __future__ import annotations

import asyncio
from typing import Any


async def end(tasks: set[asyncio.Task[None]], again: float = 5.0) -> None:
    """Cancel `tasks` until they have ended, once every `again` seconds.

    Once is not enough: `asyncio.wait_for` of Python 3.11, which drivers use, drops a cancellation that coincides with
    its result, and the task would run on.
    """
    while tasks:
        for task in tasks:
            task.cancel()
        _, tasks = await asyncio.wait(tasks, timeout=again)


async def first(task: asyncio.Task[Any], stop: asyncio.Event) -> bool:
    """Wait until `task` has ended or `stop` is set. Returns True if the task has ended and `stop` is not set."""
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
    return task.done() and not stop.is_set()
