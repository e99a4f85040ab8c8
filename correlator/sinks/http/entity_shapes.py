"""The shapes of ``/api/v1/entities`` of docs/protocol.md as types. OpenAPI is generated from them."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

from msgspec import Meta

from correlator.jobs.shapes import Count, Seconds
from correlator.sinks.payloads import JobsPage


class OperationTrend(TypedDict):
    """The jobs of one operation on this page. Only completed ones have a duration that is compared."""

    job_type: str | None
    operation: str | None
    runs: Count
    completed: Count
    failed: Count
    newest_seconds: Annotated[Seconds | None, Meta(description="The newest completed job; null without any.")]
    typical_seconds: Annotated[
        Seconds | None, Meta(description="The median of at most 20 completed jobs before that; null without any.")
    ]
    ratio: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(description="`newest_seconds` / `typical_seconds`."),
    ]


class EntityPage(JobsPage):
    """The jobs of a context or of a VM over time, newest first: a page as of `/jobs`."""

    entity: str
    kind: Annotated[
        Literal["context", "vm"], Meta(description="What `entity` was read as; repeat it as `kind` with a `cursor`.")
    ]
    contexts: Annotated[list[str], Meta(description="The contexts of the jobs on this page, sorted.")]
    operations: Annotated[list[OperationTrend], Meta(description="In the order of their newest job.")]
