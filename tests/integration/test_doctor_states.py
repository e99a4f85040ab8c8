"""Databases as operators leave them: what the doctor says first is true, and what it says to do first changes it.

Each state is broken with a few statements. The doctor examines it; its first finding about the database is compared
with what was broken. Then its first command is run as it stands, and the doctor no longer prints the finding; or the
doctor has no command that repairs, and says who has to decide.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from correlator.config import loading
from correlator.doctor import database, service
from correlator.doctor.daemon import DaemonFindings
from correlator.doctor.report import Check, copyable
from tests.support.eventually import PATIENCE
from tests.support.mariadb import TABLES, Database, MariaDB
from tests.support.package_files import place
from tests.support.root_shell import paste
from tests.support.servers import ServerError, free_port

ACCOUNT = "doctor@'127.0.0.1'"
PASSWORD = "it's secret"

_numbers = itertools.count(1)


@dataclass(frozen=True)
class State:
    """`broken` and `undone`: statements with {} in place of the account. `says`: parts of the first finding's summary
    and details; none: nothing about the database is wrong.

    `decides`: a person has to decide, and the doctor has no command that repairs it. `perhaps`: it has one, which may
    not be what is needed. `config`: keys of the configuration. `held`: connections of the account that are open.
    `locks`: the statement of another session.
    """

    name: str
    broken: tuple[str, ...] = ()
    says: tuple[str, ...] = ()
    decides: bool = False
    perhaps: bool = False
    undone: tuple[str, ...] = ()
    config: dict[str, str] = field(default_factory=dict)
    held: int = 0
    locks: str = ""


def revoked(table: str) -> State:
    return State(f"{table} is not granted", (f"REVOKE SELECT ON {table} FROM {{}}",), (f"no SELECT on {table}",))


def dropped(table: str) -> State:
    return State(f"{table} is dropped", (f"RENAME TABLE {table} TO away",), (f"do not exist: {table}",), decides=True)


def of_columns(table: str, granted: str, missing: str) -> State:
    sql = (f"REVOKE SELECT ON {table} FROM {{}}", f"GRANT SELECT ({granted}) ON {table} TO {{}}")
    return State(f"only {granted} of {table}", sql, (f"no SELECT on {table}.{missing}",))


def without_column(table: str, column: str) -> State:
    sql = f"ALTER TABLE {table} RENAME COLUMN {column} TO away"
    return State(f"{table}.{column} is away", (sql,), (f"do not exist: {table}.{column}",), decides=True)


def of_account(name: str, clause: str, *says: str) -> State:
    return State(name, (f"ALTER USER {{}} {clause}",), says)


def well(name: str, *broken: str) -> State:
    return State(name, broken)


MYISAM = (
    "ALTER TABLE log_events DROP FOREIGN KEY log_events_ibfk_1, DROP FOREIGN KEY log_events_ibfk_2",
    "ALTER TABLE log_events DROP INDEX idx_log_events_external_job_id, ENGINE = MyISAM",
)

STATES = [
    well("nothing is wrong"),
    *(revoked(table) for table in TABLES),
    State("nothing is granted", ("REVOKE ALL PRIVILEGES, GRANT OPTION FROM {}",), ("(1044)", "no privilege")),
    of_columns("log_events", "id, ts, message", "level"),
    of_columns("job_tracking", "id, status", "external_job_id"),
    of_columns("job_steps", "id, job_id", "name"),
    State("more is granted", ("GRANT INSERT ON job_steps TO {}",), ("more than SELECT", "INSERT")),
    State("everything is granted", ("GRANT ALL ON *.* TO {}",), ("more than SELECT", "ALL PRIVILEGES on *.*")),
    *(dropped(table) for table in TABLES),
    *(
        without_column(table, column)
        for table, column in (
            ("log_events", "attrs"),
            ("log_events", "ts"),
            ("job_tracking", "status"),
            ("job_tracking", "metadata"),
            ("job_steps", "seq"),
        )
    ),
    well("the older generation", "ALTER TABLE log_events DROP COLUMN external_job_id"),
    of_account("the password is another", "IDENTIFIED BY 'another'", "(1045)", "its password differs"),
    of_account("the account is locked", "ACCOUNT LOCK", "(4151)", "locked the account"),
    of_account("the password has expired", "PASSWORD EXPIRE", "has expired"),
    of_account("one connection", "WITH MAX_USER_CONNECTIONS 1", "max_user_connections", "needs 9"),
    of_account("few queries an hour", "WITH MAX_QUERIES_PER_HOUR 3", "queries of this hour"),
    State("the account does not exist", ("DROP USER {}",), ("(1045)", "does not exist for this host")),
    State("the account is of another host", ("RENAME USER {} TO doctor@'192.0.2.1'",),
          ("(1045)", "does not exist for this host")),
    State("the server is full", ("SET GLOBAL max_connections = 10",), ("(1040)", "max_connections"), held=10,
          undone=("SET GLOBAL max_connections = 300",)),
    State("the account's connections are used", ("ALTER USER {} WITH MAX_USER_CONNECTIONS 2",),
          ("(1226)", "as many connections as it may have"), held=2),
    State("another database", says=("there is none of this name",), config={"database": "nowhere"}, perhaps=True),
    State("a database that is not there, for an account that sees all", ("GRANT SELECT ON *.* TO {}",),
          ("no database of this name",), config={"database": "nowhere"}, decides=True),
    State("TLS is required of the account", ("ALTER USER {} REQUIRE SSL",), ("(1045)", "require TLS"), perhaps=True),
    State("TLS is required of everybody", ("SET GLOBAL require_secure_transport = ON",), ("(3159)", "[database.tls]"),
          undone=("SET GLOBAL require_secure_transport = OFF",)),
    State("the server is down", ("{down}",), ("no server listens at this address",), undone=("{up}",)),
    State("the server hangs", ("{hang}",), ("no connection within 3 s",), decides=True, undone=("{wake}",)),
    State("another port", says=("no server listens at this address",), config={"port": "{free}"}),
    State("a socket that is missing", says=("no server listens at this address",),
          config={"unix_socket": "/nonexistent/socket"}),
    State("a name without an address", says=("host name leads to no address",), config={"host": "nowhere.invalid"},
          decides=True),
    State("a zone that no job shows", ("SET GLOBAL time_zone = '+05:30'",),
          ("the server is at UTC+05:30",), config={"timezone": "UTC"}, decides=True,
          undone=("SET GLOBAL time_zone = '+00:00'",)),
    State("a zone that jobs show to be wrong", ("{jobs 120}",), ("wrong by 2 h",)),
    State("old jobs of another zone", ("{jobs 0}", "{old jobs 120}")),
    State("a table is locked", says=("has locked the table",), decides=True, locks="LOCK TABLES job_tracking WRITE"),
    State("read-only", ("SET GLOBAL read_only = ON",), undone=("SET GLOBAL read_only = OFF",)),
    well("an index is missing", "ALTER TABLE log_events DROP INDEX idx_log_events_external_job_id"),
    well("a view in place of a table",
         "RENAME TABLE job_steps TO steps", "CREATE VIEW job_steps AS SELECT * FROM steps"),
    well("another engine", *MYISAM),
    well("another character set", "ALTER TABLE failover_jobs CONVERT TO CHARACTER SET latin1"),
    well("another case of columns", "ALTER TABLE job_steps RENAME COLUMN name TO NAME"),
    State("a view of a table that is gone",
          ("RENAME TABLE failover_jobs TO moved", "CREATE VIEW failover_jobs AS SELECT * FROM moved",
           "RENAME TABLE moved TO gone"), ("failover_jobs",), decides=True),
    State("a damaged table", (*MYISAM, *["INSERT INTO log_events (level, message) VALUES ('INFO', 'x')"] * 3,
          "{damage log_events}"), ("log_events", "damaged")),
]  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[MariaDB]:
    with MariaDB() as server:
        yield server


class Appliance:
    """A host with the service, and a database whose account and rights are those of the documents."""

    def __init__(self, folder: Path, tables: Database) -> None:
        self.folder = folder
        self.tables = tables

    def write(self, config: dict[str, str]) -> None:
        server, kept = self.tables.server, dict(config)
        port = str(free_port()) if kept.pop("port", "") else str(server.port)
        host, name = kept.pop("host", "127.0.0.1"), kept.pop("database", self.tables.name)
        keys = {"url": f"mysql://doctor@{host}:{port}/{name}", "connect_timeout": "3s", "query_timeout": "2s"} | kept
        lines = [f'{key} = "{value}"' for key, value in keys.items()]
        loading.DEFAULT_FILE.write_text("\n".join(["[database]", *lines, ""]))
        (self.folder / "etc" / "db-password").write_text(PASSWORD + "\n")

    async def run(self, statement: str) -> None:
        """Run a statement as root, or what stands in braces in its place."""
        server = self.tables.server
        kind, *words = statement.strip("{}").split() if statement.startswith("{") else ("",)
        if kind in ("down", "up"):
            await asyncio.to_thread(server.stop if kind == "down" else self.start)
        elif kind in ("hang", "wake"):
            os.kill(server.pid, signal.SIGSTOP if kind == "hang" else signal.SIGCONT)
        elif kind == "damage":
            await self._damage(words[0])
        elif kind:
            await self._insert(late=int(words[-1]), old=kind == "old")
        else:
            socket = {"unix_socket": str(server.socket)}  # which is open, whatever is required of others
            async with self.tables.connect(**socket) as connection, connection.cursor() as cursor:
                await cursor.execute("SET foreign_key_checks = 0")
                await cursor.execute(statement.replace("{}", ACCOUNT))

    def start(self) -> None:
        """Start the server if it does not run."""
        with contextlib.suppress(ServerError):
            self.tables.server.start()

    async def _insert(self, *, late: int, old: bool) -> None:
        """Insert jobs whose first step seems to begin so many minutes after them."""
        for number in range(26 if old else 6):
            at = datetime.now(UTC) - timedelta(minutes=10 + number, days=old)
            step, job = (f"{when:%Y-%m-%d %H:%M:%S}" for when in (at + timedelta(minutes=late), at))
            name = f"{'old' if old else 'new'} {number}"
            await self.tables.run(
                "SET time_zone = '+00:00'",
                "INSERT INTO job_tracking (id, operation, status, started_at, completed_at)"
                f" VALUES ('{name}', 'op', 'completed', '{job}', '{job}')",
                "INSERT INTO job_steps (job_id, name, seq, status, started_at)"
                f" VALUES ('{name}', 'validation', 1, 'completed', '{step}')",
            )

    async def _damage(self, table: str) -> None:
        await self.tables.run(f"FLUSH TABLES {table}")
        file = self.tables.server.folder / "data" / self.tables.name / f"{table}.MYD"
        await asyncio.to_thread(file.write_bytes, b"\xff" * 64)

    async def found(self) -> list[Check]:
        """What is wrong with the database, first things first, with commands to paste."""
        setting = service.load(None, {"HOME": "/root"})
        async with asyncio.timeout(PATIENCE):
            checks = (await database.inspect(setting, [], DaemonFindings(()))).checks
        wrong = [c for c in checks if c.status == "failure" or (c.status == "warning" and c.name[:9] == "database.")]
        return [copyable(setting, check) for check in wrong]


@pytest.fixture
async def appliance(server: MariaDB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Appliance]:
    tables = await server.create_schema(f"doctor_{next(_numbers)}")
    etc, programs = tmp_path / "etc", tmp_path / "programs"
    etc.mkdir()
    programs.mkdir()
    place(monkeypatch, etc)
    (programs / "ss").write_text(f"#!/bin/sh\n{shutil.which('ss')} $* | grep -F pid=$(cat {server.folder / 'pid'}),\n")
    (programs / "ss").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    await tables.run(
        f'CREATE USER {ACCOUNT} IDENTIFIED BY "{PASSWORD}"',
        *(f"GRANT SELECT ON {table} TO {ACCOUNT}" for table in TABLES),
    )
    yield Appliance(tmp_path, tables)
    hosts = await tables.run("SELECT host FROM mysql.user WHERE user = 'doctor'")
    await tables.run(*(f"DROP USER doctor@'{host}'" for (host,) in hosts))
    await server.run(f"DROP DATABASE {tables.name}")


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.name)
async def test_what_is_said_first_is_true_and_what_is_to_be_done_first_changes_it(appliance: Appliance, state: State):
    appliance.write(state.config)
    async with contextlib.AsyncExitStack() as stack:
        for statement in state.undone:
            stack.push_async_callback(appliance.run, statement)
        for statement in state.broken:
            await appliance.run(statement)
        for _ in range(state.held):
            await stack.enter_async_context(appliance.tables.connect(user="doctor", password=PASSWORD))
        if state.locks:
            other = await stack.enter_async_context(appliance.tables.connect())
            async with other.cursor() as cursor:
                await cursor.execute(state.locks)
        found = await appliance.found()
        if not state.says:
            assert not found
            return
        first = found[0]
        said = "\n".join([first.summary, *first.detail])
        assert all(words in said for words in state.says), said
        if state.decides or state.perhaps:
            assert "somebody has to" in said.lower(), said
            assert bool(first.fix) is state.perhaps, first.fix
            return
        assert first.fix, said
        if "start mariadb" in await paste(appliance.folder, first.fix[:1], mariadb=appliance.tables.server):
            await asyncio.to_thread(appliance.start)
        after = await appliance.found()
        assert first.summary not in [check.summary for check in after], first.fix[0]
