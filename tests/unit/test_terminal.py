"""What is printed: it fits, each event is reported once, and untrusted text is never a command of the terminal."""

from __future__ import annotations

import io
import json
import unicodedata
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from correlator.client.client import JobList
from correlator.client.messages import LogMessage
from correlator.client.replica import ConnectionState, Update
from correlator.model.messages import Wanted
from correlator.terminal import formats, listing
from correlator.terminal.formats import Percents, ahead, as_json
from correlator.terminal.listing import FollowedLines, Form, Query, header, most_urgent, newest, not_shown, table
from correlator.terminal.screen import Screen, Theme, console_on, theme_for
from correlator.terminal.watch import Branch, EventObjects, Frame, WatchState, tree_lines
from tests.support.job_documents import NASTY, NOW, document, forecast, step, update
from tests.support.screens import Output

FAILED_STEPS = {
    "1": step(1, "validation"),
    "2": step(2, "volume-attachment", "failed", error="Unable to attach volume <vol-9>"),
}


def drawn(*branches: Branch, height: int = 0) -> list[str]:
    return [line.plain for line in tree_lines(branches, Frame(80, height, NOW))]


# -- the tree


def test_a_low_window_leaves_out_what_is_ahead_then_folds_what_is_done_and_is_never_exceeded():
    steps = {str(n): step(n, f"step-{n}", "completed" if n < 20 else "running") for n in range(1, 21)}
    branches = [Branch("a", document("a", steps=steps, **forecast())), Branch("b", document("b", "completed"))]
    whole = drawn(*branches)
    for height in range(1, len(whole) + 1):
        lines = drawn(*branches, height=height)
        assert len(lines) <= height
        assert any("then " in line for line in lines) is (height == len(whole))
        assert any("step-19" in line for line in lines) is (height >= len(whole) - 2)
        assert any("19 steps done" in line for line in lines) is (7 <= height < len(whole) - 2), height
    assert drawn(*branches, height=1) == ["… 2 more lines"]


def test_of_a_long_error_a_live_frame_has_four_lines_the_last_one_cut():
    failed = Branch("a", document("a", "failed", error=" ".join("x" * 70 + str(n) for n in range(6)), steps={}))
    whole, live = drawn(failed), drawn(failed, height=30)
    assert live[:-1] == whole[: len(live) - 1]
    assert len(live) == len(whole) - 2
    assert live[-1].strip() == "x" * 70 + "3 " + "x" * 5 + "…"


@pytest.mark.parametrize("share", [0.0, 50.0, 99.9, 100.0, -3.0, 300.0])
def test_a_bar_is_full_only_at_a_hundred(share):
    bar = Theme(unicode=False).bar(share, 10).plain
    assert len(bar) == 10
    assert (bar == "#" * 10) is (share >= 100)


# -- untrusted text


def test_json_output_is_ascii_so_that_no_terminal_interprets_it():
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
def test_symbols_are_ascii_where_the_stream_or_the_locale_knows_no_others(encoding, environ, unicode):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    assert theme_for(stream, environ).unicode is unicode


# -- lists


def test_the_most_urgent_jobs_come_first_and_the_hidden_ones_are_counted():
    jobs = [document(f"run-{n}", metadata={}) for n in range(3)]
    jobs += [document(f"old-{n}", "failed", ended_at="2025-09-22T10:00:00Z") for n in range(30)]
    jobs += [document(f"done-{n}", "completed") for n in range(60)]
    jobs.append(document("fresh", "failed", ended_at="2025-09-22T15:10:00Z", started_at="2025-09-22T09:00:00Z"))
    jobs += [document(state, **forecast(state)) for state in ("late", "overdue")]
    jobs.append(document("stuck", stalled=True, started_at="2025-09-21T09:00:00Z", **forecast("late")))
    shown = most_urgent(jobs, NOW, 5)
    assert [job["job_id"] for job in shown] == ["stuck", "overdue", "fresh", "late", "run-2"]
    words = "1 stalled, 1 overdue, 31 failed, 1 late, 3 running, 60 completed"
    assert not_shown(jobs, [], Query(), 97, Theme()) == f"… 97 more: {words} (the window is too low)"
    limited = not_shown(jobs, shown, Query(limit=5, text="x", operation=("y",)), 102, Theme(unicode=False))
    words = "92 more: 30 failed, 2 running, 60 completed"
    assert limited == f"... {words} (--limit 5); 5 left out by --operation and -q"
    assert not_shown(shown, shown, Query(), 5, Theme()) == ""


ZALGO = "w" + "\u0301\u0489" * 5_000 + "eb"


