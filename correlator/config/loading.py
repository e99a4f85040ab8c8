"""Loads a `Config` from TOML files, the environment and secret files, or raises the list of all problems.

The environment overrides the files. A wrong value is reported with its place, its key, the value and what is expected,
and does not end the search for further problems. No message contains a secret.
"""

import contextlib
import difflib
import re
import socket
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar
from urllib.parse import unquote

import msgspec

from correlator.config import failures, files, tokens, values, webhooks
from correlator.config.files import Files
from correlator.config.schema import (
    Cluster,
    Config,
    Key,
    State,
    default_instance,
    is_seed,
    keys,
    leaves,
    read_headers,
    settings,
    value_of,
)
from correlator.config.values import Section, credential, nearest, read_secret
from correlator.errors import ConfigError

DEFAULT_FILE = Path("/etc/correlator/correlator.toml")
NO_CLUSTER = 'cluster.url: a gateway reads a cluster, e.g. url = "nats://127.0.0.1:4222"'
"""The problem of a gateway that has no cluster yet."""

_PREFIX = "CORRELATOR_"
_TLS_SCHEMES = {"mqtt": "mqtts", "otlp": "https", "cluster": "tls"}
_TLS_FILES = ("tls_cert", "tls_key", ".ca", ".cert", ".key")
# Up to the last @, so that a password with a raw / or @ in it is found and hidden too.
# With ? or # behind another @, it may be a secret in a query, and what follows the last @ no host.
_PASSWORD_IN_URL = re.compile(
    r"(?P<head>[A-Za-z]+://[^:@/]*):(?!.*@.*[?#].*@)(?P<password>.*)@(?P<rest>[^@]*)", re.DOTALL
)
_S = TypeVar("_S", bound=Section)


class _Text(NamedTuple):
    """A value from the environment: text, whatever the key's type."""

    name: str
    text: str


class Loaded(NamedTuple):
    """A configuration and where it comes from.

    `twice`: a warning for each key that two files set. `problems`: what is wrong; `config` has defaults in its place.
    """

    config: Config
    files: tuple[Path, ...]
    twice: tuple[str, ...]
    problems: tuple[str, ...] = ()


class Value(NamedTuple):
    """A key with its value, and where that comes from: FILE:LINE, a variable, a file with a secret; None: a default."""

    dotted: str
    value: Any
    source: str | None


class _Problems:
    """The problems found, each with its place in `files`, and the dotted names of the keys with wrong values."""

    def __init__(self, read: Files) -> None:
        self.lines: list[str] = []
        self.keys: dict[str, str] = {}
        """The problem of each key with a wrong value."""
        self.sources: dict[str, str | Path] = {}
        """Where the values of keys come from that are written elsewhere: another key, or a file."""
        self.written: dict[str, str] = {}
        """The texts of keys whose value has been changed before it is parsed."""
        self.overridden: set[str] = set()
        """The keys whose values come from the environment."""
        self._read = read

    def add(self, key: str, line: str) -> None:
        self.keys[key] = self.placed(line, key)
        self.lines.append(self.keys[key])

    def placed(self, line: str, *involved: str) -> str:
        """Return `line` after the place of the first of the keys that a file sets."""
        found = (self._read.place(key) for key in involved if key not in self.overridden)
        place = next((place for place in found if place is not None), None)
        return line if place is None else f"{place}: {line}"

    def place(self, key: str) -> str:
        place = self._read.place(key)
        return "" if place is None else str(place)

    def source(self, key: str) -> str | None:
        """See `Value`."""
        source = self.sources.get(key, key)
        if isinstance(source, Path):
            return str(source)
        if source in self.overridden:
            return variable(source)
        return self.place(source) if self._read.holds(source) else None


def variable(dotted: str) -> str:
    """Return the name of the environment variable of a key."""
    return _PREFIX + dotted.upper().replace(".", "__")


