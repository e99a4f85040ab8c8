"""Waiting for a condition with a deadline, however busy the machine is."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds to wait for what happens at once: however busy the machine is, none of it takes so long."""

OFTEN, SELDOM = 0.02, 0.25
"""Seconds between two calls of a condition, at first and after some seconds."""


@overload
async def eventually(condition: Callable[[], Awaitable[T]], *, within: float = ..., every: float | None = ...) -> T: ...
@overload
async def eventually(condition: Callable[[], T], *, within: float = ..., every: float | None = ...) -> T: ...
async def eventually(condition: Callable[[], Any], *, within: float = PATIENCE, every: float | None = None) -> Any:
    """The first true value of `condition()`, which may be a coroutine function; AssertionError after `within` seconds.

    A failed assertion, a missing key or index and a refused connection mean "not yet"; any other exception passes
    through. The error contains the last value, or has the last exception as its cause. `every`: seconds between two
    calls; None: the longer it takes, the more.
    """
    began = time.monotonic()
    deadline = began + within
    last: object = None
    cause: Exception | None = None
    while True:
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                value = condition()
                if inspect.isawaitable(value):
                    value = await value
            last, cause = value, None
            if value:
                return value
        except (AssertionError, LookupError, OSError) as error:  # TimeoutError is an OSError
            cause = error
        if time.monotonic() >= deadline:
            detail = f"last value: {last!r}" if cause is None else f"last exception: {cause!r}, last value: {last!r}"
            raise AssertionError(f"not within {within} s; {detail}") from cause
        waited = time.monotonic() - began
        await asyncio.sleep(every if every is not None else min(SELDOM, max(OFTEN, waited / 10)))
