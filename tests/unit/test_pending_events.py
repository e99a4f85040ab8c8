"""What is counted of the events for a receiver is what they take."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from correlator.sinks.cluster.events import EventQueue, StreamEvent
from correlator.sinks.event_log import EventLog, PendingEvents
from correlator.sinks.mqtt.outbox import MqttEvent, MqttEvents
from correlator.sinks.webhooks.deliveries import Deliveries, Delivery, StoredDelivery

COUNT = 5_600
"""Tables of hashes have grown a moment ago, and are two thirds empty."""


def for_mqtt(number: int, job_id: str, body: bytes, queue: MqttEvents, _: EventLog) -> None:
    queue.add(MqttEvent(job_id, body))


def for_cluster(number: int, job_id: str, body: bytes, queue: EventQueue, _: EventLog) -> None:
    queue.add(StreamEvent(job_id, f"dc1:job.stalled:{job_id}::{10**15 + number}", body))


def for_webhook(number: int, job_id: str, body: bytes, queue: Deliveries, event_log: EventLog) -> None:
    message_id, at = f"evt_{number:032}", 0.5 + number
    number = event_log.add("webhooks", StoredDelivery("receiver", job_id, message_id, at), body)
    queue.add(Delivery(number, job_id, message_id, body, at))


@pytest.mark.parametrize(
    ("make", "add"),
    [
        (MqttEvents, for_mqtt),
        (lambda log: EventQueue(log, lambda: 0.5), for_cluster),
        (Deliveries, for_webhook),
    ],
    ids=["mqtt", "cluster", "webhook"],
)
def test_pending_events_take_no_more_bytes_than_are_counted(
    make: Callable[[EventLog], PendingEvents[Any]], add: Callable[..., None]
):
    tracemalloc.start()
    try:
        event_log = EventLog()
        queue = make(event_log)
        for number in range(1, COUNT + 1):
            add(number, f"{number:064}", b'{"kind":"step.started","number":%d}' % number, queue, event_log)
        assert len(queue) == COUNT
        assert tracemalloc.get_traced_memory()[0] <= queue.size
    finally:
        tracemalloc.stop()
