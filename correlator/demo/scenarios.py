"""The scenarios that the simulated appliance plays: `scenarios.toml` as values, their order, and how one is played.

A `Player` makes the calls that the appliance's engines make to JobLog and to the legacy tracker while a job runs, in
the time of a `Clock`: real time at an adjustable rate, or simulated time in the past that takes no real time.
Invariants: the same seed gives the same order and the same choices. The API handler constructs the caller's ID before
the job has a row. Every change goes through JobLog, in the order in which the engines make it. Only the clock decides
how long it takes, and only `random` what is chosen. Seconds are seconds of the scenario, whatever their real duration.
"""

import asyncio
import functools
import tomllib
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.resources import files
from itertools import chain, islice
from random import Random
from typing import Any, Literal, Protocol
from uuid import UUID

import msgspec
from msgspec import Struct

from correlator.demo.joblog import DemoJob, DemoStep, JobLog, JobStatus, LegacyTable, Level, StepStatus
from correlator.tasks import TaskGroup

Part = Callable[["Clock"], Coroutine[Any, Any, None]]


class Clock(Protocol):
    """The time that a scenario is played in."""

    def now(self) -> datetime:
        """Return the current time, with its zone."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Let `seconds` of the scenario pass."""
        ...

    async def together(self, parts: Iterable[Part]) -> None:
        """Play the parts concurrently, from now until the last one ends."""
        ...


class LiveClock:
    """Real time. One second of a scenario lasts 1/rate real seconds."""

    def __init__(self, rate: float) -> None:
        """A `rate` above 1 is faster than real time. Raises ValueError if it is not above 0."""
        if not rate > 0:
            raise ValueError(f"rate: expected a number above 0, not {rate}")
        self._rate = rate

    def now(self) -> datetime:
        """Return the real time."""
        return datetime.now(UTC)

    async def sleep(self, seconds: float) -> None:
        """Sleep for seconds/rate real seconds."""
        await asyncio.sleep(seconds / self._rate)

    async def together(self, parts: Iterable[Part]) -> None:
        """Play each part in a task."""
        async with TaskGroup() as group:
            for part in parts:
                group.create_task(part(self))


class PastClock:
    """Simulated time. Concurrent parts are played one after the other, each from the same start time."""

    def __init__(self, at: datetime) -> None:
        """Start at `at`."""
        self._at = at

    def now(self) -> datetime:
        """Return the simulated time."""
        return self._at

    async def sleep(self, seconds: float) -> None:
        """Advance the simulated time."""
        self._at += timedelta(seconds=seconds)

    async def together(self, parts: Iterable[Part]) -> None:
        """Play each part from now, and continue when the longest one has ended."""
        clocks = []
        for part in parts:
            clock = PastClock(self._at)
            await part(clock)
            clocks.append(clock)
        self._at = max((clock.now() for clock in clocks), default=self._at)


StepEnding = Literal["completed", "failed", "skipped", "panicked", "never"]
"""How a step ends. A panicked one fails, but not its job; ``never`` is the step in which the job's process died."""


class LineForm(Struct, frozen=True, forbid_unknown_fields=True):
    """A log row, drawn in proportion to its `weight`. With the job's context its ids are in columns, else in attrs."""

    weight: int
    level: Level
    message: str
    attrs: Mapping[str, Any] | None = None
    with_context: bool = False


class Mishap(Struct, frozen=True, forbid_unknown_fields=True):
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
    trouble: Mishap | None = None
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
    noise: tuple[LineForm, ...]
    lines: tuple[LineForm, ...]
    scenario: Mapping[str, Scenario]


@functools.cache
def load() -> Scenarios:
    """Read the file of the package."""
    raw = tomllib.loads((files("correlator.demo") / "scenarios.toml").read_text(encoding="utf-8"))
    scenarios = raw["scenario"]
    raw["scenario"] = {name: scenarios.get(own.pop("like", None), {}) | own for name, own in scenarios.items()}
    return msgspec.convert(raw, Scenarios)


def live_scenarios(seed: int) -> Iterator[tuple[str, Random]]:
    """Yield the scenarios of the live traffic, without end, each with the random numbers of its job."""
    names = chain(load().opening, _shuffled(Random(f"{seed}-order")))
    return ((name, Random(f"{seed}-{number}")) for number, name in enumerate(names))


