"""The files of a configuration: FILE.toml and the drop-ins of its folder, merged, and the place of each key in them.

The folder of `correlator.toml` is `conf.d`, that of any other `NAME.toml` is `NAME.d` beside it. Its files `*.toml` are
read after FILE.toml, in the order of their names, and the last value of a key is used. Repeated tables, such as
`[[webhooks]]`, are kept from all files.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from correlator.errors import ConfigError

MAX_BYTES = 1024 * 1024
"""Maximum bytes of a file."""

MAX_DROP_INS = 100
"""Maximum number of files in a folder."""

MAX_LEVELS = 20
"""Maximum nesting of tables. The configuration has three levels."""

_PART = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
_LINE = re.compile(r"[^\n]*\n|[^\n]+")  # str.splitlines also splits at characters that a text of TOML may hold


Names = tuple[str | int, ...]
"""The names that lead to a table or key; a number for a table of a list, from 0."""


class FilePlace(NamedTuple):
    """A file, and the line where a key or table begins in it. Printed as FILE:LINE."""

    file: Path
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Files:
    """The files that were read, in order, and their tables merged.

    `twice`: a warning for each key that two of them set. Keys have dotted names here; the tables of a list are
    numbered from 1 over all files, as in `webhooks[2].url`.
    """

    def __init__(self, texts: Mapping[Path, str], parsed: Mapping[Path, dict[str, Any]]) -> None:
        """`parsed`: the tables of each text. Raises: `ConfigError` if tables are nested too deeply."""
        self.texts = texts
        self.merged: dict[str, Any] = {}
        self._setters: dict[str, Path] = {}
        self._tables: dict[str, list[tuple[Path, int]]] = {}
        self._lines: dict[Path, dict[Names, int]] = {}
        twice: list[tuple[str, Path, Path]] = []
        for path, table in parsed.items():
            self._merge(self.merged, table, "", path, twice)
        self.twice = tuple(
            f"{dotted} is set in {self._place(first, dotted)} and in {self._place(last, dotted)}: the last one is used"
            for dotted, first, last in twice
        )

    def setter(self, dotted: str) -> Path | None:
        """Return the last file that sets this key or has this table; None if no file does."""
        return self._setters.get(dotted)

    def place(self, dotted: str) -> FilePlace | None:
        """Return where a key is set, else the table around it; None if neither is in a file."""
        names = _parts(dotted)
        at = next((at for at, name in enumerate(names) if isinstance(name, int)), 0)
        if at and (of_list := self._tables.get(".".join(map(str, names[:at])))):
            file, names[at] = of_list[int(names[at])]
            return self._first_line(file, names)
        while names:
            if (file_of_key := self.setter(".".join(map(str, names)))) is not None:
                return self._first_line(file_of_key, names)
            names.pop()
        return None

    def holds(self, dotted: str) -> bool:
        """Return whether a key has a value: one of a file, or one that was put into `merged` since."""
        return contains(self.merged, _parts(dotted))

    def _merge(
        self, into: dict[str, Any], table: dict[str, Any], above: str, path: Path, twice: list[tuple[str, Path, Path]]
    ) -> None:
        if above.count(".") > MAX_LEVELS:
            raise ConfigError([f"{path}: not TOML that can be read: too deep"])
        for name, value in table.items():
            dotted, held = above + name, into.get(name)
            if isinstance(value, dict) and (held is None or isinstance(held, dict)):
                self._merge(into.setdefault(name, {}), value, f"{dotted}.", path, twice)
            elif are_tables(value) and (held is None or are_tables(held)):
                into[name] = [*(held or ()), *value]
                self._tables.setdefault(dotted, []).extend((path, number) for number in range(len(value)))
            else:
                if held is not None:
                    twice.append((dotted, self._setters[dotted], path))
                into[name] = value
            self._setters[dotted] = path

    def _place(self, path: Path, dotted: str) -> FilePlace:
        return self._first_line(path, list(dotted.split(".")))

    def _first_line(self, path: Path, names: list[str | int]) -> FilePlace:
        if path not in self._lines:
            self._lines[path] = _first_lines(self.texts[path])
        lines, key = self._lines[path], tuple(names)
        while key and key not in lines:
            key = key[:-1]
        return FilePlace(path, lines.get(key, 1))


def folder_of(file: Path) -> Path:
    """Return the folder of the drop-ins of `file`."""
    return file.with_name("conf.d" if file.name == "correlator.toml" else f"{file.stem}.d")


def read(file: Path, replaced: Mapping[Path, str] | None = None) -> Files:
    """Read `file` and its drop-ins. `file` may be missing if its folder exists. `replaced`: texts to use instead.

    Raises: `ConfigError` with the problems of all files that cannot be read or are not TOML.
    """
    found, problems = read_usable(file, replaced)
    if problems:
        raise ConfigError(problems)
    return found


def read_usable(file: Path, replaced: Mapping[Path, str] | None = None) -> tuple[Files, list[str]]:
    """Return what of `file` and its drop-ins is TOML, and the problems of the others. See `read`.

    Raises: `ConfigError` if the folder cannot be read, or tables are nested too deeply.
    """
    replaced = replaced or {}
    drop_ins = _drop_ins(folder_of(file), replaced)
    texts: dict[Path, str] = {}
    parsed: dict[Path, dict[str, Any]] = {}
    problems: list[str] = []
    for path in (file, *(drop_ins or ())):
        if path != file and path not in replaced and path.exists() and not path.is_file():
            problems.append(f"{path}: cannot be read: it is no regular file")  # reading a FIFO could last for ever
            continue
        try:
            texts[path] = replaced[path] if path in replaced else _text(path)
            parsed[path] = parse(path, texts[path])
        except FileNotFoundError as error:
            if path != file or drop_ins is None:
                problems.append(f"{path}: cannot be read: {error.strerror}")
        except OSError as error:
            problems.append(f"{path}: cannot be read: {error.strerror}")
        except ConfigError as error:
            problems += error.problems
    return Files(texts, parsed), problems


def parse(path: Path, text: str) -> dict[str, Any]:
    """Return the tables of a text. Raises: `ConfigError` that names `path` and the line."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError([f"{path}: not TOML that can be read: too deep"]) from None
    except ValueError as error:
        again = _set_again(text) if str(error).startswith("Cannot ") else None
        raise ConfigError([f"{path}: {again or f'not TOML: {error}'}"]) from error


