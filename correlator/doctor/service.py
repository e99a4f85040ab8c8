"""The environment of the systemd service, which a shell does not have: credentials and state directory.

The doctor is started from a shell. With the configuration of /etc/correlator it examines the service, so it uses the
service's credentials and state directory unless the shell's environment sets others. It reads the credentials from
their source files: the running service has the copies that were made at its start.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import pwd
import re
import shutil
import ssl
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from msgspec import Struct

from correlator.config import loading as config
from correlator.config.schema import Config, leaves
from correlator.config.tokens import SCOPES, AcceptedToken
from correlator.config.values import MysqlUrl
from correlator.errors import ConfigError
from correlator.tls import default_context

UNIT, GATEWAY_UNIT = "correlator.service", "correlator-gateway.service"
GATEWAY_FILE = config.DEFAULT_FILE.with_name("gateway.toml")
CREDENTIALS = Path("/run/credentials") / UNIT
STATE = Path("/var/lib/correlator")
ALIVE_WITHIN = 4.0
"""Seconds within which a daemon has to answer `unhealthy`."""

ASK_EVERY = 0.5

UNIT_FILES = tuple(Path(folder, UNIT) for folder in ("/etc/systemd/system", "/usr/lib/systemd/system"))

SECRETS = (*(key.credential for _, key in leaves() if key.credential), "cluster-key", "gateway-key", "tls-key")
"""The credentials of the units; those of webhooks and of tokens have names of their own."""

WITHIN = 5.0


class Setting(Struct, frozen=True):
    """A configuration and its source.

    `environ`: the environment that it was read with; `files`: all that were read, `file` among them; `gateway`: it is
    that of a gateway. For `twice` and `problems` see `Loaded`.
    """

    config: Config
    file: Path | None
    environ: Mapping[str, str]
    files: tuple[Path, ...] = ()
    twice: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    gateway: bool = False

    @property
    def variables(self) -> list[str]:
        """The names of the variables that set a configuration key."""
        return sorted(name for name in self.environ if name.startswith("CORRELATOR_") and "__" in name)


class DaemonAddress(NamedTuple):
    """Where a daemon is, and what opens it. An empty `url` is the default one, an empty `page` is at `url`."""

    url: str
    page: str
    token: str
    ssl: ssl.SSLContext | None


def load(file: Path | None, environ: Mapping[str, str], *, gateway: bool = False, usable: bool = False) -> Setting:
    """Load the configuration as the daemon, or the gateway, would. Raises ConfigError.

    `usable`: load what can be used of it, and raise nothing: see `Setting.problems`.
    """
    chosen = file or (GATEWAY_FILE if gateway else config.default_file())
    around = environ_of(chosen, environ)
    found = (config.usable if usable else config.loaded)(chosen, around, gateway=gateway)
    return Setting(found.config, chosen, around, found.files, found.twice, found.problems, gateway)


def of_this_host(environ: Mapping[str, str], file: Path | None = None) -> Config | None:
    """Return the configuration of the daemon of this host, else of its gateway, as far as this user may read it.

    `file`: that with which it was started, if it is none of theirs. None: it listens at no fixed address.
    """
    chosen = file or config.default_file() or (GATEWAY_FILE if GATEWAY_FILE.exists() else config.DEFAULT_FILE)
    found = load(chosen, environ, usable=True).config
    return found if found.http.listen.port else None


def token_of(config: Config) -> str:
    """Return the token with the most rights; "" if the daemon needs none, or if its files cannot be used."""
    try:
        return max(config.http.read_tokens(), key=_rights, default=AcceptedToken("")).secret
    except ConfigError:
        return ""


def _rights(token: AcceptedToken) -> tuple[bool, int, bool]:
    """What orders tokens by what they may be used for."""
    table = token.table
    if table is None:
        return True, len(SCOPES), True
    is_valid = table.expires is None or table.expires > datetime.now(UTC)
    return is_valid, len(set(table.scope)), not table.instances


def url_of(config: Config) -> str:
    """Return the URL at which this host reaches the daemon of `config`."""
    return config.http.own_url("::1" if config.http.listen.host == "::" else "127.0.0.1")


def unready(environ: Mapping[str, str], file: Path | None, within: float) -> str | None:
    """Wait until the daemon of this host, or its gateway, is ready. Return what is wrong after `within` seconds."""
    until = time.monotonic() + within
    while (problem := unhealthy(environ, file, ready=True)) is not None and time.monotonic() < until:
        time.sleep(ASK_EVERY)
    return problem


def unhealthy(environ: Mapping[str, str], file: Path | None = None, *, ready: bool = False) -> str | None:
    """Ask the daemon of this host, or its gateway, whether it lives, or is `ready`.

    Return what is wrong, None if nothing is.
    """
    path, lacking = ("/health/ready", "is not ready") if ready else ("/health/live", "makes no progress")
    config = of_this_host(environ, file)
    if config is None:
        return "http.listen has port 0, so the daemon may be at any: set a port"
    url = url_of(config)
    place = urlsplit(url).netloc
    try:
        connection = http.client.HTTPConnection(place, timeout=ALIVE_WITHIN)
        if url.startswith("https"):
            connection = http.client.HTTPSConnection(place, timeout=ALIVE_WITHIN, context=own_context(config))
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            said = response.read(1_000).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        return f"no daemon answers at {url}: {str(error) or type(error).__name__}"
    return None if response.status == HTTPStatus.OK else f"the daemon at {url} {lacking}: {said}"


def own_context(config: Config) -> ssl.SSLContext:
    """Return the TLS context for the daemon of this host: its own certificate is accepted, whatever name it is for.

    Raises: OSError, ssl.SSLError.
    """
    context = default_context()
    if config.http.tls_cert is not None:
        context.load_verify_locations(config.http.tls_cert)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.check_hostname = False
    return context


def unit_of(file: Path | None) -> str | None:
    """Return the name of the unit that uses this configuration, without its suffix; None if no unit does."""
    return {config.DEFAULT_FILE: "correlator", GATEWAY_FILE: "correlator-gateway"}.get(file or Path())


def environ_of(file: Path | None, environ: Mapping[str, str]) -> Mapping[str, str]:
    """Return the environment in which the configuration is used: that of the service if it is the service's."""
    return as_service(environ) if unit_of(file) is not None else environ