def default_file() -> Path | None:
    """Return the file that is read if none is named: the one in /etc, or None if neither it nor a drop-in exists."""
    return DEFAULT_FILE if DEFAULT_FILE.exists() or files.folder_of(DEFAULT_FILE).exists() else None


def load(path: Path | None, environ: Mapping[str, str], *, gateway: bool = False) -> Config:
    """Return the settings of the file at `path` (None: no file), its drop-ins, and `environ`. See `loaded`."""
    return loaded(path, environ, gateway=gateway).config


def loaded(
    path: Path | None, environ: Mapping[str, str], *, gateway: bool = False, replaced: Mapping[Path, str] | None = None
) -> Loaded:
    """Return the configuration and where it comes from. `gateway`: it is that of a gateway.

    `replaced`: texts to use instead of what these files hold.

    Raises: `ConfigError` with all problems.
    """
    read = files.read(path, replaced) if path else Files({}, {})
    config, found = _checked(read, environ, gateway=gateway)
    if found.lines:
        raise ConfigError(found.lines)
    return Loaded(config, tuple(read.texts), read.twice)


def usable(path: Path | None, environ: Mapping[str, str], *, gateway: bool = False) -> Loaded:
    """Return what of a configuration can be used, and all its problems. It raises nothing."""
    read, unread = Files({}, {}), list[str]()
    try:
        read, unread = files.read_usable(path) if path else (read, unread)
    except ConfigError as error:
        unread += error.problems
    config, found = _checked(read, environ, gateway=gateway)
    return Loaded(config, tuple(read.texts), read.twice, (*unread, *found.lines))


def listed(path: Path | None, environ: Mapping[str, str], *, gateway: bool) -> tuple[list[Value], dict[str, str]]:
    """Return every key whose value is right, and the problems of the others. Values may contradict each other.

    Raises: `ConfigError` if a file cannot be read.
    """
    config, found = _checked(files.read(path) if path else Files({}, {}), environ, gateway=gateway)
    held = [Value(dotted, value, found.source(dotted)) for dotted, _, value in settings(config)]
    return [one for one in held if one.dotted not in found.keys], found.keys


def _checked(read: Files, environ: Mapping[str, str], *, gateway: bool) -> tuple[Config, _Problems]:
    """Return the configuration, in which a wrong value has its default, and the problems."""
    raw, found = read.merged, _Problems(read)
    _overlay(raw, environ, found)
    if gateway and "database" in raw:  # Even one with defaults: somebody expects it to be read.
        found.add("database", "database: a gateway reads no database: remove this section")
    _lift_password(raw, found)
    config = _table(Config, raw, "", found)
    config = _filled(config, "", environ, found)
    http = config.http
    config = replace(
        config,
        http=replace(
            http,
            public_url=http.public_url or (http.own_url(socket.gethostname()) if http.listen.port else None),
            # A daemon and a gateway of one host have the same one, and need not both use it.
            tls_key=http.tls_key or (credential(environ, "tls-key") if http.tls_cert else None),
        ),
        cluster=_in_cluster(config.cluster, environ, "gateway-key" if gateway else "cluster-key"),
        mqtt=replace(config.mqtt, instance=config.mqtt.instance or socket.gethostname()),
        state=config.state if gateway else _with_directory(config.state, environ, found),  # A gateway keeps nothing.
    )
    if gateway and config.cluster.url is None and "cluster.url" not in found.keys:
        found.lines.append(NO_CLUSTER)
    if config.cluster.instances and not gateway:
        found.add("cluster.instances", "cluster.instances: only a gateway serves several appliances: remove it")
    wrong = frozenset(found.keys)  # These have their defaults now, so a contradiction with them is not meant.
    found.lines += [
        found.placed(line, *involved)
        for involved, line in (
            *_contradictions(config),
            *webhooks.contradictions(config.webhooks, found.place),
            *failures.contradictions(config.failures, found.place),
            *tokens.contradictions(http.tokens_file, http.tokens, found.place, gateway=gateway),
        )
        if wrong.isdisjoint(involved)
    ]
    return config, found


