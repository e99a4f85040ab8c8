"""`correlator jobs`: many jobs, the newest first; once, or followed live."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterable, Mapping
from typing import Literal, TextIO

from msgspec import Struct
from rich.table import Table
from rich.text import Text

from correlator.client import Client
from correlator.replica import Update
from correlator.replica.messages import Document, Wanted
from correlator.terminal import signs
from correlator.terminal.screen import Screen
from correlator.terminal.show import SHORT
from correlator.terminal.shows import note
from correlator.terminal.signs import STYLES, Signs

Output = Literal["table", "plain", "json"]

TICK = 1.0


class Query(Struct, frozen=True):
    """Which jobs. An empty member does not filter. `since`: RFC 3339; `text`: in any ID or machine's name."""

    status: tuple[str, ...] = ()
    job_type: tuple[str, ...] = ()
    operation: tuple[str, ...] = ()
    context_id: tuple[str, ...] = ()
    text: str = ""
    since: str | None = None
    limit: int = 50

    def parameters(self) -> dict[str, str | tuple[str, ...]]:
        """As ``GET /api/v1/jobs`` takes them."""
        given: dict[str, str | tuple[str, ...] | None] = {
            "status": self.status,
            "job_type": self.job_type,
            "operation": self.operation,
            "context_id": self.context_id,
            "q": self.text,
            "since": self.since,
        }
        return {name: value for name, value in given.items() if value}

    def wanted(self) -> Wanted:
        """As a subscription takes them, which knows fewer: `admits` is asked for the rest."""
        return Wanted(status=self.status or None, job_type=self.job_type or None, context_id=self.context_id or None)

    def admits(self, job: Document) -> bool:
        since, began = signs.moment(self.since), signs.moment(job.get("started_at"))
        names = (job.get("job_id"), *(job.get("external_ids") or ()), job.get("context_id"), signs.vm_name(job))
        return (
            (not self.operation or job.get("operation") in self.operation)
            and (since is None or (began is not None and began >= since))
            and (not self.text or any(self.text.lower() in str(name).lower() for name in names if name))
        )


async def jobs(client: Client, query: Query, output: Output, stdout: TextIO) -> None:
    """Print them once."""
    found = await client.jobs(query.parameters(), query.limit)
    look = signs.signs_for(stdout, os.environ)
    match output:
        case "json":
            stdout.write(signs.as_json(found, indent=2) + "\n")
        case "plain":
            stdout.writelines(plain(job, look) + "\n" for job in found)
        case "table":
            console = signs.console_on(stdout)
            console.print(table(found, console.width, time.time(), look))


async def follow_jobs(client: Client, query: Query, output: Output, stdout: TextIO, stderr: TextIO) -> None:
    """Print them, and every change, until cancelled."""
    if output == "table":
        with Screen(signs.console_on(stdout)) as screen:
            await _follow_table(client, query, screen, signs.signs_for(stdout, os.environ))
        return
    look, told, said = signs.signs_for(stdout, os.environ), dict[str, str](), ""
    async with contextlib.aclosing(client.follow(query.wanted())) as updates:
        async for update in updates:
            for job in newest(update, query) if update.synced else ():
                job_id = str(job["job_id"])
                # As JSON every change counts; a line is about what stands in it, its age aside.
                line = signs.as_json(job) if output == "json" else plain(job, look)
                key = line if output == "json" else plain({**job, "duration_seconds": None}, look)
                if told.get(job_id) != key:
                    told[job_id] = key
                    stdout.write(line + "\n")
            for job_id, reason in update.gone.items():
                if told.pop(job_id, None) is not None and output == "json":
                    stdout.write(signs.as_json({"job_id": job_id, "deleted": reason}) + "\n")
            stdout.flush()
            if note(update) != said:
                said = note(update)
                signs.grumble(stderr, said or "connected again")


