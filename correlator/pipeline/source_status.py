"""What the source reports of itself: whether the database answers, what it cannot read, and how far it has read.

The state of the database is live, stale or down. It follows from the time since the log was last read, and from the
states of the tables: it is live while all of them are read. A failed query never removes jobs: what was read stays, and
the state changes to stale, and later, without the log, to down.

A table is read in parts (`SourcePart`), each with queries of its own, which fail and recover by themselves. A part that
failed is well again only once the same part has succeeded, and read what it missed: the success of another one is no
evidence.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from correlator.errors import Away, SourceError, SourceUnavailable
from correlator.jobs import horizon
from correlator.jobs.encoding import rfc3339
from correlator.jobs.index import Index
from correlator.model.published import Outcome
from correlator.model.rows import LogRow, Micros
from correlator.ops import metrics
from correlator.ops.outage import Outage
from correlator.pipeline.hub import UNREACHABLE, DatabaseStatus

NEAR: Micros = 1_000_000
"""Microseconds by which the host's clock may be outside of the range that a query gives."""


def uptime() -> Micros:
    """Microseconds by a clock that nobody sets."""
    return time.monotonic_ns() // 1000


class ApplianceClock:
    """The time by the appliance's clock: the database reports it with the queries of each round.

    Problem: jobs, steps and rows have the times of the appliance. A daemon whose clock is ahead takes a job that has
    just begun for one that runs for hours, and one whose clock is behind misses all that is late.

    Model: a query names the database's time and takes a while, so that it gives a range for the time by that clock. The
    host's clock is used if it is within that range, or `NEAR` it; otherwise the time moves into the range, if it is not
    in it. Between two queries time passes by a clock that nobody sets. Before the first one, it is the host's.

    Call it for the Unix time in microseconds. `host`: the clock of this host. Event loop's thread only.
    """

    def __init__(self, host: Callable[[], Micros], uptime: Callable[[], Micros] = uptime) -> None:
        self._host = host
        self._uptime = uptime
        self._begin: Micros | None = None
        """The time at which `uptime` was 0. None before the first query."""
        self._follows_host = True

    def __call__(self) -> Micros:
        return self._host() if self._begin is None else self._begin + self._uptime()

    def read(self, at: Micros, took: Micros) -> Micros:
        """Note that a query which took so long named the database's time `at`. Returns by how much that moves it.

        A query that took long says little, and moves nothing that it does not contradict.
        """
        before, up = self(), self._uptime()
        first, last = at - up, at - up + took
        host = self._host() - up
        known = self._begin if self._begin is not None else (first + last) // 2
        follows_host = first - NEAR <= host <= last + NEAR
        self._begin = host if follows_host else min(max(known, first), last)
        if follows_host is not self._follows_host:
            self._follows_host = follows_host
            if follows_host:
                log.info("the clocks of the database and of this host agree again")
            else:
                off = (host - self._begin) / 1_000_000
                log.warning(
                    "the clock of this host is %.0f s %s the database's, by which the times of jobs are: jobs are"
                    " judged by the database's clock. Set this host's clock with NTP (correlator doctor shows both)",
                    abs(off),
                    "ahead of" if off > 0 else "behind",
                )
        return self() - before


# -- what the source reports


log = logging.getLogger(__name__)

STALE_AFTER = 3.0
"""Seconds without a complete answer of the database after which the published state is stale."""

DOWN_AFTER = 15.0
"""Seconds without a complete answer after which the database is down."""


NOT_FOLLOWED = "the database answers, and cannot be followed"

NOT_READ = "a table of the database is not read"

OF_LAST_RUN = "the state of the last run is served"

CONNECTIONS = 9
"""Connections that the daemon keeps, the one for the binary log among them; some more for moments."""

REPLICA_LATE = 60.0
"""Seconds behind its primary above which a replica is late: the threshold of the alert on the source's lag."""

STEADY = 10.0
"""Seconds without a failure after which a part whose query failed is well again; more than between two attempts."""


class SourcePart(Enum):
    """What is read by queries of its own. The value is the table, and what is read of it."""

    LOG = ("log_events", "new rows")
    LATE_ROWS = ("log_events", "rows that are committed late")
    JOBS = ("job_tracking", "jobs")
    STEPS = ("job_steps", "steps")
    LEGACY = ("failover_jobs", "legacy jobs")

    @property
    def table(self) -> str:
        return self.value[0]


