"""A server that is not MariaDB is named before anything else, wherever the daemon meets its first error."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

import pytest

from correlator.errors import Away, SourceUnavailable
from correlator.sources.db.mariadb import Address, MariaDBDatabase
from tests.support.daemon import Daemon, correlator
from tests.support.eventually import PATIENCE, eventually
from tests.support.hostile_database import OK, HostileDatabase, greeting
from tests.support.mariadb import MariaDB

FULL = b"\x01\x04"
"""`caching_sha2_password`: the password is not in the server's cache."""


def refusal(code: int, words: str) -> bytes:
    return b"\xff" + code.to_bytes(2, "little") + b"#HY000" + words.encode()


LOGIN = refusal(1045, "Access denied for user 'u'@'127.0.0.1' (using password: YES)")
STATEMENT = refusal(1193, "Unknown system variable 'max_statement_time'")

MYSQL = {
    "at-the-login": HostileDatabase(greeting(version="8.0.36"), (LOGIN,)),
    "at-the-method": HostileDatabase(greeting("caching_sha2_password", version="8.4.2"), (FULL,)),
    "at-a-statement": HostileDatabase(greeting(version="9.1.0"), (OK, STATEMENT)),
    "of-a-cloud": HostileDatabase(greeting(version="5.7.25-TiDB-v7.5.0"), (LOGIN,)),
}


@pytest.mark.parametrize("driver", ["aiomysql", "asyncmy"])
@pytest.mark.parametrize("where", MYSQL)
async def test_the_first_error_of_another_server_says_what_it_is_and_what_it_answered(driver, where):
    async with MYSQL[where].listening() as port:
        address = Address(port=port, user="u", password="p", database="x")
        database = MariaDBDatabase(address, driver=driver, connect_timeout=PATIENCE, query_timeout=PATIENCE)
        with pytest.raises(SourceUnavailable) as refused:
            await database.open()
    assert refused.value.reason is Away.NOT_MARIADB
    version = MYSQL[where].hello[5:].partition(b"\0")[0].decode()
    kind = "another server" if where == "of-a-cloud" else "MySQL"
    assert f": the server is not MariaDB but {kind}, by the version in its greeting, '{version}'" in str(refused.value)
    answers = {"at-the-method": "the password itself", "at-a-statement": "max_statement_time' (1193)"}
    assert answers.get(where, "(1045)") in str(refused.value)


async def test_readiness_the_log_and_the_doctor_name_it(tmp_path: Path):
    async with MYSQL["at-the-login"].listening() as port, contextlib.AsyncExitStack() as stack:
        daemon = Daemon(tmp_path, database__url=f"mysql://u@127.0.0.1:{port}/x", database__password="p")
        stack.push_async_callback(daemon.close)
        await daemon.start(ready=False)

        async def named() -> bool:
            part = (await daemon.get("/health/ready"))[1]["parts"]["database"]
            return "the database server is not MariaDB: MySQL is not supported" in str(part["error"])

        await eventually(named)
        assert "the server is not MariaDB but MySQL" in daemon.log()
        _, report, _ = await correlator(daemon, "doctor", "-o", "json")
    (check,) = [check for check in json.loads(report)["checks"] if check["name"] == "database.login"]
    assert "is not MariaDB but MySQL" in check["summary"], check
    assert (check["status"], check["fix"]) == ("failure", []), check


@pytest.mark.parametrize("driver", ["aiomysql", "asyncmy"])
async def test_a_mariadb_behind_a_greeting_of_its_own_is_followed(driver):
    """As behind a proxy, or where `version` is set."""
    server = MariaDB("--version=8.0.11")
    await asyncio.to_thread(server.start)
    try:
        database = await server.create_schema()
        address = Address(port=server.port, database=database.name)
        source = MariaDBDatabase(address, driver=driver, connect_timeout=PATIENCE)
        session = await source.open()
        assert await session.query("SELECT COUNT(*) FROM job_tracking") == [(0,)]
        await session.close()
    finally:
        await asyncio.to_thread(server.close)
