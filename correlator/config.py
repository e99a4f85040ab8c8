"""From a TOML file, the environment and secret files to a `Config`, or to the list of everything that is wrong.

The environment wins over the file. A wrong value is reported by its key, with what stands there and what would be
right; it never ends the search for further problems. No message holds a secret.
"""

import difflib
import re
import socket
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin
from urllib.parse import unquote

import msgspec
from msgspec.structs import replace

from correlator import values
from correlator.errors import ConfigError
from correlator.settings import Config, Database, Key, Mqtt, Section, State, keys, leaves, toml, value_of

DEFAULT_FILE = Path("/etc/correlator/correlator.toml")
_PREFIX = "CORRELATOR_"
# Up to the last @, so that a password with a raw / or @ in it is found, and hidden, all the same.
_PASSWORD_IN_URL = re.compile(r"(?P<head>[A-Za-z]+://[^:@/]*):(?P<password>.*)@(?P<rest>[^@]*)", re.DOTALL)
_S = TypeVar("_S", bound=Section)
_P = TypeVar("_P", Database, Mqtt)


class _Text(NamedTuple):
    """A value from the environment: text, whatever the key's type."""

    name: str
    text: str


class _Problems:
    """What was found wrong, and the dotted names of the keys whose values cannot be relied on."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.keys: set[str] = set()

    def add(self, key: str, line: str) -> None:
        self.lines.append(line)
        self.keys.add(key)


def default_file() -> Path | None:
    """The file that is read if none is named: the one in /etc, where there is one."""
    return DEFAULT_FILE if DEFAULT_FILE.exists() else None


def load(path: Path | None, environ: Mapping[str, str]) -> Config:
    """The settings of the file at `path` (None: no file) and of `environ`. Raises ConfigError with all problems."""
    raw = _read_toml(path) if path else {}
    found = _Problems()
    _overlay(raw, environ, found)
    _lift_password(raw, found)
    config = _table(Config, raw, "", found)
    config = replace(
        config,
        database=_with_password("database", config.database, environ, found),
        http=replace(config.http, tokens_file=config.http.tokens_file or _credential(environ, "api-token")),
        mqtt=_named(_with_password("mqtt", config.mqtt, environ, found)),
        state=_with_directory(config.state, environ, found),
    )
    wrong = frozenset(found.keys)  # each of these gave way to its default, which contradicts nothing that was meant
    found.lines += [line for involved, line in _contradictions(config) if wrong.isdisjoint(involved)]
    if found.lines:
        raise ConfigError(found.lines)
    return config


def read_tokens(config: Config) -> frozenset[str]:
    """The tokens that clients may show; empty: none is asked for. Raises ConfigError.

    One token a line, `#` begins a comment. A file without any token is an error, as it must not open the door.
    """
    file = config.http.tokens_file
    if not file:
        return frozenset()
    lines = [re.split(r"(?:^|\s)#", line)[0].strip() for line in _read_secret(file, "http.tokens_file").splitlines()]
    tokens = frozenset(line for line in lines if line)
    if not tokens or any(re.search(r"\s", token) for token in tokens):
        raise ConfigError([f"http.tokens_file: expected one token a line in {_shown_path(file)}, and at least one"])
    return tokens


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    except RecursionError as error:
        raise ConfigError([f"{path}: not TOML that can be read: too deep"]) from error
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError are
        raise ConfigError([f"{path}: not TOML: {error}"]) from error


def _overlay(raw: dict[str, Any], environ: Mapping[str, str], found: _Problems) -> None:
    """Put the values of the environment over those of the file."""
    names = {_PREFIX + dotted.upper().replace(".", "__"): dotted for dotted, _ in leaves()}
    for name in sorted(environ):
        if not name.startswith(_PREFIX) or "__" not in name:
            continue
        if name not in names:
            found.add(name, f"{name}: unknown; {_nearest(name, names)}")
            continue
        *tables, last = names[name].split(".")
        table: Any = raw
        for level in tables:
            table = table.setdefault(level, {}) if isinstance(table, dict) else None
        if isinstance(table, dict):  # else the file has a plain value there, which is reported for itself
            table[last] = _Text(name, environ[name])


def _lift_password(raw: dict[str, Any], found: _Problems) -> None:
    """Move the password out of database.url to its own key, so that from here on the URL can be shown."""
    table = raw.get("database")
    written = table.get("url") if isinstance(table, dict) else None
    url = written.text if isinstance(written, _Text) else written
    if not isinstance(table, dict) or not isinstance(url, str) or not (match := _PASSWORD_IN_URL.fullmatch(url)):
        return
    if table.get("password") and match["password"]:
        found.add("database.password", "database.password: the URL holds a password already; give it once")
    clean = f"{match['head']}@{match['rest']}"
    table["url"] = written._replace(text=clean) if isinstance(written, _Text) else clean
    if match["password"]:
        table["password"] = unquote(match["password"])


def _table(section: type[_S], raw: Mapping[str, Any], above: str, found: _Problems) -> _S:
    """The section with what is right in `raw`; what is wrong is added to `found` and keeps its default."""
    known = keys(section)
    chosen: dict[str, Any] = {}
    for name, written in raw.items():
        dotted = above + name
        if name not in known:
            found.add(dotted, f"{dotted}: unknown {'key' if above else 'section'}; {_nearest_key(above, name, known)}")
            continue
        key = known[name]
        try:
            if key.section and isinstance(written, dict):
                chosen[name] = _table(key.section, written, f"{dotted}.", found)
            else:
                chosen[name] = _value(key, written)
        except ValueError as error:
            label, shown = written if isinstance(written, _Text) else (dotted, written)
            shown = "***" if key.parse is values.secret else values.shown(shown)
            found.add(dotted, f"{label} = {shown}: expected {error}")
    return section(**chosen)


def _value(key: Key, written: Any) -> Any:
    """What was written, as the key's type. Raises ValueError with what would be right."""
    if key.section:
        raise ValueError("a table")
    textual = isinstance(written, _Text)
    value = _from_text(key, written.text) if textual else written
    if key.parse:
        try:
            value = key.parse(value)
        except ValueError as error:
            raise ValueError(f"{error}, e.g. {toml(key.default)}" if key.is_duration else str(error)) from None
        if not key.is_duration:
            return value
    try:
        return msgspec.convert(value, key.hint, strict=not textual)
    except msgspec.ValidationError:
        raise ValueError(key.expected) from None


