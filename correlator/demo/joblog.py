"""JobLog: writes jobs and steps into their tables, and the log rows about them.

Invariants: the table is written first, in a statement of its own; the log row is queued after that statement is done.
Messages, levels, columns and attrs of the lifecycle rows equal those of the appliance. Times are arguments.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, tzinfo
from enum import StrEnum

from correlator.demo.sqlite import Lane, Value
from correlator.demo.values import Level, LogRow, go_json, local_datetime, timestamp


class JobStatus(StrEnum):
    """How a job can end."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class StepStatus(StrEnum):
    """How a step can end."""

    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"


_JOB_LEVELS = {JobStatus.COMPLETED: Level.INFO, JobStatus.FAILED: Level.ERROR, JobStatus.CANCELLED: Level.WARN}
_STEP_LEVELS = {StepStatus.COMPLETED: Level.INFO, StepStatus.FAILED: Level.ERROR, StepStatus.SKIPPED: Level.WARN}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as its engine describes it. `external_id`: in its row, and in log rows that have its context."""

    id: str
    job_type: str
    operation: str
    owner: str
    parent_id: str | None = None
    category: str | None = None
    external_id: str | None = None
    context_id: str | None = None
    metadata: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """A step that was started."""

    id: int
    name: str


class JobLog:
    """The tracker. It awaits table writes; it passes log rows to `put`, which must not block."""

    def __init__(self, lane: Lane, put: Callable[[LogRow], None], *, zone: tzinfo, level: Level = Level.INFO) -> None:
        """Write tables through `lane`, and pass rows of `level` or above to `put`; `zone` is the appliance's."""
        self._lane = lane
        self._put = put
        self._zone = zone
        self._level = level

    async def start_job(self, job: Job, at: datetime) -> None:
        """Insert the job with status running, then log `Job started`."""
        now = timestamp(at)
        await self._lane.execute(
            "INSERT INTO job_tracking (id, parent_job_id, job_type, operation, status, external_job_id, metadata,"
            " started_at, created_at, updated_at, owner, context_id, job_category)"
            " VALUES (?, ?, ?, ?, 'running', ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(job.id, job.parent_id, job.job_type, job.operation, job.external_id, _json(job.metadata)),
                *(now, now, now, job.owner, job.context_id, job.category),
            ),
        )
        attrs = {
            "job_id": job.id,
            "job_type": job.job_type,
            "operation": job.operation,
            "owner": job.owner,
            "parent_job_id": job.parent_id,
        }
        self.log(Level.INFO, "Job started", attrs, at)

    async def end_job(self, job: Job, status: JobStatus, at: datetime, error: str | None = None) -> None:
        """Set the job's final status, then log it, in the only lifecycle row with ids in columns.

        A later call overwrites the result of an earlier one.
        """
        cancelled_at = local_datetime(at, self._zone) if status is JobStatus.CANCELLED else None
        now = timestamp(at)
        await self._lane.execute(
            "UPDATE job_tracking SET status = ?, error_message = ?, completed_at = ?, canceled_at = ?, updated_at = ?"
            " WHERE id = ?",
            (status, error, now, cancelled_at, now, job.id),
        )
        attrs = {"error": error, "job_id": job.id, "status": status}
        columns = (job.id, None, job.external_id)
        self.log(_JOB_LEVELS[status], f"Job {status}", attrs, at, columns)

    async def set_progress(self, job: Job, percent: int, at: datetime) -> None:
        """Set `percent_complete`, then log it at DEBUG, which JobLog normally does not store."""
        await self._lane.execute(
            "UPDATE job_tracking SET percent_complete = ?, updated_at = ? WHERE id = ?",
            (percent, timestamp(at), job.id),
        )
        self.log(Level.DEBUG, "Job progress updated", {"job_id": job.id, "percent": percent}, at)

    async def start_step(
        self, job: Job, name: str, seq: int, at: datetime, metadata: Mapping[str, object] | None = None
    ) -> Step:
        """Insert the step with status running, then log `Step started`. `seq` counts a job's steps from 1."""
        step_id = await self._lane.execute(
            "INSERT INTO job_steps (job_id, name, seq, status, started_at, metadata) VALUES (?, ?, ?, 'running', ?, ?)",
            (job.id, name, seq, local_datetime(at, self._zone), _json(metadata)),
        )
        assert step_id is not None
        attrs = {"job_id": job.id, "sequence": seq, "step_id": step_id, "step_name": name}
        self.log(Level.INFO, "Step started", attrs, at)
        return Step(step_id, name)

    async def end_step(self, job: Job, step: Step, status: StepStatus, at: datetime, error: str | None = None) -> None:
        """Set the step's final status, then log it."""
        await self._lane.execute(
            "UPDATE job_steps SET status = ?, completed_at = ?, error_message = ? WHERE id = ?",
            (status, local_datetime(at, self._zone), error, step.id),
        )
        attrs = {"error": error, "job_id": job.id, "status": status, "step_id": step.id, "step_name": step.name}
        self.log(_STEP_LEVELS[status], f"Step {status}", attrs, at)

    async def recover_panic(self, job: Job, step: Step, panic: str, at: datetime) -> None:
        """Log a step's panic and fail the step. The job continues, because its engine does not learn of the panic."""
        attrs = {"job_id": job.id, "panic": panic, "step_id": step.id, "step_name": step.name}
        self.log(Level.ERROR, "Panic recovered in step", attrs, at)
        await self.end_step(job, step, StepStatus.FAILED, at, f"panic in step {step.name}: {panic}")

    def log_by_job(
        self,
        job: Job,
        step: Step,
        level: Level,
        message: str,
        attrs: Mapping[str, object],
        at: datetime,
        *,
        with_context: bool,
    ) -> None:
        """Log through the job's logger: ids are in attrs, and in columns only if the caller passes its context on."""
        columns = (job.id, step.id, job.external_id) if with_context else (None, None, None)
        self.log(level, message, {**attrs, "job_id": job.id, "step_id": step.id}, at, columns)

    def log(
        self,
        level: Level,
        message: str,
        attrs: Mapping[str, object] | None,
        at: datetime,
        columns: tuple[str | None, int | None, str | None] = (None, None, None),
    ) -> None:
        """Log a row. `columns`: its job, step and external ID; without them, only its attrs can name a job."""
        if level.rank >= self._level.rank:
            self._put(LogRow(level, message, _json(attrs), local_datetime(at, self._zone), *columns))


