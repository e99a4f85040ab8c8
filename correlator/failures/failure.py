"""The failure of one job: which step ended it, what its error says, and the fingerprint of that.

This file repeats what the rows say ("the job's error ends with this step's error") and never names a cause. A failed
step need not be the reason: a live failover goes on without its drivers, and a panic does not stop its job.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

from msgspec import Struct

from correlator.failures.patterns import NO_MASKS, Masks
from correlator.failures.telling import GENERIC, excerpt, telling_line
from correlator.failures.template import MAX_LINE, MAX_TEXT, masked, template, unformatted
from correlator.model.document import Certainty
from correlator.model.rows import StepRecord

VERSION = "1"
"""Part of every fingerprint: another rule in this package is another version."""

DIGITS = 12

MAX_HEAD = 200
"""Characters of the template of a first line that count in front of the telling one."""


class Failure(Struct, frozen=True, gc=False):
    """Why a job failed, according to its rows. `step`: the name of the step that ended it, if the rows say which.

    `text`: the part of the error that says it. `template`: what `fingerprint` is made of. All three are "" if no reason
    was logged.
    """

    fingerprint: str
    step: str | None
    certainty: Certainty
    text: str
    template: str


NO_REASON = Failure("", None, "none", "", "")


def failure(error: str | None, steps: Sequence[StepRecord], names: Collection[str], masks: Masks = NO_MASKS) -> Failure:
    """The failure of a job with this error. `steps`: in order. `names`: what stands in the job's own row (VM, IDs)."""
    error = (error or "").strip()
    failed = [step for step in steps if step.status == "failed" and (step.error_message or "").strip()]
    inner = ": " + _bare(error)
    named = [step for step in failed if (": " + _bare(step.error_message or "")) in inner] if error else []
    if named:
        step = max(named, key=lambda s: (not _went_on(s, steps), len(s.error_message or ""), s.completed_at or 0))
        text = (step.error_message or "").strip()
        certainty: Certainty = "stated"
        same = sum(1 for other in named if other.error_message == step.error_message)
        if _went_on(step, steps) and (same > 1 or GENERIC.fullmatch(template(text, names))):
            certainty = "inferred"
        return _failure(step.name, certainty, text, names, masks)
    if error:
        return _failure(None, "apart", error, names, masks)
    if failed and not _went_on(failed[-1], steps):
        return _failure(failed[-1].name, "inferred", (failed[-1].error_message or "").strip(), names, masks)
    return NO_REASON


def fingerprint(text: str, step: str | None, names: Collection[str], masks: Masks = NO_MASKS) -> tuple[str, str]:
    """The fingerprint of an error, and its template. `step`: counts only where the text says nothing of the place."""
    head, line = telling_line(text[:MAX_TEXT])
    made = template(masks.applied(line[:MAX_LINE]), names)
    if head and len(before := template(masks.applied(head[:MAX_LINE]), names)) < MAX_HEAD:
        made = f"{before.rstrip(':. ')}: {made}"
    if step:
        made = masked(made, step, "<step>")
    place = step or "" if made.startswith("panic") or GENERIC.fullmatch(made) else ""
    digest = hashlib.sha256(f"{VERSION}\0{place}\0{made}".encode("utf-8", "surrogatepass")).hexdigest()
    return digest[:DIGITS], made


def _failure(step: str | None, certainty: Certainty, text: str, names: Collection[str], masks: Masks) -> Failure:
    made, of = fingerprint(text, step, names, masks)
    return Failure(made, step, certainty, excerpt(text[:MAX_TEXT]), of)


def _bare(text: str) -> str:
    return unformatted(text[:MAX_TEXT]).strip()


def _went_on(step: StepRecord, steps: Sequence[StepRecord]) -> bool:
    """True if another step began after this one had ended."""
    ended = step.completed_at
    return ended is not None and any(
        other.id != step.id and other.started_at is not None and other.started_at >= ended for other in steps
    )
