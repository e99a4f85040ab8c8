"""`correlator watch`: follow IDs until their jobs have ended, as a tree painted in place, as lines, or as JSON.

Model: a `WatchState` applies the updates of the client and returns the events that follow from them; a renderer prints
the state or the events.
Invariant: an event is reported once. After an outage the same state arrives again, and a daemon that is still loading
may send an older one: neither is an event. A final status that is corrected to another one is reported again.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import io
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, TextIO

from msgspec import Struct
from rich.console import Console, Group
from rich.text import Text

from correlator.client.client import Client, Unreachable
from correlator.client.documents import moment, named
from correlator.client.messages import Document, LogMessage
from correlator.client.replica import ConnectionState, Update
from correlator.errors import CorrelatorError
from correlator.model.facts import ENDED
from correlator.model.messages import Wanted
from correlator.model.rows import Level
from correlator.tasks import set_within
from correlator.terminal import formats, ids
from correlator.terminal.formats import Percents, ahead, note
from correlator.terminal.screen import LEVEL_STYLES, STYLES, Screen, Theme, console_on, print_error, theme_for

SETTLE = 0.5
"""Seconds to wait after the last job has ended, for a corrected status and the last log lines."""

REDRAW_EVERY = 0.25
READ_WITHIN = 10.0
"""Seconds to wait for the log lines of a job that has already ended."""

MAX_LINES = 20_000
"""Log lines of a job that has already ended which are fetched at most."""

AGAIN_AFTER = 1.0
"""Seconds until a failed search for a short form is repeated."""

Progress = Literal["tty", "plain", "jsonl"]


class WatchOrder(Struct, frozen=True):
    """IDs to watch, and when to stop. `timeout`: seconds. `by_status`: the exit code depends on how the jobs ended."""

    names: tuple[str, ...]
    logs: Level = "WARN"
    timeout: float | None = None
    forever: bool = False
    by_status: bool = False


async def watch(client: Client, order: WatchOrder, progress: Progress, stdout: TextIO, stderr: TextIO) -> int:
    """Watch the IDs of `order` and return the exit code.

    Raises:
        CorrelatorError: the daemon cannot be reached, or refuses the connection.
    """
    state = WatchState(order.names)
    if progress == "tty":
        theme = theme_for(stdout, os.environ)
        with Screen(console_on(stdout)) as screen:
            over = await _WatchRun(client, order, state, JobTree(state, screen, theme)).run()
    else:
        renderer = EventObjects(state, stdout) if progress == "jsonl" else EventLines(state, stdout, stderr)
        over = await _WatchRun(client, order, state, renderer).run()
    for entry in state.all:
        if (reason := _reason(entry, order, over=over)) is not None:
            print_error(stderr, f"{entry.name}: {reason}")
    return state.code(by_status=order.by_status)


class _WatchRun:
    """One run of the command."""

    def __init__(self, client: Client, order: WatchOrder, state: WatchState, renderer: Renderer) -> None:
        self._client = client
        self._order = order
        self._state = state
        self._renderer = renderer
        self._news = asyncio.Event()
        self._read: set[str] = set()
        """IDs of the jobs whose past log lines were requested."""
        self._reading = False
        self._connect_error: str | None = f"{client.url} did not answer in time"
        """Why no connection has succeeded so far; None after the first one has."""

    async def run(self) -> bool:
        """Run until all jobs have ended, or until the timeout. Returns whether all have ended."""
        following = asyncio.create_task(self._follow())
        following.add_done_callback(lambda _: self._news.set())
        try:
            over = await self._until_over(following)
            self._renderer.finish()
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        if self._connect_error is not None:
            raise Unreachable(self._connect_error)
        return over

    async def _until_over(self, following: asyncio.Task[None]) -> bool:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._order.timeout if self._order.timeout is not None else float("inf")
        ended_at = float("inf")
        while True:
            if following.done():
                following.result()
            self._renderer.paint()
            now = loop.time()
            over = self._state.ended and not self._reading and not self._order.forever
            ended_at = min(ended_at, now) if over else float("inf")
            if now >= ended_at + SETTLE:
                return True
            if now >= deadline:
                return self._state.ended
            self._news.clear()
            await set_within(self._news, min(REDRAW_EVERY, deadline - now))

    async def _follow(self) -> None:
        patient = self._order.timeout is not None
        for entry in self._state.all:
            entry.wanted = await self._full(entry.name, patient=patient)
        wanted = Wanted(jobs=tuple(w.wanted for w in self._state.all), logs=self._order.logs)
        async with contextlib.aclosing(self._client.follow(wanted, patient=patient)) as updates:
            async for update in updates:
                if self._connect_error is not None:
                    live = update.connection.state == "live"
                    self._connect_error = None if live else update.connection.error or self._connect_error
                self._reading = True
                events = self._state.apply(update)
                for entry in self._state.all:
                    events += await self._past(entry)
                if any(one.kind == "log" for one in events):
                    events.sort(key=lambda one: one.at or "9")
                self._renderer.handle(events, update)
                self._reading = False
                self._news.set()

    async def _full(self, name: str, *, patient: bool) -> str:
        """Resolve a short form; a `patient` watch repeats the request until the daemon answers."""
        while True:
            try:
                return await ids.full(self._client, name)
            except Unreachable as error:
                if not patient:
                    raise
                self._connect_error = str(error)
                self._renderer.handle([], Update({}, connection=ConnectionState("offline", str(error))))
            await asyncio.sleep(AGAIN_AFTER)

    async def _past(self, entry: WatchedId) -> list[WatchEvent]:
        """Fetch the log lines of a job that had already ended when it was first received."""
        if entry.job is None or not entry.past or (job_id := str(entry.job["job_id"])) in self._read:
            return []
        self._read.add(job_id)
        found: list[WatchEvent] = []
        missing, read = "", 0
        try:
            async with (
                asyncio.timeout(READ_WITHIN),
                contextlib.aclosing(self._client.lines(job_id, self._order.logs)) as lines,
            ):
                async for line in lines:
                    if (read := read + 1) > MAX_LINES:
                        missing = f"only its first {MAX_LINES} log lines are shown; there are more"
                        break
                    found += entry.add_log(line)
        except (CorrelatorError, TimeoutError) as error:
            missing = f"its log lines could not be read: {str(error) or f'no answer within {READ_WITHIN:g} s'}"
        if missing:
            found.append(WatchEvent(entry.name, job_id, "lost", None, missing))
        return found


def _reason(entry: WatchedId, order: WatchOrder, *, over: bool) -> str | None:
    """Why the watch failed for this ID, as text for the user; None if it succeeded."""
    if entry.deleted and entry.code(by_status=False):
        return "its job was deleted before it ended"
    if over or order.timeout is None:
        return None
    if entry.job is None:
        return f"not found within {order.timeout:g} s"
    return f"still {entry.status} after {order.timeout:g} s" if entry.code(by_status=False) == NOT_ENDED else None


KEPT_LINES = 200

COMPLETED, FAILED, CANCELLED, NOT_FOUND, NOT_ENDED = 0, 10, 11, 12, 1
"""Exit codes."""

_ENDINGS = {"completed": COMPLETED, "failed": FAILED, "cancelled": CANCELLED}
_RANKS = {"pending": 0, "running": 1}
_FORECASTS = {"rough": 0, "on_track": 0, "late": 1, "overdue": 2}

Kind = Literal["job", "step", "log", "error", "stalled", "recovered", "forecast", "deleted", "lost"]


class WatchEvent(Struct, frozen=True):
    """One event of the job with the ID `name`. `status`: the new status, if a job or step changed it."""

    name: str
    job_id: str
    kind: Kind
    at: str | None
    text: str
    status: str = ""
    log: LogMessage | None = None


class WatchedId:
    """One ID and its job, which keeps its last state while a restarted daemon does not know it yet."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.wanted = name
        """The ID to subscribe to: `name`, or the full ID if `name` is a short form."""
        self.past = False
        """True if the job had ended when it was first received, so its log lines have to be fetched."""
        self.job: Document | None = None
        self.logs: deque[LogMessage] = deque(maxlen=KEPT_LINES)
        self.deleted = False
        self._reported: dict[str, str] = {}
        self._forecast = -1
        """The highest of `_FORECASTS` that was reported."""
        self._error: str | None = None

    @property
    def status(self) -> str:
        return str(self.job.get("status")) if self.job is not None else ""

    @property
    def ended(self) -> bool:
        return self.deleted or self.status in _ENDINGS

    def code(self, *, by_status: bool) -> int:
        """The exit code for this ID. Without `by_status` every final status counts as success."""
        if self.job is None or (self.deleted and self.status not in _ENDINGS):
            return NOT_FOUND
        if self.status not in _ENDINGS:
            return NOT_ENDED
        return _ENDINGS[self.status] if by_status else COMPLETED

    def set_job(self, job: Document) -> Iterator[WatchEvent]:
        """Set the current document of the job, and return the events that follow from it."""
        before, self.job, self.deleted = self.job, job, False
        if before is None:
            self.past = self.ended
        if before is not None and before.get("job_id") != job.get("job_id"):
            self._error = None
            self.logs.clear()
            self.past = self.ended
            self._forecast = -1
            if before.get("source") != "legacy" or job.get("source") == "legacy":
                self._reported.clear()  # another job; a legacy job that became a regular one is the same
        job_id = str(job["job_id"])
        events = [*self._of_job(job, job_id)]
        started = [h for h in events if h.kind == "job" and h.status not in _ENDINGS]
        ended = [h for h in events if h not in started]
        yield from started
        yield from sorted(self._of_steps(job, job_id), key=lambda event: event.at or "")
        yield from ended
        if bool(job.get("stalled")) != bool((before or {}).get("stalled")):
            text = "stalled: no sign of life" if job.get("stalled") else "no longer stalled"
            kind: Kind = "stalled" if job.get("stalled") else "recovered"
            yield WatchEvent(self.name, job_id, kind, job.get("updated_at"), text)
        yield from self._of_forecast(job, job_id)

    def add_log(self, log: LogMessage) -> Iterator[WatchEvent]:
        """Add a log line of the job; a duplicate is ignored."""
        if log.event_id not in {known.event_id for known in self.logs}:
            self.logs.append(log)
            yield WatchEvent(self.name, log.job_id, "log", log.at, f"{log.level} {log.message}", log=log)

    def mark_deleted(self) -> Iterator[WatchEvent]:
        """Record that the job's row was deleted."""
        if self.job is not None and not self.deleted:
            self.deleted = True
            yield WatchEvent(self.name, str(self.job["job_id"]), "deleted", None, "deleted")

    def _of_job(self, job: Document, job_id: str) -> Iterator[WatchEvent]:
        status, error = str(job.get("status")), job.get("error")
        error_text = f": {why}" if (why := formats.failure_sentence(job)) else _error_text(job)
        if self._is_new("job", status):
            at = job.get("ended_at" if status in _ENDINGS else "started_at") or job.get("updated_at")
            took = formats.duration(job.get("duration_seconds"), fine=True)
            after = f" after {took}" if status in _ENDINGS and took else ""
            if beside := formats.comparison(job):
                after += f" ({beside})"
            where = f"on {formats.instance(job)}" if formats.instance(job) else ""
            what = " ".join(str(part) for part in (job.get("operation"), formats.vm_name(job), where) if part)
            yield WatchEvent(self.name, job_id, "job", at, f"{what} {status}{after}{error_text}".strip(), status)
        elif error and error != self._error:
            yield WatchEvent(self.name, job_id, "error", job.get("updated_at"), f"error{error_text}", status)
        self._error = error or self._error

    def _of_forecast(self, job: Document, job_id: str) -> Iterator[WatchEvent]:
        """The first forecast of a job, and once each that it became late and overdue."""
        forecast = job.get("forecast") or {}
        as_of, rank = moment(forecast.get("as_of")), _FORECASTS.get(str(forecast.get("state")), -1)
        if as_of is None or rank <= self._forecast:
            return
        self._forecast, now, clock = rank, as_of.timestamp(), formats.utc_clock
        texts = (formats.reason(job), formats.outlook(job, now, clock), formats.basis(job, now, clock))
        yield WatchEvent(self.name, job_id, "forecast", forecast["as_of"], ", ".join(filter(None, texts)))

    def _of_steps(self, job: Document, job_id: str) -> Iterator[WatchEvent]:
        for number, step in formats.steps_of(job):
            status = str(step.get("status"))
            if self._is_new(number, status):
                at = step.get("ended_at" if status in ENDED else "started_at") or job.get("updated_at")
                took = formats.duration(step.get("duration_seconds"), fine=True)
                after = f" after {took}" if status in ENDED and took else ""
                what = f"step {step.get('name')} {status}{after}{_error_text(step)}"
                yield WatchEvent(self.name, job_id, "step", at, what, status)

    def _is_new(self, what: str, status: str) -> bool:
        reported = self._reported.get(what)
        if reported == status or _RANKS.get(status, 2) < _RANKS.get(reported or "pending", 2):
            return False
        self._reported[what] = status
        return True


