"""What the table of the HTTP endpoints is made of: its types, and the parameters and responses that several have."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal, TypeAlias

from msgspec import Meta

from correlator.model.document import JobStatus
from correlator.model.replies import Problem
from correlator.sinks.http.rest import DEFAULT_LIMIT, MAX_EVENT_ID, MAX_LIMIT

JSON, PROBLEM, EVENT_STREAM = "application/json", "application/problem+json", "text/event-stream"

DateTime: TypeAlias = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
EventId: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_EVENT_ID)]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter. `type`: a type that msgspec derives a schema from; a list is repeated in the query."""

    name: str
    type: Any
    description: str
    place: Literal["path", "query", "header"] = "query"
    required: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """A response. `bodies`: the types its body may have, `title`: the name of several. `headers`: (name, description).

    `also`: another content type that it may have, as text.
    """

    description: str
    bodies: tuple[Any, ...] = ()
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()
    also: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint. `gate`: what is checked before it. `token`: Host and token; `host`: only Host; `open`: nothing."""

    path: str
    name: str
    summary: str
    answers: dict[HTTPStatus, Answer]
    parameters: tuple[Parameter, ...] = ()
    method: Literal["get", "post"] = "get"
    gate: Literal["token", "host", "open"] = "token"


def problem(description: str, *headers: tuple[str, str]) -> Answer:
    """A response that is a problem document."""
    return Answer(description, (Problem,), PROBLEM, headers)


RETRY: Final = ("Retry-After", "Seconds.")

BAD: Final = {HTTPStatus.BAD_REQUEST: problem("A parameter is unknown or has an invalid value.")}
AWAY: Final = {
    HTTPStatus.SERVICE_UNAVAILABLE: problem(
        "The answer needs the database, which is not available or has not finished a search. Repeat the request.", RETRY
    )
}
BUSY: Final = {
    HTTPStatus.TOO_MANY_REQUESTS: problem(
        "The client's address has too many requests that wait, or replies that it has not read. Repeat the request.",
        RETRY,
    )
}
UNKNOWN: Final = {HTTPStatus.NOT_FOUND: problem("No job is known by this ID.")}

ID: Final = Parameter(
    "id",
    str,
    "Any ID of a job: UUID, external ID, context ID (its newest job), legacy ID; resolved in this order. Exact text,"
    " any characters: percent-encode it, `/` too (that works raw as well, where no other endpoint has the path).",
    "path",
)
ETAG: Final = (("ETag", 'The revision: `"{epoch}-{rev}"`.'),)

LISTED: Final = "Repeated, or with commas between."
TEXTS: Final = Annotated[list[Annotated[str, Meta(pattern="[^,]")]], Meta(min_length=1)]
STATUS: Final = Parameter(
    "status", Annotated[list[JobStatus], Meta(min_length=1)], f"Jobs that have one of these. {LISTED}"
)
JOB_TYPE: Final = Parameter("job_type", TEXTS, f"Jobs of one of these types. {LISTED}")
CONTEXT_ID: Final = Parameter("context_id", TEXTS, f"Jobs of one of these contexts. {LISTED}")
INSTANCE: Final = Parameter(
    "instance", TEXTS, f"Jobs of one of these appliances, at a gateway; elsewhere no job has one. {LISTED}"
)
LIMIT: Final = Parameter(
    "limit", Annotated[int, Meta(ge=1, le=MAX_LIMIT)], f"Most items per page; {DEFAULT_LIMIT} by default."
)
CURSOR: Final = Parameter("cursor", str, "`next_cursor` of the page before.")
