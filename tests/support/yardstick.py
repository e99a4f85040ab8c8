"""Durations measured in the same run. Tests compare two of them, never one with a constant."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

ROUNDS, MOST_ROUNDS = 5, 40
"""Rounds of which the quickest counts, and those that may follow: what else the machine does can only slow one down."""

_WORK = """
import json
rows = [{"id": n, "steps": [{"name": f"step-{n}", "seq": m} for m in range(8)]} for n in range(20_000)]
for row in rows:
    json.loads(json.dumps(row))
"""


def interpreter() -> float:
    """Seconds of processor time that a new Python takes to write and read 20,000 small documents."""
    process = subprocess.Popen([sys.executable, "-c", _WORK])
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return used.ru_utime + used.ru_stime


def processor_seconds(pid: int) -> float:
    """The processor time of all threads of a running process, in seconds: its CPU clock (clock_getcpuclockid)."""
    return time.clock_gettime((~pid << 3) | 2)


def megabytes(pid: int, what: str = "VmRSS") -> float:
    """A size of a running process in MB of 10^6 bytes: the resident one, or "VmHWM" for its peak."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in status.splitlines() if line.startswith(f"{what}:"))


def assert_costs(most: float, one: Callable[[], object], other: Callable[[], object]) -> None:
    """`other` takes less than `most` times the processor time of `one`: the quickest round of each, in turn."""
    least = [float("inf"), float("inf")]
    for done in range(MOST_ROUNDS):
        if done >= ROUNDS and least[1] < most * least[0]:
            break
        for i, work in enumerate((one, other)):
            began = time.process_time()
            work()
            least[i] = min(least[i], time.process_time() - began)
    assert least[1] < most * least[0], f"{least[1] / least[0]:.2f} times as much, and {most} is too much"


@contextlib.asynccontextmanager
async def turns_of_another_task() -> AsyncIterator[Callable[[], float]]:
    """Yields what returns the most seconds of processor time for which another task had to wait for its turn so far.

    The clock of the processor does not run while others use the machine.
    """
    longest, before = 0.0, time.thread_time()

    async def other() -> None:
        nonlocal longest, before
        while True:
            now = time.thread_time()
            longest, before = max(longest, now - before), now
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    try:
        yield lambda: longest
    finally:
        task.cancel()