class WatchState:
    """All IDs of one watch, without duplicates."""

    def __init__(self, given: Sequence[str]) -> None:
        self.all = [WatchedId(name) for name in dict.fromkeys(given)]

    @property
    def ended(self) -> bool:
        return all(entry.ended for entry in self.all)

    def code(self, *, by_status: bool) -> int:
        """The highest exit code of all IDs."""
        return max(entry.code(by_status=by_status) for entry in self.all)

    def apply(self, update: Update) -> list[WatchEvent]:
        """Apply an update of the client, and return the events in order."""
        found: list[WatchEvent] = []
        changed = [update.jobs[job_id] for job_id in update.changed if job_id in update.jobs]
        touched = {name for job in changed for name in formats.names(job)}
        for entry in self.all:
            known = str(entry.job["job_id"]) if entry.job is not None else ""
            if entry.wanted in touched or known in update.changed or known in update.gone:
                job = named(update.jobs, entry.wanted)
                if job is not None and job is not entry.job:
                    found += entry.set_job(job)
                elif job is None and update.gone.get(known) == "gone":
                    found += entry.mark_deleted()
            for log in update.logs:
                if log.dropped:
                    continue
                if entry.job is not None and log.job_id == entry.job["job_id"]:
                    found += entry.add_log(log)
        dropped = sum(log.dropped for log in update.logs)
        if dropped:
            text = f"{dropped} log lines were dropped, because they came faster than they could be sent"
            found.append(WatchEvent("", "", "lost", None, text))
        return found


