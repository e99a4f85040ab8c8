"""Job documents: how a patch is merged into one, which of several is the newest, which one an ID names, their times."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from correlator.client.messages import Document


def merge(target: Any, patch: Any) -> Any:
    """Apply a JSON merge patch and return the result; the arguments are not changed. See RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged


def named(jobs: Mapping[str, Document], name: str) -> Document | None:
    """Find a job by any ID, in the order of docs/protocol.md; the newest if several have the ID."""
    if name in jobs:
        return jobs[name]
    by_external = [job for job in jobs.values() if name in (job.get("external_ids") or ())]
    found = by_external or [job for job in jobs.values() if job.get("context_id") == name]
    return max(found, key=age_key, default=None)


def age_key(job: Document) -> tuple[str, float, str]:
    """Sort key by age, the newest last; the same rule as `correlator.jobs.model.JobView.age_key`."""
    none_yet = 0 if job.get("terminal") else math.inf
    first = min(map(int, job.get("steps") or ()), default=none_yet)
    return (job.get("started_at") or "", first, job.get("job_id") or "")


def moment(stamp: object) -> datetime | None:
    """Parse the RFC 3339 time of a document; None if it is absent or not a time."""
    try:
        return datetime.fromisoformat(stamp) if isinstance(stamp, str) else None
    except ValueError:
        return None
