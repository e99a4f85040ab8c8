"""A simulated InnoDB under the real tail, in virtual time.

`InnoDB` is the table `log_events`, `Session` a connection that may be slow or break, and `SimulatedFollower` runs the
tasks of a `Tail` on them as `Follower` does. It also implements the queries and the feed that the tail uses.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

from correlator.errors import SourceUnavailable
from correlator.model.published import Outcome
from correlator.model.rows import LogRow
from correlator.ops.event_loop import Heartbeats
from correlator.sources.db.session import Range
from correlator.sources.tail import LogReset, Tail


class Transaction:
    """What it wrote, and the ids it reserved in a statement that waits for a lock: not even a dirty read sees them."""

    def __init__(self) -> None:
        self.rows: dict[int, LogRow] = {}
        self.deletes: set[int] = set()
        self.waiting: list[int] = []


class InnoDB:
    """The table. No two rows are alike, so that an id that was used twice shows."""

    def __init__(self) -> None:
        self.rows: dict[int, LogRow] = {}
        self.open: list[Transaction] = []
        self.next_id = 1
        self.statements: dict[int, int] = {}
        """Which INSERT an id was last reserved by."""
        self.committed: set[LogRow] = set()
        """Ever, also what is gone since."""
        self._inserts = self._written = 0
        self._flush()

    def visible(self, *, dirty: bool) -> dict[int, LogRow]:
        if not dirty:
            return self.rows
        seen = dict(self.rows)
        for transaction in self.open:
            seen |= transaction.rows
        for transaction in self.open:
            for i in transaction.deletes:
                seen.pop(i, None)
        return seen

    def begin(self) -> Transaction:
        self.open.append(Transaction())
        return self.open[-1]

    def insert(self, transaction: Transaction, size: int, *, step: int = 1, ready: int | None = None) -> None:
        """`size` rows in one statement; it waits for a lock when `ready` of them are there."""
        ids = self.reserve(size, step)
        self._inserts += 1
        self.statements.update(dict.fromkeys(ids, self._inserts))
        ready = size if ready is None else ready
        self._write(transaction, ids[:ready])
        transaction.waiting = ids[ready:]

    def reserve(self, size: int, step: int = 1) -> list[int]:
        ids = [self.next_id + step * i for i in range(size)]
        self.next_id = ids[-1] + step
        return ids

    def grant(self, transaction: Transaction) -> None:
        self._write(transaction, transaction.waiting)
        transaction.waiting = []

    def end(self, transaction: Transaction, *, commits: bool) -> None:
        self.open.remove(transaction)
        if commits:
            self.grant(transaction)
            self.committed.update(transaction.rows.values())
            rows = self.rows | transaction.rows
            self.rows = {i: r for i, r in rows.items() if i not in transaction.deletes}
            self._disk.append((self.rows, self.next_id))

    def crash(self, lost: int, *, back: bool) -> None:
        """Gone is what was not committed, and the last `lost` commits, which were not on disk.

        The ids of those come again, and if `back` those too that were reserved since.
        """
        self.open.clear()
        lost = min(lost, len(self._disk) - 1)
        self.rows, next_id = self._disk[-1 - lost]
        self.next_id = next_id if lost or back else self.next_id
        self._flush()

    def replace(self, rows: dict[int, LogRow], next_id: int) -> None:
        """TRUNCATE, or another table in this one's place: both wait for the end of every transaction."""
        assert not self.open
        self.rows, self.next_id = rows, next_id
        self.committed.update(rows.values())
        self._flush()

    def row(self, i: int) -> LogRow:
        self._written += 1
        return LogRow(i, f"row {self._written}", 1_000_000 + self._written)

    def _write(self, transaction: Transaction, ids: list[int]) -> None:
        transaction.rows |= {i: self.row(i) for i in ids}

    def _flush(self) -> None:
        self._disk = deque([(self.rows, self.next_id)], maxlen=3)


class Session:
    """A connection. What a question finds is from when it was answered, or up to a `cut` from when it was asked."""

    def __init__(self, innodb: InnoDB, latency: float, *, dirty: bool = False) -> None:
        self._innodb = innodb
        self._dirty = dirty
        self.latency = latency
        self._cut: float = 0
        self._broken = False
        self._free = asyncio.Event()
        self._free.set()
        self._lock = asyncio.Lock()

    async def ask(self, wanted: Callable[[int], bool]) -> dict[int, LogRow]:
        async with self._lock:
            early = self._innodb.visible(dirty=self._dirty)
            if self.latency:
                await asyncio.sleep(self.latency)
            await self._free.wait()
            if self._broken:
                raise SourceUnavailable("gone")
            late = self._innodb.visible(dirty=self._dirty)
        seen = {i: r for i, r in early.items() if i <= self._cut and wanted(i)}
        seen |= {i: r for i, r in late.items() if i > self._cut and wanted(i)}
        return {i: seen[i] for i in sorted(seen)}

    def hold(self, cut: float) -> None:
        self._cut = cut
        self._free.clear()

    def release(self) -> None:
        self._free.set()

    def breaks(self) -> None:
        self._broken = True
        self._free.set()


