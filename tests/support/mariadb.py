"""A private MariaDB server with the appliance's schema.

If $TEST_MARIADB names a folder, `mariadbd` and `mariadb-install-db` are run from there (`make test-versions`).
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiomysql

from tests.support.eventually import PATIENCE
from tests.support.paths import DATA, REPOSITORY
from tests.support.servers import Server, program, run_program

SCHEMA = DATA / "appliance.sql"
TABLES = ("job_tracking", "job_steps", "log_events", "failover_jobs")
ROLLED_BACK = {"log_events": ("external_job_id",), "job_tracking": ("job_category", "context_id")}
"""The columns that do not exist on an appliance that rolled its schema change back."""


class MariaDB(Server):
    """A MariaDB server with the accounts `root` (everything) and `correlator` (nothing yet), both without a password.

    It is as durable as a fresh installation (a commit is on disk); small buffers, no binary log and no performance
    schema make it quick to start. `arguments` are added to the command line: `MariaDB("--auto-increment-increment=3")`.
    """

    def __init__(self, *arguments: str, time_zone: str = "+00:00") -> None:
        super().__init__()
        self.arguments = arguments
        self.time_zone = time_zone

    @property
    def socket(self) -> Path:
        """The Unix socket, for `unix_socket`."""
        return self.folder / "socket"

    @asynccontextmanager
    async def connect(
        self, database: str | None = None, *, user: str = "root", autocommit: bool = True, **options: Any
    ) -> AsyncIterator[aiomysql.Connection]:
        """A connection, which as root may do everything; `options` go to aiomysql.connect."""
        connection = await aiomysql.connect(
            host="127.0.0.1",
            port=self.port,
            user=user,
            db=database,
            charset="utf8mb4",
            autocommit=autocommit,
            connect_timeout=PATIENCE,
            **options,
        )
        try:
            yield connection
        finally:
            connection.close()

    async def run(self, *statements: str, database: str | None = None) -> list[tuple[Any, ...]]:
        """Run statements as root, one after the other; return the rows of the last one."""
        async with self.connect(database) as connection, connection.cursor() as cursor:
            for statement in statements:
                await cursor.execute(statement)
            return list(await cursor.fetchall())

    async def create_schema(self, name: str = "migratekit_oma", *, rolled_back: bool = False) -> Database:
        """The appliance's four empty tables in a new database, which `correlator` may SELECT from."""
        async with self.connect() as connection, connection.cursor() as cursor:
            await cursor.execute(f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci")
            await connection.select_db(name)
            for statement in _statements(SCHEMA.read_text()):
                await cursor.execute(statement)
            if rolled_back:
                for table, columns in ROLLED_BACK.items():  # an index goes with its only column
                    await cursor.execute(f"ALTER TABLE {table} {', '.join(f'DROP COLUMN {name}' for name in columns)}")
            for table in TABLES:
                await cursor.execute(f"GRANT SELECT ON `{name}`.{table} TO correlator@'%'")
        return Database(self, name, rolled_back)

    def _prepare(self) -> Sequence[str]:
        data = self.folder / "data"
        if not data.exists():
            shutil.copytree(_fresh_data_folder(), data)
        accounts = self.folder / "accounts.sql"
        accounts.write_text(
            "CREATE USER IF NOT EXISTS root@'127.0.0.1';\n"
            "GRANT ALL PRIVILEGES ON *.* TO root@'127.0.0.1' WITH GRANT OPTION;\n"
            "CREATE USER IF NOT EXISTS correlator@'%';\n"
        )
        return [
            program("mariadbd"),
            "--no-defaults",
            f"--datadir={data}",
            f"--socket={self.socket}",
            f"--pid-file={self.folder / 'pid'}",
            f"--tmpdir={self.folder}",
            f"--init-file={accounts}",
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            f"--default-time-zone={self.time_zone}",
            "--skip-name-resolve",
            "--skip-log-bin",
            "--performance-schema=OFF",
            "--max-connections=300",
            f"--ssl-cert={data / CERTIFICATE}",
            f"--ssl-key={data / KEY}",
            *_MARIADB_SIZES,
            *_as_root(),
            *self.arguments,
        ]

    def _answers(self) -> bool:
        # The server speaks first, and only when it has read its init file: one byte of its greeting is enough.
        with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as client:
            return bool(client.recv(1))


@dataclass(frozen=True)
class Database:
    """The appliance's schema in one database of a server."""

    server: MariaDB
    name: str
    rolled_back: bool

    @property
    def url(self) -> str:
        """As `database.url` in the configuration: the account that may only SELECT."""
        return f"mysql://correlator@127.0.0.1:{self.server.port}/{self.name}"

    @asynccontextmanager
    async def connect(self, **options: Any) -> AsyncIterator[aiomysql.Connection]:
        """A connection to this database, with the options of `MariaDB.connect`."""
        async with self.server.connect(self.name, **options) as connection:
            yield connection

    async def run(self, *statements: str) -> list[tuple[Any, ...]]:
        """As `MariaDB.run`, in this database."""
        return await self.server.run(*statements, database=self.name)

    async def drop(self) -> None:
        """Removes the database, and the grants on it: MariaDB would keep those."""
        async with self.server.connect() as connection, connection.cursor() as cursor:
            await cursor.execute(f"DROP DATABASE `{self.name}`")
            for table in TABLES:
                await cursor.execute(f"REVOKE SELECT ON `{self.name}`.{table} FROM correlator@'%'")


CERTIFICATE, KEY = "server.pem", "server.key"
"""Files of a data folder. Without them a server makes a self-signed certificate at each start: 0.5 s of CPU."""

_MARIADB_SIZES = (
    "--innodb-buffer-pool-size=64M",
    "--innodb-log-file-size=16M",
    "--innodb-log-buffer-size=4M",
    "--key-buffer-size=1M",
    "--aria-pagecache-buffer-size=8M",
)


@functools.cache
async def replicates(server: MariaDB, replica: MariaDB, database: Database, *, delay: int) -> None:
    """`replica` gets what `server` commits, so many seconds later."""
    await replica.create_schema(database.name)
    (name, position, *_), *_ = await server.run("SHOW MASTER STATUS")
    await server.run("CREATE USER replica@'%'", "GRANT REPLICATION SLAVE ON *.* TO replica@'%'")
    await replica.run(
        f"CHANGE MASTER TO master_host = '127.0.0.1', master_port = {server.port}, master_user = 'replica',"
        f" master_log_file = '{name}', master_log_pos = {position}, master_delay = {delay}, master_use_gtid = no",
        "START SLAVE",
    )


def _fresh_data_folder() -> Path:
    """A data folder as mariadb-install-db leaves it: one for each version of the server, in build/, for all processes.

    A copy of it is ten times as fast.
    """
    version = run_program(program("mariadbd"), "--version")
    key = hashlib.sha256(f"{version} {CERTIFICATE} {_MARIADB_SIZES} {os.getuid()}".encode()).hexdigest()
    folder = REPOSITORY / "build" / "mariadb" / key[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            _install(folder)
    return folder


def _install(folder: Path) -> None:
    """Make a data folder. It is in a temporary folder until it is complete."""
    complete = folder.with_suffix(".new")
    shutil.rmtree(complete, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="correlator-") as made:
        run_program(
            program("mariadb-install-db"),
            "--no-defaults",
            f"--datadir={made}/data",
            f"--tmpdir={made}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            "--force",  # also where the host's own name leads nowhere
            *_MARIADB_SIZES,
            *_as_root(),
        )
        run_program(
            *(program("openssl"), "req", "-x509", "-days", "3650", "-subj", "/CN=MariaDB Server", "-nodes"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-keyout", f"{made}/data/{KEY}", "-out", f"{made}/data/{CERTIFICATE}"),
        )
        shutil.copytree(Path(made) / "data", complete)
    complete.rename(folder)


def _as_root() -> Iterable[str]:
    """mariadbd refuses to run as root without `--user`."""
    return ("--user=root",) if os.getuid() == 0 else ()


def _statements(script: str) -> list[str]:
    """The statements of the schema, whose texts hold neither `--` nor `;`."""
    return [part.strip() for part in re.sub(r"--.*", "", script).split(";") if part.strip()]
