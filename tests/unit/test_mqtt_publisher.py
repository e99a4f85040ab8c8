"""Messages that the publisher leaves out, and what it reports of them. Nothing here has a broker."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from correlator.sinks.mqtt import publisher as module
from correlator.sinks.mqtt.connection import TimedOut
from correlator.sinks.mqtt.publisher import Publisher
from correlator.sinks.mqtt.topics import MqttMessage

BROKER: Any = SimpleNamespace(maximum_packet_size=1_000, receive_maximum=20)
LARGE = b"x" * 2_000


async def test_only_retained_topics_count_as_skipped_because_an_event_has_no_newer_message():
    refused: list[str] = []
    publisher = Publisher(60.0, "mqtt://broker", 5.0, refused.append)
    publisher.begin(BROKER, mqtt5=True)
    await publisher.send(BROKER, MqttMessage("job/a/event", LARGE, retain=False))
    assert (publisher.skipped, len(refused)) == (0, 1)
    await publisher.send(BROKER, MqttMessage("job/a/state", LARGE))
    assert (publisher.skipped, len(refused)) == (1, 2)


async def test_a_broker_that_sends_what_it_retains_before_an_acknowledgement_does_not_time_out(monkeypatch):
    now = 100.0
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(module, "DEADLINE_INTERVAL", 0.0)
    publisher = Publisher(60.0, "mqtt://broker", 5.0, lambda _: None)
    silent: Any = SimpleNamespace(
        maximum_packet_size=1_000, receive_maximum=20, maximum_qos=2, retain_available=True, publish=never
    )
    publisher.begin(silent, mqtt5=True)
    sending = asyncio.create_task(publisher.send(silent, MqttMessage("job/a/state", b"x")))
    deadlines = asyncio.create_task(publisher.enforce_deadlines())

    async def pass_time(seconds: float) -> None:
        nonlocal now
        now += seconds
        for _ in range(5):
            await asyncio.sleep(0)

    for _ in range(10):
        await pass_time(4.0)
        publisher.broker_sends()
    assert not deadlines.done()
    await pass_time(4.0)
    assert not deadlines.done()
    await pass_time(2.0)
    assert isinstance(deadlines.exception(), TimedOut)
    sending.cancel()


async def never(*_: Any, **__: Any) -> None:
    await asyncio.Event().wait()
