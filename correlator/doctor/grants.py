"""Parses SHOW GRANTS: which of our tables an account may read, and which other privileges it has. Pure.

A line may contain the hash of the password, so no line is ever printed unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from msgspec import Struct

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
        if self.kind or self.table not in ("*", quoted(table)):
            return False
        if self.base == "*":
            return True
        return _matches(self.base, database) if self.table == "*" else self.base == quoted(database)


class Rights(Struct, frozen=True):
    """`excess`: privileges beyond need, in words; `revoke` and `grant`: statements that leave the needed ones."""

    account: str
    missing: tuple[str, ...]
    excess: tuple[str, ...]
    revoke: tuple[str, ...]
    grant: tuple[str, ...]
    everywhere: frozenset[str] = frozenset()
    """Privileges that are granted on ``*.*``."""


def read(lines: Iterable[str], database: str, tables: Collection[str], also: Collection[str] = ()) -> Rights:
    """Parse `lines`. `tables`: tables to be read; `also`: global privileges that this configuration needs too."""
    grants, roles, account = _parsed(lines)
    missing = [t for t in tables if not _readable(grants, database, t)]
    own = [g for g in grants if g.to == account]
    excess: list[str] = []
    revoke: list[str] = []
    revoked: list[Grant] = []
    for role in roles:
        excess.append(f"the role {role}")
        revoke.append(f"REVOKE {role} FROM {account};")
    for grant in own:
        exact = [t for t in tables if grant.base == quoted(database) and grant.table == quoted(t)]
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
        tuple(select(database, lacking, account) if excess else ()),
        frozenset(name for g in grants if g.base == g.table == "*" and not g.kind for name, _ in g.privileges),
    )


def select(database: str, tables: Iterable[str], account: str) -> list[str]:
    """Return the statements that let `account` read `tables`."""
    return [f"GRANT SELECT ON {quoted(database)}.{quoted(table)} TO {account};" for table in tables]


def quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def _parsed(lines: Iterable[str]) -> tuple[list[Grant], list[str], str]:
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


def _matches(pattern: str, database: str) -> bool:
    r"""Match the database name of a grant, which is a pattern: `_` and `%` are wildcards, `\` escapes."""
    parts = re.findall(r"\\.|.", pattern[1:-1].replace("``", "`"), re.DOTALL)
    wild = {"_": ".", "%": ".*"}
    return bool(
        re.fullmatch("".join(wild.get(p, re.escape(p[-1])) for p in parts), database, re.DOTALL | re.IGNORECASE)
    )
