"""What every row of the benchmarks is made of: numbers with their yardstick, taken in turn, and what took them.

What always holds: ours and the yardstick are taken in the same run, one after the other, again and again, so that
whatever else the machine does meanwhile meets both; what counts is the median.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, TypeVar

from tests.support.yardstick import processor_seconds

T = TypeVar("T")

REPOSITORY = Path(__file__).parent.parent
PACKAGES = ("aiohttp", "aiomqtt", "aiomysql", "asyncmy", "msgspec", "orjson", "uvloop")


@dataclass(frozen=True, slots=True)
class Size:
    """How large a run is. `quick` is to see that a row works: its numbers are noise. `tree`: whose program runs."""

    quick: bool = False
    tree: Path = REPOSITORY

    @property
    def runs(self) -> int:
        return 2 if self.quick else 5

    def of(self, full: T, quick: T) -> T:
        return quick if self.quick else full


@dataclass(frozen=True, slots=True)
class Limit:
    """The target: what `of` (ours alone, or its ratio to the yardstick) has to be."""

    relation: Literal["≤", "≥"]
    value: float
    of: Literal["ours", "ratio", "yardstick"] = "ours"
    """yardstick: ours has to be less than it, or more; `value` is not used."""


@dataclass(frozen=True, slots=True)
class Number:
    """One line of the table: what was measured, each run of it, beside the yardstick where there is one."""

    what: str
    unit: str
    ours: tuple[float, ...]
    yardstick: str = ""
    theirs: tuple[float, ...] = ()
    limit: Limit | None = None
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.ours)

    @property
    def their_median(self) -> float | None:
        return statistics.median(self.theirs) if self.theirs else None

    @property
    def ratio(self) -> float | None:
        return self.median / self.their_median if self.their_median else None

    @property
    def met(self) -> bool | None:
        """None where there is no target."""
        if self.limit is None:
            return None
        found, bound = self.median, self.limit.value
        if self.limit.of == "ratio":
            found = self.ratio if self.ratio is not None else float("nan")
        elif self.limit.of == "yardstick":
            bound = self.their_median if self.their_median is not None else float("nan")
        return found <= bound if self.limit.relation == "≤" else found >= bound


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a picture: what grows, and what that does."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """Drawn as benchmarks/results/`file`.svg."""

    file: str
    title: str
    x: str
    y: str
    curves: tuple[Curve, ...]
    log_x: bool = True


@dataclass(frozen=True, slots=True)
class Result:
    """What one row of the benchmarks brings."""

    numbers: tuple[Number, ...]
    pictures: tuple[Picture, ...] = ()


@dataclass(slots=True)
class Series:
    """What one measure gave, run by run."""

    values: list[float] = field(default_factory=list)

    def all(self) -> tuple[float, ...]:
        return tuple(round(v, 6) for v in self.values)


async def in_turn(runs: int, *measures: Callable[[], Awaitable[float]]) -> list[tuple[float, ...]]:
    """Each of `measures`, one after the other, `runs` times: what each of them gave."""
    series = [Series() for _ in measures]
    for _ in range(runs):
        for measure, one in zip(measures, series, strict=True):
            one.values.append(await measure())
    return [s.all() for s in series]


async def peer(name: str, /, **arguments: object) -> Any:
    """Run benchmarks/peers/`name`.py with `arguments` as one JSON text, to its end; the last line it says, parsed."""
    async with started_peer(name, **arguments) as process:
        assert process.stdout is not None
        output = await process.stdout.read()
        await process.wait()
        if process.returncode != 0:
            raise RuntimeError(f"{name} ended with {process.returncode}")
        return json.loads(output.splitlines()[-1])


@contextlib.asynccontextmanager
async def started_peer(name: str, /, **arguments: object) -> AsyncIterator[asyncio.subprocess.Process]:
    """The same, running: it reads what is written to it, and is ended with the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        f"benchmarks.peers.{name}",
        json.dumps(arguments, default=str),
        cwd=REPOSITORY,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 26,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def next_line(process: asyncio.subprocess.Process, within: float = 60.0) -> Any:
    """The next line of a peer, parsed."""
    assert process.stdout is not None
    async with asyncio.timeout(within):
        line = await process.stdout.readline()
    if not line:
        raise RuntimeError("a peer has ended before it said what it measured")
    return json.loads(line)


def send(process: asyncio.subprocess.Process, **word: object) -> None:
    """One line to a peer."""
    assert process.stdin is not None
    process.stdin.write(json.dumps(word).encode() + b"\n")


async def cpu_percent(seconds: float, *pids: int) -> list[float]:
    """How much of one core each process uses in the next `seconds`."""
    began, before = time.monotonic(), [processor_seconds(p) for p in pids]
    await asyncio.sleep(seconds)
    passed = time.monotonic() - began
    return [100 * (processor_seconds(p) - b) / passed for p, b in zip(pids, before, strict=True)]


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def machine() -> dict[str, Any]:
    """The machine of the measurement, without its name and place."""
    names = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
    model = next((value.strip() for key, _, value in names if key.strip() == "model name"), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": os.cpu_count(),
        "processor": model,
        "memory_gb": round(memory / 1e9, 1),
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
