"""REST: what is known of earlier runs, by operation: what the forecasts of running jobs rest on. From memory only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from aiohttp import web

from correlator.errors import NotFound
from correlator.jobs.forecast.forecaster import OperationKey
from correlator.jobs.forecast.operation import Operation
from correlator.ops.stalls import timed
from correlator.pipeline.hub import Hub
from correlator.sinks.http.parameters import known
from correlator.sinks.http.rest import json_response
from correlator.sinks.payloads import OperationRuns, OperationWithSteps, UsualStep

UNNAMED: Final = "-"
"""Stands in a path for a job type that jobs do not have."""


class Operations:
    """The endpoints for operations under ``/api/v1``."""

    def __init__(self, hub: Hub) -> None:
        self._forecasts = hub.forecasts

    def routes(self) -> Iterable[web.RouteDef]:
        return [
            web.get("/api/v1/operations", self.operations),
            web.get("/api/v1/operations/{job_type:[^/]+}/{operation:(?s:.+)}", self.operation),
        ]

    async def operations(self, request: web.Request) -> web.Response:
        """All operations that a run of has ended."""
        known(request, ())
        with timed("operations"):
            found = [
                _runs(key, operation) for key, operation in sorted(self._forecasts.forecaster, key=lambda one: one[0])
            ]
        return json_response({"operations": found})

    async def operation(self, request: web.Request) -> web.Response:
        """One operation, with its usual steps."""
        known(request, ())
        job_type, name = request.match_info["job_type"], request.match_info["operation"]
        key = ("" if job_type == UNNAMED else job_type, name)
        operation = self._forecasts.forecaster.operation(key)
        if operation is None:
            raise NotFound(f"no run of the operation {name!r} of the job type {job_type!r} is known")
        with timed("operation"):
            found: OperationWithSteps = {**_runs(key, operation), "steps": _steps(operation)}
        return json_response(found)


def _runs(key: OperationKey, operation: Operation) -> OperationRuns:
    durations = operation.durations
    some = len(durations) > 0
    return {
        "job_type": key[0] or None,
        "operation": key[1],
        "runs": len(durations),
        "typical_seconds": _rounded(durations.quantile(0.5)) if some else None,
        "p90_seconds": _rounded(durations.quantile(0.9)) if some else None,
        "failure_rate": _rounded(operation.failure_rate),
    }


def _steps(operation: Operation) -> list[UsualStep]:
    return [
        {"name": step.name, "share": _rounded(step.share), "typical_seconds": _rounded(step.typical_seconds)}
        for step in operation.steps.ahead(None)
    ]


def _rounded(number: float) -> float:
    """A number of 7 digits, which is how they are kept, without the digits that their conversion adds."""
    return round(number, 3)
