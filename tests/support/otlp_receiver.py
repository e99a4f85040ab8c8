"""A receiver of traces, which records requests and answers as the test says, and jobs that end for a sink of traces."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from correlator.model.facts import Reading
from correlator.model.rows import JobRecord, StepRecord
from correlator.sinks.otlp.sink import OtlpSink
from tests.support.background import in_background
from tests.support.pipeline_harness import NOW, PipelineHarness


class OtlpReceiver:
    """`answers`: (status, headers, body) of the next requests, in order; after them every request is accepted.

    A body that is protobuf is a text of one character for each byte.
    """

    def __init__(self) -> None:
        self.url = ""
        self.answers: list[tuple[int, dict[str, str], str]] = []
        self.requests: list[tuple[dict[str, str], ExportTraceServiceRequest]] = []
        """The headers and the message of each request."""
        self.delay = 0.0
        """Seconds until each answer."""
        self.gate = asyncio.Event()
        """While it is not set, requests wait for their answer."""
        self.gate.set()

    @property
    def spans(self) -> list[Any]:
        """All spans of the requests so far, repeated ones too."""
        return [span for _, message in self.requests for span in spans_of(message)]

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.spans]

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[OtlpReceiver]:
        app = web.Application()
        app.router.add_post("/v1/traces", self._export)
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield self
        finally:
            await runner.cleanup()

    async def _export(self, request: web.Request) -> web.Response:
        body = await request.read()
        if is_json := request.content_type == "application/json":
            self.requests.append((dict(request.headers), parsed(body)))
        else:
            assert request.content_type == "application/x-protobuf"
            self.requests.append((dict(request.headers), ExportTraceServiceRequest.FromString(body)))
        await self.gate.wait()
        await asyncio.sleep(self.delay)
        success = '{"partialSuccess":{}}' if is_json else ""
        status, headers, answer = self.answers.pop(0) if self.answers else (200, {}, success)
        content = answer.encode("latin-1")
        return web.Response(status=status, headers=headers, body=content, content_type=request.content_type)


class OtlpHarness(PipelineHarness):
    """A hub that is loaded, and the jobs that end there."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.hub.status.loading = False

    def end(self, job_id: str = "j", *steps: StepRecord, ended: int = NOW, **columns: Any) -> None:
        """Publish a job that runs, and then that it has ended."""
        for status in ("running", "completed"):
            record = JobRecord(job_id, status=status, started_at=NOW, completed_at=ended, operation="live", **columns)
            self.pipeline.readings([Reading(job_id, self.index.advance_clock(), record, steps)])

    @contextlib.asynccontextmanager
    async def running(self, sink: OtlpSink) -> AsyncIterator[OtlpSink]:
        async with in_background(sink.run(self.hub)) as task:
            yield sink
            assert not task.done(), task


def parsed(body: bytes) -> ExportTraceServiceRequest:
    """The message that a body holds. Raises: ParseError if it is not of the published schema.

    The JSON of OTLP has IDs in hexadecimal, where that of protobuf has base64, and numbers for enums only.
    """
    content = json.loads(body)
    for resource in content["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                assert isinstance(span["kind"], int)
                for node in (span, *span.get("links", ())):
                    for key in ("traceId", "spanId", "parentSpanId"):
                        if key in node:
                            node[key] = base64.b64encode(bytes.fromhex(node[key])).decode()
    message = ExportTraceServiceRequest()
    json_format.ParseDict(content, message)
    return message


def spans_of(message: ExportTraceServiceRequest) -> list[Any]:
    return [span for resource in message.resource_spans for scope in resource.scope_spans for span in scope.spans]


def attributes(node: Any) -> dict[str, Any]:
    """The attributes of a resource, a span or a link, as values of Python."""
    return {one.key: _value(one.value) for one in node.attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind)
