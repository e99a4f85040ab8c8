"""`correlator watch`: follow IDs until their jobs have ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Literal, TextIO

from msgspec import Struct

from correlator.client.client import Client
from correlator.client.errors import Unreachable
from correlator.client.messages import Wanted
from correlator.client.replica import Connection, Update
from correlator.errors import CorrelatorError
from correlator.jobs.model.rows import Level
from correlator.terminal import ids
from correlator.terminal.renderers import Lines, Objects, Renderer, Tree
from correlator.terminal.screen import Screen
from correlator.terminal.theme import console_on, print_error, theme_for
from correlator.terminal.watch_state import NOT_ENDED, WatchedId, WatchEvent, WatchState

SETTLE = 0.5
"""Seconds to wait after the last job has ended, for a corrected status and the last log lines."""

REDRAW_EVERY = 0.25
READ_WITHIN = 10.0
"""Seconds to wait for the log lines of a job that has already ended."""

AGAIN_AFTER = 1.0
"""Seconds until a failed search for a short form is repeated."""

Progress = Literal["tty", "plain", "jsonl"]


class Order(Struct, frozen=True):
    """IDs to watch, and when to stop. `timeout`: seconds. `by_status`: the exit code depends on how the jobs ended."""

    names: tuple[str, ...]
    logs: Level = "WARN"
    timeout: float | None = None
    forever: bool = False
    by_status: bool = False


async def watch(client: Client, order: Order, progress: Progress, stdout: TextIO, stderr: TextIO) -> int:
    """Watch the IDs of `order` and return the exit code.

    Raises:
        CorrelatorError: the daemon cannot be reached, or refuses the connection.
    """
    state = WatchState(order.names)
    if progress == "tty":
        theme = theme_for(stdout, os.environ)
        with Screen(console_on(stdout)) as screen:
            over = await _Run(client, order, state, Tree(state, screen, theme)).run()
    else:
        renderer = Objects(state, stdout) if progress == "jsonl" else Lines(state, stdout, stderr)
        over = await _Run(client, order, state, renderer).run()
    for entry in state.all:
        if (reason := _reason(entry, order, over=over)) is not None:
            print_error(stderr, f"{entry.name}: {reason}")
    return state.code(by_status=order.by_status)


class _Run:
    """One run of the command."""

    def __init__(self, client: Client, order: Order, state: WatchState, renderer: Renderer) -> None:
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
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(REDRAW_EVERY, deadline - now)):
                    await self._news.wait()

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
                self._renderer.handle([], Update({}, connection=Connection("offline", str(error))))
            await asyncio.sleep(AGAIN_AFTER)

    async def _past(self, entry: WatchedId) -> list[WatchEvent]:
        """Fetch the log lines of a job that had already ended when it was first received."""
        if entry.job is None or not entry.past or (job_id := str(entry.job["job_id"])) in self._read:
            return []
        self._read.add(job_id)
        found: list[WatchEvent] = []
        try:
            async with asyncio.timeout(READ_WITHIN):
                lines, complete = await self._client.events(job_id, self._order.logs)
            for line in lines:
                found += entry.add_log(line)
            missing = "" if complete else f"only its first {len(lines)} log lines are shown; there are more"
        except (CorrelatorError, TimeoutError) as error:
            missing = f"its log lines could not be read: {str(error) or f'no answer within {READ_WITHIN:g} s'}"
        if missing:
            found.append(WatchEvent(entry.name, job_id, "lost", None, missing))
        return found


def _reason(entry: WatchedId, order: Order, *, over: bool) -> str | None:
    """Why the watch failed for this ID, as text for the user; None if it succeeded."""
    if entry.deleted and entry.code(by_status=False):
        return "its job was deleted before it ended"
    if over or order.timeout is None:
        return None
    if entry.job is None:
        return f"not found within {order.timeout:g} s"
    return f"still {entry.status} after {order.timeout:g} s" if entry.code(by_status=False) == NOT_ENDED else None
