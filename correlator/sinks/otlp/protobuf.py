"""OTLP in protobuf, made from its JSON form: the same names and values, IDs as bytes and 64-bit integers as numbers.

Only a process with `otlp.encoding = "protobuf"` imports it. Everything here is pure.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import orjson
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Status

_IDS = frozenset({"traceId", "spanId", "parentSpanId"})
_INTEGERS = frozenset({"startTimeUnixNano", "endTimeUnixNano", "intValue"})


def encode(request: bytes) -> bytes:
    """Encode an `ExportTraceServiceRequest` that is JSON. Raises: ValueError for a member that the schema has not."""
    return bytes(ExportTraceServiceRequest(**_fields(orjson.loads(request))).SerializeToString())


def decode(reply: bytes) -> dict[str, Any]:
    """Return the body of a response as its JSON form has it; empty if it is no protobuf.

    An error is a `google.rpc.Status`, whose message has the same number as that of the `Status` of a span.
    """
    try:
        partial = ExportTraceServiceResponse.FromString(reply).partial_success
        message = Status.FromString(reply).message
    except DecodeError:
        return {}
    return {
        "partialSuccess": {"rejectedSpans": partial.rejected_spans, "errorMessage": partial.error_message},
        "message": message,
    }


def _fields(members: dict[str, Any]) -> dict[str, Any]:
    return {_field(name): _value(name, value) for name, value in members.items()}


def _value(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return _fields(value)
    if isinstance(value, list):
        return [_value(name, one) for one in value]
    if name in _IDS:
        return bytes.fromhex(value)
    return int(value) if name in _INTEGERS else value


@cache
def _field(name: str) -> str:
    """The name of a field in the schema: `traceId` is `trace_id`."""
    return re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", name)
