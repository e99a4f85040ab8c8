"""What a broker delivers: its messages and events in their order, and what its topics hold."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator
from typing import Any, Self

import aiomqtt
from paho.mqtt.subscribeoptions import SubscribeOptions

from tests.support.mosquitto import Mosquitto

ENDS = {"job.completed", "job.failed", "job.cancelled"}


class Listener:
    """What the broker delivers from now on, and the retained messages of before."""

    def __init__(self) -> None:
        self.messages: list[aiomqtt.Message] = []
        self.events: list[dict[str, Any]] = []
        self.retained: dict[str, Any] = {}
        """Topic → what it holds."""

    def listening(self, broker: Mosquitto, instance: str) -> contextlib.AbstractAsyncContextManager[Self]:
        """Listen to all topics of an instance."""
        return self.subscribed(broker.port, f"correlator/v1/{instance}/#")

    @contextlib.asynccontextmanager
    async def subscribed(self, port: int, *filters: str, mqtt5: bool = True) -> AsyncIterator[Self]:
        """Listen to what matches. In MQTT 3.1.1 `retained` is what the broker held before."""
        name = f"listener-{random.random()}"
        version = aiomqtt.ProtocolVersion.V5 if mqtt5 else aiomqtt.ProtocolVersion.V311
        async with aiomqtt.Client("127.0.0.1", port, identifier=name, protocol=version) as client:
            task = asyncio.create_task(self._read(client))
            # Whether a message came from the store or just now, `retain` is set all the same.
            options: Any = SubscribeOptions(1, retainAsPublished=True) if mqtt5 else 1
            await client.subscribe([(one, options) for one in filters])
            try:
                yield self
                assert not task.done(), "the connection has ended"
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _read(self, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            self.messages.append(message)
            topic = str(message.topic)
            if topic.endswith("/event"):
                self.events.append(parsed(message))
            elif message.retain and message.payload:
                self.retained[topic] = parsed(message)
            elif message.retain:
                self.retained.pop(topic, None)

    @property
    def count(self) -> int:
        """Messages about jobs."""
        return sum("/job/" in str(message.topic) for message in self.messages)

    def kinds(self, job_id: str, *kinds: str) -> list[str]:
        return [e["kind"] for e in self.events if e["job_id"] == job_id and e["kind"] in kinds]

    def after_ends(self) -> list[dict[str, Any]]:
        """The events about running jobs that follow the end of their job."""
        ended: set[str] = set()
        found = []
        for event in self.events:
            if event["kind"] in ENDS:
                ended.add(event["job_id"])
            elif event["job_id"] in ended:
                found.append(event)
        return found


def parsed(message: aiomqtt.Message) -> Any:
    """The content; None if there is none."""
    return json.loads(bytes(message.payload) or b"null")
