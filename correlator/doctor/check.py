"""One thing that was looked at, and how it is: the value that every part of an examination comes down to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

Status = Literal["ok", "warning", "failure"]


class Check(Struct, frozen=True):
    """`name` stays the same from version to version. `mend`: the commands that put it right, one a line."""

    name: str
    status: Status
    summary: str
    detail: tuple[str, ...] = ()
    mend: tuple[str, ...] = ()


class Report(Struct, frozen=True):
    """All checks, in the order in which a reader understands them. `at`: RFC 3339."""

    version: str
    at: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Warnings do not count: what they tell of works."""
        return not any(check.status == "failure" for check in self.checks)

    def document(self) -> dict[str, Any]:
        """As `-o json` prints it."""
        head = {"ok": self.ok, "version": self.version, "at": self.at}
        return head | {"checks": msgspec.to_builtins(self.checks)}


def ok(name: str, summary: str, detail: Sequence[str] = ()) -> Check:
    return Check(name, "ok", summary, tuple(detail))


def warning(name: str, summary: str, detail: Sequence[str] = (), mend: Sequence[str] = ()) -> Check:
    return Check(name, "warning", summary, tuple(detail), tuple(mend))


def failure(name: str, summary: str, detail: Sequence[str] = (), mend: Sequence[str] = ()) -> Check:
    return Check(name, "failure", summary, tuple(detail), tuple(mend))


def share(part: int, whole: int) -> str:
    """``12 of 40 (30 %)``."""
    return f"{part} of {whole}" + (f" ({100 * part / whole:.0f} %)" if whole else "")


def some(items: Sequence[str], most: int = 5) -> str:
    """The first few of `items`, and how many more there are."""
    more = f", and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
