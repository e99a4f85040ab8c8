"""What a broker delivers of one instance: its events in their order, and what its topics hold."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import aiomqtt

from tests.support.mosquitto import Mosquitto

ENDS = {"job.completed", "job.failed", "job.cancelled"}


class Listener:
    """What the broker delivers from now on, and the retained messages of before."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.topics: dict[str, Any] = {}
        """Topic → what it holds, but for those of events."""
        self.count = 0
        """Messages about jobs."""

    @contextlib.asynccontextmanager
    async def listening(self, broker: Mosquitto, instance: str) -> AsyncIterator[None]:
        async with aiomqtt.Client("127.0.0.1", broker.port, identifier=f"listener-{random.random()}") as client:
            await client.subscribe(f"correlator/v1/{instance}/#", qos=1)
            task = asyncio.create_task(self._read(client))
            try:
                yield
                assert not task.done(), "the connection has ended"
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _read(self, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            topic, value = str(message.topic), json.loads(bytes(message.payload) or b"null")
            self.count += "/job/" in topic
            if topic.endswith("/event"):
                self.events.append(value)
            elif value is None:
                self.topics.pop(topic, None)
            else:
                self.topics[topic] = value

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
