"""What the daemon says of itself is what it does: every answer and every message has the shape it is described with."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiomqtt
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import fields
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from yarl import URL

from correlator.failures.failure import fingerprint
from correlator.model.document import JobDocument, Progress, Step
from tests.support import replay
from tests.support.appliance import Appliance, now
from tests.support.client_fold import apply_message
from tests.support.daemon import HELLO, Daemon
from tests.support.eventually import PATIENCE, eventually
from tests.support.mariadb import Database
from tests.support.mosquitto import Mosquitto
from tests.support.raw_http import in_sync
from tests.support.replay import MariaDBReplayer
from tests.support.schemas import Shapes, closed

ENDLESS = {"streamMessages"}
"""Operations whose answer does not end."""

LONGEST_WAIT = 0.05
"""Seconds that a request may be held here."""

LONGEST_URL = 8_100
"""Characters. The HTTP server refuses a request line of more than 8,190 bytes."""


IDS = ("unified-live-failover-SVR 2019/Prod-1", "gui-a", "two\nlines", "ctx-b", "legacy-a")

FEW = settings(
    max_examples=12,
    phases=[Phase.explicit, Phase.generate],
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

BOOM, _ = fingerprint("boom <&>", None, ())
"""The fingerprint of the failed job."""

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


async def document(daemon: Daemon, name: str) -> dict[str, Any]:
    status, found = await daemon.get(f"/api/v1/{name}.json")
    assert status == 200
    assert isinstance(found, dict)
    return found


@pytest.fixture
async def description(daemon: Daemon, rows: None) -> dict[str, Any]:
    """OpenAPI, with the schemas of parameters in their places."""
    found = await document(daemon, "openapi")
    for item in found["paths"].values():
        for parameter in item.get("get", {"parameters": []})["parameters"]:
            schema = parameter["schema"]
            if "items" in schema:
                schema["items"] = referred(schema["items"], found)
            parameter["schema"] = referred(schema, found)
    return found


@pytest.fixture
async def rows(appliance: Appliance, daemon: Daemon) -> None:
    """Jobs of each kind, under IDs of every sort of characters."""
    running = await appliance.job(IDS[0], metadata='{"gui_job_id":"gui-a","_cut":"its own"}')
    step = await appliance.step(running, 1, "first", "completed")
    await appliance.step(running, 2, "second")
    await appliance.log("Step completed", attrs={"job_id": running, "step_id": step, "status": "completed"})
    await appliance.log("a line", level="WARN", job_id=running)
    large = json.dumps({"blob": "x" * 20_000})
    failed = await appliance.job(IDS[2], context_id="ctx-b", parent_job_id=running, metadata=large)
    await appliance.end(failed, "failed", "boom <&>")
    await appliance.insert(
        "failover_jobs", job_id="legacy-a", vm_id="4205", job_type="test", status="creating_vm", created_at=now(),
        source_vm_name="vm",
    )  # fmt: skip

    async def all_there() -> bool:
        learned = (await daemon.get("/api/v1/operations"))[1]["operations"]
        known = (await daemon.get("/api/v1/failures"))[1]
        jobs = (await daemon.get("/api/v1/jobs"))[1]["jobs"]
        return len(jobs) == 3 and len(learned) == 1 and len(known["failures"]) == 1 and known["complete"]

    await eventually(all_there)


def test_whatever_is_asked_the_answer_is_as_described(daemon: Daemon, description: dict[str, Any]) -> None:
    """Whether a request fits the description or not: no 5xx, and no answer but those that the description has."""
    api = schemathesis.openapi.from_dict(closed(description))
    api.config.update(base_url=daemon.url)
    answers: defaultdict[str, set[int]] = defaultdict(set)

    def ask(case: schemathesis.Case[Any], known: str | None) -> None:
        if "id" in case.path_parameters and known is not None:
            case.path_parameters["id"] = known
        if "id" in case.query and known is not None and isinstance(case.query["id"], str):
            case.query["id"] = known
        if "operation" in case.path_parameters and known is not None:
            case.path_parameters |= {"job_type": "failover", "operation": "unified-live-failover"}
        if "fingerprint" in case.path_parameters and known is not None:
            case.path_parameters["fingerprint"] = BOOM
        if isinstance(wait := case.query.get("wait"), int | float):
            case.query["wait"] = min(wait, LONGEST_WAIT)
        response = case.call()
        if len(str(response.request.url)) > LONGEST_URL:
            assert response.status_code in (400, 414, 431), "a line of the request is refused before its path is known"
            return
        case.validate_response(response, checks=CHECKS)
        answers[case.operation.definition.raw["operationId"]].add(response.status_code)

    for found in api.get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()
        if operation.definition.raw["operationId"] not in ENDLESS:
            both, right = tuple(GenerationMode), (GenerationMode.POSITIVE,)
            for mode in both if len(operation.query) else right:
                FEW(given(operation.as_strategy(generation_mode=mode), st.sampled_from((None, *IDS)))(ask))()
            if "id" in {parameter.name for parameter in operation.query}:  # seldom right together with all others
                ask(operation.Case(query={"id": ""}), IDS[0])
    assert {name for name, seen in answers.items() if 200 not in seen} <= {"openWebsocket", "listInstances"}
    assert {200, 400} <= answers["listJobs"]
    assert {200, 400, 404} <= answers["getJob"] | answers["listJobEvents"]


async def test_every_id_leads_to_its_job_and_a_parameter_is_accepted_within_its_limits_only(
    daemon: Daemon, description: dict[str, Any]
) -> None:
    for path in (p for p in description["paths"] if "{id}" in p):
        for name in IDS:
            assert await asked(daemon, path.replace("{id}", quote(name, safe="")), {}) == 200, (path, name)
    tried = 0
    for path, item in description["paths"].items():
        for parameter in item.get("get", {"parameters": []})["parameters"]:
            if parameter["in"] == "query":
                right, wrong = limits(parameter["schema"])
                for value, refused in [(v, False) for v in right] + [(v, True) for v in wrong]:
                    needed = {
                        p["name"]: "gui-a" for p in item["get"]["parameters"] if p["required"] and p["in"] == "query"
                    }
                    status = await asked(daemon, path.replace("{id}", "gui-a"), needed | {parameter["name"]: value})
                    assert (status == 400) == refused, (path, parameter["name"], value)
                    tried += 1
    assert tried > 30


VERSIONS = [("1.1", ()), ("1.0", ()), ("1.0", ("Connection: keep-alive",))]
"""Versions of HTTP, and headers: a client of 1.1 keeps the connection, one of 1.0 if it says so."""


async def test_after_every_response_of_every_route_the_connection_is_in_sync(
    daemon: Daemon, description: dict[str, Any]
) -> None:
    """With each value of a parameter that has a list of them, and with the condition that makes a 304."""
    asked = list[tuple[str, tuple[str, ...]]]()
    for path, item in description["paths"].items():
        parameters = [p for p in item.get("get", {"parameters": []})["parameters"] if p["in"] == "query"]
        chosen = [(p["name"], value) for p in parameters for value in limits(p["schema"])[0] if "enum" in enum(p)]
        found = filled(path)
        asked += [(found, ()), (found, ("If-None-Match: *",)), (f"{found}?nonsense=1", ())]
        asked += [(str(URL(found, encoded=True).update_query({name: value})), ()) for name, value in chosen]
    text = filled("/api/v1/jobs/{id}/log")
    for method in ("HEAD", "GET", "OPTIONS"):
        seen: defaultdict[str, set[int]] = defaultdict(set)
        for path, headers in asked:
            for version, connection in VERSIONS:
                if (method, path.partition("?")[0], version) != ("GET", "/api/v1/stream", "1.1"):  # it does not end
                    status = await in_sync(
                        daemon.port, method, path, *headers, *connection, version=version, after="/health/live"
                    )
                    seen[path].add(status)
        assert set().union(*seen.values()) <= {200, 304, 400, 404, 405, 426} | ({505} if method != "HEAD" else set())
        assert seen[text] == ({405} if method == "OPTIONS" else {200})


def referred(schema: dict[str, Any], description: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    return dict(description["components"]["schemas"][name]) if name else schema


def enum(parameter: dict[str, Any]) -> dict[str, Any]:
    """The schema of one value of a parameter."""
    found: dict[str, Any] = parameter["schema"]
    return dict(found.get("items", found))


def filled(path: str) -> str:
    """A path of the description with the names of what there is."""
    names = {"id": "gui-a", "name": "ctx-b", "job_type": "failover", "operation": "unified-live-failover"}
    names["fingerprint"] = BOOM
    by_parameter = "?id=gui-a" if path.startswith("/api/v1/job/") or path == "/api/v1/job" else ""
    return re.sub(r"{(\w+)}", lambda m: names[m[1]], path) + by_parameter


async def asked(daemon: Daemon, path: str, query: dict[str, str]) -> int:
    """The status alone: some answers do not end."""
    assert daemon.session is not None
    async with daemon.session.get(URL(path, encoded=True).update_query(query)) as response:
        return response.status


def limits(schema: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Values that are just right, and such as are just wrong, by a parameter's schema."""
    schema = schema.get("items", schema)
    if "enum" in schema:
        return list(schema["enum"]), [str(schema["enum"][0]).swapcase() + "?", "x"]
    if "minimum" in schema:
        low, high = schema["minimum"], schema["maximum"]
        return [str(low), str(high)], [str(low - 1), str(high + 1), "x", "nan"]
    return [], []


