"""The limit of a fan-out in one thread: one prebuilt frame, `transport.write` to every socket, nothing else."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import cast

import uvloop


class PersistedJob(asyncio.Protocol):
    """A connection that is only written to."""

    def __init__(self, transports: list[asyncio.Transport]) -> None:
        self._transports = transports

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        kept = cast("asyncio.Transport", transport)  # uvloop's are no subclass of it
        kept.write(b"welcome}")
        self._transports.append(kept)


async def main(frame: int) -> None:
    transports: list[asyncio.Transport] = []
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: PersistedJob(transports), "127.0.0.1", 0, backlog=1024)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    body, last = b"." * (frame - 1) + b"}", b"END." + b"." * (frame - 5) + b"}"
    while line := await lines.readline():
        changes = json.loads(line)["changes"]
        began = time.monotonic()
        for n in range(changes):
            written = last if n == changes - 1 else body
            for transport in transports:
                transport.write(written)
            await asyncio.sleep(0)
        print(json.dumps({"began": began}), flush=True)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(**json.loads(sys.argv[1])))
