"""OpenAPI 3.1 and AsyncAPI 3.1: the HTTP endpoints, and the messages of websocket, event streams and MQTT.

Both documents are generated. `ENDPOINTS` describes the endpoints; schemas come from the types of `correlator.model`,
topics from `Topics`, limits and codes from the code that defines them. A response, a parameter or a message is
described in the docstring of its type (`name: text`).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, Final, Literal, TypeAlias, get_args

import msgspec
from msgspec import Struct

from correlator import __version__
from correlator.config.schema import Http, Mqtt
from correlator.model import messages, parameters, replies
from correlator.model.document import JobDocument
from correlator.pipeline.hub import MAX_CHANGES
from correlator.sinks.http import frames, websocket
from correlator.sinks.http.access import TICKET_SECONDS
from correlator.sinks.http.connections import MAX_FIELD, MAX_TARGET
from correlator.sinks.mqtt.topics import DISCOVERY, SPACING, TopicKey, Topics, unescape
from correlator.sinks.streaming.limits import DEFAULT
from correlator.sinks.webhooks import CLOUD_EVENT

JSON, PROBLEM, EVENT_STREAM = "application/json", "application/problem+json", "text/event-stream"


@dataclass(frozen=True, slots=True)
class Answer:
    """A response. `body`: the type of its body. `headers`: (name, description)."""

    status: HTTPStatus
    description: str
    body: Any = None
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


def _ok(description: str, body: Any, content_type: str = JSON) -> Answer:
    return Answer(HTTPStatus.OK, description, body, content_type)


def _problem(status: HTTPStatus, description: str, *headers: tuple[str, str]) -> Answer:
    """A response that is a problem document."""
    return Answer(status, description, replies.Problem, PROBLEM, headers)


RETRY: Final = ("Retry-After", "Seconds.")

BAD: Final = _problem(HTTPStatus.BAD_REQUEST, "A parameter is unknown or has an invalid value.")
AWAY: Final = _problem(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "The answer needs the database, which is not available or has not finished a search. Repeat the request.",
    RETRY,
)
BUSY: Final = _problem(
    HTTPStatus.TOO_MANY_REQUESTS,
    "The client's address has too many requests that wait, replies that it has not read, or wrong tokens. Repeat the"
    " request.",
    RETRY,
)
GUESSES: Final = _problem(
    HTTPStatus.TOO_MANY_REQUESTS, "Too many wrong tokens came from the client's address. Repeat the request.", RETRY
)
UNKNOWN: Final = _problem(HTTPStatus.NOT_FOUND, "No job is known by this ID.")

FORBIDDEN: Final = _problem(
    HTTPStatus.FORBIDDEN, "The Host or the Origin is not allowed, or the token does not have the scope."
)
UNAUTHORIZED: Final = _problem(
    HTTPStatus.UNAUTHORIZED,
    "Tokens are configured, and the request has no valid one.",
    ("WWW-Authenticate", "`Bearer`"),
)
OPEN, HOST, TOKEN = (), (FORBIDDEN,), (FORBIDDEN, UNAUTHORIZED, GUESSES)
"""How a request is refused before it reaches its endpoint: never, by its Host, by Host and token."""

TOO_LONG: Final = (
    _problem(HTTPStatus.REQUEST_URI_TOO_LONG, f"The address has more than {MAX_TARGET} bytes."),
    _problem(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"A header has more than {MAX_FIELD} bytes."),
)

Tag: TypeAlias = Literal[
    "Jobs", "Log", "Failures", "History", "Fleet", "Streams", "Access", "Health", "Descriptions", "Page"
]

TAGS: Final[dict[str, str]] = {
    "Jobs": "Jobs by any of their IDs.",
    "Log": "The log rows of a job, and a search over the rows of all jobs.",
    "Failures": "Why jobs failed, and which ones failed alike.",
    "History": "What earlier runs took.",
    "Fleet": "The appliances of a gateway.",
    "Streams": "Jobs as they change.",
    "Access": "Tickets, for clients that cannot set a header.",
    "Health": "Probes and metrics.",
    "Descriptions": "The descriptions of this interface.",
    "Page": "The live page, and the client for browsers.",
    "Webhooks": "What the daemon sends to a receiver.",
}

ETAG: Final = (("ETag", 'The revision: `"{epoch}-{rev}"`.'),)
FILE_ETAG: Final = (("ETag", "It changes with the content."),)
IF_NONE_MATCH: Final = ("If-None-Match", "The `ETag` that the client has.")
UNCHANGED: Final = Answer(HTTPStatus.NOT_MODIFIED, "The client has it.", headers=FILE_ETAG)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint. `tag`: the group of operations that it belongs to, which generators make a class of.

    `summary`: a phrase. `about`: sentences that say what else a client has to know. `parameters`: of the path and of
    the query. `headers`: (name, description) of those that it reads. `answers`: its own, besides those of `gate` and
    `TOO_LONG`.
    """

    path: str
    name: str
    tag: Tag
    summary: str
    about: str
    answers: tuple[Answer, ...]
    parameters: type[Struct] = parameters.NoParameters
    headers: tuple[tuple[str, str], ...] = ()
    method: Literal["get", "post"] = "get"
    gate: tuple[Answer, ...] = TOKEN


