"""Free memory that the allocator holds is returned to the operating system.

Problem. Thousands of connections allocate buffers between objects that stay. When they have gone, most of what they
used is free, but glibc returns only what lies at the end of the heap: after five waves of 2,000 TLS clients, 300 MB
stayed. What Python's own allocator holds stays, and is used again by the next ones: after waves of 2,000 clients it has
53 arenas of 1 MiB instead of 24 for the same 24 MB of objects, as a few objects that live on keep each of them. With
the C library's allocator for everything (PYTHONMALLOC=malloc) 5 MB would stay instead of 30, and each new client would
cost 20 % more CPU time.

Model. The resident size is read regularly. Once it has grown, and does not grow any more, the allocator returns all
free pages (malloc_trim). That takes about 7 ms for 140 MB, so it is done after growth, and else once in some minutes:
what clients that stayed for a while leave is freed long after it grew, and no size shows that. Blocks of `MAPPED` bytes
and more never lie in the heap: each is memory of its own, which goes when it is freed. Without that limit glibc raises
its own one to the largest block that was ever freed, up to 32 MiB; such blocks then lie in the heap, and what is
allocated behind one keeps the hole: of a daemon of 80 MB, 5 MB more after two outages of its broker. A C library
without these functions needs nothing.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable
from pathlib import Path

from correlator.ops.event_loop import timed

CHECKED_EVERY = 10.0
"""Seconds between two checks."""

GROWN = 1.15
GROWN_BYTES = 16 * 1024 * 1024
"""The resident size is worth a trim once it is larger than after the last one by this ratio and by these bytes."""

SETTLED_BYTES = 1024 * 1024
"""Bytes by which it may grow between two checks, as live rows make it, and not count as growing."""

CHECKS = 30
"""Checks after which free memory is returned without growth: every five minutes. If none is free it takes 0.5 ms."""

MAPPED = 1024 * 1024
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`, as malloc.h numbers them."""

_PAGE = os.sysconf("SC_PAGE_SIZE")


class FreeMemory:
    """Decides when free memory is returned. `resident()`: bytes in memory; `trim()` returns what is free."""

    def __init__(self, resident: Callable[[], int], trim: Callable[[], object]) -> None:
        self._resident = resident
        self._trim = trim
        self._settled = self._last = resident()
        self._checks = 0
        """Since the last trim."""

    def check(self) -> None:
        """Return free memory if the size has grown since the last trim, which may be long ago, and no longer grows."""
        before, self._last = self._last, self._resident()
        self._settled = min(self._settled, self._last)
        self._checks += 1
        has_grown = self._last >= max(GROWN * self._settled, self._settled + GROWN_BYTES)
        if self._last > before + SETTLED_BYTES or not (has_grown or self._checks >= CHECKS):
            return
        self._checks = 0
        with timed("trim"):
            self._trim()
        self._settled = self._last = self._resident()


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


async def return_free_memory(every: float = CHECKED_EVERY) -> None:
    """Return free memory when much of it is held, until cancelled."""
    library = ctypes.CDLL(None)
    trim, mallopt = (getattr(library, name, None) for name in ("malloc_trim", "mallopt"))
    if trim is None or mallopt is None:
        await asyncio.get_running_loop().create_future()
        return
    mallopt(_M_MMAP_THRESHOLD, MAPPED)
    mallopt(_M_TRIM_THRESHOLD, 2 * MAPPED)
    memory = FreeMemory(resident, lambda: trim(0))
    while True:
        await asyncio.sleep(every)
        memory.check()
