"""REST: the jobs of one VM or of one context over time, with their trend; from memory and the database."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aiohttp import web

from correlator.errors import SourceUnavailable
from correlator.jobs import job_document, trends
from correlator.jobs.model.views import JobView
from correlator.model.parameters import GetEntity, given
from correlator.pipeline.hub import Hub
from correlator.pipeline.queries import JobQuery
from correlator.sinks.http.job_pages import JobPage, JobPages
from correlator.sinks.http.parameters import read
from correlator.sinks.turns import Work


class Entities:
    """The endpoint ``/api/v1/entities``."""

    def __init__(self, hub: Hub, work: Work) -> None:
        self._hub = hub
        self._pages = JobPages(hub, work)

    def routes(self) -> Iterable[web.RouteDef]:
        return [web.get("/api/v1/entities/{name:(?s:.+)}", self.entity)]

    async def entity(self, request: web.Request) -> web.Response:
        """A page of the jobs of a context or of a VM, newest first. A name that is both is the context."""
        asked = read(request, GetEntity)
        name = asked.name
        kind = given(asked.kind) or await self._kind(name)
        query = JobQuery(context_id=frozenset({name})) if kind == "context" else JobQuery(vm_name=name)

        def more(page: JobPage) -> dict[str, Any]:
            contexts = sorted({s.view.context_id for s in page.jobs if s.view.context_id})
            return {
                "entity": name,
                "kind": kind,
                "contexts": contexts,
                "operations": trends.trends(_run(s.view) for s in page.jobs),
            }

        return await self._pages.respond(query, given(asked.cursor), asked.limit, request.remote or "", more=more)

    async def _kind(self, name: str) -> str:
        """Whether `name` is the context of a job. If only the database could say, and does not answer: a VM."""
        if self._hub.published.is_context(name):
            return "context"
        try:
            return "context" if self._hub.archive is not None and await self._hub.is_context(name) else "vm"
        except SourceUnavailable:
            return "vm"


def _run(view: JobView) -> trends.Run:
    took = job_document.seconds(view.started_at, view.ended_at) if view.terminal else None
    return trends.Run((view.job_type or "", view.operation or ""), view.status.value, took)