_ENDPOINTS: Final = (
    Endpoint(
        "/api/v1/jobs",
        "listJobs",
        "Jobs",
        "Jobs, the newest first; those that left memory come from the database",
        "A page may be shorter than `limit`, or empty, while `next_cursor` is set: read on until it is null.",
        (_ok("A page of jobs.", replies.JobsPage), BAD, BUSY, AWAY),
        parameters.ListJobs,
    ),
    Endpoint(
        "/api/v1/jobs/{id}",
        "getJob",
        "Jobs",
        "One job",
        "With `wait` the request is held until there is such a job or, with `rev`, until the job has changed.",
        (
            Answer(HTTPStatus.OK, "The job.", JobDocument, headers=ETAG),
            Answer(
                HTTPStatus.NOT_MODIFIED,
                "The job is unchanged: as in `If-None-Match`, or still at `rev` after `wait`.",
                headers=ETAG,
            ),
            *(BAD, UNKNOWN, AWAY),
        ),
        parameters.GetJob,
        (IF_NONE_MATCH,),
    ),
    Endpoint(
        "/api/v1/events",
        "findEvents",
        "Log",
        "The log rows of any job that contain a text, the newest first; from the database, a part of it for each page",
        "A page covers a part of the log. Read on with `next_cursor` until it is null.",
        (_ok("A page of log rows.", replies.FoundEventsPage), BAD, BUSY, AWAY),
        parameters.FindEvents,
    ),
    Endpoint(
        "/api/v1/jobs/{id}/events",
        "listJobEvents",
        "Log",
        "The log rows of a job, oldest first; from the database, complete once all pages have been read",
        "A page is in the order of IDs. Read on with `next_after` while `more` is true.",
        (_ok("A page of log rows.", replies.EventsPage), BAD, UNKNOWN, BUSY, AWAY),
        parameters.ListJobEvents,
    ),
    Endpoint(
        "/api/v1/jobs/{id}/log",
        "getJobLog",
        "Log",
        "The whole log of a job as a text file, one line each; complete if the body is",
        "The text is sent while it is read. If the connection ends early, the log is not complete.",
        (_ok("The log.", str, "text/plain"), BAD, UNKNOWN, BUSY, AWAY),
        parameters.GetJobLog,
    ),
    Endpoint(
        "/api/v1/jobs/{id}/why",
        "getJobFailure",
        "Failures",
        "Why a job failed, whether that is known, and what differs from earlier runs",
        "It says what the rows say, and never calls anything a cause.",
        (_ok("What is known of it.", replies.Why), BAD, UNKNOWN, BUSY, AWAY),
        parameters.OfJob,
    ),
    Endpoint(
        "/api/v1/failures",
        "listFailures",
        "Failures",
        "The jobs that failed, grouped by what their errors say; those that failed last first",
        "`reaches` says since when all failed jobs are counted.",
        (_ok("A page of failures.", replies.FailuresPage), BAD, BUSY, AWAY),
        parameters.ListFailures,
    ),
    Endpoint(
        "/api/v1/failures/{fingerprint}",
        "getFailure",
        "Failures",
        "One failure: its texts, what the next runs did, and similar ones",
        "Its fingerprint is that of `failure` in a job.",
        (
            _ok("The failure.", replies.FailureDetails),
            BAD,
            _problem(HTTPStatus.NOT_FOUND, "No job failed like this, as far as the tables reach."),
            *(BUSY, AWAY),
        ),
        parameters.GetFailure,
    ),
    Endpoint(
        "/api/v1/resolve/{id}",
        "resolveId",
        "Jobs",
        "Where an ID leads, and by which of its kinds",
        "An ID that several jobs had leads to the newest of them; `also` lists the others.",
        (_ok("The job.", replies.Resolved), BAD, UNKNOWN, AWAY),
        parameters.OfJob,
    ),
    Endpoint(
        "/api/v1/entities/{name}",
        "getEntity",
        "History",
        "The jobs of one VM or context over time, the newest first, with the trend of each operation",
        "It includes jobs that left memory long ago, for as long as the appliance keeps them.",
        (_ok("A page of its jobs; none if there are none.", replies.EntityPage), BAD, BUSY, AWAY),
        parameters.GetEntity,
    ),
    Endpoint(
        "/api/v1/operations",
        "listOperations",
        "History",
        "What earlier runs took, by operation: what forecasts rest on",
        "It is answered from memory, and counts the runs that the daemon has read since its first start.",
        (_ok("All operations that a run of has ended.", replies.OperationsList), BAD),
    ),
    Endpoint(
        "/api/v1/operations/{job_type}/{operation}",
        "getOperation",
        "History",
        "What earlier runs of one operation took, with its usual steps",
        "Steps that fewer than a tenth of the runs had are left out.",
        (
            _ok("The operation.", replies.OperationWithSteps),
            BAD,
            _problem(HTTPStatus.NOT_FOUND, "No run of this operation is known."),
        ),
        parameters.GetOperation,
    ),
    Endpoint(
        "/api/v1/instances",
        "listInstances",
        "Fleet",
        "The appliances of a fleet, and the health of each; at a gateway only",
        "Each appliance is also served below `/i/{instance}`, with the same operations.",
        (
            _ok("All appliances, by name.", replies.InstancesList),
            BAD,
            _problem(HTTPStatus.NOT_FOUND, "This is not a gateway."),
        ),
    ),
    Endpoint(
        "/api/v1/failover/{id}/status",
        "getFailoverStatus",
        "Jobs",
        "The appliance's own status reply, for a GUI that polls it",
        "The reply has the form of the appliance's own endpoint, so that an existing client can poll it unchanged.",
        (
            _ok("As the job was found.", replies.StatusReply),
            Answer(
                HTTPStatus.NOT_FOUND,
                "The appliance's own words for it; after `http.unknown_id_wait`, in which the job may appear.",
                replies.UnknownReply,
            ),
            AWAY,
        ),
        parameters.OfJob,
    ),
    Endpoint(
        "/api/v1/stream",
        "streamMessages",
        "Streams",
        "The messages of the websocket as server-sent events",
        "It begins with the state of the jobs, and goes on with each change. `Last-Event-ID` resumes it.",
        (
            _ok("Each `data` is a message, each `id` is `{epoch}:{seq}`; see asyncapi.json.", str, EVENT_STREAM),
            BAD,
            _problem(
                HTTPStatus.TOO_MANY_REQUESTS,
                "The limit of streaming connections is reached, or too many wrong tokens came from the address.",
            ),
            _problem(HTTPStatus.SERVICE_UNAVAILABLE, "The daemon is shutting down.", RETRY),
            _problem(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "HTTP/1.0 has no streams."),
        ),
        parameters.StreamMessages,
        (
            (
                "Last-Event-ID",
                (
                    "The `id` from which to go on: without a snapshot, if it is of this epoch and among the last"
                    f" {MAX_CHANGES:,} changes, or fewer where these carry very long IDs."
                ),
            ),
        ),
    ),
    Endpoint(
        "/api/v1/openapi.json",
        "getOpenapi",
        "Descriptions",
        "This document",
        "It is generated from the types that the daemon serves.",
        (Answer(HTTPStatus.OK, "OpenAPI 3.1.", replies.Description, headers=FILE_ETAG), UNCHANGED, BAD),
        headers=(IF_NONE_MATCH,),
    ),
    Endpoint(
        "/api/v1/asyncapi.json",
        "getAsyncapi",
        "Descriptions",
        "Websocket, event stream and MQTT",
        "It is generated from the types that the daemon sends.",
        (Answer(HTTPStatus.OK, "AsyncAPI 3.1.", replies.Description, headers=FILE_ETAG), UNCHANGED, BAD),
        headers=(IF_NONE_MATCH,),
    ),
    Endpoint(
        "/api/v1/ticket",
        "createTicket",
        "Access",
        f"A ticket, which admits one request within {TICKET_SECONDS:g} s where a header cannot be set",
        "For a websocket or an event stream of a browser: add it to their address, as `?ticket=…`.",
        (_ok("The ticket.", replies.Ticket),),
        method="post",
    ),
    Endpoint(
        "/health/live",
        "getLiveness",
        "Health",
        "Liveness: the process answers",
        "For a supervisor that restarts a process which hangs. A database that is away changes nothing here.",
        (
            _ok("The process answers, and works.", replies.Liveness),
            Answer(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "A task makes no progress. Restart the process.",
                replies.Stuck,
            ),
        ),
        gate=OPEN,
    ),
    Endpoint(
        "/health/ready",
        "getReadiness",
        "Health",
        "Readiness",
        "For a load balancer and for monitoring: each part says what is wrong with it.",
        (
            _ok("Ready, possibly with a part that is not available (`degraded`).", replies.Readiness),
            Answer(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "The daemon is still loading, or is shutting down.",
                replies.Readiness,
            ),
        ),
        gate=OPEN,
    ),
    Endpoint(
        "/metrics",
        "getMetrics",
        "Health",
        "Metrics for Prometheus",
        "Names and meanings are in docs/operations.md.",
        (_ok("The Prometheus text format; that of OpenMetrics if `Accept` prefers it.", str, "text/plain"),),
    ),
    Endpoint(
        "/",
        "getPage",
        "Page",
        "The live page",
        "The list of jobs. `/#/jobs/ID` is the page of one job.",
        (_ok("The page.", str, "text/html"),),
        gate=HOST,
    ),
    Endpoint(
        "/client.js",
        "getClient",
        "Page",
        "The browser client",
        "An ES module without dependencies, which connects, reconnects and folds the messages.",
        (_ok("A module.", str, "text/javascript"),),
        gate=HOST,
    ),
    Endpoint(
        "/ws",
        "openWebsocket",
        "Streams",
        "The websocket; its messages are in asyncapi.json",
        "The first message is `hello`. A refusal is a close code, because browsers show nothing else.",
        (
            Answer(HTTPStatus.SWITCHING_PROTOCOLS, "Continue with `hello`. A refusal is a close code."),
            _problem(HTTPStatus.BAD_REQUEST, "The handshake has a wrong key, parameter, body or subprotocol."),
            _problem(
                HTTPStatus.UPGRADE_REQUIRED,
                "Not a handshake of version 13 (RFC 6455).",
                ("Upgrade", "websocket"),
                ("Sec-WebSocket-Version", "13"),
            ),
        ),
        parameters.OpenWebsocket,
        gate=HOST,
    ),
)


