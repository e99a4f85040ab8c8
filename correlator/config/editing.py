"""Changes of configuration files that keep what they do not change: a key is set, the keys of a file move to a drop-in.

A changed text is parsed again before it is written: if it does not hold exactly what was meant, nothing is written.
"""

import contextlib
import fcntl
import json
import os
import re
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from correlator.config import files, loading, values
from correlator.config.files import Files
from correlator.config.loading import NO_CLUSTER
from correlator.config.rendering import GATEWAY
from correlator.config.schema import SECRET_HEADER, Config, Key, keys, leaves, repeated_tables
from correlator.errors import ConfigError, CorrelatorError

LOCAL = "50-local.toml"
"""The drop-in for keys that no file sets yet."""

MOVED = "00-moved.toml"
"""The drop-in for keys that stood in the file of the package. Its name is the first, so every other drop-in wins."""

LOCK_WITHIN = 10.0
"""Seconds to wait for another change of the same files."""


class NotSet(CorrelatorError):
    """A key or a value was refused. Nothing was written."""

    exit_code = 2


class NotWritten(CorrelatorError):
    """A file cannot be written."""


class KeyChange(NamedTuple):
    """A key, its value in TOML, and the file that sets it. `same`: it did so before.

    `value` None: the key was removed from the file. `file` None: no file had it.
    """

    dotted: str
    value: str | None
    file: Path | None
    same: bool


class Edited(NamedTuple):
    """What was changed. `before`, `after`: the configurations; None: wrong before, or a gateway without a cluster."""

    changes: tuple[KeyChange, ...]
    before: Config | None
    after: Config | None
    twice: tuple[str, ...]


def set_keys(
    main: Path,
    given: Sequence[tuple[str, str]],
    environ: Mapping[str, str],
    *,
    gateway: bool = False,
    may_be_missing: bool = False,
    lock_within: float = LOCK_WITHIN,
) -> Edited:
    """Set keys of the configuration `main` if it is right with them; else write nothing.

    A key is written into the file that sets it last, else into the drop-in `LOCAL`, so a value that is written is used.
    `given`: names and values as text. `may_be_missing`: there need not be any file yet. `lock_within`:
    seconds to wait for another command.

    Raises: `NotSet` and `NotWritten`; `ConfigError` with the problems that the configuration would have.
    """
    parsed = {dotted: _value(known_key(dotted, gateway=gateway), dotted, text) for dotted, text in given}
    folder = files.folder_of(main)
    if may_be_missing:
        _make(main.parent)

    def change(read: Files, texts: dict[Path, str]) -> Iterator[KeyChange]:
        for dotted, value in parsed.items():
            target = read.setter(dotted) or folder / LOCAL
            text = texts.get(target, read.texts.get(target, ""))
            texts[target] = with_value(target, text, tuple(dotted.split(".")), value)
            key = known_key(dotted, gateway=gateway)
            printed = key.parse(value) if key.is_url and key.parse is not None and value else value
            yield KeyChange(dotted, values.toml(printed), target, same=texts[target] == text)

    return _edit(main, environ, change, gateway=gateway, may_be_missing=may_be_missing, lock_within=lock_within)


def unset_keys(main: Path, given: Sequence[str], environ: Mapping[str, str], *, gateway: bool = False) -> Edited:
    """Remove keys, or whole tables such as `database.tls`, from all files of the configuration `main`.

    A table that is left empty is removed with its last key, because an empty [database.tls] switches TLS on. Nothing is
    written unless the configuration is right without them. Raises: see `set_keys`.
    """
    for dotted in given:
        if not _is_optional_table(dotted):
            known_key(dotted, gateway=gateway)

    def change(read: Files, texts: dict[Path, str]) -> Iterator[KeyChange]:
        for dotted in given:
            names = tuple(dotted.split("."))
            holding = [
                path for path, text in read.texts.items() if files.contains(tomllib.loads(texts.get(path, text)), names)
            ]
            for path in holding:
                texts[path] = without_value(path, texts.get(path, read.texts[path]), names)
                yield KeyChange(dotted, None, path, same=False)
            if not holding:
                yield KeyChange(dotted, None, None, same=True)

    return _edit(main, environ, change, gateway=gateway)


def _is_optional_table(dotted: str) -> bool:
    """Whether this is a table inside a section, which means something even if it is empty."""
    return dotted.count(".") == 1 and any(name.startswith(f"{dotted}.") for name, _ in leaves())


