"""The OTLP sink against a receiver over HTTP: what is sent, what is sent again, and what an operator sees."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from correlator.config.schema import Config, Mqtt, Otlp, TracesUrl
from correlator.doctor import receivers
from correlator.jobs.exports import Exports
from correlator.model.rows import StepRecord
from correlator.sinks.otlp import sink as sinks
from correlator.sinks.otlp.sink import OtlpSink
from correlator.tasks import Backoff
from tests.support.eventually import eventually
from tests.support.otlp_receiver import OtlpHarness, OtlpReceiver, attributes, spans_of
from tests.support.pipeline_harness import NOW
from tests.support.servers import free_port


@pytest.fixture
async def otlp() -> AsyncIterator[OtlpReceiver]:
    async with OtlpReceiver().listening() as receiver:
        yield receiver


@pytest.fixture
def harness() -> OtlpHarness:
    return OtlpHarness()


def configured(url: str, **settings: Any) -> Config:
    return Config(
        otlp=Otlp(url=TracesUrl.parse(f"{url}/v1/traces"), delay=0.0, **settings), mqtt=Mqtt(instance="appliance-1")
    )


@contextlib.asynccontextmanager
async def running(harness: OtlpHarness, config: Config, backoff: Backoff | None = None) -> AsyncIterator[OtlpSink]:
    backoff = backoff or Backoff(0.001, 1.0, 0.001)
    sink = OtlpSink(config, Exports(config.otlp.delay, 0.0), backoff=backoff, gone_pause=3_600.0)
    async with harness.running(sink):
        yield sink


async def test_ended_jobs_are_sent_once_with_the_headers_of_the_configuration(harness, otlp):
    async with running(harness, configured(otlp.url, headers=("X-Scope-OrgID: one",))) as sink:
        harness.end("a", StepRecord(1, "copy", 1, "completed", NOW, NOW))
        await eventually(lambda: sink.describe()["exported"] == 1)
        harness.end("b")
        await eventually(lambda: sink.describe()["exported"] == 2)
        assert otlp.names == ["RUN live", "copy", "RUN live"]
        (headers, message), _ = otlp.requests
        assert headers["X-Scope-OrgID"] == "one"
        assert attributes(message.resource_spans[0].resource)["service.instance.id"] == "appliance-1"
        assert sink.describe() == {"ok": True, "pending": 0, "exported": 2, "dropped": 0, "error": None}
    assert harness.gained("correlator_otlp_traces_total") == 2
    assert harness.gained("correlator_otlp_spans_total", result="accepted") == 3


async def test_a_request_is_repeated_unchanged_and_never_without_a_pause(harness, otlp, caplog):
    soon, past = {"Retry-After": "0"}, {"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}
    otlp.answers = [(503, soon, ""), (429, past, '{"message":"slow down"}'), (502, {}, ""), (504, {}, "")]
    began = time.monotonic()
    async with running(harness, configured(otlp.url), Backoff(0.1, 1.0, 0.1, uniform=lambda: 1.0)) as sink:
        harness.end()
        await eventually(lambda: sink.describe()["exported"] == 1)
    assert time.monotonic() - began >= 0.4
    messages = [message for _, message in otlp.requests]
    assert len(messages) == 5
    assert all(message == messages[0] for message in messages)
    assert harness.gained("correlator_otlp_failures_total") == 4
    assert "HTTP 429 Too Many Requests: slow down" in caplog.text


async def test_a_receiver_of_protobuf_only_drops_nothing_and_a_reload_sends_protobuf_at_once(harness, otlp, caplog):
    otlp.answers = [(415, {}, "")]
    async with running(harness, configured(otlp.url)) as sink:
        harness.end()
        await eventually(lambda: sink.describe()["error"])
        assert "does not take JSON; set otlp.encoding to protobuf" in sink.describe()["error"]
        assert (sink.describe()["pending"], len(otlp.requests)) == (1, 1)
        sink.prepare(configured(otlp.url, headers=("X-Key: new",), encoding="protobuf"))()
        await eventually(lambda: sink.describe()["exported"] == 1)
    (_, first), (headers, second) = otlp.requests
    assert (headers["X-Key"], headers["Content-Type"]) == ("new", "application/x-protobuf")
    assert first == second
    assert caplog.text.count("does not take JSON") == 1


async def test_a_partial_success_is_counted_logged_and_not_repeated(harness, otlp, caplog):
    otlp.answers = [(200, {}, '{"partialSuccess":{"rejectedSpans":"1","errorMessage":"too old"}}')]
    async with running(harness, configured(otlp.url)) as sink:
        harness.end("a", StepRecord(1, "copy", 1, "completed", NOW, NOW))
        await eventually(lambda: sink.describe()["exported"] == 1)
        assert sink.describe()["error"] == "the receiver rejected 1 of 2 spans: too old"
        harness.end("b")
        await eventually(lambda: sink.describe()["exported"] == 2)
        assert sink.describe()["ok"]
    assert len(otlp.requests) == 2
    assert harness.gained("correlator_otlp_spans_total", result="rejected") == 1
    assert harness.gained("correlator_otlp_spans_total", result="accepted") == 2


async def test_a_request_that_is_refused_is_dropped_and_the_next_one_is_sent(harness, otlp):
    otlp.answers = [(400, {}, '{"message":"bad data"}')]
    async with running(harness, configured(otlp.url)) as sink:
        harness.end("a")
        await eventually(lambda: sink.describe()["pending"] == 0)
        assert "HTTP 400 Bad Request: bad data" in sink.describe()["error"]
        harness.end("b")
        await eventually(lambda: sink.describe()["exported"] == 1)
    assert harness.gained("correlator_otlp_spans_total", result="refused") == 1


async def test_a_request_that_is_too_large_for_the_receiver_is_sent_in_halves(harness, otlp):
    otlp.answers = [(413, {}, ""), (413, {}, ""), (413, {}, "")]
    async with running(harness, configured(otlp.url)) as sink:
        for name in "abcd":
            harness.end(name)
        await eventually(lambda: sink.describe()["pending"] == 0)
    assert [len(spans_of(message)) for _, message in otlp.requests] == [4, 2, 1, 1, 2]
    assert harness.gained("correlator_otlp_spans_total", result="refused") == 1, "the one that is too large alone"
    assert harness.gained("correlator_otlp_spans_total", result="accepted") == 3


async def test_a_job_of_many_steps_is_split_and_no_request_exceeds_its_bound(harness, otlp):
    steps = [StepRecord(n, "s" * 900, n, "completed", NOW, NOW) for n in range(1_200)]
    async with running(harness, configured(otlp.url)) as sink:
        harness.end("j", *steps)
        await eventually(lambda: sink.describe()["exported"] == 1)
    assert len(otlp.requests) >= 3
    assert len(otlp.spans) == len({span.span_id for span in otlp.spans}) == 1_201
    assert all(int(headers["Content-Length"]) < sinks.MAX_BYTES + 10_000 for headers, _ in otlp.requests)


async def test_the_doctor_tries_the_receiver_without_a_span_and_finds_one_that_cannot_be_reached(otlp):
    for encoding, name in (("json", "JSON"), ("protobuf", "protobuf")):
        check = await receivers.inspect_traces(configured(otlp.url, encoding=encoding))
        assert (check.name, check.status) == ("otlp.receiver", "ok")
        assert f"{otlp.url}/v1/traces takes traces as {name}" in check.summary
    assert (len(otlp.requests), otlp.spans) == (2, [])
    assert (await receivers.inspect_traces(Config())).status == "ok"
    port = free_port()
    check = await receivers.inspect_traces(configured(f"http://127.0.0.1:{port}"))
    assert (check.status, check.fix) == ("failure", (f"nc -vz 127.0.0.1 {port}",))


@pytest.mark.parametrize(
    ("status", "words", "fix"),
    [
        (415, "does not take JSON", 'otlp.encoding = "protobuf"'),
        (400, "illegal wireType 7", 'otlp.encoding = "protobuf"'),
        (404, "nothing takes traces at this address", 'otlp.url = "http://127.0.0.1:4318"'),
        (401, "refuses the credentials", "systemctl restart correlator"),
    ],
)
async def test_the_doctor_says_what_to_change_where_the_receiver_refuses(otlp, status, words, fix):
    otlp.answers = [(status, {}, '{"message":"proto: illegal wireType 7"}')]
    check = await receivers.inspect_traces(configured(otlp.url))
    assert check.status == "failure"
    assert words in " ".join([check.summary, *check.detail])
    assert check.fix[-1] == fix