def _by_parameter(endpoint: Endpoint) -> Endpoint:
    """An endpoint of one job with the ID as a parameter: clients remove `.` and `..` from paths."""
    return replace(
        endpoint,
        path=endpoint.path.replace("/jobs/{id}", "/job"),
        name=f"{endpoint.name}ByParameter",
        summary=f"{endpoint.summary}: for an ID that no path can have, as `..`",
    )


ENDPOINTS: Final = tuple(
    found for one in _ENDPOINTS for found in ([one, _by_parameter(one)] if "/jobs/{id}" in one.path else [one])
)


# -- OpenAPI

SCHEMAS: Final = "#/components/schemas/{name}"

Schema = dict[str, Any]


def openapi() -> Schema:
    """The OpenAPI document."""
    bodies = [a.body for e in ENDPOINTS for a in e.answers if a.body is not None]
    refs, schemas = schemas_of([*bodies, replies.Problem, messages.CloudEvent])
    paths: Schema = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.path, {})[endpoint.method] = _operation(endpoint, refs, schemas)
    return {
        "openapi": "3.1.0",
        "info": info("Jobs of the appliance's job log over HTTP, by any of their IDs."),
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": description} for name, description in TAGS.items()],
        "paths": paths,
        "webhooks": {"event": {"post": _webhook(refs)}},
        "components": {"schemas": schemas, "securitySchemes": _SECURITY},
    }


