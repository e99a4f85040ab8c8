"""What commands print on terminals of several widths and in a pipe: the texts in tests/data/terminal/.

After a change that is meant, `UPDATE_TEXTS=1 pytest tests/unit/test_terminal_texts.py` writes them anew, and fails
where one differs: read the differences before they are committed.
"""

from __future__ import annotations

import os
import re
import time
from typing import Any

import pytest
from rich.cells import cell_len

from correlator.client.client import JobList
from correlator.client.messages import LogMessage
from correlator.client.replica import ConnectionState
from correlator.doctor.report import CheckReport, failure, ok, warning
from correlator.model.facts import AttributedRow, Entry
from correlator.model.messages import SourceStatus
from correlator.sinks.tap import Dropped, TapRow
from correlator.terminal import tap
from correlator.terminal.doctor import print_report
from correlator.terminal.formats import Percents
from correlator.terminal.history import history
from correlator.terminal.listing import FollowedLines, Form, Query, frame, jobs
from correlator.terminal.logs import Printer
from correlator.terminal.screen import Screen, console_on, theme_for
from correlator.terminal.show import show
from correlator.terminal.watch import Branch, EventLines, Frame, WatchState, tree_lines
from tests.support.job_documents import NASTY, NOW, document, forecast, step, update
from tests.support.paths import DATA
from tests.support.screens import Output, screen

TEXTS = DATA / "terminal"
PIPE = 0

CUT = {"blob": 18_000_000, "*": 1_500}
FAILED = document(
    "7f1c2d3e-0000-4000-8000-000000000004", "failed", started_at="2025-09-21T18:29:59Z",
    ended_at="2025-09-22T15:10:00Z", error="\nstep failed\n  at attach(volume)", error_cut=2_000_000,
    external_ids=["gui-" + "x" * 80 + "-1758553933", "b", "c"], metadata={"vm_name": "web-1", "_cut": CUT},
    external_ids_cut=400, child_job_ids=["child"], child_job_ids_cut=99, parent_job_id="parent",
    compared_with={"typical_seconds": 80.0, "runs": 37, "percentile": 88.0}, counts_complete=False, warnings=3,
    errors=1, steps_complete=False, steps={
        "1": step(1, "validation"),
        "2": step(2, "volume-attachment", "failed", error_cut=20_000,
                  error="CloudStack job 431 failed: Unable to attach volume <vol-9> " * 4),
        "3": step(3, "rollback", "skipped"),
    },
)  # fmt: skip
COMPLETED = document(
    "7f1c2d3e-0000-4000-8000-000000000005", "completed", started_at="2024-09-22T15:12:01Z", forecast=None,
    ended_at="2024-09-22T15:13:37Z", duration_seconds=96.4, instance="dc1", progress={"percent": 100.0},
    compared_with={"typical_seconds": 80.0, "runs": 37, "percentile": 88.0},
)  # fmt: skip
FASTER = COMPLETED | {
    "job_id": "unified-live-failover-pgtest2-1758553933", "duration_seconds": 60.0, "instance": None,
    "compared_with": {"typical_seconds": 80.0, "runs": 37, "percentile": 12.0},
}  # fmt: skip
AHEAD = [{"name": "漢字\x1b[2J" * 9, "share": 0.5, "typical_seconds": 3.0}]
JOBS: dict[str, Any] = {
    "bare": document(
        "bare", metadata={}, current_step=None, started_at=None, external_ids=[], steps={
            "9": step(0, "of the log alone", "running"), "4": step(2, "second"), "12": step(1, "first"),
        },
    ),
    "running": document("7f1c2d3e-0000-4000-8000-000000000000", context_id="ctx-1", **forecast()),
    "late": document(
        "late", started_at="2025-09-19T10:00:00Z", metadata={"vm_name": "漢字" * 20},
        **forecast("late", steps_ahead=AHEAD),
    ),
    "overdue": document("overdue", stalled=True, **forecast("overdue")),
    "rough": document("rough", started_at="2025-09-21T18:30:00Z", **forecast("rough")),
    "failed": FAILED,
    "completed": COMPLETED,
    "faster": FASTER,
    "nasty": document(
        NASTY, "cancelled", external_ids=[NASTY], operation=NASTY, metadata={"vm_name": NASTY, NASTY: NASTY},
        owner=NASTY, last_message={"level": NASTY, "text": NASTY, "at": NASTY}, steps={NASTY: step(1, NASTY)},
    ),
}  # fmt: skip
"""What each command prints: jobs in all states, with and without a forecast, cut, hostile and nearly empty."""

