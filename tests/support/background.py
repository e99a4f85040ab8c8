"""Work beside the body of a test."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any


@contextlib.asynccontextmanager
async def in_background(work: Coroutine[Any, Any, Any]) -> AsyncIterator[asyncio.Task[Any]]:
    """Run `work`, which has begun when the block begins, until the block ends.

    Raises: the error with which it ends when it is cancelled. Of one before, the block has the task.
    """
    task = asyncio.create_task(work)
    await asyncio.sleep(0)
    try:
        yield task
    finally:
        runs = not task.done()
        task.cancel()
        await asyncio.wait([task])
        if runs and not task.cancelled() and (error := task.exception()) is not None:
            raise error
