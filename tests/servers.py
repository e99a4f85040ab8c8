"""Real servers for the tests: private, on loopback ports of their own, in temporary folders.

What always holds: a server is stopped by its own process id and every wait has a deadline; `kill` and `start` again
keep the port and the files. All methods of a server block for a moment (MariaDB's start for about a second): where the
same event loop runs the program under test, call them with `asyncio.to_thread`.

Where $TEST_MARIADB names a folder, `mariadbd` and `mariadb-install-db` are run from there (`make test-versions`).
"""

import asyncio
import atexit
import functools
import inspect
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, overload

import aiomysql

T = TypeVar("T")

SCHEMA = Path(__file__).parent / "data" / "appliance.sql"
TABLES = ("job_tracking", "job_steps", "log_events", "failover_jobs")
ROLLED_BACK = {"log_events": ("external_job_id",), "job_tracking": ("context_id", "job_category")}
"""The columns that do not exist on an appliance that rolled its schema change back."""

START_SECONDS = 30.0
STOP_SECONDS = 20.0


class ServerError(Exception):
    """A server program is missing, does not start, or does not stop."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on.

    It is below the range that the kernel takes outgoing ports from: a client that keeps trying a port of that range
    while its server is down will one day be given the same port as its own, and connect to itself.
    """
    for _ in range(1000):
        port = random.randint(15000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ServerError("no free port between 15000 and 32000")


@overload
async def eventually(condition: Callable[[], Awaitable[T]], *, within: float = ..., every: float = ...) -> T: ...
@overload
async def eventually(condition: Callable[[], T], *, within: float = ..., every: float = ...) -> T: ...
async def eventually(condition: Callable[[], Any], *, within: float = 5.0, every: float = 0.02) -> Any:
    """The first true value of `condition()`, which may be a coroutine function; AssertionError after `within` seconds.

    A failed assertion, a missing key or index and a refused connection mean "not yet"; any other exception passes
    through. The error tells the last value, or has the last exception as its cause.
    """
    deadline = time.monotonic() + within
    last: object = None
    cause: Exception | None = None
    while True:
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                value = condition()
                if inspect.isawaitable(value):
                    value = await value
            last, cause = value, None
            if value:
                return value
        except (AssertionError, LookupError, OSError) as error:  # TimeoutError is an OSError
            cause = error
        if time.monotonic() >= deadline:
            told = f"last value: {last!r}" if cause is None else f"last exception: {cause!r}, last value: {last!r}"
            raise AssertionError(f"not within {within} s; {told}") from cause
        await asyncio.sleep(every)


class Server(ABC):
    """A server process with a folder and a port, both its own until `close`."""

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="correlator-"))
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def _prepare(self) -> Sequence[str]:
        """Writes what the server needs into its folder; returns its command line."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether the server talks to a client; OSError while nobody listens."""

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        return self._running().pid

    def start(self) -> None:
        """Starts, or starts again: returns when clients can connect. ServerError with the server's log otherwise."""
        if self._process is not None:
            raise ServerError(f"{type(self).__name__} is running already")
        command = self._prepare()
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._ready():
            if self._process.poll() is not None:
                code, self._process = self._process.returncode, None
                raise ServerError(f"{command[0]} ended with {code}:\n{self.log()}")
            if time.monotonic() > deadline:
                self.kill()
                raise ServerError(f"{command[0]} did not answer within {START_SECONDS:.0f} s:\n{self.log()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """SIGTERM; SIGKILL and a ServerError if that does not end it in time. Nothing to do if it is not running."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ServerError(
                f"{type(self).__name__} ignored SIGTERM for {STOP_SECONDS:.0f} s:\n{self.log()}"
            ) from None
        self._process = None

    def kill(self) -> None:
        """SIGKILL: the server writes nothing more and its connections break."""
        process = self._running()
        process.kill()
        process.wait(STOP_SECONDS)
        self._process = None

    def pause(self) -> None:
        """SIGSTOP: connections stay open, nothing answers, new connections are accepted by the kernel alone.

        Returns when it has stopped: its threads go on for a moment after the signal.
        """
        process = self._running()
        process.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + 1.0  # one that is stopped already is not told of again
        while os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOHANG) is None and time.monotonic() < deadline:
            time.sleep(0.001)

    def resume(self) -> None:
        """SIGCONT, after `pause`."""
        self._running().send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Stops the server and removes its folder."""
        try:
            self.stop()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def log(self) -> str:
        """The end of what the server wrote."""
        path = self.folder / "log"
        return path.read_text(errors="replace")[-4000:] if path.exists() else ""

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServerError(f"{type(self).__name__} is not running")
        return self._process

    def _ready(self) -> bool:
        try:
            return self._answers()
        except OSError:
            return False

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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
            connect_timeout=10,
            **options,
        )
        try:
            yield connection
        finally:
            connection.close()

    async def create_schema(self, name: str = "migratekit_oma", *, rolled_back: bool = False) -> "Database":
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
            _program("mariadbd"),
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

    async def drop(self) -> None:
        """Removes the database, and the grants on it: MariaDB would keep those."""
        async with self.server.connect() as connection, connection.cursor() as cursor:
            await cursor.execute(f"DROP DATABASE `{self.name}`")
            for table in TABLES:
                await cursor.execute(f"REVOKE SELECT ON `{self.name}`.{table} FROM correlator@'%'")


class Mosquitto(Server):
    """An MQTT broker: anonymous, or with `users` (name → password).

    With `persistence` it writes its store each second and at stop. `settings` are further lines of its configuration:
    `Mosquitto("max_packet_size 100000")`.
    """

    def __init__(self, *settings: str, users: Mapping[str, str] | None = None, persistence: bool = False) -> None:
        super().__init__()
        self.settings = settings
        self.users = dict(users or {})
        self.persistence = persistence

    @property
    def url(self) -> str:
        """As `mqtt.url` in the configuration."""
        return f"mqtt://127.0.0.1:{self.port}"

    def _prepare(self) -> Sequence[str]:
        lines = [
            f"listener {self.port} 127.0.0.1",
            "max_queued_messages 0",
            "log_dest stdout",
            "set_tcp_nodelay true",
            *self.settings,
        ]
        if os.getuid() == 0:
            lines.append("user root")
        if self.persistence:
            lines += ["persistence true", f"persistence_location {self.folder}/", "autosave_interval 1"]
        if self.users:
            passwords = self.folder / "passwords"
            passwords.unlink(missing_ok=True)
            passwords.touch(mode=0o600)
            for name, password in self.users.items():
                _run(_program("mosquitto_passwd"), "-b", str(passwords), name, password)
            lines += ["allow_anonymous false", f"password_file {passwords}"]
        else:
            lines.append("allow_anonymous true")
        configuration = self.folder / "mosquitto.conf"
        configuration.write_text("\n".join(lines) + "\n")
        return [_program("mosquitto"), "-c", str(configuration)]

    def _answers(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=1.0):
            return True


_MARIADB_SIZES = (
    "--innodb-buffer-pool-size=64M",
    "--innodb-log-file-size=16M",
    "--innodb-log-buffer-size=4M",
    "--key-buffer-size=1M",
    "--aria-pagecache-buffer-size=8M",
)


@functools.cache
def _fresh_data_folder() -> Path:
    """A data folder as mariadb-install-db leaves it, made once a process: the copy is ten times as fast."""
    folder = Path(tempfile.mkdtemp(prefix="correlator-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _run(
        _program("mariadb-install-db"),
        "--no-defaults",
        f"--datadir={folder / 'data'}",
        f"--tmpdir={folder}",
        "--auth-root-authentication-method=normal",
        "--skip-test-db",
        "--force",  # also where the host's own name leads nowhere
        *_MARIADB_SIZES,
        *_as_root(),
    )
    return folder / "data"


def _as_root() -> Iterable[str]:
    """mariadbd refuses to run as root unless told to."""
    return ("--user=root",) if os.getuid() == 0 else ()


def _program(name: str) -> str:
    """Debian keeps servers where only root looks."""
    places = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin"
    if name.startswith("mariadb"):
        places = os.environ.get("TEST_MARIADB") or places  # the one that was asked for, or none
    found = shutil.which(name, path=places)
    if found is None:
        raise ServerError(f"{name} is not installed: make test says which packages bring the servers")
    return found


def _run(*command: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    if done.returncode != 0:
        told = (done.stdout + done.stderr).decode(errors="replace")[-4000:]
        raise ServerError(f"{command[0]} ended with {done.returncode}:\n{told}")


def _statements(script: str) -> list[str]:
    """The statements of the schema, whose texts hold neither `--` nor `;`."""
    return [part.strip() for part in re.sub(r"--.*", "", script).split(";") if part.strip()]
