"""Storms of clients: what one does to others, as a ratio to the quiet state of the same run.

Problem. Whether a client delays another shows only beside a quiet daemon, on a machine that other work may load too.

Model. Two processes beside the daemon. The probe writes rows at a steady pace, and notes how long each takes from its
commit to a websocket, and how long `/health/live` takes over a connection of its own. The crowd is the storm: a
coroutine function of `tests/support/` that runs in a process of its own, so that its work delays no measurement.
What is measured goes before all else on the machine. `Storms.verdict` measures the storm and, where anything is late,
then the quiet, up to `ROUNDS` times, and takes the best round: other load on the machine can only make a round worse.

    async with storms(tmp_path, database) as run:
        await run.verdict("lists", "tests.support.storm_clients:requests", connections=200, path="/api/v1/jobs")
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import aiomysql
import orjson
import pytest

from tests.support import bulk_rows
from tests.support.daemon import HELLO, Daemon
from tests.support.eventually import PATIENCE, eventually
from tests.support.mariadb import Database
from tests.support.paths import REPOSITORY
from tests.support.verdicts import Table
from tests.support.yardstick import processor_seconds

ROUNDS = 3
RATIO = 3.0
"""How much later 99 of 100 rows may arrive than in the quiet state, and 95 of 100 answers of `/health/live`."""

LEAST_QUIET = 0.03
"""Seconds that count as quiet: below it, the ratio would be one of the scheduler's noise."""

LOST_AFTER = 30.0
"""Seconds after which a row that has not arrived counts as lost, and `/health/live` as not answered."""

MEMORY_RATIO, MEMORY_WITHIN = 1.2, 60.0
"""How much memory may be left of a storm, and seconds after which."""

PRIORITY = -10
"""The priority (nice) of the daemon, its database and the probe. Other processes have 0, the crowd 5."""

RATE = 100.0
"""Rows a second."""

RUNNING = 50
"""Jobs to which the rows belong."""

ON_ONE_DAEMON = pytest.mark.asyncio(loop_scope="session")
"""Of tests that take the fixture `run`, which lives in that loop."""

VERDICTS = Table("storms", "storm", "what it did")


@dataclass(frozen=True, slots=True)
class Figures:
    """What the probe measured. Seconds, sorted; one that never came is `LOST_AFTER`."""

    rows: Sequence[float]
    live: Sequence[float]
    cpu: float
    """Share of a core that the daemon used."""

    @property
    def lost(self) -> int:
        """Rows that have not arrived."""
        return sum(took >= LOST_AFTER for took in self.rows)

    def text(self) -> str:
        rows, live = self.rows, self.live
        return (
            f"rows p50/p99 {of(rows, 0.5) * 1000:.0f}/{of(rows, 0.99) * 1000:.0f} ms, live p50/p95"
            f" {of(live, 0.5) * 1000:.0f}/{of(live, 0.95) * 1000:.0f} ms, {self.cpu:.2f} of a core"
        )


def of(values: Sequence[float], share: float) -> float:
    """The quantile of sorted values."""
    return values[min(len(values) - 1, int(share * len(values)))]