def _error_text(thing: Document) -> str:
    """The error of a job or step with a note if it was cut; "" if there is none."""
    note = formats.cut_error(thing)
    return f": {thing['error']}{f' ({note})' if note else ''}" if thing.get("error") else ""


class Renderer(abc.ABC):
    """Output of a watch."""

    @abc.abstractmethod
    def handle(self, events: Iterable[WatchEvent], update: Update) -> None:
        """Called for every update."""

    def paint(self) -> None:  # noqa: B027 - only a tree does something
        """Called periodically."""

    def finish(self) -> None:  # noqa: B027 - only a tree does something
        """Called once, at the end."""


class JobTree(Renderer):
    """Paints all jobs in place; the final state stays on the terminal."""

    def __init__(self, state: WatchState, screen: Screen, theme: Theme) -> None:
        self._state = state
        self._screen = screen
        self._theme = theme
        self._percents = Percents()
        self._note = ""
        self._ahead = 0.0

    def handle(self, events: Iterable[WatchEvent], update: Update) -> None:
        del events  # the tree shows the state, not the events
        self._note = note(update)
        self._ahead = ahead(update)

    def paint(self) -> None:
        width = self._screen.width
        below = [self._theme.fit(Text(self._theme.clean(self._note), style="yellow"), width)] if self._note else []
        # The cursor needs a line of its own below.
        drawn = self._lines(max(1, self._screen.height - 1 - len(below)))
        self._screen.paint(Group(*drawn, *below))

    def finish(self) -> None:
        self._screen.finish(Group(*self._lines(0)))

    def _lines(self, height: int) -> list[Text]:
        now = time.time() + self._ahead
        percents = self._percents.of([w.job for w in self._state.all if w.job is not None], now)
        branches = [
            Branch(w.name, w.job, tuple(w.logs), w.deleted, percents.get(str((w.job or {}).get("job_id"))))
            for w in self._state.all
        ]
        return tree_lines(branches, Frame(self._screen.width, height, now, self._theme))


