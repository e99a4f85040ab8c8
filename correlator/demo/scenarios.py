"""The scenarios that the simulated appliance plays: `scenarios.toml` as values, and their order.

Invariants: pure; the same seed gives the same order and the same choices.
"""

import functools
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from itertools import chain, islice
from random import Random
from typing import Any, Literal

import msgspec
from msgspec import Struct

from correlator.demo.joblog import JobStatus
from correlator.demo.values import Level

StepEnding = Literal["completed", "failed", "skipped", "panicked", "never"]
"""How a step ends. A panicked one fails, but not its job; ``never`` is the step in which the job's process died."""


class Line(Struct, frozen=True, forbid_unknown_fields=True):
    """A log row, drawn in proportion to its `weight`. With the job's context its ids are in columns, else in attrs."""

    weight: int
    level: Level
    message: str
    attrs: Mapping[str, Any] | None = None
    with_context: bool = False


class Trouble(Struct, frozen=True, forbid_unknown_fields=True):
    """One step that does not complete. `steps`: the first and the last that it may be, counted from 1.

    No step follows one that failed or never ended. `job`: how the job then ends, in this order.
    """

    steps: tuple[int, int]
    ending: StepEnding
    job: tuple[JobStatus, ...]
    chance: float = 1.0


class Scenario(Struct, frozen=True, forbid_unknown_fields=True):
    """One kind of job. Without a `job_type` it is in `failover_jobs` alone.

    `skews`: seconds by which the ID of the API handler is older than the engine's. `reports_percent`: the probability
    that steps set percent_complete. `legacy_leads`: seconds by which the `failover_jobs` row precedes the job's.
    """

    job_type: str = ""
    operation: str = ""
    owner: str = ""
    category: str = ""
    vm: str = ""
    id_prefix: str = ""
    id_in_columns: bool = False
    skews: tuple[int, ...] = (0,)
    metadata: Mapping[str, str] = {}
    steps: tuple[str, ...] = ()
    percents: Mapping[str, tuple[int, ...]] = {}
    logs_transfer: bool = True
    reports_percent: float = 0.0
    trouble: Trouble | None = None
    ends: tuple[JobStatus, ...] = (JobStatus.COMPLETED,)
    error: str | None = None
    legacy: Mapping[str, str] = {}
    legacy_leads: tuple[float, ...] = (0.0,)
    children: tuple[str, ...] = ()


class Scenarios(Struct, frozen=True, forbid_unknown_fields=True):
    """The file. A scenario may be `like` another one: it has the same members, except those that it sets."""

    opening: tuple[str, ...]
    repeated: tuple[str, ...]
    errors: tuple[str, ...]
    vms: Mapping[str, int]
    noise: tuple[Line, ...]
    lines: tuple[Line, ...]
    scenario: Mapping[str, Scenario]


@functools.cache
def load() -> Scenarios:
    """Read the file of the package."""
    raw = tomllib.loads((files("correlator.demo") / "scenarios.toml").read_text(encoding="utf-8"))
    scenarios = raw["scenario"]
    raw["scenario"] = {name: scenarios.get(own.pop("like", None), {}) | own for name, own in scenarios.items()}
    return msgspec.convert(raw, Scenarios)


def live(seed: int) -> Iterator[tuple[str, Random]]:
    """Yield the scenarios of the live traffic, without end, each with the random numbers of its job."""
    names = chain(load().opening, _shuffled(Random(f"{seed}-order")))
    return ((name, Random(f"{seed}-{number}")) for number, name in enumerate(names))


def past(seed: int, count: int) -> list[tuple[str, Random]]:
    """Return `count` scenarios from before the start of the demo: the first never ends, the others do."""
    names = ["died", *islice(_shuffled(Random(f"{seed}-past")), count - 1)]
    return [(name, Random(f"{seed}-past-{number}")) for number, name in enumerate(names)]


def long_past(seed: int, count: int) -> list[tuple[str, Random]]:
    """Return `count` scenarios from weeks before the start of the demo; all of them end."""
    names = islice(_shuffled(Random(f"{seed}-long-past")), count)
    return [(name, Random(f"{seed}-long-past-{number}")) for number, name in enumerate(names)]


def _shuffled(random: Random) -> Iterator[str]:
    repeated = load().repeated
    while True:
        yield from random.sample(repeated, len(repeated))


def noise(seed: int | str) -> Iterator[Line]:
    """Yield log rows that belong to no job, without end."""
    random, vms = Random(f"{seed}-noise"), tuple(load().vms)
    while True:
        yield draw(load().noise, random, {"vm": random.choice(vms)})


def draw(lines: Sequence[Line], random: Random, texts: Mapping[str, str]) -> Line:
    """Draw one of `lines`, with its choices made and its texts filled in."""

    def filled(value: Any) -> Any:
        value = random.choice(value) if isinstance(value, list) else value
        return value.format_map(texts) if isinstance(value, str) else value

    line = random.choices(lines, [line.weight for line in lines])[0]
    attrs = None if line.attrs is None else {name: filled(value) for name, value in line.attrs.items()}
    return msgspec.structs.replace(line, message=filled(line.message), attrs=attrs)


def course(scenario: Scenario, random: Random) -> tuple[list[tuple[str, StepEnding]], Sequence[JobStatus]]:
    """Return the steps of one job with their endings, and how the job ends."""
    steps: list[tuple[str, StepEnding]] = [(name, "completed") for name in scenario.steps]
    trouble = scenario.trouble
    if trouble is None or random.random() >= trouble.chance:
        return steps, scenario.ends
    at = random.randint(*trouble.steps)
    steps[at - 1] = steps[at - 1][0], trouble.ending
    return steps[:at] if trouble.ending in ("failed", "never") else steps, trouble.job
