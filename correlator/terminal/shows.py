"""How a watch is shown: as a tree that is painted in place, as lines, or as JSON objects."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Protocol, TextIO

from msgspec import to_builtins
from rich.console import Group
from rich.text import Text

from correlator.replica import Connection, Update
from correlator.replica.messages import Document
from correlator.terminal import signs, tree
from correlator.terminal.screen import Screen
from correlator.terminal.watched import Happening, Watch

SAME_CLOCK = 2.0
"""Seconds that two clocks may differ and still be taken for one: a message takes its time too."""


class Show(Protocol):
    """`tell` for everything that comes, `paint` from time to time, `finish` when it is over."""

    def tell(self, happenings: Iterable[Happening], update: Update) -> None: ...

    def paint(self) -> None: ...

    def finish(self) -> None: ...


class Tree:
    """All jobs, painted in place; in the end the whole of it stays behind."""

    def __init__(self, state: Watch, screen: Screen, look: signs.Signs) -> None:
        self._state = state
        self._screen = screen
        self._look = look
        self._note = ""
        self._ahead = 0.0

    def tell(self, happenings: Iterable[Happening], update: Update) -> None:
        del happenings  # it shows what is, not what happened
        self._note = note(update)
        self._ahead = update.ahead if abs(update.ahead) > SAME_CLOCK else 0.0

    def paint(self) -> None:
        width = self._screen.width
        below = [self._look.fit(Text(self._look.clean(self._note), style="yellow"), width)] if self._note else []
        # The cursor stands on a line of its own below.
        drawn = self._lines(max(1, self._screen.height - 1 - len(below)))
        self._screen.paint(Group(*drawn, *below))

    def finish(self) -> None:
        self._screen.finish(Group(*self._lines(0)))

    def _lines(self, height: int) -> list[Text]:
        frame = tree.Frame(self._screen.width, height, time.time() + self._ahead, self._look)
        return tree.lines([tree.Branch(w.name, w.job, tuple(w.logs), w.deleted) for w in self._state.all], frame)


class Lines:
    """A line for each happening, with its time and its ID; how the connection is goes to `stderr`."""

    def __init__(self, state: Watch, stdout: TextIO, stderr: TextIO) -> None:
        self._state = state
        self._stdout = stdout
        self._stderr = stderr
        self._look = signs.signs_for(stdout, os.environ)
        self._note = ""
        self._waiting: set[str] | None = None

    def tell(self, happenings: Iterable[Happening], update: Update) -> None:
        if self._waiting is None and update.synced:
            self._waiting = {w.name for w in self._state.all if w.job is None}
            for name in sorted(self._waiting):
                self._say(None, name, "waiting for it")
        for one in happenings:
            self._say(one.at, one.name or "-", one.text)
        self._stdout.flush()
        if (now := note(update)) != self._note:
            self._note = now
            signs.grumble(self._stderr, now or "connected again")

    def paint(self) -> None:
        pass

    def finish(self) -> None:
        pass

    def _say(self, at: str | None, name: str, text: str) -> None:
        self._stdout.write(f"{signs.stamp(at)} {self._look.clean(name)} {self._look.clean(text)}\n")


class Objects:
    """A JSON object a line for each change; its type is waiting, job, log, deleted, lost or connection."""

    def __init__(self, state: Watch, stdout: TextIO) -> None:
        self._state = state
        self._stdout = stdout
        self._jobs: dict[str, Document] = {}
        self._connection: Connection | None = None
        self._synced = False

    def tell(self, happenings: Iterable[Happening], update: Update) -> None:
        state = update.connection.state
        if self._connection is None or self._connection.state != state:
            self._say("connection", state=state, error=update.connection.error)
            self._connection = update.connection
        for watched in self._state.all:
            if watched.job is not None and watched.job != self._jobs.get(watched.name):
                self._jobs[watched.name] = watched.job
                self._say("job", id=watched.name, job=watched.job)
            elif watched.job is None and update.synced and not self._synced:
                self._say("waiting", id=watched.name)
        self._synced = self._synced or update.synced
        for one in happenings:
            if one.log is not None:
                self._say("log", id=one.name, **_without_type(to_builtins(one.log)))
            elif one.kind == "deleted":
                self._say("deleted", id=one.name, job_id=one.job_id)
            elif one.kind == "lost":
                self._say("lost", detail=one.text)
        self._stdout.flush()

    def paint(self) -> None:
        pass

    def finish(self) -> None:
        pass

    def _say(self, kind: str, **members: object) -> None:
        self._stdout.write(signs.as_json({"type": kind, **members}) + "\n")


def note(update: Update) -> str:
    """What is the matter with the connection, or with the database behind it; "" where all is well."""
    if update.connection.state == "offline":
        reason = (update.connection.error or "the connection ended").splitlines()[0]
        return f"{reason}; trying again"
    if update.source in ("stale", "down"):
        return f"the daemon's database is {'away' if update.source == 'down' else 'slow'}: this may be out of date"
    return ""


def _without_type(log: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in log.items() if name not in ("type", "dropped")}