class EventLines(Renderer):
    """Prints one line for each event with its time and ID; problems of the connection go to `stderr`."""

    def __init__(self, state: WatchState, stdout: TextIO, stderr: TextIO) -> None:
        self._state = state
        self._stdout = stdout
        self._stderr = stderr
        self._theme = theme_for(stdout, os.environ)
        self._note = ""
        self._waiting: set[str] | None = None

    def handle(self, events: Iterable[WatchEvent], update: Update) -> None:
        if self._waiting is None and update.synced:
            self._waiting = {w.name for w in self._state.all if w.job is None}
            for name in sorted(self._waiting):
                self._write(None, name, "waiting for it")
        for one in events:
            self._write(one.at, one.name or "-", one.text)
        self._stdout.flush()
        if (now := note(update)) != self._note:
            self._note = now
            print_error(self._stderr, now or "connected again")

    def _write(self, at: str | None, name: str, text: str) -> None:
        self._stdout.write(f"{formats.stamp(at)} {self._theme.clean(name)} {self._theme.clean(text)}\n")


class EventObjects(Renderer):
    """Prints one JSON object per line for each change: waiting, job, log, deleted, lost or connection."""

    def __init__(self, state: WatchState, stdout: TextIO) -> None:
        self._state = state
        self._stdout = stdout
        self._jobs: dict[str, Document] = {}
        self._connection: ConnectionState | None = None
        self._synced = False

    def handle(self, events: Iterable[WatchEvent], update: Update) -> None:
        state = update.connection.state
        if self._connection is None or self._connection.state != state:
            self._write("connection", state=state, error=update.connection.error)
            self._connection = update.connection
        for entry in self._state.all:
            if entry.job is not None and entry.job != self._jobs.get(entry.name):
                self._jobs[entry.name] = entry.job
                self._write("job", id=entry.name, job=entry.job)
            elif entry.job is None and update.synced and not self._synced:
                self._write("waiting", id=entry.name)
        self._synced = self._synced or update.synced
        for one in events:
            if one.log is not None:
                self._write("log", id=one.name, **formats.log_object(one.log))
            elif one.kind == "deleted":
                self._write("deleted", id=one.name, job_id=one.job_id)
            elif one.kind == "lost":
                self._write("lost", detail=one.text)
        self._stdout.flush()

    def _write(self, kind: str, **members: object) -> None:
        self._stdout.write(formats.as_json({"type": kind, **members}) + "\n")


