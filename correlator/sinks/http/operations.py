"""REST: what is known of earlier runs, by operation: what the forecasts of running jobs rest on. From memory only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, overload

from aiohttp import web

from correlator.errors import NotFound
from correlator.model.parameters import GetOperation, NoParameters
from correlator.model.replies import OperationRuns, OperationWithSteps, UsualStep
from correlator.ops.stalls import timed
from correlator.pipeline import queries
from correlator.pipeline.hub import Hub
from correlator.sinks.http.parameters import read
from correlator.sinks.http.rest import json_response

UNNAMED: Final = "-"
"""Stands in a path for a job type that jobs do not have."""


class Operations:
    """The endpoints for operations under ``/api/v1``."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def routes(self) -> Iterable[web.RouteDef]:
        return [
            web.get("/api/v1/operations", self.operations),
            web.get("/api/v1/operations/{job_type:[^/]+}/{operation:(?s:.+)}", self.operation),
        ]

    async def operations(self, request: web.Request) -> web.Response:
        """All operations that a run of has ended."""
        read(request, NoParameters)
        with timed("operations"):
            found = [_runs(runs) for runs in await self._hub.operations()]
        return json_response({"operations": found})

    async def operation(self, request: web.Request) -> web.Response:
        """One operation, with its usual steps."""
        asked = read(request, GetOperation)
        job_type, name = asked.job_type, asked.operation
        key = ("" if job_type == UNNAMED else job_type, name)
        with timed("operation"):
            operation = await self._hub.operation(key)
        if operation is None:
            raise NotFound(f"no run of the operation {name!r} of the job type {job_type!r} is known")
        found: OperationWithSteps = {**_runs(operation.runs), "steps": _steps(operation)}
        return json_response(found)


def _runs(runs: queries.OperationRuns) -> OperationRuns:
    return {
        "job_type": runs.job_type or None,
        "operation": runs.operation,
        "runs": runs.runs,
        "typical_seconds": _rounded(runs.typical_seconds),
        "p90_seconds": _rounded(runs.p90_seconds),
        "failure_rate": _rounded(runs.failure_rate),
    }


def _steps(operation: queries.OperationSteps) -> list[UsualStep]:
    return [
        {"name": step.name, "share": _rounded(step.share), "typical_seconds": _rounded(step.typical_seconds)}
        for step in operation.steps
    ]


@overload
def _rounded(number: float) -> float: ...
@overload
def _rounded(number: float | None) -> float | None: ...
def _rounded(number: float | None) -> float | None:
    """A number of 7 digits, which is how they are kept, without the digits that their conversion adds."""
    return None if number is None else round(number, 3)
