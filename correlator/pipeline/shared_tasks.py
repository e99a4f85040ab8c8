"""Work that several requests need at the same time is done once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class SharedTasks(Generic[T]):
    """At most one task per key. It is cancelled when the last request that waits for it is."""

    def __init__(self) -> None:
        self._tasks: dict[str, tuple[asyncio.Task[T], set[object]]] = {}

    async def run(self, key: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return the result of the task for `key`, which is begun with `work` if there is none. Raises what it does."""
        if key not in self._tasks:
            self._tasks[key] = asyncio.create_task(work()), set()
        task, requests = self._tasks[key]
        requests.add(request := object())
        try:
            return await asyncio.shield(task)
        finally:
            requests.discard(request)
            if not requests and self._tasks.get(key, (None,))[0] is task:
                del self._tasks[key]
                task.cancel()
