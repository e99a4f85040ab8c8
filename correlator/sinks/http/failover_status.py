"""``GET /api/v1/failover/{id}/status`` with the members of the appliance's own reply, for a GUI that polls it.

A proxy routes only this path to the correlator. The shapes are those of the appliance's handler, but any ID of a job
is accepted.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import orjson
from aiohttp import web

from correlator.jobs import joblog
from correlator.jobs.encoding import rfc3339, steps_of
from correlator.model.published import PublishedJob
from correlator.model.replies import Resolved
from correlator.model.rows import LegacyRecord, Micros
from correlator.pipeline.hub import Hub
from correlator.pipeline.queries import LegacyRow
from correlator.sinks.http.grants import GRANT, check_job
from correlator.sinks.http.requests import RETRY_AFTER, json_response, problem
from correlator.sinks.turns import Work


class FailoverStatus:
    """The endpoint. `unknown_id_wait`: seconds that a request waits for an unknown ID before it gets 404.

    The appliance's GUI requests a job shortly before the job exists, and shows a 404 as an error.
    """

    def __init__(self, hub: Hub, work: Work, *, unknown_id_wait: float) -> None:
        self._hub = hub
        self._work = work
        self._wait = unknown_id_wait

    async def status(self, request: web.Request) -> web.Response:
        """The reply for one ID.

        Raises:
            Refused: Too many requests wait for an unknown ID.
            SourceUnavailable: The job is not in memory, and the database cannot be queried.
        """
        name, address, grant = request.match_info["id"], request.remote or "", request[GRANT]
        await check_job(grant, name, lambda own: self._work.find(self._hub, own, address))
        found = await self._work.find(self._hub, name, address, grant.shows_some)
        if found is None and self._wait > 0:
            self._work.held.check(address)
            with self._work.held.holding(address):
                found = await self._hub.appearance(name, self._wait, grant.shows_some)
            await self._work.begin.round(address)  # Thousands may have waited for the same moment.
        if not grant.shows_job(found[0] if found is not None else None):
            raise grant.refusal()
        if found is None:
            if self._hub.draining:
                return problem(HTTPStatus.SERVICE_UNAVAILABLE, "the correlator restarts: ask again", RETRY_AFTER)
            return json_response(not_found(name), status=HTTPStatus.NOT_FOUND)
        shown, resolved = found
        now = self._hub.clock()
        if resolved.resolved_by != "legacy":
            return json_response(reply(shown, resolved, name, now))
        async with self._work.queries.turn(address):
            record = await self._hub.ask(LegacyRow(name))
        if record is None:
            return json_response(not_found(name), status=HTTPStatus.NOT_FOUND)
        return json_response(legacy_reply(record, now))


def not_found(name: str) -> dict[str, Any]:
    """The body of the appliance's 404: an empty Go reply with an error."""
    return {
        "success": False,
        "message": "Failover job not found",
        "job_id": "",
        "status": "",
        "progress": 0,
        "start_time": "0001-01-01T00:00:00Z",
        "duration": 0,
        "error": f"failover job not found: {name}",
    }


def reply(shown: PublishedJob, resolved: Resolved, name: str, now: Micros) -> dict[str, Any]:
    """The reply for a JobLog job. `name` is the requested ID."""
    view = shown.view
    statuses = [s.status for s in steps_of(shown)]
    completed = statuses.count("completed")
    progress = completed / len(statuses) * 100 if statuses else 0.0
    external = resolved.resolved_by == "external_id"
    details: dict[str, Any] = {
        "job_type": view.job_type,
        "operation": view.operation,
        "total_steps": len(statuses),
        "completed_steps": completed,
        "failed_steps": statuses.count("failed"),
        "running_steps": statuses.count("running"),
        "step_completion": progress,
        "error_message": view.error,
        "metadata": joblog.metadata_object(view.metadata),
        "tracking_source": "external_job_id_correlation" if external else "direct_joblog_uuid",
    }
    if view.error_cut is not None:
        details["error_cut"] = view.error_cut
    if external:
        details |= {
            "context_id": view.context_id,
            "external_job_id": view.external_ids[0] if view.external_ids else None,
            "job_category": view.category,
            "gui_job_id": name,
            "internal_job_id": view.job_id,
        }
    lookup = "enhanced tracking" if external else "direct JobLog lookup"
    return {
        "success": True,
        "message": f"Retrieved status for {view.job_type or ''} job via {lookup}",
        "job_id": view.job_id,
        "status": view.status.value,
        "progress": progress,
        "start_time": go_time(view.started_at),
        "duration": _nanoseconds(view.started_at, view.ended_at if view.terminal else now),
        "job_details": details,
    }


def legacy_reply(record: LegacyRecord, now: Micros) -> dict[str, Any]:
    """The reply for a job that exists only in `failover_jobs`, with the values of that table."""
    status, percent = joblog.legacy_meaning(record.status)
    end = (record.completed_at if record.completed_at is not None else record.updated_at) if status.ended else now
    reply: dict[str, Any] = {
        "success": True,
        "message": f"Retrieved status for {record.job_type or ''} failover job via legacy tracking",
        "job_id": record.job_id,
        "status": record.status,
        "progress": percent,
        "start_time": go_time(record.created_at),
        "duration": _nanoseconds(record.created_at, end),
        "job_details": {
            "vm_id": record.vm_id or "",
            "vm_name": record.source_vm_name or "",
            "job_type": record.job_type or "",
            "destination_vm_id": record.destination_vm_id or "",
            "snapshot_id": record.snapshot_id or "",
            "error_message": record.error_message or "",
            "started_at": go_time(record.started_at),
            "completed_at": go_time(record.completed_at),
            "custom_config": _parsed(record.source_vm_spec),
            "tracking_source": "legacy_failover_jobs",
        },
    }
    if record.error_cut is not None:
        reply["job_details"]["error_cut"] = record.error_cut
    return reply


def go_time(at: Micros | None) -> str | None:
    """RFC 3339 as Go writes it: without trailing zeros in the fraction of a second."""
    return rfc3339(at).rstrip("Z").rstrip("0").rstrip(".") + "Z" if at is not None else None


def _nanoseconds(start: Micros | None, end: Micros | None) -> int:
    return max(0, end - start) * 1000 if start is not None and end is not None else 0


def _parsed(text: str | None) -> Any:
    try:
        return orjson.loads(text) if text else None
    except ValueError:
        return None