LOGS = tuple(
    LogMessage(job_id=FAILED["job_id"], event_id=n, level=level, step_id=2, message=f"retrying, attempt {n} {NASTY}",
               attrs={"code": 503, "step_id": 2}, at="2025-09-22T15:12:05.5Z")
    for n, level in enumerate(("DEBUG", "INFO", "WARN", "ERROR", "WARN", "WARN"))
)  # fmt: skip


class Recorded:
    """A daemon that knows `JOBS`, but for those that have one of some members."""

    def __init__(self, *without: str) -> None:
        self._jobs = [job for job in JOBS.values() if not any(job.get(name) for name in without)]

    async def jobs(self, parameters: Any, limit: int) -> JobList:
        return JobList(self._jobs[:limit], more=True)

    async def history(self, name: str, limit: int, since: str | None) -> JobList:
        return JobList([FAILED, COMPLETED, FASTER], incomplete="dc2 is away")

    async def job(self, name: str) -> Any:
        return JOBS[name]


RECORDED: Any = Recorded()


async def _jobs(out: Any, err: Any, width: int) -> None:
    await jobs(RECORDED, Query(limit=50), Form("table" if width else "plain"), out, err)


async def _jobs_without_forecast(out: Any, err: Any, width: int) -> None:
    daemon: Any = Recorded("forecast", "instance")
    await jobs(daemon, Query(), Form("table" if width else "plain", header=False), out, err)


async def _jobs_followed(out: Any, err: Any, width: int) -> None:
    lines = FollowedLines(Query(), Form("plain"), out)
    for synced in (False, True):
        if not width:
            lines.handle(update(*JOBS.values(), synced=synced))
            continue
        with Screen(console_on(out, width=width)) as on:
            on.paint(frame(update(*JOBS.values(), synced=synced), Query(limit=4), on, theme_for(out, {}), Percents()))


async def _show(out: Any, err: Any, width: int) -> None:
    for name in JOBS:
        await show(RECORDED, name, "text", out)


async def _history(out: Any, err: Any, width: int) -> None:
    await history(RECORDED, "web-1", None, 50, Form("table" if width else "plain"), out, err)


async def _watch(out: Any, err: Any, width: int) -> None:
    if width:
        branches = [Branch(f"gui-{name}", job, LOGS if job is FAILED else ()) for name, job in JOBS.items()]
        for height in (0, 40):
            for line in tree_lines([*branches, Branch("gui-7")], Frame(width, height, NOW, theme_for(out, {}))):
                console_on(out).print(line, soft_wrap=True)
        return
    watch = WatchState([job["job_id"] for job in JOBS.values()])
    lines, live = EventLines(watch, out, err), ConnectionState("live")
    late = JOBS["running"] | forecast("late") | {"rev": 18}
    away = update(connection=ConnectionState("offline", "http://h cannot be reached: why\nmore"))
    ends_otherwise = FAILED | {"status": "completed", "error": None, "rev": 18}
    for one in (
        update(*JOBS.values(), connection=live), away, away, update(late, logs=LOGS, connection=live),
        update(database=SourceStatus("stale", 1.0, "job_steps cannot be read: gone")),
        update(ends_otherwise, JOBS["overdue"] | {"stalled": False, "rev": 18},
               database=SourceStatus("live", 0.0, None)),
    ):  # fmt: skip
        lines.handle(watch.apply(one), one)


async def _logs(out: Any, err: Any, width: int) -> None:
    Printer(out, "plain").write(LOGS, FAILED)