def _overlay(raw: dict[str, Any], environ: Mapping[str, str], found: _Problems) -> None:
    """Override the values of the file with those of the environment."""
    names = {variable(dotted): dotted for dotted, _ in leaves()}
    for name in sorted(environ):
        if not name.startswith(_PREFIX) or "__" not in name:
            continue
        if name not in names:
            found.add(name, f"{name}: unknown; {nearest(name, names)}")
            continue
        *tables, last = names[name].split(".")
        table: Any = raw
        for level in tables:
            table = table.setdefault(level, {}) if isinstance(table, dict) else None
        if isinstance(table, dict):  # Otherwise the file has a plain value there, which is reported by itself.
            table[last] = _Text(name, environ[name])
            found.overridden.add(names[name])


def _lift_password(raw: dict[str, Any], found: _Problems) -> None:
    """Move the password from database.url to its own key, so that the URL can be printed from here on."""
    table = raw.get("database")
    written = table.get("url") if isinstance(table, dict) else None
    url = written.text if isinstance(written, _Text) else written
    if not isinstance(table, dict) or not isinstance(url, str) or not (match := _PASSWORD_IN_URL.fullmatch(url)):
        return
    for name in ("password", "password_file") if match["password"] else ():
        if table.pop(name, None) not in (None, "", _Text(variable(f"database.{name}"), "")):
            found.add(f"database.{name}", f"database.{name}: the URL holds a password already; give it once")
    found.written["database.url"] = url
    clean = f"{match['head']}@{match['rest']}"
    table["url"] = written._replace(text=clean) if isinstance(written, _Text) else clean
    if match["password"]:
        table["password"] = unquote(match["password"])
        found.sources["database.password"] = "database.url"


def holds_password(url: str) -> bool:
    """Return whether a written URL has a password in it."""
    match = _PASSWORD_IN_URL.fullmatch(url.strip().strip("\"'"))
    return bool(match and match["password"])


def argument(key: Key, text: str) -> Any:
    """Return the value to write into a file for a text: a value in TOML, else what it means in the environment.

    Raises: ValueError with what is expected.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("a text in UTF-8") from None
    candidates = [_from_text(key, text)]
    with contextlib.suppress(tomllib.TOMLDecodeError, RecursionError):
        parsed = tomllib.loads(f"value = {text}")
        if parsed.keys() == {"value"}:
            candidates.insert(0, parsed["value"])
    for candidate in candidates[:-1]:
        with contextlib.suppress(ValueError):
            _value(key, candidate)
            return candidate
    _value(key, candidates[-1])
    return candidates[-1]


def _table(section: type[_S], raw: Mapping[str, Any], above: str, found: _Problems) -> _S:
    """Return the section with the valid values of `raw`. Wrong ones are added to `found` and keep their defaults."""
    known = keys(section)
    chosen: dict[str, Any] = {}
    for name, written in raw.items():
        dotted = above + name
        if name not in known:
            found.add(dotted, f"{dotted}: unknown {'key' if above else 'section'}; {_nearest_key(above, name, known)}")
            continue
        key = known[name]
        try:
            if key.repeated and isinstance(written, list):
                chosen[name] = _tables(key, written, dotted, found)
            elif key.section and not key.repeated and isinstance(written, dict):
                chosen[name] = _table(key.section, written, f"{dotted}.", found)
            elif key.repeated:
                raise ValueError(f"tables, each below [[{dotted}]]")
            else:
                chosen[name] = _value(key, written)
        except ValueError as error:
            label, given = written if isinstance(written, _Text) else (dotted, written)
            may_be_secret = key.is_secret or key.repeated or f"{name}_file" in known
            given = found.written.get(dotted, given)
            shown = values.HIDDEN if may_be_secret else values.shown(given, is_url=key.is_url)
            found.add(dotted, f"{label} = {shown}: expected {error}")
    return section(**chosen)


def _tables(key: Key, written: list[Any], dotted: str, found: _Problems) -> tuple[Section, ...]:
    """Return one section for each table of a list. A table is numbered from 1 in messages."""
    assert key.section is not None
    if not all(isinstance(table, dict) for table in written):
        raise ValueError(f"tables, each below [[{dotted}]]")
    return tuple(_table(key.section, table, f"{dotted}[{n}].", found) for n, table in enumerate(written, 1))


def _value(key: Key, written: Any) -> Any:
    """Convert a written value to the key's type. Raises: ValueError with what is expected."""
    if key.section:
        raise ValueError("a table")
    textual = isinstance(written, _Text)
    value = _from_text(key, written.text) if textual else written
    if value == "" and key.is_optional:
        return None
    if key.parse:
        try:
            value = key.parse(value)
        except ValueError as error:
            raise ValueError(f"{error}, e.g. {values.toml(key.default)}" if key.is_duration else str(error)) from None
        if not key.is_duration:
            return value
    try:
        return msgspec.convert(value, Annotated[key.hint, msgspec.Meta(**key.limits)], strict=not textual)
    except msgspec.ValidationError:
        raise ValueError(key.expected) from None