# A job as a tree of lines: a header with a progress bar, its steps, and the error of a failed step. Pure: the time, the
# width and the height are arguments. No line is wider than the width. If all lines do not fit the height, the steps
# ahead are left out first, then completed steps are folded, then jobs that have ended, then all jobs; at last the lines
# are cut.

LOG_LINES = 5
"""Log lines shown under a failed step or a failed job."""

ERROR_LINES = 4
"""Lines of an error in a live frame; the final output has all of them."""

MAX_ERROR = 4000
"""Characters of an error that are printed at most."""

_RULER = Console(file=io.StringIO(), width=1000)
"""Used to wrap text; nothing is printed on it."""

_AHEAD, _FULL, _FOLDED, _RUNNING_ONLY, _HEADERS = 4, 3, 2, 1, 0


class Branch(Struct, frozen=True):
    """One watched ID with its job and log lines. `job` is None while the daemon does not know the ID.

    `percent`: None for that of the document at the time of the frame.
    """

    name: str
    job: Document | None = None
    logs: tuple[LogMessage, ...] = ()
    deleted: bool = False
    percent: float | None = None


class Frame(Struct, frozen=True):
    """The area to draw in, in cells. `now`: seconds since 1970 by the daemon's clock. `height` 0: unlimited."""

    width: int
    height: int
    now: float
    theme: Theme = Theme()


