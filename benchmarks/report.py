"""Numbers as a table, for a terminal and for docs/performance.md, and results as files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.harness import Limit, Number, Result

BEGIN, END = "<!-- begin: written by make bench -->", "<!-- end -->"
HEADINGS = ("what", "ours (target)", "as a multiple of a yardstick (target)")


def cells(number: Number, before: str = "") -> tuple[str, ...]:
    """One row of the table. `before`: what the row above it measures, whose words are not repeated."""
    limit = number.limit
    target = "" if limit is None else _limit(limit) + (": NOT MET" if number.met is False else "")
    ours, beside = _value(number.median, number.unit), ""
    if limit is not None and limit.of == "ours":
        ours, target = f"{ours} ({target})", ""
    if number.their_median is not None and number.yardstick:
        ratio = f"{number.ratio:.2f} × " if number.ratio else ""
        beside = f"{ratio}{_value(number.their_median)} ({number.yardstick}{target and f'; {target}'})"
    subject, _, measure = number.what.rpartition(": ")
    repeats = subject not in ("", "the same") and before.rpartition(": ")[0] == subject
    what = "…" if number.what == before else f"…: {measure}" if repeats else number.what
    note = f" – {number.note}" if number.note else ""
    return (what + note, ours, beside)


def rows(numbers: Iterable[Number]) -> list[tuple[str, ...]]:
    """Rows of a table to read. A number without a yardstick stands in the row above if that is of the same subject."""
    found: list[tuple[str, ...]] = []
    for before, number in pairwise([Number("", "", ()), *numbers]):
        what, ours, beside = cells(number, before.what)
        measure = what.removeprefix("…: ").removeprefix("the same").lstrip(",: ")
        if measure != what and not beside:
            subject, others, compared = found.pop()
            what, ours, beside = subject, f"{others}; {measure}: {ours}", compared
        found.append((what, ours, beside))
    return found


def plain(numbers: Iterable[Number]) -> str:
    """For a terminal."""
    return table([HEADINGS, *map(cells, numbers)])


def table(lines: Sequence[Sequence[str]]) -> str:
    """Rows of cells as columns of text."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def markdown(numbers: Iterable[Number], machine: dict[str, Any]) -> str:
    """For the documentation."""
    taken = (
        f"{machine['cores']} shared cores of {machine['processor']}, {machine['system']}, Python {machine['python']}."
        f" Medians of {machine['runs']} runs, {machine['taken']}."
    )
    lines = [
        taken,
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|" + "---|" * len(HEADINGS),
        *("| " + " | ".join(_bold(cell) for cell in row) + " |" for row in rows(numbers)),
    ]
    return "\n".join(lines)


def write(folder: Path, name: str, result: Result, machine: dict[str, Any]) -> None:
    """What one row of the benchmarks brought, as one file."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [
        {**asdict(n), "median": n.median, "yardstick_median": n.their_median, "ratio": n.ratio, "met": n.met}
        for n in result.numbers
    ]
    written = {"machine": machine, "numbers": numbers, "pictures": [asdict(p) for p in result.pictures]}
    (folder / f"{name}.json").write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n")


def read(folder: Path, names: Sequence[str]) -> list[tuple[dict[str, Any], list[Number]]]:
    """Of each processor: the machine of its newest numbers, and all numbers that are there, in the order of `names`."""
    found: dict[str, tuple[dict[str, Any], list[Number]]] = {}
    for name in names:
        path = folder / f"{name}.json"
        if not path.exists():
            continue
        written = json.loads(path.read_text())
        machine, numbers = found.get(written["machine"]["processor"], (written["machine"], []))
        for n in written["numbers"]:
            limit = Limit(**n["limit"]) if n["limit"] is not None else None
            ours, theirs = tuple(n["ours"]), tuple(n["theirs"])
            numbers.append(Number(n["what"], n["unit"], ours, n["yardstick"], theirs, limit, n["note"]))
        newest = max(machine, written["machine"], key=lambda one: str(one["taken"]))
        found[machine["processor"]] = newest, numbers
    return list(found.values())


def documented(text: str, table: str) -> str:
    """`text` with `table` between its marks. Raises ValueError where they are not."""
    before, _, rest = text.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"the marks {BEGIN} and {END} are missing")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def _limit(limit: Limit) -> str:
    if limit.of == "yardstick":
        return "below it" if limit.relation == "≤" else "above it"
    return f"{limit.relation} {limit.value:g}{' ×' * (limit.of == 'ratio')}"


def _value(value: float, unit: str = "") -> str:
    if math.isinf(value):
        return "never"
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2
    text = f"{value:,.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} {unit}".rstrip()


def _bold(cell: str) -> str:
    return f"**{cell}**" if "NOT MET" in cell else cell
