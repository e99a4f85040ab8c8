"""A cluster on this machine: a NATS server, collectors and gateways as processes, or a stream of made-up documents."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from benchmarks.daemon import Measured, started
from benchmarks.facts import STEPS
from benchmarks.harness import REPOSITORY
from correlator.model.facts import Line, Status
from correlator.model.published import JobView, PublishedJob
from correlator.model.rows import StepRecord
from tests.support.background import in_background
from tests.support.cluster import connected, create_streams
from tests.support.mariadb import Database
from tests.support.nats import Nats
from tests.support.stream_writer import AT, StreamWriter


class Gateway(Measured):
    """`correlator gateway`, with measurements of its process."""

    def __init__(self, folder: Path, url: str, tree: Path = REPOSITORY) -> None:
        super().__init__(folder, tree, cluster__url=url)
        del self.environ["CORRELATOR_DATABASE__TIMEZONE"]
        self.command = "gateway"


def nats() -> contextlib.AbstractAsyncContextManager[Nats]:
    return started(Nats())


@contextlib.asynccontextmanager
async def gateways(url: str, count: int = 1, *, tree: Path = REPOSITORY) -> AsyncIterator[list[Gateway]]:
    """Gateways of `tree`; not started."""
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for number in range(count):
            (one := Path(folder, f"g{number}")).mkdir()
            found.append(Gateway(one, url, tree))
        try:
            yield found
        finally:
            for gateway in found:
                await gateway.close()


@contextlib.asynccontextmanager
async def collectors(
    database: Database, url: str, count: int = 1, *, tree: Path = REPOSITORY
) -> AsyncIterator[list[Measured]]:
    """Daemons of one appliance, of `tree`; not started. Those of some earlier trees created the streams themselves."""
    if tree == REPOSITORY:
        await create_streams(url)
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for number in range(count):
            (one := Path(folder, f"c{number}")).mkdir()
            found.append(Measured(one, tree, database__url=database.url, cluster__url=url, cluster__instance="dc1"))
        try:
            yield found
        finally:
            for collector in found:
                await collector.close()


@contextlib.asynccontextmanager
async def stream(url: str, count: int) -> AsyncIterator[StreamWriter]:
    """A stream of `count` jobs of 10 steps, whose collector is online for as long as the block lasts."""
    async with connected(url) as connection:
        writer = StreamWriter(connection, "dc1")
        await writer.begin()
        await writer.fill(example_jobs(count))

        async def report() -> None:
            while True:
                await writer.alive(jobs=count)
                await asyncio.sleep(0.5)

        async with in_background(report()):
            yield writer


def example_jobs(count: int) -> Iterator[PublishedJob]:
    """Ended jobs, in the words of a real appliance. Their documents have 2.9 kB."""
    for n in range(count):
        at = AT + n * 1_000_000
        steps = tuple(
            StepRecord(10 * n + k, STEPS[k % 5], k + 1, "completed", at + k * 5_000_123, at + k * 5_000_123 + 4_000_456)
            for k in range(10)
        )
        view = JobView(
            f"00000000-0000-4000-8000-{n:012}",
            Status.COMPLETED,
            external_ids=(f"unified-live-failover-bench{n}-1758553933",),
            context_id=f"ctx-bench{n}-20250922",
            job_type="failover",
            operation="unified-live-failover",
            category="failover",
            owner="system",
            started_at=at,
            ended_at=at + 50_000_000,
            percent=100.0,
            basis="reported",
            steps=steps,
            last=Line(at + 49_000_000, n, "INFO", "Job completed successfully"),
            metadata=f'{{"failover_type":"live","vm_name":"bench{n}","vmware_vm_id":"4205a841"}}',
        )
        yield PublishedJob(view, 0, at + 50_000_000)
