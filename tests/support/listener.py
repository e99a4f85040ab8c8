"""What a broker delivers of one instance: the events, in their order, and the retained topics."""

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
    """The events that the broker delivers from now on, and the retained topics."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.retained: dict[str, Any] = {}
        self.legacy: set[str] = set()
        """The jobs that were published as rows of failover_jobs at some time."""

    @contextlib.asynccontextmanager
    async def listening(self, broker: Mosquitto, instance: str) -> AsyncIterator[None]:
        async with aiomqtt.Client("127.0.0.1", broker.port, identifier=f"listener-{random.random()}") as client:
            await client.subscribe(f"correlator/v1/{instance}/#", qos=1)
            task = asyncio.create_task(self._read(client))
            try:
                yield
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _read(self, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            topic = str(message.topic)
            value: Any = json.loads(bytes(message.payload)) if message.payload else None
            if topic.endswith("/event"):
                self.events.append(value)
            elif value is None:
                self.retained.pop(topic, None)
            else:
                self.retained[topic] = value
                if value.get("source") == "legacy":
                    self.legacy.add(value["job_id"])

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

    def announced(self) -> set[tuple[str, Any]]:
        return {(e["kind"], e["event_id"]) for e in self.events}