class MessageChecker:
    """Checks messages against a description and counts them by shape. A message without a shape fails."""

    def __init__(self, description: dict[str, Any]) -> None:
        self._description = description
        self._shapes = Shapes(description)
        self.seen: Counter[str] = Counter()

    @property
    def senders(self) -> list[str]:
        return [name for name, o in self._description["operations"].items() if o["action"] == "send"]

    def messages_of(self, operation: str) -> set[str]:
        """The shapes that an operation may send."""
        return {m["$ref"].rpartition("/")[2] for m in self._description["operations"][operation]["messages"]}

    def message(self, operation: str, message: dict[str, Any]) -> str:
        """Returns the name of its shape."""
        kind = self._shapes.one_of(self.messages_of(operation), message)
        self.seen[f"{operation} {kind}"] += 1
        return kind

    def to_reader(self, operation: str, message: dict[str, Any], documents: dict[str, Any]) -> None:
        """A message to one reader, which has `documents`."""
        kind = self.message(operation, message)
        if kind != "Delete":  # another subscription may still have the job
            apply_message(documents, message)
        if kind == "Delta":
            known = documents[message["job_id"]] = whole(documents[message["job_id"]])
            assert self._shapes.wrong("JobDocument", known) == []

    def published(self, topic: str, payload: bytes) -> None:
        """Its topic is that of just one channel, which is named like its operation."""
        channels = self._description["channels"].items()
        fits = [name for name, channel in channels if re.fullmatch(pattern(channel["address"]), topic)]
        assert len(fits) == 1, topic
        if fits == ["marker"]:  # no message: its description says what it holds
            assert payload in (b"true", b"")
        elif payload:  # else the topic is emptied
            self.message(fits[0], json.loads(payload))


