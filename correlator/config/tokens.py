"""The tokens of clients: the tables `[[http.tokens]]`, and the files that hold tokens, one a line.

A file may hold several tokens: while one is rotated, clients use the old and the new one. A token is compared as it
is written. The tokens of `http.tokens_file` have no name, and all rights.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, get_args

from correlator.config.values import Section, instant, nearest, read_secret, shown_path, text_like, texts_like
from correlator.config.values import key as _key
from correlator.errors import ConfigError
from correlator.model.job_token import MIN_KEY

Scope: TypeAlias = Literal["read", "metrics"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

MIN_TOKEN = 16
"""Least characters of a token. A shorter one can be guessed."""

MAX_KEYS = 2
"""While the key of tokens for one job is rotated, two are accepted."""

MAX_TOKENS = 100
"""Most tables `[[http.tokens]]`. Each token is compared with the one of every request."""


def scopes(raw: object) -> tuple[str, ...]:
    """Parse what a token may be used for."""
    if not isinstance(raw, list) or not raw:
        raise ValueError('a list of scopes, e.g. ["read"]')
    for one in raw:
        if one not in SCOPES:
            raise ValueError(f"a list of scopes; {nearest(str(one), SCOPES)}")
    return tuple(raw)


@dataclass(frozen=True, kw_only=True)
class Token(Section):
    name: str = _key(
        "",
        "Names the token in the journal, in metrics and as a credential. Required, unique.",
        text_like(r"[a-z0-9][a-z0-9-]{0,31}", "a name of up to 32 characters a-z 0-9 -, e.g. gui"),
    )
    file: Path | None = _key(
        None,
        "A file with the token; while it is rotated, with the old and the new one, one a line; # comments. Also as the"
        " credential api-token-NAME. Required.",
        credential="api-token-{name}",
    )
    expires: datetime | None = _key(
        None,
        "When the token ends, e.g. 2026-12-31T00:00:00Z. Connections that use it are closed then. Empty: never.",
        instant,
    )
    scope: tuple[str, ...] = _key(
        ("read",), "What it may be used for. read: everything except metrics. metrics: /metrics alone.", scopes
    )
    instances: tuple[str, ...] = _key(
        (),
        "At a gateway: the appliances that it may see; empty: all.",
        texts_like(r"[A-Za-z0-9_-]{1,64}", 'names of appliances, e.g. ["dc1"]'),
    )


class AcceptedToken(NamedTuple):
    """A token that clients may use. `table`: None for one of `http.tokens_file`."""

    secret: str
    table: Token | None = None

    def __repr__(self) -> str:
        return f"AcceptedToken({self.table.name if self.table is not None else ''!r})"


def accepted(tokens_file: Path | None, tables: Sequence[Token]) -> list[AcceptedToken]:
    """Return the tokens of `http.tokens_file`, and those of `[[http.tokens]]`.

    Raises: `ConfigError` if a file cannot be used.
    """
    found, problems = _read(tokens_file, tables)
    if problems:
        raise ConfigError([line for _, line in problems])
    return found


def _read(tokens_file: Path | None, tables: Sequence[Token]) -> tuple[list[AcceptedToken], list[tuple[str, str]]]:
    """Return the tokens that can be used, and the problems, each with its key."""
    found: dict[str, AcceptedToken] = {}
    problems: list[tuple[str, str]] = []
    tables_by_key = {f"http.tokens[{number}].file": table for number, table in enumerate(tables, 1)}
    for key, table in {"http.tokens_file": None, **tables_by_key}.items():
        try:
            secrets = read_lines(table.file if table is not None else tokens_file, key)
        except ConfigError as error:
            problems += [(key, line) for line in error.problems]
            continue
        if any(secret in found for secret in secrets):
            problems.append((key, f"{key}: it holds a token of another file: each needs tokens of its own"))
        found |= {secret: AcceptedToken(secret, table) for secret in secrets}
    return list(found.values()), problems


def read_lines(file: Path | None, label: str, *, what: str = "token", least: int = MIN_TOKEN) -> list[str]:
    """Return the texts of a file, one a line; `#` begins a comment. A file without any is an error.

    It must not switch authentication off. `label`: the key that names the file; `least`: characters of each text.

    Raises: `ConfigError` with the lines that are wrong.
    """
    if file is None:
        return []
    found: list[str] = []
    problems: list[str] = []
    for number, line in enumerate(read_secret(file, label).splitlines(), 1):
        text = re.split(r"(?:^|\s)#", line)[0].strip()
        place = f"{label}: {shown_path(file)}, line {number}"
        if re.search(r"\s", text):
            problems.append(f"{place}: expected one {what} a line, without a space in it")
        elif text and len(text) < least:
            how = f"openssl rand -base64 {least * 3 // 2}"
            problems.append(
                f"{place}: a {what} of {len(text)} characters can be guessed; expected {least} or more, e.g. from {how}"
            )
        elif text:
            found.append(text)
    if not found and not problems:
        problems.append(f"{label}: expected one {what} a line in {shown_path(file)}, and at least one")
    if problems:
        raise ConfigError(problems)
    return found


def job_token_keys(file: Path | None) -> list[str]:
    """Return the keys of tokens for one job: the first one signs, each is accepted. Raises: `ConfigError`."""
    label = "http.job_token_key_file"
    found = read_lines(file, label, what="key", least=MIN_KEY)
    if len(found) > MAX_KEYS:
        raise ConfigError([f"{label}: expected one key in {shown_path(file or Path())}, or two while it is rotated"])
    return found


def contradictions(
    tokens_file: Path | None, tables: Sequence[Token], place: Callable[[str], str], *, gateway: bool
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the problems between values that are each valid: the keys involved, and the message.

    `place(key)`: the place of a key in the files.
    """
    if len(tables) > MAX_TOKENS:
        yield ("http.tokens",), f"http.tokens: expected {MAX_TOKENS} tables at most, not {len(tables)}"
    yield from (((key,), line) for key, line in _read(tokens_file, tables)[1])
    first: dict[str, str] = {}
    for number, table in enumerate(tables, 1):
        name, file, instances = (f"http.tokens[{number}].{key}" for key in ("name", "file", "instances"))
        if table.name and table.name in first:
            where = place(first[table.name])
            yield (name,), f'{name} = "{table.name}": expected another name: the one in {where} has it already'
        first.setdefault(table.name, name)
        if not table.name:
            yield (name,), f"{name}: expected a name, e.g. gui"
        elif table.file is None:
            yield (file,), f"{file}: expected a file with the token, or the credential api-token-{table.name}"
        if table.instances and not gateway:
            yield (instances,), f"{instances}: only a gateway has several appliances: remove it"
        if table.instances and "metrics" in table.scope:
            yield (instances,), f"{instances}: metrics name all appliances: give them to a token of their own"
