"""One plan, played: what the appliance's engines do with JobLog and with the legacy tracker while a job runs.

Always: the API handler has made up the caller's ID before the job has a row; every change goes through JobLog, in the
order the engines make it; the clock alone says how long it takes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

from correlator.demo.clock import Clock
from correlator.demo.joblog import Job, JobLog, JobStatus, Legacy, Step, StepStatus
from correlator.demo.plans import Ending, Ids, JobPlan, LegacyPlan, Line, Plan, StepEnding, StepPlan

PANIC = "runtime error: index out of range [3] with length 3"

# Which step of a failover moves its `failover_jobs` row to which status.
LEGACY_STATUS = {
    "validation": "validating",
    "multi-volume-snapshot-creation": "snapshotting",
    "vm-creation": "creating_vm",
    "volume-attachment": "switching_volume",
    "vm-startup-and-validation": "powering_on",
}


@dataclass(frozen=True, slots=True)
class Stage:
    """The trackers and the time a plan is played with.

    `entered` is told a job's ID as the GUI holds it once the job has a row, `left` when it has ended.
    """

    joblog: JobLog
    legacy: Legacy
    clock: Clock
    entered: Callable[[str], None] = lambda _: None
    left: Callable[[str], None] = lambda _: None

    async def play(self, plan: Plan, parent_id: str | None = None) -> None:
        """Play a plan to its end; `parent_id` is the job it is a child of."""
        match plan:
            case JobPlan():
                await self._job(plan, parent_id)
            case LegacyPlan():
                await self._legacy_only(plan)

    async def _job(self, plan: JobPlan, parent_id: str | None) -> None:
        clock = self.clock
        gui_id = constructed_id(plan, clock.now(), plan.skew)
        if plan.kind and plan.legacy_lead:
            await self.legacy.start(gui_id, plan.vm, plan.context_id or "", plan.kind, clock.now())
            await clock.sleep(plan.legacy_lead)
        job = described(plan, gui_id, constructed_id(plan, clock.now(), 0), parent_id)
        await self.joblog.start_job(job, clock.now())
        if plan.ids is Ids.BOTH:
            self.entered(gui_id)
        if plan.kind and plan.legacy_lead == 0:
            await self.legacy.start(gui_id, plan.vm, plan.context_id or "", plan.kind, clock.now())

        moved = partial(self.legacy.move, gui_id) if plan.legacy_lead is not None else None
        for seq, step in enumerate(plan.steps, start=1):
            if moved and step.name in LEGACY_STATUS:
                await moved(LEGACY_STATUS[step.name], clock.now())
            await self._step(plan, job, seq, step)
        await clock.together(partial(self._child, child, job.id, wait) for wait, child in enumerate(plan.children))
        await self._end(plan, job)
        if moved:
            failed = plan.ending is Ending.FAILED
            await moved("failed" if failed else "completed", clock.now(), plan.error if failed else None)
        self.left(gui_id)

    async def _child(self, plan: JobPlan, parent_id: str, wait: float, clock: Clock) -> None:
        await clock.sleep(wait)
        await replace(self, clock=clock).play(plan, parent_id)

    async def _step(self, plan: JobPlan, job: Job, seq: int, step: StepPlan) -> None:
        joblog, clock = self.joblog, self.clock
        skipped = step.ending is StepEnding.SKIPPED
        started = await joblog.start_step(
            job, step.name, seq, clock.now(), {"reason": "linux guest"} if skipped else None
        )
        passed = 0.0
        for moment, what in _moments(step):
            await clock.sleep((moment - passed) * step.seconds)
            passed = moment
            if isinstance(what, Line):
                self._line(job, started, what)
            else:
                await joblog.set_progress(job, what, clock.now())
        await clock.sleep((1.0 - passed) * step.seconds)
        match step.ending:
            case StepEnding.COMPLETED:
                await joblog.end_step(job, started, StepStatus.COMPLETED, clock.now())
            case StepEnding.FAILED:
                await joblog.end_step(job, started, StepStatus.FAILED, clock.now(), plan.error)
            case StepEnding.SKIPPED:
                await joblog.end_step(job, started, StepStatus.SKIPPED, clock.now())
            case StepEnding.PANICKED:
                await joblog.recover_panic(job, started, PANIC, clock.now())
            case StepEnding.NEVER:
                return
        if plan.reports_percent and not skipped:
            # The engines count how far they came, not what succeeded: a failed step moves the percentage too.
            await joblog.set_progress(job, 100 * seq // plan.steps_planned, clock.now())

    def _line(self, job: Job, step: Step, line: Line) -> None:
        self.joblog.log_by_job(
            job, step, line.level, line.message, dict(line.attrs), self.clock.now(), with_context=line.with_context
        )

    async def _end(self, plan: JobPlan, job: Job) -> None:
        joblog, clock = self.joblog, self.clock
        match plan.ending:
            case Ending.COMPLETED:
                await joblog.end_job(job, JobStatus.COMPLETED, clock.now())
            case Ending.FAILED:
                await joblog.end_job(job, JobStatus.FAILED, clock.now(), plan.error)
            case Ending.CANCELLED:
                await joblog.end_job(job, JobStatus.CANCELLED, clock.now(), plan.error)
            case Ending.FAILED_THEN_COMPLETED:
                # The rollback's error path ends the job, and so does the deferred call around it.
                await joblog.end_job(job, JobStatus.FAILED, clock.now(), plan.error)
                await clock.sleep(0.001)
                await joblog.end_job(job, JobStatus.COMPLETED, clock.now())
            case Ending.DIED:
                pass

    async def _legacy_only(self, plan: LegacyPlan) -> None:
        clock = self.clock
        job_id = f"unified-{plan.kind}-failover-{plan.vm}-{int(clock.now().timestamp())}"
        await self.legacy.start(job_id, plan.vm, plan.context_id, plan.kind, clock.now())
        for status in plan.statuses[1:]:
            await clock.sleep(plan.seconds)
            await self.legacy.move(job_id, status, clock.now(), plan.error if status == "failed" else None)


def constructed_id(plan: JobPlan, at: datetime, skew: int) -> str:
    """Return the ID that the appliance makes up at `at`, `skew` seconds earlier, to name the job outside JobLog."""
    return f"{plan.id_prefix}-{plan.vm}-{int(at.timestamp()) - skew}"


def described(plan: JobPlan, gui_id: str, engine_id: str, parent_id: str | None) -> Job:
    """Return the job as its engine describes it to JobLog: where its IDs stand is the plan's `ids`."""
    metadata: dict[str, object] | None
    match plan.ids:
        case Ids.BOTH:
            metadata = {
                "context_id": plan.context_id,
                "external_job_id": engine_id,
                "failover_job_id": gui_id,
                "failover_type": plan.kind,
                "vm_name": plan.vm,
                "vmware_vm_id": "4205a841",
            }
        case Ids.ENGINE:
            metadata = {
                "context_id": plan.context_id,
                "external_job_id": engine_id,
                "operation": "unified-failover-rollback",
                "vm_name_or_id": plan.vm,
            }
        case Ids.METADATA:
            metadata = {"external_job_id": engine_id, "vm_name": plan.vm}
            if plan.context_id:
                metadata["context_id"] = plan.context_id
        case Ids.NONE:
            metadata = {"group_id": "grp-7", "schedule_id": "sched-1"} if plan.children else None
    carried = engine_id if plan.ids in {Ids.BOTH, Ids.ENGINE} else None
    return Job(
        id=plan.id,
        parent_id=parent_id,
        job_type=plan.job_type,
        operation=plan.operation,
        owner=plan.owner,
        category=plan.category,
        context_id=plan.context_id,
        external_id=carried,
        context_external_id=carried,
        metadata=metadata,
    )


def _moments(step: StepPlan) -> list[tuple[float, Line | int]]:
    """Return the step's lines and percentages with the moment of each, 0 to 1; a percentage comes before its line."""
    happenings: tuple[Sequence[Line | int], ...] = (step.percents, step.lines)
    moments = [((n + 1) / (len(row) + 1), what) for row in happenings for n, what in enumerate(row)]
    return sorted(moments, key=lambda moment: moment[0])
