"""No row is lost: the real tail on a simulated InnoDB, whatever writers, server and network do.

`make test` runs 150 examples, HYPOTHESIS_PROFILE=long 10,000.
"""

import math
from itertools import pairwise

import pytest
from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from correlator.model.persisted import Cursor
from correlator.model.published import Outcome
from correlator.model.rows import LogRow
from correlator.sources.db.session import Range
from correlator.sources.gaps import MAX_RANGES, Gaps, Window
from correlator.sources.tail import BatchSize, Tail
from tests.support.simulated_innodb import InnoDB, Session, SimulatedFollower, Transaction, inside
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
        """The missing ids. Those that one statement reserved, and that were found missing together, live together: they
        have the same time, or a number below 0."""
        self._alive: dict[int, float] = {}
        """When a missing id was last seen, or first missed."""
        self._silent: dict[int, float] = {}
        """When the last probe began that has not seen it."""
        self._miss(0, gaps.head)
        # The past is found missing in parts, and a window of a checkpoint stays one.
        for i, (statement, _) in self._kin.items():
            together = next((w.holes[0][0] for w in gaps.open if inside(w.holes)(i)), i)
            self._kin[i] = statement, -1.0 - together

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
        self._emit(rows)
        self.delivered.update(rows)
        return super().rows(rows)

    def again(self, rows: list[LogRow]) -> Outcome:
        event("rows came back")
        assert self.delivered.issuperset(rows), "a row passes for one that came back, and was never delivered"
        self.check()
        self._emit(rows)
        return super().again(rows)

    def _emit(self, rows: list[LogRow]) -> None:
        for row in rows:
            assert row.id not in self._emitted, "a row is delivered twice"
            self._emitted.add(row.id)
            self._kin.pop(row.id, None)

    async def last_id(self, session: Session) -> int:
        self.check()  # it may just have gone back
        return await super().last_id(session)

    async def rows_from(self, session: Session, first: int, limit: int) -> list[LogRow]:
        self.check()
        return await super().rows_from(session, first, limit)

    async def ids_in(self, session: Session, ranges: list[Range]) -> list[int]:
        assert len(ranges) <= MAX_RANGES
        assert session is self.dirty, "only a dirty read is evidence"
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


QUIET = 12.0
"""Seconds in which all that is committed is read: a check for resets, a sweep and a grace, with some to spare."""


