"""What asyncio lacks: delays between attempts, timers that fall together, cancellations, shared work, signals.

**Attempts.** The n-th delay since the last reset is uniform between 0 and min(cap, base * factor**n) seconds. After an
outage all clients reconnect at the same time; full jitter spreads them over the whole range, so they do not overload
the server (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).

**Timers.** Waking is most of what an idle daemon costs, and one wake-up serves all timers that are due. So what is done
every so often is done at multiples of its period by the monotonic clock. What computes for a while has an offset of its
own, so that no two of them stop the event loop one after the other.

**Cancellations.** `asyncio.wait_for` of Python 3.11 returns its result or raises its error, and forgets the
cancellation, if both come in the same turn of the event loop (fixed in 3.12). nats-py, aiomysql and asyncmy use it: a
task that is cancelled just then would run on for ever. nats-py also swallows some by itself while it flushes or closes
a connection, and waits on. It cancels what one of its own tasks waits for, and waits for the same: that
`CancelledError` is meant for nobody. So await their calls by `keeping_cancellation` or `done_within`.

`asyncio.TaskGroup` raises only the errors of its tasks if they fail while its own task is cancelled: who catches those
errors runs on for ever (since Python 3.13 the cancellation comes once more). So use `TaskGroup`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar


class Backoff:
    """The delays, in seconds, of one operation that is retried."""

    def __init__(
        self, base: float = 0.2, factor: float = 2.0, cap: float = 5.0, *, uniform: Callable[[], float] = random.random
    ) -> None:
        """The defaults are for the database, the broker and the cluster. `uniform` returns numbers in [0, 1).

        Raises: ValueError unless 0 < base <= cap and factor >= 1.
        """
        if not (0 < base <= cap and factor >= 1):
            raise ValueError(f"expected 0 < base <= cap and factor >= 1, not {base=} {factor=} {cap=}")
        self._base, self._factor, self._cap = base, factor, cap
        self._uniform = uniform
        self._ceiling = base

    def next(self) -> float:
        """Return the seconds to wait before the next attempt, and raise the limit of the one after it."""
        delay = self._uniform() * self._ceiling
        # Multiplied step by step: factor**n would overflow during an outage of days.
        self._ceiling = min(self._cap, self._ceiling * self._factor)
        return delay

    def reset(self) -> None:
        """Return to the shortest delay. Call it after a success."""
        self._ceiling = self._base


EXPIRE_OFFSET, SAVE_OFFSET, FORECASTS_OFFSET = 0.25, 0.5, 0.75
"""In seconds: multiples of the default of `database.idle_poll_interval`, at which the tail wakes anyway."""

ROUNDED = 0.001
"""Seconds by which a timer may be early: what it starts is not done twice then."""


def until_next(every: float, now: float, offset: float = 0.0) -> float:
    """Return the seconds from `now` to the next multiple of `every`, plus `offset`. Less than `ROUNDED` is none."""
    rest = every - (now - offset) % every
    return rest if rest >= ROUNDED else rest + every


TURN = 0.01
"""Seconds for which one loop may compute before other tasks run."""


class Pacer:
    """Lets other tasks run by the time that has passed, in a loop whose items a peer chooses. `clock`: monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until = clock() + TURN

    async def pause(self) -> None:
        """Let other tasks run once, if none has for `TURN` seconds. Call it after each item."""
        if self._clock() >= self._until:
            await asyncio.sleep(0)
            self._until = self._clock() + TURN


T = TypeVar("T")


def _cancel_requests() -> int:
    """Return the number of requests to cancel the current task that it has not dealt with."""
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


async def keeping_cancellation(work: Awaitable[T], close: Callable[[T], object] = lambda _: None) -> T:
    """Return the result of `work`, or raise the `CancelledError` of a cancellation that was lost in it meanwhile.

    `close` gets the result then. Raises: what `work` raises, if no cancellation was lost.
    """
    before = _cancel_requests()
    try:
        result = await work
    except Exception:
        if _cancel_requests() > before:
            raise asyncio.CancelledError from None
        raise
    if _cancel_requests() > before:
        close(result)
        raise asyncio.CancelledError
    return result


class TaskGroup(asyncio.TaskGroup):  # noqa: TID251
    """A group that ends with `CancelledError` if its task was cancelled from outside, whatever its tasks raised."""

    def __init__(self) -> None:
        super().__init__()
        self._running: set[asyncio.Task[Any]] = set()
        self._requests = 0

    def create_task(
        self, coro: Generator[Any, None, T] | Coroutine[Any, Any, T], *, name: str | None = None, context: Any = None
    ) -> asyncio.Task[T]:
        task = super().create_task(coro, name=name, context=context)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def __aenter__(self) -> Self:
        self._requests = _cancel_requests()
        return await super().__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # Python 3.11 takes back its own request, made because a task failed, only if it was made within the block.
            while error is None and self._running:
                await asyncio.wait(self._running)
        except asyncio.CancelledError as cancelled:
            kind, error, trace = type(cancelled), cancelled, cancelled.__traceback__
        try:
            await super().__aexit__(kind, error, trace)
        except Exception as errors:
            if _cancel_requests() > self._requests:
                raise asyncio.CancelledError from errors
            raise


def repeat_cancellation() -> None:
    """Raise the `CancelledError` of a cancellation of the current task that was lost before this call."""
    if _cancel_requests():
        raise asyncio.CancelledError


async def done_within(work: Coroutine[Any, Any, T], seconds: float) -> T:
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


async def end_tasks(tasks: set[asyncio.Task[Any]], again: float = 5.0) -> None:
    """Cancel `tasks` until they have ended, once every `again` seconds."""
    while tasks:
        for task in tasks:
            task.cancel()
        _, tasks = await asyncio.wait(tasks, timeout=again)


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


async def set_within(event: asyncio.Event, seconds: float | None) -> bool:
    """Wait until `event` is set, at most `seconds`; None: without end. Returns whether it is set."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


async def quiet(event: asyncio.Event, after: float, within: float) -> None:
    """Wait until `event` has not been set for `after` seconds, at most `within`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within):
            while await set_within(event, after):
                event.clear()


@contextlib.contextmanager
def set_by_signals(*numbers: signal.Signals) -> Iterator[asyncio.Event]:
    """Yield an event that these signals set. Outside the main thread no handler is installed."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    caught = []
    for number in numbers:
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, event.set)
            caught.append(number)
    try:
        yield event
    finally:
        for number in caught:
            loop.remove_signal_handler(number)


async def ends_before(task: asyncio.Task[Any], stop: asyncio.Event) -> bool:
    """Wait until `task` has ended or `stop` is set. Returns True if the task has ended and `stop` is not set."""
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
    return task.done() and not stop.is_set()
