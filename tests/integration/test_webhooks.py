"""The webhook sink against a real HTTP receiver: what arrives, what is tried again, what a bad receiver cannot do."""

import asyncio
import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from correlator.config.loading import load
from correlator.config.schema import Config
from correlator.config.template import Template
from correlator.config.values import Secret
from correlator.config.webhook_values import SigningSecrets, WebhookUrl
from correlator.config.webhooks import Webhook
from correlator.jobs.index import Index
from correlator.jobs.model.changes import Event
from correlator.jobs.model.facts import Kind, Reading
from correlator.jobs.model.rows import JobRecord
from correlator.jobs.outcome import Outcome
from correlator.ops import metrics
from correlator.pipeline.local_hub import LocalHub
from correlator.sinks.http.openapi.specs import openapi
from correlator.sinks.webhooks import signature
from correlator.sinks.webhooks.arrivals import Arrival
from correlator.sinks.webhooks.sink import WebhookSink
from correlator.sinks.webhooks.timings import Timings
from tests.support.certificates import Certificates
from tests.support.eventually import eventually
from tests.support.markdown import blocks
from tests.support.schemas import Shapes
from tests.support.webhook_receiver import Receiver

NOW = 1_758_553_933_000_000
FAST = Timings(retry_base=0.02, retry_cap=0.05, goodbye_within=0.2)
KEY = b"k" * 32


class Harness:
    """A hub that is loaded, and the sink that follows it."""

    def __init__(self, *webhooks: Webhook, restored=(), timings=FAST) -> None:
        self.index = Index()
        self.index.loading = False
        self.hub = LocalHub(self.index)
        self.hub.status.loading = False
        self.sink = WebhookSink(Config(webhooks=webhooks), restored, timings)
        self.times = iter(range(10, 1000))
        self.task: asyncio.Task[None] | None = None

    def job(self, job_id="job-1", status="running", **columns):
        record = JobRecord(job_id, status=status, operation="live", started_at=NOW, **columns)
        self.hub.publish(self.index.apply([Reading(job_id, next(self.times), record, ())], NOW))

    def event(self, number, job_id="job-1", kind=Kind.JOB_STARTED):
        self.hub.publish(Outcome(events=[Event(kind, job_id, NOW, number)]))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.task = asyncio.create_task(self.sink.run(self.hub))
        await asyncio.sleep(0)
        try:
            yield
        finally:
            self.task.cancel()
            await asyncio.wait({self.task})

    def state(self, name="w") -> Any:
        return self.sink.describe()["receivers"][name]


def webhook(receiver: Receiver | None, **settings: Any) -> Webhook:
    url = WebhookUrl(receiver.url if receiver is not None else settings.pop("url"))
    return Webhook(**{"name": "w", "url": url, "allow_private": True, **settings})


def dropped(reason, name="w"):
    return metrics.WEBHOOK_EVENTS_DROPPED.labels(name, reason)._value.get()


@pytest.fixture
async def receiver():
    async with Receiver() as running:
        yield running


async def test_an_event_arrives_signed_as_a_cloud_event(receiver):
    harness = Harness(webhook(receiver, secret=SigningSecrets((KEY,)), authorization=Secret("Bearer t")))
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
    assert abs(sent - time.time()) < 60
    assert got.headers["webhook-signature"] == signature.headers([KEY], got.id, sent, got.body)["webhook-signature"]
    assert harness.sink.pending() == {}


async def test_a_receiver_that_fails_gets_the_same_id_again_and_the_events_of_a_job_in_order(receiver):
    receiver.statuses = [503, 500, 429, 302]
    harness = Harness(webhook(receiver))
    async with harness.running():
        harness.job()
        for number in range(3):
            harness.event(number)
        await receiver.requests(7)
        assert [receiver.requested[n].id for n in range(4)] == [receiver.requested[4].id] * 4
        assert len({one.id for one in receiver.requested}) == 3
        assert [json.loads(one.body)["id"] for one in receiver.accepted] == [
            signature.message_id(Event(Kind.JOB_STARTED, "job-1", NOW, n)) for n in range(3)
        ]
        assert receiver.elsewhere == 0, "a redirect is not followed"
        await eventually(lambda: harness.state() == {"ok": True, "pending": 0, "disabled": False, "error": None})


