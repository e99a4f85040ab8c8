"""Clients that watch while things break: a websocket with everything, and an MQTT client with everything.

Both reconnect by themselves, and count what they receive.
"""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from collections import Counter
from types import TracebackType
from typing import Any, Self

import aiohttp
import aiomqtt
import orjson

from tests.support.client_fold import Document, apply_message
from tests.support.daemon import HELLO
from tests.support.eventually import eventually
from tests.support.expected_jobs import stamp

RowKey = tuple[int, str]
"""Identifies a log row though its id may be used again: the id, and the time as the contract writes it."""

AGAIN_AFTER = 0.05


class Watcher(ABC):
    """A task that connects, listens until that fails, and connects again."""

    def __init__(self) -> None:
        self.connected = False
        self.connections = 0
        self._task: asyncio.Task[None] | None = None

    @abstractmethod
    async def _listen(self) -> None:
        """One connection, from its beginning to its end; sets `connected`."""

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.result()

    async def _run(self) -> None:
        while True:
            try:
                await self._listen()
            except (OSError, aiohttp.ClientError, aiomqtt.MqttError):
                pass
            finally:
                self.connected = False
            await asyncio.sleep(AGAIN_AFTER)


class WebsocketWatcher(Watcher):
    """A websocket that has subscribed to all jobs and all log lines of the daemon at `url`."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self.jobs: dict[str, Document] = {}
        """Documents by job id, folded from the messages."""
        self.lines: Counter[RowKey] = Counter()
        """Of all the daemon's runs."""
        self.received_at: dict[int, float] = {}
        """Number of a row → when its line came, by the loop's clock. Ids may be used again, numbers are not."""
        self.twice = 0
        """Lines received again in one run of the daemon."""
        self.dropped = 0
        self._epoch = ""
        self._run_lines: set[RowKey] = set()

    async def _listen(self) -> None:
        async with aiohttp.ClientSession() as session, session.ws_connect(f"{self._url}/ws", max_msg_size=0) as ws:
            subscribe = {"type": "subscribe", "id": 1, "logs": "DEBUG"}
            await ws.send_str(orjson.dumps([HELLO, subscribe]).decode())
            self.jobs = {}
            async for frame in ws:
                if frame.type is not aiohttp.WSMsgType.TEXT:
                    return
                parsed = orjson.loads(frame.data)
                for message in parsed if isinstance(parsed, list) else [parsed]:
                    self._apply(message)

    def _apply(self, message: Document) -> None:
        match message["type"]:
            case "welcome":
                if message["epoch"] != self._epoch:
                    self._epoch, self._run_lines = message["epoch"], set()
            case "synced":
                self.connected = True
                self.connections += 1
            case "log":
                self._line(message)
            case _:
                apply_message(self.jobs, message)

    def _line(self, message: Document) -> None:
        if "dropped" in message:
            self.dropped += message["dropped"]
            return
        row = (message["event_id"], message["at"])
        self.twice += row in self._run_lines
        self._run_lines.add(row)
        self.lines[row] += 1
        if isinstance(message["attrs"], dict) and "n" in message["attrs"]:
            self.received_at[message["attrs"]["n"]] = asyncio.get_running_loop().time()


class MqttWatcher(Watcher):
    """A client of the broker at `port` that has subscribed to all topics of `instance`."""

    def __init__(self, port: int, instance: str, login: tuple[str, str] | None = None) -> None:
        super().__init__()
        self._user = login[0] if login is not None else None
        self._password = login[1] if login is not None else None
        self._port = port
        self.instance = instance
        self.root = f"correlator/v1/{instance}/"
        self.retained: dict[str, Any] = {}
        """Topic below the root → what it holds."""
        self.events: Counter[tuple[int | None, str, str]] = Counter()
        """(event id, kind, job id) → how often it was received."""
        self._client: aiomqtt.Client | None = None

    async def catches_up(self) -> None:
        """Wait until it has received all that the broker has acknowledged so far: a broker keeps the order."""
        assert self._client is not None
        topic = f"caught-up/{random.randrange(1 << 30)}/event"
        event = {"event_id": None, "kind": topic, "job_id": ""}
        await self._client.publish(self.root + topic, orjson.dumps(event), qos=1)
        await eventually(lambda: (None, topic, "") in self.events)

    async def _listen(self) -> None:
        name = f"listener-{self.instance}-{random.randrange(1 << 30)}"
        async with aiomqtt.Client(
            "127.0.0.1", self._port, identifier=name, timeout=5, username=self._user, password=self._password
        ) as client:
            self._client = client
            self.retained = {}
            await client.subscribe(f"{self.root}#", qos=1)
            self.connected = True
            self.connections += 1
            async for message in client.messages:
                topic = str(message.topic).removeprefix(self.root)
                value: Any = orjson.loads(bytes(message.payload)) if message.payload else None
                if topic.endswith("/event"):
                    self.events[value["event_id"], value["kind"], value["job_id"]] += 1
                elif value is None:
                    self.retained.pop(topic, None)
                else:
                    self.retained[topic] = value

    def state(self) -> str | None:
        """The retained state of the daemon."""
        status = self.retained.get("status")
        return status["state"] if status is not None else None


def published_at(ts: str) -> str:
    """`log_events.ts` as the contract writes it, where both are UTC."""
    at = stamp(ts)
    assert at is not None
    return at
