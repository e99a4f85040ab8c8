"""`why` and `failures` print what the daemon answers, and untrusted text is never a command of the terminal."""

from __future__ import annotations

import re
from typing import Any

import pytest
from rich.cells import cell_len

from correlator.client.client import Client
from correlator.errors import NotFound
from correlator.terminal import failures
from correlator.terminal.screen import Theme
from correlator.terminal.show import fields
from correlator.terminal.watch import Branch, Frame, WatchState, tree_lines
from tests.support.job_documents import NASTY, NOW, document, forecast, step, update
from tests.support.screens import Output

FAILURE = {
    "fingerprint": "5b1f0c2a9d3e", "step": "copy", "certainty": "stated", "text": "no space left", "state": "known",
}  # fmt: skip
GROUP = {
    "fingerprint": "5b1f0c2a9d3e", "text": "no space left", "step": "copy", "certainty": "stated", "count": 57,
    "first_at": "2025-09-16T08:00:00Z", "last_at": "2025-09-22T15:12:30Z", "days": [{"day": "2025-09-22", "count": 3}],
    "vms": ["web", "sql"], "vm_count": 32, "operations": ["backup"], "steps": ["copy"],
    "jobs": [{"job_id": "j1", "ended_at": "2025-09-22T15:12:30Z", "operation": "backup", "vm_name": "web"}],
    "note": {"text": "The volume is full.", "link": "https://wiki.example/full"},
}  # fmt: skip
WHY = {
    "job_id": "j1", "failure": FAILURE, "sentence": "Step copy: no space left.",
    "rows": [{"step": None, "status": "failed", "error": f"x {NASTY}: no space left"}], "group": GROUP,
    "differs": {"runs": 20, "vm_name": "web", "missing": ["switch"],
                "longer": [{"name": "copy", "seconds": 600.0, "p90_seconds": 60.0}]},
    "burst": {"failed": 5, "alike": 4, "within_seconds": 40.0}, "reaches": None, "complete": True, "reason": None,
}  # fmt: skip
ONE = {
    "group": GROUP, "template": "no space left", "variants": [{"text": "no space left", "count": 57}],
    "next_runs": {"examined": 4, "completed": 2, "failed_alike": 1, "failed_otherwise": 0, "unknown": 1,
                  "recovered_seconds": [60.0, 120.0]},
    "similar": [{"fingerprint": "0123456789ab", "text": "no inode left", "count": 1, "word": "space",
                 "other_word": "inode"}],
    "reaches": None, "complete": False, "reason": "failed jobs of the past are still being read",
}  # fmt: skip


class Fake(Client):
    """Answers as a daemon does. `failed`: the groups of the list."""

    def __init__(self, *failed: Any, **of_page: Any) -> None:
        super().__init__("http://localhost")
        self.page: Any = {"failures": list(failed), "next_cursor": None, "reaches": None, "complete": True} | of_page

    async def why(self, name: str) -> Any:
        return {"j1": WHY, "j2": {**WHY, "failure": None}}.get(name)

    async def failure(self, fingerprint: str) -> Any:
        return ONE if fingerprint == FAILURE["fingerprint"] else None

    async def failures(self, query: Any = None) -> Any:
        return self.page


async def printed(work: Any, output: str, *, width: int = 0, monkeypatch: Any = None) -> tuple[str, str]:
    if monkeypatch is not None:
        for name, value in {"COLUMNS": str(width), "TERM": "xterm-256color", "NO_COLOR": "1"}.items():
            monkeypatch.setenv(name, value)
    out, err = Output("utf-8", tty=bool(width)), Output("utf-8", tty=False)
    await work(output, out, err)
    return re.sub(r"\x1b\[[\d;]*m", "", out.getvalue()), err.getvalue()


async def test_why_prints_the_sentence_what_is_known_of_it_and_the_rows_that_say_it():
    out, err = await printed(lambda *to: failures.why(Fake(), "j1", *to), "text")
    assert err == ""
    assert dict(line.split(maxsplit=1) for line in out.splitlines()) == {
        "failure": "Step copy: no space left.",
        "known": "57 jobs on 32 VMs since 2025-09-16T08:00:00Z",
        "note": "The volume is full. https://wiki.example/full",
        "burst": "5 jobs failed within 40s, 4 of them with this text",
        "missing": "switch: the last 20 completed runs on web had it",
        "longer": "copy took 10m 00s; nine of ten of the last 20 completed runs on web took at most 1m 00s",
        "job": "failed: x " + out.partition("failed: x ")[2].partition("\n")[0],
        "fingerprint": "5b1f0c2a9d3e",
    }
    assert "\x1b" not in out


