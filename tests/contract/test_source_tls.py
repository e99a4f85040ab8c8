"""TLS towards MariaDB: whom we trust, whom we do not, and nothing in the clear where TLS was asked for."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from correlator.errors import SourceUnavailable
from correlator.settings import Tls
from correlator.sources.mariadb import Address, MariaDBDatabase
from correlator.tls import client_context
from tests.servers import Database, MariaDB

CIPHER = "SHOW SESSION STATUS LIKE 'Ssl_cipher'"


@dataclass(frozen=True)
class Authority:
    """A CA of our own, and a server's certificate that it signed, for 127.0.0.1 alone."""

    folder: Path

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    @classmethod
    def make(cls, folder: Path) -> Authority:
        folder.mkdir()
        run = (
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        )
        # From Python 3.13 on a CA has to say that it may sign, and a certificate by which key it was signed.
        may_sign = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
        _run(folder, *run, "-subj", "/CN=tests", "-keyout", "ca.key", "-out", "ca.pem", *may_sign)
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1")
        leaf = ("-addext", "basicConstraints=critical,CA:FALSE", "-addext", "authorityKeyIdentifier=keyid")
        _run(folder, *run, "-subj", "/CN=mariadb", "-keyout", "server.key", "-out", "server.pem", *signed, *leaf)
        return cls(folder)


def _run(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=20)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def secured(authority: Authority) -> Iterator[MariaDB]:
    """A server with that certificate."""
    folder = authority.folder
    arguments = (f"--ssl-cert={folder / 'server.pem'}", f"--ssl-key={folder / 'server.key'}")
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


def source(database: Database, driver, tls: Tls | None, **where) -> MariaDBDatabase:
    context = client_context(tls) if tls is not None else None
    address = Address(**{"port": database.server.port, "database": database.name, "tls": context, **where})
    return MariaDBDatabase(address, driver=driver, connect_timeout=3.0)


async def cipher(database: MariaDBDatabase) -> str:
    session = await database.open()
    ((_, name),) = await session.query(CIPHER)
    await session.close()
    return str(name)


async def test_the_right_ca_is_enough(secured, authority, driver):
    async with schema(secured) as database:
        assert (await cipher(source(database, driver, Tls(ca=authority.ca)))).startswith("TLS_")
        assert await cipher(source(database, driver, None)) == ""


async def test_a_certificate_of_another_ca_is_refused_and_it_is_said_why(secured, driver, tmp_path):
    other = Authority.make(tmp_path / "other")
    async with schema(secured) as database:
        for tls in (Tls(ca=other.ca), Tls()):
            with pytest.raises(SourceUnavailable, match="certificate verify failed"):
                await source(database, driver, tls).open()


async def test_a_certificate_for_another_name_is_refused(secured, authority, driver):
    async with schema(secured) as database:
        with pytest.raises(SourceUnavailable, match="certificate is not valid for 'localhost'"):
            await source(database, driver, Tls(ca=authority.ca), host="localhost").open()


async def test_without_verification_any_certificate_is_taken_and_all_is_encrypted(secured, driver):
    async with schema(secured) as database:
        assert (await cipher(source(database, driver, Tls(verify=False)))).startswith("TLS_")


@pytest.mark.parametrize("verify", [True, False])
async def test_a_server_without_tls_is_refused_where_tls_was_asked_for(plain, authority, driver, verify):
    async with schema(plain) as database:
        assert await cipher(source(database, driver, None)) == ""
        with pytest.raises(SourceUnavailable, match=r"database\.tls is set, but the server offers no TLS"):
            await source(database, driver, Tls(ca=authority.ca, verify=verify)).open()
