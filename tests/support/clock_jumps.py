"""Logs whose clock was set back and forward while jobs ran, and what a reader of the whole table finds in them.

Rows have their ids in the order in which they were written. Their times are those of a clock that jumps by minutes or
hours; single rows have a time of 30 hours before or after, and some are committed long after their neighbours.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from correlator.jobs import joblog
from correlator.model.rows import LogRow, Micros
from correlator.pipeline.queries import JobNames
from tests.support.source_databases import Original

MINUTE, HOUR = 60_000_000, 3_600_000_000

JUMPS = (3 * MINUTE, 20 * MINUTE, HOUR + 12 * MINUTE, 3 * HOUR, 8 * HOUR)
FAR = 30 * HOUR


@dataclass
class WrittenJob:
    """A job, its times by the clock of the moment, and the ids between which its rows were written."""

    job_id: str
    first: int
    last: int
    started: Micros = 0
    ended: Micros | None = None
    step: int = 0


@dataclass
class JumpingLog:
    """A log of `length` rows that `seed` chooses, of a day or of weeks. `late`: ids committed after all others."""

    seed: int
    length: int = 300
    rows: list[LogRow] = field(default_factory=list)
    jobs: list[WrittenJob] = field(default_factory=list)
    late: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        chance = random.Random(self.seed)
        for n in range(6):
            first = chance.randrange(self.length)
            last = min(self.length - 1, first + chance.choice((5, 40, 150)))
            self.jobs.append(WrittenJob(f"job-{n}-aB", first, last, step=n + 1))
        jumps = {chance.randrange(self.length): chance.choice((-1, 1)) * chance.choice(JUMPS) for _ in range(4)}
        pauses = (1_000, 50_000, 2_000_000, 60_000_000, chance.choice((900_000_000, 20 * HOUR)))
        passed, ahead = int(datetime.now(UTC).timestamp() - 40 * 86_400) * 1_000_000, 0
        row_id = 0
        for place in range(self.length):
            passed += chance.choice(pauses)
            ahead += jumps.get(place, 0)
            clock = passed + ahead
            row_id += chance.choice((1, 1, 1, 1, 3))
            for job in self.jobs:
                if job.first == place:
                    job.started = clock // 1_000_000 * 1_000_000
                if job.last == place and self.length - 1 > place:
                    job.ended = clock // 1_000_000 * 1_000_000
            far = chance.choice((-FAR, FAR)) if chance.random() < 0.02 else 0
            active = [job for job in self.jobs if job.first <= place <= job.last]
            owner = chance.choice(active) if active and chance.random() < 0.7 else None
            self.rows.append(_row(chance, row_id, clock + far, owner))
            if chance.random() < 0.05:
                self.late.add(row_id)

    async def write(self, original: Original, *, late: bool) -> None:
        """Write the jobs and all rows but the late ones; or only those."""
        if not late:
            for job in self.jobs:
                status = "running" if job.ended is None else "completed"
                ended = None if job.ended is None else text(job.ended)
                await original.job(job.job_id, status=status, started_at=text(job.started), completed_at=ended)
                of_step = {"id": job.step, "job_id": job.job_id, "name": "copy", "seq": 1}
                await original.insert("job_steps", **of_step, started_at=text(job.started))
        rows = [row for row in self.rows if (row.id in self.late) is late]
        mark = f"({', '.join(['%s'] * 8)})"
        values = [v for r in rows for v in (r.id, r.message, text(r.ts), r.level, r.job_id, r.step_id, r.attrs,
                  r.external_job_id)]  # fmt: skip
        columns = "id, message, ts, level, job_id, step_id, attrs, external_job_id"
        await original.run(f"INSERT INTO log_events ({columns}) VALUES {', '.join([mark] * len(rows))}", *values)

    def names(self, job: WrittenJob) -> JobNames:
        ended = None if job.ended is None else max(job.ended, job.started)
        return JobNames(job.job_id, (f"gui-{job.step}",), frozenset({job.step}), job.started, ended)

    def lines_of(self, job: WrittenJob, since: Micros = 0) -> list[int]:
        """The ids of the job's rows: each row is parsed, and belongs to the first of its names."""
        return [row.id for row in self.rows if row.ts >= since and _belongs(row, self.names(job))]


def text(at: Micros) -> str:
    """A time in UTC, as columns are written."""
    return f"{datetime.fromtimestamp(at // 1_000_000, UTC):%Y-%m-%d %H:%M:%S}.{at % 1_000_000:06}"


def _row(chance: random.Random, row_id: int, ts: Micros, job: WrittenJob | None) -> LogRow:
    attrs: dict[str, object] = {"volume": f"vol-{row_id}"}
    row = LogRow(row_id, f"line {row_id % 7}", ts, "INFO", None, None, None, None)
    if job is None:
        return LogRow(row_id, row.message, ts, "INFO", None, None, json.dumps(attrs), None)
    by = chance.choice(("column", "attrs", "attrs", "attrs", "case", "step", "step column", "external", "large"))
    column, step, external = None, None, None
    if by == "column":
        column = job.job_id
    elif by == "step column":
        step = job.step
    elif by == "step":
        attrs["step_id"] = job.step
    elif by == "external":
        external = f"gui-{job.step}"
    else:
        attrs["job_id"] = job.job_id.swapcase() if by == "case" else job.job_id
        attrs |= {"dump": "x" * joblog.MAX_ATTRS} if by == "large" and chance.random() < 0.05 else {}
    return LogRow(row_id, row.message, ts, "INFO", column, step, json.dumps(attrs), external)


def _belongs(row: LogRow, names: JobNames) -> bool:
    attrs = json.loads(row.attrs or "{}")
    job_id, step_id = row.job_id or attrs.get("job_id"), row.step_id or attrs.get("step_id")
    if job_id is not None:
        return str(job_id).casefold() == names.job_id.casefold()
    if step_id is not None:
        return step_id in names.step_ids
    return row.external_job_id in names.external_ids


def ids(lines: Iterable[object]) -> list[int]:
    return [line.event_id for line in lines]  # type: ignore[attr-defined]
