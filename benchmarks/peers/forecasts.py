"""What forecasts cost: microseconds for one and for an ended job, megabytes for all operations. Runs of 10 steps."""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import time
from pathlib import Path

from correlator.forecast.forecaster import Forecaster
from correlator.forecast.points import EndedRun, StepTimes, place_of
from correlator.forecast.running import RunningJob

RUNS = 100
"""Of each operation, each of a VM of its own: as many as are kept."""

STEPS = 10
ASKED = 2_000
"""Forecasts, and runs that are learned, that are timed."""


def resident() -> float:
    """Megabytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def run(rnd: random.Random, operation: int, number: int) -> EndedRun:
    """A run that started `number` times 200 seconds after the first one."""
    start = at = number * 200_000_000
    steps = []
    for step in range(STEPS):
        end = at + round(rnd.lognormvariate(2.3, 0.5) * 1e6)
        steps.append(StepTimes(f"step-number-{step}", at, end))
        at = end + 1_000
    return EndedRun(("failover", f"operation-{operation}"), f"vm-{number % RUNS}", start, at, True, tuple(steps))


def main(operations: int) -> dict[str, float]:
    rnd, forecaster = random.Random(1), Forecaster()
    forecaster.learn(run(rnd, 0, 0))
    gc.collect()
    before = resident()
    for operation in range(operations):
        for number in range(RUNS):
            forecaster.learn(run(rnd, operation, number))
    gc.collect()
    megabytes = resident() - before

    more = [run(rnd, n % operations, RUNS + n) for n in range(ASKED)]
    began = time.process_time()
    for ended in more:
        forecaster.learn(ended)
    learned = time.process_time() - began

    jobs = []
    for n in range(ASKED):
        ended = run(rnd, n % operations, 2 * RUNS + n)
        at = rnd.randrange(ended.start, ended.end)
        steps = [StepTimes(s, a, b if b is not None and b <= at else None) for s, a, b in ended.steps if a <= at]
        jobs.append((RunningJob(ended.operation, ended.entity, place_of(ended.start, steps)), at))
    began = time.process_time()
    for job, at in jobs:
        job.forecast(forecaster, at)
    asked = time.process_time() - began
    return {"megabytes": megabytes, "learn_us": 1e6 * learned / ASKED, "forecast_us": 1e6 * asked / ASKED}


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