class SimulatedFollower:
    """A tail that is connected again and again. It knows no history: all rows are read."""

    def __init__(self, innodb: InnoDB, tail: Tail) -> None:
        self.tail = tail
        self._innodb = innodb
        self.latency = 0.0
        self.dirty_latency = 0.0
        """Added to `latency` in dirty reads."""
        self._connect()

    def _connect(self) -> None:
        self.committed = Session(self._innodb, self.latency)
        self.dirty = Session(self._innodb, self.latency + self.dirty_latency, dirty=True)
        self.old = Session(self._innodb, self.latency)

    async def run(self) -> None:
        me: Any = self
        while True:
            self._connect()
            rows, dirty = me.committed, me.dirty
            try:
                if not self.tail.started:
                    await self.tail.begin(me, rows, 0)
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self.tail.follow(me, rows, me, lambda _: None))
                    tasks.create_task(self.tail.watch(me, rows, dirty, me, lambda _: None, lambda: None))
                    tasks.create_task(self.tail.read_past(me, me.old, me, lambda _: None, lambda: None))
                    tasks.create_task(self.tail.watch_for_reset(me, dirty))
            except* SourceUnavailable:
                pass
            except* LogReset:
                self.tail.started = False
            self.breaks()
            await asyncio.sleep(0.5)

    def breaks(self) -> None:
        self.committed.breaks()
        self.dirty.breaks()
        self.old.breaks()

    # -- correlator.sources.db.queries.Queries

    async def first_since(self, session: Session, since: int) -> int:
        return 1

    async def now(self, session: Session) -> int:
        return int(asyncio.get_running_loop().time() * 1_000_000)

    async def last_id(self, session: Session) -> int:
        return max(await session.ask(lambda _: True), default=0)

    async def rows_from(self, session: Session, first: int, limit: int) -> list[LogRow]:
        return list((await session.ask(lambda i: i >= first)).values())[:limit]

    async def rows_in(self, session: Session, ids: list[int]) -> list[LogRow]:
        return list((await session.ask(lambda i: i in ids)).values())

    async def ids_in(self, session: Session, ranges: list[Range]) -> list[int]:
        return list(await session.ask(inside(ranges)))

    async def light_rows_from(
        self, session: Session, first: int, limit: int, *, last: int | None = None, after: int | None = None
    ) -> list[LogRow]:
        found = await self.rows_from(session, first, limit)
        return [r for r in found if last is None or r.id <= last]

    async def light_rows_upto(self, session: Session, last: int, limit: int) -> list[LogRow]:
        return list((await session.ask(lambda i: i <= last)).values())[::-1][:limit]

    async def light_rows_in(self, session: Session, ids: list[int]) -> list[LogRow]:
        return await self.rows_in(session, ids)

    # -- correlator.sources.db.session.Database

    async def next_id(self, session: Session) -> int:
        await session.ask(lambda _: False)
        return self._innodb.next_id

    # -- correlator.sources.Feed

    known = SimpleNamespace(unloaded_rows=0)
    live = Heartbeats()
    status = SimpleNamespace(
        **dict.fromkeys(("answered", "part_answered", "progress", "caught_up", "past_progress"), lambda *_: None)
    )

    def rows(self, rows: list[LogRow]) -> Outcome:
        return Outcome()

    def again(self, rows: list[LogRow]) -> Outcome:
        return Outcome()

    def past(self, rows: list[LogRow]) -> Outcome:
        return self.rows(rows)

    def show_past(self) -> bool:
        return False

    def wants_fast_poll(self) -> bool:
        return False


def inside(ranges: Iterable[Range]) -> Callable[[int], bool]:
    """Whether an id is in one of these ranges: found by bisection, as some thousand ids are compared with each list."""
    ordered = sorted(ranges)
    starts = [first for first, _ in ordered]
    reached = list(accumulate((last for _, last in ordered), max))

    def is_inside(i: int) -> bool:
        before = bisect_right(starts, i)
        return before > 0 and i <= reached[before - 1]

    return is_inside
