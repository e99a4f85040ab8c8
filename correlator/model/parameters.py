"""The parameters of each operation of REST and of the event stream as types. See docs/protocol.md.

Paths and queries are read, and OpenAPI is generated, from them. No other parameters are accepted. A required member is
part of the path where the path has one of its name, else of the query, like all others. A set is repeated in the query
or separated by commas; a tuple is only repeated. A member that is UNSET is not given. In a docstring, `name: text`
describes a parameter.
"""

from __future__ import annotations

import datetime
import re
from typing import Annotated, Final, Literal, TypeAlias, TypeVar

from msgspec import UNSET, Meta, Struct, UnsetType, field

from correlator.model.document import EXACT, MAX_ID, MAX_STEP_ID, JobStatus
from correlator.model.messages import MAX_IDS
from correlator.model.replies import EntityKind
from correlator.model.rows import Level, Micros

T = TypeVar("T")

MAX_LIMIT: Final = 500
MAX_EVENTS: Final = 1000
"""Items of one page: of jobs, and of log rows."""

MAX_WORDS: Final = 8
"""Words of one search: each is compared with every text of a job."""

_S: Final = r"[\t-\r ]"
_W: Final = r"[^\t-\r ]"
_WORDS: Final = f"^{_S}*({_W}+{_S}+){{0,{MAX_WORDS - 1}}}{_W}*$"
_SOME_WORDS: Final = f"^{_S}*{_W}+({_S}+{_W}+){{0,{MAX_WORDS - 1}}}{_S}*$"
"""Up to `MAX_WORDS` words, and at least one, as every language's regular expressions can say it: without look-ahead and
escapes of Unicode, which RE2 lacks. ASCII separates words; any other space is part of one."""

WORD: Final = f"{_W}+"

_UNITS: Final = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}

_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


class Instant:
    """A time with its zone, as ISO 8601 has it. `micros`: microseconds since 1970-01-01T00:00:00Z."""

    def __init__(self, text: str) -> None:
        """Raises: ValueError if it is no time, or has no zone."""
        when = datetime.datetime.fromisoformat(text.replace(" ", "+"))  # in a query, `+` means a space
        if when.tzinfo is None:
            raise ValueError(text)
        self.micros = (when - _EPOCH) // datetime.timedelta(microseconds=1)


class Since:
    """A time with its zone, or so long ago: `7d`, `12h`, `30m`, `90s`."""

    def __init__(self, text: str) -> None:
        """Raises: ValueError if it is neither."""
        ago = re.fullmatch(r"(\d{1,6})([dhms])", text)
        self._ago = int(ago[1]) * _UNITS[ago[2]] * 1_000_000 if ago is not None else None
        self._micros = Instant(text).micros if ago is None else 0

    def at(self, now: Micros) -> Micros:
        return self._micros if self._ago is None else now - self._ago


Texts: TypeAlias = Annotated[frozenset[Annotated[str, Meta(pattern="[^,]")]], Meta(min_length=1)]
StepIds: TypeAlias = Annotated[
    frozenset[Annotated[int, Meta(ge=1, le=MAX_STEP_ID)]], Meta(min_length=1, max_length=100)
]
Time: TypeAlias = Annotated[
    Instant,
    Meta(
        extra_json_schema={"type": "string", "format": "date-time"},
        extra={"expected": "a time with its zone, e.g. 2025-09-22T10:00:00Z"},
    ),
]
SinceTime: TypeAlias = Annotated[
    Since,
    Meta(
        extra_json_schema={"type": "string", "pattern": "^([0-9]{1,6}[dhms]|[0-9]{4}-[0-9]{2}-[0-9]{2}T.+)$"},
        extra={"expected": "a time with its zone, e.g. 2025-09-22T10:00:00Z, or a time ago, e.g. 7d, 12h, 30m, 90s"},
    ),
]
EventId: TypeAlias = Annotated[int, Meta(ge=1, le=EXACT - 1)]
Limit: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_LIMIT)]


class NoParameters(Struct, frozen=True):
    """Of an operation that has none."""


class OfJob(Struct, frozen=True, kw_only=True):
    """A job.

    id: Any ID of a job: UUID, external ID, context ID (its newest job), legacy ID; resolved in this order. Exact text,
        any characters: percent-encode it, `/` too (in a path that works raw as well, where no other endpoint has the
        path).
    """

    id: Annotated[str, Meta(min_length=1, extra={"expected": "one ID of a job"})]


class GetJob(OfJob, frozen=True, kw_only=True):
    """wait: Seconds to wait until there is such a job; with `rev`, until it is past that.
    rev: The revision that the client has.
    """

    wait: Annotated[float, Meta(ge=0, le=60)] = 0.0
    rev: Annotated[int, Meta(ge=0, le=EXACT)] | UnsetType = UNSET


class GetJobLog(OfJob, frozen=True, kw_only=True):
    """level: The least level; `DEBUG`: all.
    step: Rows of one of these steps, by ID.
    q: Rows with this text in message or attrs, in any case.
    since: Rows from this time on; with its zone.
    """

    level: Level = "DEBUG"
    steps: StepIds = field(name="step", default=frozenset())
    text: Annotated[str, Meta(max_length=200)] = field(name="q", default="")
    since: Time | UnsetType = UNSET