async def test_why_says_that_a_job_has_not_failed_or_is_not_known():
    assert (await printed(lambda *to: failures.why(Fake(), "j2", *to), "text"))[0].endswith("has not failed\n")
    with pytest.raises(NotFound, match="no job is known by 'j3'"):
        await printed(lambda *to: failures.why(Fake(), "j3", *to), "text")


async def test_one_failure_has_its_texts_what_came_after_and_similar_ones():
    out, err = await printed(lambda *to: failures.failure(Fake(), "5b1f0c2a9d3e", *to), "plain")
    assert "next runs      2 completed, 2m 00s later in the median, 1 failed alike, 0 failed" in out
    assert "similar        0123456789ab: 'inode' for 'space', 1 job" in out
    assert "vm             web, sql and 30 more" in out
    assert err == "correlator: something may be missing: failed jobs of the past are still being read\n"
    with pytest.raises(NotFound, match="fingerprint 'ffffffffffff'"):
        await printed(lambda *to: failures.failure(Fake(), "ffffffffffff", *to), "plain")


@pytest.mark.parametrize("width", [30, 60, 80, 200])
async def test_the_list_fits_its_terminal_and_shows_nothing_that_commands_it(width, monkeypatch):
    fake = Fake(GROUP, {**GROUP, "text": NASTY * 20, "step": NASTY, "note": None})
    out, _ = await printed(lambda *to: failures.failures(fake, {}, *to), "table", width=width, monkeypatch=monkeypatch)
    assert "\x1b" not in out
    assert all(cell_len(line) <= width for line in out.splitlines())
    out, _ = await printed(lambda *to: failures.why(Fake(), "j1", *to), "text", width=width, monkeypatch=monkeypatch)
    assert all(cell_len(line) <= width for line in out.splitlines())


async def test_the_list_in_a_pipe_has_a_line_for_each_failure_and_says_that_there_are_more():
    out, err = await printed(lambda *to: failures.failures(Fake(GROUP, next_cursor="c"), {}, *to), "plain")
    assert [line.split("\t") for line in out.splitlines()] == [
        list(failures.COLUMNS),
        ["57", "2025-09-22T15:12:30Z", "32", "copy", "5b1f0c2a9d3e", "no space left  (The volume is full.)"],
    ]
    assert err == "correlator: there are more failures than these 1: see --limit\n"


def test_show_and_watch_say_the_sentence_instead_of_a_stack_trace():
    trace = "copy: no space left\n" + "\n".join(f"\tat io.Pipe({n})" for n in range(18))
    steps = {"1": step(1, "copy", "failed", error="copy: no space left")}
    job = document("a", "failed", error=trace, failure=FAILURE, steps=steps)
    shown = {label: value.plain for label, value in fields(job, NOW, Theme())}
    assert shown["failure"] == "Step copy: no space left.  (known)"
    assert "io.Pipe(17)" in shown["error"]
    drawn = [line.plain for line in tree_lines([Branch("a", job)], Frame(80, 0, NOW))]
    assert "  Step copy: no space left. (known)" in drawn
    assert not any("io.Pipe" in line for line in drawn)
    (ended,) = (event for event in WatchState(["a"]).apply(update(job)) if event.kind == "job")
    assert ended.text.endswith(": Step copy: no space left.")


@pytest.mark.parametrize("certainty", ["stated", "inferred", "apart", "none"])
@pytest.mark.parametrize("status", ["failed", "running"])
def test_show_and_watch_say_the_same_of_a_document_that_patches_built(certainty, status):
    """A member that is null is not in such a document, at any depth."""
    named = certainty in ("stated", "inferred")
    failure = {**FAILURE, "certainty": certainty, "step": "copy" if named else None,
               **({"text": "", "fingerprint": None, "state": "unknown"} if certainty == "none" else {})}  # fmt: skip
    steps = {"1": step(1, "copy", "failed", error="no space left"), "2": step(2, "switch", "running")}
    members = forecast(ends_at=None) if status == "running" else {"failure": failure, "forecast": None}
    whole = document("a", status, steps=steps, **members)
    patched = without_nulls(whole)
    assert {k: v.plain for k, v in fields(patched, NOW, Theme())} == {
        k: v.plain for k, v in fields(whole, NOW, Theme())
    }
    drawn, expected = (tree_lines([Branch("a", job)], Frame(80, 0, NOW)) for job in (patched, whole))
    assert [line.plain for line in drawn] == [line.plain for line in expected]
    said, of_whole = (list(WatchState(["a"]).apply(update(job))) for job in (patched, whole))
    assert said == of_whole


def without_nulls(value: Any) -> Any:
    """Leave out the members that are null, as an RFC 7396 merge patch does that creates them."""
    return {k: without_nulls(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value
