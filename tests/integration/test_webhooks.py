"""The webhook sink against a real HTTP receiver: what arrives, what is tried again, what a bad receiver cannot do."""

import asyncio
import base64
import json
import socket
import threading
import time
from functools import partial
from typing import Any

import pytest

from correlator.config.schema import Config
from correlator.config.webhooks import Authorization, SigningSecrets, Template
from correlator.model.facts import Kind
from correlator.model.published import Event
from correlator.ops import metrics
from correlator.sinks.http.openapi import openapi
from correlator.sinks.webhooks import StoredEvent, WebhookTimings, webhook_headers
from tests.support.eventually import PATIENCE, eventually
from tests.support.metric_values import value
from tests.support.names import give_addresses
from tests.support.pipeline_harness import NOW
from tests.support.saved_index import kept
from tests.support.schemas import Shapes
from tests.support.servers import free_port
from tests.support.webhook_harness import WebhookHarness, dropped, recipes, saved, webhook
from tests.support.webhook_receiver import Receiver

KEY = b"k" * 32


@pytest.fixture
async def receiver():
    async with Receiver() as running:
        yield running


async def test_an_event_arrives_signed_as_a_cloud_event(receiver):
    secret = SigningSecrets(f"whsec_{base64.b64encode(KEY).decode()}")
    harness = WebhookHarness(webhook(receiver, secret=secret, authorization=Authorization("Bearer t")))
    began = int(time.time())
    async with harness.running():
        harness.job()
        harness.event(7)
        (got,) = await receiver.requests(1)
    assert got.headers["Content-Type"] == "application/cloudevents+json"
    assert got.headers["Authorization"] == "Bearer t"
    event = json.loads(got.body)
    assert Shapes(openapi()).wrong("CloudEvent", event) == []
    assert (event["id"], event["type"], event["data"]["job_id"]) == (got.id, "correlator.job.started", "job-1")
    sent = int(got.headers["webhook-timestamp"])
    assert began <= sent <= time.time()
    assert got.headers["webhook-signature"] == webhook_headers([KEY], got.id, sent, got.body)["webhook-signature"]
    assert kept(harness.event_log) == {}


async def test_filters_choose_by_kind_operation_and_status(receiver):
    harness = WebhookHarness(
        webhook(receiver, events=("job.failed", "step.*"), operations=("live",), statuses=("failed",)),
    )
    async with harness.running():
        harness.job("runs")
        harness.job("failed", "failed")
        harness.job("other", "failed", job_type="x")
        harness.event(1, "runs", Kind.JOB_FAILED)
        harness.event(2, "failed", Kind.JOB_STARTED)
        harness.event(3, "failed", Kind.JOB_FAILED)
        harness.event(4, "failed", Kind.STEP_FAILED)
        await receiver.requests(2)
    assert [json.loads(one.body)["type"] for one in receiver.accepted] == [
        "correlator.job.failed",
        "correlator.step.failed",
    ]


async def test_a_slow_receiver_delays_no_other_one(receiver):
    async with Receiver() as slow:
        slow.silent = True
        harness = WebhookHarness(webhook(slow, name="slow", timeout=1.0), webhook(receiver))
        async with harness.running():
            for number in range(50):
                harness.job(f"job-{number}")
                harness.event(number, f"job-{number}")
            await receiver.requests(50)
            assert slow.accepted == []
            await eventually(lambda: harness.state("slow")["error"] == "no response within 1 s")


def is_refused(harness: WebhookHarness) -> bool:
    return "allow_private" in (harness.state()["error"] or "")


async def test_neither_log_nor_readiness_repeats_what_a_receiver_echoes(receiver, caplog):
    receiver.echoes = True
    body = Template('{"key": "R0UT1NGKEY012345"}')
    harness = WebhookHarness(webhook(receiver, authorization=Authorization("Bearer AUTH0123456789"), body=body))
    async with harness.running():
        harness.job()
        harness.event(1)
        await eventually(lambda: harness.state()["error"] == "HTTP 503 Service Unavailable")
    assert 'HTTP 503 Service Unavailable, "(the response repeats what was sent, and is not shown)' in caplog.text
    assert not any(secret in caplog.text for secret in ("R0UT1NGKEY", "AUTH01234"))


