"""The MQTT sink on an index that the test writes, and a client that watches its topics."""

import asyncio
import itertools
from typing import Any

import orjson

from correlator.config.schema import Mqtt
from correlator.config.values import BrokerUrl
from correlator.jobs.fold import vm_name
from correlator.jobs.index import Index
from correlator.model.facts import Reading
from correlator.model.rows import JobRecord, StepRecord
from correlator.sinks.event_log import EventLog
from correlator.sinks.mqtt.home_assistant import device
from correlator.sinks.mqtt.sink import MqttSink
from correlator.sinks.mqtt.topics import TopicKey, Topics
from correlator.tasks import Backoff
from tests.support.documents import document_of
from tests.support.eventually import PATIENCE, eventually
from tests.support.listener import Listener, parsed
from tests.support.pipeline_harness import NOW, HubHarness

_instances = (f"instance-{n}" for n in itertools.count())


def reading(job_id, *external, observed_at=1, started=0, status="running", error=None, vm=None):
    column, *rest = external or (None,)
    members = {"gui_job_id": rest[0]} if rest else {}
    if vm is not None:
        members["vm_name"] = vm
    metadata = orjson.dumps(members).decode() if members else None
    at = NOW + started * 1_000_000
    record = JobRecord(
        job_id, operation="unified-live-failover", job_type="failover", status=status, external_job_id=column,
        metadata=metadata, started_at=at, completed_at=at if status == "completed" else None, error_message=error,
    )  # fmt: skip
    return Reading(job_id, observed_at, record, (StepRecord(1, "validate", 1, "completed", at, at),))


def gone(job_id, observed_at=9):
    return Reading(job_id, observed_at)


class MqttHarness(HubHarness):
    """The sink has topics of its own."""

    def __init__(
        self,
        port,
        *readings,
        host="127.0.0.1",
        epoch="",
        instance="",
        restored=(),
        sink: dict[str, Any] | None = None,
        **settings,
    ):
        super().__init__(epoch=epoch, clock=lambda: NOW)
        self.instance = instance or next(_instances)
        self.topics = Topics(f"correlator/v1/{self.instance}")
        self.learn(*readings)
        self.has_devices = settings.get("home_assistant", False)
        url = BrokerUrl(host, port, tls="tls" in settings)
        self.event_log = EventLog(restored)
        self.sink = MqttSink(
            Mqtt(url=url, instance=self.instance, **settings),
            self.event_log,
            **{"backoff": Backoff(0.05, 1.0, 0.05), **(sink or {})},
        )

    def change(self, job_id, *external, **more):
        """The job is another one from now on."""
        observed_at = next(self.times)
        self.learn(reading(job_id, *external, observed_at=observed_at, error=f"change {observed_at}", **more))

    async def stop(self, task):
        task.cancel()
        await asyncio.wait({task}, timeout=PATIENCE)
        assert task.cancelled()

    def state(self, job_id):
        return self.topics.of(TopicKey("state", job_id))

    def event(self, job_id):
        return self.topics.event(job_id)

    def ext(self, external_id):
        return self.topics.of(TopicKey("ext", external_id))

    def due(self):
        """What should be retained of jobs, IDs and VMs."""
        return retained_topics(self.topics, self.index, self.hub.epoch, devices=self.has_devices)


def retained_topics(topics: Topics, index: Index, epoch: str, *, devices: bool = False) -> dict[str, Any]:
    """What should be retained of an index: topic → content."""
    due: dict[str, Any] = {topics.of(TopicKey("marker")): True} if devices else {}
    for shown in sorted(index.published.all(), key=lambda job: job.view.age_key):
        said = {**document_of(shown), "epoch": epoch, "seq": shown.rev}
        due[topics.of(TopicKey("state", shown.job_id))] = said
        for name in shown.view.external_ids:
            owner = index.published.resolve(name)
            assert owner is not None
            due[topics.of(TopicKey("ext", name))] = {"external_id": name, "job_id": owner.job_id}
        if vm := vm_name(shown.view):
            due[topics.of(TopicKey("vm", vm))] = {**said, "steps": {}, "vm_name": vm}
            if devices:
                due[topics.of(TopicKey("discovery", vm))] = orjson.loads(orjson.dumps(device(topics, vm)))
    return due


class TopicWatcher(Listener):
    """Another client of the broker of a harness."""

    def __init__(self, topics_: Topics) -> None:
        super().__init__()
        self.topics = topics_

    def said(self, topic):
        return [parsed(m) for m in self.messages if str(m.topic) == topic]

    def states(self):
        return [status["state"] for status in self.said(self.topics.status)]

    def jobs(self):
        """What is retained of jobs, IDs and VMs."""
        return {t: v for t, v in self.retained.items() if self.topics.key(t) is not None}


def watch(world, port, *, mqtt5=True):
    return TopicWatcher(world.topics).subscribed(port, f"{world.topics.root}/#", world.topics.devices, mqtt5=mqtt5)


class OldBroker:
    """For `Proxy.answer`: a broker that knows no newer protocol than `level`. `levels`: of the connections so far."""

    def __init__(self, level: int = 4, refusal: bytes = b"") -> None:
        self.level, self.refusal = level, refusal
        self.levels: list[int] = []

    def __call__(self, connect: bytes) -> bytes | None:
        self.levels.append(connect[connect.index(b"MQTT") + 4])
        return self.refusal if self.levels[-1] > self.level else None


async def holds(watcher: TopicWatcher, world: MqttHarness, within: float = PATIENCE, every: float = 0.02) -> None:
    """The broker holds just what it should. With many jobs to compare, `every` leaves the others time to work."""

    def same():
        held, due = watcher.jobs(), world.due()
        # No comparison by assert: its explanation of two thousand documents takes longer than the wait itself.
        different = [t for t in {*held, *due} if held.get(t) != due.get(t)]
        assert not different, f"{len(different)} topics differ, e.g. {different[:3]}"
        return True

    await eventually(same, within=within, every=every)


def drained(world: MqttHarness, most: int) -> bool:
    """Whether the broker lacks no more than `most` messages."""
    return int(world.sink.describe()["pending"]) <= most