def past_scenarios(seed: int, count: int) -> list[tuple[str, Random]]:
    """Return `count` scenarios from before the start of the demo: the first never ends, the others do."""
    names = ["died", *islice(_shuffled(Random(f"{seed}-past")), count - 1)]
    return [(name, Random(f"{seed}-past-{number}")) for number, name in enumerate(names)]


def long_past_scenarios(seed: int, count: int) -> list[tuple[str, Random]]:
    """Return `count` scenarios from weeks before the start of the demo; all of them end."""
    names = islice(_shuffled(Random(f"{seed}-long-past")), count)
    return [(name, Random(f"{seed}-long-past-{number}")) for number, name in enumerate(names)]


def _shuffled(random: Random) -> Iterator[str]:
    repeated = load().repeated
    while True:
        yield from random.sample(repeated, len(repeated))


def noise(seed: int | str) -> Iterator[LineForm]:
    """Yield log rows that belong to no job, without end."""
    random, vms = Random(f"{seed}-noise"), tuple(load().vms)
    while True:
        yield draw(load().noise, random, {"vm": random.choice(vms)})


def draw(lines: Sequence[LineForm], random: Random, texts: Mapping[str, str]) -> LineForm:
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


PANIC = "runtime error: index out of range [3] with length 3"

SECONDS = (1.0, 12.0)
"""The duration of the shortest and of the longest step."""

DISK = 5_242_880
"""Bytes that a migration transfers."""


@dataclass(frozen=True, slots=True)
class Player:
    """Plays scenarios through the trackers, in the time of `clock`.

    `on_start` is called with the ID that the GUI has once the job has a row, `on_end` when the job has ended.
    """

    joblog: JobLog
    legacy: LegacyTable
    clock: Clock
    on_start: Callable[[str], None] = lambda _: None
    on_end: Callable[[str], None] = lambda _: None

    async def play(self, name: str, random: Random, parent_id: str | None = None) -> None:
        """Play a scenario to its end; `parent_id` is the UUID of its parent job, if it has one."""
        scenario, vms = load().scenario[name], load().vms
        vm = scenario.vm or random.choices(tuple(vms), tuple(vms.values()))[0]
        context = f"ctx-{vm}-20250922-{list(vms).index(vm):06d}"  # all failovers and rollbacks of a VM share it
        texts = {"vm": vm, "kind": random.choice(("live", "test")), "context": context}
        error = scenario.error or random.choice(load().errors)
        play = _Play(self, self.clock, scenario, random, texts, error)
        await (play.job(parent_id) if scenario.job_type else play.legacy_alone())


