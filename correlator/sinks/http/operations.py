"""REST: what is known of earlier runs, by operation: what the forecasts of running jobs rest on. From memory only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from aiohttp import web

from correlator.errors import NotFound
from correlator.model.parameters import GetOperation, NoParameters
from correlator.ops.stalls import timed
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
            found = await self._hub.operations()
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
        return json_response(operation)
