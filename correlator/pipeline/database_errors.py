"""What an error of the database means, and what fixes it: the one table that the source, readiness and the doctor read.

A row is found by the number of the error, and by its words where one number means several things. A meaning names no
host, account or query: anybody may read it in `/health/ready`.
"""

from __future__ import annotations

import re

from msgspec import Struct

from correlator.errors import Away


class Fault(Struct, frozen=True):
    """The meaning of an error. `reason`: its kind. `meaning`: completes a sentence about the database.

    `fix`: commands of the doctor in any of its forms (`correlator.doctor.report`), with the names of `PLACES` in
    braces. `decide`: what a person has to decide, and no command can; "" if the first command ends the error.
    """

    reason: Away
    meaning: str
    fix: tuple[str, ...] = ()
    decide: str = ""


PLACES = ("account", "database", "table", "host", "port")
"""What a command may name: account and table as SQL, the others as they are in the configuration."""

NEW_PASSWORD, GRANTS, START = "{new password}", "{grants}", "{start}"
"""Stand for the commands that give the account the configured password, that let it read the tables, and that start the
server or show where it listens."""

_PROCESSES = "SHOW FULL PROCESSLIST;"
_DISK = "SELECT @@datadir, @@tmpdir;"
_FULL = Fault(
    Away.FAILED,
    "the disk of the database server is full",
    (_DISK, "df -h"),
    "Somebody has to free space on the disk that holds the database or its temporary files.",
)
_CRASHED = Fault(Away.FAILED, "the table is damaged and has to be repaired", ("REPAIR TABLE {database}.{table};",))
_EXPIRED = Fault(
    Away.LOGIN_REFUSED,
    "the password of the account has expired",
    (NEW_PASSWORD, "ALTER USER {account} PASSWORD EXPIRE NEVER;"),
)
_ACCOUNT_FULL = Fault(
    Away.NO_CONNECTION,
    "the account has as many connections as it may have (max_user_connections)",
    ("ALTER USER {account} WITH MAX_USER_CONNECTIONS 24;", _PROCESSES),
)


def _per_hour(limit: str, what: str) -> Fault:
    return Fault(
        Away.NO_CONNECTION,
        f"the account has used its {what} of this hour ({limit.lower()})",
        (f"ALTER USER {{account}} WITH {limit} 0;", "FLUSH USER_RESOURCES;"),
    )


_ROWS: tuple[tuple[tuple[int, ...], str, Fault], ...] = (
    ((1045,), "", Fault(
        Away.LOGIN_REFUSED,
        "the account does not exist for this host, its password differs, or it requires TLS",
        (NEW_PASSWORD, GRANTS),
    )),
    ((1698,), "", Fault(
        Away.LOGIN_REFUSED,
        "the account has no password: it logs in as the operating system's user of its name, over the socket",
        (NEW_PASSWORD,),
    )),
    ((4151,), "", Fault(
        Away.LOGIN_REFUSED, "somebody has locked the account", ("ALTER USER {account} ACCOUNT UNLOCK;",)
    )),
    ((1820, 1862), "", _EXPIRED),
    ((3159,), "", Fault(
        Away.LOGIN_REFUSED,
        "the server accepts encrypted connections only (require_secure_transport), and [database.tls] is not set",
        ("database.tls.verify = true",),
    )),
    ((1044,), "", Fault(
        Away.LOGIN_REFUSED,
        "the account has no privilege in this database, or there is none of this name",
        (GRANTS, "SHOW DATABASES;"),
        "If it is not listed, somebody has to decide which database has the tables, and set it in database.url.",
    )),
    ((1049,), "", Fault(
        Away.LOGIN_REFUSED,
        "the server has no database of this name",
        ("SHOW DATABASES;",),
        "Somebody has to decide which database has the tables, and set its name in database.url.",
    )),
    ((1130,), "", Fault(
        Away.LOGIN_REFUSED, "the server has no account for this host", (NEW_PASSWORD, GRANTS)
    )),
    ((1129,), "", Fault(
        Away.LOGIN_REFUSED, "the server has blocked this host after many connections that failed", ("FLUSH HOSTS;",)
    )),
    ((1142, 1143, 1227, 1370), "", Fault(Away.MISSING_GRANTS, "SELECT on it is not granted", (GRANTS,))),
    ((1146,), "", Fault(
        Away.FAILED,
        "the table does not exist",
        ("SHOW TABLES;",),
        "Somebody has to decide: JobLog makes its tables, and a backup or database.url may be the wrong one.",
    )),
    ((1226,), "max_queries_per_hour|max_questions", _per_hour("MAX_QUERIES_PER_HOUR", "queries")),
    ((1226,), "max_updates_per_hour|max_updates", _per_hour("MAX_UPDATES_PER_HOUR", "updates")),
    ((1226,), "max_connections_per_hour", _per_hour("MAX_CONNECTIONS_PER_HOUR", "connections")),
    ((1203, 1226), "", _ACCOUNT_FULL),
    ((1040,), "", Fault(
        Away.UNREACHABLE,
        "the server has no connection left for anybody (max_connections)",
        ("SET GLOBAL max_connections = @@GLOBAL.max_connections + 50;", _PROCESSES),
    )),
    ((1053, 1077, 1079, 1152, 1184, 1927), "", Fault(
        Away.UNREACHABLE, "the server has closed the connection, or shuts down", (START,)
    )),
    ((1021, 1114), "", _FULL),
    ((3, 1030, 1026), r"no space left|errno: 28|error 28", _FULL),
    ((1194, 1195, 1034, 1035, 144, 145), "", _CRASHED),
    ((1205,), "", Fault(
        Away.LOCKED,
        "another session has locked the table",
        (_PROCESSES,),
        "Somebody has to decide: KILL ends the session that holds the lock, and what it was doing.",
    )),
    ((1969,), "", Fault(
        Away.SLOW,
        "the server ended the query after max_statement_time",
        (_PROCESSES,),
        "Somebody has to find what keeps the server busy.",
    )),
    ((2003,), r"refused|Errno 111|No such file", Fault(
        Away.UNREACHABLE, "no server listens at this address", (START,)
    )),
    ((2003, 2005), r"Name or service not known|getaddrinfo|name resolution|No address", Fault(
        Away.UNREACHABLE, "its host name leads to no address", ("getent hosts {host}",),
        "Somebody has to correct the name in database.url, or the name service of this host.",
    )),
    ((2003, 2005), "", Fault(Away.UNREACHABLE, "no connection can be made to this address", (START,))),
    ((2006, 2013), "", Fault(Away.UNREACHABLE, "the connection broke off", (START,))),
)  # fmt: skip
"""By number: 1 to 999 are of a table's engine and of the operating system, 2000 to 2999 of the client library."""


_OF_REASON = {
    Away.NO_ANSWER: Fault(
        Away.NO_ANSWER,
        "the server is frozen or overloaded, or the network drops its packets",
        (_PROCESSES,),
        "Somebody has to decide whether to restart the server: it ends what the server is doing.",
    ),
}
"""The meaning of an error that has no number."""


def fault_of(code: int | None, words: str, reason: Away | None = None) -> Fault | None:
    """Return the meaning of an error with this number and these words, else of this kind; None if there is none."""
    for codes, pattern, fault in _ROWS:
        if code in codes and re.search(pattern, words, re.IGNORECASE):
            return fault
    return _OF_REASON.get(reason) if reason is not None else None
