"""What a checkpoint contains: the position in the log, jobs, the state of the index, and pending events.

What is stored of each job is an array without the names of its members: less than half of the bytes. So a change of
such a type is another form of the checkpoint (`correlator.state.checkpoint.VERSION`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from msgspec import Struct
from msgspec.structs import asdict

from correlator.model.document import FailureState, ForecastState
from correlator.model.facts import Job
from correlator.model.published import Event, JobForecast
from correlator.model.rows import LegacyRecord, LogRow, Micros


class Cursor(Struct, frozen=True):
    """The position at which a source resumes.

    ``row``: the row at the head, which identifies the log. ``holes``: IDs that may still be committed.
    ``past``: the part of the log's past that is still unread, in the source's own format.
    ``marks``: packed rows before the head. They identify a log that lost its newest rows (`ResetMarkers`).
    ``complete_to``: rows with a higher ID were read without some columns; None if none were.
    ``sample``: IDs of jobs by which the database is recognized. ``shapes``: what ``marks`` have besides.
    """

    head: int = 0
    row: LogRow | None = None
    holes: tuple[tuple[tuple[int, int], ...], ...] = ()
    past: tuple[int, int, int, int] | None = None
    marks: bytes = b""
    complete_to: int | None = None
    sample: tuple[str, ...] = ()
    shapes: bytes = b""


class PersistedForecast(Struct, frozen=True, gc=False, omit_defaults=True):
    """What a checkpoint stores of the forecast of one job: what is published, and what `TrackedJob` remembers.

    `tracked`: there is a `TrackedJob`. `unlearned`: the job has ended, and its run was not learned yet.
    """

    published: JobForecast | None = None
    tracked: bool = False
    unlearned: bool = False
    percent: float | None = None
    reported: float | None = None
    predicted_ends: tuple[Micros, ...] = ()
    predicted_events: int = -1
    percents: tuple[tuple[Micros, float], ...] = ()
    first_p50: Micros | None = None
    announced: ForecastState | None = None


class PersistedSilence(Struct, frozen=True, gc=False, array_like=True):
    """What a checkpoint contains of the silence of a running job.

    `alive_at`: watched time of its last sign of life. `is_news`: an event says, or said, that it stalls after that.
    """

    alive_at: Micros
    is_news: bool
    stalled: bool


class PersistedJob(Struct, frozen=True, gc=False, array_like=True, tag=0):
    """The state of a job in a checkpoint: its facts, the time of its last change, its forecast, and its silence.

    `updated_at` is 0 if the job was not published yet because its tables had not been read. `end_seen_at`: see
    `PublishedJob`. `away_at`: when the tables had the job no more (`jobs.away`); 0: they have it. `ran`: it was
    published then as one that had not ended, whatever its facts say. `failure`: the state of its failure.
    """

    job: Job
    updated_at: Micros
    forecast: PersistedForecast | None = None
    silence: PersistedSilence | None = None
    end_seen_at: Micros = 0
    away_at: Micros = 0
    ran: bool = False
    failure: FailureState = "unknown"


class PersistedLegacy(LegacyRecord, frozen=True, gc=False, array_like=True, tag=1):
    """A row of ``failover_jobs`` in a checkpoint, the silence and failure of its job, and when its end was seen."""

    silence: PersistedSilence | None = None
    end_seen_at: Micros = 0
    failure: FailureState = "unknown"

    @classmethod
    def of(
        cls, row: LegacyRecord, silence: PersistedSilence | None, end_seen_at: Micros, failure: FailureState
    ) -> PersistedLegacy:
        return cls(**asdict(row), silence=silence, end_seen_at=end_seen_at, failure=failure)

    @property
    def row(self) -> LegacyRecord:
        return LegacyRecord(**{name: getattr(self, name) for name in LegacyRecord.__struct_fields__})


class IndexState(Struct, frozen=True):
    """What the index persists besides its jobs.

    `last_observed_at`: its logical time. `pending_events`: events that wait for their log row. The number of each is
    the watched time at which it was due in that run; the next run begins its grace again. `removed`: jobs that left
    memory, each with its newest time. `announced_until`: what happened until then to a job that is neither in memory
    nor in `removed` is no news. `newest_removed`: the newest start of a job that left memory. `watched`: the watched
    time at which jobs were judged last (`Horizon`).
    """

    last_observed_at: int = 0
    pending_events: tuple[tuple[Micros, Event], ...] = ()
    removed: tuple[tuple[str, Micros], ...] = ()
    announced_until: Micros = -1
    newest_removed: Micros = 0
    watched: Micros = 0


PersistedEvent: TypeAlias = tuple[str, bytes, bytes]
"""An event that a sink still has to send: the sink, a head that it encodes, and the body."""


class PersistedExports(Struct, frozen=True):
    """What a checkpoint contains of the exports of ended jobs, and a part of it that has changed.

    ``since``: what ended until then, and was not published before, is not exported. ``jobs``: for each job in memory
    whose end was news, whether it has been exported; None if it has left memory.
    """

    since: Micros
    jobs: Mapping[str, bool | None] = {}
