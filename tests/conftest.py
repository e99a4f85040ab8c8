"""What every test can ask for: real servers, an empty schema, the recording."""

import functools
import gc
import hashlib
import itertools
import os
import re
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.appliance import Appliance, connected
from tests.support.daemon import Daemon
from tests.support.leftovers import pytest_configure, pytest_sessionfinish
from tests.support.mariadb import Database, MariaDB
from tests.support.mosquitto import Mosquitto
from tests.support.nats import Nats, NatsCluster, three_servers
from tests.support.replay import Transaction, load, shift
from tests.support.service_manager import ServiceManager

settings.register_profile("default", deadline=None, max_examples=100, print_blob=True)
settings.register_profile("long", settings.get_profile("default"), max_examples=5000)
settings.register_profile("few", settings.get_profile("default"), max_examples=20)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts the tests in the background has SIGINT ignored, which every program under test would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)

gc.disable()  # A process reads all tests before it runs one: a third of that time would be garbage collections.

__all__ = ["pytest_configure", "pytest_sessionfinish"]

_numbers = itertools.count(1)

ALONE = (
    *(f"acceptance/storms/test_{name}.py" for name in ("connections", "lists", "streams", "waiting")),
    "acceptance/storms/test_broker.py::test_a_hostile_broker",
    "acceptance/storms/test_broker.py::test_no_packet",
    "acceptance/test_waiting_requests.py::test_wait_returns_soon",
    "browser/test_speed.py",
    "security/test_random_bytes.py::test_noise_at_every_listener",
)
"""Tests that measure time to the millisecond: `make test` runs them after all others, in turn. Beside them `.ci/run`
runs unit tests on the second Python, which give way to them.

A test that measures memory, or the processor time of its own work, runs beside others, and so does a fault: it mostly
waits, and only `make test-faults` prints its times.
"""


TWICE = re.compile(
    "browser/"  # Playwright needs Python 3.12: on the second one only
    "|unit/test_(?!client_js|config_set|demo|forecast|gaps_machine|growth|index_machine|judging|settling_ends"
    "|streams_random)"  # these compute
    "|contract/test_(?:server_zone|source(?!_sizes))"  # drivers that are compiled for each Python
)
"""Tests that `.ci/run` runs on the second Python too, as what they are about may differ with its library or a package
that is compiled for it. On that Python the whole program runs in Debian 13 as well: `make test-package`.
"""


LONG = ("test_gaps_machine.py", "test_streams_random.py")
"""Unit tests of which one takes seconds."""

NAMES = ("integration/test_webhooks.py::test_an_unwanted_address",)
"""Tests that ask the hosts file. Others choose the addresses of their names (`tests/support/names.py`)."""

TESTS = Path(__file__).parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """True for files that have no test of the marks `alone`, `names` or `twice`, if only such tests are to run."""
    if not collection_path.is_file() or collection_path.name == "conftest.py":
        return None
    where = collection_path.relative_to(TESTS).as_posix()
    only = set(re.findall(r"(?<!not )\b(?:alone|names|twice)\b", config.option.markexpr))
    for mark, tests in (("alone", ALONE), ("names", NAMES)):
        if mark in only and not any(test.startswith(where) or where.startswith(test) for test in tests):
            return True
    return True if "twice" in only and not TWICE.match(where) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        where = f"{_place(item.path)}::{item.name}"
        if where.startswith(ALONE):
            item.add_marker(pytest.mark.alone)
        if where.startswith(NAMES):
            item.add_marker(pytest.mark.names)
        if TWICE.match(where):
            item.add_marker(pytest.mark.twice)
    # Some tests compute and some wait: mixed, they occupy the processors all the time. Each worker begins with an equal
    # share of the list, and gives others what it has not begun, but for two tests: so each share ends with short ones.
    # The order is always the same.
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ordered = sorted(items, key=lambda item: _digest(item.path))
    groups = [[i for i in ordered if not _is_short(i.path)], [i for i in ordered if _is_short(i.path)]]
    items[:] = [i for n in range(workers) for group in groups for i in _share(group, n, workers)]


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@functools.cache
def _place(file: Path) -> str:
    return file.relative_to(TESTS).as_posix()


@functools.cache
def _digest(file: Path) -> bytes:
    return hashlib.sha256(_place(file).encode()).digest()


@functools.cache
def _is_short(file: Path) -> bool:
    """True for a third of the unit tests, of which none takes long."""
    return file.parent == TESTS / "unit" and file.name not in LONG and _digest(file)[0] % 3 == 0


def _share(items: list[pytest.Item], number: int, of: int) -> list[pytest.Item]:
    return items[len(items) * number // of : len(items) * (number + 1) // of]


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    """The server that tests share: do not stop it, ask for `own_mariadb` instead."""
    with MariaDB() as server:
        yield server


@pytest.fixture
async def database(mariadb: MariaDB) -> AsyncIterator[Database]:
    """A current appliance's empty tables, in a database of the test's own on the shared server."""
    database = await mariadb.create_schema(f"appliance_{next(_numbers)}")
    yield database
    await database.drop()


@pytest.fixture
async def two_databases(mariadb: MariaDB) -> AsyncIterator[tuple[Database, Database]]:
    """Two current appliances' empty tables, on the shared server."""
    one, two = [await mariadb.create_schema(f"appliance_{next(_numbers)}") for _ in range(2)]
    yield one, two
    await one.drop()
    await two.drop()


@pytest.fixture(params=["current", "rolled-back"])
async def either_database(request: pytest.FixtureRequest, mariadb: MariaDB) -> AsyncIterator[Database]:
    """Both generations of the schema, one after the other."""
    database = await mariadb.create_schema(f"appliance_{next(_numbers)}", rolled_back=request.param == "rolled-back")
    yield database
    await database.drop()


@pytest.fixture
def own_mariadb() -> Iterator[MariaDB]:
    """A server to kill, pause and restart, without a schema: `await own_mariadb.create_schema()`."""
    with MariaDB() as server:
        yield server


@pytest.fixture(scope="session")
def mosquitto() -> Iterator[Mosquitto]:
    """The broker that tests share: its retained messages stay from test to test."""
    with Mosquitto() as server:
        yield server


@pytest.fixture
def own_mosquitto() -> Iterator[Mosquitto]:
    """An empty broker to kill, pause and restart; it forgets everything when it ends."""
    with Mosquitto() as server:
        yield server


@pytest.fixture
def nats() -> Iterator[Nats]:
    """An empty NATS server with JetStream, to kill, pause and restart."""
    with Nats() as server:
        yield server


@pytest.fixture
def nats_cluster() -> Iterator[NatsCluster]:
    """Three NATS servers of one cluster, for `cluster.replicas` = 3."""
    with three_servers() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def recording() -> list[Transaction]:
    """The recording `mixed` with the times at which it was made: for tests that need no clock."""
    return load()


@pytest.fixture
def mixed(recording: list[Transaction]) -> list[Transaction]:
    """The recording `mixed`, shifted so that it ends just before now."""
    return shift(recording)


@pytest.fixture
async def appliance(database: Database) -> AsyncIterator[Appliance]:
    async with connected(database) as connection:
        yield Appliance(connection)


@pytest.fixture
async def daemon(database: Database, tmp_path: Path) -> AsyncIterator[Daemon]:
    async with Daemon(tmp_path, database__url=database.url) as daemon:
        yield daemon


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    manager = ServiceManager(tmp_path / "notify")
    yield manager
    manager.close()
