"""The hub and the websocket sink with one job that changes: every change is a frame of its own to every reader."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any, ClassVar

import uvloop
from aiohttp import web

from correlator.jobs.index import Index
from correlator.model.facts import Entry, Reading
from correlator.model.rows import JobRecord
from correlator.pipeline.pipeline import LocalHub
from correlator.pipeline.queries import JobQuery
from correlator.sinks.http.access import Access
from correlator.sinks.http.websocket import Websockets, framed
from correlator.sinks.streaming.messages import Framing
from correlator.sinks.streaming.sessions import Streams
from correlator.sinks.streaming.subscriptions import Filter

JOB = "e8f15a6d-c5f4-4d69-af72-194b96a0c7fb"


class Probe:
    """A reader that measures the last frame."""

    transport: ClassVar[str] = "none"
    is_restricted = False
    address: ClassVar[str] = "127.0.0.1"

    def __init__(self) -> None:
        self.framing: Framing = framed
        self.written = 0

    def write(self, framed: bytes) -> None:
        self.written = len(framed)

    def waiting(self) -> int:
        return 0

    def synced(self) -> None:
        """Nothing changes for it."""

    def give_up(self) -> None:
        """It is never too slow."""


class Changing:
    """One running job in a hub, and a row that changes it."""

    def __init__(self, frame: int) -> None:
        self.index = Index()
        self.hub = LocalHub(self.index)
        self.index.loading = False
        self.hub.status.loading = False
        self.hub.status.set_state("live")
        self.streams = Streams(self.hub)
        self._row = 0
        self._fill = "."
        record = JobRecord(JOB, "unified-live-failover", "running", "failover", started_at=now(), updated_at=now())
        self.hub.publish(self.index.apply([Reading(JOB, self.index.advance_clock(), record, ())], now()))
        self._wanted = frame
        self.background: asyncio.Future[Any] | None = None

    def change(self, text: str) -> None:
        self._row += 1
        entry = Entry(self._row, now(), "INFO", text + self._fill, self.index.advance_clock(), JOB)
        self.hub.publish(self.index.apply([entry], now()))

    async def fill_up(self) -> None:
        """Make what is sent as long as it should be."""
        probe = Probe()
        self.streams.add(probe)
        await self.streams.subscribe(probe, 1, Filter(JobQuery()), None)
        await asyncio.sleep(0.1)
        self.change("     ")
        self.streams.fanout.flush()
        self._fill += "." * (self._wanted - probe.written)
        self.streams.remove(probe)


def now() -> int:
    return time.time_ns() // 1000


async def serve(frame: int) -> tuple[Changing, int]:
    changing = Changing(frame)
    access = Access(listen_host="127.0.0.1", clock=time.monotonic)
    sockets = Websockets(changing.hub, access, changing.streams)
    app = web.Application()
    app.add_routes([web.get("/ws", sockets.handle, allow_head=False)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
    await site.start()
    changing.background = asyncio.gather(changing.streams.run(), sockets.run())
    return changing, int(runner.addresses[0][1])


async def main(frame: int) -> None:
    changing, port = await serve(frame)
    await changing.fill_up()
    print(json.dumps({"port": port}), flush=True)
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        word: dict[str, Any] = json.loads(line)
        if "rate" in word:
            await paced(changing, word["rate"], word["seconds"])
            print(json.dumps({"over": True}), flush=True)
        else:
            began = time.monotonic()
            for n in range(word["changes"]):
                changing.change("END." if n == word["changes"] - 1 else "     ")
                changing.streams.fanout.flush()
                await asyncio.sleep(0)
            print(json.dumps({"began": began}), flush=True)


async def paced(changing: Changing, rate: float, seconds: float) -> None:
    """As the daemon does it: a change each so often, and the fan-out decides when to write."""
    began = time.monotonic()
    for n in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + n / rate - time.monotonic()))
        changing.change(f"t={time.monotonic():.6f}t ")


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(**json.loads(sys.argv[1])))