async def test_filters_choose_by_kind_operation_and_status(receiver):
    harness = Harness(
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


async def test_410_disables_the_webhook_until_a_reload(receiver):
    receiver.statuses = [410]
    wanted = webhook(receiver)
    harness = Harness(wanted)
    before = dropped("gone")
    async with harness.running():
        harness.job()
        harness.event(1)
        await eventually(lambda: harness.state()["disabled"])
        harness.event(2)
        await eventually(lambda: dropped("gone") - before == 2)
        assert harness.sink.pending() == {}
        harness.sink.prepare(Config(webhooks=(wanted,)))()
        harness.event(3)
        await receiver.requests(2)
        await eventually(lambda: harness.state()["ok"])


async def test_what_a_run_leaves_is_sent_by_the_next_one_with_the_same_id_and_body(receiver):
    receiver.statuses = [503] * 1000
    first = Harness(webhook(receiver))
    async with first.running():
        first.job()
        for number in range(5):
            first.event(number)
        await receiver.requests(2)
        left = first.sink.pending()
    assert len(left) == 5
    receiver.statuses = []
    receiver.requested.clear()
    second = Harness(webhook(receiver), restored=list(left.values()))
    async with second.running():
        await receiver.requests(5)
        await eventually(lambda: second.sink.pending() == {})
    assert [one.body for one in receiver.accepted] == [body for _, body in left.values()]
    assert [json.loads(one.body)["data"]["job_id"] for one in receiver.accepted] == ["job-1"] * 5


async def test_events_of_a_webhook_that_was_removed_meanwhile_are_dropped_with_one_line(receiver, caplog):
    first = Harness(webhook(None, url="https://h/x", name="left"))
    first.job()
    for number in range(3):
        first.sink._queue(Arrival(number, Event(Kind.JOB_STARTED, "job-1", NOW, number), time.monotonic()), None)
    second = Harness(webhook(receiver), restored=first.sink.pending().values())
    assert second.sink.pending() == {}
    assert dropped("removed", "left") == 3
    assert [record.message for record in caplog.records] == [
        "webhook left is not configured any more: 3 events of the last run are dropped"
    ]


async def test_an_event_without_a_body_survives_a_restart_too(receiver):
    first = Harness(webhook(receiver))
    first.hub.subscribe(lambda batch: first.sink._on_batch(first.hub, batch))
    first.job()
    first.event(1)
    left = first.sink.pending()
    assert [body for _, body in left.values()] == [b""]
    second = Harness(webhook(receiver), restored=left.values())
    async with second.running():
        second.job()
        (got,) = await receiver.requests(1)
    assert json.loads(got.body)["data"]["job_id"] == "job-1"


async def test_a_slow_receiver_delays_no_other_one(receiver):
    async with Receiver() as slow:
        slow.silent = True
        harness = Harness(webhook(slow, name="slow", timeout=1.0), webhook(receiver))
        async with harness.running():
            for number in range(50):
                harness.job(f"job-{number}")
                harness.event(number, f"job-{number}")
            await receiver.requests(50)
            assert slow.accepted == []
            await eventually(lambda: harness.state("slow")["error"] == "no response within 1 s")


@pytest.mark.parametrize("reply", ["endless headers", "endless body", "garbage", "closed"])
async def test_a_hostile_response_ends_within_the_deadline_and_is_tried_again(reply):
    async with Receiver() as hostile:
        hostile.hostile = reply
        harness = Harness(webhook(hostile, timeout=1.0))
        async with harness.running():
            harness.job()
            harness.event(1)
            await eventually(lambda: harness.state()["error"])
            hostile.hostile = ""
            await eventually(lambda: harness.sink.pending() == {})


def is_refused(harness: Harness) -> bool:
    return "allow_private" in (harness.state()["error"] or "")


async def test_an_unwanted_address_is_refused_at_the_connection_even_behind_a_name(receiver):
    by_name = receiver.url.replace("127.0.0.1", "localhost")
    for url in (receiver.url, by_name):
        harness = Harness(webhook(None, url=url, allow_private=False))
        async with harness.running():
            harness.job()
            harness.event(1)
            await eventually(partial(is_refused, harness))
    assert receiver.requested == []


async def test_a_receiver_with_a_wrong_certificate_gets_no_request(tmp_path):
    authority = Certificates.create(tmp_path / "ca")
    authority.make("receiver", "IP:127.0.0.1")
    async with Receiver(tls=authority.server("receiver")) as trusted:
        harness = Harness(webhook(trusted, name="stranger"), webhook(trusted, ca=authority.ca))
        async with harness.running():
            harness.job()
            harness.event(1)
            await eventually(lambda: "certificate" in (harness.state("stranger")["error"] or ""))
            await trusted.requests(1)
            await eventually(lambda: harness.state()["pending"] == 0)
            assert len(trusted.requested) == 1


async def test_a_name_server_that_hangs_holds_one_thread_and_no_task(receiver, monkeypatch):
    asked, answers = [], threading.Event()

    def hang(*arguments: Any) -> Any:
        asked.append(arguments)
        answers.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "again")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    harness = Harness(webhook(None, url="https://receiver.invalid/x", name="hangs", timeout=1.0), webhook(receiver))
    async with harness.running():
        for number in range(4):
            harness.job(f"job-{number}")
            harness.event(number, f"job-{number}")
        await receiver.requests(4)
        away = metrics.WEBHOOK_REQUESTS.labels("hangs", "away")
        await eventually(lambda: away._value.get() >= 2)
        assert len(asked) == 1
        answers.set()
        await eventually(lambda: "cannot be resolved: again" in (harness.state("hangs")["error"] or ""))


