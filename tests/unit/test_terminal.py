"""What is printed: it fits, it is told once, and nobody else's text reaches the terminal as a command."""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from correlator.replica import Connection, Update
from correlator.replica.messages import Log
from correlator.terminal import signs, tree
from correlator.terminal.listing import Query, newest, plain, table
from correlator.terminal.screen import Screen
from correlator.terminal.show import fields
from correlator.terminal.shows import Lines, Objects
from correlator.terminal.signs import Signs, as_json, console_on, duration, signs_for
from correlator.terminal.watched import Watch

NOW = 1_758_553_960.0  # 2025-09-22T15:12:40Z
NASTY = "\x1b[2J\x1b]0;owned\x07[bold red]x[/]\r\n\t\u202e\u009b31m"


def step(seq: int, name: str, status: str = "completed", **members: Any) -> dict[str, Any]:
    return {"seq": seq, "name": name, "status": status, "started_at": f"2025-09-22T15:12:{seq:02}.000000Z",
            "ended_at": None if status == "running" else f"2025-09-22T15:12:{seq:02}.900000Z",
            "duration_seconds": 0.9, "error": None, **members}  # fmt: skip


def document(job_id: str = "e8f15a6d-c5f4-4d69-af72-194b96a0c7fb", status: str = "running", **members: Any) -> Any:
    steps = members.pop(
        "steps", {"1": step(1, "validation"), "2": step(2, "multi-volume-snapshot-creation", "running")}
    )
    return {
        "job_id": job_id, "external_ids": ["unified-live-failover-pgtest2-1758553933"], "context_id": None,
        "parent_job_id": None, "child_job_ids": [], "job_type": "failover", "operation": "unified-live-failover",
        "category": None, "owner": "system", "status": status, "terminal": status in signs.ENDED, "error": None,
        "started_at": "2025-09-22T15:12:01.000000Z", "ended_at": None, "updated_at": "2025-09-22T15:12:13.000000Z",
        "duration_seconds": 12.0, "stalled": False, "last_event_at": None, "warnings": 0, "errors": 0,
        "progress": {"percent": 40.0, "basis": "steps", "steps_done": 1, "steps_failed": 0, "steps_running": 1,
                     "steps_skipped": 0, "steps_seen": 2},
        "current_step": "multi-volume-snapshot-creation", "steps": steps, "source": "joblog", "rev": 17,
        "last_message": {"level": "INFO", "text": "creating snapshots", "at": "2025-09-22T15:12:12.000000Z"},
        "metadata": {"vm_name": "pgtest2"}, **members,
    }  # fmt: skip


FAILED_STEPS = {
    "1": step(1, "validation"),
    "2": step(
        2, "volume-attachment", "failed", error="CloudStack job 431 failed: Unable to attach volume <vol-9> " * 4
    ),
}
LOGS = tuple(
    Log(job_id="x", event_id=n, level="WARN", step_id=2, message=f"retrying, attempt {n}", at="2025-09-22T15:12:05Z")
    for n in range(9)
)


def update(*jobs: Any, gone: dict[str, str] | None = None, logs: tuple[Log, ...] = (), **members: Any) -> Update:
    known = {job["job_id"]: job for job in jobs}
    return Update(known, frozenset(known), gone or {}, logs, members.pop("synced", True), **members)


def texts(lines: list[Text]) -> list[str]:
    return [line.plain for line in lines]


def drawn(*branches: tree.Branch, width: int = 80, height: int = 0, look: Signs | None = None) -> list[str]:
    return texts(tree.lines(branches, tree.Frame(width, height, NOW, look or Signs())))


# -- the tree


def test_a_running_job_is_a_header_a_bar_and_its_steps():
    assert drawn(tree.Branch("gui-1", document()), width=60) == [
        "● pgtest2  unified-live-failover                     running",
        "  █████████████░░░░░░░░░░░░░░░░░░░░░  40% 1/2 steps      39s",
        "  gui-1",
        "  ✓ validation                                          0.9s",
        "  ● multi-volume-snapshot-creation                       38s",
        "    creating snapshots",
    ]


