"""The daemon sends every job that ends to a receiver of traces, each once, whatever happens to the daemon."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.support.appliance import Appliance
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.mariadb import Database
from tests.support.otlp_receiver import OtlpReceiver, attributes


def runs(receiver: OtlpReceiver) -> list[str]:
    """The job IDs of the traces that have arrived, in order, repeated ones too."""
    return [attributes(span)["cicd.pipeline.run.id"] for span in receiver.spans if span.kind == 2]


async def arrived(receiver: OtlpReceiver, job_id: str) -> Any:
    """The spans of a job once they are there: its own first."""
    await eventually(lambda: job_id in runs(receiver))
    return [span for span in receiver.spans if span.trace_id == uuid.UUID(job_id).bytes]


async def test_every_job_that_ends_becomes_one_trace_over_stop_and_kill(
    tmp_path: Path, database: Database, appliance: Appliance
):
    async with OtlpReceiver().listening() as receiver:
        settings = {"otlp__url": receiver.url, "otlp__delay": "100ms", "mqtt__instance": "appliance-1"}
        daemon = Daemon(tmp_path, database__url=database.url, **settings)
        try:
            before = await appliance.job("before")
            await appliance.end(before)
            # A job that ends while the daemon runs, and its parent.
            parent = await appliance.job("parent")
            child = await appliance.job("gui-1", parent_job_id=parent)
            await daemon.start()
            await appliance.step(child, 1, "copy", "completed")
            await appliance.end(child, "failed", "no space left")
            job, step = await arrived(receiver, child)
            assert (job.name, step.name) == ("RUN unified-live-failover", "copy")
            assert (job.status.code, job.status.message) == (2, "no space left")
            assert attributes(job)["correlator.external_ids"] == ["gui-1"]
            assert [link.trace_id for link in job.links] == [uuid.UUID(parent).bytes]

            async def exported(traces: int) -> bool:
                # The receiver has a trace before the daemon has its answer.
                part = (await daemon.get("/health/ready"))[1]["parts"]["otlp"]
                return bool(part == {"ok": True, "pending": 0, "exported": traces, "dropped": 0, "error": None})

            await eventually(lambda: exported(1))
            assert "correlator_otlp_traces_total 1.0" in await daemon.text("/metrics")
            # While it is stopped: one job ends, another one starts and ends.
            assert await daemon.stop() == 0
            await appliance.end(parent)
            soon = (datetime.now(UTC) + timedelta(seconds=2)).strftime(
                "%Y-%m-%d %H:%M:%S"
            )  # the tables have no fractions
            short = await appliance.job("short", status="completed", completed_at=soon)
            await daemon.start()
            await arrived(receiver, parent)
            await arrived(receiver, short)
            await eventually(lambda: exported(2))
            # After a SIGKILL.
            await daemon.saved()
            await daemon.kill()
            await daemon.start()
            last = await appliance.job("last")
            await eventually(lambda: daemon.job(last))
            await appliance.end(last)
            await arrived(receiver, last)
            assert sorted(runs(receiver)) == sorted([child, parent, short, last])
        finally:
            await daemon.close()
