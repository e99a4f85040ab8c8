"""What happens to published jobs: changes of their documents, and transitions."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

from correlator.jobs.model.facts import Kind
from correlator.jobs.model.rows import Micros
from correlator.jobs.model.views import PublishedJob

Reason: TypeAlias = Literal["retention", "gone", "merged"]


class Change(Struct, frozen=True, gc=False):
    """One change of a published job. ``new`` None: the job left memory, for ``reason``.

    ``seq``: the place of the change in the stream.
    ``moved``: the document is unchanged, but an ID started or stopped resolving to this job.
    ``old_known``: False if ``old`` is None because nobody knows what the job was before.
    """

    job_id: str
    seq: int
    old: PublishedJob | None
    new: PublishedJob | None
    reason: Reason | None = None
    moved: bool = False
    old_known: bool = True


class Event(Struct, frozen=True, gc=False):
    """One transition of a job or step. ``event_id`` is None if the transition has no log row."""

    kind: Kind
    job_id: str
    at: Micros
    event_id: int | None = None
    step_id: int | None = None
    step_name: str | None = None
    error: str | None = None
    error_cut: int | None = None
