"""Requests to collectors and their replies: their form, their bounds, and sides of different versions."""

from __future__ import annotations

import contextlib
import re

import msgspec
import pytest
from msgspec import Raw, Struct
from msgspec.structs import asdict

from correlator.cluster import rpc
from correlator.cluster.rpc import Code, RemoteError
from correlator.model.replies import OperationRuns, OperationWithSteps, UsualStep
from correlator.model.rows import LegacyRecord
from correlator.pipeline.queries import (
    FindResult,
    IsContextResult,
    JobNames,
    JobQuery,
    LegacyResult,
    LineQuery,
    LineResult,
    LinesBeforeParams,
    LinesBeforeResult,
    LinesParams,
    LinesResult,
    NameParams,
    OperationParams,
    OperationResult,
    OperationsParams,
    OperationsResult,
    PageParams,
    PageResult,
)

QUERY = JobQuery(status=frozenset({"running"}))
NAMES = JobNames("u1", ("e1",), frozenset({7}), 5, None)
NAMES_JSON = '{"job_id":"u1","external_ids":["e1"],"step_ids":[7],"started":5,"ended":null,"instance":""}'
QUERY_JSON = (
    '{"status":["running"],"job_type":[],"operation":[],"context_id":[],"parent_job_id":[],'
    '"text":"","words":[],"vm_name":"","since":null}'
)
LINE = LineResult(3, "WARN", "m", 9, 7, Raw(b'{"a":[1,null]}'))
LINE_JSON = '{"event_id":3,"level":"WARN","message":"m","step_id":7,"attrs":{"a":[1,null]},"at":9}'

LEGACY_JSON = (
    '{"id":1,"job_id":"u1","status":"pending","job_type":null,"vm_id":null,"vm_context_id":null,'
    '"source_vm_name":null,"source_vm_spec":null,"destination_vm_id":null,"snapshot_id":null,"error_message":null,'
    '"created_at":null,"updated_at":null,"started_at":null,"completed_at":null,"apart":false,"error_cut":null}'
)
RUNS = OperationRuns("failover", "live", 3, 2.5, None, 0.25)
RUNS_JSON = (
    '{"job_type":"failover","operation":"live","runs":3,"typical_seconds":2.5,"p90_seconds":null,"failure_rate":0.25}'
)
FOUND = FindResult(Raw(b'{"job_id":"u1"}'), "external_id", ("u2",))
BEFORE = LinesBeforeParams(NAMES, 9, 10, LineQuery("WARN", frozenset({7}), "t", 4))

FORMS = [
    (NameParams("e1"), '{"name":"e1"}'),
    (FindResult(), "{}"),
    (FOUND, '{"job":{"job_id":"u1"},"resolved_by":"external_id","also":["u2"]}'),
    (LegacyResult(), "{}"),
    (LegacyResult(LegacyRecord(1, "u1")), f'{{"record":{LEGACY_JSON}}}'),
    (PageParams(10, QUERY, (5, "u1")), f'{{"limit":10,"query":{QUERY_JSON},"before":[5,"u1"]}}'),
    (PageResult((Raw(b"{}"),), (5, "u1")), '{"jobs":[{}],"next_before":[5,"u1"]}'),
    (LinesParams(NAMES, 10, "x"), f'{{"names":{NAMES_JSON},"limit":10,"after":"x"}}'),
    (LinesParams(NAMES, 10, 3), f'{{"names":{NAMES_JSON},"limit":10,"after":3}}'),
    (
        BEFORE,
        f'{{"names":{NAMES_JSON},"before":9,"limit":10,"query":{{"level":"WARN","steps":[7],"text":"t","since":4}}}}',
    ),
    (LinesResult((LINE,), "next", more=True), f'{{"lines":[{LINE_JSON}],"next_after":"next","more":true}}'),
    (LinesBeforeResult((LINE,), 3), f'{{"lines":[{LINE_JSON}],"next_before":3}}'),
    (IsContextResult(is_context=True), '{"is_context":true}'),
    (OperationsParams(), "{}"),
    (OperationsResult((RUNS,)), f'{{"operations":[{RUNS_JSON}]}}'),
    (OperationParams("failover", "live"), '{"job_type":"failover","operation":"live"}'),
    (OperationResult(), "{}"),
    (
        OperationResult(OperationWithSteps(**asdict(RUNS), steps=(UsualStep("copy", 0.5, 3.0),))),
        f'{{"found":{RUNS_JSON[:-1]},"steps":[{{"name":"copy","share":0.5,"typical_seconds":3.0}}]}}}}',
    ),
]