def pattern(address: str) -> str:
    """Which topics an address stands for: a prefix may have levels, whatever else is named is one."""
    parts = re.split(r"({\w+})", address)
    return "".join(".+" if p == "{prefix}" else "[^/]+" if p.startswith("{") else re.escape(p) for p in parts)


def whole(document: dict[str, Any]) -> dict[str, Any]:
    """With null for members that the merge took, which means the same."""
    steps = {i: dict.fromkeys(required(Step)) | s for i, s in document.get("steps", {}).items()}
    progress = dict.fromkeys(required(Progress)) | document["progress"]
    return dict.fromkeys(required(JobDocument)) | document | {"steps": steps, "progress": progress}


def required(shape: type[Struct]) -> list[str]:
    return [field.name for field in fields(shape) if field.required]


async def from_socket(daemon: Daemon, checked: MessageChecker, *said: dict[str, Any] | str) -> None:
    assert daemon.session is not None
    documents: dict[str, Any] = {}
    async with daemon.session.ws_connect("/ws") as socket:
        for message in said:
            await socket.send_str(message if isinstance(message, str) else json.dumps(message))
        async for frame in socket:
            parsed = json.loads(frame.data)
            for message in parsed if isinstance(parsed, list) else [parsed]:
                checked.to_reader("sent", message, documents)


