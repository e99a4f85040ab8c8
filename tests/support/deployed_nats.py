"""A NATS server with the configuration of deploy/nats, but for ports and places, and certificates for its users."""

from __future__ import annotations

import contextlib
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace

from correlator.cluster import streams
from correlator.cluster.connection import Connection
from correlator.config.schema import Cluster, Tls
from tests.support.certificates import Certificates
from tests.support.cluster import running, settings
from tests.support.nats import PROGRAM, Nats
from tests.support.paths import DEPLOY
from tests.support.proxies import rewritten

CERTIFICATE = "/etc/nats/server.pem"
USERS = ("gateway", "provisioner", "collector-dc1", "collector-dc2", "stranger")
KEY = "/run/credentials/nats-server.service/server.key"


class DeployedNats(Nats):
    """The server of `deploy/nats/nats-server.conf` with the users gateway, collector-dc1 and collector-dc2."""

    def __init__(self) -> None:
        super().__init__()
        self.certificates = Certificates.create(self.folder / "certificates")
        self.certificates.make("127.0.0.1", "IP:127.0.0.1")
        for name in USERS:
            self.certificates.make(name, f"DNS:{name}.example")

    @property
    def url(self) -> str:
        return f"tls://127.0.0.1:{self.port}"

    def _files(self) -> None:
        """Write the configuration with the users of two appliances."""
        for file in (DEPLOY / "nats").glob("*.conf"):
            shutil.copy(file, self.folder)
        one = (self.folder / "collector-dc1.conf").read_text()
        (self.folder / "collector-dc2.conf").write_text(one.replace("dc1", "dc2"))
        accounts = (self.folder / "accounts.conf").read_text()
        # As `sed '/dc1/{p; s/dc1/dc2/g}'` of docs/cluster.md.
        pairs = ((line, line.replace("dc1", "dc2")) for line in accounts.splitlines(keepends=True))
        accounts = "".join(line if line == other else line + other for line, other in pairs)
        (self.folder / "accounts.conf").write_text(accounts)

    def _prepare(self) -> Sequence[str]:
        self._files()
        configuration = self.folder / "nats-server.conf"
        configuration.write_text(rewritten(configuration.read_text(), self._places()))
        return [PROGRAM, "-c", str(configuration)]

    def _places(self) -> Mapping[str, str]:
        return {
            "0.0.0.0:4222": f"127.0.0.1:{self.port}",
            "127.0.0.1:8222": f"127.0.0.1:{self.monitor}",
            CERTIFICATE: str(self.certificates.cert("127.0.0.1")),
            KEY: str(self.certificates.key("127.0.0.1")),
            "/etc/nats/ca.pem": str(self.certificates.ca),
            "/var/lib/nats": str(self.folder / "js"),
        }

    def section(self, user: str, instance: str = "dc1") -> Cluster:
        """The section [cluster] of a process that has the certificate of `user`; "" for none."""
        tls = Tls(ca=self.certificates.ca)
        if user:
            tls = replace(tls, cert=self.certificates.cert(user), key=self.certificates.key(user))
        domain = "" if user == "provisioner" else "correlator"
        return replace(settings(self.url, instance), tls=tls, domain=domain)

    async def create_streams(self) -> None:
        """Create the streams, as the provisioner."""
        async with self.connected("provisioner") as connection:
            await streams.create(connection, 1)

    @contextlib.asynccontextmanager
    async def connected(self, user: str, instance: str = "dc1") -> AsyncIterator[Connection]:
        async with running(Connection(self.section(user, instance), user.partition("-")[0])) as connection:
            yield connection


class DeployedNode(DeployedNats):
    """One of three servers of `deploy/nats/three-nodes.conf`. `routes`: the ports between the three, in their order.

    To each other the servers have the names of the file, which only they can resolve, with a certificate for each.
    """

    def __init__(self, number: int, routes: Sequence[int], certificates: Certificates | None = None) -> None:
        super().__init__()
        self.number, self.routes = number, routes
        self.certificates = certificates or self.certificates
        self.host = f"nats-{number}.example"
        self.certificates.make(self.host, f"DNS:{self.host}")

    def _prepare(self) -> Sequence[str]:
        self._files()
        hosts = [f"nats-{number}.example" for number in (1, 2, 3)]
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost {' '.join(hosts)}\n")
        between = {
            "0.0.0.0:6222": f"127.0.0.1:{self.routes[self.number - 1]}",
            CERTIFICATE: str(self.certificates.cert(self.host)),
            KEY: str(self.certificates.key(self.host)),
        }
        between |= {f"{host}:6222": f"{host}:{port}" for host, port in zip(hosts, self.routes, strict=True)}
        configuration = self.folder / "three-nodes.conf"
        clients, begin, servers = configuration.read_text().partition("\ncluster {")
        configuration.write_text(rewritten(clients + begin + rewritten(servers, between), self._places()))
        names = [f"NATS_NAME=nats-{self.number}", f"NATS_HOST={self.host}"]
        own_mounts = ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else []), "--"]
        with_hosts = ["sh", "-c", 'mount --bind hosts /etc/hosts && exec "$@"', "sh"]
        return [*own_mounts, *with_hosts, "env", *names, PROGRAM, "-c", str(configuration)]

    def healthy(self) -> bool:
        """True if JetStream works: a majority of the three runs."""
        try:
            return super().healthy()
        except urllib.error.HTTPError as error:
            error.close()
            return False

    def _answers(self) -> bool:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.monitor}/varz", timeout=1.0) as answer:
            return bool(answer.status == 200)
