"""The result of one check, the report of all, and how a fix becomes a shell command to paste as root.

A check gives a fix in one of three forms: a shell command; an SQL statement, which ends in `;`; a setting,
``section.key = value`` as in the configuration. `copyable` turns each into a shell command, and separates those that
only show something from those that repair.
"""

from __future__ import annotations

import asyncio
import re
import tomllib
from collections.abc import Awaitable, Sequence
from pathlib import Path
from shlex import quote
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct

from correlator.config import loading as configuration
from correlator.config.schema import Config
from correlator.config.values import MysqlUrl, is_loopback
from correlator.doctor import service
from correlator.doctor.service import Setting
from correlator.errors import CorrelatorError

T = TypeVar("T")
Status = Literal["ok", "warning", "failure"]

CHECK_WITHIN = 30.0
"""Seconds for one check."""


class Check(Struct, frozen=True):
    """`name` stays the same from version to version.

    `fix`: the commands that fix it, in order. `see`: commands that change nothing and show more of the
    cause; `copyable` moves them there, so a check may give all its commands as `fix`.
    """

    name: str
    status: Status
    summary: str
    detail: tuple[str, ...] = ()
    fix: tuple[str, ...] = ()
    see: tuple[str, ...] = ()


class CheckReport(Struct, frozen=True):
    """All checks, in the order of their dependencies. `at`: RFC 3339."""

    version: str
    at: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """True if no check failed. Warnings do not count."""
        return not any(check.status == "failure" for check in self.checks)

    def document(self) -> dict[str, Any]:
        """Return the document that `-o json` prints."""
        head = {"ok": self.ok, "version": self.version, "at": self.at}
        return head | {"checks": msgspec.to_builtins(self.checks)}


def ok(name: str, summary: str, detail: Sequence[str] = ()) -> Check:
    return Check(name, "ok", summary, tuple(detail))


def warning(name: str, summary: str, detail: Sequence[str] = (), fix: Sequence[str] = ()) -> Check:
    return Check(name, "warning", summary, tuple(detail), tuple(fix))


def failure(name: str, summary: str, detail: Sequence[str] = (), fix: Sequence[str] = ()) -> Check:
    return Check(name, "failure", summary, tuple(detail), tuple(fix))


def listeners(port: int) -> str:
    """Return the command that shows which programs listen at a port."""
    return f"ss -ltnp 'sport = :{port}'"


def share(part: int, whole: int) -> str:
    """Return a text such as ``12 of 40 (30 %)``."""
    return f"{part} of {whole}" + (f" ({100 * part / whole:.0f} %)" if whole else "")


def some(items: Sequence[str]) -> str:
    """Return the first five items, and how many more there are."""
    more = f", and {len(items) - 5} more" if len(items) > 5 else ""
    return ", ".join(items[:5]) + more


async def guarded(name: str, work: Awaitable[T], within: float = CHECK_WITHIN) -> T | Check:
    """Return the result of `work`, or a failed check `name` if it raises or takes longer than `within` seconds."""
    try:
        async with asyncio.timeout(within):
            return await work
    except TimeoutError:
        return failure(name, f"This check did not finish within {within:g} s.")
    except (CorrelatorError, OSError) as error:
        return failure(name, f"This check did not finish: {str(error) or type(error).__name__}")
    except Exception as error:  # noqa: BLE001 - an error in one check must not hide the results of the others
        return failure(name, f"Internal error in this check: {type(error).__name__}: {error}")


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
            fixes.append(f"{sql_client(setting.config)}{_of_database(setting.config, fix)} --execute={quote(fix)}")
        elif match := _SETTING.fullmatch(fix):
            fixes.append(_setting_command(setting, match["key"], match["value"]))
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


