"""The table of everything that answers over HTTP: paths, parameters with their limits, answers with their bodies.

What the code knows is taken from there; `correlator.sinks.specs` makes the OpenAPI document of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal, TypeAlias

from msgspec import Meta
from prometheus_client import CONTENT_TYPE_LATEST

from correlator.hub import RING
from correlator.jobs.model import Level
from correlator.jobs.shapes import Document, JobStatus
from correlator.sinks.access import TICKET_SECONDS
from correlator.sinks.frames import MAX_IDS
from correlator.sinks.payloads import (
    DirectReply,
    EnhancedReply,
    EventsPage,
    JobsPage,
    LegacyReply,
    Liveness,
    Problem,
    Readiness,
    Resolved,
    Ticket,
    UnknownReply,
)
from correlator.sinks.rest import DEFAULT_LIMIT, MAX_EVENTS, MAX_LIMIT, MAX_WAIT

JSON, PROBLEM, EVENT_STREAM = "application/json", "application/problem+json", "text/event-stream"

DateTime: TypeAlias = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]


@dataclass(frozen=True, slots=True)
class Parameter:
    """`type` is what msgspec makes a schema of; a list is repeated in the query."""

    name: str
    type: Any
    description: str
    place: Literal["path", "query", "header"] = "query"


@dataclass(frozen=True, slots=True)
class Answer:
    """`bodies`: the shapes it may have. `headers`: names, with what they say."""

    description: str
    bodies: tuple[Any, ...] = ()
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`gate`: who is asked for what before it. `token`: Host and token; `host`: Host alone; `open`: nothing."""

    path: str
    name: str
    summary: str
    answers: dict[HTTPStatus, Answer]
    parameters: tuple[Parameter, ...] = ()
    method: Literal["get", "post"] = "get"
    gate: Literal["token", "host", "open"] = "token"


def _problem(description: str) -> Answer:
    return Answer(description, (Problem,), PROBLEM)


RETRY: Final = (("Retry-After", "Seconds."),)

BAD: Final = {HTTPStatus.BAD_REQUEST: _problem("A parameter is unknown, or has a value that makes no sense.")}
AWAY: Final = {
    HTTPStatus.SERVICE_UNAVAILABLE: Answer("Only the database could tell, and it is away.", (Problem,), PROBLEM, RETRY)
}
UNKNOWN: Final = {HTTPStatus.NOT_FOUND: _problem("No job is known by this ID.")}

ID: Final = Parameter(
    "id",
    str,
    "Any ID of a job: UUID, external ID, context ID (its newest job), legacy ID; looked up in this order. Exact text,"
    " any characters: percent-encode it, `/` too (that works raw as well, where no other endpoint has the path).",
    "path",
)
ETAG: Final = (("ETag", 'The revision: `"{epoch}-{rev}"`.'),)

LISTED: Final = "Repeated, or with commas between."
STATUS: Final = Parameter("status", list[JobStatus], f"Jobs that have one of these. {LISTED}")
JOB_TYPE: Final = Parameter("job_type", list[str], f"Jobs of one of these types. {LISTED}")
CONTEXT_ID: Final = Parameter("context_id", list[str], f"Jobs of one of these contexts. {LISTED}")

