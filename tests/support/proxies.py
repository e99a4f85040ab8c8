"""Real proxies with the configurations of deploy/, but for the addresses, which become free ones of 127.0.0.1.

Names and ports of the file are replaced one for one; a line that is not there any more is an error, so that what is
tested is what is delivered.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.certificates import self_sign
from tests.support.paths import DEPLOY
from tests.support.servers import Server, ServerError, free_port, program

NAME = "gui.example"


def rewritten(text: str, changes: Mapping[str, str]) -> str:
    """`text` with each key replaced, wherever it stands. ServerError: it stands nowhere."""
    for old, new in changes.items():
        if old not in text:
            raise ServerError(f"{old!r} is not in the file any more")
        text = text.replace(old, new)
    return text


class Proxy(Server):
    """The ports take the place of 8686 (the daemon), 8080 (the appliance) and 3000 (the GUI).

    `token`: with the line that replaces the old GUI's own.
    """

    def __init__(self, daemon: int, appliance: int, gui: int, token: str = "") -> None:
        super().__init__()
        self.polled = free_port()
        """Takes the place of 8082, where the old GUI's server asks."""
        self._upstreams = {
            "127.0.0.1:8686": f"127.0.0.1:{daemon}",
            "127.0.0.1:8080": f"127.0.0.1:{appliance}",
            "127.0.0.1:3000": f"127.0.0.1:{gui}",
        }
        self._token = token

    def _with_token(self, text: str, directive: str) -> str:
        if not self._token:
            return text
        commented = f'#{directive} Authorization "Bearer one-of-http.tokens_file"'
        return rewritten(text, {commented: f'{directive} Authorization "Bearer {self._token}"'})

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
        self_sign(certificate, key, NAME)
        changes = {
            **self._upstreams,
            "listen 127.0.0.1:8082": f"listen 127.0.0.1:{self.polled}",
            "listen 443 ssl": f"listen 127.0.0.1:{self.port} ssl",
            f"/etc/ssl/certs/{NAME}.pem": str(certificate),
            f"/etc/ssl/private/{NAME}.key": str(key),
        }
        site = self._with_token(self._delivered(), "proxy_set_header")
        (self.folder / "site.conf").write_text(rewritten(site, changes))
        return nginx(self.folder)

    def _delivered(self) -> str:
        return (DEPLOY / "nginx/correlator.conf").read_text()


class DividingNginx(Nginx):
    """nginx with the file's example for a fleet that gateways divide.

    `some`: the port of the gateway of the appliances dc1 and dc2; `all_`: of that of all appliances.
    """

    def __init__(self, some: int, all_: int) -> None:
        super().__init__(all_, all_, all_)
        self._upstreams |= {"192.0.2.11:8686": f"127.0.0.1:{some}", "192.0.2.13:8686": f"127.0.0.1:{all_}"}

    def _delivered(self) -> str:
        """The file as its comment says: the lines of the example without their marks, and `proxy_pass` by it."""
        text = super()._delivered()
        said = r"\n# In front of .*cluster\.instances.* write\n# (http://\S+) for proxy_pass below\.\n"
        found = re.search(said, text)
        if found is None:
            raise ServerError("the example is not in the file any more")
        example, server, rest = text[found.end() :].partition("\nserver {")
        lines = re.sub("^#   ", "", example, flags=re.MULTILINE)
        old = {"proxy_pass http://127.0.0.1:8686$correlator_request;": f"proxy_pass {found[1]};"}
        return f"{text[: found.start()]}\n{lines}{rewritten(server + rest, old)}"


def nginx(folder: Path) -> Sequence[str]:
    """The command that starts nginx with the servers of `folder`/site.conf and all of its files in `folder`."""
    main = folder / "nginx.conf"
    temporary = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    places = "\n".join(f"    {name}_temp_path {folder}/{name};" for name in temporary)
    main.write_text(
        f"pid {folder}/pid;\ndaemon off;\nworker_processes 1;\nevents {{ worker_connections 200; }}\n"
        f"http {{\n    access_log off;\n{places}\n    include {folder}/site.conf;\n}}\n"
    )
    return [program("nginx"), "-p", str(folder), "-c", str(main), "-e", "stderr"]


class Caddy(Proxy):
    """Caddy, with a certificate of its own authority, all of whose files are in the server's folder."""

    def _prepare(self) -> Sequence[str]:
        changes = {
            **self._upstreams,
            "http://localhost:8082": f"http://localhost:{self.polled}",
            f"\n{NAME} {{": f"\nhttps://{NAME}:{self.port} {{\n\tbind 127.0.0.1",
        }
        site = rewritten(self._with_token((DEPLOY / "caddy/Caddyfile").read_text(), "header_up"), changes)
        return caddy(self.folder, site)


class SignOn(Proxy):
    """Caddy with single sign-on: `sessions` is the port of oauth2-proxy, or of what speaks like it."""

    name = "correlator.example"

    def __init__(self, daemon: int, sessions: int, token: str) -> None:
        super().__init__(daemon, daemon, daemon, token)
        self._sessions = sessions

    @property
    def origin(self) -> str:
        return f"https://{self.name}:{self.port}"

    def _prepare(self) -> Sequence[str]:
        changes = {
            "127.0.0.1:8686": self._upstreams["127.0.0.1:8686"],
            "forward_auth 127.0.0.1:4180": f"forward_auth 127.0.0.1:{self._sessions}",
            "reverse_proxy 127.0.0.1:4180": f"reverse_proxy 127.0.0.1:{self._sessions}",
            f"\n{self.name} {{": f"\nhttps://{self.name}:{self.port} {{\n\tbind 127.0.0.1",
        }
        site = rewritten((DEPLOY / "caddy/oidc.Caddyfile").read_text(), changes)
        return caddy(self.folder, site, CORRELATOR_TOKEN=self._token)


def caddy(folder: Path, site: str, **environ: str) -> Sequence[str]:
    """The command that starts Caddy with this site, a certificate of its own authority, and all files in `folder`."""
    file = folder / "Caddyfile"
    options = "skip_install_trust\n\tlocal_certs\n\tadmin off\n\tauto_https disable_redirects"
    file.write_text(f"{{\n\t{options}\n}}\n{site}")
    given = {"XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder), **environ}
    places = (f"{name}={value}" for name, value in given.items())
    return ["env", *places, program("caddy"), "run", "--adapter", "caddyfile", "--config", str(file)]