@dataclass(frozen=True, slots=True)
class _Play:
    """One job. `texts` fills in the texts of the scenario; `error` is used if something fails."""

    player: Player
    clock: Clock
    scenario: Scenario
    random: Random
    texts: dict[str, str]
    error: str

    async def job(self, parent_id: str | None) -> None:
        joblog, clock, scenario, random = self.player.joblog, self.clock, self.scenario, self.random
        gui_id = self.texts["gui_id"] = self._constructed_id(random.choice(scenario.skews))
        lead = random.choice(scenario.legacy_leads)
        if scenario.legacy and lead:
            await self._start_legacy()
            await clock.sleep(lead)
        self.texts["engine_id"] = self._constructed_id(0)
        job = self._described(parent_id)
        await joblog.start_job(job, clock.now())
        if scenario.legacy:
            self.player.on_start(gui_id)
            await self._start_legacy()  # changes nothing if the row exists
        steps, endings = course(scenario, random)
        reports = random.random() < scenario.reports_percent
        for seq, (name, ending) in enumerate(steps, start=1):
            if name in scenario.legacy:
                await self.player.legacy.move(gui_id, scenario.legacy[name], clock.now())
            step = await joblog.start_step(
                job, name, seq, clock.now(), {"reason": "linux guest"} if ending == "skipped" else None
            )
            if ending != "skipped":
                await self._work(job, step)
            await self._end_step(job, step, ending)
            if reports and ending not in ("skipped", "never"):
                # The engines count how far they came, not what succeeded: a failed step moves the percentage too.
                await joblog.set_progress(job, 100 * seq // len(scenario.steps), clock.now())
        await clock.together(
            partial(self._child, name, Random(random.getrandbits(64)), job.id, wait)
            for wait, name in enumerate(scenario.children)
        )
        for number, status in enumerate(endings):
            await clock.sleep(0.001 * number)
            await joblog.end_job(job, status, clock.now(), None if status is JobStatus.COMPLETED else self.error)
        if scenario.legacy:
            await self._end_legacy(endings[-1])
        self.player.on_end(gui_id)

    async def _child(self, name: str, random: Random, parent_id: str, wait: float, clock: Clock) -> None:
        await clock.sleep(wait)
        await replace(self.player, clock=clock).play(name, random, parent_id)

    async def _work(self, job: DemoJob, step: DemoStep) -> None:
        """Let the step take its time, with what happens in it at equal distances: percentages, or a few lines."""
        joblog, clock, random = self.player.joblog, self.clock, self.random
        texts = {**self.texts, "step": step.name}
        percents = self.scenario.percents.get(step.name, ())
        lines = [draw(load().lines, random, texts) for _ in range(random.randrange(4))]
        pause = random.uniform(*SECONDS) / (1 + len(percents or lines))
        for percent in percents:
            await clock.sleep(pause)
            await joblog.set_progress(job, percent, clock.now())
            if self.scenario.logs_transfer:
                attrs = {"bytes": percent * DISK // 100, "total_bytes": DISK}
                self._log(job, step, LineForm(1, Level.INFO, "transfer progress", attrs, with_context=True))
        for line in () if percents else lines:
            await clock.sleep(pause)
            self._log(job, step, line)
        await clock.sleep(pause)

    def _log(self, job: DemoJob, step: DemoStep, line: LineForm) -> None:
        self.player.joblog.log_by_job(
            job, step, line.level, line.message, line.attrs or {}, self.clock.now(), with_context=line.with_context
        )

    async def _end_step(self, job: DemoJob, step: DemoStep, ending: StepEnding) -> None:
        if ending == "panicked":
            await self.player.joblog.recover_panic(job, step, PANIC, self.clock.now())
        elif ending != "never":
            error = self.error if ending == "failed" else None
            await self.player.joblog.end_step(job, step, StepStatus(ending), self.clock.now(), error)

    async def legacy_alone(self) -> None:
        """Play a failover that only `failover_jobs` has."""
        gui_id = self.texts["gui_id"] = self._constructed_id(0)
        await self._start_legacy()
        steps, endings = course(self.scenario, self.random)
        for status, _ in steps:
            await self.clock.sleep(self.random.uniform(*SECONDS))
            await self.player.legacy.move(gui_id, status, self.clock.now())
        await self.clock.sleep(self.random.uniform(*SECONDS))
        await self._end_legacy(endings[-1])

    async def _start_legacy(self) -> None:
        texts = self.texts
        await self.player.legacy.start(texts["gui_id"], texts["vm"], texts["context"], texts["kind"], self.clock.now())

    async def _end_legacy(self, status: JobStatus) -> None:
        error = self.error if status is JobStatus.FAILED else None
        await self.player.legacy.move(self.texts["gui_id"], status, self.clock.now(), error)

    def _constructed_id(self, skew: int) -> str:
        """Return the ID that the appliance constructs now minus `skew` seconds, to name the job outside JobLog."""
        return f"{self.scenario.id_prefix.format_map(self.texts)}-{int(self.clock.now().timestamp()) - skew}"

    def _described(self, parent_id: str | None) -> DemoJob:
        """Return the job as its engine describes it to JobLog."""
        scenario, texts = self.scenario, self.texts
        metadata = {key: text.format_map(texts) for key, text in scenario.metadata.items()}
        return DemoJob(
            id=str(UUID(int=self.random.getrandbits(128), version=4)),
            parent_id=parent_id,
            job_type=scenario.job_type,
            operation=scenario.operation.format_map(texts),
            owner=scenario.owner,
            category=scenario.category or None,
            context_id=metadata.get("context_id"),
            external_id=texts["engine_id"] if scenario.id_in_columns else None,
            metadata=metadata or None,
        )