def _webhook(refs: dict[Any, Schema]) -> Schema:
    """Describe the request that a receiver of `[[webhooks]]` gets without a template."""
    headers = {
        "webhook-id": "The `id` of the event.",
        "webhook-timestamp": "The time of the attempt, in Unix seconds.",
        "webhook-signature": "By Standard Webhooks, if `secret` is configured; two while it is rotated.",
    }
    return {
        "operationId": "webhook",
        "tags": ["Webhooks"],
        "summary": "An event of a job",
        "description": "Sent to each receiver in `[[webhooks]]` until it acknowledges the event.",
        "security": [],
        "parameters": [_header(name, text, required=name != "webhook-signature") for name, text in headers.items()],
        "requestBody": {"required": True, "content": {CLOUD_EVENT: {"schema": refs[messages.CloudEvent]}}},
        "responses": {
            "2XX": {"description": "The receiver has the event."},
            "410": {"description": "It wants no more events."},
            "default": {"description": "It did not accept the event, which is sent again."},
        },
    }


_SECURITY: Final = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": (
            "Required if `http.tokens_file` or `[[http.tokens]]` has tokens. `getMetrics` needs the scope `metrics`,"
            " everything else `read`."
        ),
    },
    "ticket": {
        "type": "apiKey",
        "in": "query",
        "name": "ticket",
        "description": "A ticket of `POST /api/v1/ticket`, instead of a token.",
    },
}


