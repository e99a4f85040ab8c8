"""The sizes of `make test-sizes`, a tenth of them and less, on a daemon with the unit's memory limit (as root).

What silent jobs cost is not among them: `integration/test_silent_jobs.py` counts what is read of them.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from tests.support.confined import LimitedGroup, memory_limit
from tests.support.daemon import Daemon
from tests.support.mariadb import Database, MariaDB
from tests.support.sizes import SCENARIOS, SHORT, STALL, Rig, silent_jobs

LIMIT = 2 << 30
"""Bytes: `MemoryMax=` of deploy/correlator.service."""


class Direct(Rig):
    """A daemon that is started directly, in a memory group where this process may make one."""

    scale = SHORT

    def __init__(self, folder: Path, database: Database, group: LimitedGroup | None) -> None:
        self._folder = folder
        self._database = database
        self._group = group
        self._running = False

    async def __aenter__(self) -> Self:
        self._stack = contextlib.AsyncExitStack()
        options: dict[str, Any] = {"init_command": "SET time_zone = '+00:00'"}
        self.connection = await self._stack.enter_async_context(self._database.connect(**options))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
        await self._stack.aclose()

    @property
    def pid(self) -> int:
        return self.daemon.pid

    async def start(self) -> float:
        self.daemon = Daemon(self._folder, database__url=self._database.url)
        began = time.monotonic()
        await self.daemon.launch()
        if self._group is not None:
            self._group.add(self.pid)
        await self.daemon.until(complete=False, within=120)
        self._running = True
        return time.monotonic() - began

    async def stop(self, *, forget: bool = False) -> None:
        if self._running:
            await self.daemon.stop()
            await self.daemon.close()
            self._running = False
        if forget:
            shutil.rmtree(self._folder / "state", ignore_errors=True)

    async def check(self) -> None:
        assert self.daemon.running, self.daemon.log()[-4000:]
        assert self._group is None or self._group.kills == 0


@pytest.fixture(scope="module")
def server() -> Iterator[MariaDB]:
    with MariaDB(
        "--max-allowed-packet=64M", "--innodb-flush-log-at-trx-commit=2", "--innodb-log-file-size=256M"
    ) as server:
        yield server


@pytest.fixture
async def rig(server: MariaDB, tmp_path: Path) -> AsyncIterator[Direct]:
    database = await server.create_schema(f"sizes_{tmp_path.name}")
    with contextlib.ExitStack() as stack:
        group = None
        with contextlib.suppress(OSError):  # without the right to make one the sizes are tried all the same
            group = stack.enter_context(memory_limit(LIMIT))
        async with Direct(tmp_path, database, group) as rig:
            yield rig
    await database.drop()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s is not silent_jobs], ids=lambda s: s.__name__)
async def test_no_call_of_the_loop_is_long_whatever_the_sizes(scenario: Any, rig: Direct, record_property: Any):
    for figures in await scenario(rig):
        record_property(figures.name, figures.line())

        assert figures.longest_call <= STALL, figures.line()
