"""Sizes that an appliance may reach, and what the daemon does with them: the scenarios of `make test-sizes`.

Each scenario fills the tables, lets the daemon work, and returns what it cost: the longest synchronous call of the
event loop and the peak of resident memory, both since the daemon was started, the longest wait for `/health/live` (wall
seconds), and the CPU that was used. The same scenarios run small in `make test`, on a daemon that is started directly,
and in full in a booted system with the package, its `MemoryMax=` and its watchdog.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from tests.support.daemon import HELLO, Daemon
from tests.support.eventually import eventually
from tests.support.mariadb import TABLES
from tests.support.storm_streams import messages, raw
from tests.support.yardstick import megabytes, processor_seconds

STALL = 0.05
"""CPU seconds that one synchronous call of the event loop may take."""

SYNCED = 10.0
"""Seconds within which `FULL.pages` pages that open at once are synced."""

SILENT_SHARE = 0.01
"""Of a core: what `FULL.silent` silent jobs may cost."""


FIRST_FORECASTS = 10.0
"""Seconds from readiness at a first start to the forecasts of the jobs that run."""

PING_EVERY = 0.05


@dataclass(frozen=True, slots=True)
class Scale:
    """How large the scenarios are. `blob` is characters of one metadata value, `row` bytes of one log row's attrs."""

    jobs: int
    pages: int
    rows: int
    large_rows: int
    row: int
    blob: int
    blobs: int
    silent: int
    silent_seconds: float
    old_jobs: int


FULL = Scale(
    jobs=20_000,
    pages=100,
    rows=1_000_000,
    large_rows=1_000,
    row=1_000_000,
    blob=18_000_000,
    blobs=20,
    silent=4_000,
    silent_seconds=60,
    old_jobs=100_000,
)
SHORT = Scale(
    jobs=2_000,
    pages=10,
    rows=60_000,
    large_rows=60,
    row=1_000_000,
    blob=4_000_000,
    blobs=3,
    silent=400,
    silent_seconds=5,
    old_jobs=10_000,
)


@dataclass(slots=True)
class Figures:
    """What one scenario cost. Seconds, and MB of 10^6 bytes; `extra` are figures of its own, by what they are."""

    name: str
    longest_call: float = 0.0
    call: str = ""
    longest_wait: float = 0.0
    peak_memory: float = 0.0
    cpu: float = 0.0
    wall: float = 0.0
    extra: dict[str, str] = field(default_factory=dict)
    exceeded: list[str] = field(default_factory=list)
    """Limits in seconds that were exceeded: they hold on a machine that does nothing else."""

    def line(self) -> str:
        more = "; ".join(f"{what}: {value}" for what, value in self.extra.items())
        return (
            f"{self.name:<34} {self.longest_call * 1000:7.1f} ms {self.call:<12} {self.longest_wait * 1000:8.0f} ms"
            f" {self.peak_memory:8.1f} MB {self.cpu:7.1f} s of {self.wall:6.1f} s   {more}"
        )


HEADER = f"{'size':<34} {'longest call (CPU)':<23} {'live after':>10} {'peak memory':>11} {'CPU':>20}"


