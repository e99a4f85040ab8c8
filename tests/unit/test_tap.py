"""`tap` shows each row of the log with its job, on a terminal as one line that fits the window."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import pytest
from rich.cells import cell_len

from correlator.model.facts import AttributedRow, Entry
from correlator.model.published import Outcome
from correlator.sinks.tap import MAX_PENDING, Dropped, TapRow, TapSink
from correlator.terminal import tap
from correlator.terminal.screen import Theme
from tests.support.pipeline_harness import NOW, PipelineHarness

JOB = "e8f15a6d-c5f4-4d69-af72-194b96a0c7fb"
ASCII = Theme("ascii", unicode=False)


def entry(message="copying disk 2 of 3", job_id: str | None = JOB, level="WARN", by="attrs", step_id=7, number=4711):
    return Entry(number, NOW, level, message, 1, job_id, step_id=step_id, by=by if job_id else "none")


def attributed(entry, job_id: str | None = JOB):
    return AttributedRow(entry, job_id, entry.by)


def row(**members):
    found = entry(**members)
    return TapRow(attributed(found, found.job_id), "unified-live-failover", "volume-attachment")


def test_a_wide_line_has_the_time_the_level_the_message_and_the_job_with_the_reason():
    line = tap.line(row(), 160, Theme())
    assert line.plain.startswith("15:12:13.000 WARN  copying disk 2 of 3 ")
    assert line.plain.endswith(" e8f15a6d unified-live-failover volume-attachment, by its attrs")
    assert line.cell_len == 160


def test_a_narrow_line_keeps_level_message_and_job():
    assert tap.line(row(message="copying"), 40, Theme()).plain == "WARN  copying                   e8f15a6d"


@pytest.mark.parametrize("cells", [10, 20, 40, 79, 80, 100, 120, 200])
@pytest.mark.parametrize("theme", [Theme(), ASCII])
def test_no_line_is_wider_than_the_window_nor_a_command_of_the_terminal(cells, theme):
    nasty = "\x1b[2J\x07\r\n漢字" * 30
    long = TapRow(attributed(entry()), nasty, nasty)
    for one in (row(message=nasty), row(message=nasty, job_id=None), long, Dropped(9)):
        line = tap.line(one, cells, theme)
        assert cell_len(line.plain) <= cells
        assert not set(line.plain) & {"\x1b", "\x07", "\r", "\n"}


def test_the_message_has_at_least_half_of_the_line():
    line = tap.line(TapRow(attributed(entry(message="m" * 300)), "o" * 300, "s" * 300), 120, Theme())
    assert line.plain.count("m") >= 40
    assert "o" in line.plain


def test_level_and_job_have_colours_of_their_own():
    styles = {str(span.style) for span in tap.line(row(level="ERROR"), 120, Theme()).spans}
    assert {"red", "cyan"} <= styles
    assert tap.line(row(job_id=None), 120, Theme()).plain.endswith(" no job")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_lines_that_fit_and_a_pipe_whole_lines(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal, pipe, objects = Terminal(), io.StringIO(), io.StringIO()
    one = row(message="m" * 100)
    tap.printer("text", terminal)(one)
    tap.printer("text", pipe)(one)
    tap.printer("json", objects)(one)
    assert "\x1b[" in terminal.getvalue()
    assert terminal.getvalue().count("m") < 60
    assert pipe.getvalue() == (
        f"2025-09-22T15:12:13.000000Z 4711 WARN  {'m' * 100}"
        f"  <- {JOB} (unified-live-failover) step 7 volume-attachment, by its attrs\n"
    )
    assert json.loads(objects.getvalue())["message"] == "m" * 100


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