def _from_text(key: Key, text: str) -> Any:
    """Parse a list, written as "a, b" or ["a", "b"]. msgspec converts numbers and booleans from text."""
    if key.kind is not tuple:
        return text
    if not text.lstrip().startswith("["):
        return [item.strip() for item in text.split(",") if item.strip()]
    try:
        return tomllib.loads(f"list = {text}")["list"]
    except tomllib.TOMLDecodeError:
        return text


def nearest_key(dotted: str) -> str:
    """Suggest a key for the dotted name of one that does not exist."""
    if near := difflib.get_close_matches(dotted, [known for known, _ in leaves()], 1, cutoff=0.7):
        return f"did you mean {near[0]}?"
    above, siblings = "", keys(Config)
    *tables, name = dotted.split(".")
    for level in tables:
        inner = siblings[level].section if level in siblings else None
        if inner is None:
            break
        above, siblings = f"{above}{level}.", keys(inner)
    return _nearest_key(above, name, siblings)


def _nearest_key(above: str, name: str, siblings: Iterable[str]) -> str:
    """Suggest a sibling with a similar name, else the same name in another section, else list all siblings."""
    elsewhere = [dotted for dotted, key in leaves() if key.name == name]
    if elsewhere and not difflib.get_close_matches(name, siblings, 1, cutoff=0.7):
        return f"did you mean {elsewhere[0]}?"
    return nearest(name, siblings, above)


def _filled(section: _S, above: str, environ: Mapping[str, str], found: _Problems) -> _S:
    """Return the section with the files that credentials name, and the secrets that files hold, in its tables too."""
    known, filled = keys(type(section)), dict[str, Any]()
    for name, key in known.items():
        dotted, value = above + name, getattr(section, name)
        if key.repeated:
            filled[name] = tuple(_filled(table, f"{dotted}[{n}].", environ, found) for n, table in enumerate(value, 1))
        elif isinstance(value, Section):
            filled[name] = _filled(value, f"{dotted}.", environ, found)
        elif key.credential:
            file = value or credential(environ, key.credential.format(name=getattr(section, "name", "")))
            held = known.get(name.removesuffix("_file"))
            if held is None or not held.is_secret:
                filled[name] = file
                if file and not value:
                    found.sources[dotted] = file
            elif getattr(section, held.name):
                if value:
                    found.add(dotted, f"{dotted}: {above}{held.name} is given already; give it once")
            elif file:
                filled[held.name] = _in_file(held, file, dotted, found)
                found.sources[above + held.name] = file
    return replace(section, **filled)


def _in_file(key: Key, file: Path, label: str, found: _Problems) -> Any:
    """Return the value of `key` that a file holds; its default if it cannot be used."""
    try:
        assert key.parse is not None
        if value := key.parse(read_secret(file, label)):
            return value
        found.add(label, f"{label}: the file holds nothing but comments")
    except ConfigError as error:
        found.add(label, str(error))
    except ValueError as error:
        found.add(label, f"{label}: its content: expected {error}")
    return key.default