ENDPOINTS: Final = (
    Endpoint(
        "/api/v1/jobs",
        "jobs",
        "Jobs, the newest first; those that left memory come from the database",
        {HTTPStatus.OK: Answer("A page of jobs.", (JobsPage,)), **BAD, **AWAY},
        (
            STATUS,
            JOB_TYPE,
            Parameter("operation", list[str], f"Jobs of one of these operations. {LISTED}"),
            CONTEXT_ID,
            Parameter("parent_job_id", list[str], f"Children of one of these jobs. {LISTED}"),
            Parameter("q", str, "Text in any ID or in the VM's name, in upper or lower case."),
            Parameter("since", DateTime, "Jobs that started then or later; a time with its zone."),
            Parameter("limit", Annotated[int, Meta(ge=1, le=MAX_LIMIT)], f"At most so many; else {DEFAULT_LIMIT}."),
            Parameter("cursor", str, "`next_cursor` of the page before."),
            Parameter("steps", Literal["0", "1"], "`1`: with their steps."),
        ),
    ),
    Endpoint(
        "/api/v1/jobs/{id}",
        "job",
        "One job",
        {
            HTTPStatus.OK: Answer("The job.", (Document,), headers=ETAG),
            HTTPStatus.NOT_MODIFIED: Answer("It is as in `If-None-Match`, or at `rev` after `wait`.", headers=ETAG),
            **BAD,
            **UNKNOWN,
            **AWAY,
        },
        (
            ID,
            Parameter(
                "wait",
                Annotated[float, Meta(ge=0, le=MAX_WAIT)],
                "Seconds to wait until there is such a job; with `rev`, until it is past that.",
            ),
            Parameter("rev", Annotated[int, Meta(ge=0, le=1 << 53)], "The revision that the client has."),
            Parameter("If-None-Match", str, "The `ETag` that the client has.", "header"),
        ),
    ),
    Endpoint(
        "/api/v1/jobs/{id}/events",
        "job_events",
        "The log rows of a job, oldest first; from the database, complete",
        {HTTPStatus.OK: Answer("A page of log rows.", (EventsPage,)), **BAD, **UNKNOWN, **AWAY},
        (
            ID,
            Parameter("after", str, "`next_after` of the page before; opaque."),
            Parameter("limit", Annotated[int, Meta(ge=1, le=MAX_EVENTS)], f"At most so many; else {DEFAULT_LIMIT}."),
            Parameter("level", Level, "The least level; `DEBUG`: all."),
        ),
    ),
    Endpoint(
        "/api/v1/resolve/{id}",
        "resolve",
        "Where an ID leads, and by which of its kinds",
        {HTTPStatus.OK: Answer("The job.", (Resolved,)), **BAD, **UNKNOWN, **AWAY},
        (ID,),
    ),
    Endpoint(
        "/api/v1/failover/{id}/status",
        "failover_status",
        "The appliance's own status reply, for a GUI that polls it",
        {
            HTTPStatus.OK: Answer("As the job was found.", (DirectReply, EnhancedReply, LegacyReply)),
            HTTPStatus.NOT_FOUND: Answer("The appliance's own words for it.", (UnknownReply,)),
            **AWAY,
        },
        (ID,),
    ),
    Endpoint(
        "/api/v1/stream",
        "stream",
        "The messages of the websocket as server-sent events",
        {
            HTTPStatus.OK: Answer(
                "Each `data` is a message, each `id` is `{epoch}:{seq}`; see asyncapi.json.", (str,), EVENT_STREAM
            ),
            **BAD,
            HTTPStatus.TOO_MANY_REQUESTS: _problem("There are as many readers as are let in."),
            HTTPStatus.SERVICE_UNAVAILABLE: Answer("The daemon is going.", (Problem,), PROBLEM, RETRY),
            HTTPStatus.HTTP_VERSION_NOT_SUPPORTED: _problem("HTTP/1.0 has no streams."),
        },
        (
            Parameter(
                "id",
                Annotated[list[str], Meta(max_length=MAX_IDS)],
                "These jobs, each by any of its IDs; one that nobody knows yet is held.",
            ),
            STATUS,
            JOB_TYPE,
            CONTEXT_ID,
            Parameter("logs", Level, "Log lines too, of at least this level."),
            Parameter(
                "Last-Event-ID",
                str,
                f"The `id` from which to go on: within the last {RING:,} changes of this epoch, without a snapshot.",
                "header",
            ),
        ),
    ),
    Endpoint(
        "/api/v1/openapi.json",
        "openapi",
        "This document",
        {HTTPStatus.OK: Answer("OpenAPI 3.1.", (dict[str, Any],)), **BAD},
    ),
    Endpoint(
        "/api/v1/asyncapi.json",
        "asyncapi",
        "Websocket, event stream and MQTT",
        {HTTPStatus.OK: Answer("AsyncAPI 3.0.", (dict[str, Any],)), **BAD},
    ),
    Endpoint(
        "/api/v1/ticket",
        "ticket",
        f"A word that lets one request in within {TICKET_SECONDS:g} s, where a header cannot be set",
        {HTTPStatus.OK: Answer("The ticket.", (Ticket,))},
        method="post",
    ),
    Endpoint(
        "/health/live",
        "live",
        "Whether the process answers",
        {HTTPStatus.OK: Answer("It does.", (Liveness,))},
        gate="open",
    ),
    Endpoint(
        "/health/ready",
        "ready",
        "Whether it may be asked",
        {
            HTTPStatus.OK: Answer("It may, also while a part is away.", (Readiness,)),
            HTTPStatus.SERVICE_UNAVAILABLE: Answer("It is still loading, or already going.", (Readiness,)),
        },
        gate="open",
    ),
    Endpoint(
        "/metrics",
        "metrics",
        "For Prometheus",
        {HTTPStatus.OK: Answer("Its text format.", (str,), CONTENT_TYPE_LATEST)},
    ),
    Endpoint("/", "page", "The live page", {HTTPStatus.OK: Answer("The page.", (str,), "text/html")}, gate="host"),
    Endpoint(
        "/client.js",
        "client",
        "The browser client",
        {HTTPStatus.OK: Answer("A module.", (str,), "text/javascript")},
        gate="host",
    ),
    Endpoint(
        "/ws",
        "websocket",
        "The websocket; its messages are in asyncapi.json",
        {
            HTTPStatus.SWITCHING_PROTOCOLS: Answer("Go on with `hello`; a refusal is a close code."),
            HTTPStatus.BAD_REQUEST: _problem("This is no websocket handshake."),
        },
        gate="host",
    ),
)