def few_connections(allowed: int) -> str | None:
    """What it means if the account may have so many connections at once (0: any number); None if these are enough."""
    if not 0 < allowed < CONNECTIONS:
        return None
    return (
        f"the account may have {allowed} connections to the database at once (max_user_connections), and the correlator"
        f" needs {CONNECTIONS}: requests are refused, or tables are not read, while none is left; correlator doctor"
        " shows the ALTER USER"
    )


class TableState(Enum):
    """Why a table is not read. The value is published."""

    MISSING = "missing"
    REFUSED = "refused"
    LOCKED = "locked"
    SLOW = "slow"
    FAILING = "failing"
    READING = "reading"
    """It can be read again, and what changed meanwhile is being read."""


_STATES = {
    Away.MISSING_GRANTS: TableState.REFUSED,
    Away.LOCKED: TableState.LOCKED,
    Away.NO_ANSWER: TableState.SLOW,
    Away.SLOW: TableState.SLOW,
}
"""The state by the reason of a failed query; of any other reason: `FAILING`."""

_MEANINGS = {
    TableState.MISSING: "{} cannot be read: it does not exist, or SELECT is not granted; correlator doctor says which",
    TableState.REFUSED: "{} cannot be read: SELECT is not granted; correlator doctor shows the GRANT",
    TableState.LOCKED: "{} cannot be read: another session has locked the table (LOCK TABLES, ALTER TABLE, or one that"
    " waits behind an open transaction); SHOW FULL PROCESSLIST shows it, KILL ends it",
    TableState.SLOW: "{} cannot be read: its queries are not answered in time; the table may be locked, or the server"
    " busy: SHOW FULL PROCESSLIST shows it",
    TableState.FAILING: "{} cannot be read: the database ends its queries with an error; the correlator's log has it,"
    " and correlator doctor shows more",
    TableState.READING: "{} can be read again: what changed meanwhile is being read",
}


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why something is not read. `since`: microseconds; `began` and `failed_at` (the last time): monotonic seconds."""

    state: TableState
    what: str
    since: Micros
    began: float
    failed_at: float
    meaning: str | None = None
    """What the error means, if the table of errors has it."""

    @property
    def error(self) -> str:
        """What it means and what to do, without host, account and query."""
        if self.state is TableState.FAILING and self.meaning is not None:
            return f"{self.what} cannot be read: {self.meaning}; correlator doctor shows what to do"
        return _MEANINGS[self.state].format(self.what)


class SourceStatus(DatabaseStatus):
    """The status of the source, and of the database that it reads. Event loop's thread only.

    The first part is for clients; the second for the source, which reports every change; the third for the pipeline.
    `clock`: that of the appliance, of which the source reports the time (`database_time`). `monotonic`: seconds.
    """

    def __init__(self, index: Index, clock: ApplianceClock, monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._monotonic = monotonic
        self.since: Micros | None = None
        """The time from which ends of jobs count as news. None until jobs have been loaded."""
        self._index = index
        self.clock = clock
        self._began = self._monotonic()
        self._answered: float | None = None
        self._answered_at: Micros = 0
        self._failure: tuple[str, str | None, str] | None = None
        """The error since the last answer, for the operator and for clients, and what it means."""
        self._outage = Outage()
        self._retried = Outage()
        """The failures of the parts that are read on a session of their own."""
        self._lost: dict[str, tuple[tuple[str, ...], Trouble]] = {}
        """By table: which of it, or of its columns, existed and can no longer be read."""
        self._troubles: dict[SourcePart, Trouble] = {}
        self.restored_jobs = False
        """True while there are jobs as the last run saved them, which have not been read again."""
        self._few_connections: str | None = None
        """What it means that the account may have fewer connections than are needed; None: it may have enough."""
        self._replica_trouble: str | None = None
        self._replica_behind = 0.0
        """Seconds that the database is behind its primary, as far as is known; 0 if it is no replica."""
        self._behind = True
        """True while the log is being caught up with: the delay of those rows is not measured."""
        self._past = self._read_to = 0
        """The highest ID and the newest time that the last catch-up has read."""
        self.tables_loaded = asyncio.Event()
        """Set once the tables have been read for the first time."""
        self.complete = asyncio.Event()
        """Set while the past of the log has been read and published."""
        metrics.SOURCE_LAG.set_function(self._lag)
        metrics.SOURCE_SUCCESS.set_function(lambda: self._answered_at / 1_000_000)

    # -- for clients

    @property
    def lag_seconds(self) -> float:
        """Seconds since everything was last read; 0 while the database is live, and before the first answer.

        A live replica is behind its primary for as long as it says.
        """
        if self.database == "live" or self._answered is None:
            return round(self._replica_behind, 3)
        since = min([self._answered, *(trouble.began for trouble in self._tables().values())])
        return round(self._monotonic() - since, 3)

    def describe_database(self) -> dict[str, Any]:
        """Describe the database for /health/ready, with the time at which jobs are judged."""
        judged_at = self._index.horizon.judged_at(self.clock())
        part = {**super().describe_database(), "judged_at": rfc3339(judged_at) if judged_at is not None else None}
        if judged_at is None and part["ok"]:
            part |= {"ok": False, "error": self._not_judged()}
        for words in filter(None, (self._few_connections, self._replica_trouble)):
            part |= {"ok": False, "error": "; ".join(filter(None, (part["error"], words)))}
        return part

    def describe_tables(self) -> dict[str, Any]:
        """Describe the tables for /health/ready. `states`: those that are not read."""
        troubles = self._tables()
        return {
            "ok": not troubles,
            "missing": [name for names, _ in self._lost.values() for name in names],
            "error": "; ".join(trouble.error for trouble in troubles.values()) or None,
            "states": {
                table: {"state": t.state.value, "since": rfc3339(t.since), "error": t.error}
                for table, t in troubles.items()
            },
        }

    # -- reported by the source

    def schema(self, *, tracking: bool, lost: Sequence[str] = (), changed: bool = False) -> None:
        """Report the schema of a new connection. Without `tracking`, jobs are known from the log alone.

        `lost`: required tables and columns that no longer exist, or on which SELECT is no longer granted. A table of
        which some are back has to be read again (`read_again`). `changed`: it is not that of the connection before.
        """
        self._index.tracking = tracking
        by_table: dict[str, tuple[str, ...]] = {}
        for name in lost:
            table = name.partition(".")[0]
            by_table[table] = (*by_table.get(table, ()), name)
        before, self._lost = self._lost, {}
        for table, names in by_table.items():
            known = before.get(table)
            if known is None or known[0] != names:
                trouble = self._trouble(TableState.MISSING, ", ".join(names), known[1] if known is not None else None)
                log.warning("%s. What was read stays.", trouble.error)
                known = names, trouble
            self._lost[table] = known
        for part, trouble in list(self._troubles.items()) if changed else ():
            if part.table in self._lost:
                del self._troubles[part]
            elif part in (SourcePart.LOG, SourcePart.LATE_ROWS):
                # This connection names only columns that exist: the first answer ends the trouble.
                self._troubles[part] = replace(trouble, failed_at=-math.inf)
        for table, (names, trouble) in before.items():
            if back := set(names) - set(by_table.get(table, ())):
                log.info("%s can be read again", ", ".join(sorted(back)))
                for part in (SourcePart.JOBS, SourcePart.STEPS, SourcePart.LEGACY):
                    if part.table == table:
                        self._troubles[part] = self._trouble(TableState.READING, table, trouble)
        metrics.LOST_TABLES.set(len(lost))
        self._behind, self._past, self._read_to = True, 0, 0  # A new connection catches up with the log.
        self._settle()

    def answered(self) -> None:
        """Report a successful query of the tail."""
        self._answered, self._answered_at = self._monotonic(), self.clock()
        if self.database != "live":  # Else there is neither a failure nor a trouble.
            self._reached()
            self.part_answered(SourcePart.LOG)
            self._settle()

    def part_answered(self, part: SourcePart) -> None:
        """Report a success of a part. It is well again, if it does not have to be read again."""
        if (trouble := self._troubles.get(part)) is None or trouble.state is TableState.READING:
            return
        waited = trouble.state in (TableState.LOCKED, TableState.SLOW)
        if waited or self._monotonic() - trouble.failed_at >= STEADY:
            self._recovered(part)

    def read_again(self, part: SourcePart) -> None:
        """Report that everything of a part has been read, also what it missed."""
        self._recovered(part)
        if part is SourcePart.JOBS:
            self.restored_jobs = False  # The next answer of the tail makes the state live.

    def _recovered(self, part: SourcePart) -> None:
        if (trouble := self._troubles.pop(part, None)) is not None:
            log.info("%s: %s are read again, after %.0f s", *part.value, self._monotonic() - trouble.began)
            self._settle()

    def part_failed(self, part: SourcePart, error: SourceUnavailable) -> None:
        """Report a failed query of a part. What was read stays. Each state is logged once."""
        metrics.SOURCE_FAILURES.inc()
        state = TableState.FAILING if error.reason is None else _STATES.get(error.reason, TableState.FAILING)
        known = self._troubles.get(part)
        self._troubles[part] = trouble = replace(self._trouble(state, part.table, known), meaning=error.meaning)
        if known is None or (known.state, known.meaning) != (state, error.meaning):
            log.warning("%s. What was read stays; trying again. (%s: %s)", trouble.error, part.value[1], error)
        if state is not TableState.SLOW:  # Else it has answered, with an error.
            self._reached()
        self._settle()

    def has_answered_since(self, began: float) -> bool:
        """True if the log has been read since that time, in monotonic seconds."""
        return self._answered is not None and self._answered >= began

    def is_failing(self, part: SourcePart) -> bool:
        """True if the last queries of a part have failed."""
        return part in self._troubles

    def failed(self, error: SourceError, *, answers: bool = False) -> None:
        """Report a failure of the connection. `answers`: the database was reached: its tables or its answer are it."""
        metrics.SOURCE_FAILURES.inc()
        what = NOT_FOLLOWED if answers else UNREACHABLE
        if not (answers and self.has_few_connections):  # The latter is in the log, once.
            log.log(self._outage.level((what, error.kind)), "%s: %s", what, error)
        self._failure = str(error), error.public, what
        self.judge()

    @property
    def has_few_connections(self) -> bool:
        return self._few_connections is not None

    def replica(self, behind: float | None, *, stopped: bool = False) -> None:
        """Report how far the database is behind its primary, in seconds. None: it is no replica, or it is not known.

        `stopped`: its replication has stopped, and `behind` is the time for which that was seen.
        """
        before, self._replica_behind = self._replica_trouble, behind or 0.0
        self._replica_trouble = None
        if stopped:
            self._replica_trouble = (
                "the database is a replica, and its replication has stopped: nothing newer arrives since at least"
                f" {self._replica_behind:.0f} s"
            )
        elif self._replica_behind > REPLICA_LATE:
            self._replica_trouble = f"the database is a replica, {self._replica_behind:.0f} s behind its primary"
        if (before is None) != (self._replica_trouble is None):
            if self._replica_trouble is None:
                log.info("the database is no longer behind its primary")
            else:
                log.warning("%s", self._replica_trouble)
            self.judge()

    def connections(self, allowed: int) -> None:
        """Report how many connections the account may have at once; 0: any number."""
        few = few_connections(allowed)
        if few is not None and few != self._few_connections:
            log.warning("%s", few)
        elif few is None and self._few_connections is not None:
            log.info("the account may have enough connections to the database")
        self._few_connections = few

    def malformed(self, reason: str) -> None:
        """Count a row that could not be parsed in full."""
        metrics.MALFORMED.labels(reason).inc()
        log.debug("a row could not be parsed completely: %s", reason)

    def past_begins(self) -> None:
        """Report a first start: the tables are read next, and then the log's past."""
        self.complete.clear()
        self._index.published.begin_past(self.clock())

    def past_progress(self, done: int, total: int) -> None:
        """Report how many IDs of the log's past have been read, and how many there are."""
        self.reading = (done, total)

    def past_failed(self, error: SourceUnavailable) -> None:
        """Report that the log's past cannot be read now. The database may answer other queries all the same."""
        self._retried_part("the past of the log", error)

    def history_failed(self, error: SourceUnavailable) -> None:
        """Report that the earlier runs, from which forecasts learn, cannot be read now."""
        self._retried_part("the history that forecasts need", error)

    def progress(self, done: int, total: int) -> None:
        """Report the progress of a catch-up, in log IDs."""
        if done < total:
            log.info("reading the log: %d of %d (%.0f %%)", done, total, 100 * done / max(1, total))
        if self._index.published.past_unread is None:
            self.reading = (done, total) if done < total else None
        if done >= total:
            self._behind = False
            self.loaded()

    def database_time(self, at: Micros, took: float) -> None:
        """Report the database's time, in microseconds since 1970, of a query that took so many seconds."""
        moved = self.clock.read(at, int(took * 1_000_000))
        past_unread = self._index.published.past_unread
        if past_unread is not None:
            self._index.published.begin_past(past_unread + moved)
        if self.since is not None:
            self.since += moved

    def caught_up(self, age: float = 0.0) -> None:
        """Report that every row of the log that was committed `age` seconds ago has been read."""
        self._read_all(horizon.Part.LOG, age)

    def tables_read(self, age: float = 0.0) -> None:
        """Report that all that the tables said of jobs `age` seconds ago has been read."""
        self._read_all(horizon.Part.TABLES, age)

    def loaded(self) -> None:
        """Report that the tables have been read: what changes from now on is published with events."""
        if not self.tables_loaded.is_set():
            self._index.loading = False
            self.since = self.clock() if self.since is None else self.since
            if self._index.published.past_unread is not None and self.reading is None:
                self.reading = (0, 0)  # The source reports how much there is when it begins to read the past.
            self.tables_loaded.set()

    # -- called by the pipeline

    def restored(self, now: Micros, age: float) -> None:
        """Set the state as stale: what the last run saved `age` seconds before `now` is published."""
        self._answered = self._monotonic() - age
        self._answered_at = now - int(age * 1_000_000)
        self.restored_jobs = True
        self.set_state("stale", "the database has not been asked yet", what=OF_LAST_RUN)
        self.since = self._answered_at
        self.loaded()

    def judge(self) -> None:
        """Set the database to stale or down if the log has not been read for a while."""
        silent = self._monotonic() - (self._began if self._answered is None else self._answered)
        if self._failure is None and silent < STALE_AFTER:
            return
        if self._failure is not None:
            error, public, what = self._failure
        elif (of_tables := self._table_error()) is not None:
            error, public, what = of_tables, None, NOT_READ
        else:
            error, public, what = f"no answer for {silent:.0f} s", "the database does not answer", UNREACHABLE
        down = silent >= DOWN_AFTER or self.loading
        self.set_state("down" if down else "stale", error, public, what)

    def reads(self, rows: Sequence[LogRow]) -> None:
        """Note the position of a catch-up, just before `rows` are applied."""
        if self._behind and rows:
            self._past = max(self._past, rows[-1].id)
            self._read_to = max(self._read_to, rows[-1].ts)

    def measure(self, outcome: Outcome) -> None:
        """Observe the delay from each row's timestamp to now, for rows that were just published."""
        if self._behind:
            return
        now, past, rows = self.clock(), self._past, outcome.attributed
        delays = [max(0, now - row.entry.at) / 1_000_000 for row in rows if row.entry.event_id > past]
        metrics.END_TO_END.observe_all(delays)

    def past_published(self) -> None:
        """End the report on the log's past."""
        self.reading = None
        self.complete.set()

    def _reached(self) -> None:
        if self._failure is not None and not (self._failure[2] == NOT_FOLLOWED and self.has_few_connections):
            log.info("the database answers")
        self._failure = None
        self._outage.end()

    def _not_judged(self) -> str:
        read_to = self._index.horizon.read_to
        since = f"only up to {rfc3339(read_to)}" if read_to else "not to their end yet"
        within = horizon.JUDGED_WITHIN // 1_000_000
        return (
            f"log and tables have been read {since}: until they are read up to {within} s ago, no"
            " job is reported as stalled, late or overdue. If this lasts, the database answers too slowly"
        )

    def _read_all(self, part: horizon.Part, age: float) -> None:
        before = int(age * 1_000_000)
        self._index.horizon.report(part, self.clock() - before, uptime() - before)

    def _settle(self) -> None:
        """Set the state of the database by the states of the tables while the log is read, and else as `judge` does."""
        silent = self._monotonic() - self._answered if self._answered is not None else STALE_AFTER
        if self._failure is None and silent < STALE_AFTER:
            if (error := self._table_error()) is None and self.restored_jobs:
                self.set_state("stale", "the jobs that have ended are being read again", what=OF_LAST_RUN)
            else:
                self.set_state("live" if error is None else "stale", error, what=NOT_READ)
        else:
            self.judge()

    def _tables(self) -> dict[str, Trouble]:
        """What keeps each table from being read. A table without an entry is well."""
        found = {table: trouble for table, (_, trouble) in self._lost.items()}
        for part, trouble in self._troubles.items():
            found.setdefault(part.table, trouble)
        return found

    def _table_error(self) -> str | None:
        return "; ".join(trouble.error for trouble in self._tables().values()) or None

    def _trouble(self, state: TableState, what: str, before: Trouble | None) -> Trouble:
        """A trouble that begins now, or that continues `before` in another state."""
        now = self._monotonic()
        since, began = (before.since, before.began) if before is not None else (self.clock(), now)
        return Trouble(state, what, since, began, now)

    def _retried_part(self, part: str, error: SourceUnavailable) -> None:
        metrics.SOURCE_FAILURES.inc()
        log.log(self._retried.level((part, error.kind)), "%s cannot be read, and is tried again: %s", part, error)

    def _lag(self) -> float:
        read_to = self._read_to if self._behind else 0
        return max(self.lag_seconds, (self.clock() - read_to) / 1_000_000 if read_to else 0.0)
