"""`correlator logs`: the log lines of one job, and with `follow` those that come, until the job has ended.

Lines that exist are read in pages over REST. To follow, the websocket is opened once they have been printed; after each
connection, and when the daemon dropped lines, the pages since are read again. `LineMerge` makes each line appear once.
When the job has ended, the last lines are read over REST, which is complete. Memory is bounded by some pages.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TextIO, TypeVar

from msgspec import Struct, convert
from rich.text import Text

from correlator.client.client import Client, Unreachable
from correlator.client.documents import moment
from correlator.client.line_merge import LineMerge, Page, in_order
from correlator.client.messages import Document, LogMessage
from correlator.client.replica import ConnectionState, Update
from correlator.errors import NotFound
from correlator.model.document import EXACT
from correlator.model.messages import Wanted
from correlator.model.parameters import MAX_EVENTS, MAX_LIMIT
from correlator.model.rows import Level
from correlator.tasks import Backoff
from correlator.terminal import formats, ids
from correlator.terminal.formats import note
from correlator.terminal.screen import LEVEL_STYLES, Theme, console_on, print_error, theme_for

Output = Literal["plain", "json"]

_IDENTITY = ("job_id", "step_id", "external_job_id", "step_name")
"""Attributes that name the job and the step of a line, which the output shows already."""


class Printer:
    """Writes log lines to a stream. A terminal gets local times and colours, a pipe times in UTC."""

    def __init__(self, stdout: TextIO, output: Output) -> None:
        self._stdout = stdout
        self._output = output
        self._theme = theme_for(stdout, os.environ)
        self._console = console_on(stdout)
        self._coloured = stdout.isatty() and output == "plain"

    def write(self, lines: Sequence[LogMessage], job: Document) -> None:
        """Write lines of `job`, and flush."""
        if self._coloured:
            for line in lines:
                self._console.print(line_as_text(line, job, self._theme, local=True), soft_wrap=True)
        elif self._output == "json":
            self._stdout.writelines(formats.as_json(formats.log_object(line)) + "\n" for line in lines)
        else:
            self._stdout.writelines(line_as_text(line, job, self._theme).plain + "\n" for line in lines)
        self._stdout.flush()


def line_as_text(line: LogMessage, job: Document, theme: Theme, *, local: bool = False, of: str = "") -> Text:
    """``2025-09-22T10:00:00.123456Z WARN  step-name: message  name=value``; `local`: the zone of this host.

    `of` stands before the name of the step.
    """
    step = (job.get("steps") or {}).get(str(line.step_id)) or {}
    level = theme.clean(line.level)
    return Text.assemble(
        (f"{_time_of_line(line.at, local=local)} ", "dim" if local else ""),
        (f"{level:5} ", LEVEL_STYLES.get(line.level, "")),
        (f"{theme.clean(of)}: " if of else "", "bold"),
        (f"{theme.clean(step['name'])}: " if step.get("name") else "", "dim"),
        theme.clean(line.message),
        (f"  {attributes}" if (attributes := theme.clean(_attributes(line.attrs))) else "", "dim"),
    )


def _time_of_line(at: str | None, *, local: bool) -> str:
    """The time with its zone, in UTC with the microseconds of the log, else with milliseconds and the offset."""
    when = moment(at)
    if when is None:
        return "-"
    return when.astimezone().isoformat(" ", "milliseconds") if local else str(at)


def _attributes(attrs: Any) -> str:
    if not isinstance(attrs, dict):
        return "" if attrs is None else _attribute(attrs)
    return "  ".join(
        f"{name}={_attribute(value)}" for name, value in attrs.items() if name not in _IDENTITY and value != ""
    )


def _attribute(value: Any) -> str:
    return value if isinstance(value, str) else formats.as_json(value)


def mentions(line: LogMessage, text: str) -> bool:
    """Whether message or attributes contain a text, in upper or lower case: what the daemon selects from pages."""
    attrs, part = line.attrs or "", text
    if not isinstance(attrs, str):
        attrs, part = (json.dumps(one, ensure_ascii=False, separators=(",", ":")) for one in (attrs, text))
        part = part[1:-1]
    return text.lower() in line.message.lower() or part.lower() in attrs.lower()


async def find_lines(
    client: Client, query: Mapping[str, str | Sequence[str]], limit: int, stdout: TextIO, output: Output, stderr: TextIO
) -> None:
    """Print log lines of any job, the newest first, as they are found: up to `limit`, with the job's ID and VM.

    `query` has the parameters of ``GET /api/v1/events``. What is missing is said on `stderr`.
    """
    theme, console = theme_for(stdout, os.environ), console_on(stdout)
    found, searched, trouble = 0, 0.0, ""
    async with contextlib.aclosing(client.found_lines({**query, "limit": str(min(limit, MAX_LIMIT))})) as pages:
        async for page in pages:
            searched, trouble = float(page["searched"]), str(page.get("reason") or "")
            for event in page["events"][: limit - found]:
                found += 1
                if output == "json":
                    stdout.write(formats.as_json(event) + "\n")
                    continue
                of = " ".join(str(event[name]) for name in ("job_id", "vm_name") if event.get(name))
                line = convert({**event, "job_id": str(event["job_id"] or ""), "type": "log"}, LogMessage)
                text = line_as_text(line, {}, theme, local=stdout.isatty(), of=of)
                if stdout.isatty():
                    console.print(text, soft_wrap=True)
                else:
                    stdout.write(text.plain + "\n")
            stdout.flush()
            if found == limit:
                break
    if trouble:
        print_error(stderr, f"the list is incomplete: {trouble}")
    elif searched < 1.0:
        share = int(searched * 100)
        print_error(stderr, f"these are the newest {found}, in {share} % of the logs: --limit asks for others")


_T = TypeVar("_T")

SETTLE = 0.5
"""Seconds after the end of a job, and after each of its last lines, in which further ones may be committed."""

ROUNDS = 20
"""Most times that the end of a log is read, should its lines not end with the job."""

WAIT = 30.0
"""Seconds of one request that waits for an unknown ID."""


class LogsOrder(Struct, frozen=True):
    """What to print. `step`: a name or an ID; "" for all. `since`: RFC 3339.

    `grep`: a text in the message or in the attributes, in upper or lower case. `tail`: only the last lines that match,
    and those that come from then on.
    """

    name: str
    follow: bool = False
    level: Level = "DEBUG"
    step: str = ""
    since: str | None = None
    grep: str = ""
    tail: int | None = None


async def logs(client: Client, order: LogsOrder, printer: Printer, stderr: TextIO, *, settle: float = SETTLE) -> None:
    """Print the log lines of a job. `settle`: seconds after its end, and after each of its last lines.

    Raises:
        NotFound: no job has this ID, the job has no such step, or it was deleted.
        BadRequest: several jobs have this short form.
        CorrelatorError: the daemon cannot be reached, or refuses the connection.
    """
    run = _LogsRun(client, order, printer, stderr, settle)
    await run.find()
    if order.tail is not None:
        await run.skip(order.tail)
    while await run.follow():
        pass


class _LogsRun:
    """One run of the command. `job`: the newest document of the job."""

    def __init__(self, client: Client, order: LogsOrder, printer: Printer, stderr: TextIO, settle: float) -> None:
        self._client = client
        self._settle = settle
        self._order = order
        self._printer = printer
        self._stderr = stderr
        self._merge = LineMerge()
        self._after: str | None = None
        self._first: int | None = None
        """The event ID that the first page begins with."""
        self._since = moment(order.since)
        self._note = ""
        self._reason: str | None = None
        """Why lines may be missing, as it was printed."""
        self.job: Document = {}

    async def find(self) -> None:
        """Find the job; one that is followed may appear later."""
        name = self._order.name
        job = await ids.find(self._client, name)
        if job is None and not self._order.follow:
            raise NotFound(f"no job is known by {name!r}")
        if job is None:
            print_error(self._stderr, f"waiting for {name}")
        while job is None:
            job = await self._patiently(lambda: self._client.job(name, WAIT))
        self.job = job
        if self._order.step and (job.get("terminal") or not self._order.follow) and not self._steps():
            known = ", ".join(dict.fromkeys(str(s.get("name")) for s in (job.get("steps") or {}).values()))
            raise NotFound(f"the job has no step {self._order.step!r}; its steps are: {known or 'none'}")

    async def skip(self, tail: int) -> None:
        """Begin with the last `tail` lines that match."""
        before: int | None = EXACT - 1  # above all IDs
        left = tail
        while before is not None:
            limit = min(max(left, 100), MAX_EVENTS)
            page = await self._patiently(partial(self._page, {"before": str(before), "limit": str(limit)}))
            matching = sorted(line.event_id for line in page.events if self._matches(line))
            if len(matching) >= left:
                self._first = matching[-left]
                return
            left, before = left - len(matching), page.next_before

    async def follow(self) -> bool:
        """Print the lines up to the end of the job, or of the log. True if another job continues this one."""
        await self._read_pages()
        if not self._order.follow:
            return False
        if not self.job.get("terminal") and (successor := await self._live()) is not None:
            self.job, self._after, self._first = successor, None, None
            return True
        for _ in range(ROUNDS):
            await asyncio.sleep(self._settle)
            if not await self._read_pages():
                break
        return False

    async def _live(self) -> Document | None:
        """Print lines as they come, until the job has ended. Returns the job that replaced a legacy job, if one did.

        Raises:
            NotFound: the job was deleted.
        """
        job_id, behind = str(self.job["job_id"]), True
        wanted = Wanted(jobs=(job_id,), logs=self._order.level)
        async with contextlib.aclosing(self._client.follow(wanted, patient=True)) as updates:
            async for update in updates:
                self._report(update)
                if job_id in update.jobs:
                    self.job = update.jobs[job_id]
                elif job_id in update.gone or update.synced:  # it was deleted, has left memory, or has another ID now
                    job = await self._patiently(lambda: self._client.job(job_id))
                    if job is None:
                        raise NotFound("the job was deleted before it ended")
                    if job["job_id"] != job_id:
                        return job
                    self.job = job
                matching = (line for line in update.logs if self._matches(line) and mentions(line, self._order.grep))
                self._print(self._merge.add_streamed(matching))
                # The stream repeats no lines: pages have those of the time without a connection, and dropped ones.
                behind |= not update.synced or self._merge.pages_needed or any(line.dropped for line in update.logs)
                if behind and update.synced and update.connection.state == "live":
                    await self._read_pages()
                    behind = False
                if self.job.get("terminal"):
                    break
        return None

    async def _read_pages(self) -> int:
        """Read and print the pages after the last one, up to the newest line. Returns the number of new lines."""
        held: list[LogMessage] = []
        count = 0
        while True:
            begin = {"from": str(self._first)} if self._first is not None and self._after is None else {}
            page = await self._patiently(partial(self._page, begin))
            new = [line for line in self._merge.add_page(page) if self._matches(line)]
            ready, held = in_order(held, new)
            self._print(ready)
            count += len(new)
            self._after = page.next_after or self._after
            if not page.more:
                self._print(held)
                return count

    async def _page(self, place: dict[str, str]) -> Page:
        query = {"level": self._order.level, "q": self._order.grep, "since": self._order.since or ""}
        # A step of a running job may be one that the document does not have yet: `_matches` filters alone.
        if self._steps() and (self.job.get("terminal") or self._order.step.isdecimal()):
            query["step"] = ",".join(map(str, sorted(self._steps())))
        given = {name: value for name, value in query.items() if value} | place
        page = await self._client.events_page(str(self.job["job_id"]), given, None if place else self._after)
        if page is None:
            raise NotFound("the job was deleted before its log was read")
        if page.reason is not None and self._reason is None:
            print_error(self._stderr, f"lines may be missing: {page.reason}")
        self._reason = page.reason or self._reason
        return page

    async def _patiently(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        """The answer to `ask`, which is repeated while the daemon cannot answer if the job is followed."""
        backoff = Backoff(0.25, 2.0, 10.0)
        while True:
            try:
                answer = await ask()
            except Unreachable as error:
                if not self._order.follow:
                    raise
                self._report(Update({}, connection=ConnectionState("offline", str(error))))
            else:
                self._report(Update({}, connection=ConnectionState("live")))
                return answer
            await asyncio.sleep(backoff.next())

    def _steps(self) -> frozenset[int]:
        """The IDs of the steps with the name that was given, or the ID that was given."""
        step, steps = self._order.step, self.job.get("steps") or {}
        named = frozenset(int(n) for n, one in steps.items() if one.get("name") == step and n.isdecimal())
        return named or (frozenset({int(step)}) if step.isdecimal() and step in steps else frozenset())

    def _matches(self, line: LogMessage) -> bool:
        if line.dropped or (self._order.step and line.step_id not in self._steps()):
            return False
        at = moment(line.at)
        return self._since is None or at is None or at >= self._since

    def _print(self, lines: Sequence[LogMessage]) -> None:
        if lines:
            self._printer.write(lines, self.job)

    def _report(self, update: Update) -> None:
        if (now := note(update)) != self._note:
            self._note = now
            print_error(self._stderr, now or "connected again")
