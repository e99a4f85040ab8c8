"""Checks of the database: login, encryption of the connection, privileges, schema, time zone and clock.

They run one after the other over one session; after a failed query the next check gets a new one (`Link`).
"""

from __future__ import annotations

import contextlib
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from pathlib import Path
from shlex import quote
from typing import TypeVar
from urllib.parse import quote as quote_url
from zoneinfo import ZoneInfo, available_timezones

from msgspec import Struct

from correlator.bounded import chunks
from correlator.config.schema import Config
from correlator.config.values import MysqlUrl, SqliteUrl
from correlator.doctor import service, usage
from correlator.doctor.daemon import DaemonFindings
from correlator.doctor.report import (
    CHECK_WITHIN,
    Check,
    database_is_here,
    failure,
    guarded,
    listeners,
    new_password,
    ok,
    password_source,
    restart,
    some,
    warning,
)
from correlator.doctor.service import Setting
from correlator.errors import Away, ForeignListener, SourceUnavailable
from correlator.pipeline.database_errors import GRANTS, NEW_PASSWORD, START, fault_of
from correlator.pipeline.source_status import REPLICA_LATE, few_connections
from correlator.sources.databases import database_of
from correlator.sources.db.mariadb import MariaDBDatabase
from correlator.sources.db.queries import Queries
from correlator.sources.db.session import (
    IN_ONE,
    INDISPENSABLE,
    OLDER_GENERATION,
    TABLES,
    Database,
    Replication,
    Row,
    Schema,
    Session,
)
from correlator.sources.db.zones import Zone

LOGIN, TLS, RIGHTS, CONNECTIONS = "database.login", "database.tls", "database.rights", "database.connections"
SCHEMA, ZONE, CLOCK = "database.schema", "database.timezone", "database.clock"
REPLICA = "database.replica"


T = TypeVar("T")


class DatabaseFindings(Struct, frozen=True):
    """`unknown_jobs`: the requested jobs that no table has; None if the tables could not be queried."""

    checks: tuple[Check, ...]
    unknown_jobs: Sequence[str] | None = None


async def inspect(setting: Setting, retained_jobs: Sequence[str], of_daemon: DaemonFindings) -> DatabaseFindings:
    """Run the checks of the database, and those of `usage`. `retained_jobs`: those that the broker holds."""
    config = setting.config
    try:
        database = database_of(config)
    except (SourceUnavailable, OSError) as error:  # the driver is not installed, or a certificate cannot be read
        return DatabaseFindings((failure(LOGIN, str(error)),))
    link = Link(database, lambda: service.as_account(config))
    try:
        checks = [await _checked(setting, LOGIN, login(setting, link))]
        if checks[0].status == "failure":
            return DatabaseFindings(tuple(checks))
        granted: Rights | None = None
        if not isinstance(config.database.url, SqliteUrl):
            checks.append(await _checked(setting, TLS, encryption(config, link)))
            found = await _checked(setting, RIGHTS, rights(config, link))
            granted = None if isinstance(found, Check) else found
            checks.append(found if isinstance(found, Check) else judge_rights(config, found))
            checks.append(await _checked(setting, CONNECTIONS, connections(link)))
        checks.append(await _checked(setting, CLOCK, clock(config, link)))
        checks += await _replica(database, link)
        contents = await _inspect_contents(setting, database, link, retained_jobs, of_daemon, granted)
        return DatabaseFindings((*checks, *contents.checks), contents.unknown_jobs)
    finally:
        await link.close()


async def _inspect_contents(
    setting: Setting,
    database: Database,
    link: Link,
    retained_jobs: Sequence[str],
    of_daemon: DaemonFindings,
    granted: Rights | None,
) -> DatabaseFindings:
    """Run the checks that need the schema. `granted`: what the account may read, if that is known."""
    config = setting.config
    schema = await _checked(setting, SCHEMA, database.schema(link))
    if isinstance(schema, Check):
        return DatabaseFindings((schema,))
    checks = [judge_schema(schema, legacy=config.jobs.legacy, granted=granted)]
    if not schema.has("log_events", *INDISPENSABLE):
        return DatabaseFindings(tuple(checks))
    zone = await _checked(setting, ZONE, database.zone(link))
    if isinstance(zone, Check):
        return DatabaseFindings((*checks, zone))
    queries = Queries(database.dialect, schema, zone)
    checks.append(await _checked(setting, ZONE, time_zone(config, database, queries, link)))
    used = await _checked(setting, usage.ROWS, usage.inspect(config, queries, link, of_daemon), usage.WITHIN)
    checks += [used] if isinstance(used, Check) else used
    unknown = await _checked(setting, SCHEMA, jobs_in_no_table(queries, link, list(retained_jobs)))
    return DatabaseFindings(tuple(checks), None if isinstance(unknown, Check) else unknown)


