"""The way into the database: reached or not, encrypted or not, and what the account may do there."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from shlex import quote

from correlator.doctor import grants
from correlator.doctor.check import Check, failure, ok, some, warning
from correlator.doctor.link import Link, code_of
from correlator.errors import SourceUnavailable
from correlator.settings import Config
from correlator.sources.database import TABLES, Session
from correlator.values import MysqlUrl, SqliteUrl

LOGIN, TLS, RIGHTS = "database.login", "database.tls", "database.rights"

_WHO = re.compile(r"'(?P<user>[^']*)'@'(?P<host>[^']*)'")
_OLDEST, _NEWEST = (10, 5), (11, 8)
_DOORBELL = ("REPLICATION SLAVE", "BINLOG MONITOR")


async def login(config: Config, link: Link) -> Check:
    """Connect as the daemon does. A failure says what stands in the way."""
    url = config.database.url
    began = time.monotonic()
    try:
        await link.open()
    except SourceUnavailable as error:
        return refused(config, str(error), code_of(error))
    took = (time.monotonic() - began) * 1000
    if isinstance(url, SqliteUrl):
        return ok(LOGIN, f"{url.path} can be read")
    rows = await link.query("SELECT CURRENT_USER(), VERSION(), @@version_comment")
    account, version, comment = map(str, rows[0])
    words = f"{account} at {_place(config)}, {version}, in {took:.0f} ms"
    found = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if "mariadb" not in (version + comment).lower():
        return warning(LOGIN, f"{words}: this is no MariaDB, with which nothing was tested")
    if not _OLDEST <= found <= _NEWEST:
        return warning(LOGIN, f"{words}: tested are MariaDB 10.5 to 11.8")
    return ok(LOGIN, words)


def refused(config: Config, words: str, code: int | None) -> Check:
    """`code`: MariaDB's own number of the error, if it was MariaDB that refused."""
    url, settings = config.database.url, config.database
    if isinstance(url, SqliteUrl):
        return failure(LOGIN, words, mend=[f"ls -l {quote(str(url.path))}"])
    who = _WHO.search(words)
    account = f"'{who['user']}'@'{who['host']}'" if who else f"'{url.user}'@'%'"
    not_looked = ["for that reason not looked at: rights, schema, time zone, clock, and how the log is used"]
    match code:
        case 1045:
            given = "a password was given" if settings.password else "no password was given"
            detail = [f"either the account does not exist for this host, or its password is another one; {given}"]
            if settings.tls is None:
                detail.append("an account that requires TLS is refused in the same words: [database.tls] is not set")
            mend = [
                f"CREATE USER IF NOT EXISTS {account} IDENTIFIED BY 'the password';",
                f"ALTER USER {account} IDENTIFIED BY 'the password';",
                *grants.select(url.database, TABLES, account),
            ]
        case 1044:
            detail = ["the account exists and has no right in this database"]
            mend = grants.select(url.database, TABLES, account)
        case 1049:
            detail = ["the server has no database of this name"]
            mend = ["SHOW DATABASES;", 'url = "mysql://…/the right name" under [database] in the configuration']
        case 1040 | 1203 | 1226:
            detail = ["the server, or this account, has no connection left; the daemon needs 4, this program one"]
            mend = [f"ALTER USER {account} WITH MAX_USER_CONNECTIONS 10;", "SHOW PROCESSLIST;"]
        case _ if "offers no TLS" in words:
            detail = ["encryption is asked for here, and MariaDB has no certificate"]
            mend = ["SHOW VARIABLES LIKE 'have_ssl';"]
        case _ if "certificate" in words.lower():
            detail = ["the server's certificate is not one that database.tls.ca trusts, or is for another name"]
            mend = [f"openssl s_client -starttls mysql -connect {url.host}:{url.port} -showcerts </dev/null"]
        case _:
            detail = []
            mend = ["systemctl status mariadb"] if _here(config) else [f"nc -vz {url.host} {url.port}"]
    return failure(LOGIN, words, [*detail, *not_looked], mend)


async def encryption(config: Config, session: Session) -> Check:
    cipher = await session.query("SHOW SESSION STATUS LIKE 'Ssl_cipher'")
    version = await session.query("SHOW SESSION STATUS LIKE 'Ssl_version'")
    used = str(cipher[0][1]) if cipher else ""
    return judge_encryption(config, f"{version[0][1]} {used}" if used and version else used)


def judge_encryption(config: Config, used: str) -> Check:
    """`used`: protocol and cipher, empty where there is none."""
    settings = config.database
    if used and settings.tls is not None and not settings.tls.verify:
        return warning(
            TLS,
            f"{used}, but nobody checks whose certificate it is",
            mend=['verify = true, and ca = "/path/to/ca.pem", under [database.tls] in the configuration'],
        )
    if used:
        return ok(TLS, used)
    if _here(config):
        return ok(TLS, "not encrypted: the server is on this host")
    return warning(
        TLS,
        "not encrypted: the password's exchange and every row can be read on the way",
        mend=['[database.tls] with ca = "/path/to/ca.pem" in the configuration, and REQUIRE SSL for the account'],
    )


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
            [*(f"and more than needed: {words}" for words in found.excess)],
            [*grants.select(url.database, missing, found.account), *found.revoke],
        )
    if doorbell and not found.everywhere & {"REPLICATION SLAVE", "ALL PRIVILEGES"}:
        lines = ["polling goes on without it", *(f"and more than needed: {words}" for words in found.excess)]
        mend = [f"GRANT REPLICATION SLAVE ON *.* TO {found.account};", *found.grant, *found.revoke]
        return warning(RIGHTS, "database.doorbell is on, and REPLICATION SLAVE is not granted", lines, mend)
    if found.excess:
        return warning(
            RIGHTS,
            f"more than SELECT on the four tables: {some(found.excess)}",
            ["the correlator only ever reads; whoever gets at its password could do the rest"],
            [*found.grant, *found.revoke],
        )
    return ok(RIGHTS, "SELECT on the four tables, and nothing else")


def _place(config: Config) -> str:
    url = config.database.url
    if config.database.unix_socket is not None:
        return str(config.database.unix_socket)
    return f"{url.host}:{url.port}" if isinstance(url, MysqlUrl) else str(url.path)


def _here(config: Config) -> bool:
    url = config.database.url
    if config.database.unix_socket is not None or isinstance(url, SqliteUrl):
        return True
    return url.host == "localhost" or url.host.startswith("127.") or url.host == "::1"
