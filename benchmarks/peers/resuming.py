"""Clients that follow all jobs at one gateway, and resume at another one when it dies.

Says when all are connected; reads the revisions that all jobs have by then, and says when every client has them.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import aiohttp
import orjson
import uvloop

from correlator.model.messages import CloseCode
from tests.support.client_fold import apply_message

AT_ONCE = 200
"""Connections that are opened at the same time."""

RETRY_EVERY = 0.05


class Client:
    """A websocket that folds what it receives, over two connections."""

    def __init__(self) -> None:
        self.jobs: dict[str, Any] = {}
        self.position: dict[str, Any] | None = None
        self.resumed = False
        self.synced = asyncio.Event()
        self.changed = asyncio.Event()

    async def follow(self, session: aiohttp.ClientSession, port: int, opening: asyncio.Semaphore) -> None:
        """Until the connection ends. Raises: `aiohttp.ClientError` if there is none."""
        hello = {"type": "hello", "version": 1} | ({"resume": self.position} if self.position is not None else {})
        subscribe = {"type": "subscribe", "id": 1, "resume": self.position is not None}
        async with opening:
            ws = await session.ws_connect(f"http://127.0.0.1:{port}/ws", max_msg_size=0)
            await ws.send_str(json.dumps([hello, subscribe]))
            self._apply(await ws.receive())
        async for frame in ws:
            self._apply(frame)
        if ws.close_code == CloseCode.TRY_LATER:
            raise aiohttp.ClientConnectionError("the gateway is behind the stream")

    def _apply(self, frame: aiohttp.WSMessage) -> None:
        if frame.type is not aiohttp.WSMsgType.TEXT:
            return
        found = orjson.loads(frame.data)
        for message in found if isinstance(found, list) else [found]:
            if message["type"] == "welcome":
                self.resumed = message["resumed"]
                if not self.resumed:
                    self.jobs.clear()
                self.position = {"epoch": message["epoch"], "seq": self.position["seq"] if self.position else 0}
            elif "seq" in message and self.position is not None:
                self.position["seq"] = max(self.position["seq"], message["seq"])
            if message["type"] == "synced":
                self.synced.set()
            apply_message(self.jobs, message)
        self.changed.set()

    async def lived(self, session: aiohttp.ClientSession, ports: list[int], opening: asyncio.Semaphore) -> None:
        """At the first port while it lives, then at the second one."""
        for port in ports:
            while True:
                try:
                    await self.follow(session, port, opening)
                    break
                except aiohttp.ClientError:
                    await asyncio.sleep(RETRY_EVERY)

    async def equal(self, due: dict[str, int]) -> None:
        while {job_id: job["rev"] for job_id, job in self.jobs.items()} != due:
            self.changed.clear()
            await self.changed.wait()


async def main(ports: list[int], count: int) -> None:
    opening = asyncio.Semaphore(AT_ONCE)
    clients = [Client() for _ in range(count)]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        living = [asyncio.create_task(client.lived(session, ports, opening)) for client in clients]
        await asyncio.gather(*(client.synced.wait() for client in clients))
        print(json.dumps({"ready": True}), flush=True)
        line = await asyncio.to_thread(sys.stdin.readline)
        due = json.loads(line)["jobs"]
        await asyncio.gather(*(client.equal(due) for client in clients))
        print(json.dumps({"at": time.monotonic(), "resumed": sum(client.resumed for client in clients)}), flush=True)
        for task in living:
            task.cancel()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(**json.loads(sys.argv[1])))