async def _checked(setting: Setting, name: str, work: Awaitable[T], within: float = CHECK_WITHIN) -> T | Check:
    """Return the result of `work`, or a failed check `name` that explains an error of the database."""

    async def explaining() -> T | Check:
        try:
            return await work
        except SourceUnavailable as error:
            return failed(setting, name, error)

    return await guarded(name, explaining(), within)


def failed(setting: Setting, name: str, error: SourceUnavailable) -> Check:
    """Return the check `name` that failed because a query did, with the meaning of the error and its fix."""
    url = setting.config.database.url
    if not isinstance(url, MysqlUrl):
        return failure(name, str(error))
    denied = _ACCOUNT.search(str(error))
    account = f"'{denied['user']}'@'{denied['host']}'" if denied else None
    decide, fix = explained(
        setting, str(error), error.code, account, account, table=error.table or "", reason=error.reason
    )
    return failure(name, str(error), decide, fix)


class Link:
    """A session that opens on first use and again after an error. Implements `sources.db.session.Session`."""

    def __init__(
        self, database: Database, acting: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
    ) -> None:
        """`acting`: whom to act as while a session is opened."""
        self._database = database
        self._acting = acting
        self._session: Session | None = None

    async def open(self) -> None:
        """Open the session if it is not open. Raises SourceUnavailable."""
        if self._session is None:
            with self._acting():
                self._session = await self._database.open()

    async def query(self, sql: str, args: Sequence[object] = ()) -> Sequence[Row]:
        await self.open()
        assert self._session is not None
        try:
            return await self._session.query(sql, args)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()


_ACCOUNT = re.compile(r"'(?P<user>[^']*)'@'(?P<host>[^']*)'")
_OLDEST, _NEWEST = (10, 5), (11, 8)
_NOT_ADMITTED = (1045, 1698)
_DOORBELL = ("REPLICATION SLAVE", "BINLOG MONITOR")
_MONITOR = "SLAVE MONITOR"
"""REPLICA MONITOR, as SHOW GRANTS calls it: it shows how far a replica is behind."""


async def login(setting: Setting, link: Link) -> Check:
    """Log in with the password that the files hold now. A failure contains the cause and its fix."""
    config = setting.config
    url = config.database.url
    began = time.monotonic()
    try:
        await link.open()
    except SourceUnavailable as error:
        return away(setting, error, await _servers_here(config))
    took = (time.monotonic() - began) * 1000
    if isinstance(url, SqliteUrl):
        return ok(LOGIN, f"{url.path} can be read")
    rows = await link.query("SELECT CURRENT_USER(), VERSION(), @@version_comment")
    account, version, comment = map(str, rows[0])
    words = f"{account} at {_where(config)}, {version}, in {took:.0f} ms"
    found = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if "mariadb" not in (version + comment).lower():
        return warning(LOGIN, f"{words}: this server is not MariaDB. The correlator is tested with MariaDB only.")
    if not _OLDEST <= found <= _NEWEST:
        return warning(LOGIN, f"{words}: the correlator is tested with MariaDB 10.5 to 11.8 only.")
    return ok(LOGIN, words)


def away(setting: Setting, error: SourceUnavailable, servers: Sequence[Listening] = ()) -> Check:
    """Return the failed login, with its cause and its fix. `servers`: the MariaDB servers of this host."""
    url = setting.config.database.url
    if error.reason is Away.NOT_MARIADB:
        return failure(LOGIN, str(error), ["Set database.url to the MariaDB server that has the tables."])
    if isinstance(error.__cause__, ForeignListener) and isinstance(url, MysqlUrl):
        return failure(LOGIN, str(error), fix=[listeners(url.port)])
    settings = setting.config.database
    if error.code in _NOT_ADMITTED and settings.unix_socket is not None and not settings.password:
        return not_admitted(setting, str(error))
    return refused(setting, str(error), error.code, servers, error.reason)


def not_admitted(setting: Setting, words: str) -> Check:
    """Return the failed login over the socket, without a password."""
    url = setting.config.database.url
    assert isinstance(url, MysqlUrl)
    account = f"'{url.user}'@'localhost'"
    detail = [
        f"MariaDB admits the user {url.user} of this host, if that account is IDENTIFIED VIA unix_socket.",
        "Root acts as that user here. Any other user is refused.",
    ]
    fix = [*socket_account(account), *grant_select(url.database, TABLES, account), *restart(setting)]
    if service.no_user(url.user):
        detail.append(f"This host has no user {url.user} now.")
        fix = [f"useradd --system --no-create-home --shell /usr/sbin/nologin {quote(url.user)}", *fix]
    return failure(LOGIN, words, detail, fix)


