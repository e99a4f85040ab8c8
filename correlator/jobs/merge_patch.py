"""What changed in a job's document from one revision to the next, as a merge patch. See RFC 7386."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from correlator.jobs.job_document import document, encode, step_document
from correlator.jobs.model.views import PublishedJob


def patch(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The merge patch from `old` to `new`. A missing member and null mean the same. See RFC 7386."""
    changed: dict[str, Any] = {}
    for name, value in new.items():
        before = old.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            if inner := patch(before, value):
                changed[name] = inner
        elif not _same(before, value):
            changed[name] = value
    return changed | dict.fromkeys(n for n in old if n not in new)


def difference(old: PublishedJob, new: PublishedJob) -> dict[str, Any]:
    """The `patch` between the documents of two revisions of a job. Only the steps that differ are encoded."""
    changed = patch(document(old, steps=False), document(new, steps=False))
    if steps := _steps(old, new):
        changed["steps"] = steps
    return changed


def _steps(old: PublishedJob, new: PublishedJob) -> dict[str, Any]:
    before = {step.id: step for step in old.view.steps}
    changed: dict[str, Any] = {}
    for step in new.view.steps:
        was = before.pop(step.id, None)
        if was is None:
            changed[str(step.id)] = step_document(step, new.updated_at, new.titles)
        elif (step.status == "running" or was != step) and (  # the duration of a running step grows
            inner := patch(
                step_document(was, old.updated_at, old.titles),
                step_document(step, new.updated_at, new.titles),
            )
        ):
            changed[str(step.id)] = inner
    return changed | {str(i): None for i in before}


def _same(one: Any, other: Any) -> bool:
    """True if both values have the same JSON text. (1, 1.0 and True are equal in Python.)"""
    if isinstance(other, list):
        return encode(one) == encode(other)
    return type(one) is type(other) and bool(one == other)
