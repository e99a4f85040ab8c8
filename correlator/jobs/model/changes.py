"""What happens to published jobs, changes of their documents and transitions, and the `Outcome` of facts."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Literal, TypeAlias, get_args

from msgspec import Struct

from correlator.jobs.model.facts import AttributedRow, Kind
from correlator.jobs.model.rows import Micros
from correlator.jobs.model.views import PublishedJob

Reason: TypeAlias = Literal["retention", "gone", "merged"]

Lost: TypeAlias = Literal["job_started", "job_ended", "step_started", "step_ended", "error", "percent"]
"""The kind of a log row that JobLog lost. `error`: the row exists, but its text differs from the table's. `percent`:
the job has progress rows, but none with the table's percentage."""

LOST: tuple[Lost, ...] = get_args(Lost)


class Change(Struct, frozen=True, gc=False):
    """One change of a published job. ``new`` None: the job left memory, for ``reason``.

    ``seq``: the place of the change in the stream.
    ``moved``: the document is unchanged, but an ID started or stopped resolving to this job.
    ``goes_on``: the log has new rows of a running job, and nothing else has changed, so that `views.goes_on` holds:
    filters, counters and the IDs of the job notice nothing.
    """

    job_id: str
    seq: int
    old: PublishedJob | None
    new: PublishedJob | None
    reason: Reason | None = None
    moved: bool = False
    goes_on: bool = False


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


class Outcome(Struct, frozen=True):
    """The result of one call of the index.

    `attributed`: the log rows with their jobs. `unread`, `unread_steps`: the jobs and steps to read from the tables.
    `ended`: jobs that ended. `lost`: log rows that JobLog lost. `dropped`: the number of transitions that will not be
    announced.
    """

    changes: Sequence[Change] = ()
    events: Sequence[Event] = ()
    attributed: Sequence[AttributedRow] = ()
    unread: AbstractSet[str] = frozenset()
    unread_steps: AbstractSet[int] = frozenset()
    ended: AbstractSet[str] = frozenset()
    lost: Sequence[Lost] = ()
    dropped: int = 0