def refused(
    setting: Setting,
    words: str,
    code: int | None,
    servers: Sequence[Listening] = (),
    reason: Away | None = None,
) -> Check:
    """Return the failed login. `code`: MariaDB's error number, or None if the error is not from MariaDB.

    `servers`: the MariaDB servers of this host.
    """
    config = setting.config
    url, settings = config.database.url, config.database
    if isinstance(url, SqliteUrl):
        return failure(LOGIN, words, fix=[f"ls -l {quote(str(url.path))}"])
    denied = _ACCOUNT.search(words)
    named = account = f"'{denied['user']}'@'{denied['host']}'" if denied else None
    if denied and denied["host"] == "localhost" and url.host.startswith("127.") and settings.unix_socket is None:
        account = f"'{denied['user']}'@'{url.host}'"  # as grants-password.sql has it
    not_examined = ["Without a login these are not examined: rights, schema, time zone, clock, and the use of the log."]
    detail, fix = explained(setting, words, code, account, named, servers=servers, reason=reason)
    if code == 1045:
        given = (
            f"the password of {password_source(setting)} was tried" if settings.password else "no password was given"
        )
        detail.append(f"The account does not exist for this host, or its password differs; {given}.")
        if "db-password" in service.outdated(setting):
            detail.append("The running service uses the password that it was started with, until it is restarted.")
        if settings.tls is None:
            detail.append(
                "MariaDB gives the same error for accounts that require TLS, and [database.tls] is not set. If the"
                " right password is refused too, somebody has to decide: set it, or end the requirement."
            )
        fix += restart(setting)
    elif "offers no TLS" in words:
        detail = ["The configuration requires TLS, and MariaDB has no certificate."]
        fix = ["SHOW VARIABLES LIKE 'have_ssl';"]
    elif "certificate" in words.lower():
        detail = ["The server's certificate is not trusted by database.tls.ca, or is for another name."]
        fix = [f"openssl s_client -starttls mysql -connect {authority(url)} -showcerts </dev/null"]
    return failure(LOGIN, words, [*detail, *not_examined], fix)


def socket_account(account: str) -> list[str]:
    """Return statements that make an account whose user MariaDB sees by the socket, as grants.sql has it."""
    return [
        f"CREATE USER IF NOT EXISTS {account} IDENTIFIED VIA unix_socket;",
        f"ALTER USER {account} IDENTIFIED VIA unix_socket WITH MAX_USER_CONNECTIONS 24;",
    ]


async def _replica(database: Database, link: Link) -> list[Check]:
    """Return the check of a replica; none for another server."""
    found = await guarded(REPLICA, database.replication(link))
    if isinstance(found, Check):
        return [found]
    return [judge_replica(found)] if found is not None else []


def judge_replica(found: Replication) -> Check:
    if not found.running:
        lines = [
            "It is a replica by its settings. What is written to its primary does not arrive here.",
            "If it has become the primary, run RESET REPLICA ALL. The daemon sees it by the first row that is written.",
            "Without REPLICA MONITOR, the account of the correlator sees it only after a restart of the server.",
        ]
        return failure(REPLICA, "replication has stopped", lines, ["SHOW REPLICA STATUS;", "START REPLICA;"])
    if found.behind is None:
        lines = ["How far it is behind is not known: the account has no REPLICA MONITOR on *.*, a right of the server."]
        return ok(REPLICA, "a replica, and its replication runs", lines)
    words = f"a replica, {found.behind:.0f} s behind its primary"
    if found.behind > REPLICA_LATE:
        return warning(REPLICA, words, fix=["SHOW REPLICA STATUS;", "SHOW PROCESSLIST;"])
    return ok(REPLICA, words)


def explained(
    setting: Setting,
    words: str,
    code: int | None,
    account: str | None,
    named: str | None,
    *,
    table: str = "",
    servers: Sequence[Listening] = (),
    reason: Away | None = None,
) -> tuple[list[str], list[str]]:
    """Return what a person has to decide about an error, and the commands that fix it: from the table of errors.

    `account`: that which the commands are for; None if the error does not name it. `named`: as MariaDB names it.
    """
    config = setting.config
    url = config.database.url
    assert isinstance(url, MysqlUrl)
    fault = fault_of(code, words, reason)
    decide = [fault.decide] if fault is not None and fault.decide else []
    fix: list[str] = []
    others = [named] if named is not None and named != account else []
    if account is None and code not in _WITHOUT_ACCOUNT:
        others = _likely_accounts(config, url)
    altered = account or f"IF EXISTS {', '.join(others)}"
    made = account or f"'{url.user}'@'%'"
    for command in fault.fix if fault is not None else (START,):
        if command == NEW_PASSWORD:
            fix += new_password(setting, made if account is not None or not others else None, others)
        elif command == GRANTS:
            fix += grant_select(url.database, (table,) if table else TABLES, made)
        elif command == START:
            said, commands = _started(config, url, servers)
            fix += commands
            decide += [said] if said else []
        else:
            places = {"account": altered, "database": quoted_name(url.database), "table": quoted_name(table)}
            fix.append(command.format(**places, host=url.host, port=url.port))
    return decide, fix