def _operation(endpoint: Endpoint, refs: dict[Any, Schema], schemas: Schema) -> Schema:
    answers = {answer.status: answer for answer in (*endpoint.gate, *TOO_LONG, *endpoint.answers)}
    return {
        "operationId": endpoint.name,
        "tags": [endpoint.tag],
        "summary": endpoint.summary,
        "description": endpoint.about,
        "security": [{}, *({name: []} for name in _SECURITY if endpoint.gate is TOKEN)],
        "parameters": list(_parameters(endpoint, schemas)),
        "responses": {str(status.value): _response(a, refs) for status, a in sorted(answers.items())},
    }


def _parameters(endpoint: Endpoint, schemas: Schema) -> Iterator[Schema]:
    kind = endpoint.parameters
    described = msgspec.json.schema_components([kind])[1][kind.__name__]
    texts = {name: text for base in reversed(kind.__mro__) for name, text in _members(base.__doc__ or "")[1]}
    for name, part in described["properties"].items():
        default = part.pop("default", None)
        listed = " Repeated, or with commas between." if part.pop("uniqueItems", False) else ""
        schema = _named(part, schemas)
        if default and "$ref" not in schema:
            schema["default"] = default
        in_path = f"{{{name}}}" in endpoint.path
        found = {
            "name": name,
            "in": "path" if in_path else "query",
            "description": texts[name] + listed,
            "required": in_path or name in described.get("required", ()),
            "schema": schema,
        }
        yield found | {"explode": True} if schema.get("type") == "array" else found
    for name, description in endpoint.headers:
        yield _header(name, description, required=False)


def _header(name: str, description: str, *, required: bool) -> Schema:
    schema = {"type": "string"}
    return {"name": name, "in": "header", "description": description, "required": required, "schema": schema}


def _response(answer: Answer, refs: dict[Any, Schema]) -> Schema:
    response: Schema = {"description": answer.description}
    if answer.body is not None:
        response["content"] = {answer.content_type: {"schema": refs[answer.body]}}
    if answer.headers:
        response["headers"] = {
            name: {"description": description, "schema": {"type": "string"}} for name, description in answer.headers
        }
    return response


# -- schemas


def info(description: str) -> Schema:
    return {
        "title": "correlator",
        "version": __version__,
        "description": description,
        "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
    }


def schemas_of(kinds: Iterable[Any]) -> tuple[dict[Any, Schema], Schema]:
    """The schema of each type, and the components that the schemas refer to."""
    kinds = list(dict.fromkeys(kinds))
    found, components = msgspec.json.schema_components(kinds, ref_template=SCHEMAS)
    schemas: Schema = {}
    for name, schema in components.items():
        schemas[name] = {key: _named(part, schemas) for key, part in _described(schema).items()}
    return {kind: _named(schema, schemas) for kind, schema in zip(kinds, found, strict=True)}, schemas


