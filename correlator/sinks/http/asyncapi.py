"""AsyncAPI 3.0: the messages of the websocket, of event streams and of MQTT.

It is generated: schemas from the types of `correlator.model.messages`, topics from `Topics`, limits and close codes
from the code that defines them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, get_args

from correlator.config.schema import Http, Mqtt
from correlator.model import messages
from correlator.model.document import JobDocument
from correlator.sinks.http import frames, websocket
from correlator.sinks.http.openapi import JSON, Schema, info, schemas_of
from correlator.sinks.mqtt.topics import SPACING, TopicKey, Topics, unescape

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
        "info": info("Jobs of the appliance's job log as they happen."),
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
        ("state", topics.of(TopicKey("state", "{job_id}")), state, (messages.JobState, messages.DeletedJobState)),
        ("event", topics.event("{job_id}"), event, (messages.JobEvent,)),
        ("ext", topics.of(TopicKey("ext", "{external_id}")), ext, (messages.ExternalId,)),
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
