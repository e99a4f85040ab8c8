"""The served documents: valid by their standards, without loose ends, and of everything that is served."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import openapi_spec_validator
import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import make_mocked_request
from jsonschema_rs import RegexOptions
from multidict import CIMultiDict

import correlator
from correlator import web as pages
from correlator.config.schema import Config, Otlp, TracesUrl
from correlator.jobs.exports import Exports
from correlator.jobs.index import Index
from correlator.pipeline.pipeline import LocalHub
from correlator.sinks.http.access import Access
from correlator.sinks.http.endpoints import of_process
from correlator.sinks.http.openapi import asyncapi, openapi
from correlator.sinks.http.server import HttpSink, Listener
from correlator.sinks.otlp.sink import OtlpSink
from tests.support.http_listener import served
from tests.support.schemas import Shapes

OPENAPI, ASYNCAPI = openapi(), asyncapi()
BOTH = pytest.mark.parametrize("document", [OPENAPI, ASYNCAPI], ids=["openapi", "asyncapi"])


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from [inner] if name == "$ref" else references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def at(document: Any, pointer: str) -> Any:
    for name in pointer.removeprefix("#/").split("/"):
        document = document[name.replace("~1", "/").replace("~0", "~")]
    return document


@pytest.mark.parametrize("name", ["openapi", "asyncapi"])
async def test_an_appliance_of_a_gateway_serves_each_description_as_the_gateway_does(name):
    handlers = {route.path: route.handler for route in of_process(LocalHub(Index()), list)}
    path = f"/api/v1/{name}.json"
    for asked in (path, f"/i/dc1{path}"):
        response = await handlers[path](make_mocked_request("GET", asked))
        assert isinstance(response, web.Response)
        assert name in json.loads(response.text or "")


async def test_a_description_is_compressed_and_sent_again_only_when_it_has_changed():
    async with served(LocalHub(Index())) as url, ClientSession(url) as session:
        for path in ("/api/v1/openapi.json", "/api/v1/asyncapi.json"):
            async with session.get(path) as response:
                assert (response.status, response.headers["Content-Encoding"]) == (200, "gzip")
                assert (response.content_type, response.headers["Cache-Control"]) == ("application/json", "no-cache")
                etag = response.headers["ETag"]
            headers = CIMultiDict([("If-None-Match", '"other"'), ("If-None-Match", etag)])
            async with session.get(path, headers=headers) as response:
                assert response.status == 304, "both lines of the header count"


def test_the_openapi_document_is_valid():
    openapi_spec_validator.validate(OPENAPI)


@BOTH
def test_every_reference_leads_somewhere_and_nothing_is_left_over(document):
    used = set(references(document))
    for pointer in used:
        at(document, pointer)
    parts = {f"#/components/{kind}/{name}" for kind, all_of in document["components"].items() for name in all_of}
    assert {p for p in parts - used if "/securitySchemes/" not in p} == set()


@BOTH
def test_every_schema_is_valid_in_both_drafts(document):
    """OpenAPI 3.1 has 2020-12, AsyncAPI 3.0 a superset of draft 07: one schema must mean the same in both."""
    for schema in document["components"]["schemas"].values():
        jsonschema_rs.Draft202012Validator(schema | {"components": document["components"]})
        jsonschema_rs.Draft7Validator(schema | {"components": document["components"]})
        assert "$ref" not in schema
    assert "prefixItems" not in json.dumps(document)


@BOTH
def test_a_reference_has_nothing_beside_it(document):
    """Draft 07 would ignore it."""
    for part in walk(document):
        assert "$ref" not in part or len(part) == 1, part


@BOTH
def test_every_set_of_values_and_every_free_object_is_a_type_with_a_name(document):
    """Generators number the types of those without one: `Status1`, `MetadataType0`, `AnonymousSchema_171`."""
    named = {id(schema) for schema in document["components"]["schemas"].values()}
    kinds = [part for part in walk(document) if "enum" in part or part.get("additionalProperties") is True]
    assert [part for part in kinds if id(part) not in named] == []
    assert document["components"]["schemas"]["JobDocument"]["properties"]["status"]["$ref"].endswith("/JobStatus")


def test_every_operation_has_the_name_of_a_method_and_one_type_of_result():
    for path, methods in OPENAPI["paths"].items():
        for operation in methods.values():
            assert re.fullmatch("[a-z]+([A-Z][a-z]+)+", operation["operationId"]), path
            for answer in operation["responses"].values():
                bodies = list(answer.get("content", {}).values())
                assert len(bodies) <= 1, path
                assert all("oneOf" not in body["schema"] for body in bodies), path


def walk(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(inner)


def test_every_operation_is_in_one_group_and_says_more_than_its_name():
    """A generator makes a class of a group; what has no group replaces another class of the same name."""
    groups = {tag["name"] for tag in OPENAPI["tags"]}
    (webhook,) = OPENAPI["webhooks"]["event"].values()
    operations = [o for item in OPENAPI["paths"].values() for o in item.values()]
    of = {o["operationId"]: o["tags"] for o in operations}
    assert {name: tags for name, tags in of.items() if len(tags) != 1 or tags[0] not in groups} == {}
    assert webhook["tags"] == ["Webhooks"]
    assert ["Webhooks"] not in of.values(), "it is no operation of the daemon"
    assert webhook["security"] == [], "the receiver, not the daemon, decides how it is secured"
    assert [o["operationId"] for o in (*operations, webhook) if not o["description"].endswith(".")] == []


@BOTH
def test_a_pattern_is_one_that_every_language_compiles_and_no_flag_is_a_constant(document):
    """RE2 and Rust have no look-ahead, RE2 no escapes of Unicode; generators of REST have no type for one boolean."""
    for part in walk(document):
        if isinstance(pattern := part.get("pattern"), str):
            assert "\\u" not in pattern
            jsonschema_rs.validator_for({"type": "string", "pattern": pattern}, pattern_options=RegexOptions())
        assert document is ASYNCAPI or not isinstance(part.get("const"), bool), part


@BOTH
def test_the_version_is_the_programs(document):
    assert document["info"]["version"] == correlator.__version__


def test_an_operation_has_its_own_name_and_says_what_it_needs():
    operations = [o for item in OPENAPI["paths"].values() for o in item.values()]
    assert len({o["operationId"] for o in operations}) == len(operations)
    for path, item in OPENAPI["paths"].items():
        for operation in item.values():
            named = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
            assert named == set(re.findall(r"{(\w+)}", path))


def test_a_channel_has_the_parameters_of_its_address_and_the_messages_of_its_operations():
    sent: dict[str, set[str]] = {}
    for operation in ASYNCAPI["operations"].values():
        channel = operation["channel"]["$ref"]
        messages = {m["$ref"] for m in operation["messages"]}
        assert all(m.startswith(f"{channel}/messages/") for m in messages)
        sent.setdefault(channel, set()).update(messages)
    for name, channel in ASYNCAPI["channels"].items():
        assert set(channel.get("parameters", {})) == set(re.findall(r"{(\w+)}", channel["address"]))
        assert sent[f"#/channels/{name}"] == {f"#/channels/{name}/messages/{m}" for m in channel["messages"]}


@pytest.fixture
async def app(monkeypatch: pytest.MonkeyPatch) -> web.Application:
    """The application as it is served, without a listener."""
    made: list[web.Application] = []

    class Runner(web.AppRunner):
        def __init__(self, app: web.Application, **options: Any) -> None:
            super().__init__(app, **options)
            made.append(app)

    monkeypatch.setattr(web, "AppRunner", Runner)
    access = Access(listen_host="127.0.0.1", clock=asyncio.get_running_loop().time)
    served: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    sink = HttpSink(Listener("127.0.0.1", 0), access, on_ready=served.set_result)
    task = asyncio.create_task(sink.run(LocalHub(Index())))
    task.add_done_callback(lambda _: served.cancel())
    async with asyncio.timeout(60):
        await served
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return made[0]


@pytest.mark.filterwarnings("ignore:Bare functions are deprecated:DeprecationWarning")
async def test_every_route_is_described_and_every_description_has_its_route(app: web.Application):
    """The files of the page aside: nobody but the page asks for them."""
    routes = {
        (route.method.lower(), route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    described = {(method, path) for path, item in OPENAPI["paths"].items() for method in item}
    assert described - routes == set()
    assert {path for _, path in routes - described} <= {
        re.sub(r"^/page-[0-9a-f]{20}\.", "/page-{hash}.", path) for path in pages.files()
    }
    channels = {c["address"] for c in ASYNCAPI["channels"].values() if c["address"].startswith("/")}
    assert channels <= {path for _, path in routes}


async def test_health_is_as_described_with_a_receiver_of_traces_and_with_a_stuck_task():
    hub = LocalHub(Index())
    exports = Exports(5.0, 0.0)
    hub.readiness["otlp"] = OtlpSink(
        Config(otlp=Otlp(url=TracesUrl.parse("http://127.0.0.1:1/v1/traces"))), exports
    ).describe
    hub.readiness["checkpoint"] = lambda: {"ok": True, "age_seconds": None, "error": None}
    shapes = Shapes(OPENAPI)
    async with served(hub) as url, ClientSession(url) as session:
        assert shapes.wrong("Readiness", await (await session.get("/health/ready")).json()) == []
        assert shapes.wrong("Liveness", await (await session.get("/health/live")).json()) == []
        with hub.live.heartbeat("tail", within=-1.0):
            answer = await session.get("/health/live")
            assert answer.status == 503
            assert str(answer.status) in OPENAPI["paths"]["/health/live"]["get"]["responses"]
            assert shapes.wrong("Stuck", await answer.json()) == []