ROCKETS = "\U0001f680" * 10_000


@pytest.mark.parametrize("name", [ZALGO, ROCKETS, "w" * 10_000, "\u200b" * 10_000, " ", "\u3164", "\ufeff"])
@pytest.mark.parametrize("width", [20, 80, 200])
def test_no_name_leaves_its_cells_or_is_blank_in_a_list_or_a_watch(name, width):
    job = document("job-7", metadata={"vm_name": name}, operation=name, external_ids=[name], current_step=name)
    listed = io.StringIO()
    console_on(listed, width=width).print(table([job], width, NOW, Theme()))
    watched = [line.plain for line in tree_lines([Branch(name, job)], Frame(width, 0, NOW))]
    waiting = [line.plain for line in tree_lines([Branch(name)], Frame(width, 0, NOW))]
    for line in (*listed.getvalue().splitlines(), *watched, *waiting):
        assert cell_len(line) <= width
        assert len(line) < 6 * width
    head = watched[0].removeprefix("● ")
    assert unicodedata.category(head[0]) in ("Ll", "So", "Po")
    assert waiting[0].removeprefix("○ waiting for ").strip()


def test_texts_of_every_language_are_printed_unchanged_and_a_blank_one_is_quoted():
    for text in ("Việt Nam", unicodedata.normalize("NFD", "Việt Nam"), "בְּרֵאשִׁ֖ית", "👩‍👩‍👧", "नमस्ते", "a b", ""):
        assert Theme().clean(text) == text
    assert [Theme().clean(text) for text in (" ", "\u200b", "\u3164 ")] == ['" "', '"\\u200b"', '"\\u3164 "']


def test_a_followed_list_admits_what_the_daemon_would_list():
    jobs = [document("a", started_at="2025-09-22T10:00:00Z"), document("b", operation="other", external_ids=[])]
    jobs.append(document("c", metadata={"vm_name": "Web1"}, started_at=None))

    def found(**query: Any) -> list[str]:
        return [job["job_id"] for job in newest(jobs, Query(**query))]

    assert found() == ["b", "a", "c"]
    assert found(limit=2) == ["b", "a"]
    assert found(operation=("other",)) == ["b"]
    assert found(text="wEB") == ["c"]
    assert found(text="1758553933") == ["a", "c"]
    assert found(since="2025-09-22T12:00:00+00:00") == ["b"]
    assert found(until="2025-09-22T12:00:00+00:00") == ["a", "c"]
    assert found(words="WEB1 unified") == ["c"]
    assert found(words="other 1758553933") == []
    assert found(words="multi-volume \tother") == ["b"]


def followed(query: Query, *updates: Update) -> list[str]:
    out = io.StringIO()
    lines = FollowedLines(query, Form("plain"), out)
    for one in updates:
        lines.handle(one)
    return out.getvalue().splitlines()


def test_a_followed_list_keeps_the_columns_that_its_first_jobs_had():
    lines = followed(Query(), update(synced=False), update(document("a", instance="dc1")), update(document("b")))
    assert [line.split("\t")[13:] for line in lines] == [["INSTANCE"], ["dc1"], ["-"]]
    later = followed(Query(), update(document("a")), update(document("a"), document("b", instance="dc1")))
    assert {len(line.split("\t")) for line in later} == {13}
    assert followed(Query(instance=("dc1",)), update()) == [header(fleet=True)]


# -- what has happened


def reported(watch: WatchState, *updates: Update) -> list[str]:
    return [f"{one.name}: {one.text}" for one in (h for u in updates for h in watch.apply(u))]


def test_each_transition_is_reported_once_and_in_order():
    watch = WatchState(["e8f15a6d-c5f4-4d69-af72-194b96a0c7fb"])
    first = update(document())
    ended = document(
        status="failed", error="boom", duration_seconds=15.0, steps=FAILED_STEPS | {"3": step(3, "rollback", "skipped")}
    )
    name = watch.all[0].name
    assert reported(watch, first, update(document(rev=18))) == [
        f"{name}: unified-live-failover pgtest2 running",
        f"{name}: step validation completed after 0.9s",
        f"{name}: step multi-volume-snapshot-creation running",
    ]
    assert reported(watch, update(ended), update(ended | {"rev": 30}), first) == [
        f"{name}: step volume-attachment failed after 0.9s: {FAILED_STEPS['2']['error']}",
        f"{name}: step rollback skipped after 0.9s",
        f"{name}: unified-live-failover pgtest2 failed after 15s: boom",
    ]


