"""The appliance's own status reply, member by member, for a GUI that polls it today.

``GET /api/v1/failover/{id}/status``: a proxy routes just this path here. The shapes are those that the appliance's
handler writes; what differs is that every ID is known.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import orjson
from aiohttp import web

from correlator.errors import SourceUnavailable
from correlator.hub import Hub
from correlator.jobs import fold, joblog
from correlator.jobs.model import LegacyRecord, Micros, Resolved, Shown
from correlator.jobs.wire import rfc3339
from correlator.sinks.rest import json_response


class Compatible:
    """One endpoint. Nothing is remembered between requests."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def routes(self) -> Iterable[web.RouteDef]:
        return [web.get("/api/v1/failover/{id:(?s:.+)}/status", self.status)]

    async def status(self, request: web.Request) -> web.Response:
        """Raises `SourceUnavailable` where only the database could tell and it is away: that is no 404."""
        name = request.match_info["id"]
        found = await self._hub.find(name)
        if found is None:
            return json_response(not_found(name), status=HTTPStatus.NOT_FOUND)
        shown, resolved = found
        now = time.time_ns() // 1000
        if resolved.resolved_by != "legacy":
            return json_response(reply(shown, resolved, name, now))
        record = self._hub.index.legacy(name) or await self._legacy(name)
        if record is None:
            return json_response(not_found(name), status=HTTPStatus.NOT_FOUND)
        return json_response(legacy_reply(record, now))

    async def _legacy(self, name: str) -> LegacyRecord | None:
        if self._hub.archive is None:
            raise SourceUnavailable("there is no database to ask")
        found = await self._hub.archive.find(name, self._hub.index.look)
        return found.legacy if found is not None else None


def not_found(name: str) -> dict[str, Any]:
    """The whole body of the appliance's 404, as Go writes an empty reply with an error."""
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


def reply(shown: Shown, resolved: Resolved, name: str, now: Micros) -> dict[str, Any]:
    """A JobLog job's. `name` is the ID that was asked for."""
    view = shown.view
    statuses = [s.status for s in view.steps]
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
    if external:
        details |= {
            "context_id": view.context_id,
            "external_job_id": view.external_ids[0] if view.external_ids else None,
            "job_category": view.category,
            "gui_job_id": name,
            "internal_job_id": view.job_id,
        }
    way = "enhanced tracking" if external else "direct JobLog lookup"
    return {
        "success": True,
        "message": f"Retrieved status for {view.job_type or ''} job via {way}",
        "job_id": view.job_id,
        "status": view.status.value,
        "progress": progress,
        "start_time": go_time(view.started_at),
        "duration": _nanoseconds(view.started_at, view.ended_at if view.terminal else now),
        "job_details": details,
    }


def legacy_reply(record: LegacyRecord, now: Micros) -> dict[str, Any]:
    """That of a job which `failover_jobs` alone knows: the table's own words."""
    ended = record.status in fold.LEGACY_ENDED
    end = (record.completed_at if record.completed_at is not None else record.updated_at) if ended else now
    return {
        "success": True,
        "message": f"Retrieved status for {record.job_type or ''} failover job via legacy tracking",
        "job_id": record.job_id,
        "status": record.status,
        "progress": fold.LEGACY_PERCENT.get(record.status, 50.0),
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


def go_time(at: Micros | None) -> str | None:
    """RFC 3339 as Go writes it: no more digits of a second than there are."""
    text = rfc3339(at)
    return text.rstrip("Z").rstrip("0").rstrip(".") + "Z" if text is not None else None


def _nanoseconds(start: Micros | None, end: Micros | None) -> int:
    return max(0, end - start) * 1000 if start is not None and end is not None else 0


def _parsed(text: str | None) -> Any:
    try:
        return orjson.loads(text) if text else None
    except ValueError:
        return None
