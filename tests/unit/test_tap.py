"""`tap` shows each row of the log with its job, on a terminal as one line that fits the window."""

from __future__ import annotations

import asyncio
from typing import Any

from correlator.model.facts import AttributedRow, Entry
from correlator.model.published import Outcome
from correlator.sinks.tap import MAX_PENDING, Dropped, TapRow, TapSink
from correlator.terminal import tap
from correlator.terminal.screen import Theme
from tests.support.pipeline_harness import NOW, PipelineHarness

JOB = "e8f15a6d-c5f4-4d69-af72-194b96a0c7fb"


def entry(message="copying disk 2 of 3", job_id: str | None = JOB, level="WARN", by="attrs", step_id=7, number=4711):
    return Entry(number, NOW, level, message, 1, job_id, step_id=step_id, by=by if job_id else "none")


def attributed(entry, job_id: str | None = JOB):
    return AttributedRow(entry, job_id, entry.by)


def row(**members):
    found = entry(**members)
    return TapRow(attributed(found, found.job_id), "unified-live-failover", "volume-attachment")


def test_level_and_job_have_colours_of_their_own():
    styles = {str(span.style) for span in tap.line(row(level="ERROR"), 120, Theme()).spans}
    assert {"red", "cyan"} <= styles
    assert tap.line(row(job_id=None), 120, Theme()).plain.endswith(" no job")


async def shown(rows, **options):
    """The rows that a sink with these options shows of one batch."""
    harness = PipelineHarness()
    found: list[Any] = []
    harness.hub.index.loading = False
    task = asyncio.create_task(TapSink(found.append, **options).run(harness.hub))
    await asyncio.sleep(0)
    harness.hub.publish(Outcome(attributed=rows))
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return found


async def test_rows_without_a_job_are_left_out_where_only_attributed_ones_are_wanted():
    rows = [attributed(entry(number=1)), attributed(entry(number=2, job_id=None), None)]
    rows.append(attributed(entry(number=3, job_id="unknown"), None))  # it names a job that does not exist
    assert [one.row.entry.event_id for one in await shown(rows)] == [1, 2, 3]
    assert [one.row.entry.event_id for one in await shown(rows, attributed=True)] == [1]


async def test_rows_that_come_too_fast_are_dropped_and_counted():
    rows = [attributed(entry(number=n)) for n in range(MAX_PENDING + 3)]
    dropped, first, *_, last = await shown(rows)
    assert dropped == Dropped(3)
    assert (first.row.entry.event_id, last.row.entry.event_id) == (3, MAX_PENDING + 2)