async def test_an_unwanted_address_is_refused_at_the_connection_even_behind_a_name(receiver):
    by_name = receiver.url.replace("127.0.0.1", "localhost")
    for url in (receiver.url, by_name):
        harness = WebhookHarness(webhook(None, url=url, allow_private=False))
        async with harness.running():
            harness.job()
            harness.event(1)
            await eventually(partial(is_refused, harness))
    assert receiver.requested == []


@pytest.mark.parametrize(
    ("addresses", "allow_private", "words"),
    [
        (("127.0.0.1", "::1"), False, "it has an address that is not allowed (allow_private);"),
        (("169.254.169.254", "::1"), False, "it has an address that is not allowed (allow_private);"),
        (("169.254.169.254", "127.0.0.2"), True, "it has an address that is not allowed;"),
        (("127.0.0.2", "127.0.0.3"), True, "the receiver cannot be reached;"),
        (("169.254.169.254", "127.0.0.1"), True, None),
    ],
)
async def test_readiness_names_an_unwanted_address_among_several_of_a_name(
    receiver, monkeypatch, addresses, allow_private, words
):
    give_addresses(monkeypatch, "receiver.example", *addresses)
    url = receiver.url.replace("127.0.0.1", "receiver.example")
    harness = WebhookHarness(webhook(None, url=url, allow_private=allow_private))
    async with harness.running():
        harness.job()
        harness.event(1)
        if words is None:
            await receiver.requests(1)
        else:
            await eventually(lambda: words in (harness.state()["error"] or ""))
            assert receiver.requested == []


async def test_a_name_server_that_hangs_holds_one_thread_and_no_task(receiver, monkeypatch):
    asked, answers = [], threading.Event()

    def hang(*arguments: Any) -> Any:
        asked.append(arguments)
        answers.wait(PATIENCE)
        raise socket.gaierror(socket.EAI_AGAIN, "again")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    harness = WebhookHarness(
        webhook(None, url="https://receiver.invalid/x", name="hangs", timeout=1.0), webhook(receiver)
    )
    async with harness.running():
        for number in range(4):
            harness.job(f"job-{number}")
            harness.event(number, f"job-{number}")
        await receiver.requests(4)
        away = metrics.WEBHOOK_REQUESTS.labels("hangs", "away")
        await eventually(lambda: value(away) >= 2)
        assert len(asked) == 1
        answers.set()
        await eventually(lambda: "cannot be resolved" in (harness.state("hangs")["error"] or ""))


async def test_the_recipes_send_what_a_chat_and_a_ticket_system_take(receiver, tmp_path):
    found = recipes(tmp_path, receiver.url)
    assert set(found) == {"chat", "alerts", "alerts-end", "tickets"}  # an Alertmanager takes two of them
    sent: dict[str, Any] = {}
    for name in ("chat", "tickets"):
        harness = WebhookHarness(found[name])
        receiver.requested.clear()
        async with harness.running():
            harness.job(status="failed", error_message="disk <!channel> full", metadata='{"vm_name": "db-1"}')
            harness.event(1, kind=Kind.JOB_FAILED)
            (request,) = await receiver.requests(1)
        assert request.headers["Content-Type"] == "application/json"
        sent[name] = json.loads(request.body)
        if name == "tickets":
            assert request.headers["Authorization"] == "Bearer token"
            assert sent[name]["external_id"] == request.id
    url = "https://correlator.example/#/jobs/job-1"
    assert sent["chat"]["text"] == f"job.failed {url}", "it is no plain_text: a text of the job could notify a channel"
    assert [block["type"] for block in sent["chat"]["blocks"]] == ["header", "section", "context"]
    assert sent["chat"]["blocks"][1]["text"] == {"type": "plain_text", "text": "live on db-1: disk <!channel> full"}
    assert sent["chat"]["blocks"][2]["elements"][0] == {"type": "mrkdwn", "text": f"<{url}|Open the job>"}
    assert sent["tickets"]["title"] == "live failed on db-1"
    assert (sent["tickets"]["custom"]["ids"], sent["tickets"]["custom"]["url"]) == ([], url)


