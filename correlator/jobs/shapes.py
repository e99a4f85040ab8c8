"""The public shape of job documents: docs/protocol.md as types. Those of messages are in `message_shapes`.

`job_document` and the sinks build these dicts, and mypy checks them. The served OpenAPI and AsyncAPI documents are
generated from them. Every shape is closed: no other member is sent. ``None`` means "not known".
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypeAlias, TypedDict

from msgspec import Meta

from correlator.jobs.model.rows import Level

JobStatus: TypeAlias = Literal["pending", "running", "completed", "failed", "cancelled"]
StepStatus: TypeAlias = Literal["pending", "running", "completed", "failed", "cancelled", "skipped"]
Basis: TypeAlias = Annotated[
    Literal["reported", "history", "steps", "legacy"],
    Meta(
        description="What `percent` rests on: JobLog's own percent; earlier runs of the operation; steps done of steps"
        " seen; the status that `failover_jobs` has. More may come."
    ),
]
ForecastState: TypeAlias = Annotated[
    Literal["rough", "on_track", "late", "overdue"],
    Meta(
        description="How the job compares with earlier runs at the same point: fewer than 10 were there; as usual; it"
        " has waited there longer than 9 of 10; longer than any."
    ),
]
Source: TypeAlias = Annotated[
    Literal["joblog", "legacy"], Meta(description="`legacy`: a job known from `failover_jobs` alone.")
]
DatabaseState: TypeAlias = Annotated[Literal["live", "stale", "down"], Meta(description="The database behind it.")]

Time: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$",
        extra_json_schema={"format": "date-time"},
        examples=["2025-09-22T10:00:00.000000Z"],
    ),
]
Count: TypeAlias = Annotated[int, Meta(ge=0)]
Seconds: TypeAlias = Annotated[float, Meta(ge=0, description="Seconds.")]
Percent: TypeAlias = Annotated[float, Meta(ge=0, le=100)]
JobId: TypeAlias = Annotated[str, Meta(description="A job's UUID; of a legacy job its own ID.")]
Epoch: TypeAlias = Annotated[str, Meta(description="Names one run of the daemon.")]
Seq: TypeAlias = Annotated[int, Meta(ge=0, description="A place in the changes of one epoch; it never falls.")]
Rev: TypeAlias = Annotated[int, Meta(ge=0, description="The `seq` of the job's last change.")]
ErrorCut: TypeAlias = Annotated[
    int, Meta(ge=1, description="Bytes of the whole error; absent unless `error` is only its beginning.")
]
Title: TypeAlias = Annotated[str, Meta(description="What people call the step, if `[labels]` has a title for it.")]


# -- the job document


class Progress(TypedDict):
    """The progress of a job. It is 100 percent only if the job has completed. A completed job may have failed steps."""

    percent: Percent
    basis: Basis
    steps_done: Count
    steps_failed: Count
    steps_running: Count
    steps_skipped: Count
    steps_seen: Count
    steps_expected: Annotated[
        Count | None,
        Meta(description="The steps seen, and those ahead that at least half of the earlier runs had. See `forecast`."),
    ]


class ForecastEnd(TypedDict):
    """The end of a job: in half of all cases before `p50`, in nine of ten before `p90`."""

    p50: Time
    p90: Time


class StepAhead(TypedDict):
    """A step that is still to come. `share`: of the earlier runs that had it."""

    name: str
    share: Annotated[float, Meta(ge=0, le=1)]
    typical_seconds: Annotated[float, Meta(ge=0, description="The median time that earlier runs spent in it.")]
    title: NotRequired[Title]


class Forecast(TypedDict):
    """When a running job will probably end, from earlier runs of the same job type and operation."""

    ends_at: ForecastEnd
    as_of: Annotated[Time, Meta(description="The time at which the forecast was made.")]
    runs: Annotated[Count, Meta(description="The number of earlier runs that it rests on.")]
    state: ForecastState
    typical_seconds: Annotated[float, Meta(ge=0, description="The median duration of earlier runs, in seconds.")]
    failure_rate: Annotated[float, Meta(ge=0, le=1, description="The share of earlier runs that did not complete.")]
    steps_ahead: Annotated[list[StepAhead], Meta(description="In their usual order.")]


class Comparison(TypedDict):
    """An ended job beside earlier runs of its operation."""

    typical_seconds: Annotated[float, Meta(ge=0, description="The median duration of earlier runs, in seconds.")]
    runs: Count
    percentile: Annotated[Percent, Meta(description="The percentage of these runs that took less time.")]


class Step(TypedDict):
    """One step of a job. Order steps by `seq`; 0 means that it is not known yet, and comes last."""

    seq: int
    name: str
    status: StepStatus
    started_at: Time | None
    ended_at: Time | None
    duration_seconds: Seconds | None
    error: str | None
    error_cut: NotRequired[ErrorCut]
    title: NotRequired[Title]


class LastMessage(TypedDict):
    """The log row of a job that was logged last."""

    level: Level
    text: str
    at: Time


class Document(TypedDict):
    """A job. It changes only with its `rev`: the duration of a running job or step is that at `updated_at`."""

    job_id: JobId
    external_ids: Annotated[list[str], Meta(description="Each leads to this job, unless a newer one carries it too.")]
    context_id: str | None
    parent_job_id: str | None
    child_job_ids: Annotated[list[str], Meta(description="In the order of their start; the newest 1,000 at the most.")]
    job_type: str | None
    operation: str | None
    category: str | None
    owner: str | None
    status: JobStatus
    terminal: Annotated[bool, Meta(description="True if the job has ended.")]
    error: str | None
    started_at: Time | None
    ended_at: Time | None
    updated_at: Time
    duration_seconds: Seconds | None
    progress: Progress
    forecast: Annotated[
        Forecast | None,
        Meta(description="null with fewer than 3 earlier runs, for legacy jobs, and once the job has ended."),
    ]
    compared_with: Annotated[Comparison | None, Meta(description="Of an ended job, if earlier runs were known.")]
    current_step: Annotated[str | None, Meta(description="The name of the running step, the highest of several.")]
    steps: Annotated[dict[str, Step], Meta(description="By step id; empty in a list of jobs that did not ask.")]
    stalled: Annotated[bool, Meta(description="Running, and silent longer than `jobs.stalled_after`.")]
    last_event_at: Time | None
    last_message: LastMessage | None
    warnings: Count
    errors: Count
    metadata: Annotated[
        dict[str, Any],
        Meta(
            description="As the appliance keeps it; if it was cut, `_cut` has the bytes of each missing member.",
            extra_json_schema={
                "properties": {"_cut": {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0}}}
            },
        ),
    ]
    source: Source
    rev: Rev
    external_ids_cut: NotRequired[
        Annotated[
            int,
            Meta(
                ge=0, description="The number of all external IDs, up to 10,000, where `external_ids` has the newest."
            ),
        ]
    ]
    child_job_ids_cut: NotRequired[
        Annotated[int, Meta(ge=0, description="The number of all children, where `child_job_ids` has not all of them.")]
    ]
    counts_complete: NotRequired[
        Annotated[
            bool,
            Meta(description="false while the log's past is still being read after a first start; else absent."),
        ]
    ]
    steps_complete: NotRequired[
        Annotated[
            bool,
            Meta(description="false if job_steps cannot be read: `steps` has what the log says; else absent."),
        ]
    ]
    error_cut: NotRequired[ErrorCut]
    steps_cut: NotRequired[
        Annotated[
            int, Meta(ge=0, description="At a gateway: the number of all steps, where `steps` has only the newest.")
        ]
    ]
    instance: NotRequired[Annotated[str, Meta(description="At a gateway: the appliance that the job belongs to.")]]
    title: NotRequired[Annotated[str, Meta(description="What people call the operation, if `[labels]` has a title.")]]
    current_step_title: NotRequired[Annotated[str, Meta(description="The same of `current_step`.")]]