class Rig(ABC):
    """A daemon, and the database it follows. `connection` belongs to an account that may do everything."""

    daemon: Daemon
    connection: Any
    scale: Scale
    token: ClassVar[Mapping[str, str]] = {}
    """What a hello needs beside its version."""

    @property
    @abstractmethod
    def pid(self) -> int:
        """The daemon's process as this process sees it."""

    @abstractmethod
    async def start(self) -> float:
        """Start the daemon. Returns the seconds until it is ready."""

    @abstractmethod
    async def stop(self, *, forget: bool = False) -> None:
        """Stop the daemon; `forget` removes its checkpoint as well."""

    @abstractmethod
    async def check(self) -> None:
        """Raise AssertionError if the daemon was restarted or killed by its watchdog or its memory limit."""

    async def run(self, sql: str, *args: object) -> None:
        async with self.connection.cursor() as cursor:
            await cursor.execute(sql, args or None)

    async def clear(self) -> None:
        """Stop the daemon, and leave neither rows nor a checkpoint."""
        await self.stop(forget=True)
        await self.run("SET foreign_key_checks = 0, unique_checks = 0")
        for table in TABLES:
            await self.run(f"TRUNCATE TABLE {table}")

    @contextlib.asynccontextmanager
    async def measured(self, name: str) -> AsyncIterator[Figures]:
        """Measure what the block costs the running daemon."""
        figures = Figures(name)
        await self._text()  # the first scrape has its own cost
        cpu, began = processor_seconds(self.pid), time.monotonic()
        pinging = asyncio.create_task(self._ping(figures))
        try:
            yield figures
        finally:
            pinging.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pinging
        await self.check()
        figures.wall, figures.cpu = time.monotonic() - began, processor_seconds(self.pid) - cpu
        figures.peak_memory = megabytes(self.pid, "VmHWM")
        figures.longest_call, figures.call = max((most, name) for name, most in (await self.stalls()).items())

    async def _ping(self, figures: Figures) -> None:
        while True:
            began = time.monotonic()
            status, _ = await self.daemon.get("/health/live")
            assert status == 200
            figures.longest_wait = max(figures.longest_wait, time.monotonic() - began)
            await asyncio.sleep(PING_EVERY)

    async def _text(self) -> str:
        return await self.daemon.text("/metrics")

    async def stalls(self) -> Mapping[str, float]:
        """The longest synchronous call so far, in CPU seconds, by its name."""
        series = r'^correlator_loop_longest_call_seconds\{call="([^"]+)",clock="cpu"\} (\S+)$'
        found = re.findall(series, await self._text(), re.MULTILINE)
        return {name: float(value) for name, value in found}


# -- the tables, filled in the server

_JOB = "CONCAT(LPAD(HEX({n}), 8, '0'), '-0000-4000-8000-', LPAD(HEX({k}), 12, '0'))"


async def fill_jobs(
    rig: Rig,
    count: int,
    *,
    kind: int,
    status: str = "completed",
    began: str = "60 + seq % 7200",
    operation: str = "'unified-live-failover'",
) -> None:
    """`count` jobs that began the seconds ago that the SQL `began` says. `kind` keeps their ids apart."""
    ended = "NULL" if status == "running" else f"UTC_TIMESTAMP() - INTERVAL (({began}) - 50) SECOND"
    await rig.run(
        "INSERT INTO job_tracking (id, job_type, operation, status, external_job_id, metadata, started_at,"
        " completed_at, created_at, updated_at, owner, context_id, job_category)"
        f" SELECT {_JOB.format(n='seq', k=kind)}, 'failover', {operation}, '{status}',"
        f" CONCAT('unified-live-failover-pgtest', seq, '-175855{kind:04d}'),"
        f" CONCAT('{{\"failover_job_id\":\"unified-live-failover-pgtest', seq, '-175854{kind:04d}\",'"
        ' \'"failover_type":"live","vm_name":"pgtest\', seq, \'"}\'),'
        f" UTC_TIMESTAMP() - INTERVAL ({began}) SECOND, {ended}, UTC_TIMESTAMP() - INTERVAL ({began}) SECOND,"
        f" UTC_TIMESTAMP() - INTERVAL ({began}) SECOND, 'system', CONCAT('ctx-', seq), 'failover' FROM seq_1_to_{count}"
    )
    at = began.replace("seq", "j.seq")
    await rig.run(
        "INSERT INTO job_steps (job_id, name, seq, status, started_at, completed_at)"
        f" SELECT {_JOB.format(n='j.seq', k=kind)}, CONCAT('step-', s.seq), s.seq, 'completed',"
        f" UTC_TIMESTAMP(6) - INTERVAL ({at}) SECOND, UTC_TIMESTAMP(6) - INTERVAL ({at}) SECOND"
        f" FROM seq_1_to_{count} j JOIN seq_1_to_5 s"
    )


def job_id(number: int, kind: int) -> str:
    """The id that `fill_jobs` gives its job of that number."""
    return f"{number:08X}-0000-4000-8000-{kind:012X}"


async def fill_rows(rig: Rig, job: str, count: int, *, seconds: float, attrs: int = 0) -> None:
    """`count` rows of one job over the last `seconds`, half of them ERROR, a quarter WARN; `attrs`: bytes."""
    pad = f", ',\"pad\":\"', REPEAT('x', {attrs}), '\"'" if attrs else ""
    await rig.run(
        "INSERT INTO log_events (message, level, attrs, ts)"
        " SELECT CONCAT('copied block ', seq), CASE WHEN seq % 2 = 0 THEN 'ERROR' WHEN seq % 4 = 1 THEN 'WARN'"
        f" ELSE 'INFO' END, CONCAT('{{\"job_id\":\"{job}\",\"n\":', seq{pad}, '}}'),"
        f" UTC_TIMESTAMP(6) - INTERVAL (({count} - seq) * {seconds * 1e6 / count:.3f}) MICROSECOND"
        f" FROM seq_1_to_{count}"
    )