def tree_lines(branches: Sequence[Branch], frame: Frame) -> list[Text]:
    """Draw all branches, one below the other, with less detail if they do not fit the frame."""
    drawn: list[Text] = []
    for detail in (_AHEAD, _FULL, _FOLDED, _RUNNING_ONLY, _HEADERS):
        drawn = [line for branch in branches for line in _branch_lines(branch, frame, detail)]
        if not frame.height or len(drawn) <= frame.height:
            return drawn
    hidden = len(drawn) - frame.height + 1
    more = Text(f"{frame.theme.ellipsis} {hidden} more lines", style="dim")
    return [*drawn[: frame.height - 1], frame.theme.fit(more, frame.width)]


def _branch_lines(branch: Branch, frame: Frame, detail: int) -> list[Text]:
    theme, job = frame.theme, branch.job
    name = theme.clean(branch.name)
    if job is None:
        waiting = Text.assemble(theme.mark("pending"), f" waiting for {name}")
        return [theme.fit(waiting, frame.width)]
    drawn = [_title_line(branch, job, frame)]
    if detail == _HEADERS or (detail == _RUNNING_ONLY and job.get("terminal")):
        return drawn
    drawn += [_progress_line(branch, job, frame), *_outlook_lines(job, frame)]
    # The title may show the UUID. This line has the ID that the user gave, else the external IDs.
    ids = name if branch.name != job.get("job_id") else theme.clean(", ".join(job.get("external_ids") or ()))
    if ids:
        drawn.append(theme.fit(Text(f"  {ids}", style="dim"), frame.width))
    return [*drawn, *_step_lines(branch, job, frame, detail)]


def _title_line(branch: Branch, job: Document, frame: Frame) -> Text:
    theme, status = frame.theme, str(job.get("status"))
    subject = theme.clean(formats.vm_name(job) or job.get("job_id"))
    left = Text.assemble(theme.mark(status), " ", (subject, "bold"), "  ", theme.clean(formats.operation(job)))
    if where := theme.clean(formats.instance(job)):
        left.append(f"  on {where}", "dim")
    notes = [*formats.conditions(job), *(["deleted"] if branch.deleted else [])]
    words = ", ".join((theme.clean(status), *notes))
    return theme.row(left, Text(words, style=STYLES.get(status, "")), frame.width)


def _progress_line(branch: Branch, job: Document, frame: Frame) -> Text:
    theme = frame.theme
    share = branch.percent if branch.percent is not None else formats.percent_at(job, frame.now)
    progress = job.get("progress") or {}
    right = Text(formats.duration(formats.elapsed(job, frame.now)), style="dim")
    seen, expected = progress.get("steps_seen"), progress.get("steps_expected") or 0
    of = f"~{expected}" if expected > (seen or 0) else seen
    counts = f"{progress.get('steps_done') or 0}/{of} steps" if of else ""
    if failed := progress.get("steps_failed"):
        counts += f", {failed} failed"
    cells = max(8, min(40, frame.width - 2 - 5 - 1 - len(counts) - 9))
    bar = theme.bar(share, cells, STYLES.get(str(job.get("status")), "cyan"))
    return theme.row(Text.assemble("  ", bar, f" {int(share):3d}% ", (counts, "dim")), right, frame.width)


