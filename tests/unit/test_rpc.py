"""Requests to collectors and their replies: their form, their bounds, and sides of different versions."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import msgspec
import pytest
from msgspec import Raw, Struct
from msgspec.structs import asdict

from correlator.cluster import rpc
from correlator.cluster.rpc import Code, RemoteError
from correlator.model.published import FoundLine, LogLine
from correlator.model.replies import OperationRuns, OperationWithSteps, Resolved, UsualStep
from correlator.model.rows import LegacyRecord
from correlator.pipeline.queries import (
    QUESTIONS,
    FindJob,
    FindLines,
    IsContext,
    JobNames,
    JobQuery,
    LegacyRow,
    LineQuery,
    LinesFound,
    LinesPage,
    LogLines,
    OlderJobs,
    Operations,
    OtherJobs,
    UsualSteps,
)

QUERY = JobQuery(status=frozenset({"running"}))
NAMES = JobNames("u1", ("e1",), frozenset({7}), 5, None)
NAMES_JSON = '{"job_id":"u1","external_ids":["e1"],"step_ids":[7],"started":5,"ended":null,"instance":""}'
QUERY_JSON = (
    '{"status":["running"],"job_type":[],"operation":[],"context_id":[],"parent_job_id":[],'
    '"text":"","words":[],"vm_name":"","since":null}'
)
LINE = LogLine(3, "WARN", "m", 7, {"a": [True, None]}, 9)
LINE_JSON = '{"event_id":3,"level":"WARN","message":"m","step_id":7,"attrs":{"a":[true,null]},"at":9}'
LEGACY_JSON = (
    '{"id":1,"job_id":"u1","status":"pending","job_type":null,"vm_id":null,"vm_context_id":null,'
    '"source_vm_name":null,"source_vm_spec":null,"destination_vm_id":null,"snapshot_id":null,"error_message":null,'
    '"created_at":null,"updated_at":null,"started_at":null,"completed_at":null,"apart":false,"error_cut":null}'
)
RUNS = OperationRuns("failover", "live", 3, 2.5, None, 0.25)
RUNS_JSON = (
    '{"job_type":"failover","operation":"live","runs":3,"typical_seconds":2.5,"p90_seconds":null,"failure_rate":0.25}'
)
FOUND = (Raw(b'{"job_id":"u1"}'), Resolved("u1", "external_id", ("u2",)))
FOUND_JSON = '[{"job_id":"u1"},{"job_id":"u1","resolved_by":"external_id","also":["u2"]}]'
LINES = LogLines(NAMES, "x", 10, LineQuery())
EVERY_JSON = '{"level":"DEBUG","steps":[],"text":"","since":null}'
LAST = LogLines(NAMES, None, 10, LineQuery("WARN", frozenset({7}), "t", 4), 9)
SOME_JSON = '{"level":"WARN","steps":[7],"text":"t","since":4}'
FIND = FindLines(10, LineQuery(until=5, words=frozenset({"w"})), frozenset({"dc1"}), {"dc1": 9})
FIND_JSON = (
    '{"limit":10,"query":{"level":"DEBUG","steps":[],"text":"","since":null,"until":5,"words":["w"]},'
    '"instance":["dc1"],"places":{"dc1":9}}'
)
FOUND_LINE = FoundLine(3, "WARN", "m", 7, {"a": [True, None]}, 9, "u1", "web-1", "copy", "dc1")
FOUND_LINE_JSON = f'{LINE_JSON[:-1]},"job_id":"u1","vm_name":"web-1","operation":"copy","instance":"dc1"}}'
PAGE_JSON = f'"lines":[{LINE_JSON}],"next_after"'
USUAL = OperationWithSteps(**asdict(RUNS), steps=(UsualStep("copy", 0.5, 3.0),))

FORMS: list[tuple[Any, str, list[tuple[Any, str]]]] = [
    (FindJob("e1"), '{"name":"e1"}', [(None, "null"), (FOUND, FOUND_JSON)]),
    (OlderJobs(10, QUERY, (5, "u1")), f'{{"limit":10,"query":{QUERY_JSON},"before":[5,"u1"]}}', [
        (OtherJobs([Raw(b"{}")], (5, "u1")), '{"jobs":[{}],"next_before":[5,"u1"]}'),
    ]),
    (LINES, f'{{"names":{NAMES_JSON},"after":"x","limit":10,"query":{EVERY_JSON}}}', [
        (LinesPage([LINE], "next", more=True), f'{{{PAGE_JSON}:"next","more":true,"next_before":null}}'),
    ]),
    (LAST, f'{{"names":{NAMES_JSON},"after":null,"limit":10,"query":{SOME_JSON},"before":9}}', [
        (LinesPage([LINE], next_before=3), f'{{{PAGE_JSON}:null,"more":false,"next_before":3}}'),
    ]),
    (FIND, FIND_JSON, [
        (LinesFound([]), '{"lines":[],"places":{},"searched":1.0,"searched_to":null,"reason":null}'),
        (LinesFound([FOUND_LINE], {"": 3}, 0.5, 9, "away"),
         f'{{"lines":[{FOUND_LINE_JSON}],"places":{{"":3}},"searched":0.5,"searched_to":9,"reason":"away"}}'),
    ]),
    (IsContext("c"), '{"name":"c"}', [(True, "true")]),
    (LegacyRow("u1"), '{"name":"u1"}', [(None, "null"), (LegacyRecord(1, "u1"), LEGACY_JSON)]),
    (Operations(), "{}", [((RUNS,), f"[{RUNS_JSON}]")]),
    (UsualSteps("failover", "live"), '{"job_type":"failover","operation":"live"}', [
        (None, "null"),
        (USUAL, f'{RUNS_JSON[:-1]},"steps":[{{"name":"copy","share":0.5,"typical_seconds":3.0}}]}}'),
    ]),
]  # fmt: skip
MESSAGES: list[tuple[Any, str, Any]] = [
    (*one, form)
    for question, text, answers in FORMS
    for one, form in (((question, text), type(question)), *((answer, question.answer()) for answer in answers))
]
IDS = [f"{type(message[0]).__name__}-{number}" for number, message in enumerate(MESSAGES)]


def test_the_forms_of_all_questions_are_fixed_here():
    assert {type(question) for question, _, _ in FORMS} == set(QUESTIONS.values())


@pytest.mark.parametrize(("content", "text", "form"), MESSAGES, ids=IDS)
def test_the_form_of_each_message_is_that_of_earlier_versions_but_for_new_members(content, text, form):
    assert msgspec.json.decode(text, type=form) == content
    assert without_new_members(msgspec.json.decode(msgspec.json.encode(content)), msgspec.json.decode(text)) == (
        msgspec.json.decode(text)
    )


@pytest.mark.parametrize(("content", "text", "form"), MESSAGES, ids=IDS)
def test_a_number_that_no_int64_holds_is_in_no_message_that_was_read(content, text, form):
    """SQL has no such number, and no JSON is made of it."""
    for number in re.finditer(r"(?<=[:,\[])\d+(?=[,}\]])", text):
        large = f"{text[: number.start()]}{10**40}{text[number.end() :]}"
        with contextlib.suppress(RemoteError):
            found = rpc.decode_params(Raw(large.encode()), form)
            msgspec.msgpack.encode(found)  # which has integers of 64 bits only


def without_new_members(new, old):
    """`new` without the members of objects that `old` does not have."""
    if isinstance(old, dict):
        return {name: without_new_members(new[name], value) for name, value in old.items() if name in new}
    if isinstance(old, list):
        return [without_new_members(*pair) for pair in zip(new, old, strict=True)]
    return new


def test_a_request_and_its_reply_arrive_as_they_were_sent():
    request = rpc.decode_request(rpc.encode_request(FindJob("e1"), 3.5))
    assert request.within == 3.5
    assert rpc.decode_params(request.params, FindJob) == FindJob("e1")
    reply = rpc.encode_result(b"true")
    assert rpc.decode_reply(reply, bool) is True


def test_members_of_a_newer_version_are_ignored_and_missing_ones_have_their_default():
    request = rpc.decode_request(b'{"params":{"name":"x","newer":{"a":1}},"newer":[1]}')
    assert (request.version, request.within) == (1, rpc.WITHIN)
    assert rpc.decode_params(request.params, FindJob) == FindJob("x")
    assert rpc.decode_reply(b'{"result":{"newer":1},"newer":2}', OtherJobs) == OtherJobs()


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
        rpc.decode_reply(message, OtherJobs)
    assert (raised.value.code, raised.value.detail) == (code, detail)


def test_a_request_that_is_too_large_is_not_sent():
    with pytest.raises(RemoteError, match="bytes, more than"):
        rpc.encode_request(FindJob("x" * rpc.MAX_REQUEST_BYTES), 1)


class Newer(Struct):
    name: str
    more: int = 0


def test_a_struct_with_a_new_member_reads_what_an_older_side_sent():
    params = rpc.decode_request(rpc.encode_request(FindJob("x"), 1)).params
    assert rpc.decode_params(params, Newer) == Newer("x")
