"""Requests to collectors and their replies: their form, their bounds, and sides of different versions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections import Counter
from typing import Any

import msgspec
import pytest
from msgspec import Raw
from msgspec.structs import asdict

from correlator.cluster import rpc
from correlator.cluster import rpc as module
from correlator.cluster.connection import ClusterUnavailable, NoAnswer, NoResponder
from correlator.cluster.rpc import Code, RemoteError
from correlator.errors import Away, BadRequest, SourceUnavailable
from correlator.model.published import FoundLine, LogLine
from correlator.model.replies import (
    Burst,
    Difference,
    FailedJobRef,
    FailureDay,
    FailureGroup,
    FailureVariant,
    LongStep,
    NextRuns,
    OperationRuns,
    OperationWithSteps,
    OperatorNote,
    Resolved,
    SimilarFailure,
    UsualStep,
)
from correlator.model.rows import LegacyRecord
from correlator.ops.cluster_metrics import REQUESTS_REJECTED
from correlator.pipeline.queries import (
    QUESTIONS,
    CompareFailure,
    DescribeFailure,
    FailedAlike,
    FailureComparison,
    FailureDescription,
    FailuresFound,
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
from correlator.sinks.cluster.gateway_requests import Responder
from tests.support.answering_collectors import Collectors
from tests.support.eventually import eventually
from tests.support.metric_values import value

QUERY = JobQuery(status=frozenset({"running"}))
AT = "2025-09-22T10:00:00.000000Z"
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

FAILURE = FailureGroup(
    fingerprint="f", text="t", step="s", certainty="stated", count=1, first_at=AT, last_at=AT,
    days=(FailureDay("2025-09-22", 1),), vms=("v",), vm_count=1, operations=("live",), steps=("s",),
    jobs=(FailedJobRef("u1", AT, "live", "v"),), note=OperatorNote("see", None),
)  # fmt: skip
FAILURE_JSON = (
    f'{{"fingerprint":"f","text":"t","step":"s","certainty":"stated","count":1,"first_at":"{AT}","last_at":"{AT}",'
    '"days":[{"day":"2025-09-22","count":1}],"vms":["v"],"vm_count":1,"operations":["live"],"steps":["s"],'
    f'"jobs":[{{"job_id":"u1","ended_at":"{AT}","operation":"live","vm_name":"v"}}],'
    '"note":{"text":"see","link":null}}'
)
ALIKE = FailedAlike(10, 5, "live", "v", (9, "f"), frozenset({"g"}))
ALIKE_JSON = '{"limit":10,"since":5,"operation":"live","vm":"v","before":[9,"f"],"fingerprints":["g"]}'
ABOUT = FailureDescription(
    "t", [FailureVariant("t", 1)], NextRuns(4, 1, 1, 1, 1, (2.5,)), [SimilarFailure("g", "u", 2, "a", "b")], "r"
)
ABOUT_JSON = (
    '{"template":"t","variants":[{"text":"t","count":1}],"next_runs":{"examined":4,"completed":1,"failed_alike":1,'
    '"failed_otherwise":1,"unknown":1,"recovered_seconds":[2.5]},"similar":[{"fingerprint":"g","text":"u","count":2,'
    '"word":"a","other_word":"b"}],"reason":"r"}'
)
COMPARED = FailureComparison(Difference(3, None, ("copy",), (LongStep("boot", 2.5, 1.0),)), Burst(3, 2, 40.5), "r")
COMPARED_JSON = (
    '{"differs":{"runs":3,"vm_name":null,"missing":["copy"],"longer":[{"name":"boot","seconds":2.5,"p90_seconds":1.0}]},'
    '"burst":{"failed":3,"alike":2,"within_seconds":40.5},"reason":"r"}'
)

FORMS: list[tuple[Any, str, list[tuple[Any, str]]]] = [
    (FindJob("e1"), '{"name":"e1"}', [(None, "null"), (FOUND, FOUND_JSON)]),
    (OlderJobs(10, QUERY, (5, "u1")), f'{{"limit":10,"query":{QUERY_JSON},"before":[5,"u1"]}}', [
        (OtherJobs([Raw(b"{}")], (5, "u1")), '{"jobs":[{}],"next_before":[5,"u1"]}'),
    ]),
    (LINES, f'{{"names":{NAMES_JSON},"after":"x","limit":10,"query":{EVERY_JSON}}}', [
        (LinesPage([LINE], "next", more=True), f'{{{PAGE_JSON}:"next","more":true,"next_before":null,"reason":null}}'),
    ]),
    (LAST, f'{{"names":{NAMES_JSON},"after":null,"limit":10,"query":{SOME_JSON},"before":9}}', [
        (LinesPage([LINE], next_before=3), f'{{{PAGE_JSON}:null,"more":false,"next_before":3,"reason":null}}'),
        (LinesPage([LINE], next_before=3, reason="r"),
         f'{{{PAGE_JSON}:null,"more":false,"next_before":3,"reason":"r"}}'),
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
    (ALIKE, ALIKE_JSON, [
        (FailuresFound(), "{}"),
        (FailuresFound([FAILURE], (9, "f"), 5, "r"),
         f'{{"groups":[{FAILURE_JSON}],"following":[9,"f"],"reaches":5,"reason":"r"}}'),
    ]),
    (DescribeFailure("f"), '{"fingerprint":"f"}', [(FailureDescription(), "{}"), (ABOUT, ABOUT_JSON)]),
    (CompareFailure("u1", "dc1"), '{"job_id":"u1","instance":"dc1"}', [
        (FailureComparison(), "{}"), (COMPARED, COMPARED_JSON),
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
            found = rpc.decode_part(Raw(large.encode()), form)
            msgspec.msgpack.encode(found)  # which has integers of 64 bits only


def without_new_members(new, old):
    """`new` without the members of objects that `old` does not have."""
    if isinstance(old, dict):
        return {name: without_new_members(new[name], value) for name, value in old.items() if name in new}
    if isinstance(old, list):
        return [without_new_members(*pair) for pair in zip(new, old, strict=True)]
    return new


def test_members_of_a_newer_version_are_ignored_and_missing_ones_have_their_default():
    request = rpc.decode_request(b'{"params":{"name":"x","newer":{"a":1}},"newer":[1]}')
    assert (request.version, request.within) == (1, rpc.WITHIN)
    assert rpc.decode_part(request.params, FindJob) == FindJob("x")
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
def test_a_request_that_cannot_be_read_says_why_and_one_that_is_too_large_is_not_sent(message, code):
    with pytest.raises(RemoteError) as raised:
        rpc.decode_request(message)
    assert raised.value.code is code
    with pytest.raises(RemoteError, match="bytes, more than"):
        rpc.encode_request(FindJob("x" * rpc.MAX_REQUEST_BYTES), 1)


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


# -- A collector's answers to gateways: bounded in number, in time and in bytes, and each failure has its code


class Requests:
    """A responder; `answer` is what it does."""

    def __init__(self, answer, most: int = 4) -> None:
        self.responder = Responder(answer, most)
        self.replies: list[bytes] = []

    async def send(self, name: str = "x", within: float = 5.0, method: str = "FindJob") -> None:
        await self.raw(rpc.encode_request(FindJob(name), within), method)

    async def raw(self, message: bytes, method: str = "FindJob") -> None:
        await self.responder.receive(method, message, self.reply)

    async def reply(self, message: bytes) -> None:
        self.replies.append(message)

    async def all(self) -> list[object]:
        """The result or the failure code of each reply, once nothing is running."""
        await eventually(lambda: self.responder.running == 0, every=0.001)
        return [self.outcome(reply) for reply in self.replies]

    def outcome(self, reply: bytes) -> object:
        try:
            return rpc.decode_reply(reply, object)
        except RemoteError as error:
            return error.code


async def echo(params: FindJob) -> bytes:
    return msgspec.json.encode(params.name)


async def test_requests_beyond_the_bound_are_rejected_and_counted_and_the_others_answered():
    go = asyncio.Event()

    async def slow(params: FindJob) -> bytes:
        await go.wait()
        return await echo(params)

    rejected = value(REQUESTS_REJECTED)
    requests = Requests(slow, most=3)
    for n in range(10):
        await requests.send(str(n))
    assert requests.responder.running == 3
    assert [requests.outcome(r) for r in requests.replies] == [Code.BUSY] * 7
    assert value(REQUESTS_REJECTED) - rejected == 7
    go.set()
    assert (await requests.all())[7:] == ["0", "1", "2"]
    await requests.send("later")
    assert (await requests.all())[10:] == ["later"]


async def test_the_work_for_a_request_ends_when_its_client_does_not_wait_any_more():
    ended: list[str] = []

    async def hangs(params: FindJob) -> bytes:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(params.name)
        return b"1"

    requests = Requests(hangs)
    await requests.send("a", within=0.01)
    assert await requests.all() == [Code.TIMEOUT]
    assert ended == ["a"]


@pytest.mark.parametrize(
    ("error", "code", "detail"),
    [
        (
            SourceUnavailable("u@10.1.2.3: denied", Away.LOGIN_REFUSED),
            Code.UNAVAILABLE,
            "the database refuses the login",
        ),
        (BadRequest("after: …"), Code.BAD_REQUEST, "after: …"),
        (ValueError("a secret"), Code.INTERNAL, "Internal error. See the collector's log."),
    ],
)
async def test_a_failure_has_a_code_and_names_no_host_or_account(error, code, detail, caplog):
    async def fails(_: FindJob) -> bytes:
        raise error

    requests = Requests(fails)
    with caplog.at_level(logging.CRITICAL):
        await requests.send()
        await requests.all()
    with pytest.raises(RemoteError) as raised:
        rpc.decode_reply(requests.replies[0], object)
    assert (raised.value.code, raised.value.detail) == (code, detail)


async def test_a_reply_that_is_too_large_a_malformed_request_and_an_unknown_method_have_their_code():
    async def large(_: FindJob) -> bytes:
        return b'"%b"' % (b"x" * rpc.MAX_BYTES)

    requests = Requests(large)
    await requests.send()
    await requests.raw(b"{")
    await requests.raw(b'{"params":{}}')
    await requests.raw(b'{"params":{"name":"x"},"version":9}')
    await requests.send(method="newer")
    codes = {Code.INTERNAL: 1, Code.MALFORMED: 2, Code.UNSUPPORTED: 2}
    assert Counter(await requests.all()) == codes


async def test_a_flood_leaves_the_loop_to_other_tasks():
    """Others run between any two requests that arrived together."""
    requests = Requests(lambda _: asyncio.sleep(3600), most=1)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    for _ in range(1000):
        await requests.send()
    task.cancel()
    assert turns >= 1000
    assert requests.responder.running == 1
    await requests.responder.close()
    assert await requests.all() == [Code.BUSY] * 999


# -- Requests of a gateway to collectors: deadlines, bounds, and reasons that name the appliance


YES = rpc.encode_result(b"true")


async def ask(collectors: Collectors, instance: str = "dc1", within: float = 5.0) -> bool:
    return await collectors.caller.call(instance, IsContext("c"), bool, within)


async def test_a_request_waits_a_little_longer_than_its_collector_may_take():
    collectors = Collectors()
    collectors.replies["dc1"] = YES
    assert await ask(collectors, "dc1", 2.0)
    assert (collectors.requests, collectors.deadlines) == ([("dc1", "IsContext")], [(2.0, 2.0 + module.GRACE)])


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (rpc.encode_failure(Code.TIMEOUT, "too slow"), "dc1: too slow"),
        (NoAnswer(), "dc1: the collector did not answer within 5 s"),
        (NoResponder(), "dc1: no collector is connected to the cluster"),
        (ClusterUnavailable(), "dc1: the cluster cannot be reached"),
        (rpc.encode_failure(Code.UNAVAILABLE, "the database refuses the login"), "dc1: the database refuses the login"),
        (rpc.encode_failure(Code.BUSY, "later"), "dc1: later"),
        (b"nonsense", "dc1: not a message of this program"),
        (rpc.encode_result(b'"yes"'), "dc1: not a message of this program"),
    ],
)
async def test_every_failure_is_a_reason_that_names_the_appliance_and_a_silent_one_rests(reply, reason):
    collectors = Collectors()
    collectors.replies["dc1"] = reply
    with pytest.raises(SourceUnavailable) as raised:
        await ask(collectors)
    assert raised.value.public.startswith(reason)
    collectors.replies |= {"dc1": YES, "dc2": YES}
    if isinstance(reply, NoAnswer):
        collectors.now += module.REST / 2
        with pytest.raises(SourceUnavailable, match="dc1: the collector does not answer"):
            await ask(collectors)
        assert await ask(collectors, "dc2")
        assert [instance for instance, *_ in collectors.requests] == ["dc1", "dc2"]
        collectors.now += module.REST
        assert await ask(collectors)
        assert collectors.deadlines[-1] == (module.PROBE, module.PROBE + module.GRACE)
    assert await ask(collectors)
    assert collectors.deadlines[-1] == (module.WITHIN, module.WITHIN + module.GRACE)


async def test_requests_beyond_the_bound_fail_at_once_and_a_cancelled_one_makes_room():
    collectors = Collectors()
    collectors.replies["dc1"] = YES
    collectors.go.clear()
    waiting = [asyncio.create_task(ask(collectors)) for _ in range(module.MAX_CALLS)]
    await asyncio.sleep(0)
    with pytest.raises(SourceUnavailable, match="dc1: too many requests wait for its collector"):
        await ask(collectors)
    waiting[0].cancel()
    await asyncio.gather(waiting[0], return_exceptions=True)
    one_more = asyncio.create_task(ask(collectors))
    await asyncio.sleep(0)
    collectors.go.set()
    assert await one_more
    assert all(await asyncio.gather(*waiting[1:]))


async def test_requests_that_wait_for_a_slow_appliance_take_no_part_of_another_one():
    collectors = Collectors()
    collectors.replies |= {"dc1": YES, "dc2": YES}
    collectors.go.clear()
    slow = [asyncio.create_task(ask(collectors)) for _ in range(module.MAX_CALLS)]
    await asyncio.sleep(0)
    collectors.go.set()
    assert await ask(collectors, "dc2")
    assert all(await asyncio.gather(*slow))
