"""The webhook sink with a hub that a test fills, for a receiver over HTTP."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from correlator.config.loading import load
from correlator.config.schema import Config, Http
from correlator.config.webhooks import Webhook, WebhookUrl
from correlator.model.facts import Kind, Reading
from correlator.model.persisted import PersistedEvent
from correlator.model.rows import JobRecord, Micros
from correlator.ops import metrics
from correlator.sinks.event_log import EventLog
from correlator.sinks.receiver import Verdict
from correlator.sinks.webhooks import StoredDelivery, StoredEvent, WebhookSink, WebhookTimings
from tests.support.markdown import blocks
from tests.support.metric_values import value
from tests.support.pipeline_harness import NOW, HubHarness
from tests.support.webhook_receiver import Receiver

FAST = WebhookTimings(retry_base=0.02, retry_cap=0.05, goodbye_within=0.2)


class WebhookHarness(HubHarness):
    def __init__(
        self, *webhooks: Webhook, restored: Iterable[PersistedEvent] = (), timings: WebhookTimings = FAST, **bounds: int
    ) -> None:
        super().__init__()
        self.event_log = EventLog(restored)
        http = Http(public_url="https://correlator.example")
        self.sink = WebhookSink(Config(http=http, webhooks=webhooks), self.event_log, timings, **bounds)

    def job(self, job_id: str = "job-1", status: str = "running", **columns: Any) -> None:
        """Publish a job as its row says."""
        record = JobRecord(job_id, status=status, operation="live", started_at=NOW, **columns)
        self.learn(Reading(job_id, next(self.times), record, ()))

    def event(self, number: int, job_id: str = "job-1", kind: Kind = Kind.JOB_STARTED, at: Micros = NOW) -> None:
        """Publish an event of the log row `number`."""
        self.happen(number, job_id=job_id, kind=kind, at=at)

    def state(self, name: str = "w") -> Any:
        return self.sink.describe()["receivers"][name]


def webhook(receiver: Receiver | None, **settings: Any) -> Webhook:
    url = WebhookUrl(receiver.url if receiver is not None else settings.pop("url"))
    return Webhook(**{"name": "w", "url": url, "allow_private": True, **settings})


def dropped(reason: str, name: str = "w") -> float:
    """The number of events dropped so far."""
    return value(metrics.WEBHOOK_EVENTS_DROPPED.labels(name, reason))


def answers(name: str = "w") -> float:
    """The number of responses so far."""
    return float(sum(value(metrics.WEBHOOK_REQUESTS.labels(name, verdict.value)) for verdict in Verdict))


def saved(head: StoredDelivery | StoredEvent, body: bytes = b"") -> PersistedEvent:
    """What the checkpoint of the last run has of an event."""
    return "webhooks", msgspec.msgpack.encode(head), body


def recipes(folder: Path, url: str) -> dict[str, Webhook]:
    """The recipes of docs/webhooks.md by name, with `url` as their receiver. `folder` gets their files."""
    given = [block for block in blocks("docs/webhooks.md") if block.section == "Recipes"]
    secrets = {"url": url, "authorization": "Bearer token\n"}
    for block in given:
        for name, kind in re.findall(
            r"^LoadCredential=(webhook-[\w-]+-(\w+)):/etc/correlator/\1$", block.text, re.MULTILINE
        ):
            (folder / name).write_text(secrets[kind])
    found: dict[str, Webhook] = {}
    for block in given:
        if block.language == "toml":
            text = re.sub(r'^url = ".*"', f'url = "{url}"', block.text, flags=re.MULTILINE)
            text = text.replace("allow_private = true\n", "").replace("\nname", "\nallow_private = true\nname")
            (folder / "recipe.toml").write_text(text)
            environ = {"HOME": str(folder), "CREDENTIALS_DIRECTORY": str(folder)}
            found |= {one.name: one for one in load(folder / "recipe.toml", environ).webhooks}
    return found
