"""Renderers of `watch`: a tree repainted in place, plain lines, or JSON objects."""

from __future__ import annotations

import abc
import os
import time
from collections.abc import Iterable
from typing import TextIO

from msgspec import to_builtins
from rich.console import Group
from rich.text import Text

from correlator.client.messages import Document
from correlator.client.replica import Connection, Update
from correlator.terminal import formats, tree
from correlator.terminal.percents import Percents
from correlator.terminal.screen import Screen
from correlator.terminal.theme import Theme, print_error, theme_for
from correlator.terminal.watch_state import WatchEvent, WatchState

SAME_CLOCK = 2.0
"""Seconds of clock difference that are ignored, because they may be the latency of a message."""


class Renderer(abc.ABC):
    """Output of a watch."""

    @abc.abstractmethod
    def handle(self, events: Iterable[WatchEvent], update: Update) -> None:
        """Called for every update."""

    def paint(self) -> None:  # noqa: B027 - only a tree does something
        """Called periodically."""

    def finish(self) -> None:  # noqa: B027 - only a tree does something
        """Called once, at the end."""


class Tree(Renderer):
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
            tree.Branch(w.name, w.job, tuple(w.logs), w.deleted, percents.get(str((w.job or {}).get("job_id"))))
            for w in self._state.all
        ]
        return tree.lines(branches, tree.Frame(self._screen.width, height, now, self._theme))


class Lines(Renderer):
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


class Objects(Renderer):
    """Prints one JSON object per line for each change: waiting, job, log, deleted, lost or connection."""

    def __init__(self, state: WatchState, stdout: TextIO) -> None:
        self._state = state
        self._stdout = stdout
        self._jobs: dict[str, Document] = {}
        self._connection: Connection | None = None
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
                self._write("log", id=one.name, **_without_type(to_builtins(one.log)))
            elif one.kind == "deleted":
                self._write("deleted", id=one.name, job_id=one.job_id)
            elif one.kind == "lost":
                self._write("lost", detail=one.text)
        self._stdout.flush()

    def _write(self, kind: str, **members: object) -> None:
        self._stdout.write(formats.as_json({"type": kind, **members}) + "\n")


def ahead(update: Update) -> float:
    """Seconds that the daemon's clock is ahead of ours. Latency is no difference: it would take bars back."""
    return update.ahead if abs(update.ahead) > SAME_CLOCK else 0.0


def note(update: Update) -> str:
    """Describe a problem of the connection or of the daemon's database; "" if there is none."""
    if update.connection.state == "offline":
        reason = (update.connection.error or "the connection ended").splitlines()[0]
        return f"{reason}; trying again"
    if update.database is not None and update.database.source != "live":
        return f"this may be out of date: {update.database.error or 'nothing of the database has been read yet'}"
    return ""


def _without_type(log: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in log.items() if name not in ("type", "dropped")}