@pytest.mark.parametrize(("content", "text"), FORMS, ids=[f"{type(f[0]).__name__}-{n}" for n, f in enumerate(FORMS)])
def test_the_form_of_each_message_is_that_of_earlier_versions_but_for_new_members(content, text):
    assert msgspec.json.decode(text, type=type(content)) == content
    assert without_new_members(msgspec.json.decode(msgspec.json.encode(content)), msgspec.json.decode(text)) == (
        msgspec.json.decode(text)
    )


@pytest.mark.parametrize(("content", "text"), FORMS, ids=[f"{type(f[0]).__name__}-{n}" for n, f in enumerate(FORMS)])
def test_a_number_that_no_int64_holds_is_in_no_message_that_was_read(content, text):
    """SQL has no such number, and no JSON is made of it."""
    for number in re.finditer(r"(?<=[:,\[])\d+(?=[,}\]])", text):
        large = f"{text[: number.start()]}{10**40}{text[number.end() :]}"
        with contextlib.suppress(RemoteError):
            found = rpc.decode_params(Raw(large.encode()), type(content))
            msgspec.msgpack.encode(found)  # which has integers of 64 bits only


def without_new_members(new, old):
    """`new` without the members of objects that `old` does not have."""
    if isinstance(old, dict):
        return {name: without_new_members(new[name], value) for name, value in old.items() if name in new}
    if isinstance(old, list):
        return [without_new_members(*pair) for pair in zip(new, old, strict=True)]
    return new


def test_a_request_and_its_reply_arrive_as_they_were_sent():
    request = rpc.decode_request(rpc.encode_request(NameParams("e1"), 3.5))
    assert request.within == 3.5
    assert rpc.decode_params(request.params, NameParams) == NameParams("e1")
    reply = rpc.encode_result(msgspec.json.encode(IsContextResult(is_context=True)))
    assert rpc.decode_reply(reply, IsContextResult) == IsContextResult(is_context=True)


def test_members_of_a_newer_version_are_ignored_and_missing_ones_have_their_default():
    request = rpc.decode_request(b'{"params":{"name":"x","newer":{"a":1}},"newer":[1]}')
    assert (request.version, request.within) == (1, rpc.WITHIN)
    assert rpc.decode_params(request.params, NameParams) == NameParams("x")
    assert rpc.decode_reply(b'{"result":{"newer":1},"newer":2}', PageResult) == PageResult()


@pytest.mark.parametrize(("sent", "taken"), [(-1, 0.0), (0.5, 0.5), (1e9, rpc.WITHIN)])
def test_a_client_waits_no_longer_than_the_bound_whatever_it_says(sent, taken):
    assert rpc.decode_request(f'{{"params":{{}},"within":{sent}}}'.encode()).within == taken


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"", Code.MALFORMED),
        (b"\xff", Code.MALFORMED),
        (b"[1]", Code.MALFORMED),
        (b"{}", Code.MALFORMED),
        (b"[" * 100_000, Code.MALFORMED),
        (b'{"params":{},"within":"x"}', Code.MALFORMED),
        (b'{"params":{"x":"%b"}}' % (b"x" * rpc.MAX_REQUEST_BYTES), Code.MALFORMED),
        (b'{"params":{},"version":2}', Code.UNSUPPORTED),
    ],
)
def test_a_request_that_cannot_be_read_says_why(message, code):
    with pytest.raises(RemoteError) as raised:
        rpc.decode_request(message)
    assert raised.value.code is code


@pytest.mark.parametrize(
    ("message", "code", "detail"),
    [
        (rpc.encode_failure(Code.BUSY, "later"), Code.BUSY, "later"),
        (b'{"failure":{"code":"newer","detail":"d"}}', Code.INTERNAL, "d"),
        (b'{"version":2,"result":{}}', Code.UNSUPPORTED, "a reply of version 2 is not known here"),
        (b'{"version":1}', Code.UNSUPPORTED, "a reply of version 1 is not known here"),
    ],
)
def test_a_reply_without_a_result_raises_its_reason(message, code, detail):
    with pytest.raises(RemoteError) as raised:
        rpc.decode_reply(message, PageResult)
    assert (raised.value.code, raised.value.detail) == (code, detail)


def test_a_request_that_is_too_large_is_not_sent():
    with pytest.raises(RemoteError, match="bytes, more than"):
        rpc.encode_request(NameParams("x" * rpc.MAX_REQUEST_BYTES), 1)


class Newer(Struct):
    name: str
    more: int = 0


def test_a_struct_with_a_new_member_reads_what_an_older_side_sent():
    params = rpc.decode_request(rpc.encode_request(NameParams("x"), 1)).params
    assert rpc.decode_params(params, Newer) == Newer("x")