_WITHOUT_ACCOUNT = (1129, 1130)
"""Errors of a host that no account admits. Others that name no account are of one that exists."""


def _likely_accounts(config: Config, url: MysqlUrl) -> list[str]:
    """Return the accounts that a login from this host may use, first that of the documents."""
    hosts = ["localhost", "%"]
    if database_is_here(config) and config.database.unix_socket is None:
        hosts.insert(0, url.host)
    return [f"'{url.user}'@'{host}'" for host in dict.fromkeys(hosts)]


def _started(config: Config, url: MysqlUrl, servers: Sequence[Listening]) -> tuple[str, list[str]]:
    """Return what is to be said of a server that does not listen at the configured address, and the commands.

    `servers`: those that run on this host.
    """
    if not database_is_here(config):
        return "", [f"nc -vz {quote(url.host)} {url.port}"]
    if not servers:
        return "", ["systemctl start mariadb", "systemctl status mariadb"]
    places = [place for one in servers for place in (*one.addresses, *one.sockets)]
    if (where := _where(config)) in places:
        decide = "Somebody has to decide whether to restart it."
        return f"MariaDB listens at {where}, and does not answer. {decide}", ["systemctl status mariadb"]
    said = f"MariaDB runs on this host, and listens at {some(places) or 'no address'}, not at {where}."
    if len(servers) > 1:
        said += f" Somebody has to decide which of {len(servers)} servers has the tables."
        return said, ["ss -lxtnp"]
    return said, [*_reaching(servers[0], url, by_socket=config.database.unix_socket is not None), "ss -lxtnp"]


def _reaching(server: Listening, url: MysqlUrl, *, by_socket: bool) -> list[str]:
    """Return the setting by which a server of this host is reached. `by_socket`: `database.unix_socket` is set."""
    if server.addresses and not (by_socket and server.sockets):
        there = f"mysql://{quote_url(url.user)}@{server.addresses[0]}/{quote_url(url.database)}"
        return [f'database.url = "{there}"']
    if server.sockets:
        return [f'database.unix_socket = "{server.sockets[0]}"']
    return ["systemctl restart mariadb"]


class Listening(Struct, frozen=True):
    """Where a MariaDB of this host listens: addresses as in a URL, the widest first, and Unix sockets."""

    addresses: tuple[str, ...]
    sockets: tuple[str, ...]


_OF_MARIADB = re.compile(r'\("(?:mariadbd|mysqld)",pid=(\d+)')


