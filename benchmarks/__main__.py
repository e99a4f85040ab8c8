"""`python -m benchmarks [ROW …] [--quick | --against REVISION]`: measure, print the table, and keep what was measured.

A full run writes benchmarks/results/ and the table in docs/performance.md; a quick one only shows that all rows work,
and writes below build/. `--against` compares this tree with an earlier one: see `benchmarks/against.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import against, pictures, report
from benchmarks.harness import REPOSITORY, Number, Result, Size, machine

ROWS = (
    *("catchup", "latency", "doorbell", "peer", "row", "fanout", "mqtt", "idle"),
    *("memory", "event", "document", "rest", "find", "start", "first", "forecast", "gateway", "cluster"),
    *("cluster_row", "sockets"),
)
"""The modules in benchmarks/rows, in the order of the table."""

RESULTS = REPOSITORY / "benchmarks" / "results"
QUICK_RESULTS = REPOSITORY / "build" / "benchmarks"
DOCUMENT = REPOSITORY / "docs" / "performance.md"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="make bench ARGS=…", description="Measure, and print a table.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"some of {', '.join(ROWS)}; all without one")
    parser.add_argument(
        "--quick", action="store_true", help="small and short: does each row work? Its numbers are noise"
    )
    parser.add_argument("--against", metavar="REVISION", help="compare with an earlier commit, by quick runs in turn")
    parser.add_argument(
        "--tree", type=Path, default=REPOSITORY, help="whose program runs, in a row that only starts it"
    )
    parser.add_argument("--document", action="store_true", help="measure nothing: write the table from the results")
    asked = parser.parse_args(arguments)
    if unknown := set(asked.rows) - set(ROWS):
        parser.error(f"there is no row {', '.join(sorted(unknown))}: there are {', '.join(ROWS)}")
    if asked.against:
        try:
            return against.compare(asked.rows or ROWS, asked.against)
        except ValueError as error:
            parser.error(f"--against: {error}")
    if asked.document:
        DOCUMENT.write_text(documented())
        return 0
    size = Size(asked.quick, asked.tree)
    folder = QUICK_RESULTS if size.quick else RESULTS
    here = {**machine(), "runs": size.runs, "taken": datetime.now(UTC).date().isoformat()}
    numbers: list[Number] = []
    failed: list[str] = []
    for name in asked.rows or ROWS:
        began = time.monotonic()
        print(f"{name} … ", end="", flush=True)
        try:
            result = asyncio.run(_measure(name, size))
        except Exception as error:  # noqa: BLE001 - the other rows shall be measured even so
            failed.append(name)
            print(f"failed: {type(error).__name__}: {error}", flush=True)
            continue
        print(f"{time.monotonic() - began:.0f} s", flush=True)
        _keep(name, result, here, folder)
        numbers += result.numbers
    print(f"\n{report.plain(numbers)}")
    if not size.quick:
        DOCUMENT.write_text(documented())
    return 1 if failed else 0


async def _measure(name: str, size: Size) -> Result:
    row: Any = import_module(f"benchmarks.rows.{name}")
    found: Result = await row.measure(size)
    return found


def _keep(name: str, result: Result, here: dict[str, Any], folder: Any) -> None:
    report.write(folder, name, result, here)
    for picture in result.pictures:
        pictures.draw(picture, folder)


def documented() -> str:
    """docs/performance.md with a table of the results that are there for each processor."""
    tables = [report.markdown(numbers, machine) for machine, numbers in report.read(RESULTS, ROWS)]
    text = DOCUMENT.read_text()
    return report.documented(text, "\n\n".join(tables)) if tables else text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
