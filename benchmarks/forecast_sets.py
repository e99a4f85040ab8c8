"""Runs to judge forecasts by: simulated ones whose truth is known, the recordings, and real continuous integration."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import exp
from pathlib import Path
from random import Random
from typing import Literal, TypeAlias, get_args

from benchmarks.harness import REPOSITORY
from correlator.forecast.points import EndedRun, StepTimes
from tests.support.replay import expected, load

DATA = Path(__file__).parent / "data"
RECORDINGS = REPOSITORY / "tests" / "data"

Kind: TypeAlias = Literal["vm", "drift", "heavy", "hang", "parallel", "percent"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class JudgedRun:
    """A run, and whether its simulation made it hang."""

    run: EndedRun
    hung: bool = False


def runs_of(name: str) -> list[JudgedRun]:
    """The set of this name, in order of the starts: a kind of simulation, a recording, or a file of `DATA`."""
    for kind in KINDS:
        if name == kind:
            return simulated(kind)
    if (recording := RECORDINGS / f"{name}.jsonl.gz").exists():
        return recorded(recording)
    return logged(DATA / f"{name}.csv.gz")


@dataclass(slots=True)
class _Simulation:
    """One run under construction. `at`: seconds since 1970."""

    start: float
    at: float
    steps: list[tuple[str, float, float]] = field(default_factory=list)
    percents: list[tuple[float, float]] = field(default_factory=list)
    hung: bool = False

    def step(self, name: str, seconds: float) -> None:
        self.steps.append((name, self.at, self.at + seconds))
        self.at += seconds


def simulated(kind: Kind, *, count: int = 700, vms: int = 40, seed: int = 7, gap: float = 60.0) -> list[JudgedRun]:
    """Replications of VMs whose sizes differ, with optional steps, retries and failures, one every `gap` seconds.

    vm: nothing else. drift: the copy takes three times as long after a third of the runs, and after two thirds there
    is a new step. heavy: the copy has a heavy tail. hang: 3 % of the copies hang. parallel: several copies at once.
    percent: the job reports a percent, which is too high at first.
    """
    random = Random(f"{kind} {seed}")
    sizes = [random.lognormvariate(0, 1) for _ in range(vms)]
    found, clock = [], 0.0
    for i in range(count):
        clock += random.expovariate(1 / gap)
        vm, slow = random.randrange(vms), random.lognormvariate(0, 0.15)
        run = _Simulation(clock, clock)

        def around(median: float, spread: float, slow: float = slow) -> float:
            return median * exp(random.gauss(0, spread)) * slow

        run.step("validate", around(5, 0.3))
        run.step("snapshot", around(20, 0.4))
        if kind == "drift" and i >= count * 2 // 3:
            run.step("integrity-check", around(60, 0.3, 1))
        completed = _copy(
            kind, run, 100 * sizes[vm] * (3 if kind == "drift" and i >= count // 3 else 1), random, around
        )
        if completed:
            if random.random() < 0.3:
                run.step("driver-injection", around(40, 0.4))
            run.step("attach", around(15, 0.3))
            run.step("start-and-check", around(30, 0.6))
            run.step("finalise", around(2, 0.3, 1))
        found.append(JudgedRun(_run("replication", f"vm{vm}", completed, run.steps, run.percents), run.hung))
    return found


def _copy(kind: Kind, run: _Simulation, size: float, random: Random, around: Callable[..., float]) -> bool:
    """Add the copy. False: it failed, and the run ends with it."""
    if kind == "parallel":
        begun = run.at
        for disk in range(random.choice((2, 3, 4, 6))):
            run.steps.append((f"copy-disk-{disk}", begun, begun + around(100 + 30 * disk, 0.4)))
        run.at = max(end for _, _, end in run.steps)
        return True
    seconds = 60 * random.paretovariate(1.3) if kind == "heavy" else around(size, 0.25)
    if kind == "hang" and random.random() < 0.03:
        run.hung, seconds = True, size * (3 + 20 * random.random())
    if random.random() < 0.1:
        run.step("replicate", seconds * random.random())
        run.step("wait-retry", around(30, 0.2, 1))
    if random.random() < 0.08:
        run.step("replicate", seconds * random.random())
        return False
    if kind == "percent":
        run.percents = [(run.at + seconds * (k / 20) ** 0.5, 5.0 * k) for k in range(1, 21)]
    run.step("replicate", seconds)
    return True


def recorded(path: Path) -> list[JudgedRun]:
    """The completed and failed jobs of a recording that have at least two steps."""
    tables = expected(load(path))
    steps: dict[object, list[tuple[str, float, float]]] = {}
    for row in tables["job_steps"].values():
        if row["started_at"] is not None and row["completed_at"] is not None:
            times = (_seconds(row["started_at"]), _seconds(row["completed_at"]))
            steps.setdefault(row["job_id"], []).append((str(row["name"]), *times))
    found = []
    for row in tables["job_tracking"].values():
        own = steps.get(row["id"], [])
        if row["status"] in ("completed", "failed") and len(own) >= 2:
            entity = str(json.loads(str(row["metadata"] or "{}")).get("vm_name", ""))
            found.append(JudgedRun(_run(str(row["operation"]), entity, row["status"] == "completed", own)))
    return sorted(found, key=lambda judged: judged.run.start)


def logged(path: Path) -> list[JudgedRun]:
    """A set of `DATA`. benchmarks/data/README.md states its columns and its origin."""
    cases: dict[str, list[dict[str, str]]] = {}
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            cases.setdefault(row["case"], []).append(row)
    found = []
    for rows in cases.values():
        steps = [(row["step"], float(row["start"]), float(row["end"])) for row in rows]
        completed = rows[0]["outcome"] == "completed"
        found.append(JudgedRun(_run(rows[0]["operation"], rows[0]["entity"], completed, steps)))
    return sorted(found, key=lambda judged: judged.run.start)


def _run(
    operation: str,
    entity: str,
    completed: bool,
    steps: Sequence[tuple[str, float, float]],
    percents: Sequence[tuple[float, float]] = (),
) -> EndedRun:
    """It starts with its first step and ends with its last one. Times are seconds since 1970."""
    times = tuple(StepTimes(name, round(start * 1e6), round(end * 1e6)) for name, start, end in steps)
    ends = [step.ended_at for step in times if step.ended_at is not None]
    reported = tuple((round(at * 1e6), percent) for at, percent in percents)
    start = min(step.started_at for step in times)
    return EndedRun(("judged", operation), entity, start, max(ends), completed, times, reported)


def _seconds(printed: object) -> float:
    return datetime.fromisoformat(str(printed)).replace(tzinfo=UTC).timestamp()