def _named(part: Any, schemas: Schema) -> Any:
    """Make a component of each part that has a title, so that generators have one type of it, with that name."""
    if isinstance(part, list):
        return [_named(one, schemas) for one in part]
    if not isinstance(part, dict):
        return part
    if part.get("type") == "object" and part.keys().isdisjoint(("properties", "additionalProperties")):
        part = {**part, "additionalProperties": True}
    if "discriminator" in part:  # a value is of just one of the types, which its discriminator names
        part = {("oneOf" if name == "anyOf" else name): inner for name, inner in part.items()}
    if isinstance(values := part.get("enum"), list):
        part = {**part, "type": "string"} if len(values) > 1 else {"type": "string", "const": values[0]}
    if isinstance(title := part.get("title"), str):
        schemas.setdefault(title, part)
        return {"$ref": SCHEMAS.format(name=title)}
    return {name: _named(inner, schemas) for name, inner in part.items()}


def _described(schema: Schema) -> Schema:
    """Move what the docstring of a type says of its members to the members."""
    about, members = _members(schema.pop("description", ""))
    for name, description in members:
        schema["properties"][name] = {**schema["properties"][name], "description": description}
    return schema | {"description": about} if about else schema


def _members(docstring: str) -> tuple[str, Iterable[tuple[str, str]]]:
    """What a docstring says of the type itself, and of its members: `name: text`."""
    about, *members = re.split(r"(?:^|\n)(\w+): ", re.sub(r"\n +", " ", inspect.cleandoc(docstring)))
    return about.strip(), zip(members[::2], members[1::2], strict=True)


# -- AsyncAPI


_RECEIVED: Final = get_args(messages.ClientMessage)
_STREAMED: Final = tuple(t for t in messages.SERVER_MESSAGES if t not in (messages.Error, messages.Pong))
_PUBLISHED: Final = (
    *(messages.DaemonStatus, messages.JobState, messages.DeletedJobState),
    *(messages.JobEvent, messages.ExternalId, messages.VmState, messages.HomeAssistantDevice, messages.DaemonIndex),
)


def asyncapi() -> Schema:
    """The AsyncAPI document: websocket, server-sent events and MQTT topics. `send` is an action of the daemon."""
    kinds = [*_RECEIVED, *messages.SERVER_MESSAGES, *_PUBLISHED]
    refs, schemas = schemas_of(kinds)
    # The last state of a deleted job may lack members of `JobDocument`, but has no others. Only it has `deleted`.
    schemas[messages.JobState.__name__]["not"] = {"required": ["deleted"]}
    known_last = schemas[messages.DeletedJobState.__name__]
    known_last["properties"] = schemas[JobDocument.__name__]["properties"] | known_last["properties"]
    channels, operations = _web_channels()
    for name, channel, operation in _topics():
        channels[name], operations[name] = channel, operation
    return {
        "asyncapi": "3.1.0",
        "info": info("Jobs of the appliance's job log as they happen.") | {"tags": [{"name": "Jobs"}]},
        "defaultContentType": JSON,
        "servers": {
            "websocket": {"host": str(Http().listen), "protocol": "ws"},
            "http": {"host": str(Http().listen), "protocol": "http"},
            "broker": {
                "host": "localhost:1883",
                "protocol": "mqtt",
                "protocolVersion": "5",
                "description": "`mqtt.url`",
            },
        },
        "channels": channels,
        "operations": operations,
        "components": {"messages": {_name(k): _message(k, refs, schemas) for k in kinds}, "schemas": schemas},
    }


def _web_channels() -> tuple[Schema, Schema]:
    channels = {
        "websocket": {
            "address": "/ws",
            "title": "Websocket",
            "description": (
                "Text frames of JSON: a frame is one message or an array of messages. The parameter `say` of an"
                " address may have the first one, without a token. `hello` is due within"
                f" {DEFAULT.hello_within:g} s; a bookmark comes at least every 10 s."
                f" Frames from a client are at most {frames.MAX_FRAME} bytes (else 1009), of {frames.MAX_MESSAGES}"
                f" messages with at most {messages.MAX_IDS} IDs in a subscription; {websocket.MAX_BAD_FRAMES} bad ones"
                f" close the connection. `hello` is one of the first {frames.MAX_MESSAGES_OF_UNKNOWN} of a frame."
                " Close codes: " + ", ".join(f"{code} {code.reason}" for code in messages.CloseCode) + "."
            ),
            "servers": [{"$ref": "#/servers/websocket"}],
            "messages": _refer(*_RECEIVED, *messages.SERVER_MESSAGES),
            "bindings": {"ws": {"method": "GET", "bindingVersion": "0.1.0"}},
        },
        "stream": {
            "address": "/api/v1/stream",
            "title": "Server-sent events",
            "description": (
                "Each `data` is a message of the websocket, each `id` is `{epoch}:{seq}`. The message `event` has the"
                " event name `event`, all others have none."
            ),
            "servers": [{"$ref": "#/servers/http"}],
            "messages": _refer(*_STREAMED),
        },
    }
    operations = {
        "said": _act("receive", "websocket", _RECEIVED, "What a client says."),
        "sent": _act("send", "websocket", messages.SERVER_MESSAGES, "What a client of the websocket gets."),
        "streamed": _act("send", "stream", _STREAMED, "What a client of the event stream gets."),
    }
    return channels, operations


