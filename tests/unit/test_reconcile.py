"""Where the looks at the tables take up: nothing that happened while the database was away is passed over."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from types import SimpleNamespace
from typing import Any

from correlator.liveness import Liveness
from correlator.sources.reconcile import Reconcile
from tests.servers import eventually


class Tables:
    """Stands for `Queries` on an appliance without jobs; its clock counts, and the looks' marks are kept."""

    def __init__(self) -> None:
        self.schema = SimpleNamespace(has=lambda table, *_: table == "job_tracking")
        self.marks: list[str] = []
        self._hours = itertools.count()

    async def clock(self, session: Any, back: float) -> str:
        return f"2026-01-01 {next(self._hours):02}:00:00"

    async def active_ids(self, session: Any) -> set[str]:
        return set()

    async def ids_since(self, session: Any, column: str, since: str) -> set[str]:
        if column == "started_at":
            self.marks.append(since)
        return set()


async def test_the_first_look_after_an_outage_takes_up_where_the_last_one_before_it_began():
    tables, reconcile = Tables(), Reconcile(interval=0.01, legacy=False)
    feed = SimpleNamespace(active=set, known=list, holding=lambda: False, needs=lambda _: True, part=Liveness().part)

    async def connection(looks: int) -> None:
        wanted = len(tables.marks) + looks
        task = asyncio.create_task(reconcile.follow(tables, None, feed))  # type: ignore[arg-type]
        await eventually(lambda: len(tables.marks) >= wanted)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    await connection(3)
    before = len(tables.marks)
    assert tables.marks == sorted(tables.marks)
    last_began = int(tables.marks[-1][11:13]) + 1  # the mark that this look left behind is the next hour's
    await connection(1)
    assert int(tables.marks[before][11:13]) == last_began
