"""What jobs, show and watch print of a forecast: never certain, and nothing where there is none."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from correlator.client.client import JobList
from correlator.client.replica import Update
from correlator.model.messages import Wanted
from correlator.terminal import formats, listing, watch
from correlator.terminal.formats import Percents, ahead
from correlator.terminal.listing import Form, Query, most_urgent, not_shown
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


# -- the tree and show


def test_a_bar_moves_with_the_clock_and_stands_while_the_job_is_overdue() -> None:
    def bar(now: float, state: str = "on_track") -> str:
        return drawn(document(**forecast(state)), now=now)[1].split(" steps")[0]

    assert [bar(NOW + later)[-9:-5] for later in (-100, -9, 0, 21, 51, 999)] == [
        " 25%", " 25%", " 32%", " 50%", " 75%", " 99%",
    ]  # fmt: skip
    assert bar(NOW, "overdue") == bar(NOW + 999, "overdue") == bar(NOW - 9)


def test_a_low_window_leaves_out_the_steps_ahead_before_it_folds_what_is_done() -> None:
    lines = drawn(document(**forecast()), height=7)
    assert len(lines) == 7
    assert any("validation" in line for line in lines)
    assert not any("then " in line for line in lines)


# -- lists


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
