"""The table of all HTTP endpoints: paths, parameters with their limits, responses with their bodies.

Limits are imported from the code that enforces them. `correlator.sinks.http.openapi.specs` generates the OpenAPI
document from this table.
"""

from __future__ import annotations

from dataclasses import replace
from http import HTTPStatus
from typing import Annotated, Final, Literal

from msgspec import Meta

from correlator.jobs.joblog import MAX_STEP_ID
from correlator.jobs.model.rows import Level
from correlator.model.document import JobDocument
from correlator.model.replies import (
    Description,
    DirectReply,
    EnhancedReply,
    EntityKind,
    EntityPage,
    EventsPage,
    InstancesList,
    JobsPage,
    LegacyReply,
    Liveness,
    OperationsList,
    OperationWithSteps,
    Readiness,
    Resolved,
    Stuck,
    Ticket,
    UnknownReply,
)
from correlator.pipeline.resume_ring import MAX_CHANGES
from correlator.sinks.http.access import TICKET_SECONDS
from correlator.sinks.http.frames import MAX_IDS
from correlator.sinks.http.openapi.parts import (
    AWAY,
    BAD,
    BUSY,
    CONTEXT_ID,
    CURSOR,
    ETAG,
    EVENT_STREAM,
    ID,
    INSTANCE,
    JOB_TYPE,
    LIMIT,
    LISTED,
    RETRY,
    STATUS,
    TEXTS,
    UNKNOWN,
    Answer,
    DateTime,
    Endpoint,
    EventId,
    Parameter,
    problem,
)
from correlator.sinks.http.rest import (
    DEFAULT_LIMIT,
    MAX_EVENTS,
    MAX_TEXT,
    MAX_WAIT,
    MAX_WORDS,
    SPACE,
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
)

_LINES: Final = (
    Parameter("level", Level, "The least level; `DEBUG`: all."),
    Parameter(
        "step",
        Annotated[list[Annotated[int, Meta(ge=1, le=MAX_STEP_ID)]], Meta(min_length=1)],
        f"Rows of one of these steps, by ID. {LISTED}",
    ),
    Parameter("q", Annotated[str, Meta(max_length=MAX_TEXT)], "Rows with this text in message or attrs, in any case."),
    Parameter("since", DateTime, "Rows from this time on; with its zone."),
)

_EVENTS: Final = Endpoint(
    "/api/v1/jobs/{id}/events",
    "listJobEvents",
    "The log rows of a job, oldest first; from the database, complete once all pages have been read",
    {
        HTTPStatus.OK: Answer("A page of log rows.", (EventsPage,)),
        **BAD,
        **UNKNOWN,
        **BUSY,
        **AWAY,
    },
    (
        ID,
        Parameter("after", str, "`next_after` of the page before; opaque. At most one of after, from and before."),
        Parameter("from", EventId, "Begin with this event ID, or the next one after it."),
        Parameter(
            "before", EventId, "The last rows below this event ID; the next page is the one before: `next_before`."
        ),
        Parameter(
            "limit", Annotated[int, Meta(ge=1, le=MAX_EVENTS)], f"Most items per page; {DEFAULT_LIMIT} by default."
        ),
        *_LINES,
    ),
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
    (ID, *_LINES),
)


def _by_parameter(endpoint: Endpoint, path: str) -> Endpoint:
    """The endpoint with the ID as a parameter: clients remove `.` and `..` from paths."""
    text = f"As in the path of {endpoint.path}; also `.` and `..`."
    job = Parameter("id", Annotated[str, Meta(min_length=1)], text, required=True)
    return replace(
        endpoint,
        path=path,
        name=f"{endpoint.name}ByParameter",
        summary=f"{endpoint.summary}: for an ID that no path can have",
        parameters=(job, *endpoint.parameters[1:]),
    )