class Storms:
    """A daemon with jobs, and its probe. See `storms`."""

    def __init__(self, daemon: Daemon, database: Database, probe: Child) -> None:
        self.daemon = daemon
        self.database = database
        self._probe = probe

    async def measure(self, seconds: float) -> Figures:
        """Measure the rows and requests that begin within `seconds` from now."""
        began, used = time.monotonic(), processor_seconds(self.daemon.pid)
        await self._probe.send({"seconds": seconds})
        found = await self._probe.read(seconds + LOST_AFTER + PATIENCE)
        cpu = (processor_seconds(self.daemon.pid) - used) / (time.monotonic() - began)
        return Figures(sorted(found["rows"]), sorted(found["live"]), cpu)

    @contextlib.asynccontextmanager
    async def crowd(self, storm: str, *, ends: bool = False, **parameters: Any) -> AsyncIterator[Crowd]:
        """Run ``module:function`` in a process of its own, until the block ends. Returns once it has begun.

        `ends`: it ends by itself, and is waited for.
        """
        async with child("crowd", {"storm": storm, "url": self.daemon.url, "parameters": parameters}) as process:
            await process.read(PATIENCE)
            crowd = Crowd()
            yield crowd
            if not ends:
                process.process.send_signal(signal.SIGTERM)
            crowd.counts = await process.read(PATIENCE)

    async def verdict(
        self,
        name: str,
        storm: str,
        *,
        seconds: float = 2.0,
        settle: float = 1.0,
        ends_within: float | None = None,
        check: Callable[[dict[str, int]], None] = lambda _: None,
        **parameters: Any,
    ) -> dict[str, int]:
        """Check that a storm delays neither rows nor `/health/live`, and return what the crowd counted.

        `settle`: seconds of the storm before it is measured. `ends_within`: seconds in which it ends by itself,
        counted as `last_ms`. `check` raises AssertionError if the crowd got too little.
        """
        failures: list[str] = []
        for _ in range(ROUNDS):
            async with self.crowd(storm, ends=ends_within is not None, **parameters) as crowd:
                await asyncio.sleep(settle)
                during = await self.measure(seconds)
            text, late = f"{during.text()}; {crowd.counts}", (of(during.rows, 0.99), of(during.live, 0.95))
            check(crowd.counts)
            assert during.lost == 0, text
            allowed = (LEAST_QUIET, LEAST_QUIET)
            if max(late) > RATIO * LEAST_QUIET:  # Below that it passes whatever the quiet state is.
                quiet = await self.measure(seconds / 2)
                text += f"; quiet: {quiet.text()}"
                allowed = (max(LEAST_QUIET, of(quiet.rows, 0.99)), max(LEAST_QUIET, of(quiet.live, 0.95)))
            in_time = ends_within is None or crowd.counts["last_ms"] <= ends_within * 1000
            if in_time and all(took <= RATIO * most for took, most in zip(late, allowed, strict=True)):
                VERDICTS.add(name, text)
                return crowd.counts
            failures.append(text)
        raise AssertionError("\n".join([name, *failures]))

    async def memory_returns(self, name: str, storm: str, **options: Any) -> dict[str, int]:
        """As `verdict`, and check that a minute later the daemon's memory is what it was, and a fifth at most."""
        before = self.daemon.memory()
        counts = await self.verdict(name, storm, **options)
        await self.memory_is(before, name)
        return counts

    async def memory_is(self, before: float, name: str) -> None:
        """Wait until the daemon's memory is what it was before the storm `name`, and a fifth at most."""
        await eventually(lambda: self.daemon.memory() <= MEMORY_RATIO * before, within=MEMORY_WITHIN, every=1.0)
        VERDICTS.add(name, f"{before:.0f} MB before, {self.daemon.memory():.0f} MB after")


class Crowd:
    """A storm that runs. `counts`: what its function has counted, once it has ended."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}


@contextlib.asynccontextmanager
async def storms(
    folder: Path,
    database: Database,
    *,
    jobs: int = 2_000,
    probe_from: str = "127.0.0.1",
    environment: Mapping[str, str] | None = None,
    **settings: object,
) -> AsyncIterator[Storms]:
    """A daemon with `jobs` in memory and `RATE` rows a second. `environment`, `settings`: those of `Daemon`.

    `probe_from`: the address that asks for `/health/live`. The storm has 127.0.0.1.
    """
    await fill(database, jobs)
    async with Daemon(folder, environment, database__url=database.url, **settings) as daemon:
        first(daemon.pid)
        first(database.server.pid)
        target = {"port": database.server.port, "db": database.name, "url": daemon.url}
        async with child("probe", {**target, "probe_from": probe_from}) as probe:
            first(probe.process.pid)
            await probe.read(PATIENCE)
            yield Storms(daemon, database, probe)


def first(pid: int) -> None:
    """Run a process before all other work on the machine, where this user may: what it waits for is then its own."""
    with contextlib.suppress(PermissionError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.setpriority(os.PRIO_PROCESS, int(task.name), PRIORITY)


async def fill(database: Database, jobs: int) -> None:
    """Jobs of the last hours with three steps each, of 20 contexts; the first `RUNNING` of them run."""
    numbers = range(jobs)
    ids = [bulk_rows.job_id(n + 1) for n in numbers]
    begun = [bulk_rows.ago(seconds=10 + 3 * n) for n in numbers]
    status = ["running" if n < RUNNING else "failed" if n % 9 == 0 else "completed" for n in numbers]
    ended = [None if n < RUNNING else bulk_rows.ago(seconds=5 + 3 * n) for n in numbers]
    metadata = [json.dumps({"vm_name": f"vm-{n}", "failover_job_id": f"gui-{n}"}) for n in numbers]
    names = ("id", "operation", "job_type", "status", "external_job_id", "context_id", "metadata")
    rows = (
        (ids[n], f"op-{n % 30}", "failover", status[n], f"ext-{n}", f"ctx-{n % 20}", metadata[n], begun[n], ended[n])
        for n in numbers
    )
    await bulk_rows.fill(database, "job_tracking", (*names, "started_at", "completed_at"), rows)
    steps = ((ids[n], f"step-{i}", i, "completed", begun[n], begun[n]) for n in numbers for i in range(3))
    await bulk_rows.fill(
        database, "job_steps", ("job_id", "name", "seq", "status", "started_at", "completed_at"), steps
    )


# -- processes


class Child:
    """A process that speaks JSON, a line for each message."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def send(self, message: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        await self.process.stdin.drain()

    async def read(self, within: float) -> Any:
        assert self.process.stdout is not None
        async with asyncio.timeout(within):
            line = await self.process.stdout.readline()
        assert line, "the process has ended: its error is above"
        return json.loads(line)


