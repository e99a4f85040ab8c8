"""Checks of the database account: login, encryption of the connection, and privileges."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from shlex import quote

from correlator.config.schema import Config
from correlator.config.values import MysqlUrl, SqliteUrl
from correlator.doctor import fixes, grants, service
from correlator.doctor.check import Check, failure, ok, some, warning
from correlator.doctor.link import Link, code_of
from correlator.doctor.service import Setting
from correlator.errors import SourceUnavailable
from correlator.pipeline.source_status import CONNECTIONS as NEEDED
from correlator.pipeline.source_status import few_connections
from correlator.sources.db.session import TABLES, Session

LOGIN, TLS, RIGHTS = "database.login", "database.tls", "database.rights"
CONNECTIONS = "database.connections"

_ACCOUNT = re.compile(r"'(?P<user>[^']*)'@'(?P<host>[^']*)'")
_OLDEST, _NEWEST = (10, 5), (11, 8)
_DOORBELL = ("REPLICATION SLAVE", "BINLOG MONITOR")


async def login(setting: Setting, link: Link) -> Check:
    """Log in with the password that the files hold now. A failure contains the cause and its fix."""
    config = setting.config
    url = config.database.url
    began = time.monotonic()
    try:
        await link.open()
    except SourceUnavailable as error:
        return refused(setting, str(error), code_of(error))
    took = (time.monotonic() - began) * 1000
    if isinstance(url, SqliteUrl):
        return ok(LOGIN, f"{url.path} can be read")
    rows = await link.query("SELECT CURRENT_USER(), VERSION(), @@version_comment")
    account, version, comment = map(str, rows[0])
    words = f"{account} at {_place(config)}, {version}, in {took:.0f} ms"
    found = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if "mariadb" not in (version + comment).lower():
        return warning(LOGIN, f"{words}: this server is not MariaDB. The correlator is tested with MariaDB only.")
    if not _OLDEST <= found <= _NEWEST:
        return warning(LOGIN, f"{words}: the correlator is tested with MariaDB 10.5 to 11.8 only.")
    return ok(LOGIN, words)


def refused(setting: Setting, words: str, code: int | None) -> Check:
    """Return the failed login. `code`: MariaDB's error number, or None if the error is not from MariaDB."""
    config = setting.config
    url, settings = config.database.url, config.database
    if isinstance(url, SqliteUrl):
        return failure(LOGIN, words, fix=[f"ls -l {quote(str(url.path))}"])
    denied = _ACCOUNT.search(words)
    named = account = f"'{denied['user']}'@'{denied['host']}'" if denied else f"'{url.user}'@'%'"
    if denied and denied["host"] == "localhost" and url.host.startswith("127.") and settings.unix_socket is None:
        account = f"'{denied['user']}'@'{url.host}'"  # as README and grants.sql have it
    not_examined = ["Without a login these are not examined: rights, schema, time zone, clock, and the use of the log."]
    match code:
        case 1045:
            given = (
                f"the password of {fixes.password_source(setting)} was tried"
                if settings.password
                else "no password was given"
            )
            detail = [f"The account does not exist for this host, or its password differs; {given}."]
            if "db-password" in service.outdated(setting):
                detail.append("The running service uses the password that it was started with, until it is restarted.")
            if settings.tls is None:
                detail.append("MariaDB gives the same error for accounts that require TLS; [database.tls] is not set.")
            fix = [
                *fixes.new_password(setting, account, named if named != account else None),
                *grants.select(url.database, TABLES, account),
                *fixes.restart(setting),
            ]
        case 1044:
            detail = ["The account exists and has no privilege in this database."]
            fix = grants.select(url.database, TABLES, account)
        case 1049:
            detail = ["The server has no database of this name."]
            detail.append("Set the correct name in database.url.")
            fix = ["SHOW DATABASES;"]
        case 1040 | 1203 | 1226:
            detail = [f"The server or this account has no connection left. The daemon needs {NEEDED}, this program 1."]
            fix = [f"ALTER USER {account} WITH MAX_USER_CONNECTIONS 24;", "SHOW PROCESSLIST;"]
        case _ if "offers no TLS" in words:
            detail = ["The configuration requires TLS, and MariaDB has no certificate."]
            fix = ["SHOW VARIABLES LIKE 'have_ssl';"]
        case _ if "certificate" in words.lower():
            detail = ["The server's certificate is not trusted by database.tls.ca, or is for another name."]
            fix = [f"openssl s_client -starttls mysql -connect {url.host}:{url.port} -showcerts </dev/null"]
        case _:
            detail = []
            fix = (
                ["systemctl start mariadb", "systemctl status mariadb"]
                if fixes.is_here(config)
                else [f"nc -vz {url.host} {url.port}"]
            )
    return failure(LOGIN, words, [*detail, *not_examined], fix)


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
    if fixes.is_here(config):
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


async def rights(config: Config, session: Session) -> Check:
    assert isinstance(config.database.url, MysqlUrl)
    lines = [str(row[0]) for row in await session.query("SHOW GRANTS")]
    return judge_rights(config, lines)


def judge_rights(config: Config, lines: Sequence[str]) -> Check:
    url = config.database.url
    assert isinstance(url, MysqlUrl)
    tables = [t for t in TABLES if t != "failover_jobs" or config.jobs.legacy]
    doorbell = config.database.doorbell
    found = grants.read(lines, url.database, TABLES, also=_DOORBELL if doorbell else ())
    missing = [t for t in found.missing if t in tables]
    if missing:
        return failure(
            RIGHTS,
            f"no SELECT on {some(missing)}",
            [*(f"Granted beyond need: {words}." for words in found.excess)],
            [*grants.select(url.database, missing, found.account), *found.revoke],
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


def _place(config: Config) -> str:
    url = config.database.url
    if config.database.unix_socket is not None:
        return str(config.database.unix_socket)
    return f"{url.host}:{url.port}" if isinstance(url, MysqlUrl) else str(url.path)