async def _follow_table(client: Client, query: Query, screen: Screen, look: Signs) -> None:
    news, latest = asyncio.Event(), list[Update]()

    async def listen() -> None:
        async with contextlib.aclosing(client.follow(query.wanted())) as updates:
            async for update in updates:
                latest[:] = [update]
                news.set()

    listening = asyncio.create_task(listen())
    listening.add_done_callback(lambda _: news.set())
    try:
        while not listening.done():
            if latest:
                # One line for the names of the columns, one for what is the matter, one for the cursor.
                shown = newest(latest[0], query)[: max(1, screen.height - 3)]
                drawn = table(shown, screen.width, time.time() + latest[0].ahead, look)
                if matter := note(latest[0]):
                    drawn.caption = look.fit(Text(look.clean(matter), style="yellow"), screen.width)
                screen.paint(drawn)
            news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK):
                    await news.wait()
            if latest and latest[0].connection.state == "live":
                await asyncio.sleep(0.1)  # a burst of changes is one frame
        listening.result()
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


def newest(update: Update, query: Query) -> list[Document]:
    """Those that the query wants, the newest first, no more than its limit."""
    found = [job for job in update.jobs.values() if query.admits(job)]
    found.sort(key=lambda job: (job.get("started_at") or "", job.get("job_id") or ""), reverse=True)
    return found[: query.limit]


def plain(job: Document, look: Signs) -> str:
    """Columns with tabs between, for scripts: started, id, status, percent, machine, operation, step, seconds."""
    seconds = job.get("duration_seconds")
    columns = (
        signs.stamp(job["started_at"]) if job.get("started_at") else None,
        job.get("job_id"),
        job.get("status"),
        f"{signs.percent(job):g}",
        signs.vm_name(job),
        job.get("operation"),
        job.get("current_step"),
        None if seconds is None else f"{seconds:.0f}",
    )
    return "\t".join(look.clean(column) or "-" for column in columns)


_COLUMNS: Mapping[str, tuple[int, bool]] = {
    "status": (0, False), "vm": (0, True), "operation": (60, True), "progress": (30, False), "step": (90, True),
    "elapsed": (36, False), "age": (100, False), "id": (70, False),
}  # fmt: skip
"""Name → from which width of the terminal on it is shown, and whether it gives way where room is short."""


_SHORT = {"vm": "VM", "progress": "   %", "elapsed": "TIME"}
"""What stands over a column where room is short."""


def table(found: Iterable[Document], width: int, now: float, look: Signs) -> Table:
    """The wider, the more columns."""
    columns = [name for name, (least, _) in _COLUMNS.items() if width >= least]
    drawn = Table(
        box=None, padding=(0, 1, 0, 0), header_style="dim", width=width, pad_edge=False, caption_justify="left"
    )
    for name in columns:
        gives_way = _COLUMNS[name][1]
        drawn.add_column(
            name.upper() if width >= 60 else _SHORT.get(name, ""),
            no_wrap=True,
            overflow="ellipsis" if look.unicode else "crop",
            ratio=1 if gives_way else None,
        )
    for job in found:
        cells = _cells(job, width, now, look)
        drawn.add_row(*(cells[name] for name in columns))
    return drawn


def _cells(job: Document, width: int, now: float, look: Signs) -> dict[str, Text]:
    status = str(job.get("status"))
    style = STYLES.get(status, "")
    words = Text.assemble(look.mark(status), (f" {look.clean(status)}" if width >= 60 else "", style))
    if job.get("stalled"):
        words.append("!", "bold yellow")
    share = signs.percent(job)
    bar = look.bar(share, 8 if width < 100 else 12, style) if width >= 60 else Text()
    began = signs.moment(job.get("started_at"))
    age = signs.duration(max(0.0, now - began.timestamp())).split(" ")[0] if began is not None else ""
    job_id = look.clean(job.get("job_id"))
    return {
        "status": words,
        "vm": Text(look.clean(signs.vm_name(job) or "-"), style="bold" if status == "running" else ""),
        "operation": Text(look.clean(job.get("operation"))),
        "progress": Text.assemble(bar, f" {int(share):3d}%" if width >= 60 else f"{int(share):3d}%"),
        "step": Text(look.clean(job.get("current_step"))),
        "elapsed": Text(signs.duration(signs.elapsed(job, now))),
        "age": Text(age),
        "id": Text(job_id if width >= 120 or len(job_id) < 20 else job_id[:SHORT], style="dim"),
    }
