"""What a document costs: made and encoded, compared with the one before, and received by a gateway, beside `BASE`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from benchmarks import against, documents
from benchmarks.harness import REPOSITORY, Limit, Number, Result, Size

WHAT = {
    "whole": ("a whole document: build and encode", 0.5),
    "patch": ("a merge patch: build, compare and encode", 0.5),
    "gateway": ("a document that a gateway receives, ready to serve", 0.4),
}


async def measure(size: Size) -> Result:
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    with against.checked_out(documents.BASE) as base:
        for _ in range(size.runs):
            ours.append(await _measured(REPOSITORY))
            theirs.append(await _measured(base))
    return Result(
        tuple(
            Number(
                f"{what}, CPU", "µs", tuple(round(run[name], 1) for run in ours), documents.BASE,
                tuple(round(run[name], 1) for run in theirs), Limit("≤", ratio, "ratio"),
            )
            for name, (what, ratio) in WHAT.items()
        )
    )  # fmt: skip


async def _measured(tree: Path) -> dict[str, float]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, documents.__file__),
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 300)
    found: dict[str, float] = json.loads(out)
    return found