def _topics() -> Iterable[tuple[str, Schema, Schema]]:
    topics = Topics("{prefix}/{instance}")
    state = (
        f"Retained: the job document, at most {1 / SPACING:g} times a second, the last one always. A job that leaves"
        " memory has a last state with `deleted`; then the topic is emptied."
    )
    event = (
        "Not retained: one message for every committed lifecycle row, and for transitions that only the tables show."
    )
    ext = "Retained: one topic for each external ID; emptied when the job that has it leaves memory."
    vm = (
        "Retained: the newest job of a VM, as `state`, without its steps; emptied when the VM's last job leaves memory."
    )
    device = "Retained, with `mqtt.home_assistant`: a VM as a device for Home Assistant; emptied as the VM's topic."
    marker = "Retained, with `mqtt.home_assistant`: `true`. A run without the key finds it, and removes the devices."
    tree: list[tuple[str, str, str, tuple[Any, ...]]] = [
        ("status", topics.status, "Retained, and the last will.", (messages.DaemonStatus,)),
        ("state", topics.of(TopicKey("state", "{job_id}")), state, (messages.JobState, messages.DeletedJobState)),
        ("event", topics.event("{job_id}"), event, (messages.JobEvent,)),
        ("ext", topics.of(TopicKey("ext", "{external_id}")), ext, (messages.ExternalId,)),
        ("vm", topics.of(TopicKey("vm", "{vm_name}")), vm, (messages.VmState,)),
        ("device", DISCOVERY, device, (messages.HomeAssistantDevice,)),
        ("marker", topics.of(TopicKey("marker")), marker, ()),
        ("index", topics.index, "Retained, every 10 s.", (messages.DaemonIndex,)),
    ]
    for name, topic, description, kinds in tree:
        address = unescape(topic)
        channel = {
            "address": address,
            "description": description,
            "servers": [{"$ref": "#/servers/broker"}],
            "messages": _refer(*kinds),
            "parameters": {p: about for p, about in _LEVELS.items() if f"{{{p}}}" in address},
        }
        bindings = {"mqtt": {"qos": 1, "retain": name != "event", "bindingVersion": "0.2.0"}}
        yield name, channel, _act("send", name, kinds, description) | {"bindings": bindings}


_LEVELS: Final = {
    "prefix": {"description": "`mqtt.prefix`", "default": Mqtt().prefix},
    "instance": {"description": "`mqtt.instance`; by default the host name"},
    "job_id": {"description": "The job's UUID; of a legacy job its ID, escaped like an external one"},
    "external_id": {"description": "Percent-encoded: every byte outside `A-Z a-z 0-9 . _ ~ -` (RFC 3986, 2.3)"},
    "vm_name": {"description": "Escaped like an external ID"},
    "node_id": {"description": "`{prefix}/{instance}`, where every byte outside `A-Z a-z 0-9 -` is `_` and two digits"},
    "object_id": {"description": "The VM's name, escaped like `node_id`"},
}


def _message(kind: Any, refs: dict[Any, Schema], schemas: Schema) -> Schema:
    described = {k: v for k, v in (("summary", schemas[kind.__name__].get("description")),) if v}
    return {"name": kind.__name__, "contentType": JSON, **described, "payload": refs[kind]}


def _act(action: str, channel: str, kinds: Iterable[Any], description: str) -> Schema:
    return {
        "action": action,
        "description": description,
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [{"$ref": f"#/channels/{channel}/messages/{_name(k)}"} for k in kinds],
    }


def _refer(*kinds: Any) -> Schema:
    return {_name(k): {"$ref": f"#/components/messages/{_name(k)}"} for k in kinds}


def _name(kind: Any) -> str:
    return str(kind.__name__)
