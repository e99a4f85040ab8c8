"""The answer of a receiver decides whether a request is sent again, and says what an operator has to change."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from correlator.config.schema import Otlp, Tls, TracesUrl, read_headers, request_headers
from correlator.errors import ConfigError
from correlator.sinks import otlp
from correlator.sinks.otlp.receiver import JSON, judge, receiver
from correlator.sinks.receiver import Response, Verdict

SETTINGS = Otlp(url=TracesUrl.parse("http://127.0.0.1:4318/v1/traces"))
PROTOBUF = receiver(replace(SETTINGS, encoding="protobuf")).encoding


def judged(status, body=b"", encoding=JSON):
    return judge(Response(status, body=body), encoding)


MALFORMED_COUNTS: tuple[Any, ...] = (-1, "x", None, [], "9" * 40, 1.5)


@pytest.mark.parametrize(
    ("body", "rejected", "words"),
    [
        *((body, 0, "") for body in (b"", b"{}", b'{"partialSuccess":null}', b"\xff", b"[1]")),
        *(({"rejectedSpans": count, "errorMessage": "too\nold"}, 3, "too\\nold") for count in (3, "3")),
        *(({"rejectedSpans": wrong}, 0, "") for wrong in MALFORMED_COUNTS),
    ],
)
def test_a_success_is_accepted_whatever_it_contains_and_may_name_spans_that_were_rejected(body, rejected, words):
    answer = judged(200, body if isinstance(body, bytes) else json.dumps({"partialSuccess": body}).encode())
    assert (answer.verdict, answer.rejected, answer.words) == (Verdict.ACCEPTED, rejected, words)


def test_what_a_receiver_says_in_protobuf_is_read_and_what_is_none_is_judged_by_its_status():
    reply = ExportTraceServiceResponse()
    reply.partial_success.rejected_spans, reply.partial_success.error_message = 3, "too\nold"
    answer = judged(200, reply.SerializeToString(), PROTOBUF)
    assert (answer.verdict, answer.rejected, answer.words) == (Verdict.ACCEPTED, 3, "too\\nold")
    for status in (b"\x08\x03\x12\x08bad span", b'{"message":"bad span"}'):  # google.rpc.Status: its code and message
        assert judged(400, status, PROTOBUF).words == ": bad span"
    for body in (b"", b"<html>", b"\xff", b"{}"):
        assert judged(200, body, PROTOBUF).verdict is Verdict.ACCEPTED
        assert judged(400, body, PROTOBUF).words == ""


def test_protobuf_without_its_library_is_an_error_that_names_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "correlator.sinks.otlp.protobuf")
    monkeypatch.delattr(otlp, "protobuf")
    monkeypatch.setitem(sys.modules, "opentelemetry.proto.trace.v1.trace_pb2", None)
    with pytest.raises(ConfigError, match=r"otlp\.encoding: protobuf needs .* opentelemetry-proto \(the extra otlp\)"):
        receiver(replace(SETTINGS, encoding="protobuf"))


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (401, "set otlp.headers_file"),
        (404, "set otlp.url"),
        (308, "set otlp.url"),
        (0, "set otlp.url"),
    ],
)
def test_a_receiver_that_refuses_every_request_says_what_to_change(status, advice):
    answer = judged(status, b"<html>")
    assert answer.verdict is Verdict.GONE
    assert advice in answer.words


def test_a_receiver_that_takes_the_other_encoding_only_says_so():
    assert judged(415, b"<html>").words == ": the receiver does not take JSON; set otlp.encoding to protobuf"
    assert judged(415, b"", PROTOBUF).words == ": the receiver does not take protobuf; set otlp.encoding to json"


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("https://host.example/otlp", "https://host.example/otlp/v1/traces"),
        ("https://host.example/api/v1/traces", "https://host.example/api/v1/traces"),
        ("http://[::1]:4318", "http://[::1]:4318/v1/traces"),
    ],
)
def test_the_path_of_traces_is_added_unless_it_is_there(written, url):
    assert TracesUrl.parse(written).reveal() == url


@pytest.mark.parametrize(
    "written",
    ["host:4318", "grpc://h:4317", "http://", "http://u@h", "http://h?x=1", "http://h#x", "http://h:0", 1],
)
def test_a_url_of_another_form_is_an_error(written):
    with pytest.raises(ValueError, match="http://host:4318"):
        TracesUrl.parse(written)


@pytest.mark.parametrize("line", ["no colon", "A: ", "Authorization: x", "Content-Type: x", "A: b\r\nB: c", "Ä: b"])
def test_a_header_that_cannot_be_sent_or_is_a_secret_is_an_error(line):
    with pytest.raises(ValueError, match="headers_file"):
        request_headers([line])


def test_headers_come_from_the_configuration_and_from_a_file(tmp_path):
    file = tmp_path / "headers"
    file.write_text("# of the collector\nAuthorization: Bearer s3cret\n\n  X-Key: a b\n")
    assert read_headers(["X-Scope-OrgID: one"], file) == {
        "X-Scope-OrgID": "one",
        "Authorization": "Bearer s3cret",
        "X-Key": "a b",
    }


@pytest.mark.parametrize("text", ["", "s3cret", "# nothing\n", "Authorization: Bearer s3cret\ns3cret"])
def test_a_file_without_headers_is_an_error_that_does_not_repeat_it(tmp_path, text):
    file = tmp_path / "headers"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_headers([], file)
    assert "otlp.headers_file" in str(error.value)
    assert "s3cret" not in str(error.value)


def test_a_certificate_that_cannot_be_used_is_an_error_with_the_key(tmp_path):
    (tmp_path / "ca.pem").write_text("no certificate")
    settings = Otlp(url=TracesUrl.parse("https://host/v1/traces"), tls=Tls(ca=tmp_path / "ca.pem"))
    with pytest.raises(ConfigError, match=r"otlp\.tls: a file cannot be used"):
        receiver(settings)
