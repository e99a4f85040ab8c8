"""The machine-readable descriptions of the interfaces: OpenAPI 3.1 for HTTP, AsyncAPI 3.0 for streams.

Both are generated: schemas from the types of the messages, paths from `ENDPOINTS`, topics from `Topics`. Limits and
codes are imported from the code that defines them.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Any, Final, get_args

import msgspec

from correlator import __version__
from correlator.config.schema import Http, Mqtt
from correlator.model import messages, replies
from correlator.model.document import JobDocument
from correlator.sinks.http import frames, websocket
from correlator.sinks.http.connections import MAX_FIELD, MAX_TARGET
from correlator.sinks.http.openapi.endpoints import ENDPOINTS, JSON, Answer, Endpoint, problem
from correlator.sinks.mqtt.topics import SPACING, Key, Topics, unescape
from correlator.sinks.webhooks.request import CLOUD_EVENT

SCHEMAS: Final = "#/components/schemas/{name}"

Schema = dict[str, Any]


# -- OpenAPI


def openapi() -> Schema:
    """The OpenAPI document."""
    bodies = [b for e in ENDPOINTS for a in e.answers.values() for b in a.bodies]
    refs, schemas = schemas_of([*bodies, replies.Problem, messages.CloudEvent])
    paths: Schema = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.path, {})[endpoint.method] = _operation(endpoint, refs, schemas)
    return {
        "openapi": "3.1.0",
        "info": _info("Jobs of the appliance's job log over HTTP, by any of their IDs."),
        "servers": [{"url": "/"}],
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
        "summary": "An event, sent until the receiver acknowledges it. Not sent by default: see `[[webhooks]]`.",
        "parameters": [_header(name, text, required=name != "webhook-signature") for name, text in headers.items()],
        "requestBody": {"required": True, "content": {CLOUD_EVENT: {"schema": refs[messages.CloudEvent]}}},
        "responses": {
            "2XX": {"description": "The receiver has the event."},
            "410": {"description": "It wants no more events."},
            "default": {"description": "It did not accept the event, which is sent again."},
        },
    }


_SECURITY: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "Required if `http.tokens_file` contains tokens."},
    "ticket": {
        "type": "apiKey",
        "in": "query",
        "name": "ticket",
        "description": "A ticket of `POST /api/v1/ticket`, instead of a token.",
    },
}

_REFUSED: Final = {
    HTTPStatus.UNAUTHORIZED: problem(
        "Tokens are configured, and the request has no valid one.", ("WWW-Authenticate", "`Bearer`")
    ),
    HTTPStatus.FORBIDDEN: problem("The Host or the Origin is not allowed."),
}


_TOO_LONG: Final = {
    HTTPStatus.REQUEST_URI_TOO_LONG: Answer(f"The address has more than {MAX_TARGET} bytes.", (str,), "text/plain"),
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: Answer(
        f"A header has more than {MAX_FIELD} bytes.", (str,), "text/plain"
    ),
}


def _operation(endpoint: Endpoint, refs: dict[Any, Schema], schemas: Schema) -> Schema:
    answers = endpoint.answers | _TOO_LONG
    security: list[Schema] = [{}]
    if endpoint.gate != "open":
        answers[HTTPStatus.FORBIDDEN] = _REFUSED[HTTPStatus.FORBIDDEN]
    if endpoint.gate == "token":
        answers[HTTPStatus.UNAUTHORIZED] = _REFUSED[HTTPStatus.UNAUTHORIZED]
        security += [{name: []} for name in _SECURITY]
    return {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "security": security,
        "parameters": list(_parameters(endpoint, schemas)),
        "responses": {str(status.value): _response(a, refs, schemas) for status, a in sorted(answers.items())},
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


def _response(answer: Answer, refs: dict[Any, Schema], schemas: Schema) -> Schema:
    response: Schema = {"description": answer.description}
    if answer.bodies:
        schema = refs[answer.bodies[0]]
        if len(answer.bodies) > 1:
            schemas[answer.title] = {"title": answer.title, "oneOf": [refs[body] for body in answer.bodies]}
            schema = {"$ref": SCHEMAS.format(name=answer.title)}
        response["content"] = {answer.content_type: {"schema": schema}}
    if answer.headers:
        response["headers"] = {
            name: {"description": description, "schema": {"type": "string"}} for name, description in answer.headers
        }
    return response


# -- AsyncAPI

_RECEIVED: Final = get_args(messages.ClientMessage)
_STREAMED: Final = tuple(t for t in messages.SERVER_MESSAGES if t not in (messages.Error, messages.Pong))
_PUBLISHED: Final = (
    *(messages.DaemonStatus, messages.JobState, messages.DeletedJobState),
    *(messages.JobEvent, messages.ExternalId, messages.DaemonIndex),
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
        "asyncapi": "3.0.0",
        "info": _info("Jobs of the appliance's job log as they happen."),
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
                "Text frames of JSON: a frame is one message or an array of messages. `hello` is due within"
                f" {websocket.HELLO_WITHIN:g} s; a bookmark comes at least every 10 s."
                f" Frames from a client are at most {frames.MAX_FRAME} bytes (else 1009), with at most"
                f" {messages.MAX_IDS} IDs in a subscription; {websocket.MAX_BAD_FRAMES} bad ones close the connection."
                " Close codes: " + ", ".join(f"{code} {code.why}" for code in messages.CloseCode) + "."
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
        "said": _act("receive", "websocket", _RECEIVED),
        "sent": _act("send", "websocket", messages.SERVER_MESSAGES),
        "streamed": _act("send", "stream", _STREAMED),
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
    tree: list[tuple[str, str, str, tuple[Any, ...]]] = [
        ("status", topics.status, "Retained, and the last will.", (messages.DaemonStatus,)),
        ("state", topics.of(Key("state", "{job_id}")), state, (messages.JobState, messages.DeletedJobState)),
        ("event", topics.event("{job_id}"), event, (messages.JobEvent,)),
        ("ext", topics.of(Key("ext", "{external_id}")), ext, (messages.ExternalId,)),
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
        yield name, channel, _act("send", name, kinds) | {"bindings": bindings}


_LEVELS: Final = {
    "prefix": {"description": "`mqtt.prefix`", "default": Mqtt().prefix},
    "instance": {"description": "`mqtt.instance`; by default the host name"},
    "job_id": {"description": "The job's UUID; of a legacy job its ID, escaped like an external one"},
    "external_id": {"description": "Percent-encoded: every byte outside `A-Z a-z 0-9 . _ ~ -` (RFC 3986, 2.3)"},
}


def _message(kind: Any, refs: dict[Any, Schema], schemas: Schema) -> Schema:
    described = {k: v for k, v in (("summary", schemas[kind.__name__].get("description")),) if v}
    return {"name": kind.__name__, "contentType": JSON, **described, "payload": refs[kind]}


def _act(action: str, channel: str, kinds: Iterable[Any]) -> Schema:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [{"$ref": f"#/channels/{channel}/messages/{_name(k)}"} for k in kinds],
    }


def _refer(*kinds: Any) -> Schema:
    return {_name(k): {"$ref": f"#/components/messages/{_name(k)}"} for k in kinds}


def _name(kind: Any) -> str:
    return str(kind.__name__)


# -- both


def _info(description: str) -> Schema:
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