@pytest.mark.parametrize("width", [20, 40, 80, 120])
@pytest.mark.parametrize("look", [Signs(), Signs("ascii", unicode=False)])
def test_no_line_is_wider_than_the_terminal(width, look):
    failed = document(status="failed", steps=FAILED_STEPS, error="y" * 500, metadata={"vm_name": "漢字" * 40})
    branches = [
        tree.Branch("gui-1" * 30, document()),
        tree.Branch("x", failed, LOGS),
        tree.Branch(NASTY * 9, document()),
    ]
    lines = drawn(*branches, tree.Branch("never-" * 30), width=width, look=look)
    assert max(cell_len(line) for line in lines) <= width
    assert any(look.ellipsis in line for line in lines)


def test_under_a_failed_step_stay_its_error_and_its_last_log_lines():
    lines = drawn(tree.Branch("x", document(status="failed", steps=FAILED_STEPS, error="other"), LOGS), width=60)
    at = next(n for n, line in enumerate(lines) if "✗ volume-attachment" in line)
    assert lines[at + 1] == "      CloudStack job 431 failed: Unable to attach volume"
    assert " ".join(line.strip() for line in lines[at + 1 : -6]) == (FAILED_STEPS["2"]["error"]).strip()
    assert lines[-6:-1] == [f"      WARN  15:12:05 retrying, attempt {n}" for n in range(4, 9)]
    assert lines[-1] == "  other"


def test_a_low_window_folds_what_went_well_before_it_hides_anything_else():
    steps = {str(n): step(n, f"step-{n}", "completed" if n < 20 else "running") for n in range(1, 21)}
    branches = [tree.Branch("a", document("a", steps=steps)), tree.Branch("b", document("b", "completed"))]
    assert len(drawn(*branches)) == 29
    folded = drawn(*branches, height=12)
    assert len(folded) <= 12
    assert "  ✓ 19 steps done" in folded
    assert any("step-20" in line for line in folded)
    assert len(drawn(*branches, height=2)) == 2
    many = [tree.Branch(str(n), document(str(n))) for n in range(9)]
    assert drawn(*many, height=4)[-1] == "… 6 more lines"


def test_an_id_that_nobody_knows_is_waited_for():
    assert drawn(tree.Branch("gui-1")) == ["○ waiting for gui-1"]


@pytest.mark.parametrize("share", [0.0, 50.0, 99.9, 100.0, -3.0, 300.0])
def test_a_bar_is_full_only_at_a_hundred(share):
    bar = Signs(unicode=False).bar(share, 10).plain
    assert len(bar) == 10
    assert (bar == "#" * 10) is (share >= 100)


# -- untrusted text


def everything(job: Any, look: Signs) -> str:
    out = io.StringIO()
    console = Console(
        file=out, width=200, force_terminal=True, markup=False, emoji=False, highlight=False, no_color=True
    )
    for line in tree.lines(
        [tree.Branch(NASTY, job, (Log(level=NASTY, message=NASTY),))], tree.Frame(200, 0, NOW, look)
    ):
        console.print(line)
    console.print(table([job], 200, NOW, look))
    for _, value in fields(job, NOW, look):
        console.print(value)
    return out.getvalue() + plain(job, look) + as_json(job)


@pytest.mark.parametrize("look", [Signs(), Signs("ascii", unicode=False), Signs("latin-1", unicode=False)])
def test_text_of_the_database_is_never_a_command_of_the_terminal_nor_markup(look):
    nasty_step = step(1, NASTY, "failed", error=NASTY)
    job = document(NASTY, "failed", external_ids=[NASTY], operation=NASTY, error=NASTY, steps={NASTY: nasty_step},
                   metadata={"vm_name": NASTY, NASTY: NASTY}, owner=NASTY, job_type=NASTY,
                   last_message={"level": NASTY, "text": NASTY, "at": NASTY})  # fmt: skip
    printed = everything(job, look)
    for sequence in ("\x1b[2J", "\x1b]", "\x07", "\r", "\t\u202e", "\u202e", "\u009b"):
        assert sequence not in printed
    assert "[bold red]x[/]" in printed
    printed.encode(look.encoding if look.unicode else "ascii")