async def test_a_receiver_that_refuses_an_event_is_not_too_slow(receiver, caplog):
    receiver.statuses = [400] * 1_000
    harness = WebhookHarness(webhook(receiver), timings=WebhookTimings(retry_base=0.01, retry_cap=0.05, late_after=0.1))
    async with harness.running():
        harness.job()
        harness.event(1)
        await receiver.requests(10)
        receiver.statuses = []
        await eventually(lambda: harness.state() == {"ok": True, "pending": 0, "disabled": False, "error": None})
    assert "too slow" not in caplog.text


# Restarts, reloads, and a receiver that wants no more events


async def test_410_disables_the_webhook_until_a_reload(receiver):
    receiver.statuses = [410]
    wanted = webhook(receiver)
    harness = WebhookHarness(wanted)
    before = dropped("gone")
    async with harness.running():
        harness.job()
        harness.event(1)
        await eventually(lambda: harness.state()["disabled"])
        harness.event(2)
        await eventually(lambda: dropped("gone") - before == 2)
        assert kept(harness.event_log) == {}
        harness.sink.prepare(Config(webhooks=(wanted,)))()
        harness.event(3)
        await receiver.requests(2)
        await eventually(lambda: harness.state()["ok"])


async def test_events_of_a_webhook_that_was_removed_meanwhile_are_dropped_with_one_line(receiver, caplog):
    away = f"http://127.0.0.1:{free_port()}/x"
    first = WebhookHarness(webhook(None, url=away, name="left"))
    async with first.running():
        first.job()
        for number in range(3):
            first.event(number)
        await eventually(lambda: [bool(body) for _, _, body in kept(first.event_log).values()] == [True] * 3)
    caplog.clear()
    second = WebhookHarness(webhook(receiver), restored=kept(first.event_log).values())
    assert kept(second.event_log) == {}
    assert dropped("removed", "left") == 3
    assert [record.message for record in caplog.records] == [
        "webhook left is not configured any more: 3 events of the last run are dropped"
    ]


async def test_an_event_without_a_body_survives_a_restart_and_waits_until_its_job_is_published(receiver):
    first = WebhookHarness(webhook(receiver))
    first.hub.status.loading = True
    async with first.running():
        await asyncio.sleep(0)  # The sink has subscribed.
        first.event(1)
        left = [*kept(first.event_log).values()]
    assert [body for _, _, body in left] == [b""]
    left.insert(0, saved(StoredEvent(Event(Kind.JOB_STARTED, "job-1", NOW, 0), time.time() - 60)))
    second = WebhookHarness(webhook(receiver, operations=("live",)), restored=left)
    second.hub.status.loading = True
    async with second.running():
        for _ in range(10):
            await asyncio.sleep(0)
        second.job()
        second.hub.status.loading = False
        got = await receiver.requests(2)
    assert [json.loads(one.body)["data"]["job_id"] for one in got] == ["job-1"] * 2


async def test_a_reload_adds_changes_and_removes_webhooks_while_the_others_go_on(receiver):
    async with Receiver() as other:
        other.statuses = [503] * 1000
        harness = WebhookHarness(webhook(receiver), webhook(other, name="leaves"))
        before = dropped("removed", "leaves")
        async with harness.running():
            harness.job()
            harness.event(1)
            await other.requests(1)
            template = Template('{"text": "{{event.kind}}"}')
            other.statuses = []
            other.requested.clear()
            harness.sink.prepare(Config(webhooks=(webhook(receiver, body=template), webhook(other, name="new"))))()
            assert dropped("removed", "leaves") - before == 1
            harness.event(2)
            await receiver.requests(2)
            # A request of the removed webhook may have been on its way.
            second = receiver.requested[1].id
            await eventually(lambda: second in [json.loads(one.body)["id"] for one in other.requested])
            assert json.loads(receiver.requested[1].body) == {"text": "job.started"}
            assert receiver.requested[1].headers["Content-Type"] == "application/json"
            harness.sink.prepare(Config())()
            assert "webhooks" not in harness.hub.readiness
