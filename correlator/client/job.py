"""The types of a job, as docs/protocol.md describes it. A member without a value is None or missing.

Later versions may add members, and values of those that are texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, TypeAlias, TypedDict

# begin: written by make docs
JobStatus: TypeAlias = Literal["cancelled", "completed", "failed", "pending", "running"]
Metadata: TypeAlias = Mapping[str, Any]
Source: TypeAlias = Literal["joblog", "legacy"]
StepStatus: TypeAlias = Literal["pending", "running", "completed", "failed", "cancelled", "skipped"]
Level: TypeAlias = Literal["DEBUG", "ERROR", "INFO", "WARN"]


class Job(TypedDict):
    job_id: str
    external_ids: Sequence[str]
    context_id: NotRequired[str | None]
    parent_job_id: NotRequired[str | None]
    child_job_ids: Sequence[str]
    job_type: NotRequired[str | None]
    operation: NotRequired[str | None]
    category: NotRequired[str | None]
    owner: NotRequired[str | None]
    status: JobStatus
    terminal: bool
    error: NotRequired[str | None]
    started_at: NotRequired[str | None]
    ended_at: NotRequired[str | None]
    updated_at: str
    duration_seconds: NotRequired[float | None]
    progress: Progress
    forecast: NotRequired[Forecast | None]
    compared_with: NotRequired[Comparison | None]
    current_step: NotRequired[str | None]
    steps: Mapping[str, Step]
    stalled: bool
    last_event_at: NotRequired[str | None]
    last_message: NotRequired[LastMessage | None]
    warnings: int
    errors: int
    metadata: Metadata
    source: Source
    rev: int
    external_ids_cut: NotRequired[int]
    child_job_ids_cut: NotRequired[int]
    counts_complete: NotRequired[bool]
    steps_complete: NotRequired[bool]
    error_cut: NotRequired[int]
    steps_cut: NotRequired[int]
    instance: NotRequired[str]
    title: NotRequired[str]
    current_step_title: NotRequired[str]


class Progress(TypedDict):
    percent: float
    basis: str
    steps_done: int
    steps_failed: int
    steps_running: int
    steps_skipped: int
    steps_seen: int
    steps_expected: NotRequired[int | None]


class Forecast(TypedDict):
    ends_at: ForecastEnd
    as_of: str
    runs: int
    state: str
    typical_seconds: float
    failure_rate: float
    steps_ahead: Sequence[StepAhead]


class ForecastEnd(TypedDict):
    p50: str
    p90: str


class StepAhead(TypedDict):
    name: str
    share: float
    typical_seconds: float
    title: NotRequired[str]


class Comparison(TypedDict):
    typical_seconds: float
    runs: int
    percentile: float


class Step(TypedDict):
    seq: int
    name: str
    status: StepStatus
    started_at: NotRequired[str | None]
    ended_at: NotRequired[str | None]
    duration_seconds: NotRequired[float | None]
    error: NotRequired[str | None]
    error_cut: NotRequired[int]
    title: NotRequired[str]


class LastMessage(TypedDict):
    level: Level
    text: str
    at: str


# end