def test_json_is_ascii_so_that_no_terminal_takes_it_for_a_command():
    written = as_json({"a": NASTY + "\x7f"})
    assert json.loads(written) == {"a": NASTY + "\x7f"}
    assert written.isascii()
    assert written.isprintable()


@pytest.mark.parametrize(
    ("encoding", "environ", "unicode"),
    [
        ("utf-8", {}, True),
        ("utf-8", {"LANG": "de_DE.UTF-8"}, True),
        ("utf-8", {"LC_ALL": "C", "LANG": "de_DE.UTF-8"}, False),
        ("ascii", {}, False),
        ("latin-1", {"LANG": "de_DE.UTF-8"}, False),
    ],
)
def test_signs_are_ascii_where_the_stream_or_the_locale_knows_no_others(encoding, environ, unicode):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    assert signs_for(stream, environ).unicode is unicode


# -- lists


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_table_fits_and_shows_the_more_the_wider(width):
    jobs = [document(), document("b", "failed", metadata={"vm_name": "漢字" * 20}), document("c", metadata={})]
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(table(jobs, width, NOW, Signs()))
    lines = console.export_text().splitlines()
    assert len(lines) == 4
    assert max(cell_len(line) for line in lines) <= width
    shown = {
        40: ["pgtest2", "40%", "39s"],
        80: ["running", "███░░░░░  40%", "unified-live", "e8f15a6d"],
        120: ["e8f15a6d-c5f4-4d69-af72-194b96a0c7fb", "multi-"],
    }[width]
    assert all(one in lines[1] for one in shown)
    assert lines[2].startswith("✗")


def test_plain_has_one_line_of_columns_for_a_job_with_a_dash_where_nothing_is_known():
    assert plain(document(metadata={}, current_step=None), Signs()).split("\t") == [
        "2025-09-22T15:12:01Z", "e8f15a6d-c5f4-4d69-af72-194b96a0c7fb", "running", "40", "-", "unified-live-failover",
        "-", "12",
    ]  # fmt: skip


def test_a_followed_list_admits_what_the_daemon_would_list():
    jobs = [document("a", started_at="2025-09-22T10:00:00Z"), document("b", operation="other", external_ids=[])]
    jobs.append(document("c", metadata={"vm_name": "Web1"}, started_at=None))

    def found(**query: Any) -> list[str]:
        return [job["job_id"] for job in newest(update(*jobs), Query(**query))]

    assert found() == ["b", "a", "c"]
    assert found(limit=2) == ["b", "a"]
    assert found(operation=("other",)) == ["b"]
    assert found(text="wEB") == ["c"]
    assert found(text="1758553933") == ["a", "c"]
    assert found(since="2025-09-22T12:00:00+00:00") == ["b"]


# -- what has happened


def told(watch: Watch, *updates: Update) -> list[str]:
    return [f"{one.name}: {one.text}" for one in (h for u in updates for h in watch.hear(u))]


def test_each_transition_is_told_once_and_in_order():
    watch = Watch(["e8f15a6d-c5f4-4d69-af72-194b96a0c7fb"])
    first = update(document())
    ended = document(
        status="failed", error="boom", duration_seconds=15.0, steps=FAILED_STEPS | {"3": step(3, "rollback", "skipped")}
    )
    name = watch.all[0].name
    assert told(watch, first, update(document(rev=18))) == [
        f"{name}: unified-live-failover pgtest2 running",
        f"{name}: step validation completed after 0.9s",
        f"{name}: step multi-volume-snapshot-creation running",
    ]
    assert told(watch, update(ended), update(ended | {"rev": 30}), first) == [
        f"{name}: step volume-attachment failed after 0.9s: {FAILED_STEPS['2']['error']}",
        f"{name}: step rollback skipped after 0.9s",
        f"{name}: unified-live-failover pgtest2 failed after 15s: boom",
    ]


