"""The events that a broker delivers of one instance, in their order."""

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
    """The events that the broker delivers from now on."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    @contextlib.asynccontextmanager
    async def listening(self, broker: Mosquitto, instance: str) -> AsyncIterator[None]:
        async with aiomqtt.Client("127.0.0.1", broker.port, identifier=f"listener-{random.random()}") as client:
            await client.subscribe(f"correlator/v1/{instance}/job/+/event", qos=1)
            task = asyncio.create_task(self._read(client))
            try:
                yield
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _read(self, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            self.events.append(json.loads(bytes(message.payload)))

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
