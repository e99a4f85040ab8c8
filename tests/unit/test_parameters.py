"""The parameters of a request: read into the type of its operation, or refused with what would be right."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import Struct
from msgspec.json import encode
from msgspec.structs import fields
from yarl import URL

from correlator.errors import BadRequest
from correlator.model.parameters import (
    GetEntity,
    GetJob,
    JobFilters,
    ListJobEvents,
    ListJobs,
    StreamMessages,
)
from correlator.sinks.http.requests import read


def asked(kind: type[Struct], query: str, **path: str) -> Any:
    request: Any = SimpleNamespace(query=URL(f"/?{query}").query, match_info=path)
    return read(request, kind)


RIGHT: list[tuple[type[Struct], str, dict[str, str], dict[str, Any]]] = [
    (GetJob, "", {"id": "a/b"}, {"id": "a/b", "wait": 0.0}),
    (GetJob, "id=a%2Fb&wait=0.5&ticket=t", {}, {"id": "a/b", "wait": 0.5}),
    (JobFilters, "status=failed,running&status=failed", {}, {"status": ["failed", "running"]}),
    (JobFilters, "context_id=null", {"instance": "dc1"}, {"context_id": ["null"]}),
    (StreamMessages, "id=a,b&id=c", {}, {"id": ["a,b", "c"]}),
    (StreamMessages, "id=", {}, {"id": [""]}),
    (ListJobEvents, "id=j&from=9007199254740991", {}, {"id": "j", "from": (1 << 53) - 1}),
    (ListJobEvents, "id=j&step=1,9223372036854775807", {}, {"id": "j", "step": [1, (1 << 63) - 1]}),
    (GetEntity, "kind=vm&limit=500", {"name": "n"}, {"name": "n", "kind": "vm", "limit": 500}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "query", "path", "members"), RIGHT, ids=range(len(RIGHT)))
def test_parameters_are_read_from_the_path_and_the_query(kind, query, path, members):
    found = asked(kind, query, **path)
    defaults = kind(**{field.name: "" for field in fields(kind) if field.required})
    assert json.loads(encode(found, order="sorted")) == json.loads(encode(defaults)) | members


WRONG: list[tuple[type[Struct], str, str]] = [
    (ListJobs, "limit=0", "limit='0': expected a number from 1 to 500"),
    (ListJobs, "limit=", "limit='': expected a number from 1 to 500"),
    (ListJobs, "limit=" + "9" * 200, "limit: expected a number from 1 to 500"),
    (ListJobs, "limit=2&limit=x", "limit: given 2 times; give it once"),
    (ListJobs, "status=failed,x", "status='x': expected one of pending, running, completed, failed, cancelled"),
    (ListJobs, "status=,", "status: expected a value; leave it out for all"),
    (ListJobs, "steps=2", "steps='2': expected one of 0, 1"),
    (ListJobs, "since=2025-09-22", "since='2025-09-22': expected a time with its zone, e.g. 2025-09-22T10:00:00Z"),
    (GetEntity, "name=n&nam=m", "there is no query parameter 'nam' here; known: cursor, kind, limit, name, since"),
    (GetJob, "wait=1", "id: is required, and is not given"),
    (GetJob, "id=", "id='': expected one ID of a job"),
    (GetJob, "id=j&wait=nan", "wait='nan': expected a number from 0 to 60"),
    (ListJobEvents, "id=j&before=0", "before='0': expected a number from 1 to 9007199254740991"),
    (ListJobEvents, f"id=j&step=1,{1 << 63}", f"step='{1 << 63}': expected a number from 1 to {(1 << 63) - 1}"),
    (ListJobEvents, "id=j&step=" + ",".join(map(str, range(1, 102))), "step: expected at most 100 values"),
    (ListJobEvents, "id=j&q=" + "x" * 201, "q: expected at most 200 characters"),
    (StreamMessages, "id=j&id=" + "x" * 256, "id: expected 1 to 255 characters"),
    (StreamMessages, "&".join(["id=j"] * 1001), "id: expected at most 1000 values"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "query", "says"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_parameter_is_refused_with_what_would_be_right(kind, query, says):
    with pytest.raises(BadRequest) as refused:
        asked(kind, query)
    assert str(refused.value) == says


def test_an_id_in_the_path_is_no_parameter_of_the_query():
    with pytest.raises(BadRequest, match="no query parameter 'id' here; known: rev, wait"):
        asked(GetJob, "id=b", id="a")


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("1970-01-01T00:00:00.5Z", 500_000),
        ("1970-01-01T01:00+01:00", 0),
        ("0001-01-01T00:00:00+23:59", -62_135_683_140_000_000),
    ],
)
def test_a_time_is_that_of_its_zone_also_if_its_plus_sign_was_not_quoted(text, micros):
    assert asked(ListJobs, f"since={text}").since.micros == micros