def test_a_legacy_job_that_turns_out_to_be_joblogs_is_the_same_job():
    watch = WatchState(["live-a"])
    legacy = document("live-a", source="legacy", steps={}, external_ids=[])
    real = document("u", external_ids=["live-a"], steps={})
    merged = Update({"u": real}, frozenset({"u"}), {"live-a": "merged"}, synced=True)
    assert reported(watch, update(legacy), merged) == ["live-a: unified-live-failover pgtest2 running"]
    assert (watch.all[0].job or {})["job_id"] == "u"


def test_an_id_that_names_another_run_begins_anew():
    watch = WatchState(["x"])
    old = document("a", "failed", external_ids=["x"], steps={}, started_at="2025-09-22T15:00:00Z")
    new = document("b", external_ids=["x"], steps={})
    first = update(old, logs=(LogMessage(job_id="a", event_id=1, message="of the old one"),))
    assert len(reported(watch, first, update(old, new), Update({"b": new}, gone={"a": "filter"}, synced=True))) == 3
    assert list(watch.all[0].logs) == []
    assert watch.code(by_status=True) == 1


@pytest.mark.parametrize("reason", ["absent", "retention", "filter"])
def test_a_job_stays_as_it_was_seen_when_the_daemon_no_longer_shows_it(reason):
    watch = WatchState(["a"])
    assert reported(watch, update(document("a", "completed", steps={})), update(gone={"a": reason}))[1:] == []
    assert (watch.ended, watch.code(by_status=True)) == (True, 0)


def test_the_watch_of_a_deleted_job_ends_as_not_found():
    watch = WatchState(["a"])
    assert reported(watch, update(document("a", steps={})), update(gone={"a": "gone"}))[1:] == ["a: deleted"]
    assert (watch.ended, watch.code(by_status=False)) == (True, 12)


def test_the_exit_code_is_the_highest():
    states = {"completed": 0, "failed": 10, "cancelled": 11, "running": 1}
    for status, code in states.items():
        watch = WatchState(["a", "b"])
        watch.apply(update(document("a", status), document("b", "completed")))
        assert watch.code(by_status=True) == code
        assert watch.code(by_status=False) == (1 if status == "running" else 0)
    assert WatchState(["a"]).code(by_status=True) == 12


def test_a_log_line_is_reported_once_and_only_of_a_job_that_is_watched():
    watch = WatchState(["a"])
    lines = (
        LogMessage(job_id="a", event_id=1, level="WARN", message="m"),
        LogMessage(job_id="b", event_id=2, message="n"),
    )
    once = reported(watch, update(document("a", steps={}), logs=lines), update(logs=lines))
    assert once[1:] == ["a: WARN m"]
    assert reported(watch, update(logs=(LogMessage(dropped=4),))) == [
        ": 4 log lines were dropped, because they came faster than they could be sent"
    ]


def test_objects_are_one_for_each_change():
    watch, out = WatchState(["gui-1", "b"]), io.StringIO()
    objects = EventObjects(watch, out)
    job = document("b", steps={})
    log = LogMessage(job_id="b", event_id=3, level="WARN", message=NASTY, at="t")
    away = Update({}, connection=ConnectionState("offline", "why"))
    live = ConnectionState("live")
    for one in (
        update(job, connection=live), update(job, logs=(log,), connection=live), away,
        update(job | {"rev": 18}, connection=live), update(gone={"b": "gone"}, connection=live),
    ):  # fmt: skip
        objects.handle(watch.apply(one), one)
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


def painted(monkeypatch, width: int) -> tuple[Output, Console]:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Output()
    return out, console_on(out, width=width)


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


# -- What jobs, show and watch print of a forecast: never certain, and nothing where there is none


P90 = 1_758_554_101.0
"""The p90 of `forecast`."""


pytestmark = pytest.mark.usefixtures("in_india")


def outlook(seconds: float, state: str = "on_track") -> str:
    return formats.outlook(document(**forecast(state)), P90 - 60 - seconds, formats.utc_clock)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(4, "a few seconds"), (12, "about 10 s"), (43, "about 45 s"), (97, "about 95 s"), (99, "about 2 min"),
     (3600, "about 60 min"), (5400, "about 1 h 30 min"), (7100, "about 2 h"), (200_000, "about 2 d")],
)  # fmt: skip
def test_the_remaining_time_is_as_exact_as_a_forecast_can_be(seconds: float, words: str) -> None:
    assert outlook(seconds) == f"{words} left (by 2025-09-22T15:14:01Z)"