def sql_client(config: Config) -> str:
    """Return the administrator's client: as root over the socket, or from another host with root's password."""
    url, socket = config.database.url, config.database.unix_socket
    if socket is not None:
        return f"mariadb --socket={quote(str(socket))}"
    if not isinstance(url, MysqlUrl) or database_is_here(config):
        return "mariadb"
    return f"mariadb --host={quote(url.host)} --port={url.port} --user=root --password"


def _of_database(config: Config, statement: str) -> str:
    """Return the argument with the database, for a statement that reads one of its tables."""
    url = config.database.url
    reads = statement.startswith("SELECT ") and " FROM " in statement
    return f" {quote(url.database)}" if reads and isinstance(url, MysqlUrl) else ""


def database_is_here(config: Config) -> bool:
    """Whether the database is on this host."""
    url = config.database.url
    if config.database.unix_socket is not None or not isinstance(url, MysqlUrl):
        return True
    return is_loopback(url.host)


def new_password(setting: Setting, account: str | None, others: Sequence[str] = ()) -> list[str]:
    """Return commands that set the password of `account`, which is created, to the one that the daemon will use.

    `others`: accounts that get it too if they exist, e.g. the account as MariaDB names it if it has resolved the
    address to a host name: it takes precedence over `account`. The password is never a program's argument.
    """
    file = password_file(setting)
    make = [f"head --bytes=24 /dev/urandom | base64 | install --mode=600 /dev/stdin {quote(str(file))}"]
    if setting.config.database.password and not _is_in_file(setting):
        make = [f"read -rsp 'The password of {password_source(setting)}: ' PASSWORD"]
        words = r"""printf '%s' "$PASSWORD" | sed "s/[\\\\']/\\\\&/g" """.strip()
    else:
        words = rf"""sed "s/[\\\\']/\\\\&/g" {quote(str(file))}"""
        if service.holds_something(file):
            make = []
    sql = [f"CREATE USER IF NOT EXISTS {account}; ALTER USER {account} IDENTIFIED BY "] if account is not None else []
    sql += [f"ALTER USER IF EXISTS {other} IDENTIFIED BY " for other in others]
    pattern = "".join(statement.replace("%", "%%") + "'%s';\\n" for statement in sql)
    secret = 'password="$(' + words + ')"'
    given = " ".join(['"$password"'] * len(sql))
    return [*make, f"{secret} && printf {_double_quoted(pattern)} {given} | {sql_client(setting.config)}"]


def password_file(setting: Setting) -> Path:
    """Return the file that the daemon reads the database password from."""
    if setting.config.database.password_file:
        return setting.config.database.password_file
    held = setting.environ.get("CREDENTIALS_DIRECTORY")
    return Path(held) / "db-password" if held else configuration.DEFAULT_FILE.parent / "db-password"


def _is_in_file(setting: Setting) -> bool:
    return bool(setting.config.database.password_file) or service.holds_something(password_file(setting))


def password_source(setting: Setting) -> str:
    """Return the file that holds the password, else the configuration key."""
    return str(password_file(setting)) if _is_in_file(setting) else "database.password"


def _double_quoted(text: str) -> str:
    return '"' + re.sub(r'[\\"$`]', lambda found: "\\" + found[0], text).replace("\\\\n", "\\n") + '"'


def _setting_command(setting: Setting, key: str, value: str) -> str:
    """Return the command that sets a key: in the files, or in the environment if that is where it comes from."""
    name = configuration.variable(key)
    if setting.file is None or name in setting.environ:
        return f"export {name}={quote(_plain_value(value))}"
    of = {"correlator": "", "correlator-gateway": "--gateway "}.get(
        service.unit_of(setting.file) or "", f"--config {quote(str(setting.file))} "
    )
    return f"correlator config set {of}{key} {quote(_plain_value(value))}"


def _plain_value(value: str) -> str:
    """Return a TOML value as an environment variable or an argument holds it: text without its quotes."""
    read = tomllib.loads(f"value = {value}")["value"]
    return read if isinstance(read, str) else value