def as_service(environ: Mapping[str, str]) -> dict[str, str]:
    """Return `environ` with the variables that the service manager would add, for the source files of credentials."""
    added: dict[str, str] = {}
    with contextlib.suppress(OSError):
        added["CREDENTIALS_DIRECTORY"] = str(CREDENTIALS if _come_from_elsewhere() else config.DEFAULT_FILE.parent)
        if STATE.is_dir() or any(place.is_file() for place in UNIT_FILES):
            added["STATE_DIRECTORY"] = str(STATE)
    return {**added, **environ}


def _come_from_elsewhere() -> bool:
    """Whether a drop-in of the unit sets the source of credentials: then only the copies can be read."""
    if not (os.access(CREDENTIALS, os.X_OK) and CREDENTIALS.is_dir()):
        return False
    drop_ins = [file for unit in UNIT_FILES for file in unit.with_name(f"{UNIT}.d").glob("*.conf")]
    return any(f"Credential={name}" in _text(file).replace("Encrypted", "") for file in drop_ins for name in SECRETS)


def outdated(setting: Setting) -> list[str]:
    """Return the names of secrets whose source file differs from the copy of the running service."""
    if setting.file != config.DEFAULT_FILE or setting.environ.get("CREDENTIALS_DIRECTORY") == str(CREDENTIALS):
        return []
    source = config.DEFAULT_FILE.parent
    names = [name for name in SECRETS if (CREDENTIALS / name).is_file()]
    return [name for name in names if _text(CREDENTIALS / name).strip() != _text(source / name).strip()]


def holds_something(file: Path) -> bool:
    """Whether a file exists and is not blank: the unit passes a blank file for a secret that does not exist."""
    try:
        return file.is_file() and bool(file.read_bytes().strip())
    except OSError:
        return os.access(file, os.F_OK)  # it exists, but we may not read it


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


async def run(*command: str, within: float = WITHIN) -> tuple[int, str]:
    """Return (exit code, output) of a program. Raises OSError if it cannot start, TimeoutError after `within` s."""
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(f"{command[0]} is not installed")
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(within):
            out, _ = await process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    return process.returncode or 0, out.decode("utf-8", "replace")


@contextlib.contextmanager
def as_account(config: Config) -> Iterator[None]:
    """Act as the user whom the database logs in over its socket while the block runs, if root runs this.

    With `unix_socket` MariaDB admits the user of this host who has the account's name and no other, not even root. A
    login with a password needs none of this. Where no such user exists, nothing changes, and MariaDB refuses.

    The whole process acts as that user: nothing else of it may run meanwhile that needs root.
    """
    url, settings = config.database.url, config.database
    by_socket = settings.unix_socket is not None and not settings.password
    user = None
    if os.geteuid() == 0 and by_socket and isinstance(url, MysqlUrl):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(url.user)
    if user is None:
        yield
        return
    group = os.getegid()
    os.setegid(user.pw_gid)
    try:
        os.seteuid(user.pw_uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)


def no_user(name: str) -> bool:
    """Whether this host has no user of that name."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        return True
    return False


async def variables_of(unit: str) -> set[str]:
    """Return the names of the variables of the configuration that the files of a unit set; empty without systemd."""
    try:
        code, out = await run("systemctl", "show", unit, "--property=Environment")
    except (OSError, TimeoutError):
        return set()
    return set(re.findall(r"CORRELATOR_\w+(?==)", out)) if code == 0 else set()


def stamp() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