def read_listening(lines: Iterable[str]) -> list[Listening]:
    """Parse the lines of `ss -lxtnpH`: the servers that run, one for each process."""
    found: dict[str, tuple[list[str], list[str]]] = {}
    for line in lines:
        fields = line.split()
        for pid in sorted(set(_OF_MARIADB.findall(line))):
            addresses, sockets = found.setdefault(pid, ([], []))
            if fields[0].startswith("u_"):
                sockets.append(fields[4])
                continue
            host, _, port = fields[4].rpartition(":")
            loopback = {"0.0.0.0": "127.0.0.1", "*": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - what ss prints
            addresses.append(f"{loopback.get(host, host)}:{port}")
    return [Listening(tuple(addresses), tuple(sockets)) for addresses, sockets in found.values()]


async def _servers_here(config: Config) -> list[Listening]:
    """Return the MariaDB servers of this host, as far as they can be seen."""
    if not database_is_here(config):
        return []
    try:
        code, out = await service.run("ss", "-lxtnpH")
    except (OSError, TimeoutError):
        return []
    return read_listening(out.splitlines()) if code == 0 else []


def authority(url: MysqlUrl) -> str:
    """Return host and port as programs take them: an IPv6 address in brackets."""
    return f"[{url.host}]:{url.port}" if ":" in url.host else f"{url.host}:{url.port}"


async def encryption(config: Config, session: Session) -> Check:
    cipher = await session.query("SHOW SESSION STATUS LIKE 'Ssl_cipher'")
    version = await session.query("SHOW SESSION STATUS LIKE 'Ssl_version'")
    used = str(cipher[0][1]) if cipher else ""
    return judge_encryption(config, f"{version[0][1]} {used}" if used and version else used)


def judge_encryption(config: Config, used: str) -> Check:
    """`used`: protocol and cipher; empty if the connection is not encrypted."""
    tls = config.database.tls
    lines = ["If your own authority signed the certificate, set database.tls.ca too."]
    fix = ["database.tls.verify = true"]
    if used and tls is not None and not tls.verify:
        return warning(TLS, f"{used}, but the server's certificate is not verified", lines, fix)
    if used:
        return ok(TLS, used)
    if database_is_here(config):
        return ok(TLS, "not encrypted: the server is on this host")
    return warning(TLS, "not encrypted: the login and every row can be read on the network", lines, fix)


async def connections(session: Session) -> Check:
    rows = await session.query("SELECT @@SESSION.max_user_connections, CURRENT_USER()")
    user, _, at = str(rows[0][1]).rpartition("@")
    return judge_connections(max(0, int(rows[0][0])), f"'{user}'@'{at}'")


def judge_connections(allowed: int, account: str) -> Check:
    """Judge how many connections the account may have at once; 0: any number."""
    if (few := few_connections(allowed)) is not None:
        meaning = few.partition("; ")[0]
        return warning(CONNECTIONS, meaning, fix=[f"ALTER USER {account} WITH MAX_USER_CONNECTIONS 24;"])
    return ok(CONNECTIONS, f"up to {allowed} at once" if allowed else "no limit for the account")


async def rights(config: Config, session: Session) -> Rights:
    """Return what the account may do."""
    url = config.database.url
    assert isinstance(url, MysqlUrl)
    lines = [str(row[0]) for row in await session.query("SHOW GRANTS")]
    return read_grants(lines, url.database, TABLES, also=(*(_DOORBELL if config.database.doorbell else ()), _MONITOR))


def judge_rights(config: Config, found: Rights) -> Check:
    url = config.database.url
    assert isinstance(url, MysqlUrl)
    doorbell = config.database.doorbell
    followed = [t for t in TABLES if t != "failover_jobs" or config.jobs.legacy]
    missing = [t for t in found.missing if t in followed]
    columns = [name for name in found.missing_columns if name.partition(".")[0] in followed]
    if missing or columns:
        tables = list(dict.fromkeys([*missing, *(name.partition(".")[0] for name in columns)]))
        return (failure if missing else warning)(
            RIGHTS,
            f"no SELECT on {some([*missing, *columns])}",
            [*(f"Granted beyond need: {words}." for words in found.excess)],
            [*grant_select(url.database, tables, found.account), *found.revoke],
        )
    if doorbell and not found.everywhere & {"REPLICATION SLAVE", "ALL PRIVILEGES"}:
        lines = ["Polling continues without it.", *(f"Granted beyond need: {words}." for words in found.excess)]
        fix = [f"GRANT REPLICATION SLAVE ON *.* TO {found.account};", *found.grant, *found.revoke]
        return warning(RIGHTS, "database.doorbell is on, and REPLICATION SLAVE is not granted", lines, fix)
    if found.excess:
        return warning(
            RIGHTS,
            f"more than SELECT on the four tables: {some(found.excess)}",
            ["The correlator only reads. Revoke the rest, which anyone with its password could use."],
            [*found.grant, *found.revoke],
        )
    return ok(RIGHTS, "SELECT on the four tables, and nothing else")


def _where(config: Config) -> str:
    url = config.database.url
    if config.database.unix_socket is not None:
        return str(config.database.unix_socket)
    return authority(url) if isinstance(url, MysqlUrl) else str(url.path)


# SHOW GRANTS: which of our tables an account may read, and which other privileges it has. Pure. A line may contain the
# hash of the password, so no line is ever printed unchanged.

_NAME = r"`(?:[^`]|``)*`"
_GRANT = re.compile(
    rf"GRANT (?P<what>.+?) ON (?P<kind>(?:PROCEDURE|FUNCTION|PACKAGE BODY|PACKAGE) )?"
    rf"(?P<base>{_NAME}|\*)\.(?P<table>{_NAME}|\*) TO (?P<to>{_NAME}(?:@{_NAME})?|PUBLIC)(?P<rest>.*)",
    re.DOTALL,
)
_ROLE = re.compile(rf"GRANT (?P<role>{_NAME}) TO (?P<to>{_NAME}(?:@{_NAME})?)")
_PRIVILEGE = re.compile(rf"(?P<name>[A-Z][A-Z ]*[A-Z])(?P<columns> \((?:{_NAME}|[^()`])*\))?")


class Grant(Struct, frozen=True):
    """One line. `base` and `table` as SHOW GRANTS writes them; a privilege is its name and its columns."""

    privileges: tuple[tuple[str, str], ...]
    kind: str
    base: str
    table: str
    to: str
    option: bool

    def names(self, database: str, table: str) -> bool:
        """Whether it applies to `table` of `database`, alone or with others."""
        if self.kind or self.table not in ("*", quoted_name(table)):
            return False
        if self.base == "*":
            return True
        return _matches(self.base, database) if self.table == "*" else self.base == quoted_name(database)


class Rights(Struct, frozen=True):
    """`excess`: privileges beyond need, in words; `revoke` and `grant`: statements that leave the needed ones."""

    account: str
    missing: tuple[str, ...]
    excess: tuple[str, ...]
    revoke: tuple[str, ...]
    grant: tuple[str, ...]
    everywhere: frozenset[str] = frozenset()
    """Privileges that are granted on ``*.*``."""
    missing_columns: tuple[str, ...] = ()
    """Columns of tables of which others are granted, as ``table.column``."""


def read_grants(lines: Iterable[str], database: str, tables: Collection[str], also: Collection[str] = ()) -> Rights:
    """Parse `lines`. `tables`: tables to be read; `also`: global privileges that this configuration needs too."""
    grants, roles, account = _parsed_grants(lines)
    missing = [t for t in tables if not _readable(grants, database, t)]
    own = [g for g in grants if g.to == account]
    excess: list[str] = []
    revoke: list[str] = []
    revoked: list[Grant] = []
    for role in roles:
        excess.append(f"the role {role}")
        revoke.append(f"REVOKE {role} FROM {account};")
    for grant in own:
        exact = [t for t in tables if grant.base == quoted_name(database) and grant.table == quoted_name(t)]
        # The account may read another database for another daemon: only what this one reads is judged.
        elsewhere = grant.base != "*" and not _matches(grant.base, database)
        needed = {"SELECT"} if exact or elsewhere else set(also) if grant.base == "*" else set()
        extra = [name + columns for name, columns in grant.privileges if name not in needed | {"USAGE"}]
        where = f"{grant.kind}{grant.base}.{grant.table}"
        if extra:
            revoked.append(grant)
            excess.append(f"{', '.join(extra)} on {where.replace('`', '')}")
            revoke.append(f"REVOKE {', '.join(extra)} ON {where} FROM {account};")
        if grant.option:
            excess.append(f"GRANT OPTION on {where.replace('`', '')}")
            revoke.append(f"REVOKE GRANT OPTION ON {where} FROM {account};")
    left = [g for g in own if g not in revoked or g.table != "*"]
    lacking = [t for t in tables if not _readable(left, database, t)]
    return Rights(
        account,
        tuple(missing),
        tuple(excess),
        tuple(revoke),
        tuple(grant_select(database, lacking, account) if excess else ()),
        frozenset(name for g in grants if g.base == g.table == "*" and not g.kind for name, _ in g.privileges),
        tuple(name for t in tables if t not in missing for name in _unreadable_columns(grants, database, t)),
    )


def grant_select(database: str, tables: Iterable[str], account: str) -> list[str]:
    """Return the statements that let `account` read `tables`."""
    return [f"GRANT SELECT ON {quoted_name(database)}.{quoted_name(table)} TO {account};" for table in tables]


def quoted_name(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def _parsed_grants(lines: Iterable[str]) -> tuple[list[Grant], list[str], str]:
    """Return (grants, roles, account). Every account has a global line, which names the account."""
    grants: list[Grant] = []
    roles: list[str] = []
    account = ""
    for line in lines:
        if match := _GRANT.fullmatch(line):
            privileges = tuple((p["name"], p["columns"] or "") for p in _PRIVILEGE.finditer(match["what"]))
            option = "WITH GRANT OPTION" in match["rest"]
            grants.append(Grant(privileges, match["kind"] or "", match["base"], match["table"], match["to"], option))
            if "@" in match["to"]:
                account = account or match["to"]
        elif match := _ROLE.match(line):
            roles.append(match["role"])
            account = account or match["to"]
    return grants, roles, account


def _readable(grants: Iterable[Grant], database: str, table: str) -> bool:
    """Whether SELECT is granted at any level. A grant on columns counts; the schema check shows which columns."""
    return any(
        grant.names(database, table) and any(name in ("SELECT", "ALL PRIVILEGES") for name, _ in grant.privileges)
        for grant in grants
    )


def _unreadable_columns(grants: Iterable[Grant], database: str, table: str) -> list[str]:
    """Return the columns that are read and not granted, where SELECT is granted on some columns alone."""
    granted: set[str] = set()
    for grant in grants:
        for name, columns in grant.privileges if grant.names(database, table) else ():
            if name == "ALL PRIVILEGES" or (name == "SELECT" and not columns):
                return []
            if name == "SELECT":
                granted.update(column.strip(" `").lower() for column in columns.strip(" ()").split(","))
    names = [f"{table}.{column}" for column in TABLES[table] if column not in granted]
    return [name for name in names if name not in OLDER_GENERATION]


def _matches(pattern: str, database: str) -> bool:
    r"""Match the database name of a grant, which is a pattern: `_` and `%` are wildcards, `\` escapes."""
    parts = re.findall(r"\\.|.", pattern[1:-1].replace("``", "`"), re.DOTALL)
    wild = {"_": ".", "%": ".*"}
    return bool(
        re.fullmatch("".join(wild.get(p, re.escape(p[-1])) for p in parts), database, re.DOTALL | re.IGNORECASE)
    )


# Schema, time zone and clock.


SKEW_NOTED, SKEW_WRONG = 2.0, 60.0
"""Seconds by which two clocks may differ."""

QUARTER = 900
"""Seconds. Offsets of time zones are multiples of a quarter of an hour."""

NEAR = 60.0
"""Seconds after the start of a job within which its first step must start to indicate an offset."""

JOBS_COMPARED = 50

DECIDING = 5
"""The newest jobs that decide which offset applies."""


def judge_schema(schema: Schema, *, legacy: bool, granted: Rights | None = None) -> Check:
    """Judge which tables and columns there are. `granted`: what the account may read, if that is known."""
    lacks = [name for name in schema.missing() if legacy or not name.startswith("failover_jobs")]
    hidden = {*granted.missing, *granted.missing_columns} if granted is not None else set()
    unseen = [name for name in lacks if name in hidden or name.partition(".")[0] in hidden]
    gone = [name for name in lacks if name not in unseen]
    words = "; ".join(
        [*([f"not granted: {some(unseen)}"] if unseen else []), *([f"do not exist: {some(gone)}"] if gone else [])]
    )
    lines = ["database.rights has the GRANT."] if unseen else []
    show = ["SHOW TABLES;"] if any("." not in name for name in gone) else []
    show += [f"SHOW CREATE TABLE {table};" for table in sorted({n.partition(".")[0] for n in gone if "." in n})]
    if gone:
        lines.append(
            "Somebody has to decide: JobLog makes its tables, and a migration or a backup may have removed them."
        )
    if not schema.has("log_events", *INDISPENSABLE):
        return failure(SCHEMA, words, ["Without log_events the daemon has nothing to follow.", *lines], show)
    if not lacks:
        return ok(SCHEMA, "current: all columns exist")
    if set(lacks) <= OLDER_GENERATION:
        return ok(SCHEMA, "the older generation, which the correlator supports", [f"without {some(lacks)}"])
    return warning(SCHEMA, words, [_without(lacks), *lines], show)


def _without(lacks: Sequence[str]) -> str:
    """Return what the daemon does without these tables and columns."""
    if any(name in ("log_events.attrs", "log_events.job_id", "log_events.step_id") for name in lacks):
        return "New rows wait up to 60 s for what names their job, and are then read without it (docs/operations.md)."
    if "job_tracking" in lacks:
        return "Without job_tracking, jobs that were read stay as they are, and a first start waits for it."
    return "What was read of them stays, and what is new is missing in the documents."


async def time_zone(config: Config, database: Database, queries: Queries, session: Session) -> Check:
    offset = await database.offset(session) if isinstance(database, MariaDBDatabase) else None
    errors = await _zone_errors(queries, session)
    return judge_zone(config.database.timezone, queries.zone, offset, errors, time.time(), host=_zone_of_host())


async def _zone_errors(queries: Queries, session: Session) -> list[float]:
    """Return, for recent jobs, the seconds from a job's start to its first step's; a wrong zone shows as hours.

    The job's time is a TIMESTAMP, which is absolute; the step's is a DATETIME, which is read in the configured zone.
    """
    if not queries.schema.has("job_tracking", "id", "started_at") or not queries.schema.has("job_steps", "started_at"):
        return []
    if queries.schema.is_local("job_tracking", "started_at") or not queries.schema.is_local("job_steps", "started_at"):
        return []
    jobs = await queries.jobs_where(
        session, f"started_at IS NOT NULL ORDER BY started_at DESC LIMIT {JOBS_COMPARED}", ()
    )
    steps = await queries.steps_of(session, {job.job_id: job.started_at for job in jobs})
    errors = []
    for job in jobs:
        begun = [step.started_at for step in steps.get(job.job_id, ()) if step.started_at is not None]
        if begun and job.started_at is not None:
            errors.append((min(begun) - job.started_at) / 1_000_000)
    return errors


def judge_zone(
    configured: str, zone: Zone, offset: int | None, errors: Sequence[float], now: float, *, host: str = ""
) -> Check:
    """Judge the zone. `offset`: the server's, seconds east of UTC; `errors`: see `_zone_errors`; `now`: in Unix time.

    `host`: the name of this host's zone. It is proposed where it fits, because it has rules for daylight saving time.
    """
    used = _offset_of(zone, now)
    words = f"{'auto: ' if configured == 'auto' else ''}{zone.name} (UTC{_hours(used)})"
    shown = _shown_by(errors)
    if shown.offset:
        wrong = shown.offset
        return failure(
            ZONE,
            f"{words} is wrong by {abs(wrong) / 3600:g} h: DATETIME columns are at UTC{_hours(used + wrong)}",
            [
                f"Shown by {shown.jobs}, whose first steps seem to start {_hours(wrong)} h after the job.",
                "If the zone has daylight saving time, set its name, e.g. Europe/Berlin.",
            ],
            _zone_setting(used + wrong, host, now),
        )
    agree = f"{shown.agreeing} of {shown.compared} recent jobs agree, the newest among them"
    proven = [agree] if shown.agreeing else []
    if offset is not None and offset != used:
        lines = [f"The server's own zone is at UTC{_hours(offset)} now.", *proven]
        if proven:
            return ok(ZONE, words, lines)
        return warning(
            ZONE,
            f"{words}, but the server is at UTC{_hours(offset)}, and no job shows which is right",
            ["Somebody has to decide: once a job has run, its first step shows it."],
            fix=["SELECT @@global.time_zone, @@system_time_zone;", "timedatectl"],
        )
    if configured == "auto" and zone.name.startswith("UTC") and offset:
        lines = ["The server's current offset is used, without daylight saving rules. It is read with the times."]
        return ok(ZONE, words, [*lines, *proven])
    return ok(ZONE, words, proven)


def _zone_setting(offset: int, host: str, now: float) -> list[str]:
    """Return the setting of a zone `offset` seconds east of UTC; Etc/GMT-2 is two hours east."""
    if host and datetime.fromtimestamp(now, ZoneInfo(host)).utcoffset() == timedelta(seconds=offset):
        return [f'database.timezone = "{host}"']
    if offset % 3600:
        return ["timedatectl list-timezones"]
    return [f'database.timezone = "{f"Etc/GMT{-offset // 3600:+d}" if offset else "UTC"}"']


def _zone_of_host() -> str:
    """Return the name of the zone that /etc/localtime links to; "" if it has none."""
    name = str(Path("/etc/localtime").resolve()).partition("/zoneinfo/")[2]
    return name if name in available_timezones() else ""


class ShownOffset(Struct, frozen=True):
    """The offset in seconds by which the newest jobs show that the zone is wrong; 0 if it is right.

    `agreeing`: the jobs that show the same, of those that show any offset (`compared`). 0: the newest do not agree.
    """

    offset: int
    agreeing: int
    compared: int

    @property
    def jobs(self) -> str:
        return f"{self.agreeing} of {self.compared} recent jobs, the newest among them"


def _shown_by(errors: Sequence[float]) -> ShownOffset:
    """Judge `errors`, the newest jobs first. They decide, because others may be older than a change of the zone."""
    near = [round(e / QUARTER) * QUARTER for e in errors]
    shown = [offset for e, offset in zip(errors, near, strict=True) if -5.0 <= e - offset <= NEAR]
    newest = Counter(shown[:DECIDING]).most_common(1)
    if not newest or newest[0][1] * 2 <= len(shown[:DECIDING]):
        return ShownOffset(0, 0, len(shown))
    offset, _ = newest[0]
    return ShownOffset(offset, shown.count(offset), len(shown))


async def clock(config: Config, session: Session) -> Check:
    if isinstance(config.database.url, SqliteUrl):
        return ok(CLOCK, "the clock of this host")
    began, wall = time.monotonic(), time.time()
    rows = await session.query("SELECT CAST(UNIX_TIMESTAMP(SYSDATE(6)) AS CHAR)")
    took = time.monotonic() - began
    return judge_clock(float(rows[0][0]) - (wall + took / 2), took)


def judge_clock(ahead: float, took: float) -> Check:
    """Judge the clock. `ahead`: seconds that the server's clock is ahead, known to ±`took`/2 seconds."""
    words = f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this host"
    fix = ["timedatectl set-ntp true", "timedatectl timesync-status", "SELECT UTC_TIMESTAMP(6);"]
    off = abs(ahead) - took / 2
    if off >= SKEW_WRONG:
        return failure(CLOCK, f"the server's clock is {words}", ["One of the two hosts has the wrong time."], fix)
    if off >= SKEW_NOTED:
        lines = ["The daemon uses the server's clock. Times in its journal are by this host's."]
        return warning(CLOCK, f"the server's clock is {words}", lines, fix)
    return ok(CLOCK, f"within {max(0.1, abs(ahead)):.1f} s of the server's")


def _offset_of(zone: Zone, now: float) -> int:
    """Seconds east of UTC at `now`."""
    local = int(now * 1_000_000)
    for _ in range(2):  # a zone converts local time, and only UTC is known
        local = int(now * 1_000_000) + (local - zone.utc(local))
    return (local - int(now * 1_000_000)) // 1_000_000


def _hours(seconds: float) -> str:
    sign = "-" if seconds < 0 else "+"
    minutes = round(abs(seconds) / 60)
    return f"{sign}{minutes // 60:02d}:{minutes % 60:02d}"


async def jobs_in_no_table(queries: Queries, session: Session, job_ids: list[str]) -> list[str]:
    """Return those of `job_ids` that neither job_tracking nor failover_jobs has."""
    known: set[str] = set()
    for table, column in (("job_tracking", "id"), ("failover_jobs", "job_id")):
        if queries.schema.has(table, column):
            for part in chunks(job_ids, IN_ONE):
                where = f"{column} IN ({queries.dialect.marks(part)})"
                rows = await session.query(f"SELECT {column} FROM {table} WHERE {where}", part)
                known.update(row[0] for row in rows)
    return [job_id for job_id in job_ids if job_id not in known]
