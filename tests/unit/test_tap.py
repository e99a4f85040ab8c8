"""The rows of the log that `tap` gets, each with its job."""

from __future__ import annotations

import asyncio
from typing import Any

from correlator.model.facts import AttributedRow, Entry
from correlator.model.published import Outcome
from correlator.sinks.tap import MAX_PENDING, Dropped, TapSink
from tests.support.pipeline_harness import NOW, PipelineHarness


def row(number: int) -> AttributedRow:
    return AttributedRow(Entry(number, NOW, "WARN", "copying disk 2 of 3", 1, "j", by="attrs"), "j", "attrs")


async def test_rows_that_come_too_fast_are_dropped_and_counted():
    harness = PipelineHarness()
    found: list[Any] = []
    harness.hub.index.loading = False
    task = asyncio.create_task(TapSink(found.append).run(harness.hub))
    await asyncio.sleep(0)
    harness.hub.publish(Outcome(attributed=[row(n) for n in range(MAX_PENDING + 3)]))
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    dropped, first, *_, last = found
    assert dropped == Dropped(3)
    assert (first.row.entry.event_id, last.row.entry.event_id) == (3, MAX_PENDING + 2)