def _json(attrs: Mapping[str, object] | None) -> str | None:
    return None if attrs is None else go_json(attrs)


class Legacy:
    """`failover_jobs`, the tracker from before JobLog: one row per failover, whose status changes.

    It logs nothing. `job_id` is the ID that the caller of the API has; a call with a known ID changes that row.
    """

    def __init__(self, lane: Lane) -> None:
        """Write through `lane`."""
        self._lane = lane

    async def start(self, job_id: str, vm_name: str, context_id: str, kind: str, at: datetime) -> None:
        """Insert the row with status pending; `kind` is live or test."""
        now = timestamp(at)
        await self._lane.execute(
            "INSERT OR IGNORE INTO failover_jobs (vm_context_id, job_id, vm_id, job_type, status, source_vm_name,"
            " created_at, updated_at, started_at) VALUES (?, ?, ?, ?, 'pending', ?, ?, ?, ?)",
            (context_id, job_id, f"4205-{vm_name}", kind, vm_name, now, now, now),
        )

    async def move(self, job_id: str, status: str, at: datetime, error: str | None = None) -> None:
        """Set the status, one of the table's own values; completed and failed are final."""
        now = timestamp(at)
        destination: Value = "i-2-77-VM" if status == "completed" else ""
        await self._lane.execute(
            "UPDATE failover_jobs SET status = ?, destination_vm_id = ?, error_message = ?, updated_at = ?,"
            " completed_at = ? WHERE job_id = ?",
            (status, destination, error, now, now if status in {"completed", "failed"} else None, job_id),
        )