async def _tap(out: Any, err: Any, width: int) -> None:
    at, known = NOW * 1e6, COMPLETED["job_id"]
    for job_id, names, message in (
        (known, known, "copying disk 2 of 3"), (known, known, NASTY + "m" * 200), (None, None, "of nobody"),
        (None, "unknown", "of a job that is not known"),
    ):  # fmt: skip
        entry = Entry(4711, int(at), "WARN", message, 1, names, step_id=7, by="attrs" if job_id else "none")
        row = AttributedRow(entry, job_id, entry.by)
        tap.printer("text", out)(TapRow(row, "unified-live-failover" if job_id else None, "volume-attachment"))
    tap.printer("text", out)(Dropped(9))


async def _doctor(out: Any, err: Any, width: int) -> None:
    checks = (
        failure("first.bad", "it is\x1b[31m bad" + " and long" * 9, ["why it is"], [f"GRANT {'x' * 80};"]),
        ok("second", "it is well"),
        warning("third", "it is so-so"),
    )
    for some in (checks, checks[2:]):
        print_report(CheckReport("1.0", "2025-09-22T15:12:13Z", some), out, {})


COMMANDS = {
    "jobs": _jobs,
    "jobs-without-forecast": _jobs_without_forecast,
    "jobs-w": _jobs_followed,
    "show": _show,
    "history": _history,
    "watch": _watch,
    "logs": _logs,
    "tap": _tap,
    "doctor": _doctor,
}


pytestmark = pytest.mark.usefixtures("in_india")


@pytest.mark.parametrize(
    ("width", "encoding"),
    [(40, "utf-8"), (60, "utf-8"), (100, "utf-8"), (160, "utf-8"), (PIPE, "utf-8"), (60, "ascii")],
)
@pytest.mark.parametrize("command", COMMANDS)
async def test_a_command_prints_what_is_recorded_and_fits_its_terminal(command, width, encoding, monkeypatch):
    out, err = await written(monkeypatch, command, width, encoding)
    printed = re.sub(r"\x1b\[[\d;]*m", "", out) if width else out
    lines = screen(printed) if "\x1b" in printed else [line.rstrip() for line in printed.split("\n")]
    assert all(line.isprintable() for line in lines if "\t" not in line)
    for line in lines if width and command not in ("logs", "doctor") else ():
        assert cell_len(line) <= width
    assert (encoding == "utf-8") or printed.isascii()
    printed = "\n".join(lines).strip("\n") + "\n" + err
    compare(f"{command}-{width or 'pipe'}{'' if encoding == 'utf-8' else '-ascii'}", printed)


@pytest.mark.parametrize("command", COMMANDS)
async def test_colours_are_for_terminals_and_only_where_they_are_wanted(command, monkeypatch):
    colour = re.compile(r"\x1b\[(\d;)*[39]\d")
    assert colour.search((await written(monkeypatch, command, 100))[0])
    assert not colour.search((await written(monkeypatch, command, 100, NO_COLOR="1"))[0])


async def written(
    monkeypatch: pytest.MonkeyPatch, command: str, width: int, encoding: str = "utf-8", **variables: str
) -> tuple[str, str]:
    """What a command writes to its terminal, or to a pipe, and to standard error."""
    environ = {"COLUMNS": str(width or 80), "LINES": "8", "TERM": "xterm-256color", "LANG": "en_GB.UTF-8"} | variables
    out, err = Output(encoding, tty=bool(width)), Output(encoding, tty=False)
    with monkeypatch.context() as patch:
        for name in ("NO_COLOR", "LC_ALL", "LC_CTYPE"):
            patch.delenv(name, raising=False)
        for name, value in environ.items():
            patch.setenv(name, value)
        patch.setattr(time, "time", lambda: NOW)
        await COMMANDS[command](out, err, width)
    return out.getvalue(), err.getvalue()


def compare(name: str, text: str) -> None:
    file = TEXTS / f"{name}.txt"
    recorded = file.read_text(encoding="utf-8") if file.exists() else ""
    if "UPDATE_TEXTS" in os.environ:
        file.write_text(text, encoding="utf-8")
    assert text == recorded, f"{file} differs; {__doc__}"