class ListJobEvents(GetJobLog, frozen=True, kw_only=True):
    """after: `next_after` of the page before; opaque. At most one of after, from and before.
    from: Begin with this event ID, or the next one after it.
    before: The last rows below this event ID; the next page is the one before: `next_before`.
    limit: Most items per page.
    """

    after: str | UnsetType = UNSET
    first: EventId | UnsetType = field(name="from", default=UNSET)
    before: EventId | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=MAX_EVENTS)] = 100


class FindEvents(Struct, frozen=True, kw_only=True):
    """text: Words, each of which is in message or attrs, in upper or lower case; at most 8.
    level: The least level; `DEBUG`: all.
    since: Rows from this time on; with its zone.
    until: Rows before this time; with its zone.
    instance: Rows of one of these appliances, at a gateway; elsewhere no row has one.
    limit: About the most items per page.
    cursor: `next_cursor` of the page before.
    """

    text: Annotated[str, Meta(max_length=200, extra_json_schema={"pattern": _SOME_WORDS})]
    level: Level = "DEBUG"
    since: Time | UnsetType = UNSET
    until: Time | UnsetType = UNSET
    instance: Texts = frozenset()
    limit: Limit = 100
    cursor: str | UnsetType = UNSET


class JobFilters(Struct, frozen=True, kw_only=True):
    """Filters of jobs: OR inside a member, AND between them; an empty member does not filter.

    status: Jobs that have one of these.
    job_type: Jobs of one of these types.
    context_id: Jobs of one of these contexts.
    instance: Jobs of one of these appliances, at a gateway; elsewhere no job has one.
    """

    status: Annotated[frozenset[JobStatus], Meta(min_length=1)] = frozenset()
    job_type: Texts = frozenset()
    context_id: Texts = frozenset()
    instance: Texts = frozenset()


class ListJobs(JobFilters, frozen=True, kw_only=True):
    """operation: Jobs of one of these operations.
    parent_job_id: Children of one of these jobs.
    q: Text in any ID or in the VM's name, in upper or lower case. A page holds what a part of the table has: it may be
        short or empty while `next_cursor` is set.
    text: Words, of which each is searched as `q`, and also in the operation, in an error, and in the name of a step; at
        most 8. It is slower.
    since: Jobs that started then or later; a time with its zone.
    until: Jobs that started before then; a time with its zone.
    limit: Most items per page.
    cursor: `next_cursor` of the page before.
    steps: `1`: with their steps.
    """

    operation: Texts = frozenset()
    parent_job_id: Texts = frozenset()
    text: str = field(name="q", default="")
    words: Annotated[str, Meta(extra_json_schema={"pattern": _WORDS})] = field(name="text", default="")
    since: Time | UnsetType = UNSET
    until: Time | UnsetType = UNSET
    limit: Limit = 100
    cursor: str | UnsetType = UNSET
    steps: Annotated[Literal["0", "1"], Meta(title="Flag")] = "0"


class GetEntity(Struct, frozen=True, kw_only=True):
    """name: A context ID, or the exact name of a VM. Percent-encode it; `/` also works raw. A name that is both is the
        context.
    kind: What the name is; found out by default.
    since: Jobs that started then or later; a time with its zone.
    limit: Most items per page.
    cursor: `next_cursor` of the page before.
    """

    name: str
    kind: EntityKind | UnsetType = UNSET
    since: Time | UnsetType = UNSET
    limit: Limit = 100
    cursor: str | UnsetType = UNSET


class ListFailures(Struct, frozen=True, kw_only=True):
    """since: Jobs that failed then or later: a time with its zone, or so long ago, e.g. `7d`, `12h`, `30m`.
    operation: Jobs of this operation.
    vm: Jobs of the VM with exactly this name.
    instance: Jobs of one of these appliances, at a gateway; elsewhere no job has one.
    limit: Most items per page.
    cursor: `next_cursor` of the page before.
    """

    since: SinceTime | UnsetType = UNSET
    operation: str | UnsetType = UNSET
    vm: str | UnsetType = UNSET
    instance: Texts = frozenset()
    limit: Limit = 100
    cursor: str | UnsetType = UNSET


class GetFailure(Struct, frozen=True, kw_only=True):
    """fingerprint: The `fingerprint` of a job's `failure`."""

    fingerprint: Annotated[str, Meta(pattern="^[0-9a-f]{12}$", extra={"expected": "12 hex digits"})]


class GetOperation(Struct, frozen=True, kw_only=True):
    """job_type: The job type, percent-encoded; `-` for jobs that have none.
    operation: The operation, percent-encoded; `/` also works raw.
    """

    job_type: str
    operation: str


class StreamMessages(JobFilters, frozen=True, kw_only=True):
    """id: These jobs, each by any of its IDs. The stream waits for an ID that is not known yet. A single empty `id`
        selects no job.
    logs: Log lines too, of at least this level.
    """

    ids: Annotated[
        tuple[Annotated[str, Meta(max_length=MAX_ID, extra={"expected": f"1 to {MAX_ID} characters"})], ...],
        Meta(max_length=MAX_IDS),
    ] = field(name="id", default=())
    logs: Level | UnsetType = UNSET


class OpenWebsocket(Struct, frozen=True, kw_only=True):
    """say: The first frame, which arrives a round trip sooner in the address; without a token."""

    say: str | UnsetType = UNSET


def given(value: T | UnsetType) -> T | None:
    """The value; None if it is not given."""
    return None if isinstance(value, UnsetType) else value