def test_an_end_that_turns_out_to_be_another_is_told_and_counts():
    watch = Watch(["a"])
    ended = [document("a", status, steps={}, operation="op", metadata={}) for status in ("failed", "completed")]
    assert told(watch, update(ended[0]), update(ended[1])) == ["a: op failed after 12s", "a: op completed after 12s"]
    assert watch.code(by_status=True) == 0


def test_a_legacy_job_that_turns_out_to_be_joblogs_is_the_same_job():
    watch = Watch(["live-a"])
    legacy = document("live-a", source="legacy", steps={}, external_ids=[])
    real = document("u", external_ids=["live-a"], steps={})
    merged = Update({"u": real}, frozenset({"u"}), {"live-a": "merged"}, synced=True)
    assert told(watch, update(legacy), merged) == ["live-a: unified-live-failover pgtest2 running"]
    assert (watch.all[0].job or {})["job_id"] == "u"


def test_an_id_that_names_another_run_begins_anew():
    watch = Watch(["x"])
    old = document("a", "failed", external_ids=["x"], steps={}, started_at="2025-09-22T15:00:00Z")
    new = document("b", external_ids=["x"], steps={})
    heard = update(old, logs=(Log(job_id="a", event_id=1, message="of the old one"),))
    assert len(told(watch, heard, update(old, new), Update({"b": new}, gone={"a": "filter"}, synced=True))) == 3
    assert list(watch.all[0].logs) == []
    assert watch.code(by_status=True) == 1


@pytest.mark.parametrize("reason", ["absent", "retention", "filter"])
def test_a_job_stays_as_it_was_seen_when_the_daemon_no_longer_shows_it(reason):
    watch = Watch(["a"])
    assert told(watch, update(document("a", "completed", steps={})), update(gone={"a": reason}))[1:] == []
    assert (watch.ended, watch.code(by_status=True)) == (True, 0)


def test_a_job_whose_row_was_deleted_is_over_and_not_found():
    watch = Watch(["a"])
    assert told(watch, update(document("a", steps={})), update(gone={"a": "gone"}))[1:] == ["a: deleted"]
    assert (watch.ended, watch.code(by_status=False)) == (True, 12)


def test_the_exit_code_is_the_highest():
    states = {"completed": 0, "failed": 10, "cancelled": 11, "running": 1}
    for status, code in states.items():
        watch = Watch(["a", "b"])
        watch.hear(update(document("a", status), document("b", "completed")))
        assert watch.code(by_status=True) == code
        assert watch.code(by_status=False) == (1 if status == "running" else 0)
    assert Watch(["a"]).code(by_status=True) == 12


def test_a_log_line_is_told_once_and_only_of_a_job_that_is_watched():
    watch = Watch(["a"])
    lines = (Log(job_id="a", event_id=1, level="WARN", message="m"), Log(job_id="b", event_id=2, message="n"))
    once = told(watch, update(document("a", steps={}), logs=lines), update(logs=lines))
    assert once[1:] == ["a: WARN m"]
    assert told(watch, update(logs=(Log(dropped=4),))) == [": 4 log lines came too fast and were lost"]


def test_stalling_and_recovering_are_told():
    watch = Watch(["a"])
    states = [document("a", steps={}, stalled=stalled) for stalled in (False, True, False)]
    assert told(watch, *map(update, states))[1:] == ["a: stalled: nothing is heard of it", "a: goes on"]


def test_lines_say_what_is_waited_for_once_and_the_connection_on_standard_error():
    watch, out, err = Watch(["gui-1"]), io.StringIO(), io.StringIO()
    lines = Lines(watch, out, err)
    away = Update({}, connection=Connection("offline", "http://h cannot be reached: why\nmore"))
    for one in (
        update(),
        update(),
        away,
        away,
        update(document("u", external_ids=["gui-1"], steps={}, operation=NASTY)),
    ):
        lines.tell(watch.hear(one), one)
    told_lines = out.getvalue().split("\n")
    assert told_lines[0].endswith("Z gui-1 waiting for it")
    assert told_lines[1].startswith("2025-09-22T15:12:01Z gui-1 \\x1b[2J")
    assert told_lines[2:] == [""]
    assert err.getvalue().splitlines() == [
        "correlator: http://h cannot be reached: why; trying again",
        "correlator: connected again",
    ]


