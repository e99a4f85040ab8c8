"""Cancellations that a library would lose.

`asyncio.wait_for` of Python 3.11 returns its result, and forgets the cancellation, if both come in the same turn of the
event loop (fixed in 3.12). nats-py and aiomysql use it: a task that is cancelled just then would run on for ever.
nats-py also swallows some by itself while it closes a connection, and waits on. It cancels what one of its own tasks
waits for, and waits for the same: that `CancelledError` is meant for nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


def requests() -> int:
    """Return the number of requests to cancel the current task that it has not dealt with."""
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


@contextmanager
def kept() -> Iterator[None]:
    """Raise the `CancelledError` of a cancellation that came in the block and was lost there, also for an error."""
    before = requests()
    try:
        yield
    except Exception:
        if requests() > before:
            raise asyncio.CancelledError from None
        raise
    if requests() > before:
        raise asyncio.CancelledError


def repeat() -> None:
    """Raise the `CancelledError` of a cancellation of the current task that was lost before this call."""
    if requests():
        raise asyncio.CancelledError


async def bounded(work: Coroutine[Any, Any, T], seconds: float) -> T:
    """Return the result of `work`, which is left to itself, cancelled, if it has not ended after `seconds`.

    Raises: `TimeoutError` then, and what `work` raises; `ConnectionAbortedError` if something else cancelled what it
    waits for: nobody has cancelled the caller.
    """
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # Nobody else asks for it.
    try:
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            raise TimeoutError(f"not done within {seconds:g} s")
        if task.cancelled():
            raise ConnectionAbortedError("the library cancelled it")
        return task.result()
    finally:
        task.cancel()


async def end(tasks: set[asyncio.Task[Any]], again: float = 5.0) -> None:
    """Cancel `tasks` until they have ended, once every `again` seconds."""
    while tasks:
        for task in tasks:
            task.cancel()
        _, tasks = await asyncio.wait(tasks, timeout=again)