async def from_stream(daemon: Daemon, checked: MessageChecker, path: str, **headers: str) -> None:
    assert daemon.session is not None
    documents: dict[str, Any] = {}
    async with daemon.session.get(path, headers=headers) as response:
        assert response.content_type == "text/event-stream"
        async for line in response.content:
            name, _, text = line.decode().rstrip("\n").partition(": ")
            if name == "data":
                checked.to_reader("streamed", json.loads(text), documents)
            named = (name, text) == ("event", "event") or (name == "id" and re.fullmatch(r"[^:]+:\d+", text))
            assert named or name in ("", "data", "retry")


async def from_broker(url: str, checked: MessageChecker, listening: asyncio.Event) -> None:
    host, _, port = url.removeprefix("mqtt://").partition(":")
    async with aiomqtt.Client(host, int(port), protocol=aiomqtt.ProtocolVersion.V5) as client:
        await client.subscribe("#", qos=1)
        listening.set()
        async for message in client.messages:
            assert isinstance(message.payload, bytes)
            checked.published(str(message.topic), message.payload)
            if checked.seen["status DaemonStatus"] and message.payload.startswith(b'{"state":"offline"'):
                return


def nothing(missing: set[str]) -> bool:
    assert not missing, missing
    return True


NOT_PROVOKED = {f"{how} {kind}" for how in ("sent", "streamed") for kind in ("LogDropped", "EventMessage")}
"""Only a client that lags for long gets the one, and only a job that is longer than earlier ones causes the other."""


async def test_every_message_of_a_replay_is_as_described(
    database: Database, own_mosquitto: Mosquitto, recording: list[replay.Transaction], tmp_path: Path
) -> None:
    daemon = Daemon(
        tmp_path,
        database__url=database.url,
        mqtt__url=own_mosquitto.url,
        mqtt__home_assistant=True,
        jobs__retention="3s",
    )
    listening = asyncio.Event()
    stale = {"epoch": "another", "seq": 1}
    everything = {"type": "subscribe", "id": 1, "logs": "DEBUG"}
    running = {"type": "subscribe", "id": 2, "status": ["running"], "resume": True, "jobs": None}
    try:
        await daemon.start()
        checked = MessageChecker(await document(daemon, "asyncapi"))
        ends = datetime.now(UTC) + timedelta(seconds=recording[-1].at)
        async with asyncio.timeout(4 * PATIENCE), asyncio.TaskGroup() as group:
            group.create_task(from_broker(own_mosquitto.url, checked, listening))
            await listening.wait()
            group.create_task(
                from_socket(daemon, checked, HELLO | {"resume": stale}, everything, running, "{", {"type": "ping"})
            )
            group.create_task(from_socket(daemon, checked, HELLO, {"type": "get", "job_id": "nobody"}))
            group.create_task(from_stream(daemon, checked, "/api/v1/stream?logs=DEBUG"))
            group.create_task(
                from_stream(daemon, checked, "/api/v1/stream?status=running", **{"Last-Event-ID": "another:1"})
            )
            async with MariaDBReplayer.connect(database) as replayer:
                await replayer.replay(replay.shift(recording, ends_at=ends), speed=1.0)
            described = {f"{o} {name}" for o in checked.senders for name in checked.messages_of(o)}
            before_the_end = described - NOT_PROVOKED - {"sent Bye", "streamed Bye"}
            await eventually(lambda: nothing(before_the_end - set(checked.seen)))
            assert await daemon.stop() == 0
        assert described - set(checked.seen) <= NOT_PROVOKED
    finally:
        await daemon.close()
