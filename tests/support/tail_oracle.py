"""An oracle for the tail: it records what was seen of each missing id, apart from the code under test."""

from itertools import pairwise

from hypothesis import event

from correlator.model.persisted import Cursor
from correlator.model.published import Outcome
from correlator.model.rows import LogRow
from correlator.sources.db.session import Range
from correlator.sources.gaps import MAX_RANGES, Gaps, Window
from correlator.sources.tail import BatchSize, Tail
from tests.support.simulated_innodb import InnoDB, Session, SimulatedFollower, bare, inside
from tests.support.virtual_time import VirtualTimeLoop

POLL, IDLE_POLL, GRACE, COLD_FOR, SWEEP_EVERY = 0.09, 0.25, 2.0, 10.0, 3.0
BATCH = 7
"""In the daemon's proportions, but shorter. Two polls are near enough for their holes to join."""


class TailOracle(SimulatedFollower):
    """A follower whose every step is compared with the evidence for it.

    All but `delivered` is from the time since the tail last began: after a reset it reads again what is above its head.
    """

    def __init__(self, innodb: InnoDB, loop: VirtualTimeLoop) -> None:
        self._loop = loop
        super().__init__(innodb, self._new_tail())
        self.delivered: set[LogRow] = set()
        self.saved: tuple[Cursor, set[LogRow], set[int], list[Range], int] | None = None
        self._gaps: Gaps | None = None
        self._base = 0
        self._emitted: set[int] = set()
        self._expired: list[Range] = []

    def _new_tail(self) -> Tail:
        return Tail(
            POLL,
            IDLE_POLL,
            GRACE,
            cold_for=COLD_FOR,
            sweep_every=SWEEP_EVERY,
            batch=BatchSize(BATCH),
            past_batch=BatchSize(BATCH),
            clock=self._loop.time,
        )

    def _begin(self, gaps: Gaps) -> None:
        event("the reader begins again" if self._gaps else "the reader begins")
        self._gaps = gaps
        self._head = gaps.head
        floor = self.tail.past.floor if self.tail.past is not None else 0
        self._base = min(max(self._base, floor), gaps.head)
        self._emitted = {i for i in self._emitted if i <= gaps.head}
        self._expired = [(first, min(last, gaps.head)) for first, last in self._expired if first <= gaps.head]
        self._windows: dict[int, tuple[Window, float]] = {}
        """Each, and when it was settled."""
        self._kin: dict[int, tuple[int, float]] = {}
        """The missing ids. Those that one statement reserved, and that were found missing together, live together."""
        self._alive: dict[int, float] = {}
        """When a missing id was last seen, or first missed."""
        self._silent: dict[int, float] = {}
        """When the last probe began that has not seen it."""
        self._miss(0, gaps.head)

    def save(self) -> None:
        """Write a checkpoint. `restart` continues from it."""
        self.check()
        self.saved = self.tail.cursor(), set(self.delivered), set(self._emitted), list(self._expired), self._base

    def forget(self) -> None:
        """Begin as at a first start."""
        self.tail = self._new_tail()
        self.delivered, self._emitted, self._expired, self._base, self._gaps = set(), set(), [], 0, None

    def restart(self) -> None:
        assert self.saved is not None
        cursor, delivered, emitted, expired, base = self.saved
        self.tail = self._new_tail()
        self.tail.resume(cursor)
        self.delivered, self._emitted, self._expired, self._base = set(delivered), set(emitted), list(expired), base
        self._begin(self.tail.gaps)

    # -- what the tail does

    def rows(self, rows: list[LogRow]) -> Outcome:
        assert self._innodb.committed.issuperset(rows), "a row is delivered that was not committed"
        self.check()
        for row in rows:
            assert row.id not in self._emitted, "a row is delivered twice"
            self._emitted.add(row.id)
            self._kin.pop(row.id, None)
        self.delivered.update(rows)
        return super().rows(rows)

    async def last_id(self, session: Session) -> int:
        self.check()  # it may just have gone back
        return await super().last_id(session)

    async def rows_from(self, session: Session, first: int, limit: int) -> list[LogRow]:
        self.check()
        return await super().rows_from(session, first, limit)

    async def ids_in(self, session: Session, ranges: list[Range]) -> list[int]:
        assert len(ranges) <= MAX_RANGES
        assert bare(session) is self.dirty, "only a dirty read is evidence"
        self.check()
        began = self._loop.now
        seen = await super().ids_in(session, ranges)
        alive = {self._kin[i] for i in seen if i in self._kin}
        asked = inside(ranges)
        for i, kin in self._kin.items():
            if kin in alive:
                self._alive[i] = self._loop.now
            elif asked(i):
                self._silent[i] = began
        return seen

    def check(self) -> None:
        """Compare what `Gaps` has done since the last call."""
        if self._gaps is not None:
            self._compare(self._gaps)
        if self.tail.started and self.tail.gaps is not self._gaps:
            self._begin(self.tail.gaps)
            self._compare(self.tail.gaps)

    def _compare(self, gaps: Gaps) -> None:
        if any(w.revived for w in gaps.open):
            event("a cold window lives after all")
        self._miss(self._head, gaps.head)
        self._head = gaps.head
        windows = {id(w): (w, w.settled) for w in (*gaps.open, *gaps.cold)}
        for key in self._windows.keys() - windows.keys():
            window, settled = self._windows[key]
            if window.holes:
                event("a window is given up")
            self._expired += window.holes
            for i in self._missing(window.holes):
                assert self._silent.get(i, 0.0) >= settled + COLD_FOR > COLD_FOR, (
                    f"{i} is given up without a last probe"
                )
        for window in gaps.cold:
            for i in self._missing(window.holes):
                assert self._silent.get(i, 0.0) >= self._alive[i] + GRACE, f"{i} is settled against the evidence"
        self._windows = windows

    def _miss(self, above: int, upto: int) -> None:
        """These ids are missing from now on, until they are delivered."""
        for i, statement in self._innodb.statements.items():
            if above < i <= upto and i not in self._emitted:
                self._kin[i] = statement, self._loop.now
                self._alive[i] = self._loop.now

    def _missing(self, holes: list[Range]) -> list[int]:
        return list(filter(inside(holes), self._kin)) if holes else []

    # -- what must hold

    def check_ids(self) -> None:
        """Every id up to the head is in exactly one of emitted, open, cold, expired, past and not read yet."""
        gaps = self.tail.gaps
        holes = sorted([*self._expired, *(h for w in (*gaps.open, *gaps.cold) for h in w.holes)])
        assert all(first <= last for first, last in holes)
        assert all(a[1] < b[0] for a, b in pairwise(holes)), "an id is in two places"
        emitted = [i for i in self._emitted if i > self._base]
        assert not any(map(inside(holes), emitted)), "what was delivered is still missing"
        past = self.tail.past
        unread = past.last - max(past.at, self._base) if past is not None else 0
        assert len(emitted) + sum(last - first + 1 for first, last in holes) + unread == gaps.head - self._base
        assert not any(w.settled for w in gaps.open)
        assert all(w.settled for w in gaps.cold)

    def lost(self) -> list[int]:
        """Rows in the table that were never delivered, although a dirty read could have seen them in time."""
        missing = [i for i, row in self._innodb.rows.items() if row not in self.delivered]
        expired = inside(self._expired)
        late = [i for i in missing if expired(i) or i <= self._base]
        if late:
            event("rows came after their ids had expired")
        return [i for i in missing if i not in late]
