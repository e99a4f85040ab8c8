"""What the tests of safety share: certificates, and a daemon on a small SQLite file, which is up in a moment."""

from __future__ import annotations

import json
import sqlite3
import ssl
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.daemon import Daemon
from tests.replay import SQLiteReplayer

TOKEN = "open-sesame-4711"


@dataclass(frozen=True)
class Certificates:
    """Of a CA of our own: a server's for 127.0.0.1, one for another name, one that has ended."""

    folder: Path

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    def cert(self, name: str) -> Path:
        return self.folder / f"{name}.pem"

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def client(self) -> ssl.SSLContext:
        """Trusts that CA alone."""
        return ssl.create_default_context(cafile=self.ca)

    def server(self, name: str) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.cert(name), self.key(name))
        return context

    def make(self, name: str, alternative: str, *, ends: str = "20991231000000Z") -> None:
        """A certificate that the CA signed, which holds until `ends`."""
        (self.folder / "extensions").write_text(
            f"subjectAltName={alternative}\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n"
        )
        self.run("req", *_KEY, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        self.run("ca", "-batch", "-notext", "-config", "ca.cnf", "-cert", "ca.pem", "-keyfile", "ca.key",
                 "-in", f"{name}.csr", "-out", f"{name}.pem", "-extfile", "extensions",
                 "-startdate", "20200101000000Z", "-enddate", ends)  # fmt: skip

    def run(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True, timeout=20)


_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
_CA = """
[ca]
default_ca = tests
[tests]
database = known
serial = number
new_certs_dir = .
default_md = sha256
policy = any
[any]
commonName = supplied
"""


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    made = Certificates(tmp_path_factory.mktemp("certificates"))
    made.run("req", "-x509", *_KEY, "-days", "2", "-subj", "/CN=Tests", "-keyout", "ca.key", "-out", "ca.pem",
             "-addext", "keyUsage=critical,keyCertSign,cRLSign")  # fmt: skip
    (made.folder / "ca.cnf").write_text(_CA)
    (made.folder / "known").touch()
    (made.folder / "number").write_text("01\n")
    made.make("right", "IP:127.0.0.1")
    made.make("other", "DNS:other.example")
    made.make("ended", "IP:127.0.0.1", ends="20200102000000Z")
    made.run("req", "-x509", *_KEY, "-days", "2", "-subj", "/CN=self", "-keyout", "self.key", "-out", "self.pem",
             "-addext", "subjectAltName=IP:127.0.0.1")  # fmt: skip
    return made


@pytest.fixture
async def appliance_file(tmp_path: Path) -> Path:
    """An appliance's tables with some jobs, of every kind of ID."""
    path = tmp_path / "appliance.db"
    async with SQLiteReplayer.connect(path):
        pass
    began = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
    with sqlite3.connect(path) as connection:
        for n, name in enumerate(NAMES):
            connection.execute(
                "INSERT INTO job_tracking (id, job_type, operation, status, started_at, context_id, metadata)"
                " VALUES (?, 'failover', 'unified-live-failover', 'running', ?, 'ctx', ?)",
                (f"00000000-0000-4000-8000-{n:012}", began, json.dumps({"gui_job_id": name})),
            )
            connection.execute(
                "INSERT INTO log_events (job_id, level, message, attrs, ts) VALUES (?, 'WARN', 'a line', ?, ?)",
                (f"00000000-0000-4000-8000-{n:012}", json.dumps({"n": n}), began),
            )
    connection.close()
    return path


NAMES = ("gui-1", "SVR 2019/Prod#1+x", "two\nlines", "<script>alert(1)</script>", "../../etc/passwd", "' OR 1=1 -- ")


@pytest.fixture
async def small(appliance_file: Path, tmp_path: Path) -> AsyncIterator[Daemon]:
    """A daemon on that file, without tokens."""
    daemon = Daemon(tmp_path, database__url=f"sqlite://{appliance_file}")
    try:
        await daemon.start()
        yield daemon
    finally:
        await daemon.close()


@pytest.fixture
async def guarded(appliance_file: Path, tmp_path: Path) -> AsyncIterator[Daemon]:
    """The same, with a token."""
    tokens = tmp_path / "tokens"
    tokens.write_text(f"# one\n{TOKEN}\n")
    daemon = Daemon(tmp_path, database__url=f"sqlite://{appliance_file}", http__tokens_file=tokens)
    try:
        await daemon.start()
        yield daemon
    finally:
        await daemon.close()
