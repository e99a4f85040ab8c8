"""What jobs, show and watch print of a forecast: never certain, and nothing where there is none."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from correlator.client.client import JobList
from correlator.client.replica import Update
from correlator.model.messages import Wanted
from correlator.terminal import formats, listing, watch
from correlator.terminal.formats import Percents, ahead
from correlator.terminal.listing import PLAIN_COLUMNS, Form, Query, most_urgent, not_shown, plain, table
from correlator.terminal.screen import Theme
from correlator.terminal.show import fields
from correlator.terminal.watch import WatchState
from tests.support.job_documents import NOW, document, forecast, update

P90 = 1_758_554_101.0
"""The p90 of `forecast`."""


@pytest.fixture(autouse=True)
def _in_india(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def drawn(job: Any, width: int = 100, height: int = 0, now: float = NOW) -> list[str]:
    return [line.plain for line in watch.tree_lines([watch.Branch("gui-1", job)], watch.Frame(width, height, now))]


def printed(jobs: list[Any], width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(table(jobs, width, NOW, Theme()))
    return console.export_text().splitlines()


def shown(job: Any, now: float = NOW) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for label, value in fields(job, now, Theme()):
        found.setdefault(label, []).append(value.plain)
    return found


def ended(status: str = "completed", percentile: float = 88.0, **members: Any) -> Any:
    compared = {"typical_seconds": 80.0, "runs": 37, "percentile": percentile}
    return document(
        status=status, duration_seconds=96.4, ended_at="2025-09-22T15:13:37.400000Z", forecast=None,
        compared_with=compared, **members,
    )  # fmt: skip


def outlook(seconds: float, state: str = "on_track") -> str:
    return formats.outlook(document(**forecast(state)), P90 - 60 - seconds, formats.utc_clock)


# -- words


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


@pytest.mark.parametrize(
    ("percentile", "words"),
    [(88.0, "slower than 88 % of 37 earlier runs"), (12.0, "12 % of 37 earlier runs were faster")],
)
def test_an_ended_job_is_compared_with_earlier_runs(percentile: float, words: str) -> None:
    job = ended(percentile=percentile)
    assert f"  took 96 s, typical 80 s; {words}" in drawn(job)
    assert shown(job)["forecast"] == [f"took 96 s, typical 80 s; {words}"]


def test_a_failed_job_is_not_compared_with_runs_that_completed() -> None:
    assert "  took 96 s, typical 80 s for one that completes" in drawn(ended("failed", error="x"))


# -- the tree and show


def test_a_tree_has_the_end_in_words_and_the_steps_ahead_as_pale_lines() -> None:
    assert drawn(document(**forecast()), width=80) == [
        "● pgtest2  unified-live-failover                                         running",
        "  █████████████░░░░░░░░░░░░░░░░░░░░░░░░░░░  32% 1/~4 steps                   39s",
        "  about 80 s left (by 20:45 IST); from 37 earlier runs, 9 of 10 ended by 20:46",
        "  gui-1",
        "  ✓ validation                                                              0.9s",
        "  ● multi-volume-snapshot-creation                                           38s",
        "    creating snapshots",
        "  ○ then vm-creation, about 12 s, in 97 % of runs",
        "  ○ then status-update, under 1 s, in all earlier runs",
    ]
    lines = watch.tree_lines([watch.Branch("gui-1", document(**forecast()))], watch.Frame(80, 0, NOW))
    assert {str(span.style) for span in lines[-1].spans if span.end == len(lines[-1].plain)} == {"dim"}


def test_a_bar_moves_with_the_clock_and_stands_while_the_job_is_overdue() -> None:
    def bar(now: float, state: str = "on_track") -> str:
        return drawn(document(**forecast(state)), now=now)[1].split(" steps")[0]

    assert [bar(NOW + later)[-9:-5] for later in (-100, -9, 0, 21, 51, 999)] == [
        " 25%", " 25%", " 32%", " 50%", " 75%", " 99%",
    ]  # fmt: skip
    assert bar(NOW, "overdue") == bar(NOW + 999, "overdue") == bar(NOW - 9)


@pytest.mark.parametrize("state", ["late", "overdue"])
def test_a_late_job_is_marked_and_the_reason_is_given(state: str) -> None:
    lines = drawn(document(**forecast(state)))
    assert lines[0].endswith(f"running, {state}")
    assert f"{state}: longer at this point than " in lines[2]
    assert "of 37 earlier runs" in lines[2]
    assert f"running, {state}: longer at this point than" in shown(document(**forecast(state)))["status"][0]


def test_a_low_window_leaves_out_the_steps_ahead_before_it_folds_what_is_done() -> None:
    lines = drawn(document(**forecast()), height=7)
    assert len(lines) == 7
    assert any("validation" in line for line in lines)
    assert not any("then " in line for line in lines)


@pytest.mark.parametrize("width", [20, 40, 60])
def test_no_line_of_a_forecast_is_wider_than_the_terminal(width: int) -> None:
    job = document(**forecast("late", steps_ahead=[{"name": "漢字" * 40, "share": 0.5, "typical_seconds": 3.0}]))
    assert max(map(cell_len, drawn(job, width=width))) <= width
    assert max(map(cell_len, printed([job], width))) <= width


def test_show_says_when_it_may_end_what_that_rests_on_and_which_steps_may_follow() -> None:
    found = shown(document(**forecast()))
    assert found["progress"][0].endswith("32.5% (history): 1 of 2 steps done, 1 running, about 4 expected")
    assert found["forecast"] == [
        "about 80 s left (by 2025-09-22T15:14:01Z)",
        "from 37 earlier runs, 9 of 10 ended by 2025-09-22T15:15:01Z",
        "typical 96 s, 8 % of runs failed",
    ]
    assert found["step ahead"] == [
        "then vm-creation, about 12 s, in 97 % of runs",
        "then status-update, under 1 s, in all earlier runs",
    ]


def test_without_a_forecast_nothing_is_said_of_one() -> None:
    running, done = document(forecast=None, compared_with=None), document(status="completed", compared_with=None)
    for job in (running, done):
        assert drawn(job) == drawn({k: v for k, v in job.items() if k not in ("forecast", "compared_with")})
        assert not {"forecast", "step ahead"} & shown(job).keys()
    assert "LEFT" not in printed([running, done], 120)[0]


def test_a_steps_name_in_a_forecast_is_never_a_command_of_the_terminal() -> None:
    job = document(**forecast(steps_ahead=[{"name": "\x1b[2J\x07", "share": 0.5, "typical_seconds": 3.0}]))
    for text in (*drawn(job), *shown(job)["step ahead"]):
        assert text.isprintable()


# -- lists


@pytest.mark.parametrize(("width", "cell"), [(64, " ~80 s "), (80, " ~80 s "), (100, " ~80 s (by 20:45) ")])
def test_a_table_has_the_time_that_is_left(width: int, cell: str) -> None:
    head, first, second = printed([document(**forecast()), document("b", "completed")], width)
    at = head.index("LEFT")
    assert ("LEFT (IST)" in head) == (width >= 100)
    assert cell.strip() in first[at:]
    assert first[at:].startswith(cell.strip())
    assert second[at : at + 6].strip() == ""
    assert " 32%" in first


def test_a_table_marks_what_is_late_and_a_narrow_one_too() -> None:
    jobs = [document(state, **forecast(state)) for state in ("late", "overdue", "rough")]
    assert [line.split()[1] for line in printed(jobs, 100)[1:]] == ["late", "overdue", "running"]
    assert [line.split()[0] for line in printed(jobs, 40)[1:]] == ["●!", "●!", "●"]
    assert "?" in printed(jobs, 80)[2]
    assert "~80 s?" in printed(jobs, 80)[3]


def test_plain_lines_end_with_the_state_and_the_times_of_the_forecast() -> None:
    line = plain(document(**forecast("late")), NOW, Theme()).split("\t")
    assert dict(zip(PLAIN_COLUMNS, line, strict=True)).items() >= {
        "PERCENT": "25", "FORECAST": "late", "P50": "2025-09-22T15:14:01Z", "P90": "2025-09-22T15:15:01Z",
    }.items()  # fmt: skip


def test_overdue_and_late_jobs_are_among_the_most_urgent_and_counted() -> None:
    jobs = [document(state, **forecast(state)) for state in ("late", "on_track", "overdue")]
    jobs.append(document("stuck", stalled=True, **forecast("late")))
    jobs.append(document("fresh", "failed", ended_at="2025-09-22T15:10:00Z"))
    assert [job["job_id"] for job in most_urgent(jobs, NOW, 5)] == ["stuck", "overdue", "fresh", "late", "on_track"]
    words = "5 more: 1 stalled, 1 overdue, 1 failed, 1 late, 1 running (the window is too low)"
    assert not_shown(jobs, [], Query(), 5, Theme()) == f"… {words}"


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


# -- what has happened


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


def test_the_end_of_a_watched_job_says_how_it_compares() -> None:
    (event,) = WatchState([ended()["job_id"]]).apply(update(ended(steps={})))
    assert event.text == (
        "unified-live-failover pgtest2 completed after 1m 36s (typical 80 s; slower than 88 % of 37 earlier runs)"
    )


@pytest.mark.parametrize(("measured", "used"), [(0.0, 0.0), (-1.5, 0.0), (1.5, 0.0), (-30.0, -30.0), (5.0, 5.0)])
def test_the_latency_of_a_message_is_no_difference_of_clocks_that_would_take_a_bar_back(measured, used):
    assert ahead(Update({}, ahead=measured)) == used


# -- frames


def test_a_bar_that_moved_on_before_the_next_document_came_does_not_go_back() -> None:
    percents, job = Percents(), document("a", **forecast())
    moved = percents.of([job], NOW + 30)["a"]
    assert formats.percent_at(job, NOW) < moved - 1
    assert percents.of([job], NOW)["a"] == moved
    failed, completed = (ended(status) | {"job_id": "a"} for status in ("failed", "completed"))
    assert percents.of([failed], NOW)["a"] == moved
    completed["progress"] = completed["progress"] | {"percent": 100.0}
    assert percents.of([completed], NOW)["a"] == 100.0
    assert percents.of([job], NOW)["a"] < moved, "it ran again"


def test_a_bar_goes_back_only_where_a_document_has_less_than_the_one_before() -> None:
    def job(percent: float) -> Any:
        return document("a", **forecast()) | {"progress": {"percent": percent, "basis": "history"}}

    percents = Percents()
    seen = [(job(30.0), 0), (job(30.0), 30), (job(31.0), 0), (job(20.0), 0), (job(20.0), 1)]
    shown = [percents.of([each], NOW + later)["a"] for each, later in seen]
    assert shown[0] < shown[1] == shown[2] > shown[3] < shown[4]
