"""Real proxies with the configurations of deploy/, but for the addresses, which become free ones of 127.0.0.1.

Names and ports of the file are replaced one for one; a line that is not there any more is an error, so that what is
tested is what is delivered.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.daemon import REPOSITORY
from tests.servers import Server, ServerError, _program

DEPLOY = REPOSITORY / "deploy"
NAME = "gui.example"


def rewritten(text: str, changes: Mapping[str, str]) -> str:
    """`text` with each key replaced, wherever it stands. ServerError: it stands nowhere."""
    for old, new in changes.items():
        if old not in text:
            raise ServerError(f"{old!r} is not in the file any more")
        text = text.replace(old, new)
    return text


class Proxy(Server):
    """`upstreams`: the ports that take the place of 8686 (the daemon), 8080 (the appliance) and 3000 (the GUI)."""

    def __init__(self, daemon: int, appliance: int, gui: int) -> None:
        super().__init__()
        self._upstreams = {
            "127.0.0.1:8686": f"127.0.0.1:{daemon}",
            "127.0.0.1:8080": f"127.0.0.1:{appliance}",
            "127.0.0.1:3000": f"127.0.0.1:{gui}",
        }

    @property
    def origin(self) -> str:
        """What a browser has in its address bar; the name is to be looked up at 127.0.0.1."""
        return f"https://{NAME}:{self.port}"

    def _answers(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=1.0):
            return True


class Nginx(Proxy):
    """nginx, with a certificate that nobody signed."""

    def _prepare(self) -> Sequence[str]:
        certificate, key = self.folder / "certificate.pem", self.folder / "key.pem"
        certify(certificate, key)
        changes = {
            **self._upstreams,
            "listen 443 ssl": f"listen 127.0.0.1:{self.port} ssl",
            f"/etc/ssl/certs/{NAME}.pem": str(certificate),
            f"/etc/ssl/private/{NAME}.key": str(key),
        }
        (self.folder / "site.conf").write_text(rewritten((DEPLOY / "nginx/correlator.conf").read_text(), changes))
        main = self.folder / "nginx.conf"
        temporary = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        places = "\n".join(f"    {name}_temp_path {self.folder}/{name};" for name in temporary)
        main.write_text(
            f"pid {self.folder}/pid;\ndaemon off;\nworker_processes 1;\nevents {{ worker_connections 200; }}\n"
            f"http {{\n    access_log off;\n{places}\n    include {self.folder}/site.conf;\n}}\n"
        )
        return [_program("nginx"), "-p", str(self.folder), "-c", str(main), "-e", "stderr"]


def certify(certificate: Path, key: Path) -> None:
    """Write a certificate for `NAME` that nobody signed, and its key."""
    command = f"{_program('openssl')} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    written = ["-subj", f"/CN={NAME}", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *written], check=True, capture_output=True, timeout=30)


class Caddy(Proxy):
    """Caddy, with a certificate of its own authority, all of whose files are in the server's folder."""

    def _prepare(self) -> Sequence[str]:
        file = self.folder / "Caddyfile"
        changes = {**self._upstreams, f"\n{NAME} {{": f"\nhttps://{NAME}:{self.port} {{\n\tbind 127.0.0.1"}
        options = "skip_install_trust\n\tlocal_certs\n\tadmin off"
        site = rewritten((DEPLOY / "caddy/Caddyfile").read_text(), changes)
        file.write_text(f"{{\n\t{options}\n\tauto_https disable_redirects\n}}\n{site}")
        places = (f"XDG_DATA_HOME={self.folder}", f"XDG_CONFIG_HOME={self.folder}")
        return ["env", *places, _program("caddy"), "run", "--adapter", "caddyfile", "--config", str(file)]
