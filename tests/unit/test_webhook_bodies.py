"""What a webhook sends: the signature, the ID, the CloudEvent, the template, and what is stored of it."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from correlator.config.webhooks import Authorization, SigningSecrets, Template, Webhook, WebhookUrl
from correlator.model.facts import Kind, Status
from correlator.model.published import Event, JobView, PublishedJob
from correlator.model.rows import StepRecord
from correlator.sinks.webhooks import (
    MAX_BODY,
    MAX_NOTED,
    Bodies,
    NotedEvents,
    repeats_a_secret,
    webhook_headers,
    webhook_id,
)
from tests.support.there import there

NOW = 1_758_553_933_000_000
FAILED = Event(Kind.JOB_FAILED, "job-1", NOW, 17, error="disk <full>")
VIEW = JobView("job-1", Status.FAILED, operation="live", error="disk <full>", started_at=NOW, ended_at=NOW + 5_000_000)
SHOWN = PublishedJob(VIEW, 3, NOW)
BODIES = Bodies("site 1/a", "https://correlator.example/i/dc1")


def made(event=FAILED, shown: PublishedJob | None = SHOWN, body=None):
    encoded = there(BODIES.make(event, shown, None if body is None else Template(json.dumps(body))))
    return json.loads(encoded)


def test_the_signature_is_that_of_the_published_example_and_both_sign_during_a_rotation():
    body = b'{"test": 2432232314}'
    other = f"whsec_{base64.b64encode(bytes([1]) * 32).decode()}"
    keys = SigningSecrets(f"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw  # of today\n{other}\n").keys

    def made(keys):
        return webhook_headers(keys, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)

    example = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    unsigned = {"webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek", "webhook-timestamp": "1614265330"}
    assert made(keys[:1]) == {**unsigned, "webhook-signature": example}
    assert made(keys)["webhook-signature"] == f"{example} {made(keys[1:])['webhook-signature']}"
    assert made([]) == unsigned


def test_the_id_of_an_event_is_the_same_when_it_is_found_again_and_no_other_event_has_it():
    again = Event(Kind.JOB_FAILED, "job-1", NOW, 17, error="another text")
    others = [
        *(Event(Kind.JOB_FAILED, job_id, NOW, number) for job_id, number in (("job-2", 17), ("job-1", 18))),
        *(Event(Kind.JOB_FAILED, "job-1", at) for at in (NOW, NOW + 1)),
        *(Event(Kind.STEP_FAILED, "job-1", NOW, None, step) for step in (1, 2)),
        Event(Kind.JOB_STARTED, "job-1", NOW, 17),
    ]
    identifier = webhook_id(FAILED)
    assert (webhook_id(again), "." in identifier) == (identifier, False)
    assert len({identifier, *map(webhook_id, others)}) == 8


def test_the_body_is_a_cloud_event_with_the_document_of_the_job_if_it_is_known():
    event = made()
    document = event.pop("data")
    assert (document["job_id"], document["status"], document["error"]) == ("job-1", "failed", "disk <full>")
    assert "steps" in document
    assert event == {
        "specversion": "1.0",
        "id": webhook_id(FAILED),
        "source": "/correlator/site%201%2Fa",
        "type": "correlator.job.failed",
        "subject": "job-1",
        "time": "2025-09-22T15:12:13.000000Z",
        "datacontenttype": "application/json",
    }
    event = made(Event(Kind.STEP_FAILED, "job-1", NOW, 18, 4, "copy"), None)
    assert (event["type"], event["stepid"], event["stepname"]) == ("correlator.step.failed", "4", "copy")
    assert event["data"] is None


def test_a_body_that_would_be_too_large_loses_its_long_members_and_says_so():
    steps = tuple(StepRecord(n, f"step {n}", n, "completed", NOW, NOW) for n in range(201))
    view = JobView("job-1", Status.FAILED, steps=steps, metadata=json.dumps({"x": "m" * MAX_BODY}), error="e")
    event = made(shown=PublishedJob(view, 3, NOW))
    assert event["datacut"] == "steps metadata"
    assert (event["data"]["steps"], event["data"]["metadata"], event["data"]["error"]) == ({}, {}, "e")
    assert event["data"]["progress"]["steps_done"] == 201
    repeated = Template(json.dumps(["{{job.job_id}}"] * 900))
    assert BODIES.make(FAILED, PublishedJob(JobView("j" * 1000, Status.FAILED), 1, NOW), repeated) is None


def test_the_attributes_of_a_cloud_event_hold_only_characters_that_its_type_system_has():
    noncharacters = [*range(0xFDD0, 0xFDF0), *(plane << 16 | end for plane in range(17) for end in (0xFFFE, 0xFFFF))]
    event = Event(
        Kind.STEP_FAILED, "legacy\x00\n\x85", NOW, 1, 1, "copy\x1b[2J\ud800" + "".join(map(chr, noncharacters))
    )
    cloud_event = made(event, None)
    assert cloud_event["subject"] == "legacy\\x00\\n\\u0085"
    assert cloud_event["stepname"].startswith("copy\\x1b[2J\\ud800\\ufdd0")
    assert cloud_event["stepname"].isascii()


# The template


def test_a_placeholder_alone_is_a_value_and_inside_of_text_it_is_text():
    body = {
        "terminal": "{{job.terminal}}",
        "progress": "{{ job.progress.steps_done }}",
        "text": "{{event.kind}}: {{job.operation}} {{job.warnings}} {{job.terminal}}{{job.owner}}",
        "owner": "{{job.owner}}",
        "nobody": "{{job.owner|nobody}}",
        "short": "{{job.error:5}}",
        "list": ["{{job.external_ids}}", 1, None, "a {b}"],
    }
    assert made(body=body) == {
        "terminal": True,
        "progress": 0,
        "text": "job.failed: live 0 true",
        "owner": None,
        "nobody": "nobody",
        "short": "disk…",
        "list": [[], 1, None, "a {b}"],
    }


def test_a_link_leads_to_the_job_on_the_page_whatever_its_id_is():
    for job_id, written in (
        ("job-1", "job-1"),
        ("a/b <!x>|\n#ü", "a%2Fb%20%3C%21x%3E%7C%0A%23%C3%BC"),
        ("\ud800", "%3F"),
    ):
        event = Event(Kind.JOB_FAILED, job_id, NOW, 17)
        assert made(event, None, ["{{url}}"]) == [f"https://correlator.example/i/dc1/#/jobs/{written}"]
    assert Bodies("a", None).make(FAILED, SHOWN, Template('["{{url}}", "{{url|no page}}"]')) == b'[null,"no page"]'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a": {{job.status}}}', "not JSON"),
        ('{"a": NaN}', "not JSON"),
        ('["{{job.stauts}}"]', "did you mean job.status?"),
        ('["{{job}}"]', "known are job.job_id"),
        ('["{{jobs.status}}"]', "known are id, source, type, time, url, event, job"),
        ('["{{id.x}}"]', "did you mean id?"),
        ('["{{job.status!}}"]', "is none"),
        ("[" * 40 + "]" * 40, "32 levels"),
        ("[" * 5000 + "]" * 5000, "a JSON text"),
        (json.dumps("x" * 16_384), "16384 bytes"),
    ],
)
def test_a_template_that_is_wrong_is_refused_with_what_would_be_right(text, why):
    with pytest.raises(ValueError, match="a JSON text") as error:
        Template(text)
    assert why in str(error.value)


@given(st.text(), st.text(max_size=40))
def test_any_text_in_any_template_is_a_text_and_changes_nothing_around_it(error, around):
    try:
        template = Template(json.dumps({"x": f"{around}{{{{job.error}}}}"}))
    except ValueError:
        return
    encoded = there(BODIES.make(FAILED, PublishedJob(JobView("j", Status.FAILED, error=error), 1, NOW), template))
    assert json.loads(encoded) == {"x": around + error}


# The response


SECRET_BODY = Template('{"routing_key": "R0UT1NGKEY/3f7b2", "text": "{{job.error}}", "type": "section"}')
WEBHOOK = Webhook(
    name="w",
    url=WebhookUrl("https://chat.example/hooks/T0K3N%2BX0?key=s3cr3tkey"),
    authorization=Authorization("Bearer AUTH0123456789"),
    body=SECRET_BODY,
)


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("Cannot POST /hooks/T0K3N%2BX0?key=s3cr3tkey", True),
        ('no hook t0k3n+x0 of {"query": {}}', True),
        ("Authorization: Bearer AUTH01234567", True),
        (r'{"routing_key": "R0UT1NGKEY\/3f7b2"}', True),
        ("Bearer token missing; a section is invalid", False),
        ("invalid_payload", False),
    ],
)
def test_a_response_that_repeats_a_secret_is_recognised_also_if_it_is_escaped(text, repeats):
    assert repeats_a_secret(WEBHOOK, text) is repeats


# What has arrived, and what is stored


def test_an_event_waits_for_its_job_to_be_published_and_so_do_the_later_ones_of_this_job():
    noted = NotedEvents()
    other = Event(Kind.JOB_STARTED, "job-2", NOW, 19)
    noted.add(1, FAILED, 0.0, None)
    noted.add(2, FAILED, 0.0, SHOWN)
    noted.add(3, other, 0.0, SHOWN)
    assert [a.number for a in iter(lambda: noted.pop_next(1.0), None)] == [3]
    noted.published("job-1")
    assert [a.number for a in iter(lambda: noted.pop_next(1.0), None)] == [1, 2]
    noted.add(4, FAILED, 10.0, None)
    due = noted.due()
    assert due == 15.0
    assert noted.pop_next(14.9) is None
    assert noted.pop_next(due) is not None
    assert (len(noted), noted.due()) == (0, None)


def test_noted_events_are_bounded_in_number_and_in_what_they_keep_alive():
    noted = NotedEvents()
    dropped = [d.number for n in range(MAX_NOTED + 5) for d in noted.add(n, FAILED, 0.0, SHOWN if n % 2 else None)]
    assert (dropped, len(noted)) == ([0, 1, 2, 3, 4], MAX_NOTED)
    steps = (StepRecord(1, "s", 1, "running", NOW),) * 10_000
    large = PublishedJob(JobView("job-3", Status.RUNNING, steps=steps), 1, NOW)
    noted = NotedEvents()
    for _ in range(2):
        for n in range(100):
            noted.add(n, Event(Kind.JOB_STARTED, "job-3", NOW, n), 0.0, large)
        popped = list(iter(lambda: noted.pop_next(0.0), None))
        assert (len(popped), sum(a.shown is large for a in popped)) == (100, 20)
