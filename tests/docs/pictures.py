"""What `make pictures` makes: pictures of the documentation, from a job with fixed times, so that they can be renewed.

The page is the real one in Chromium, on a fake daemon; the terminal's picture is a frame of `correlator watch`.
"""

from __future__ import annotations

import asyncio
import datetime
import io
import re
import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI

from correlator.terminal import watch
from tests.support import page_server
from tests.support.page_server import Document, document, forecasted, line, step

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
NOW = datetime.datetime(2026, 11, 24, 14, 3, 12, tzinfo=datetime.UTC)
JOB = "e8f15a6d-c5f4-4d69-af72-194b96a0c7fb"
GUI_ID = "unified-live-failover-pgtest2-1795528847"
AHEAD = [("vm-creation", 0.97, 21.0), ("volume-attachment", 0.97, 14.0), ("vm-startup", 0.94, 32.0)]

COLUMNS = 100


def stamp(ago: float = 0.0) -> str:
    return (NOW - datetime.timedelta(seconds=ago)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def running() -> Document:
    steps = [
        step(1, "validation", ago=145, took=9),
        step(2, "source-vm-power-off", ago=136, took=31),
        step(3, "final-sync", ago=105, took=64),
        step(4, "multi-volume-snapshot-creation", "running", ago=41),
    ]
    last = {"level": "INFO", "text": "Snapshot of volume 2 of 3 created", "at": stamp(3)}
    job = document(
        JOB, ago=145, steps=steps, external_ids=[GUI_ID], metadata={"vm_name": "pgtest2"}, last_message=last,
        context_id="ctx-pgtest2-20260922-000003",
    )  # fmt: skip
    return forecasted(job, 66.0, left=78.0, most=121.0, ahead=AHEAD)


def log_lines() -> list[Document]:
    texts = [
        (104, "INFO", "Synchronisation of 3 volumes has begun", 3003),
        (61, "WARN", "Volume 2 answers slowly, retrying", 3003),
        (42, "INFO", "3 volumes are synchronised", 3003),
        (41, "INFO", "Snapshots of 3 volumes are requested", 3004),
        (19, "INFO", "Snapshot of volume 1 of 3 created", 3004),
        (3, "INFO", "Snapshot of volume 2 of 3 created", 3004),
    ]
    return [
        line(n, text, level, at=stamp(ago), step_id=step_id) for n, (ago, level, text, step_id) in enumerate(texts, 1)
    ]


async def of_pages() -> None:
    from playwright.async_api import async_playwright  # type: ignore[import-not-found, unused-ignore]  # from 3.12 on

    page_server.stamp = stamp
    async with page_server.serving() as fake, async_playwright() as playwright:
        fake.jobs = {JOB: running()}
        fake.events[JOB] = log_lines()
        fake.html = (
            '<script type="module" src="/progress.js"></script>'
            f'<p>Failover of pgtest2</p><correlator-progress job="{GUI_ID}"></correlator-progress>'
        )
        program = shutil.which("chromium") or shutil.which("google-chrome")
        browser = await playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )

        async def picture(file: str, address: str, shown: str, width: int, height: int) -> None:
            context = await browser.new_context(
                viewport={"width": width, "height": height}, timezone_id="UTC", locale="en-GB", reduced_motion="reduce"
            )
            page = await context.new_page()
            await page.clock.set_fixed_time(NOW)
            await page.goto(f"{fake.url}/{address}")
            await page.get_by_text(shown).first.wait_for()
            await page.evaluate("document.fonts.ready")
            await asyncio.sleep(1)  # the bars have reached their widths
            await page.screenshot(path=FOLDER / file)
            await context.close()

        await picture("job.png", f"#/jobs/{GUI_ID}", "Snapshot of volume 2", 1000, 800)
        await picture("progress.png", "test.html", "66", 640, 100)
        await browser.close()


def of_terminal() -> None:
    page_server.stamp = stamp
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    frame = watch.Frame(COLUMNS, 0, NOW.timestamp())
    for row in watch.tree_lines([watch.Branch(GUI_ID, running(), percent=66.0)], frame):
        console.print(row)
    svg = console.export_svg(title=f"correlator watch {GUI_ID}", theme=MONOKAI, unique_id="correlator-watch")
    without_fonts = re.sub(r"\s*@font-face \{[^}]*\}", "", svg)  # they would come from another host
    (FOLDER / "watch.svg").write_text(without_fonts)


if __name__ == "__main__":
    if sys.hexversion < 0x030C0000:
        sys.exit("make pictures needs Python 3.12 or newer: make pictures VENV=.venv-3.13 PYTHON=python3.13")
    FOLDER.mkdir(exist_ok=True)
    of_terminal()
    asyncio.run(of_pages())