def test_objects_are_one_for_each_change():
    watch, out = Watch(["gui-1", "b"]), io.StringIO()
    objects = Objects(watch, out)
    job = document("b", steps={})
    log = Log(job_id="b", event_id=3, level="WARN", message=NASTY, at="t")
    away = Update({}, connection=Connection("offline", "why"))
    live = Connection("live")
    for one in (
        update(job, connection=live), update(job, logs=(log,), connection=live), away,
        update(job | {"rev": 18}, connection=live), update(gone={"b": "gone"}, connection=live),
    ):  # fmt: skip
        objects.tell(watch.hear(one), one)
    assert [json.loads(line) for line in out.getvalue().splitlines()] == [
        {"type": "connection", "state": "live", "error": None},
        {"type": "waiting", "id": "gui-1"},
        {"type": "job", "id": "b", "job": job},
        {"type": "log", "id": "b", "job_id": "b", "event_id": 3, "level": "WARN", "step_id": None, "message": NASTY,
         "attrs": None, "at": "t"},
        {"type": "connection", "state": "offline", "error": "why"},
        {"type": "connection", "state": "live", "error": None},
        {"type": "job", "id": "b", "job": job | {"rev": 18}},
        {"type": "deleted", "id": "b", "job_id": "b"},
    ]  # fmt: skip


# -- the screen


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def painted(monkeypatch, width: int) -> tuple[Terminal, Console]:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    return out, console_on(out, width=width)


def test_the_cursor_is_shown_again_whatever_happens(monkeypatch):
    out, console = painted(monkeypatch, 40)
    with contextlib.suppress(KeyboardInterrupt), Screen(console) as screen:
        screen.paint(Text("x"))
        raise KeyboardInterrupt
    assert out.getvalue().startswith("\x1b[?25l")
    assert out.getvalue().endswith("\x1b[?25h")


def test_what_did_not_change_is_not_written_again(monkeypatch):
    out, console = painted(monkeypatch, 40)
    with Screen(console) as screen:
        screen.paint(Text("one\ntwo"))
        length = len(out.getvalue())
        screen.paint(Text("one\ntwo"))
        assert len(out.getvalue()) == length
        screen.paint(Text("one\n2"))
        assert out.getvalue()[length:] == "\r\x1b[2A\r\n\x1b[2K2\r\n\x1b[J"


def test_in_a_narrower_window_it_goes_up_by_what_the_terminal_has_wrapped(monkeypatch):
    out, console = painted(monkeypatch, 40)
    with Screen(console) as screen:
        screen.paint(Text("x" * 40 + "\n" + "y" * 5))
        length = len(out.getvalue())
        console.width = 15
        screen.paint(Text("z"))
    assert out.getvalue()[length:].startswith("\r\x1b[4A\x1b[J\x1b[2Kz\r\n")


def test_without_colour_there_is_none(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    with Screen(console_on(out, width=60)) as screen:
        for line in tree.lines([tree.Branch("a", document("a", "failed"))], tree.Frame(60, 0, NOW)):
            screen.paint(line)
    assert "\x1b[3" not in out.getvalue()
    assert "\x1b[9" not in out.getvalue()
    assert "\x1b[1;3" not in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "short", "fine"),
    [(None, "", ""), (0.04, "0s", "0.0s"), (9.94, "9s", "9.9s"), (59.9, "59s", "59s"), (60, "1m 00s", "1m 00s"),
     (3599, "59m 59s", "59m 59s"), (3600, "1h 00m", "1h 00m"), (86400 * 400, "400d 00h", "400d 00h")],
)  # fmt: skip
def test_a_duration_is_short(seconds, short, fine):
    assert (duration(seconds), duration(seconds, fine=True)) == (short, fine)
