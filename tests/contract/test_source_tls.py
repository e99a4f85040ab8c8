"""TLS towards MariaDB: which servers are trusted, and that nothing is sent in the clear if TLS is configured."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from correlator.config.schema import Tls, client_context
from correlator.errors import SourceUnavailable
from correlator.sources.db.mariadb import Address, MariaDBDatabase
from tests.support.certificates import Certificates
from tests.support.eventually import PATIENCE
from tests.support.mariadb import Database, MariaDB

CIPHER = "SHOW SESSION STATUS LIKE 'Ssl_cipher'"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    made = Certificates.create(tmp_path_factory.mktemp("tls"))
    made.make("server", "IP:127.0.0.1")
    return made


@pytest.fixture(scope="module")
def secured(authority: Certificates) -> Iterator[MariaDB]:
    """A server with that certificate."""
    arguments = (f"--ssl-cert={authority.cert('server')}", f"--ssl-key={authority.key('server')}")
    with MariaDB(*arguments, f"--ssl-ca={authority.ca}") as server:
        yield server


@pytest.fixture(scope="module")
def plain() -> Iterator[MariaDB]:
    """A server without TLS."""
    with MariaDB("--skip-ssl") as server:
        yield server


@contextlib.asynccontextmanager
async def schema(server: MariaDB):
    database = await server.create_schema()
    try:
        yield database
    finally:
        await database.drop()


def source(database: Database, driver, tls: Tls | None) -> MariaDBDatabase:
    context = client_context(tls) if tls is not None else None
    address = Address(port=database.server.port, database=database.name, tls=context)
    return MariaDBDatabase(address, driver=driver, connect_timeout=PATIENCE)


async def cipher(database: MariaDBDatabase) -> str:
    session = await database.open()
    ((_, name),) = await session.query(CIPHER)
    await session.close()
    return str(name)


async def test_all_is_encrypted_with_the_right_ca_or_unverified_and_no_other_ca_is_trusted(secured, authority, driver):
    async with schema(secured) as database:
        for trusting in (Tls(ca=authority.ca), Tls(verify=False)):
            assert (await cipher(source(database, driver, trusting))).startswith("TLS_")
        assert await cipher(source(database, driver, None)) == ""
        with pytest.raises(SourceUnavailable, match="certificate verify failed"):
            await source(database, driver, Tls()).open()


@pytest.mark.parametrize("verify", [True, False])
async def test_a_server_without_tls_is_refused_where_tls_was_asked_for(plain, authority, driver, verify):
    async with schema(plain) as database:
        assert await cipher(source(database, driver, None)) == ""
        with pytest.raises(SourceUnavailable, match=r"database\.tls is set, but the server offers no TLS"):
            await source(database, driver, Tls(ca=authority.ca, verify=verify)).open()
