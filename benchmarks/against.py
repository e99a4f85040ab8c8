"""`python -m benchmarks [ROW …] --against REVISION`: this tree and an earlier one, in turn, and which number got worse.

Problem. Two runs of one row differ by 5 to 10 % on a shared machine, and p99 of a few hundred samples by more. One run
of each tree shows no change of that size.

Model. A turn runs the quick form of a row in both trees, one after the other, each with its own benchmark code; which
of them is first alternates. A turn gives one ratio for each number that both have: above 1 is worse, also for a number
of which more is better. The median of the ratios counts. Its interval of confidence comes from their order alone
(of the sign test, 95 %), so no distribution is assumed.

A row has at least `LEAST` turns. It has more, up to `MOST`, while the interval of a number contains `LIMIT`: it may or
may not be worse.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TypeAlias

from benchmarks.harness import REPOSITORY
from benchmarks.report import table

LIMIT = 1.05
"""The ratio above which a number got worse."""

LEAST, MOST = 6, 15
"""Turns of a row. With fewer than six, an interval of 95 % has no bounds."""

WITHIN = 600.0
"""Seconds for one run of one row."""

TREE = REPOSITORY / "build" / "against"

Label: TypeAlias = tuple[str, str]
"""A number's text without counts of bytes, which may differ, and its yardstick."""

Run: TypeAlias = Mapping[Label, tuple[float, str]]
"""The numbers of one run of a row: the median and its unit."""


@dataclass(slots=True)
class Ratio:
    """A number in both trees, turn by turn: `before` and `after`, in `unit`."""

    what: str
    unit: str
    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """Of each turn: above 1 is worse."""
        pairs = zip(self.before, self.after, strict=True)
        if more_is_better(self.unit):
            return [_divided(before, after) for before, after in pairs]
        return [_divided(after, before) for before, after in pairs]

    @property
    def median(self) -> float:
        return statistics.median(self.ratios)

    @property
    def interval(self) -> tuple[float, float]:
        """The median of many turns lies in it, with 95 % confidence."""
        return interval(self.ratios)

    @property
    def verdict(self) -> str:
        """Whether it got worse by more than `LIMIT` allows: no, yes, or open."""
        low, high = self.interval
        return "no" if high <= LIMIT else "yes" if low > LIMIT else "open"

    @property
    def cells(self) -> tuple[str, ...]:
        before, after = (f"{statistics.median(values):.4g} {self.unit}" for values in (self.before, self.after))
        low, high = self.interval
        turns = str(len(self.before))
        return (self.what, before, after, f"{self.median:.2f}", f"{low:.2f} to {high:.2f}", turns, self.verdict)


HEADINGS = ("what", "before", "after", "ratio", "95 %", "turns", "worse?")


def more_is_better(unit: str) -> bool:
    """True for a rate of what was done. Other numbers are times, memory and shares of a processor."""
    return unit.endswith(("/s", "per CPU second"))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The bounds of the median with 95 % confidence, without an assumption about how the values are distributed.

    k values may be left out at each end if that many of n fair coins show heads with a probability of at most 2.5 %.
    Without bounds for fewer than six values.
    """
    ordered, n = sorted(values), len(values)
    left_out = -1
    while sum(math.comb(n, heads) for heads in range(left_out + 2)) / 2**n <= 0.025:
        left_out += 1
    return (ordered[left_out], ordered[-1 - left_out]) if left_out >= 0 else (-math.inf, math.inf)


def compare(names: Sequence[str], revision: str) -> int:
    """Run the rows `names` in both trees and print a table. Returns 1 if a number is worse or a row failed, else 0.

    A row that the earlier tree does not have is left out, unless it only starts the program (`STARTS_ANY`): then this
    tree's row runs the earlier program. Both trees run with the packages that are installed here.

    Raises: `ValueError` if git knows no such revision.
    """
    found: list[Ratio] = []
    failed: list[str] = []
    with checked_out(revision) as earlier:
        for name in names:
            if not (_has(earlier, name) or _starts_any(name)):
                print(f"{name}: there was no such row in {revision}", flush=True)
                continue
            try:
                numbers = _row(name, earlier)
            except (OSError, subprocess.SubprocessError) as error:
                failed.append(name)
                print(f"{name} failed: {_reason(error)}", flush=True)
                continue
            found += numbers
            print(table([number.cells for number in numbers]), flush=True)
    print("\n" + table([HEADINGS, *(number.cells for number in found)]))
    return 1 if failed or any(number.verdict == "yes" for number in found) else 0


def _reason(error: Exception) -> str:
    """What a run printed last, or what else went wrong."""
    if isinstance(error, subprocess.CalledProcessError):
        return f"{error}\n{(error.stdout + error.stderr)[-2000:]}"
    return str(error)


def _row(name: str, earlier: Path) -> list[Ratio]:
    found: dict[Label, Ratio] = {}
    for turn in range(MOST):
        order = (earlier, REPOSITORY) if turn % 2 == 0 else (REPOSITORY, earlier)
        runs = {tree: _run(name, tree) for tree in order}
        add(found, runs[earlier], runs[REPOSITORY])
        if turn + 1 >= LEAST and all(number.verdict != "open" for number in found.values()):
            break
        print(f"{name}: turn {turn + 1}", file=sys.stderr, flush=True)
    return list(found.values())


def add(found: dict[Label, Ratio], before: Run, after: Run) -> None:
    """Add a turn: the numbers that both trees have."""
    for label, (new, unit) in after.items():
        if label not in before:
            continue
        old, _ = before[label]
        number = found.setdefault(label, Ratio(label[0], unit))
        number.before.append(old)
        number.after.append(new)


def _has(tree: Path, name: str) -> bool:
    return (tree / "benchmarks" / "rows" / f"{name}.py").exists()


def _starts_any(name: str) -> bool:
    return getattr(import_module(f"benchmarks.rows.{name}"), "STARTS_ANY", False)


def _run(name: str, tree: Path) -> Run:
    """One quick run of a row in a tree, in a process of its own. A row that the tree lacks is that of this tree."""
    home = tree if _has(tree, name) else REPOSITORY
    results = home / "build" / "benchmarks" / f"{name}.json"
    results.unlink(missing_ok=True)
    environment = os.environ | {"PYTHONPATH": str(home)}
    command = [sys.executable, "-m", "benchmarks", name, "--quick", *(("--tree", str(tree)) if home != tree else ())]
    subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=WITHIN, check=True)
    return numbers(results.read_text())


def numbers(written: str) -> Run:
    """The numbers in a file of results."""
    return {
        (re.sub(r"[\d,]+ B\b", "… B", number["what"]), number["yardstick"]): (number["median"], number["unit"])
        for number in json.loads(written)["numbers"]
    }


def _divided(numerator: float, denominator: float) -> float:
    if denominator:
        return numerator / denominator
    return 1.0 if numerator == 0 else math.inf


@contextlib.contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """The tree of an earlier commit. Raises: `ValueError` if git knows no such revision."""

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)

    git("worktree", "remove", "--force", str(TREE))  # a run before this one may have been killed
    added = git("worktree", "add", "--quiet", "--detach", str(TREE), revision)
    if added.returncode != 0:
        raise ValueError(f"git cannot check out {revision!r}: {added.stderr.strip()}")
    try:
        yield TREE
    finally:
        git("worktree", "remove", "--force", str(TREE))
