"""What one row of the log costs, as the jobs in memory grow."""

from __future__ import annotations

from functools import partial

from benchmarks.harness import Curve, Limit, Number, Picture, Result, Size, in_turn, peer

JOBS = (1_000, 10_000, 100_000)


async def measure(size: Size) -> Result:
    counts = size.of(JOBS, JOBS[:2])
    rows = size.of(50_000, 5_000)

    async def cost(jobs: int) -> float:
        return float((await peer("events", jobs=jobs, rows=rows))["microseconds"])

    first, *more = await in_turn(size.runs, *(partial(cost, n) for n in counts))
    numbers = [
        Number(
            f"one row, {n:,} jobs in memory", "µs", found, f"at {counts[0]:,} jobs", first, Limit("≤", 1.15, "ratio")
        )
        for n, found in zip(counts[1:], more, strict=True)
    ]
    points = tuple((float(n), sorted(f)[len(f) // 2]) for n, f in zip(counts, (first, *more), strict=True))
    picture = Picture(
        "jobs", "The cost of one row, as jobs grow", "jobs in memory", "microseconds", (Curve("a row", points),)
    )
    return Result(tuple(numbers), (picture,))
