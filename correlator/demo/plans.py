"""What a plan is: one job with all its steps, lines, durations and mishaps, before it happens.

Always: frozen values. What needs the time of day (the constructed IDs with their Unix seconds) is a rule in the plan
and becomes text when the plan is played.
"""

from dataclasses import dataclass
from enum import Enum, StrEnum

from correlator.demo.values import Level


class Ending(Enum):
    """How a job ends. FAILED_THEN_COMPLETED ends twice, 1 ms apart; DIED never ends: its process is gone."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    FAILED_THEN_COMPLETED = "failed, then completed"
    DIED = "died"


class StepEnding(Enum):
    """How a step ends. PANICKED fails the step and nobody else; NEVER is where a job died."""

    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"
    PANICKED = "panicked"
    NEVER = "never"


class Ids(Enum):
    """Where a job's constructed IDs stand."""

    BOTH = "column, metadata external_job_id and failover_job_id"
    ENGINE = "column and metadata external_job_id"
    METADATA = "metadata external_job_id alone"
    NONE = "nowhere: no external ID at all"


class Kind(StrEnum):
    """What `failover_jobs.job_type` and the constructed IDs say."""

    LIVE = "live"
    TEST = "test"


@dataclass(frozen=True, slots=True)
class Line:
    """A log line of a step; with the job's context its ids stand in columns, without it in attrs alone."""

    level: Level
    message: str
    attrs: tuple[tuple[str, object], ...] = ()
    with_context: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """A step: its lines, evenly spread over its seconds; `percents` are set in the table alone, spread likewise."""

    name: str
    seconds: float
    ending: StepEnding = StepEnding.COMPLETED
    lines: tuple[Line, ...] = ()
    percents: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPlan:
    """A job from its start to its end. `skew`: by how many seconds the API handler's ID is older than the engine's.

    `reports_percent`: each step that ends sets percent_complete, out of `steps_planned` (a failure cuts `steps` short).
    `legacy_lead` is None without a `failover_jobs` row; else the row comes so many seconds before the job's, 0 meaning
    just after it.
    """

    id: str
    job_type: str
    operation: str
    owner: str
    vm: str
    context_id: str | None = None
    ids: Ids
    ending: Ending
    steps: tuple[StepPlan, ...]
    category: str | None = None
    id_prefix: str = ""
    skew: int = 0
    error: str | None = None
    reports_percent: bool = False
    steps_planned: int = 0
    kind: Kind | None = None
    legacy_lead: float | None = None
    children: tuple["JobPlan", ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LegacyPlan:
    """A failover that only the legacy tracker knows; `seconds` is how long each of its statuses lasts."""

    vm: str
    context_id: str
    kind: Kind
    statuses: tuple[str, ...]
    seconds: float
    error: str | None = None


Plan = JobPlan | LegacyPlan
