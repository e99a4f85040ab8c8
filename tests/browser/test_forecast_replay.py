"""What the page shows of jobs while the recording is replayed: bars that never go back, and ends that settle."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pytest

from tests.support import slow_replay
from tests.support.browser import expect
from tests.support.daemon import Daemon
from tests.support.eventually import PATIENCE, eventually
from tests.support.past_runs import write_past_runs
from tests.support.replay import MariaDBReplayer
from tests.support.settled_ends import DisplayedEnd, Life, assert_ends_settle, in_words, watched
from tests.support.slow_replay import SECONDS, SLOWER

READ = """() => {
    const text = (element) => element?.textContent.replace(/\\s+/g, " ").trim() ?? "";
    const done = (element) => element === null ? null : parseFloat(element.style.transform.slice("translateX(".length));
    const list = () => [...document.querySelectorAll("[data-job]")].map((row) => ({
        job: row.dataset.job,
        words: text(row.querySelector(".row-left")),
        bar: done(row.querySelector(".bar-done")),
        percent: parseInt(text(row.querySelector(".row-percent"))),
    }));
    const job = () => {
        const end = document.querySelector(".steps .span-end");
        const axis = [...document.querySelectorAll(".steps .axis-line > *")];
        return document.querySelector(".outlook b") === null ? [] : [{
            job: decodeURIComponent(location.hash.split("/").at(-1)),
            words: text(document.querySelector(".outlook b")),
            bar: done(document.querySelector(".bar-done")),
            percent: parseInt(text(document.querySelector(".percent-words b")).replace("about", "")),
            band: end && [end.style.left, end.style.width].map(parseFloat),
            labels: axis.map((e) => [text(e), parseFloat(e.style.left)]),
        }];
    };
    window.readings = [];
    setInterval(() => {
        const at = Date.now() / 1000;
        for (const reading of [...list(), ...job()]) readings.push({ at, ...reading });
    }, 200);
}"""
"""Read five times a second what a row of the list and the page of a job show, and note it with the time."""

Reading = dict[str, Any]


@pytest.mark.long
async def test_on_the_page_no_bar_of_a_slow_replay_goes_back_and_ends_settle(
    database, recording, tmp_path, page, context
):
    silent = slow_replay.without_percent(recording, but_of="migration")
    await write_past_runs(database, slow_replay.past_runs(silent, SLOWER, copies=5))
    part = slow_replay.until(silent, SECONDS)
    longest = slow_replay.longest(part, 5)
    context.set_default_timeout(1000 * PATIENCE)
    daemon = Daemon(tmp_path, database__url=database.url)
    try:
        await daemon.start()
        await eventually(lambda: "forecasts: read " in daemon.log())
        pages = {"": page} | {job_id: await context.new_page() for job_id in longest}
        for job_id, one in pages.items():
            await one.emulate_media(reduced_motion="reduce")  # Six pages that move would keep the daemon from its work.
            await one.goto(f"{daemon.url}/#/jobs/{job_id}" if job_id else daemon.url)
            await one.evaluate(READ)
        async with MariaDBReplayer.connect(database) as replayer:
            lives = await slow_replay.replay(replayer, part, SLOWER)
        for job_id in longest:
            await expect(pages[job_id].locator(".job-state")).to_contain_text("Completed", timeout=1000 * PATIENCE)
        readings = {job_id: await one.evaluate("readings") for job_id, one in pages.items()}
    finally:
        await daemon.close()
    assert falls(readings.values()) == []
    on_their_pages = [one for job_id in longest for one in readings[job_id]]
    for said in (words(readings[""]), words(on_their_pages)):
        assert_ends_settle(watched(lives, said), at_least=len(longest))
    with_steps = set(longest) & slow_replay.with_steps(part)  # nothing is drawn of the others
    assert len(with_steps) >= 3
    assert_ends_settle(watched(lives, drawings(on_their_pages, lives)), at_least=len(with_steps))


def falls(views: Iterable[list[Reading]]) -> list[tuple[Reading, Reading]]:
    """What went back in one view of a running job that has a forecast: its bar, or its percent."""
    found = []
    for view in views:
        forecast = sorted((one for one in view if one["words"]), key=lambda one: one["job"])
        for one, following in itertools.pairwise(forecast):
            same, names = one["job"] == following["job"], ("bar", "percent")
            if same and any(following[name] < one[name] for name in names):
                found.append((one, following))
    return found


def words(readings: Iterable[Reading]) -> Iterator[tuple[str, DisplayedEnd]]:
    for one in readings:
        if (end := in_words(one["at"], one["words"])) is not None:
            yield one["job"], end


def drawings(readings: Iterable[Reading], lives: Mapping[str, Life]) -> Iterator[tuple[str, DisplayedEnd]]:
    """The bands of the probable end, by the labels of the axis, which begins with the second of the job's start."""
    for one in readings:
        if one["band"] is None:
            continue
        label, place = one["labels"][-1]
        if place:
            minutes, _, seconds = label.removesuffix(" s").rpartition(":")
            second = (60 * int(minutes or 0) + int(seconds)) / place
            left, width = one["band"]
            zero = math.floor(lives[one["job"]].began)
            yield one["job"], DisplayedEnd(one["at"], zero + left * second, band=width * second)