ENDPOINTS: Final = (
    Endpoint(
        "/api/v1/jobs",
        "listJobs",
        "Jobs, the newest first; those that left memory come from the database",
        {HTTPStatus.OK: Answer("A page of jobs.", (JobsPage,)), **BAD, **BUSY, **AWAY},
        (
            STATUS,
            JOB_TYPE,
            Parameter("operation", TEXTS, f"Jobs of one of these operations. {LISTED}"),
            CONTEXT_ID,
            Parameter("parent_job_id", TEXTS, f"Children of one of these jobs. {LISTED}"),
            INSTANCE,
            Parameter(
                "q",
                str,
                "Text in any ID or in the VM's name, in upper or lower case. A page holds what a part of the table has:"
                " it may be short or empty while `next_cursor` is set.",
            ),
            Parameter(
                "text",
                Annotated[str, Meta(pattern=f"^[{SPACE}]*([^{SPACE}]+[{SPACE}]+){{0,{MAX_WORDS - 1}}}[^{SPACE}]*$")],
                f"Words, of which each is searched as `q`, and also in the operation, in an error, and in the name of"
                f" a step; at most {MAX_WORDS}. It is slower.",
            ),
            Parameter("since", DateTime, "Jobs that started then or later; a time with its zone."),
            Parameter("until", DateTime, "Jobs that started before then; a time with its zone."),
            LIMIT,
            CURSOR,
            Parameter("steps", Annotated[Literal["0", "1"], Meta(title="Flag")], "`1`: with their steps."),
        ),
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
        {HTTPStatus.OK: Answer("The job.", (Resolved,)), **BAD, **UNKNOWN, **AWAY},
        (ID,),
    ),
    Endpoint(
        "/api/v1/entities/{name}",
        "getEntity",
        "The jobs of one VM or context over time, the newest first, with the trend of each operation",
        {HTTPStatus.OK: Answer("A page of its jobs; none if there are none.", (EntityPage,)), **BAD, **BUSY, **AWAY},
        (
            Parameter(
                "name",
                str,
                "A context ID, or the exact name of a VM. Percent-encode it; `/` also works raw. A name that is both"
                " is the context.",
                "path",
            ),
            Parameter("kind", EntityKind, "What the name is; found out by default."),
            LIMIT,
            CURSOR,
        ),
    ),
    Endpoint(
        "/api/v1/operations",
        "listOperations",
        "What earlier runs took, by operation: what forecasts rest on",
        {HTTPStatus.OK: Answer("All operations that a run of has ended.", (OperationsList,)), **BAD},
    ),
    Endpoint(
        "/api/v1/operations/{job_type}/{operation}",
        "getOperation",
        "What earlier runs of one operation took, with its usual steps",
        {
            HTTPStatus.OK: Answer("The operation.", (OperationWithSteps,)),
            **BAD,
            HTTPStatus.NOT_FOUND: problem("No run of this operation is known."),
        },
        (
            Parameter("job_type", str, "The job type, percent-encoded; `-` for jobs that have none.", "path"),
            Parameter("operation", str, "The operation, percent-encoded; `/` also works raw.", "path"),
        ),
    ),
    Endpoint(
        "/api/v1/instances",
        "listInstances",
        "The appliances of a fleet, and the health of each; at a gateway only",
        {
            HTTPStatus.OK: Answer("All appliances, by name.", (InstancesList,)),
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
                "As the job was found.", (DirectReply, EnhancedReply, LegacyReply), title="FailoverStatus"
            ),
            HTTPStatus.NOT_FOUND: Answer(
                "The appliance's own words for it; after `http.unknown_id_wait`, in which the job may appear.",
                (UnknownReply,),
            ),
            **AWAY,
        },
        (ID,),
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
        (
            Parameter(
                "id",
                Annotated[list[str], Meta(max_length=MAX_IDS)],
                "These jobs, each by any of its IDs. The stream waits for an ID that is not known yet."
                " A single empty `id` selects no job.",
            ),
            STATUS,
            JOB_TYPE,
            CONTEXT_ID,
            INSTANCE,
            Parameter("logs", Level, "Log lines too, of at least this level."),
            Parameter(
                "Last-Event-ID",
                str,
                f"The `id` from which to go on: without a snapshot, if it is of this epoch and among the last"
                f" {MAX_CHANGES:,} changes, or fewer where these carry very long IDs.",
                "header",
            ),
        ),
    ),
    Endpoint(
        "/api/v1/openapi.json",
        "getOpenapi",
        "This document",
        {HTTPStatus.OK: Answer("OpenAPI 3.1.", (Description,)), **BAD},
    ),
    Endpoint(
        "/api/v1/asyncapi.json",
        "getAsyncapi",
        "Websocket, event stream and MQTT",
        {HTTPStatus.OK: Answer("AsyncAPI 3.0.", (Description,)), **BAD},
    ),
    Endpoint(
        "/api/v1/ticket",
        "createTicket",
        f"A ticket, which admits one request within {TICKET_SECONDS:g} s where a header cannot be set",
        {HTTPStatus.OK: Answer("The ticket.", (Ticket,))},
        method="post",
    ),
    Endpoint(
        "/health/live",
        "getLiveness",
        "Liveness: the process answers",
        {
            HTTPStatus.OK: Answer("The process answers, and works.", (Liveness,)),
            HTTPStatus.SERVICE_UNAVAILABLE: Answer("A task makes no progress. Restart the process.", (Stuck,)),
        },
        gate="open",
    ),
    Endpoint(
        "/health/ready",
        "getReadiness",
        "Readiness",
        {
            HTTPStatus.OK: Answer("Ready, possibly with a part that is not available (`degraded`).", (Readiness,)),
            HTTPStatus.SERVICE_UNAVAILABLE: Answer("The daemon is still loading, or is shutting down.", (Readiness,)),
        },
        gate="open",
    ),
    Endpoint(
        "/metrics",
        "getMetrics",
        "Metrics for Prometheus",
        {
            HTTPStatus.OK: Answer(
                "The Prometheus text format.", (str,), "text/plain", also="application/openmetrics-text"
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