async def test_a_reload_adds_changes_and_removes_webhooks_while_the_others_go_on(receiver):
    async with Receiver() as other:
        other.statuses = [503] * 1000
        harness = Harness(webhook(receiver), webhook(other, name="leaves"))
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


@pytest.fixture
def recipes(receiver, tmp_path):
    """The recipes of docs/webhooks.md by name, with the receiver of this test."""
    (tmp_path / "url").write_text(receiver.url)
    (tmp_path / "authorization").write_text("Bearer token\n")
    found: dict[str, Webhook] = {}
    for block in blocks("docs/webhooks.md"):
        if block.language == "toml" and block.section == "Recipes":
            text = re.sub(r'"/etc/correlator/webhook-\w+-(\w+)"', rf'"{tmp_path}/\1"', block.text)
            text = re.sub(r'^url = ".*"', f'url = "{receiver.url}"', text, flags=re.MULTILINE)
            text = text.replace("allow_private = true\n", "").replace("\nname", "\nallow_private = true\nname")
            (tmp_path / "recipe.toml").write_text(text)
            found |= {one.name: one for one in load(tmp_path / "recipe.toml", {"HOME": str(tmp_path)}).webhooks}
    return found


async def test_the_recipes_send_what_a_chat_alertmanager_and_a_ticket_system_take(receiver, recipes):
    assert set(recipes) == {"chat", "alerts", "alerts-end", "tickets"}
    kinds = {
        "chat": Kind.JOB_FAILED,
        "alerts": Kind.JOB_STALLED,
        "alerts-end": Kind.JOB_RECOVERED,
        "tickets": Kind.JOB_FAILED,
    }
    sent: dict[str, Any] = {}
    for name, kind in kinds.items():
        harness = Harness(recipes[name])
        receiver.requested.clear()
        async with harness.running():
            harness.job(status="failed", error_message="disk <!channel> full", metadata='{"vm_name": "db-1"}')
            harness.event(1, kind=kind)
            (request,) = await receiver.requests(1)
        assert request.headers["Content-Type"] == "application/json"
        sent[name] = json.loads(request.body)
        if name == "tickets":
            assert request.headers["Authorization"] == "Bearer token"
            assert sent[name]["external_id"] == request.id
    assert sent["chat"]["text"] == "job.failed: live"
    assert [block["type"] for block in sent["chat"]["blocks"]] == ["header", "section", "context"]
    assert sent["chat"]["blocks"][1]["text"] == {"type": "plain_text", "text": "live on db-1: disk <!channel> full"}
    (raised,), (ended,) = sent["alerts"], sent["alerts-end"]
    assert raised["labels"] == ended["labels"], "an alert is known by its labels"
    assert all(isinstance(text, str) for one in (raised["labels"], raised["annotations"]) for text in one.values())
    assert (raised["startsAt"], ended["endsAt"]) == ("2025-09-22T15:12:13.000000Z",) * 2
    assert sent["tickets"]["title"] == "live failed on db-1"
    assert sent["tickets"]["custom"]["ids"] == []


async def test_a_stop_waits_for_requests_in_flight_so_that_none_is_repeated(receiver):
    receiver.delay = 0.05
    harness = Harness(webhook(receiver), timings=Timings())
    async with harness.running():
        harness.job()
        harness.event(1)
        await receiver.requests(1)
    assert harness.sink.pending() == {}