def _with_directory(state: State, environ: Mapping[str, str], found: _Problems) -> State:
    if state.directory != Path():
        return state
    # systemd separates several directories by colons; the first one is used.
    directory = environ.get("STATE_DIRECTORY", "").split(":")[0]
    if not directory and not environ.get("HOME"):
        found.add("state.directory", "state.directory: expected a path, as there is no home directory here")
        return state
    return State(directory=Path(directory) if directory else Path(environ["HOME"], ".local/state/correlator"))


def _in_cluster(cluster: Cluster, environ: Mapping[str, str], private_key: str) -> Cluster:
    """Return the section with its defaults. `private_key`: the credential with the key of `cluster.tls.cert`."""
    tls = cluster.tls
    if tls is not None and tls.cert is not None and tls.key is None:
        tls = replace(tls, key=credential(environ, private_key))
    return replace(cluster, instance=cluster.instance or default_instance(socket.gethostname()), tls=tls)


def _contradictions(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the problems between values that are each valid: the keys involved, and the message."""
    yield from _tls_contradictions(config)
    http, mqtt, otlp, cluster = config.http, config.mqtt, config.otlp, config.cluster
    seed = cluster.credentials_file if cluster.url else None
    checks: dict[tuple[str, ...], Callable[[], object]] = {
        ("http.job_token_key_file",): http.job_token_keys,
        ("otlp.headers", "otlp.headers_file"): lambda: read_headers(otlp.headers, otlp.headers_file),
        ("cluster.credentials_file",): lambda: seed and is_seed(seed),
    }
    for involved, check in checks.items():
        try:
            check()
        except ConfigError as error:
            yield involved, str(error)
    if not (http.needs_token or values.is_loopback(http.listen.host) or http.insecure):
        safe = "a loopback address, or http.tokens_file (or the credential api-token), or http.insecure = true"
        line = f'http.listen = "{http.listen}": anybody could connect, without a token; expected {safe}'
        yield ("http.listen", "http.tokens_file", "http.tokens", "http.insecure"), line
    if config.database.doorbell and isinstance(config.database.url, values.SqliteUrl):
        yield ("database.doorbell", "database.url"), "database.doorbell: expected with a mysql:// database only"
    if otlp.url and config.jobs.retention < (least := otlp.delay + otlp.timeout):
        line = f"jobs.retention: expected {least:g} s or more (otlp.delay + otlp.timeout), or jobs leave memory first"
        yield ("jobs.retention", "otlp.delay", "otlp.timeout", "otlp.url"), line
    if mqtt.url and mqtt.password and not mqtt.username:
        yield ("mqtt.username", "mqtt.url"), "mqtt.username: expected a name, as there is a password"


def _tls_contradictions(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    for cert in ("http.tls_cert", "database.tls.cert", *(f"{section}.tls.cert" for section in _TLS_SCHEMES)):
        key = f"{cert.removesuffix('cert')}key"
        if bool(value_of(config, cert)) != bool(value_of(config, key)):
            yield (cert, key), f"{cert}: expected together with {key}, or neither"
    for section, scheme in _TLS_SCHEMES.items():
        url = value_of(config, f"{section}.url")
        if url and value_of(config, f"{section}.tls") and not str(url).startswith(f"{scheme}:"):
            line = f'{section}.tls: expected with {scheme}:// only, and {section}.url = "{url}" is plain'
            yield (f"{section}.tls", f"{section}.url"), line
    for dotted, _, value in settings(config):
        if isinstance(value, Path) and dotted.endswith(_TLS_FILES) and (why := _unreadable(value)):
            yield (dotted,), f"{dotted}: {value} cannot be read: {why}"


def _unreadable(file: Path) -> str | None:
    try:
        file.open("rb").close()
    except OSError as error:
        return error.strerror
    return None
