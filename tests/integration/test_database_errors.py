"""What the errors of a real MariaDB mean, by either driver: what readiness and the log say of each."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from correlator.errors import Away, SourceUnavailable
from correlator.sources.db.mariadb import Address, MariaDBDatabase
from tests.support.mariadb import Database, MariaDB
from tests.support.servers import free_port

ACCOUNT = "watched@'%'"


@pytest.fixture(params=["aiomysql", "asyncmy"])
async def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def account(database: Database) -> AsyncIterator[Database]:
    """A database that the account `watched` may read, whose password is `secret`."""
    await database.run(
        f"CREATE USER {ACCOUNT} IDENTIFIED BY 'secret'", f"GRANT SELECT ON `{database.name}`.* TO {ACCOUNT}"
    )
    yield database
    await database.run(f"DROP USER {ACCOUNT}")


async def failed(tables: Database, driver: Any, sql: str = "SELECT 1", **address: Any) -> SourceUnavailable:
    """The error of a login, or of a query after it."""

    async def fails() -> None:
        session = await source.open()
        try:
            for _ in range(50):
                await session.query(sql)
        finally:
            await session.close()

    given: dict[str, Any] = {
        "port": tables.server.port,
        "user": "watched",
        "password": "secret",
        "database": tables.name,
    }
    source = MariaDBDatabase(Address(**({"database": tables.name} | given | address)), driver=driver, query_timeout=4.0)
    with pytest.raises(SourceUnavailable) as error:
        await fails()
    return error.value


LOGINS = [
    (1045, "ALTER USER {} IDENTIFIED BY 'another'", Away.LOGIN_REFUSED, "its password differs"),
    (1045, "ALTER USER {} REQUIRE SSL", Away.LOGIN_REFUSED, "or it requires TLS"),
    (4151, "ALTER USER {} ACCOUNT LOCK", Away.LOGIN_REFUSED, "locked the account"),
    (1820, "ALTER USER {} PASSWORD EXPIRE", Away.LOGIN_REFUSED, "has expired"),
    (1226, "ALTER USER {} WITH MAX_CONNECTIONS_PER_HOUR 1", Away.NO_CONNECTION, "max_connections_per_hour"),
    (1226, "ALTER USER {} WITH MAX_QUERIES_PER_HOUR 6", Away.NO_CONNECTION, "queries of this hour"),
]


@pytest.mark.parametrize(("code", "sql", "reason", "meaning"), LOGINS)
async def test_a_refused_login_says_what_it_means(account, driver, code, sql, reason, meaning):
    await account.run(sql.format(ACCOUNT))
    if code == 1226:
        with contextlib.suppress(SourceUnavailable):
            await (await MariaDBDatabase(Address(port=account.server.port, user="watched", password="secret",
                   database=account.name), driver=driver).open()).close()  # fmt: skip
    error = await failed(account, driver)
    if code == 1820:
        assert error.code in (1820, 1862)
    else:
        assert error.code == code
    assert (error.reason, meaning in error.public, meaning in str(error)) == (reason, True, True), error
    assert "watched" not in error.public


async def test_a_database_that_is_missing_or_not_granted_is_told_apart(account, driver):
    assert (await failed(account, driver, database="nowhere")).code == 1044, "it may not even see whether it exists"
    await account.run(f"GRANT SELECT ON *.* TO {ACCOUNT}")
    error = await failed(account, driver, database="nowhere")
    assert (error.code, error.reason) == (1049, Away.LOGIN_REFUSED)
    assert "no database of this name" in error.public


@pytest.mark.parametrize(
    ("code", "prepare", "sql", "reason", "meaning"),
    [
        (1146, "RENAME TABLE job_steps TO away", "SELECT id FROM job_steps", Away.FAILED, "does not exist"),
        (1969, "SELECT 1", "SELECT SLEEP(60)", Away.SLOW, "max_statement_time"),
    ],
)  # fmt: skip
async def test_a_failed_query_says_what_it_means(account, driver, code, prepare, sql, reason, meaning):
    await account.run(prepare)
    error = await failed(account, driver, sql)
    assert (error.code, error.reason, meaning in error.public) == (code, reason, True), error


async def test_a_locked_table_a_table_without_select_and_a_column_without_it_are_told_apart(account, driver):
    async with account.connect() as connection, connection.cursor() as cursor:
        await cursor.execute("LOCK TABLES log_events WRITE")
        error = await failed(account, driver, "SELECT id FROM log_events")
    assert (error.code, error.reason, "has locked the table" in error.public) == (1205, Away.LOCKED, True)
    await account.run(f"REVOKE SELECT ON `{account.name}`.* FROM {ACCOUNT}")
    await account.run(f"GRANT SELECT (id) ON log_events TO {ACCOUNT}")
    for code, sql in ((1142, "SELECT id FROM job_steps"), (1143, "SELECT ts FROM log_events")):
        error = await failed(account, driver, sql)
        assert (error.code, error.reason) == (code, Away.MISSING_GRANTS)


async def test_a_server_that_is_full_or_accepts_tls_only_says_so(own_mariadb: MariaDB, driver):
    database = await own_mariadb.create_schema()
    await database.run(f"CREATE USER {ACCOUNT} IDENTIFIED BY 'secret'", f"GRANT SELECT ON *.* TO {ACCOUNT}")
    async with database.connect() as root, root.cursor() as cursor:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(10):
                await stack.enter_async_context(database.connect(user="correlator"))
            # The limit comes after its connections: the server counts those that have ended for a moment longer.
            await cursor.execute("SET GLOBAL max_connections = 10")
            error = await failed(database, driver)
            assert (error.code, error.reason, "max_connections" in error.public) == (1040, Away.UNREACHABLE, True)
        await cursor.execute("SET GLOBAL max_connections = 100, GLOBAL require_secure_transport = ON")
    error = await failed(database, driver)
    assert (error.code, error.reason) == (3159, Away.LOGIN_REFUSED)
    assert "[database.tls] is not set" in error.public


async def test_an_address_without_a_server_and_a_name_without_an_address_are_told_apart(account, driver):
    error = await failed(account, driver, port=free_port())
    assert (error.reason, "no server listens at this address" in error.public) == (Away.UNREACHABLE, True), error
    error = await failed(account, driver, host="nowhere.invalid")
    assert (error.reason, "host name leads to no address" in error.public) == (Away.UNREACHABLE, True), error
    error = await failed(account, driver, unix_socket="/nonexistent/socket")
    assert (error.reason, "no server listens at this address" in error.public) == (Away.UNREACHABLE, True), error
