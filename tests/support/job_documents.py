"""Job documents as the terminal gets them, and updates that contain them."""

from __future__ import annotations

from typing import Any

from correlator.client.messages import LogMessage
from correlator.client.replica import Update
from correlator.model.facts import ENDED

NOW = 1_758_553_960.0  # 2025-09-22T15:12:40Z

NASTY = "\x1b[2J\x1b]0;owned\x07[bold red]x[/]\r\n\t\u202e\u009b31m"
"""A text that would be commands of the terminal, and markup."""


def step(seq: int, name: str, status: str = "completed", **members: Any) -> dict[str, Any]:
    return {"seq": seq, "name": name, "status": status, "started_at": f"2025-09-22T15:12:{seq:02}.000000Z",
            "ended_at": None if status == "running" else f"2025-09-22T15:12:{seq:02}.900000Z",
            "duration_seconds": 0.9, "error": None, **members}  # fmt: skip


def document(job_id: str = "e8f15a6d-c5f4-4d69-af72-194b96a0c7fb", status: str = "running", **members: Any) -> Any:
    steps = members.pop(
        "steps", {"1": step(1, "validation"), "2": step(2, "multi-volume-snapshot-creation", "running")}
    )
    return {
        "job_id": job_id, "external_ids": ["unified-live-failover-pgtest2-1758553933"], "context_id": None,
        "parent_job_id": None, "child_job_ids": [], "job_type": "failover", "operation": "unified-live-failover",
        "category": None, "owner": "system", "status": status, "terminal": status in ENDED, "error": None,
        "started_at": "2025-09-22T15:12:01.000000Z", "ended_at": None, "updated_at": "2025-09-22T15:12:13.000000Z",
        "duration_seconds": 12.0, "stalled": False, "last_event_at": None, "warnings": 0, "errors": 0,
        "progress": {"percent": 40.0, "basis": "steps", "steps_done": 1, "steps_failed": 0, "steps_running": 1,
                     "steps_skipped": 0, "steps_seen": 2},
        "current_step": "multi-volume-snapshot-creation", "steps": steps, "source": "joblog", "rev": 17,
        "last_message": {"level": "INFO", "text": "creating snapshots", "at": "2025-09-22T15:12:12.000000Z"},
        "metadata": {"vm_name": "pgtest2"}, **members,
    }  # fmt: skip


def update(*jobs: Any, gone: dict[str, str] | None = None, logs: tuple[LogMessage, ...] = (), **members: Any) -> Update:
    known = {job["job_id"]: job for job in jobs}
    return Update(known, frozenset(known), gone or {}, logs, members.pop("synced", True), **members)


def forecast(state: str = "on_track", **members: Any) -> dict[str, Any]:
    """The members of a running job that is forecast to end 120 s after its start, in nine of ten cases after 180 s."""
    return {
        "progress": {"percent": 25.0, "basis": "history", "steps_done": 1, "steps_failed": 0, "steps_running": 1,
                     "steps_skipped": 0, "steps_seen": 2, "steps_expected": 4},
        "forecast": {
            "ends_at": {"p50": "2025-09-22T15:14:01.000000Z", "p90": "2025-09-22T15:15:01.000000Z"},
            "as_of": "2025-09-22T15:12:31.000000Z", "runs": 37, "state": state, "typical_seconds": 96.0,
            "failure_rate": 0.08, "steps_ahead": [
                {"name": "vm-creation", "share": 0.97, "typical_seconds": 12.0},
                {"name": "status-update", "share": 1.0, "typical_seconds": 0.2},
            ], **members,
        },
        "compared_with": None,
    }  # fmt: skip
