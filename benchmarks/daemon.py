"""The program as its users run it, on a server of its own, with what a measurement asks of it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TypeVar

from benchmarks.appliance import Rows, fill
from benchmarks.harness import REPOSITORY
from tests.support.background import in_background
from tests.support.daemon import HELLO, Daemon, Socket
from tests.support.eventually import eventually
from tests.support.fork_server import ForkedProcess
from tests.support.mariadb import Database, MariaDB
from tests.support.servers import Server

__all__ = ["HELLO", "Measured", "Socket", "readers", "running", "server", "started"]

AnyServer = TypeVar("AnyServer", bound=Server)


class Measured(Daemon):
    """A daemon with measurements of its process. `tree`: that whose program runs, if not this one."""

    def __init__(self, folder: Path, tree: Path = REPOSITORY, **settings: object) -> None:
        super().__init__(folder, None, **settings)
        self._tree = tree

    async def _start(self, arguments: Sequence[str], log: IO[bytes]) -> asyncio.subprocess.Process | ForkedProcess:
        if self._tree == REPOSITORY:
            return await super()._start(arguments, log)
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "correlator", *arguments),
            cwd=self._tree,
            env=self.environ | {"PYTHONPATH": str(self._tree)},
            stdout=log,
            stderr=log,
        )

    async def shows(self, jobs: int, within: float = 60.0) -> None:
        """Wait until so many jobs are in memory."""

        async def there() -> bool:
            return await self.metric("correlator_jobs") >= jobs

        await eventually(there, within=within, every=0.2)


@contextlib.asynccontextmanager
async def started(server: AnyServer) -> AsyncIterator[AnyServer]:
    """Start a server in a thread, and close it at the end of the block."""
    await asyncio.to_thread(server.start)
    try:
        yield server
    finally:
        await asyncio.to_thread(server.close)


def server(*arguments: str) -> contextlib.AbstractAsyncContextManager[MariaDB]:
    """A MariaDB of its own, as quick as a server with a battery behind its disk."""
    return started(MariaDB("--innodb-flush-log-at-trx-commit=2", "--innodb-buffer-pool-size=512M", *arguments))


@contextlib.asynccontextmanager
async def readers(
    daemon: Daemon, count: int, on_frame: Callable[[int, str], None] | None = None, **subscribe: object
) -> AsyncIterator[None]:
    """Websockets that follow all jobs, and are read. `on_frame`: gets the number of a client and its frame."""

    async def read(number: int, socket: Socket) -> None:
        while True:
            frame = await socket.ws.receive_str()
            if on_frame is not None:
                on_frame(number, frame)

    async with contextlib.AsyncExitStack() as stack:
        for number in range(count):
            socket = await stack.enter_async_context(daemon.socket(HELLO))
            await socket.snapshot(**subscribe)
            await stack.enter_async_context(in_background(read(number, socket)))
        yield


@contextlib.asynccontextmanager
async def running(
    database: Database, tables: Mapping[str, Rows] | None = None, *, tree: Path = REPOSITORY, **settings: object
) -> AsyncIterator[Measured]:
    """A daemon of `tree` that follows `database`, filled with `tables` before it starts."""
    if tables:
        await fill(database, tables)
    with tempfile.TemporaryDirectory() as folder:
        daemon = Measured(Path(folder), tree, database__url=database.url, **settings)
        try:
            await daemon.start(within=60)
            yield daemon
        finally:
            await daemon.close()