# -- the scenarios


async def many_jobs(rig: Rig) -> list[Figures]:
    """Jobs that have ended: the first start, a restart, and many pages that open at once after it."""
    scale = rig.scale
    await rig.clear()
    await fill_jobs(rig, scale.jobs, kind=1)
    seconds = await rig.start()
    async with rig.measured(f"first start with {scale.jobs} jobs") as first:
        await eventually(lambda: _jobs(rig, scale.jobs), within=60)
    first.extra["ready after"] = f"{seconds:.1f} s"
    # Until the log's past has been counted, every job has one more change to come, for each page.
    await eventually(lambda: _complete(rig, job_id(scale.jobs, 1)), within=60)
    await rig.stop()
    again = await rig.start()
    async with rig.measured(f"{scale.pages} pages of {scale.jobs} jobs") as figures:
        seconds = await synced(rig, scale.pages)
    figures.extra |= {"restart": f"{again:.1f} s", "all synced": f"{seconds:.1f} s"}
    if seconds > SYNCED:
        figures.exceeded.append(f"all synced after {seconds:.1f} s")
    return [first, figures]


async def _jobs(rig: Rig, count: int) -> bool:
    return await rig.daemon.metric("correlator_jobs") >= count


async def synced(rig: Rig, count: int, within: float = 120.0) -> float:
    """Open so many subscriptions to all jobs at once. Returns the seconds until the last is synced."""
    began = time.monotonic()
    async with asyncio.timeout(within), asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(_sync(rig))
    return time.monotonic() - began


async def _sync(rig: Rig) -> None:
    """One subscription over a bare socket: a websocket library would cost more than the daemon."""
    async with raw(rig.daemon.url, limit=1 << 20) as ws:
        ws.writer.write(messages({**HELLO, **rig.token}, {"type": "subscribe", "id": 1}))
        await ws.until(b'"synced"')


async def many_rows(rig: Rig) -> list[Figures]:
    """One job with very many rows in the log's past, many of them warnings and errors; then its lines, page by page."""
    scale = rig.scale
    await rig.clear()
    await fill_jobs(rig, 1, kind=2, status="running", began="7000")
    await fill_rows(rig, job_id(1, 2), scale.rows, seconds=6900)
    ready = await rig.start()
    async with rig.measured(f"{scale.rows} rows of one job, read") as past:
        await eventually(lambda: _complete(rig, job_id(1, 2)), within=180, every=0.2)
    past.extra["ready after"] = f"{ready:.1f} s"
    async with rig.measured(f"{scale.rows} rows of one job, 50 more a page") as lines:
        pages, found, after = 0, 0, ""
        began = time.monotonic()
        while time.monotonic() - began < 100:
            status, page = await rig.daemon.get(
                f"/api/v1/jobs/{job_id(1, 2)}/events", params={"limit": "1000"} | ({"after": after} if after else {})
            )
            assert status == 200, page
            pages, found, after = pages + 1, found + len(page["events"]), page["next_after"]
            if found >= scale.rows // 10 or after is None:
                break
        assert found >= scale.rows // 10, (pages, found)
    lines.extra["pages"] = f"{pages} for {found} lines"
    document = await rig.daemon.job(job_id(1, 2))
    assert document["errors"] > 0
    return [past, lines]


async def _complete(rig: Rig, job: str) -> bool:
    document = await rig.daemon.job(job)
    return document is not None and document.get("counts_complete", True)