def _outlook_lines(job: Document, frame: Frame) -> list[Text]:
    """When a running job may end, and why that is believed; or how long an ended one took beside others."""
    clock, short = formats.local_clock(frame.now), formats.local_clock(frame.now, zone=False)
    late = formats.reason(job)
    texts = (
        formats.took(job), formats.outlook(job, frame.now, clock), late, formats.basis(job, frame.now, short)
    )  # fmt: skip
    words = "; ".join(filter(None, texts))
    return [frame.theme.fit(Text(f"  {words}", style="yellow" if late else "dim"), frame.width)] if words else []


def _step_lines(branch: Branch, job: Document, frame: Frame, detail: int) -> list[Text]:
    theme, drawn = frame.theme, list[Text]()
    steps = formats.steps_of(job)
    if detail < _FULL:
        quiet = [step for _, step in steps if step.get("status") in ("completed", "skipped")]
        steps = [(number, step) for number, step in steps if step not in quiet]
        if quiet:
            done = Text.assemble("  ", theme.mark("completed"), f" {len(quiet)} steps done")
            drawn.append(theme.fit(done, frame.width))
    shown_errors: set[str] = set()
    under: set[int] = set()
    for number, step in steps:
        drawn.append(_step_line(step, frame))
        if step.get("status") == "failed":
            shown_errors.add(str(step.get("error")))
            under.add(int(number) if number.isdecimal() else 0)
            drawn += _error_lines(step, frame, indent=6)
            drawn += _log_lines([log for log in branch.logs if str(log.step_id) == number], frame, indent=6)
    if job.get("status") == "failed":
        if why := formats.failure_sentence(job):
            drawn += _error_lines({"error": f"{why} ({job['failure']['state']})"}, frame, indent=2)
        elif str(job.get("error")) not in shown_errors:
            drawn += _error_lines(job, frame, indent=2)
        drawn += _log_lines([log for log in branch.logs if log.step_id not in under], frame, indent=2)
    last = job.get("last_message") or {}
    if job.get("status") == "running" and last.get("text") and detail >= _FULL:
        drawn.append(theme.fit(Text(f"    {theme.clean(last['text'])}", style="dim"), frame.width))
    if detail == _AHEAD:
        for words in formats.steps_ahead(job):
            line = Text.assemble("  ", theme.mark("pending"), f" {theme.clean(words)}")
            line.stylize("dim")
            drawn.append(theme.fit(line, frame.width))
    return drawn


def _step_line(step: Document, frame: Frame) -> Text:
    theme, status = frame.theme, str(step.get("status"))
    took = formats.duration(formats.elapsed(step, frame.now), fine=status != "running")
    name = (theme.clean(formats.step_title(step)), "bold" if status == "running" else "")
    return theme.row(Text.assemble("  ", theme.mark(status), " ", name), Text(took, style="dim"), frame.width)


def _error_lines(thing: Document, frame: Frame, indent: int) -> list[Text]:
    error, note = thing.get("error"), formats.cut_error(thing)
    if not error:
        return []
    theme, room = frame.theme, max(8, frame.width - indent)
    text = Text(theme.clean(str(error)[:MAX_ERROR]), style="red").append(f" ({note})" if note else "", "dim")
    found = list(text.wrap(_RULER, room, overflow="fold"))
    for line in found:
        line.rstrip()
    if frame.height and len(found) > ERROR_LINES:
        kept, cut = found[: ERROR_LINES - 1], found[ERROR_LINES - 1 :]
        found = [*kept, Text(" ", style="red").join(cut)]
    return [theme.fit(Text.assemble(" " * indent, theme.fit(line, room)), frame.width) for line in found]


def _log_lines(found: Sequence[LogMessage], frame: Frame, indent: int) -> list[Text]:
    theme = frame.theme
    return [
        theme.fit(
            Text.assemble(
                " " * indent,
                (f"{theme.clean(log.level):5} ", LEVEL_STYLES.get(log.level, "")),
                (f"{formats.stamp(log.at)[11:19]} ", "dim"),
                theme.clean(log.message),
            ),
            frame.width,
        )
        for log in found[-LOG_LINES:]
    ]
