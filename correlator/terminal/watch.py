"""`correlator watch`: follow some IDs until their jobs have ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Literal, TextIO

import msgspec
from msgspec import Struct

from correlator.client import Client, Unreachable
from correlator.errors import CorrelatorError
from correlator.jobs.model import Level
from correlator.replica.messages import Log, Wanted
from correlator.terminal import signs
from correlator.terminal.screen import Screen
from correlator.terminal.shows import Lines, Objects, Show, Tree
from correlator.terminal.watched import NOT_ENDED, Watch, Watched

SETTLE = 0.5
"""Seconds after the last end: an end may still turn out to be another one, and last log lines arrive."""

TICK = 0.25
ASK_WITHIN = 3.0
"""Seconds in the end that the log lines of the past are waited for."""

Progress = Literal["tty", "plain", "jsonl"]


class Order(Struct, frozen=True):
    """What is watched, and until when. `timeout`: seconds. `by_status`: the exit code tells how the jobs ended."""

    names: tuple[str, ...]
    logs: Level = "WARN"
    timeout: float | None = None
    forever: bool = False
    by_status: bool = False


async def watch(client: Client, order: Order, progress: Progress, stdout: TextIO, stderr: TextIO) -> int:
    """The exit code. Raises `CorrelatorError` where the correlator cannot be reached, or does not let us in."""
    state = Watch(order.names)
    if progress == "tty":
        look = signs.signs_for(stdout, os.environ)
        with Screen(signs.console_on(stdout)) as screen:
            over = await _Round(client, order, state, Tree(state, screen, look)).run()
    else:
        show = Objects(state, stdout) if progress == "jsonl" else Lines(state, stdout, stderr)
        over = await _Round(client, order, state, show).run()
    for watched in state.all:
        if (reason := _reason(watched, order, over=over)) is not None:
            signs.grumble(stderr, f"{watched.name}: {reason}")
    return state.code(by_status=order.by_status)


class _Round:
    """One run of the command."""

    def __init__(self, client: Client, order: Order, state: Watch, show: Show) -> None:
        self._client = client
        self._order = order
        self._state = state
        self._show = show
        self._news = asyncio.Event()
        self._asked: set[str] = set()
        self._asking: set[asyncio.Task[None]] = set()
        self._never: str | None = f"{client.url} did not answer in time"
        """What kept us from hearing anything at all so far."""

    async def run(self) -> bool:
        """Whether all had ended when it was over; the time may have been up before."""
        listening = asyncio.create_task(self._listen())
        listening.add_done_callback(lambda _: self._news.set())
        try:
            over = await self._until_over(listening)
            if self._asking:
                await asyncio.wait(self._asking, timeout=ASK_WITHIN)
            self._show.finish()
        finally:
            for task in (listening, *self._asking):
                task.cancel()
            await asyncio.gather(listening, *self._asking, return_exceptions=True)
        if self._never is not None:
            raise Unreachable(self._never)
        return over

    async def _until_over(self, listening: asyncio.Task[None]) -> bool:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._order.timeout if self._order.timeout is not None else float("inf")
        ended_at = float("inf")
        while True:
            if listening.done():
                listening.result()
            self._show.paint()
            now = loop.time()
            ended_at = min(ended_at, now) if self._state.ended and not self._order.forever else float("inf")
            if now >= ended_at + SETTLE:
                return True
            if now >= deadline:
                return self._state.ended
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(TICK, deadline - now)):
                    await self._news.wait()

    async def _listen(self) -> None:
        wanted = Wanted(jobs=tuple(w.name for w in self._state.all), logs=self._order.logs)
        async with contextlib.aclosing(self._client.follow(wanted, patient=self._order.timeout is not None)) as updates:
            async for update in updates:
                if self._never is not None:
                    live = update.connection.state == "live"
                    self._never = None if live else update.connection.error or self._never
                self._show.tell(self._state.hear(update), update)
                for watched in self._state.all:
                    self._ask_back(watched)
                self._news.set()

    def _ask_back(self, watched: Watched) -> None:
        """A job that had failed before we came: nobody sends its log lines any more, so they are asked for."""
        if watched.job is None or watched.status != "failed" or watched.logs:
            return
        job_id = str(watched.job["job_id"])
        if job_id not in self._asked:
            self._asked.add(job_id)
            task = asyncio.create_task(self._ask(watched, job_id))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    async def _ask(self, watched: Watched, job_id: str) -> None:
        with contextlib.suppress(CorrelatorError, msgspec.ValidationError):  # one does without them
            for line in await self._client.events(job_id, self._order.logs):
                for _ in watched.hear(msgspec.convert({"type": "log", **line, "job_id": job_id}, type=Log)):
                    self._news.set()


def _reason(watched: Watched, order: Order, *, over: bool) -> str | None:
    """Why the watch did not come to a good end with this ID, for a person; None where it did."""
    if watched.deleted and watched.code(by_status=False):
        return "its job was deleted before it ended"
    if over or order.timeout is None:
        return None
    if watched.job is None:
        return f"not found within {order.timeout:g} s"
    return f"still {watched.status} after {order.timeout:g} s" if watched.code(by_status=False) == NOT_ENDED else None
