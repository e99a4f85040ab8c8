"""The work of the browser for a thousand jobs and two hundred changes a second."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import statistics
from typing import Any

from tests.support.browser import expect, rows
from tests.support.page_server import document, forecasted, step

JOBS, RATE, SECONDS = 1000, 200, 3
CATEGORIES = ["devtools.timeline", "disabled-by-default-devtools.timeline"]


def busy_job(number: int, percent: float) -> dict[str, Any]:
    job = document(
        f"{number:04}",
        "running" if number % 5 else "completed",
        ago=number + 30,
        steps=[step(n, f"step-{n}", "running" if n == 8 else "completed") for n in range(1, 9)],
    )
    if job["terminal"]:
        return job
    left = 600.0 + 10 * number - percent  # the order is that of the numbers, but for some rows that move
    return forecasted(job, percent, left=left, most=left + 200, ahead=[("copy", 0.9, 60.0), ("boot", 0.4, 20.0)])


def frame_work(trace: bytes) -> list[float]:
    """Milliseconds of processor time of the main thread for each frame: script, style, layout, paint, everything.

    Time in which other programs had the processor does not count.
    """
    events = json.loads(trace)["traceEvents"]
    threads = {(e["pid"], e["tid"]) for e in events if e.get("args", {}).get("name") == "CrRendererMain"}
    counts = {t: sum(e["name"] == "PrePaint" and (e["pid"], e["tid"]) == t for e in events) for t in threads}
    main = max(counts, key=lambda thread: counts[thread])
    own = [e for e in events if (e["pid"], e["tid"]) == main]
    frames = sorted(e["ts"] for e in own if e["name"] == "PrePaint")
    tasks = sorted((e["ts"], e["tdur"] / 1000) for e in own if e["name"] == "RunTask" and "tdur" in e)
    return [sum(took for at, took in tasks if start <= at < end) for start, end in itertools.pairwise(frames)]


async def test_frame_work_stays_under_16_ms(fake, browser, page):
    fake.jobs.update({f"{n:04}": busy_job(n, 10.0) for n in range(JOBS)})
    await page.goto(fake.url)
    await expect(rows(page).first).to_have_attribute("aria-setsize", str(JOBS))
    # Half of the changes are of visible rows, or of the job of the page; the rest are of any.
    await measured(fake, browser, page, near=30)
    await expect(rows(page).filter(has_text="vm-0001")).to_contain_text("97 %")
    await page.get_by_role("link", name="vm-0001").click()
    await expect(page.locator(".steps")).to_be_visible()
    await measured(fake, browser, page, near=1)
    await expect(page.locator(".percent")).to_contain_text("97 %")


async def measured(fake, browser, page, near: int) -> None:
    """Change jobs at that rate, half of them the `near` ones from 1 on; the last change is 97 % of number 1."""
    chance = random.Random(7)
    await browser.start_tracing(page=page, categories=CATEGORIES)
    loop = asyncio.get_running_loop()
    start, sent = loop.time(), 0
    while (spent := loop.time() - start) < SECONDS:
        due = int(spent * RATE) - sent
        sent += due
        numbers = [chance.randint(1, near) if n < due // 2 else chance.randrange(JOBS) for n in range(due)]
        await fake.put(*(busy_job(number, chance.uniform(10, 90)) for number in numbers))
        await asyncio.sleep(0.01)
    work = frame_work(await browser.stop_tracing())
    await fake.put(busy_job(1, 97.0))
    figures = {
        "changes": sent,
        "frames": len(work),
        "median": statistics.median(work),
        "p95": statistics.quantiles(work, n=20)[-1],
    }
    print(figures)  # noqa: T201 - shown with -s
    assert len(work) > SECONDS, figures
    assert figures["median"] < 16, figures
