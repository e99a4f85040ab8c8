"""The table of all HTTP endpoints, from which `correlator.sinks.http.openapi.specs` generates the OpenAPI document."""

from __future__ import annotations

from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, Final, Literal

from msgspec import Struct

from correlator.model import parameters, replies
from correlator.model.document import JobDocument
from correlator.pipeline.resume_ring import MAX_CHANGES
from correlator.sinks.http.access import TICKET_SECONDS

JSON, PROBLEM, EVENT_STREAM = "application/json", "application/problem+json", "text/event-stream"


@dataclass(frozen=True, slots=True)
class Answer:
    """A response. `bodies`: the types its body may have, `title`: their name if they are several.

    `headers`: (name, description).
    """

    description: str
    bodies: tuple[Any, ...] = ()
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()
    title: str = ""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint. `gate`: what is checked before it. `token`: Host and token; `host`: only Host; `open`: nothing.

    `parameters`: of the path and of the query. `headers`: (name, description) of those that it reads.
    """

    path: str
    name: str
    summary: str
    answers: dict[HTTPStatus, Answer]
    parameters: type[Struct] = parameters.NoParameters
    headers: tuple[tuple[str, str], ...] = ()
    method: Literal["get", "post"] = "get"
    gate: Literal["token", "host", "open"] = "token"


def problem(description: str, *headers: tuple[str, str]) -> Answer:
    """A response that is a problem document."""
    return Answer(description, (replies.Problem,), PROBLEM, headers)


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

ETAG: Final = (("ETag", 'The revision: `"{epoch}-{rev}"`.'),)

_LAST_EVENT: Final = (
    "Last-Event-ID",
    (
        "The `id` from which to go on: without a snapshot, if it is of this epoch and among the last"
        f" {MAX_CHANGES:,} changes, or fewer where these carry very long IDs."
    ),
)

_JOB: Final = Endpoint(
    "/api/v1/jobs/{id}",
    "getJob",
    "One job",
    {
        HTTPStatus.OK: Answer("The job.", (JobDocument,), headers=ETAG),
        HTTPStatus.NOT_MODIFIED: Answer(
            "The job is unchanged: as in `If-None-Match`, or still at `rev` after `wait`.", headers=ETAG
        ),
        **BAD,
        **UNKNOWN,
        **AWAY,
    },
    parameters.GetJob,
    (("If-None-Match", "The `ETag` that the client has."),),
)

_EVENTS: Final = Endpoint(
    "/api/v1/jobs/{id}/events",
    "listJobEvents",
    "The log rows of a job, oldest first; from the database, complete once all pages have been read",
    {
        HTTPStatus.OK: Answer("A page of log rows.", (replies.EventsPage,)),
        **BAD,
        **UNKNOWN,
        **BUSY,
        **AWAY,
    },
    parameters.ListJobEvents,
)

_LOG: Final = Endpoint(
    "/api/v1/jobs/{id}/log",
    "getJobLog",
    "The whole log of a job as a text file, one line each; complete if the body is",
    {
        HTTPStatus.OK: Answer("The log.", (str,), "text/plain"),
        **BAD,
        **UNKNOWN,
        **BUSY,
        **AWAY,
    },
    parameters.GetJobLog,
)


def _by_parameter(endpoint: Endpoint, path: str) -> Endpoint:
    """The endpoint with the ID as a parameter: clients remove `.` and `..` from paths."""
    return replace(
        endpoint,
        path=path,
        name=f"{endpoint.name}ByParameter",
        summary=f"{endpoint.summary}: for an ID that no path can have, as `..`",
    )


ENDPOINTS: Final = (
    Endpoint(
        "/api/v1/jobs",
        "listJobs",
        "Jobs, the newest first; those that left memory come from the database",
        {HTTPStatus.OK: Answer("A page of jobs.", (replies.JobsPage,)), **BAD, **BUSY, **AWAY},
        parameters.ListJobs,
    ),
    _JOB,
    _by_parameter(_JOB, "/api/v1/job"),
    _EVENTS,
    _by_parameter(_EVENTS, "/api/v1/job/events"),
    _LOG,
    _by_parameter(_LOG, "/api/v1/job/log"),
    Endpoint(
        "/api/v1/resolve/{id}",
        "resolveId",
        "Where an ID leads, and by which of its kinds",
        {HTTPStatus.OK: Answer("The job.", (replies.Resolved,)), **BAD, **UNKNOWN, **AWAY},
        parameters.OfJob,
    ),
    Endpoint(
        "/api/v1/entities/{name}",
        "getEntity",
        "The jobs of one VM or context over time, the newest first, with the trend of each operation",
        {
            HTTPStatus.OK: Answer("A page of its jobs; none if there are none.", (replies.EntityPage,)),
            **BAD,
            **BUSY,
            **AWAY,
        },
        parameters.GetEntity,
    ),
    Endpoint(
        "/api/v1/operations",
        "listOperations",
        "What earlier runs took, by operation: what forecasts rest on",
        {HTTPStatus.OK: Answer("All operations that a run of has ended.", (replies.OperationsList,)), **BAD},
    ),
    Endpoint(
        "/api/v1/operations/{job_type}/{operation}",
        "getOperation",
        "What earlier runs of one operation took, with its usual steps",
        {
            HTTPStatus.OK: Answer("The operation.", (replies.OperationWithSteps,)),
            **BAD,
            HTTPStatus.NOT_FOUND: problem("No run of this operation is known."),
        },
        parameters.GetOperation,
    ),
    Endpoint(
        "/api/v1/instances",
        "listInstances",
        "The appliances of a fleet, and the health of each; at a gateway only",
        {
            HTTPStatus.OK: Answer("All appliances, by name.", (replies.InstancesList,)),
            **BAD,
            HTTPStatus.NOT_FOUND: problem("This is not a gateway."),
        },
    ),
    Endpoint(
        "/api/v1/failover/{id}/status",
        "getFailoverStatus",
        "The appliance's own status reply, for a GUI that polls it",
        {
            HTTPStatus.OK: Answer(
                "As the job was found.",
                (replies.DirectReply, replies.EnhancedReply, replies.LegacyReply),
                title="FailoverStatus",
            ),
            HTTPStatus.NOT_FOUND: Answer(
                "The appliance's own words for it; after `http.unknown_id_wait`, in which the job may appear.",
                (replies.UnknownReply,),
            ),
            **AWAY,
        },
        parameters.OfJob,
    ),
    Endpoint(
        "/api/v1/stream",
        "streamMessages",
        "The messages of the websocket as server-sent events",
        {
            HTTPStatus.OK: Answer(
                "Each `data` is a message, each `id` is `{epoch}:{seq}`; see asyncapi.json.", (str,), EVENT_STREAM
            ),
            **BAD,
            HTTPStatus.TOO_MANY_REQUESTS: problem("The limit of streaming connections is reached."),
            HTTPStatus.SERVICE_UNAVAILABLE: problem("The daemon is shutting down.", RETRY),
            HTTPStatus.HTTP_VERSION_NOT_SUPPORTED: problem("HTTP/1.0 has no streams."),
        },
        parameters.StreamMessages,
        (_LAST_EVENT,),
    ),
    Endpoint(
        "/api/v1/openapi.json",
        "getOpenapi",
        "This document",
        {HTTPStatus.OK: Answer("OpenAPI 3.1.", (replies.Description,)), **BAD},
    ),
    Endpoint(
        "/api/v1/asyncapi.json",
        "getAsyncapi",
        "Websocket, event stream and MQTT",
        {HTTPStatus.OK: Answer("AsyncAPI 3.0.", (replies.Description,)), **BAD},
    ),
    Endpoint(
        "/api/v1/ticket",
        "createTicket",
        f"A ticket, which admits one request within {TICKET_SECONDS:g} s where a header cannot be set",
        {HTTPStatus.OK: Answer("The ticket.", (replies.Ticket,))},
        method="post",
    ),
    Endpoint(
        "/health/live",
        "getLiveness",
        "Liveness: the process answers",
        {
            HTTPStatus.OK: Answer("The process answers, and works.", (replies.Liveness,)),
            HTTPStatus.SERVICE_UNAVAILABLE: Answer("A task makes no progress. Restart the process.", (replies.Stuck,)),
        },
        gate="open",
    ),
    Endpoint(
        "/health/ready",
        "getReadiness",
        "Readiness",
        {
            HTTPStatus.OK: Answer(
                "Ready, possibly with a part that is not available (`degraded`).", (replies.Readiness,)
            ),
            HTTPStatus.SERVICE_UNAVAILABLE: Answer(
                "The daemon is still loading, or is shutting down.", (replies.Readiness,)
            ),
        },
        gate="open",
    ),
    Endpoint(
        "/metrics",
        "getMetrics",
        "Metrics for Prometheus",
        {
            HTTPStatus.OK: Answer(
                "The Prometheus text format; that of OpenMetrics if `Accept` prefers it.", (str,), "text/plain"
            )
        },
    ),
    Endpoint("/", "getPage", "The live page", {HTTPStatus.OK: Answer("The page.", (str,), "text/html")}, gate="host"),
    Endpoint(
        "/client.js",
        "getClient",
        "The browser client",
        {HTTPStatus.OK: Answer("A module.", (str,), "text/javascript")},
        gate="host",
    ),
    Endpoint(
        "/ws",
        "openWebsocket",
        "The websocket; its messages are in asyncapi.json",
        {
            HTTPStatus.SWITCHING_PROTOCOLS: Answer("Continue with `hello`. A refusal is a close code."),
            HTTPStatus.BAD_REQUEST: problem("Not a websocket handshake."),
        },
        gate="host",
    ),
)
