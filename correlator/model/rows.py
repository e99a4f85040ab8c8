"""Rows of the four tables, as a source reads them. Times are converted to UTC, and nothing else is interpreted."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias, get_args

from msgspec import Meta, Struct

Int64: TypeAlias = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Micros: TypeAlias = Int64
"""A point in time: microseconds since 1970-01-01T00:00:00Z."""

Level: TypeAlias = Annotated[Literal["DEBUG", "INFO", "WARN", "ERROR"], Meta(title="Level")]
LEVELS: Final[tuple[Level, ...]] = get_args(get_args(Level)[0])
"""In ascending order of severity."""


class LogRow(Struct, frozen=True, gc=False):
    """One row of ``log_events`` as stored, with ``ts`` converted to UTC."""

    id: int
    message: str
    ts: Micros
    level: str = "INFO"
    job_id: str | None = None
    step_id: int | None = None
    attrs: str | None = None
    external_job_id: str | None = None


class JobColumns(Struct, frozen=True, gc=False, kw_only=True):
    """Texts that a job document has as ``job_tracking`` has them, under the same names. Empty ones count as missing.

    A new one is added here and to `model.document`, with a new `VERSION` of the checkpoint.
    """

    operation: str | None = None
    job_type: str | None = None
    parent_job_id: str | None = None
    owner: str | None = None
    context_id: str | None = None


COLUMNS = JobColumns.__struct_fields__


class JobRecord(JobColumns, frozen=True, gc=False, array_like=True):
    """One row of ``job_tracking``. Columns that an appliance does not have are ``None``."""

    job_id: str
    status: str | None = None
    external_job_id: str | None = None
    metadata: str | None = None
    error_message: str | None = None
    started_at: Micros | None = None
    completed_at: Micros | None = None
    created_at: Micros | None = None
    updated_at: Micros | None = None
    canceled_at: Micros | None = None
    percent_complete: int | None = None
    job_category: str | None = None
    error_cut: int | None = None
    """Bytes of the whole error message if `error_message` was cut, else None."""


class StepRecord(Struct, frozen=True, gc=False, array_like=True):
    """One row of ``job_steps``, or a published step, whose events may be newer than the table."""

    id: int
    name: str = ""
    seq: int = 0
    status: str = "running"
    started_at: Micros | None = None
    completed_at: Micros | None = None
    error_message: str | None = None
    error_cut: int | None = None

    @property
    def order_key(self) -> tuple[bool, int, int]:
        """Orders the steps of a job. ``seq`` 0 means "not known yet": such a step is the newest and comes last."""
        return (self.seq == 0, self.seq, self.id)


class LegacyRecord(Struct, frozen=True, gc=False):
    """One row of ``failover_jobs``. ``apart``: a table query found no JobLog job with its ID. The row is published."""

    id: Int64
    job_id: str
    status: str = "pending"
    job_type: str | None = None
    vm_id: str | None = None
    vm_context_id: str | None = None
    source_vm_name: str | None = None
    source_vm_spec: str | None = None
    destination_vm_id: str | None = None
    snapshot_id: str | None = None
    error_message: str | None = None
    created_at: Micros | None = None
    updated_at: Micros | None = None
    started_at: Micros | None = None
    completed_at: Micros | None = None
    apart: bool = False
    error_cut: Int64 | None = None
