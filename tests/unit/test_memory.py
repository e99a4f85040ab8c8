"""Free memory is returned to the operating system, once it is much and no longer in use."""

from __future__ import annotations

import subprocess
import sys

import pytest

from correlator.ops.memory import FreeMemory
from tests.support.paths import REPOSITORY

MB = 1024 * 1024

LEFT = """
import asyncio, time
from correlator.ops.memory import resident, return_free_memory

async def main():
    returning = asyncio.create_task(return_free_memory(0.01))
    await asyncio.sleep(0.05)
    before, buffers, kept = resident(), [], []
    for n in range(30_000):
        buffers.append(bytearray(3_000))
        if n % 100 == 0:
            kept.append(bytearray(700))
    grown = resident()
    del buffers
    until = time.monotonic() + 30
    while resident() > before + (grown - before) / 5 and time.monotonic() < until:
        await asyncio.sleep(0.01)
    print(grown - before, resident() - before)

asyncio.run(main())
"""


def test_memory_is_returned_after_it_grew_and_not_while_it_grows():
    sizes, trims = iter([100, 200, 300, 300, 120, 120, 130, 125, 300, 290, 290, 250]), list[int]()
    now = 0

    def resident() -> int:
        nonlocal now
        now = next(sizes) * MB
        return now

    memory = FreeMemory(resident, lambda: trims.append(now // MB))
    for _ in range(3):
        memory.check()
    assert trims == [300], "at the second check that finds 300"
    for _ in range(5):
        memory.check()
    assert trims == [300, 290], "little growth is worth nothing"


def test_what_is_freed_long_after_it_grew_is_returned_too():
    resident, checks, trims = 100 * MB, 0, list[int]()
    memory = FreeMemory(lambda: resident, lambda: trims.append(checks))
    resident = 900 * MB
    for _ in range(100):
        checks += 1
        memory.check()
    assert trims == [2, 32, 62, 92], "what is in use then may be free at the next one"


@pytest.mark.parametrize(
    ("settled", "grown", "last", "returned"),
    [
        (100 * MB, 300 * MB, 300 * MB + 8192, True),  # live rows make it grow a little
        (100 * MB, 300 * MB, 301 * MB, True),
        (100 * MB, 300 * MB, 301 * MB + 1, False),  # it still grows
        (50 * MB, 66 * MB, 66 * MB, True),
        (50 * MB, 66 * MB - 1, 66 * MB - 1, False),  # 16 MiB are missing
        (200 * MB, 230 * MB, 230 * MB, True),
        (200 * MB, 230 * MB - 1, 230 * MB - 1, False),  # 15 % are missing
    ],
)
def test_memory_is_returned_once_it_has_grown_enough_and_hardly_grows_any_more(settled, grown, last, returned):
    sizes, trims = iter([settled, grown, last, settled]), list[int]()
    memory = FreeMemory(sizes.__next__, lambda: trims.append(1))
    memory.check()
    assert not trims
    memory.check()
    assert bool(trims) is returned


def test_what_thousands_of_buffers_leave_free_goes_back_to_the_system():
    run = subprocess.run([sys.executable, "-c", LEFT], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    grown, left = map(int, run.stdout.split())
    assert grown > 80 * MB
    assert left < grown / 5


LARGE = """
import asyncio, ctypes
from correlator.ops.memory import return_free_memory

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena a b c mapped d e used free f".split()]

async def main():
    returning = asyncio.create_task(return_free_memory(60))
    await asyncio.sleep(0)
    library = ctypes.CDLL(None)
    library.mallinfo2.restype = Info
    bytearray(8_000_000)  # Freed at once: without a limit, all that is smaller would lie in the heap from now on.
    before = library.mallinfo2()
    kept = bytearray(4_000_000)
    after = library.mallinfo2()
    print(after.mapped - before.mapped, after.arena - before.arena)

asyncio.run(main())
"""


def test_a_large_block_leaves_no_hole_in_the_heap_also_after_a_larger_one():
    ended = subprocess.run([sys.executable, "-c", LARGE], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    mapped, in_heap = map(int, ended.stdout.split())
    assert mapped >= 4_000_000
    assert in_heap == 0
