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


async def test_queries_that_take_all_the_time_they_may_are_no_silence():
    now = 0.0
    live, stuck = Liveness(lambda: now), []

    class Slow(Tables):
        async def active_ids(self, session: Any) -> set[str]:
            await session.query("")
            return await super().active_ids(session)

        async def ids_since(self, session: Any, column: str, since: str) -> set[str]:
            for _ in range(5):
                await session.query("")
            return await super().ids_since(session, column, since)

    async def query(sql: str, args: object = ()) -> list[Any]:
        nonlocal now
        now += 9.9
        stuck.append(live.stuck())
        return []

    tables, reconcile = Slow(), Reconcile(interval=0.01, legacy=False, patience=35.0)
    feed = SimpleNamespace(active=set, known=list, holding=lambda: False, needs=lambda _: True, part=live.part)
    session = SimpleNamespace(query=query)
    task = asyncio.create_task(reconcile.follow(tables, session, feed))  # type: ignore[arg-type]
    await eventually(lambda: len(tables.marks) >= 3)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert len(stuck) > 20
    assert not any(stuck)


async def test_old_rows_of_failover_jobs_are_not_read_although_none_is_shown():
    asked: list[str] = []

    class Legacy(Tables):
        async def legacy_where(self, session: Any, where: str, args: object = ()) -> list[Any]:
            asked.append(where)
            return []

        async def last_legacy_id(self, session: Any) -> int:
            return 5000

    tables, reconcile = Legacy(), Reconcile()
    tables.schema = SimpleNamespace(has=lambda *_: True)
    tables.dialect = SimpleNamespace(placeholder="%s")  # type: ignore[attr-defined]
    feed = SimpleNamespace(unfinished_legacy=list, legacy=lambda *_: None)
    await reconcile._legacy_rows(tables, None, feed, first=True)  # type: ignore[arg-type]
    await reconcile._legacy_rows(tables, None, feed)  # type: ignore[arg-type]
    assert asked[-1] == "id > 4800"
