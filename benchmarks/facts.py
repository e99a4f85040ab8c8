"""Jobs as the core knows them, without a database: for what is measured inside one process."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

from correlator.jobs.index import Index
from correlator.model.facts import Reading
from correlator.model.rows import JobRecord, StepRecord

STEPS = ("validation", "source-vm-power-off", "final-sync", "multi-volume-snapshot-creation", "vm-creation")


def now() -> int:
    return time.time_ns() // 1000


def job_id(number: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"bench-{number}"))


def readings(index: Index, count: int, steps: int = 10, *, running: int = 0) -> Iterator[Reading]:
    """What the tables say of `count` jobs, the last `running` of which have not ended."""
    began = now() - 3_600_000_000
    for n in range(count):
        ended = n < count - running
        at = began + n * 1000
        record = JobRecord(
            job_id(n),
            operation="unified-live-failover",
            status="completed" if ended else "running",
            job_type="failover",
            external_job_id=f"unified-live-failover-vm{n}-1758553933",
            metadata=f'{{"failover_job_id":"unified-live-failover-vm{n}-1758553932","vm_name":"vm{n}"}}',
            started_at=at,
            completed_at=at + 50_000_000 if ended else None,
            updated_at=at,
            owner="system",
            context_id=f"ctx-vm{n}-20250922",
            job_category="failover",
        )
        found = tuple(
            StepRecord(n * steps + k, f"{STEPS[k % 5]}-{k}", k + 1, "completed", at + k * 1_000_000, at + k * 1_500_000)
            for k in range(steps)
        )
        yield Reading(record.job_id, index.advance_clock(), record, found)
