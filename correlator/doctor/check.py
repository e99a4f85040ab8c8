"""The result of one check, and the report of all checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

Status = Literal["ok", "warning", "failure"]


class Check(Struct, frozen=True):
    """`name` stays the same from version to version.

    `fix`: the commands that fix it, in order. `see`: commands that change nothing and show more of the
    cause; `fixes.copyable` moves them there, so a check may give all its commands as `fix`.
    """

    name: str
    status: Status
    summary: str
    detail: tuple[str, ...] = ()
    fix: tuple[str, ...] = ()
    see: tuple[str, ...] = ()


class Report(Struct, frozen=True):
    """All checks, in the order of their dependencies. `at`: RFC 3339."""

    version: str
    at: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """True if no check failed. Warnings do not count."""
        return not any(check.status == "failure" for check in self.checks)

    def document(self) -> dict[str, Any]:
        """Return the document that `-o json` prints."""
        head = {"ok": self.ok, "version": self.version, "at": self.at}
        return head | {"checks": msgspec.to_builtins(self.checks)}


def ok(name: str, summary: str, detail: Sequence[str] = ()) -> Check:
    return Check(name, "ok", summary, tuple(detail))


def warning(name: str, summary: str, detail: Sequence[str] = (), fix: Sequence[str] = ()) -> Check:
    return Check(name, "warning", summary, tuple(detail), tuple(fix))


def failure(name: str, summary: str, detail: Sequence[str] = (), fix: Sequence[str] = ()) -> Check:
    return Check(name, "failure", summary, tuple(detail), tuple(fix))


def is_here(host: str) -> bool:
    """Whether a name or an address is that of this host."""
    return host in ("localhost", "::1") or host.startswith("127.")


def share(part: int, whole: int) -> str:
    """Return a text such as ``12 of 40 (30 %)``."""
    return f"{part} of {whole}" + (f" ({100 * part / whole:.0f} %)" if whole else "")


def some(items: Sequence[str]) -> str:
    """Return the first five items, and how many more there are."""
    more = f", and {len(items) - 5} more" if len(items) > 5 else ""
    return ", ".join(items[:5]) + more