def _from_text(key: Key, text: str) -> Any:
    """A list is written "a, b" or ["a", "b"]; numbers and booleans msgspec reads from text by itself."""
    if get_origin(get_args(key.hint)[0]) is not tuple:
        return text
    if not text.lstrip().startswith("["):
        return [item.strip() for item in text.split(",") if item.strip()]
    try:
        return tomllib.loads(f"list = {text}")["list"]
    except tomllib.TOMLDecodeError:
        return text


def _nearest(name: str, options: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, options, 1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(options)}"


def _nearest_key(above: str, name: str, siblings: Iterable[str]) -> str:
    """The sibling that is spelled alike, else the key of that name in another section, else all that there are."""
    elsewhere = [dotted for dotted, key in leaves() if key.name == name]
    if elsewhere and not difflib.get_close_matches(name, siblings, 1):
        return f"did you mean {elsewhere[0]}?"
    return _nearest(above + name, [above + sibling for sibling in siblings])


def _shown_path(path: Path) -> str:
    """What is no whole path may be the secret itself, put where the name of its file belongs."""
    return str(path) if path.is_absolute() else "that file (a relative path)"


def _credential(environ: Mapping[str, str], name: str) -> Path | None:
    """A file that the service manager hands over (systemd.exec(5), LoadCredential=); None where it holds nothing.

    Nothing but white space is what the unit's SetCredential= gives for a secret that is not there.
    """
    directory = environ.get("CREDENTIALS_DIRECTORY")
    file = Path(directory, name) if directory else None
    try:
        return file if file and file.read_bytes().strip() else None
    except FileNotFoundError:
        return None
    except OSError:
        return file  # whoever reads it says why it cannot be read


