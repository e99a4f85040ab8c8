"""The answer of a receiver decides whether a request is sent again, and says what an operator has to change."""

from __future__ import annotations

import json

import pytest

from correlator.config.otlp import Otlp, read_headers, request_headers, traces_url
from correlator.config.tls import Tls
from correlator.errors import ConfigError, CorrelatorError
from correlator.sinks.otlp.receiver import MAX_RETRY_AFTER, TraceVerdict, judge, receiver

AT = 1_758_553_933.0


def judged(status, body=b"", **headers):
    return judge(status, {name.replace("_", "-"): value for name, value in headers.items()}, body, lambda: AT)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"partialSuccess":{}}', b'{"partialSuccess":null}', b"\xff", b"[1]"])
def test_a_success_is_accepted_whatever_it_contains(body):
    answer = judged(200, body)
    assert (answer.verdict, answer.rejected, answer.words) == (TraceVerdict.ACCEPTED, 0, "")


@pytest.mark.parametrize("count", [3, "3"])
def test_a_partial_success_names_the_spans_that_were_rejected(count):
    body = json.dumps({"partialSuccess": {"rejectedSpans": count, "errorMessage": "too\nold"}}).encode()
    answer = judged(200, body)
    assert (answer.verdict, answer.rejected, answer.words) == (TraceVerdict.ACCEPTED, 3, "too\\nold")


@pytest.mark.parametrize("count", [-1, "x", None, [], "9" * 40, 1.5])
def test_a_malformed_count_rejects_nothing(count):
    assert judged(200, json.dumps({"partialSuccess": {"rejectedSpans": count}}).encode()).rejected == 0


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_overload_and_gateways_mean_again(status):
    answer = judged(status, b'{"message":"busy"}')
    assert (answer.verdict, answer.retry_after) == (TraceVerdict.AGAIN, None)
    assert answer.words.startswith(f"HTTP {status} ")
    assert answer.words.endswith(": busy")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("999999", MAX_RETRY_AFTER),
        ("Mon, 22 Sep 2025 15:12:43 GMT", 30.0),
        ("Mon, 22 Sep 2025 15:00:00 GMT", 0.0),
        ("soon", None),
        ("-3", None),
        ("Mon, 22 Sep 99999 15:12:43 GMT", None),
    ],
)
def test_retry_after_is_a_number_of_seconds_or_a_date_within_bounds(value, seconds):
    assert judged(503, Retry_After=value).retry_after == seconds


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (415, "only protobuf; set otlp.url to an OpenTelemetry Collector"),
        (401, "set otlp.headers_file"),
        (403, "set otlp.headers_file"),
        (404, "set otlp.url"),
        (405, "set otlp.url"),
        (308, "set otlp.url"),
        (101, "set otlp.url"),
        (0, "set otlp.url"),
    ],
)
def test_a_receiver_that_refuses_every_request_says_what_to_change(status, advice):
    answer = judged(status, b"<html>")
    assert answer.verdict is TraceVerdict.MISPLACED
    assert advice in answer.words


@pytest.mark.parametrize("status", [400, 413, 422, 500, 501, 599])
def test_any_other_error_is_not_sent_again_as_the_specification_says(status):
    assert judged(status).verdict is TraceVerdict.REFUSED


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("http://127.0.0.1:4318/", "http://127.0.0.1:4318/v1/traces"),
        ("https://host.example/otlp", "https://host.example/otlp/v1/traces"),
        ("https://host.example/api/v1/traces", "https://host.example/api/v1/traces"),
        ("http://[::1]:4318", "http://[::1]:4318/v1/traces"),
        ("", None),
    ],
)
def test_the_path_of_traces_is_added_unless_it_is_there(written, url):
    assert traces_url(written) == url


@pytest.mark.parametrize(
    "written",
    ["host:4318", "grpc://host:4317", "http://", "http://user@host", "http://h?x=1", "http://h#x", "http://h:0", 1],
)
def test_a_url_of_another_form_is_an_error(written):
    with pytest.raises(ValueError, match="http://host:4318"):
        traces_url(written)


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
    settings = Otlp(url="https://host/v1/traces", tls=Tls(ca=tmp_path / "ca.pem"))
    with pytest.raises(CorrelatorError, match=r"otlp\.tls: cannot be used"):
        receiver(settings)
