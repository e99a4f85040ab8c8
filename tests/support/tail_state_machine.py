"""A Hypothesis state machine: the real tail on a simulated InnoDB, with faults of writers, server and network.

A doorbell notifies at any time.
"""

import math

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from correlator.model.rows import LogRow
from tests.support.simulated_innodb import InnoDB, Transaction
from tests.support.tail_oracle import COLD_FOR, GRACE, SWEEP_EVERY, TailOracle
from tests.support.virtual_time import VirtualTimeLoop

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