def _read_secret(file: Path, label: str) -> str:
    """The text of `file` without its last line end. Raises ConfigError."""
    try:
        text = file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError([f"{label}: {_shown_path(file)} cannot be read: {why}"]) from None
    if not text:
        raise ConfigError([f"{label}: {_shown_path(file)} is empty"])
    return text


def _with_password(name: Literal["database", "mqtt"], section: _P, environ: Mapping[str, str], found: _Problems) -> _P:
    """The section with its password, wherever it is kept."""
    label = f"{name}.password_file"
    if section.password and section.password_file:
        found.add(label, f"{label}: the password is given already, by itself or in the URL; give it once")
        return section
    file = section.password_file or _credential(environ, {"database": "db-password", "mqtt": "mqtt-password"}[name])
    if section.password or not file:
        return section
    try:
        return replace(section, password=values.Secret(_read_secret(file, label)))
    except ConfigError as error:
        found.add(label, str(error))
        return section


def _with_directory(state: State, environ: Mapping[str, str], found: _Problems) -> State:
    if state.directory != Path():
        return state
    # systemd lists several directories with colons between; the unit's first is ours.
    directory = environ.get("STATE_DIRECTORY", "").split(":")[0]
    if not directory and not environ.get("HOME"):
        found.add("state.directory", "state.directory: expected a path, as there is no home directory here")
        return state
    return State(directory=Path(directory) if directory else Path(environ["HOME"], ".local/state/correlator"))


def _named(mqtt: Mqtt) -> Mqtt:
    instance = mqtt.instance or socket.gethostname()
    return replace(mqtt, instance=instance, client_id=mqtt.client_id or f"correlator-{instance}")


def _contradictions(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    """What is wrong although each value by itself is right: the keys involved, and the problem."""
    for cert, key in (
        ("http.tls_cert", "http.tls_key"),
        *((f"{of}.tls.cert", f"{of}.tls.key") for of in ("database", "mqtt")),
    ):
        if bool(value_of(config, cert)) != bool(value_of(config, key)):
            yield (cert, key), f"{cert}: expected together with {key}, or neither"
    for dotted, _ in leaves():
        if ".tls" in dotted and isinstance(file := value_of(config, dotted), Path) and (why := _unreadable(file)):
            yield (dotted,), f"{dotted}: {file} cannot be read: {why}"
    http, mqtt = config.http, config.mqtt
    if http.tokens_file:
        try:
            read_tokens(config)
        except ConfigError as error:
            yield ("http.tokens_file",), str(error)
    elif not http.listen.is_loopback and not http.insecure:
        safe = "a loopback address, or http.tokens_file (or the credential api-token), or http.insecure = true"
        line = f'http.listen = "{http.listen}": anybody could connect, without a token; expected {safe}'
        yield ("http.listen", "http.tokens_file", "http.insecure"), line
    if config.database.doorbell and isinstance(config.database.url, values.SqliteUrl):
        yield ("database.doorbell", "database.url"), "database.doorbell: expected with a mysql:// database only"
    if mqtt.url and mqtt.tls and not mqtt.url.tls:
        yield ("mqtt.tls", "mqtt.url"), f'mqtt.tls: expected with mqtts:// only, and mqtt.url = "{mqtt.url}" is plain'
    if mqtt.url and mqtt.password and not mqtt.username:
        yield ("mqtt.username", "mqtt.url"), "mqtt.username: expected a name, as there is a password"


def _unreadable(file: Path) -> str | None:
    try:
        file.open("rb").close()
    except OSError as error:
        return error.strerror
    return None