async def large_rows(rig: Rig) -> list[Figures]:
    """Rows of the largest size that is read, first in the log's past and then as they come."""
    scale = rig.scale
    await rig.clear()
    await fill_jobs(rig, 1, kind=3, status="running", began="7000")
    await fill_rows(rig, job_id(1, 3), scale.large_rows // 2, seconds=600, attrs=scale.row)
    ready = await rig.start()
    async with rig.measured(f"{scale.large_rows} rows of {scale.row // 1000} kB") as figures:
        await eventually(lambda: _complete(rig, job_id(1, 3)), within=120, every=0.2)
        await fill_rows(rig, job_id(1, 3), scale.large_rows - scale.large_rows // 2, seconds=1, attrs=scale.row)
        await eventually(lambda: _read(rig, scale.large_rows), within=120, every=0.2)
    figures.extra["ready after"] = f"{ready:.1f} s"
    return [figures]


async def _read(rig: Rig, rows: int) -> bool:
    return await rig.daemon.metric("correlator_rows_total") >= rows


async def large_members(rig: Rig) -> list[Figures]:
    """Running jobs whose metadata and error are large, read again and again, and asked for."""
    scale = rig.scale
    await rig.clear()
    await fill_jobs(rig, scale.blobs, kind=4, status="running", began="30")
    await rig.run(
        'UPDATE job_tracking SET metadata = CONCAT(\'{"vm_name":"pgtest","blob":"\','
        f" REPEAT('x', {scale.blob}), '\"}}'), error_message = REPEAT('e', {scale.blob})"
    )
    ready = await rig.start()
    async with rig.measured(f"{scale.blobs} jobs with {scale.blob // 1_000_000} MB of metadata, error") as figures:
        for number in range(1, scale.blobs + 1):
            document = await rig.daemon.job(job_id(number, 4))
            assert document["metadata"]["vm_name"] == "pgtest"
            assert document["metadata"]["_cut"]["blob"] == scale.blob
            assert document["error_cut"] == scale.blob
            await rig.run("UPDATE job_tracking SET percent_complete = %s WHERE id = %s", 50, job_id(number, 4))
            await asyncio.sleep(0.5)
        await synced(rig, 5)
    figures.extra["ready after"] = f"{ready:.1f} s"
    return [figures]


async def silent_jobs(rig: Rig) -> list[Figures]:
    """Jobs that will never end: what they cost, beside a daemon without them."""
    scale = rig.scale
    cost = {}
    for count in (0, scale.silent):
        await rig.clear()
        if count:
            await fill_jobs(rig, count, kind=5, status="running", began="90000 + seq")
        await rig.start()
        await asyncio.sleep(min(scale.silent_seconds, 30))  # what a start costs is not what they cost
        async with rig.measured(f"{count} silent jobs") as cost[count]:
            await asyncio.sleep(scale.silent_seconds)
    without, silent = cost.values()
    share, rest = (one.cpu / one.wall for one in (silent, without))
    silent.extra["CPU"] = f"{100 * share:.2f} % of a core, without them {100 * rest:.2f} %"
    if share - rest > SILENT_SHARE:
        silent.exceeded.append(silent.extra["CPU"])
    return [silent]


async def old_jobs(rig: Rig) -> list[Figures]:
    """A first start beside the jobs of months: two jobs run, one of a common operation, one of a rare and old one."""
    scale, jobs = rig.scale, {"common": job_id(1, 10), "rare": job_id(1, 11)}
    await rig.clear()
    every = 150 * 86_400 // scale.old_jobs
    name = f"IF(seq > {scale.old_jobs - 5}, 'rare', CONCAT('common-', seq % 20))"
    await fill_jobs(rig, scale.old_jobs, kind=9, began=f"200000 + seq * {every}", operation=name)
    await fill_jobs(rig, 1, kind=10, status="running", began="20", operation="'common-7'")
    await fill_jobs(rig, 1, kind=11, status="running", began="20", operation="'rare'")
    ready = await rig.start()
    began = time.monotonic()
    async with rig.measured(f"{scale.old_jobs} old jobs, forecasts") as figures:
        for what, job in jobs.items():
            await eventually(partial(_has_forecast, rig, job), within=60)
            seconds = time.monotonic() - began
            figures.extra[f"first of a {what} operation"] = f"{seconds:.1f} s"
            if seconds > FIRST_FORECASTS:
                figures.exceeded.append(f"the first forecast of a {what} operation after {seconds:.1f} s")
        await asyncio.sleep(5)  # the runs of the other operations are learned
    figures.extra["ready after"] = f"{ready:.1f} s"
    return [figures]


async def _has_forecast(rig: Rig, job: str) -> bool:
    document = await rig.daemon.job(job)
    return document is not None and document["forecast"] is not None


SCENARIOS: tuple[Callable[[Rig], Awaitable[list[Figures]]], ...] = (
    many_jobs,
    many_rows,
    large_rows,
    large_members,
    silent_jobs,
    old_jobs,
)
