"""Signals as events of asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def set_by(*numbers: signal.Signals) -> Iterator[asyncio.Event]:
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