def _drop_ins(folder: Path, replaced: Mapping[Path, str]) -> list[Path] | None:
    """Return the files of the folder by name; None if it does not exist. Raises: `ConfigError`."""
    added = {path for path in replaced if path.parent == folder}
    try:
        listed = {path for path in folder.iterdir() if path.suffix == ".toml" and not path.name.startswith(".")}
    except FileNotFoundError:
        return sorted(added) or None
    except OSError as error:
        raise ConfigError([f"{folder}: cannot be read: {error.strerror}"]) from error
    if len(listed | added) > MAX_DROP_INS:
        raise ConfigError([f"{folder}: expected {MAX_DROP_INS} files at most, not {len(listed | added)}"])
    return sorted(listed | added)


def _text(path: Path) -> str:
    """Return the text of a file. Raises: OSError; `ConfigError` if it is too large or not UTF-8."""
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ConfigError([f"{path}: larger than {MAX_BYTES} bytes, so it is no configuration"])
    try:
        return content.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not TOML: {error}"]) from error


def _set_again(text: str) -> str | None:
    """Return a message with both lines, if the text sets a key or begins a table for the second time; else None."""
    first: dict[Names, int] = {}
    for statement in statements(text):
        path, line = statement.table + _names(statement.value), statement.start + 1
        if first.setdefault(path, line) != line:
            name, before = ".".join(map(str, path)), first[path]
            if statement.value:
                return f"line {line}: {name} is set again; line {before} sets it already: keep one of the two"
            return f"line {line}: a second [{name}]; the first is in line {before}: write the keys there"
    return None


def _names(value: Any) -> Names:
    """Return the names that lead to the first value of nested tables."""
    path: Names = ()
    while isinstance(value, dict) and value:
        name, value = next(iter(value.items()))
        path += (name,)
    return path


def are_tables(value: Any) -> bool:
    """Return whether a value is a list of tables."""
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


class Statement(NamedTuple):
    """A header or a key with its value: the lines from `start` up to `end`, counted from 0.

    `table`: the table that it begins, or that the key is in. `value`: what it holds, by the names of the key;
    empty for a header.
    """

    start: int
    end: int
    table: Names
    value: dict[str, Any]


def lines(text: str) -> list[str]:
    """Return the lines with their ends, as TOML counts them."""
    return _LINE.findall(text)


def contains(table: Any, names: Iterable[str | int]) -> bool:
    """Return whether a table has a value that these names lead to."""
    for name in names:
        known = range(len(table)) if isinstance(table, list) else table if isinstance(table, dict) else ()
        if name not in known:
            return False
        table = table[name]
    return True


def _parts(dotted: str) -> list[str | int]:
    """Return the names of a dotted one, and the numbers of tables from 0."""
    return [name or int(number) - 1 for name, number in _PART.findall(dotted)]


def statements(text: str) -> Iterator[Statement]:
    """Yield the headers and keys of a text that is TOML, in order. Comments and blank lines belong to none."""
    table: Names = ()
    counts: dict[Names, int] = {}
    start, chunk = 0, ""
    for end, line in enumerate(lines(text), 1):
        if not chunk and (not line.strip() or line.lstrip().startswith("#")):
            start = end
            continue
        # A value of several lines ends in a line with one of these; so most of its lines are not parsed again.
        ends = not chunk or any(mark in line for mark in ("]", '"""', "'''"))
        chunk += line
        if not ends or (parsed := _parsed(chunk)) is None:
            continue
        if chunk.lstrip().startswith("["):
            table = _header(parsed, repeated=chunk.lstrip().startswith("[["), counts=counts)
            parsed = {}
        yield Statement(start, end, table, parsed)
        start, chunk = end, ""


def _parsed(chunk: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(chunk)
    except ValueError:
        return None


def _header(parsed: dict[str, Any], *, repeated: bool, counts: dict[Names, int]) -> Names:
    """Return the path of the table that a header begins. `counts`: the tables of each list so far."""
    path = _names(parsed)
    if not repeated:
        return path
    counts[path] = counts.get(path, -1) + 1
    return (*path, counts[path])


def _first_lines(text: str) -> dict[Names, int]:
    """Return the number of the first line of each table and key."""
    first: dict[Names, int] = {}

    def note(path: Names, value: Any, line: int) -> None:
        first.setdefault(path, line)
        if len(path) > MAX_LEVELS:
            return
        if isinstance(value, dict):
            for name, inner in value.items():
                note((*path, name), inner, line)
        elif are_tables(value):
            for number, inner in enumerate(value):
                note((*path, number), inner, line)

    for statement in statements(text):
        note(statement.table, statement.value, statement.start + 1)
    return first