class TailMachine(RuleBasedStateMachine):
    """Writers, a server and a network that do what they like, and the reader, which must make the best of it."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTimeLoop()
        self.innodb = InnoDB()
        self.reader = TailOracle(self.innodb, self.loop)
        self.dump = (dict[int, LogRow](), 1)
        self.task = self.loop.create_task(self.reader.run())

    def teardown(self) -> None:
        try:
            self.it_becomes_quiet([True])
        finally:
            self.task.cancel()
            self.loop.run()
            self.loop.close()

    @rule(seconds=st.sampled_from([0.01, 0.05, 0.1, 0.3]))
    def a_moment_passes(self, seconds: float) -> None:
        self.loop.run(seconds)

    @rule(seconds=st.sampled_from([1.0, GRACE, GRACE + 1.0, SWEEP_EVERY, COLD_FOR, COLD_FOR + 2 * GRACE]))
    def time_passes(self, seconds: float) -> None:
        self.loop.run(seconds)

    # -- writers

    def transaction(self, which: int) -> Transaction:
        """One of those that wait for nothing, or a new one."""
        able = [t for t in self.innodb.open if not t.waiting]
        return able[which] if which < len(able) else self.innodb.begin()

    @rule(
        which=st.integers(0, 4),
        size=st.integers(1, 12),
        step=st.sampled_from([1, 1, 3]),
        ready=st.sampled_from([0, 1, 4, 12]),
        passed=st.booleans(),
    )
    def rows_are_inserted(self, which: int, size: int, step: int, ready: int, passed: bool) -> None:
        self.innodb.insert(self.transaction(which), size, step=step, ready=ready)
        if passed:
            self.rows_are_committed_at_once(1, step)

    @rule(size=st.integers(1, 9), ready=st.sampled_from([0, 0, 1]), seconds=st.sampled_from([GRACE + 1, COLD_FOR]))
    def a_statement_waits_for_longer_than_the_grace(self, size: int, ready: int, seconds: float) -> None:
        self.rows_are_inserted(99, size, 1, ready, passed=True)
        self.loop.run(seconds)

    @rule(size=st.integers(1, 4), step=st.sampled_from([1, 3]))
    def rows_are_committed_at_once(self, size: int, step: int) -> None:
        self.innodb.insert(self.innodb.begin(), size, step=step)
        self.innodb.end(self.innodb.open[-1], commits=True)

    @rule(which=st.integers(0, 4), ahead=st.sampled_from([1, 40, 5_000, 10**12]))
    def a_row_has_an_id_of_its_own(self, which: int, ahead: int) -> None:
        self.innodb.next_id += ahead
        self.innodb.insert(self.transaction(which), 1)

    @rule(size=st.sampled_from([1, 7, 31]))
    def ids_are_burnt(self, size: int) -> None:
        self.innodb.reserve(size)

    @precondition(lambda self: self.innodb.open)
    @rule(which=st.integers(0, 4))
    def a_lock_is_granted(self, which: int) -> None:
        self.innodb.grant(self.innodb.open[which % len(self.innodb.open)])

    @precondition(lambda self: self.innodb.open)
    @rule(which=st.integers(0, 4), commits=st.booleans())
    def a_transaction_ends(self, which: int, commits: bool) -> None:
        self.innodb.end(self.innodb.open[which % len(self.innodb.open)], commits=commits)

    @precondition(lambda self: self.innodb.rows)
    @rule(which=st.integers(0, 4), share=st.sampled_from([0.2, 0.5, 1.0]), ends=st.booleans())
    def old_rows_are_deleted(self, which: int, share: float, ends: bool) -> None:
        ids = sorted(self.innodb.rows)
        transaction = self.innodb.begin() if ends else self.transaction(which)
        transaction.deletes.update(ids[: math.ceil(share * len(ids))])
        if ends:
            self.innodb.end(transaction, commits=True)

    # -- the server. What writers do before the next query: commit, roll back, leave open

    @rule(lost=st.integers(0, 2), back=st.booleans(), ends=st.text("cro", max_size=12))
    def the_server_crashes(self, lost: int, back: bool, ends: str) -> None:
        self.innodb.crash(lost, back=back)
        self.reader.breaks()
        self.writers_are_quick(ends)

    @precondition(lambda self: not self.innodb.open)
    @rule(ends=st.text("cro", max_size=12))
    def the_table_is_truncated(self, ends: str) -> None:
        self.innodb.replace({}, 1)
        self.writers_are_quick(ends)

    @rule()
    def a_dump_is_made(self) -> None:
        self.dump = self.innodb.rows, self.innodb.next_id

    @precondition(lambda self: not self.innodb.open)
    @rule(foreign=st.booleans(), ends=st.text("cro", max_size=12))
    def a_dump_is_restored(self, foreign: bool, ends: str) -> None:
        rows, next_id = self.dump
        self.innodb.replace({i: self.innodb.row(i) for i in rows} if foreign else rows, next_id)
        self.writers_are_quick(ends)

    def writers_are_quick(self, ends: str) -> None:
        for end in ends:
            self.innodb.insert(self.innodb.begin(), 1 + self.innodb.next_id % 3)
            if end != "o":
                self.innodb.end(self.innodb.open[-1], commits=end == "c")

    # -- the network

    @rule(cut=st.sampled_from([0, math.inf]))
    def a_read_of_rows_takes_long(self, cut: float) -> None:
        self.reader.committed.hold(cut)

    @rule(cut=st.one_of(st.sampled_from([0, math.inf]), st.integers(1, 60)))
    def a_probe_takes_long(self, cut: float) -> None:
        self.reader.dirty.hold(cut)

    @rule()
    def answers_come_again(self) -> None:
        self.reader.committed.release()
        self.reader.dirty.release()

    @rule(latency=st.sampled_from([0.0, 0.0, 0.05, 0.4]))
    def the_network_is_slow(self, latency: float) -> None:
        self.reader.latency = self.reader.committed.latency = self.reader.dirty.latency = latency

    @rule()
    def the_connection_breaks(self) -> None:
        self.reader.breaks()

    # -- the doorbell and the daemon

    @rule(statements=st.sampled_from([1, 1, 2, 50]))
    def the_doorbell_notifies(self, statements: int) -> None:
        self.reader.tail.doorbell_retry.notify(statements)

    @precondition(lambda self: self.reader.tail.started)
    @rule()
    def a_checkpoint_is_written(self) -> None:
        self.reader.save()

    @precondition(lambda self: self.reader.saved)
    @rule()
    def the_daemon_is_killed(self) -> None:
        self.task.cancel()
        self.loop.run()
        self.reader.restart()
        self.task = self.loop.create_task(self.reader.run())

    @rule()
    def the_daemon_begins_anew_without_a_checkpoint(self) -> None:
        self.task.cancel()
        self.loop.run()
        self.reader.forget()
        self.task = self.loop.create_task(self.reader.run())

    # -- what must hold

    @rule(commits=st.lists(st.booleans(), min_size=1, max_size=5))
    def it_becomes_quiet(self, commits: list[bool]) -> None:
        for i, transaction in enumerate(list(self.innodb.open)):
            self.innodb.end(transaction, commits=commits[i % len(commits)])
        self.answers_come_again()
        self.the_network_is_slow(0.0)
        self.loop.run(QUIET)
        self.every_id_is_accounted_for()
        assert self.reader.lost() == []
        assert self.reader.tail.gaps.open == [], "nothing lives, and a window is still open"

    @invariant()
    def every_id_is_accounted_for(self) -> None:
        self.loop.run()
        if self.task.done():
            self.task.result()
        self.reader.check()
        if self.reader.tail.started:
            self.reader.check_ids()


LONG = settings().max_examples > 1000


@pytest.mark.parametrize("part", range(20 if LONG else 1))
def test_nothing_is_lost(part):
    run_state_machine_as_test(TailMachine, settings=settings(max_examples=500 if LONG else 75, stateful_step_count=50))