def _edit(
    main: Path,
    environ: Mapping[str, str],
    change: Callable[[Files, dict[Path, str]], Iterable[KeyChange]],
    *,
    gateway: bool,
    may_be_missing: bool = False,
    lock_within: float = LOCK_WITHIN,
) -> Edited:
    """Write the texts that `change` makes of the files if the configuration is right with them."""
    with _locked(main, lock_within):
        missing = may_be_missing and not (main.exists() or files.folder_of(main).exists())
        read = Files({}, {}) if missing else files.read(main)
        before: Config | None = None
        with contextlib.suppress(ConfigError):
            before = loading.load(main, environ, gateway=gateway)
        texts: dict[Path, str] = {}
        changes = [*change(read, texts)]
        try:
            after = loading.loaded(main, environ, gateway=gateway, replaced=texts)
        except ConfigError as error:
            if error.problems != (NO_CLUSTER,):
                raise
            after = None
        for target, text in texts.items():
            if text != read.texts.get(target):
                write(target, text)
    return Edited(tuple(changes), before, after and after.config, after.twice if after else ())


def move_keys(main: Path, shipped: str) -> Path | None:
    """Move the keys of `main` to the drop-in `MOVED`, and replace `main` by `shipped`, a text that sets no key.

    The values in use stay the same: those of `MOVED` and of other drop-ins win, as before. A link is left as it is,
    because its file belongs to something else. What `main` was is kept in a file beside it, which is returned; None:
    there was no key to move. Raises: `NotSet`, `NotWritten`; `ConfigError` if a file is not TOML.
    """
    if main.is_symlink():
        return None
    with _locked(main):
        read = files.read(main)
        text = read.texts.get(main, "")
        if not _keys_of(files.parse(main, text)):
            if text != shipped:
                write(main, shipped)
            return None
        drop_in = files.folder_of(main) / MOVED
        made = _with_keys_of(main, text, drop_in, read.texts.get(drop_in))
        if _keys_of(files.read(main, {main: shipped, drop_in: made}).merged) != _keys_of(read.merged):
            raise NotSet(f"{main}: its keys could not be moved to {drop_in}; they stay where they are")
        kept = main.with_name(f"{main.name}.dpkg-old")
        write(drop_in, made, like=main)
        write(kept, text, like=main)
        write(main, shipped)
    return kept


def with_value(path: Path, text: str, names: tuple[str, ...], value: Any) -> str:
    """Return the text of `path` with a key set, and everything else as it was. Raises: `NotSet`, `ConfigError`."""
    dotted = ".".join(names)
    wanted = deepcopy(files.parse(path, text))
    table: Any = wanted
    for name in names[:-1]:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise NotSet(f"{path}: {name} is no table there, so {dotted} cannot be set: correct the file first")
    if names[-1] in table and table[names[-1]] == value and type(table[names[-1]]) is type(value):
        return text
    table[names[-1]] = value
    text = text if not text or text.endswith("\n") else text + "\n"
    for candidate in _candidates(text, names, value):
        with contextlib.suppress(ValueError):
            if tomllib.loads(candidate) == wanted:
                return candidate
    raise NotSet(f"{path}: {dotted} cannot be set there, because its table has an unusual form: use an editor")


def without_value(path: Path, text: str, names: tuple[str, ...]) -> str:
    """Return the text of `path` without a key or table, and everything else as it was. Raises: `NotSet`."""
    wanted = _without(files.parse(path, text), names)
    lines, kept = files.lines(text), list[str]()
    at = 0
    for one in files.statements(text):
        kept += lines[at : one.start]
        at = one.end
        statement = "".join(lines[one.start : one.end])
        inside = names[len(one.table) :]
        if not one.value:  # the header of a table: it goes with the table
            if one.table == names[: len(one.table)] and len(one.table) > 1 and not files.contains(wanted, one.table):
                continue
        elif one.table[: len(names)] == names:
            continue
        elif one.table == names[: len(one.table)] and inside and files.contains(one.value, inside):
            if not (left := _without(one.value, inside)):
                continue
            name = next(iter(left))
            statement = f"{name} = {_inline(left[name])}\n"
        kept.append(statement)
    made = "".join([*kept, *lines[at:]])
    with contextlib.suppress(ValueError):
        if _keys_of(tomllib.loads(made)) == _keys_of(wanted):
            return made
    dotted = ".".join(names)
    raise NotSet(f"{path}: {dotted} cannot be removed there, because its table has an unusual form: use an editor")


