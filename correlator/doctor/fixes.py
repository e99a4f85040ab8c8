"""Turns every fix into a shell command that works when it is pasted as root.

A check gives a fix in one of three forms: a shell command; an SQL statement, which ends in `;`; a setting,
``section.key = value`` as in the configuration. `copyable` turns each into a shell command, and separates those that
only show something from those that repair.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from shlex import quote

import msgspec

from correlator.config import loading as configuration
from correlator.config.schema import Config
from correlator.config.values import MysqlUrl
from correlator.doctor import service
from correlator.doctor.check import Check
from correlator.doctor.check import is_here as check_is_here
from correlator.doctor.service import Setting

_SETTING = re.compile(r"(?P<key>[a-z]+(?:\.tls)?\.[a-z_]+) = (?P<value>.+)")

_SHOWS = re.compile(
    r"(?:SELECT|SHOW) .*|(?:ss|ls|df|ip|nc|getent|ping) .*|openssl (?:s_client|x509) .*"
    r"|timedatectl(?: list-\S+| timesync-status)?|systemctl (?:status|cat) .*|journalctl (?!.*--vacuum).*"
    r"|correlator (?:check-config|tap|jobs|show|logs).*",
    re.DOTALL,
)
"""A fix that changes nothing."""


def copyable(setting: Setting, check: Check) -> Check:
    """Return `check` with shell commands only. A change of the service's configuration is followed by a restart."""
    repairs: list[str] = []
    shows: list[str] = []
    for fix in map(_of_gateway, check.fix) if service.unit_of(setting.file) == "correlator-gateway" else check.fix:
        fixes = shows if _SHOWS.fullmatch(fix) else repairs
        if fix.endswith(";"):
            fixes.append(f"{client(setting.config)}{_database(setting.config, fix)} --execute={quote(fix)}")
        elif match := _SETTING.fullmatch(fix):
            fixes.append(_set(setting, match["key"], match["value"]))
            fixes += restart(setting)
        else:
            fixes.append(fix)
    return msgspec.structs.replace(check, fix=tuple(dict.fromkeys(repairs)), see=tuple(dict.fromkeys(shows)))


def _of_gateway(fix: str) -> str:
    """Return a fix for the unit or the configuration of a daemon as one for those of a gateway."""
    fix = re.sub(r"^((?:systemctl|journalctl) .*\bcorrelator)(?![\w-])", r"\1-gateway", fix)
    return re.sub(r"^correlator check-config$", "correlator check-config --gateway", fix)


def restart(setting: Setting) -> list[str]:
    """Return the command that restarts the service; empty if `setting` is not the configuration of the service."""
    unit = service.unit_of(setting.file)
    return [f"systemctl restart {unit}"] if unit is not None else []


def client(config: Config) -> str:
    """Return the administrator's client: as root over the socket, or from another host with root's password."""
    url, socket = config.database.url, config.database.unix_socket
    if socket is not None:
        return f"mariadb --socket={quote(str(socket))}"
    if not isinstance(url, MysqlUrl) or is_here(config):
        return "mariadb"
    return f"mariadb --host={quote(url.host)} --port={url.port} --user=root --password"


def _database(config: Config, statement: str) -> str:
    """Return the argument with the database, for a statement that reads one of its tables."""
    url = config.database.url
    reads = statement.startswith("SELECT ") and " FROM " in statement
    return f" {quote(url.database)}" if reads and isinstance(url, MysqlUrl) else ""


def is_here(config: Config) -> bool:
    """Whether the database is on this host."""
    url = config.database.url
    if config.database.unix_socket is not None or not isinstance(url, MysqlUrl):
        return True
    return check_is_here(url.host)


def new_password(setting: Setting, account: str, resolved: str | None) -> list[str]:
    """Return commands that set the password of `account` to the one that the daemon will use.

    `resolved`: the account as MariaDB names it if it has resolved the address to a host name. An account of that
    name takes precedence over `account`, so it gets the password too. The password is never a program's argument.
    """
    file = password_file(setting)
    make = [f"head --bytes=24 /dev/urandom | base64 | install --mode=600 /dev/stdin {quote(str(file))}"]
    if setting.config.database.password and not _is_in_file(setting):
        make = [f"read -rsp 'The password of {password_source(setting)}: ' PASSWORD"]
        words = r"""printf '%s' "$PASSWORD" | sed "s/[\\\\']/\\\\&/g" """.strip()
    else:
        words = rf"""sed "s/[\\\\']/\\\\&/g" {quote(str(file))}"""
        if _holds_text(file):
            make = []
    sql = f"CREATE USER IF NOT EXISTS {account}; ALTER USER {account} IDENTIFIED BY '%s';\\n"
    more = f"ALTER USER IF EXISTS {resolved} IDENTIFIED BY '%s';\\n" if resolved is not None else ""
    secret = 'password="$(' + words + ')"'
    given = " ".join(['"$password"'] * (2 if more else 1))
    return [*make, f"{secret} && printf {_double_quoted(sql + more)} {given} | {client(setting.config)}"]


def password_file(setting: Setting) -> Path:
    """Return the file that the daemon reads the database password from."""
    if setting.config.database.password_file:
        return setting.config.database.password_file
    held = setting.environ.get("CREDENTIALS_DIRECTORY")
    return Path(held) / "db-password" if held else configuration.DEFAULT_FILE.parent / "db-password"


def _is_in_file(setting: Setting) -> bool:
    return bool(setting.config.database.password_file) or _holds_text(password_file(setting))


def password_source(setting: Setting) -> str:
    """Return the file that holds the password, else the configuration key."""
    return str(password_file(setting)) if _is_in_file(setting) else "database.password"


def _holds_text(file: Path) -> bool:
    try:
        return bool(file.read_bytes().strip())
    except OSError:
        return False


def _double_quoted(text: str) -> str:
    return '"' + re.sub(r'[\\"$`]', lambda found: "\\" + found[0], text).replace("\\\\n", "\\n") + '"'


def _set(setting: Setting, key: str, value: str) -> str:
    """Return the command that sets a key: in the files, or in the environment if that is where it comes from."""
    name = f"CORRELATOR_{key}".upper().replace(".", "__")
    if setting.file is None or name in setting.environ:
        return f"export {name}={quote(_plain(value))}"
    of = {"correlator": "", "correlator-gateway": "--gateway "}.get(
        service.unit_of(setting.file) or "", f"--config {quote(str(setting.file))} "
    )
    return f"correlator config set {of}{key} {quote(_plain(value))}"


def _plain(value: str) -> str:
    """Return a TOML value as an environment variable or an argument holds it: text without its quotes."""
    read = tomllib.loads(f"value = {value}")["value"]
    return read if isinstance(read, str) else value
