"""The program as its users run it, on a server of its own, with what a measurement asks of it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from benchmarks.appliance import Rows, fill
from benchmarks.harness import REPOSITORY
from tests.support.daemon import HELLO, Daemon, Socket
from tests.support.eventually import eventually
from tests.support.fork_server import ForkedProcess
from tests.support.mariadb import Database, MariaDB

__all__ = ["HELLO", "Measured", "Socket", "running", "server"]


class Measured(Daemon):
    """A daemon with measurements of its process. `tree`: that whose program runs, if not this one."""

    def __init__(self, folder: Path, tree: Path = REPOSITORY, **settings: object) -> None:
        super().__init__(folder, **settings)
        self._tree = tree

    async def _start(self, arguments: Sequence[str], log: IO[bytes]) -> asyncio.subprocess.Process | ForkedProcess:
        if self._tree == REPOSITORY:
            return await super()._start(arguments, log)
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "correlator", *arguments),
            cwd=self._tree,
            env=self._environ | {"PYTHONPATH": str(self._tree)},
            stdout=log,
            stderr=log,
        )

    async def metric(self, name: str) -> float:
        """The value of one series without labels."""
        for line in (await self.text("/metrics")).splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        return 0.0

    async def shows(self, jobs: int, within: float = 60.0) -> None:
        """Wait until so many jobs are in memory."""

        async def there() -> bool:
            text = await self.text("/metrics")
            counts = [line for line in text.splitlines() if line.startswith("correlator_jobs{")]
            return sum(float(line.split()[-1]) for line in counts) >= jobs

        await eventually(there, within=within, every=0.2)


@contextlib.asynccontextmanager
async def server(*arguments: str) -> AsyncIterator[MariaDB]:
    """A MariaDB of its own, as quick as a server with a battery behind its disk."""
    started = MariaDB("--innodb-flush-log-at-trx-commit=2", "--innodb-buffer-pool-size=512M", *arguments)
    await asyncio.to_thread(started.start)
    try:
        yield started
    finally:
        await asyncio.to_thread(started.close)


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