def _without(table: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return a copy of a table without what the names lead to, and without tables that are empty then."""
    made = deepcopy(dict(table))
    if len(names) == 1:
        made.pop(names[0], None)
    elif isinstance(made.get(names[0]), dict):
        made[names[0]] = _without(made[names[0]], names[1:])
        if not made[names[0]]:
            del made[names[0]]
    return made


def write(path: Path, text: str, *, like: Path | None = None) -> None:
    """Write a file atomically. It keeps its mode and owner; a new one gets those of `like`, else is 0644.

    Raises: `NotWritten`.
    """
    path = path.resolve()
    _make(path.parent)
    try:
        model = next((one.stat() for one in (path, like) if one is not None and one.exists()), None)
        with replacing(path) as file:
            file.write(text.encode())
            os.fchmod(file.fileno(), model.st_mode & 0o7777 if model is not None else 0o644)
            if model is not None and (model.st_uid, model.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(file.fileno(), model.st_uid, model.st_gid)
    except OSError as error:
        raise _not_written(path, error) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that takes the place of `path` at the end, or is removed after an error. Its mode is 0600."""
    number, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(number, "wb") as file:
            yield file
            file.flush()
            os.fsync(number)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _make(folder: Path) -> None:
    """Make a folder, if it does not exist, that the service can read."""
    try:
        if not folder.exists():
            folder.mkdir()
            folder.chmod(0o755)  # also where root's umask is 077: the service has another account
    except OSError as error:
        raise _not_written(folder, error) from error


def _not_written(path: Path, error: OSError) -> NotWritten:
    hint = ": run it as root" if isinstance(error, PermissionError) else ""
    return NotWritten(f"{path}: cannot be written: {error.strerror or error}{hint}")


def known_key(dotted: str, *, gateway: bool) -> Key:
    """Return the key. Raises: `NotSet` if there is none, or if a command may not set it."""
    known, sections = dict(leaves()), keys(Config)
    section = re.split(r"[.\[]", dotted)[0]
    for table, _ in repeated_tables():
        if re.match(rf"{re.escape(table)}(?:$|[.\[])", dotted):
            raise NotSet(
                f"{dotted}: no key: there may be several {table}, and the keys of the first are {table}[1].KEY; to set"
                f" one, write the table [[{table}]] into a drop-in; see docs/configuration.md"
            )
    if gateway and section in sections and section not in GATEWAY:
        raise NotSet(f"{dotted}: a gateway does not read it; it reads {', '.join(f'[{one}]' for one in GATEWAY)}")
    if inside := [one for one in known if one.startswith(f"{dotted}.")]:
        raise NotSet(f"{dotted}: a section, no key; its keys are {', '.join(inside)}")
    if dotted not in known:
        raise NotSet(f"{dotted}: unknown key; {loading.nearest_key(dotted)}")
    return known[dotted]


def _value(key: Key, dotted: str, text: str) -> Any:
    """Return the value to write. Raises: `NotSet`; its message holds no secret."""
    if (way := _secret_way(key, dotted, text)) is not None:
        name, setting = way
        file = loading.DEFAULT_FILE.with_name(name)
        raise NotSet(
            f"{dotted}: a secret belongs neither on a command line nor in a file that everybody can read. Write it to"
            f" {file} (install --mode=600 /dev/stdin {file}), which the service gets, or to a file that {setting} names"
        )
    try:
        return loading.argument(key, text)
    except ValueError as error:
        raise NotSet(f"{dotted} = {values.shown(text, is_url=key.is_url)}: expected {error}") from None


def _secret_way(key: Key, dotted: str, text: str) -> tuple[str, str] | None:
    """Return the credential and the key of a file by which a secret goes in; None if the value is no secret."""
    if dotted == "otlp.headers":
        return ("otlp-headers", "otlp.headers_file") if SECRET_HEADER.search(text) else None
    if key.is_secret or (dotted == "database.url" and loading.holds_password(text)):
        file = f"{dotted.partition('.')[0]}.password_file"
        return dict(leaves())[file].credential, file
    return None


@contextlib.contextmanager
def _locked(main: Path, within: float = LOCK_WITHIN) -> Iterator[None]:
    """Keep other changes of the same files away. Raises: `NotWritten`."""
    try:
        number = os.open(main.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise NotWritten(f"{main.parent}: cannot be read: {error.strerror}") from error
    try:
        deadline = time.monotonic() + within
        while True:
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise NotWritten(f"{main.parent}: another command changes the configuration: try again") from None
                time.sleep(0.02)
        yield
    finally:
        os.close(number)


def _with_keys_of(main: Path, text: str, path: Path, old: str | None) -> str:
    """Return the text of `path` with the keys of `main`, whose text is `text`. What `path` sets already stays."""
    made = old if old is not None else f"# Keys that were set in {main}: an upgrade of the package moved them here.\n"
    held, moved = files.parse(path, made), files.parse(main, text)
    for names, value in _leaves(moved):
        if not files.are_tables(value) and not files.contains(held, names):
            made = with_value(path, made, names, value)
    lines = files.lines(text)
    for statement in files.statements(text):  # the tables of lists, as they are written
        at = next((at for at, name in enumerate(statement.table) if isinstance(name, int)), None)
        if at is not None and _at(moved, statement.table[: at + 1]) not in (_at(held, statement.table[:at]) or ()):
            header = "" if statement.value else "\n"
            made += header + "".join(lines[statement.start : statement.end])
    return made


def _keys_of(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections that are not empty; of a list of tables, each once and without their order."""
    return {name: _unordered(value) for name, value in table.items() if value}


def _unordered(value: Any) -> Any:
    if files.are_tables(value):
        return set(map(repr, value))
    return {name: _unordered(inner) for name, inner in value.items()} if isinstance(value, dict) else value


def _at(table: Any, names: Sequence[str | int]) -> Any:
    """Return the value that names lead to; None if there is none."""
    for name in names:
        if not files.contains(table, (name,)):
            return None
        table = table[name]
    return table


def _leaves(table: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the keys and their values; an empty table inside a section is one too: [mqtt.tls] switches TLS on."""
    for name, value in table.items():
        if isinstance(value, dict) and (value or not above):
            yield from _leaves(value, (*above, name))
        else:
            yield (*above, name), value


def _candidates(text: str, names: tuple[str, ...], value: Any) -> Iterator[str]:
    """Yield texts that may have the key set: the first one that does is the best. `text` ends with a line end."""
    lines = files.lines(text)
    found = list(files.statements(text))
    table, line = names[:-1], f"{names[-1]} = {_inline(value)}\n"
    # 1. The key, or the inline table that it belongs to, is there: another value in its place.
    for one in found:
        inside = names[len(one.table) :] if one.value and names[: len(one.table)] == one.table else ()
        if inside and inside[0] in one.value:
            changed = _replaced("".join(lines[one.start : one.end]), inside, value)
            if changed is not None:
                yield "".join([*lines[: one.start], changed, *lines[one.end :]])
    # 2. Its table has a header: below the last key.
    for one in reversed(found):
        if one.table == table:
            indent = re.match(r"[ \t]*", lines[one.start])
            yield "".join([*lines[: one.end], f"{indent[0] if indent else ''}{line}", *lines[one.end :]])
            break
    # 3. Its table is not there yet.
    yield text + ("\n" if text else "") + f"[{'.'.join(table)}]\n{line}"
    # 4. Its table is made by dotted keys, e.g. tls.ca = "..." below [database].
    for one in reversed(found):
        if one.value and names[: len(one.table)] == one.table and names[len(one.table)] in one.value:
            yield "".join([*lines[: one.end], f"{'.'.join(names[len(one.table) : -1])}.{line}", *lines[one.end :]])


def _replaced(statement: str, names: Sequence[str], value: Any) -> str | None:
    """Return the statement, `name = value` and perhaps a comment, with another value; None if it has another form."""
    equals = next((at for at, sign in enumerate(statement) if sign == "=" and _is_toml(f"{statement[:at]}=0")), None)
    if equals is None:
        return None
    comment = next((at for at, sign in enumerate(statement) if sign == "#" and _is_toml(statement[:at])), None)
    kept = f"  {statement[comment:]}" if comment is not None else "\n"
    held: Any = tomllib.loads(statement)
    target: Any = tomllib.loads(f"{statement[:equals]}=0")
    inside = list(names)
    while isinstance(target, dict):  # the names before the equals sign
        if not inside or inside[0] not in target:
            return None
        held, target = held[inside[0]], target[inside[0]]
        del inside[0]
    if not inside:
        return f"{statement[:equals]}= {_inline(value)}{kept}"
    table = held
    for name in inside[:-1]:
        table = table.setdefault(name, {}) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        return None
    table[inside[-1]] = value
    return f"{statement[:equals]}= {_inline(held)}{kept}"


def _inline(value: Any) -> str:
    if isinstance(value, dict) and value:
        return "{ " + ", ".join(f"{json.dumps(name)} = {_inline(one)}" for name, one in value.items()) + " }"
    return "{}" if value == {} else values.toml(value)


def _is_toml(text: str) -> bool:
    try:
        tomllib.loads(text)
    except ValueError:
        return False
    return True
