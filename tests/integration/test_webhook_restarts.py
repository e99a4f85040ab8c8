"""The webhook sink over restarts, reloads and a receiver that wants no more events: what is sent afterwards."""

import asyncio
import json
import time

import pytest

from correlator.config.schema import Config
from correlator.config.webhook_template import Template
from correlator.model.facts import Kind
from correlator.model.published import Event
from correlator.sinks.webhooks.deliveries import StoredDelivery, StoredEvent
from correlator.sinks.webhooks.sink import NotedEvent
from tests.support.eventually import eventually
from tests.support.webhook_harness import NOW, WebhookHarness, answers, dropped, saved, webhook
from tests.support.webhook_receiver import Receiver


@pytest.fixture
async def receiver():
    async with Receiver() as running:
        yield running


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
        assert harness.event_log.stored() == {}
        harness.sink.prepare(Config(webhooks=(wanted,)))()
        harness.event(3)
        await receiver.requests(2)
        await eventually(lambda: harness.state()["ok"])


async def test_what_was_in_flight_at_a_410_changes_nothing_afterwards(receiver):
    receiver.statuses, receiver.delay = [410, 400, 500, 400], 0.05
    wanted = webhook(receiver)
    harness = WebhookHarness(wanted)
    before = answers()
    async with harness.running():
        for number in range(4):
            harness.job(f"job-{number}")
            harness.event(number, f"job-{number}")
        await eventually(lambda: answers() - before == 4)
        assert "HTTP 410" in harness.state()["error"]
        harness.sink.prepare(Config(webhooks=(wanted,)))()
        harness.event(5)
        await receiver.requests(5)
        await eventually(lambda: harness.event_log.stored() == {})
        assert harness.state()["ok"]


async def test_a_410_of_the_url_before_a_reload_drops_no_event_for_the_new_one(receiver):
    async with Receiver() as old:
        old.statuses, old.delay = [410], 0.1
        harness = WebhookHarness(webhook(old))
        async with harness.running():
            harness.job()
            harness.event(1)
            await old.requests(1)
            harness.sink.prepare(Config(webhooks=(webhook(receiver),)))()
            await receiver.requests(1)
            await eventually(lambda: harness.event_log.stored() == {})
            assert harness.state()["ok"]


async def test_events_of_a_webhook_that_was_removed_meanwhile_are_dropped_with_one_line(receiver, caplog):
    first = WebhookHarness(webhook(None, url="https://h/x", name="left"))
    first.job()
    for number in range(3):
        event = Event(Kind.JOB_STARTED, "job-1", NOW, number)
        first.sink._queue(NotedEvent(-1, event, time.monotonic()), None)
    second = WebhookHarness(webhook(receiver), restored=first.event_log.stored().values())
    assert second.event_log.stored() == {}
    assert dropped("removed", "left") == 3
    assert [record.message for record in caplog.records] == [
        "webhook left is not configured any more: 3 events of the last run are dropped"
    ]


async def test_an_event_without_a_body_survives_a_restart_too(receiver):
    first = WebhookHarness(webhook(receiver))
    first.hub.subscribe(lambda batch: first.sink._on_batch(first.hub, batch))
    first.job()
    first.event(1)
    left = first.event_log.stored()
    assert [body for _, _, body in left.values()] == [b""]
    second = WebhookHarness(webhook(receiver), restored=left.values())
    async with second.running():
        second.job()
        (got,) = await receiver.requests(1)
    assert json.loads(got.body)["data"]["job_id"] == "job-1"


async def test_an_event_without_a_body_waits_until_the_jobs_of_the_last_run_are_published(receiver):
    event = saved(StoredEvent(Event(Kind.JOB_STARTED, "job-1", NOW, 1), time.time() - 60))
    harness = WebhookHarness(webhook(receiver, operations=("live",)), restored=[event])
    harness.hub.status.loading = True
    async with harness.running():
        for _ in range(10):
            await asyncio.sleep(0)
        harness.job()
        harness.hub.status.loading = False
        (got,) = await receiver.requests(1)
    assert json.loads(got.body)["data"]["job_id"] == "job-1"


async def test_after_a_stop_of_days_one_failed_attempt_gives_no_event_up(receiver):
    left = [saved(StoredDelivery("w", f"job-{n}", f"evt_{n}", time.time() - 3 * 86_400), b"{}") for n in range(3)]
    receiver.statuses = [503, 503]
    harness = WebhookHarness(webhook(receiver), restored=left)
    async with harness.running():
        await eventually(lambda: harness.event_log.stored() == {})
    assert {one.id for one in receiver.accepted} == {"evt_0", "evt_1", "evt_2"}


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
