"""What the tables say, in the terms of the job document: what everything shown is measured against."""

from __future__ import annotations

import json
from typing import Any

ID_KEYS = ("external_job_id", "failover_job_id", "gui_job_id")


def stamp(text: str | None) -> str | None:
    """A stored time as the document writes it; stored times are UTC in tests."""
    if text is None:
        return None
    date, _, fraction = text.partition(".")
    return f"{date.replace(' ', 'T')}.{fraction.ljust(6, '0')}Z"


def external_ids(row: dict[str, Any]) -> set[str]:
    metadata = json.loads(row["metadata"] or "{}")
    return {x for x in (row["external_job_id"], *(metadata.get(k) for k in ID_KEYS)) if x}


def first_steps(tables: dict[str, dict[Any, dict[str, Any]]]) -> dict[str, int]:
    """Every job that has steps → the lowest id of one."""
    found: dict[str, int] = {}
    for step in tables["job_steps"].values():
        found[step["job_id"]] = min(step["id"], found.get(step["job_id"], step["id"]))
    return found


def owners(tables: dict[str, dict[Any, dict[str, Any]]]) -> dict[str, str]:
    """Every external ID → the newest job that carries it, a first step's id deciding within a second."""
    first_step = first_steps(tables)
    found: dict[str, tuple[Any, str]] = {}
    for job_id, row in tables["job_tracking"].items():
        for name in external_ids(row):
            found[name] = max(found.get(name, (("", -1), "")), ((row["started_at"], first_step.get(job_id, 0)), job_id))
    return {name: job_id for name, (_, job_id) in found.items()}


def differences(tables: dict[str, dict[Any, dict[str, Any]]], documents: dict[str, Any]) -> list[str]:
    """Where `documents` (by job id, with steps) do not equal the tables. Empty is what is wanted."""
    found = []
    shown = {i for i, d in documents.items() if d["source"] == "joblog"}
    if shown != set(tables["job_tracking"]):
        found.append(f"jobs: {len(shown)} shown, {len(tables['job_tracking'])} in the table")
    steps_of: dict[str, dict[Any, dict[str, Any]]] = {}
    for step in tables["job_steps"].values():
        steps_of.setdefault(step["job_id"], {})[step["id"]] = step
    for job_id, row in tables["job_tracking"].items():
        if job_id not in documents:
            continue
        document, steps = documents[job_id], steps_of.get(job_id, {})
        want: dict[str, Any] = {
            "status": row["status"],
            "error": row["error_message"] or None,
            "started_at": stamp(row["started_at"]),
            "ended_at": stamp(row["completed_at"]),
            "operation": row["operation"],
            "job_type": row["job_type"],
            "owner": row["owner"],
            "parent_job_id": row["parent_job_id"],
            "context_id": row.get("context_id"),
            "category": row.get("job_category"),
            "metadata": json.loads(row["metadata"] or "{}"),
        }
        found += [f"{job_id} {k}: {document[k]!r}, not {v!r}" for k, v in want.items() if document[k] != v]
        if not external_ids(row) <= set(document["external_ids"]):
            found.append(f"{job_id} external_ids: {document['external_ids']}")
        if (document["progress"]["percent"] == 100.0) != (row["status"] == "completed"):
            found.append(f"{job_id} percent: {document['progress']['percent']} while {row['status']}")
        if set(document["steps"]) != {str(i) for i in steps}:
            found.append(f"{job_id} steps: {sorted(document['steps'])}, not {sorted(steps)}")
            continue
        for step_id, step in steps.items():
            one = document["steps"][str(step_id)]
            expected = {
                "seq": step["seq"],
                "name": step["name"],
                "status": step["status"],
                "started_at": stamp(step["started_at"]),
                "ended_at": stamp(step["completed_at"]),
                "error": step["error_message"] or None,
            }
            found += [f"{job_id}/{step_id} {k}: {one[k]!r}, not {v!r}" for k, v in expected.items() if one[k] != v]
    return found
