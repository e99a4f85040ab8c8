"""Members of a job document as text: times, durations, sizes, steps, what was cut. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from correlator.client.documents import moment
from correlator.client.messages import Document
from correlator.jobs.model.facts import ENDED


def stamp(text: object) -> str:
    """Format a time as ``2025-09-22T10:00:00Z``, in UTC; the current time if there is none."""
    when = moment(text) or datetime.now(UTC)
    return f"{when.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def elapsed(thing: Document, now: float) -> float | None:
    """Seconds from the start of a job or step to its end, or to `now` (seconds since 1970) while it runs."""
    if thing.get("status") in ENDED:
        seconds = thing.get("duration_seconds")
        return float(seconds) if seconds is not None else None
    began = moment(thing.get("started_at"))
    return max(0.0, now - began.timestamp()) if began is not None else None


def duration(seconds: float | None, *, fine: bool = False) -> str:
    """Format seconds as ``12s``, ``4m 02s``, ``3h 05m`` or ``2d 04h``; with `fine`, ``3.1s`` below ten seconds."""
    if seconds is None:
        return ""
    if fine and seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"


def vm_name(job: Document) -> str:
    """The name of the job's virtual machine; "" if its metadata has none."""
    metadata = job.get("metadata") or {}
    found = metadata.get("vm_name") or metadata.get("vm_name_or_id")
    return found if isinstance(found, str) else ""


def operation(job: Document) -> object:
    """What people call the operation of a job."""
    return job.get("title") or job.get("operation")


def current_step(job: Document) -> object:
    """What people call the running step of a job."""
    return job.get("current_step_title") or job.get("current_step")


def step_title(step: Document) -> object:
    """What people call a step, also one that is still to come."""
    return step.get("title") or step.get("name")


def instance(job: Document) -> str:
    """The appliance of a job of a gateway; "" elsewhere."""
    return str(job.get("instance") or "")


def percent(job: Document) -> float:
    return float((job.get("progress") or {}).get("percent") or 0.0)


def steps_of(job: Document) -> list[tuple[str, Document]]:
    """(id, step) in the order of `seq`. Steps without one are not in the tables yet and come last."""
    steps: Mapping[str, Document] = job.get("steps") or {}
    return sorted(steps.items(), key=lambda item: (not item[1].get("seq"), item[1].get("seq") or 0, item[0].zfill(20)))


def size(count: object) -> str:
    """Format a number of bytes: ``512 bytes``, ``18 MB``."""
    number = float(count) if isinstance(count, int | float) else 0.0
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= one:
            return f"{number / one:.3g} {unit}"
    return f"{number:.0f} bytes"


def cut_error(thing: Document) -> str:
    """A note with the full size of an error that was cut; "" if it is complete."""
    return f"cut: {size(thing['error_cut'])} in full" if thing.get("error_cut") else ""


def metadata_of(job: Document) -> tuple[dict[str, Any], dict[str, str]]:
    """The members of a job's metadata, and by name a note on each member that was cut."""
    members = dict(job.get("metadata") or {})
    cut = members.pop("_cut", {})
    # "*" is the sum of all members without a name there.
    words = {"others" if name == "*" else str(name): f"cut: {size(full)} in full" for name, full in cut.items()}
    return members, words


def counts(job: Document) -> str:
    """The number of warnings and errors in a job's log, and whether counting is still in progress."""
    words = f"{job.get('warnings') or 0} warnings, {job.get('errors') or 0} errors"
    return words if job.get("counts_complete", True) else f"{words} so far: the log is still being counted"


def as_json(value: Any, indent: int | None = None) -> str:
    """Encode as ASCII JSON, which contains no control sequences for a terminal."""
    return json.dumps(value, indent=indent)
