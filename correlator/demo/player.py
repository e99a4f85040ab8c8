"""Plays one scenario: the calls that the appliance's engines make to JobLog and to the legacy tracker while a job runs.

Invariants: the API handler constructs the caller's ID before the job has a row. Every change goes through JobLog, in
the order in which the engines make it. Only the clock decides how long it takes, and only `random` what is chosen.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from uuid import UUID

from correlator.demo.clock import Clock
from correlator.demo.joblog import Job, JobLog, JobStatus, Legacy, Step, StepStatus
from correlator.demo.scenarios import Line, Scenario, StepEnding, course, draw, load
from correlator.demo.values import Level

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
    legacy: Legacy
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

    async def _work(self, job: Job, step: Step) -> None:
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
                self._log(job, step, Line(1, Level.INFO, "transfer progress", attrs, with_context=True))
        for line in () if percents else lines:
            await clock.sleep(pause)
            self._log(job, step, line)
        await clock.sleep(pause)

    def _log(self, job: Job, step: Step, line: Line) -> None:
        self.player.joblog.log_by_job(
            job, step, line.level, line.message, line.attrs or {}, self.clock.now(), with_context=line.with_context
        )

    async def _end_step(self, job: Job, step: Step, ending: StepEnding) -> None:
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

    def _described(self, parent_id: str | None) -> Job:
        """Return the job as its engine describes it to JobLog."""
        scenario, texts = self.scenario, self.texts
        metadata = {key: text.format_map(texts) for key, text in scenario.metadata.items()}
        return Job(
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