@contextlib.asynccontextmanager
async def child(role: str, arguments: dict[str, Any]) -> AsyncIterator[Child]:
    """Run this module as a process, which is killed at the end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.storms", role, json.dumps(arguments)),
        cwd=REPOSITORY,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 24,
    )
    try:
        yield Child(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _say(message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


# -- the probe


def _session(url: str, address: str = "127.0.0.1") -> aiohttp.ClientSession:
    return aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(ssl=False, local_addr=(address, 0)))


class Probe:
    """Writes rows, and measures when they arrive; asks for `/health/live`. Runs in a process of its own."""

    def __init__(self, target: dict[str, Any]) -> None:
        self._target = target
        self._committed: dict[int, float] = {}
        self._arrived: dict[int, float] = {}
        self._live: list[tuple[float, float]] = []
        """(begun, took) of each request."""
        self._synced = asyncio.Event()

    async def run(self) -> None:
        async with _session(self._target["url"]) as session, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read(session))
            await self._synced.wait()
            tasks.create_task(self._write())
            tasks.create_task(self._ask(tasks))
            await eventually(lambda: len(self._arrived) > 20)
            _say("begun")
            lines = asyncio.StreamReader()
            await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
            while line := await lines.readline():
                _say(await self._measure(json.loads(line)["seconds"]))
            os._exit(0)

    async def _measure(self, seconds: float) -> dict[str, list[float]]:
        began = time.monotonic()
        await asyncio.sleep(seconds)
        ended = time.monotonic()
        rows = {i: at for i, at in self._committed.items() if began <= at < ended}
        with contextlib.suppress(AssertionError):
            await eventually(lambda: rows.keys() <= self._arrived.keys(), within=LOST_AFTER)
        never = float("inf")
        took = [min(LOST_AFTER, max(0.0, self._arrived.get(i, never) - at)) for i, at in rows.items()]
        waiting = [LOST_AFTER] if not any(began <= at < ended for at, _ in self._live) else []
        return {"rows": took, "live": [took for at, took in self._live if began <= at < ended] + waiting}

    async def _read(self, session: aiohttp.ClientSession) -> None:
        async with session.ws_connect("/ws", max_msg_size=0) as ws:
            await ws.send_json([HELLO, {"type": "subscribe", "id": 1, "logs": "INFO"}])
            async for frame in ws:
                now = time.monotonic()
                parsed = orjson.loads(frame.data)
                for message in parsed if isinstance(parsed, list) else [parsed]:
                    if message["type"] == "log" and "event_id" in message:
                        self._arrived[message["event_id"]] = now
                    elif message["type"] == "synced":
                        self._synced.set()
        raise EOFError(f"the probe's websocket was closed with {ws.close_code}")

    async def _write(self) -> None:
        target, number = self._target, 0
        async with aiomysql.connect(
            host="127.0.0.1",
            port=target["port"],
            user="root",
            db=target["db"],
            autocommit=True,
            init_command="SET time_zone = '+00:00'",
        ) as connection:
            due = time.monotonic()
            async with connection.cursor() as cursor:
                while True:
                    job = bulk_rows.job_id(number % RUNNING + 1)
                    await cursor.execute(
                        "INSERT INTO log_events (job_id, level, message, attrs, ts)"
                        " VALUES (%s, 'INFO', %s, NULL, UTC_TIMESTAMP(6))",
                        (job, f"copying block {number}"),
                    )
                    self._committed[cursor.lastrowid] = time.monotonic()
                    number += 1
                    due = max(due + 1 / RATE, time.monotonic() - 0.05)
                    await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _ask(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            tasks.create_task(self._ask_once())
            await asyncio.sleep(0.05)

    async def _ask_once(self) -> None:
        began = time.monotonic()
        try:
            async with (
                asyncio.timeout(LOST_AFTER),
                _session(self._target["url"], self._target["probe_from"]) as session,
                session.get("/health/live") as response,
            ):
                await response.read()
                took = time.monotonic() - began if response.status == 200 else LOST_AFTER
        except (OSError, aiohttp.ClientError):
            took = LOST_AFTER
        self._live.append((began, took))


# -- the crowd


async def _crowd(arguments: dict[str, Any]) -> None:
    os.nice(5)  # What remains of the machine is the crowd's, not what the daemon needs.
    module, _, name = arguments["storm"].partition(":")
    function = getattr(importlib.import_module(module), name)
    counts: dict[str, int] = {}
    running = asyncio.ensure_future(function(arguments["url"], counts, **arguments["parameters"]))
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, running.cancel)
    _say("begun")
    await asyncio.wait([running])
    _say(counts)
    if not running.cancelled():
        running.result()


if __name__ == "__main__":
    import uvloop

    given = json.loads(sys.argv[2])
    uvloop.run(Probe(given).run() if sys.argv[1] == "probe" else _crowd(given))
