"""What the daemon waits for until it ends."""

from __future__ import annotations

import asyncio
from typing import Any


async def first(task: asyncio.Task[Any], stop: asyncio.Event) -> bool:
    """Wait until `task` has ended or `stop` is set. Returns True if the task has ended and `stop` is not set."""
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
    return task.done() and not stop.is_set()
