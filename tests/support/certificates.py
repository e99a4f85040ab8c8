"""Certificates for tests, made with openssl: an authority, its certificates, and self-signed ones."""

from __future__ import annotations

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

from correlator.tls import default_context
from tests.support.eventually import PATIENCE

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


@dataclass(frozen=True)
class Certificates:
    """A certificate authority in `folder`, and the certificates that it has signed, each under a name."""

    folder: Path

    @classmethod
    def create(cls, folder: Path) -> Certificates:
        """A new authority without certificates. `folder` is made."""
        folder.mkdir(exist_ok=True)
        made = cls(folder)
        # From Python 3.13 on a CA has to state that it may sign.
        made._openssl("req", "-x509", *_KEY, "-days", "2", "-subj", "/CN=Tests", "-keyout", "ca.key", "-out", "ca.pem",
                      "-addext", "keyUsage=critical,keyCertSign,cRLSign")  # fmt: skip
        (folder / "ca.cnf").write_text(_CA)
        (folder / "known").touch()
        (folder / "number").write_text("01\n")
        return made

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    def cert(self, name: str) -> Path:
        return self.folder / f"{name}.pem"

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def client(self) -> ssl.SSLContext:
        """Trusts this authority alone."""
        return default_context(ca=self.ca)

    def server(self, name: str) -> ssl.SSLContext:
        context = default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.cert(name), self.key(name))
        return context

    def make(self, name: str, alternative: str, *, ends: str = "20991231000000Z") -> None:
        """A certificate for the subject name `alternative`, valid until `ends`."""
        (self.folder / "extensions").write_text(
            f"subjectAltName={alternative}\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n"
        )
        self._openssl("req", *_KEY, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        self._openssl("ca", "-batch", "-notext", "-config", "ca.cnf", "-cert", "ca.pem", "-keyfile", "ca.key",
                      "-in", f"{name}.csr", "-out", f"{name}.pem", "-extfile", "extensions",
                      "-startdate", "20200101000000Z", "-enddate", ends)  # fmt: skip

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True, timeout=PATIENCE)


def self_sign(certificate: Path, key: Path, name: str, *options: str) -> None:
    """Write a self-signed certificate for the common name `name`, valid for two days, and its key."""
    subject = ("-days", "2", "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(certificate))
    command = ["openssl", "req", "-x509", *_KEY, *subject, *options]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