def test_few_runs_a_passed_end_and_an_overdue_job_have_words_of_their_own() -> None:
    assert outlook(180, "rough") == "perhaps 3 min left (by 2025-09-22T15:14:01Z)"
    assert outlook(-1) == "may end at any moment (9 of 10 by 2025-09-22T15:15:01Z)"
    assert outlook(-1, "rough") == outlook(-999) == "may end at any moment"
    assert outlook(180, "overdue") == ""
    job = document(**forecast("overdue"))
    assert formats.reason(job) == "overdue: longer at this point than any of 37 earlier runs"


def test_an_end_on_another_day_has_its_date() -> None:
    job = document(**forecast())
    assert formats.outlook(job, NOW, formats.local_clock(NOW)) == "about 80 s left (by 20:45 IST)"
    assert formats.outlook(job, NOW, formats.local_clock(NOW - 86_400)).endswith("(by 2025-09-22 20:45 IST)")


def test_a_filter_by_state_admits_running_jobs_in_one_of_the_states() -> None:
    jobs = [document(state, **forecast(state)) for state in ("late", "on_track", "overdue")]
    jobs.append(document("stuck", stalled=True, **forecast("late")))
    query = Query(state=("stalled", "overdue"))
    assert [job["job_id"] for job in jobs if query.admits(job)] == ["overdue", "stuck"]
    assert query.parameters() == {"status": ("running",)}
    assert query.wanted() == Wanted(status=("running",))
    assert [job["job_id"] for job in jobs if Query(state=("late",)).admits(job)] == ["late", "stuck"]
    assert not_shown(jobs[2:3], jobs[2:3], query, 4, Theme()) == "… 3 left out by --state"


async def test_the_limit_of_a_list_by_state_counts_the_jobs_in_that_state() -> None:
    class Daemon:
        async def jobs(self, parameters: Any, limit: int) -> JobList:
            states = ("on_track", "late", "on_track", "late", "late")
            found = [document(str(number), **forecast(state)) for number, state in enumerate(states)]
            return JobList(found[:limit], more=limit < len(found))

    async def listed(limit: int) -> tuple[list[str], str]:
        out, err = io.StringIO(), io.StringIO()
        daemon: Any = Daemon()
        await listing.jobs(daemon, Query(state=("late",), limit=limit), Form("json"), out, err)
        return [job["job_id"] for job in json.loads(out.getvalue())], err.getvalue()

    assert await listed(3) == (["1", "3", "4"], "")
    found, note = await listed(2)
    assert found == ["1", "3"]
    assert "these are the newest 2, and there are more" in note


def test_a_watch_reports_the_first_forecast_and_once_each_that_a_job_became_late_and_overdue() -> None:
    watch = WatchState(["a"])
    states = ("on_track", "on_track", "late", "on_track", "late", "overdue", "late")
    documents = [document("a", steps={}, rev=rev, **forecast(state)) for rev, state in enumerate(states)]
    found = [event.text for job in documents for event in watch.apply(update(job)) if event.kind == "forecast"]
    ends = "9 of 10 ended by 2025-09-22T15:15:01Z"
    assert found == [
        f"about 90 s left (by 2025-09-22T15:14:01Z), from 37 earlier runs, {ends}",
        "late: longer at this point than 90 % of 37 earlier runs, about 90 s left (by 2025-09-22T15:14:01Z), " + ends,
        "overdue: longer at this point than any of 37 earlier runs",
    ]


@pytest.mark.parametrize(("measured", "used"), [(0.0, 0.0), (-1.5, 0.0), (1.5, 0.0), (-30.0, -30.0), (5.0, 5.0)])
def test_the_latency_of_a_message_is_no_difference_of_clocks_that_would_take_a_bar_back(measured, used):
    assert ahead(Update({}, ahead=measured)) == used


def test_a_bar_goes_back_only_where_a_document_has_less_than_the_one_before() -> None:
    def job(percent: float, status: str = "running") -> Any:
        ended = {"forecast": None} if status != "running" else {}
        return document("a", status, **(forecast() | ended)) | {"progress": {"percent": percent, "basis": "history"}}

    percents = Percents()
    seen = [(job(30.0), 0), (job(30.0), 30), (job(31.0), 0), (job(31.0, "failed"), 0), (job(100.0, "completed"), 0)]
    seen += [(job(20.0), 0), (job(20.0), 1)]
    shown = [percents.of([each], NOW + later)["a"] for each, later in seen]
    assert shown[0] < shown[1] == shown[2] == shown[3] < shown[4] == 100.0
    assert 20.0 < shown[5] < shown[6] < shown[0], "it ran again"
