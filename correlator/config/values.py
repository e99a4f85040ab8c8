"""What settings are made of: tables and described keys, types that parse themselves, and files that hold a secret.

A parser converts a written value, or raises ValueError with a text that follows "expected ". The text never repeats
the written value, which may contain a secret.
"""

import difflib
import ipaddress
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar
from urllib.parse import SplitResult, quote, unquote, urlsplit
from zoneinfo import available_timezones

import msgspec

from correlator.errors import ConfigError

T = TypeVar("T")

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>ms|s|m|h|d|)\s*")
_SIZES = {"B": 1, "kB": 1_000, "MB": 1_000_000, "": 1}
_SIZE = re.compile(r"\s*(?P<number>\d{1,9})\s*(?P<unit>B|kB|MB|)\s*")
_FOREVER = 1e10  # three centuries: beyond it, dates overflow
_MYSQL = "mysql://user@host:port/database (special characters as %40) or sqlite:///path/to/file.db"
_BROKER = "mqtt://host:1883 or mqtts://host:8883; the user belongs in mqtt.username, the password in mqtt.password_file"
_NETWORKS = 'addresses or networks, e.g. ["127.0.0.1", "10.0.0.0/8", "fd00::/8"]'
_HOST_AND_PORT = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:.%]+)\]|(?P<name>[^\s:/\[\]@?#%]+)):(?P<port>\d{1,5})")
_HOST = r"(?:[\w.-]+|\[[0-9a-fA-F:.]+(?:%[\w.-]+)?\])"
_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]{0,15}://"
_URL = re.compile(
    rf"(?P<scheme>{_SCHEME})(?P<user>[^/?#=\\\s]*@)?(?P<host>{_HOST})(?P<port>:\d{{1,5}})?(?P<rest>[/?#\\][^@]*)?",
    re.DOTALL,
)
"""A URL whose host is certain: an @ behind the first / ? # = may belong to a secret, or be what the host follows."""

_LISTEN = "host:port, e.g. 127.0.0.1:8686 or [::1]:8686 (all interfaces: 0.0.0.0:8686 or [::]:8686)"


@dataclass(frozen=True, kw_only=True)
class Section:
    """A table of the configuration file."""


def key(
    default: T,
    description: str,
    parse: Callable[[object], object] | None = None,
    *,
    live: bool = False,
    credential: str = "",
    **limits: float,
) -> T:
    """Declare a key of a table.

    `parse` converts the written value; None: its type does. `live`: a reload applies the key, or all keys of the
    table. `credential`: the systemd credential that names the file if the key does not; `{name}` is the table's name.
    `limits`: of a number, as `msgspec.Meta` has them.
    """
    about = {"description": description, "parse": parse, "live": live, "credential": credential, "limits": limits}
    return field(default=default, metadata=about)


# -- types


class Secret:
    """A text that prints as `***`. Only `reveal()` returns it. False if empty. `expected`: see `parse`."""

    __slots__ = ("_text",)
    expected: ClassVar = "a text"

    def __init__(self, text: str = "") -> None:
        """Raises: ValueError with what is expected, if the type restricts its texts."""
        self._text = text

    @classmethod
    def parse(cls, raw: object) -> Self:
        return cls(text_of(raw, cls.expected))

    def reveal(self) -> str:
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "***" if self._text else ""


class MysqlUrl(msgspec.Struct, frozen=True):
    """A database on a MariaDB or MySQL server. The password is a separate setting."""

    user: str
    host: str
    port: int
    database: str

    def __str__(self) -> str:
        return f"mysql://{quote(self.user, '')}@{bracketed(self.host)}:{self.port}/{quote(self.database, '')}"


class SqliteUrl(msgspec.Struct, frozen=True):
    """A SQLite file with the same tables; `path` is absolute."""

    path: Path

    def __str__(self) -> str:
        return f"sqlite://{quote(str(self.path))}"


DatabaseUrl = MysqlUrl | SqliteUrl


class BrokerUrl(msgspec.Struct, frozen=True):
    """An MQTT broker; `tls` if the scheme was mqtts."""

    host: str
    port: int
    tls: bool

    @classmethod
    def parse(cls, raw: object) -> Self:
        parts = split_url(raw, ("mqtt", "mqtts"), _BROKER)
        if parts.path not in ("", "/"):
            raise ValueError(_BROKER)
        tls = parts.scheme == "mqtts"
        return cls(host=parts.hostname or "", port=parts.port or (8883 if tls else 1883), tls=tls)

    def __str__(self) -> str:
        return f"{'mqtts' if self.tls else 'mqtt'}://{bracketed(self.host)}:{self.port}"


class Listen(msgspec.Struct, frozen=True):
    """An address to listen on. Port 0: any free port. `host` has no brackets."""

    host: str
    port: int

    @classmethod
    def parse(cls, raw: object) -> Self:
        match = _HOST_AND_PORT.fullmatch(text_of(raw, _LISTEN))
        try:
            if match and match["six"]:
                ipaddress.IPv6Address(match["six"])
        except ValueError:
            match = None
        if not match or int(match["port"]) > 65535:
            raise ValueError(_LISTEN)
        return cls(host=match["six"] or match["name"], port=int(match["port"]))

    def __str__(self) -> str:
        return f"{bracketed(self.host)}:{self.port}"


class Size(int):
    """A number of bytes. Its text is the one that TOML has, e.g. 16kB."""

    @classmethod
    def parse(cls, raw: object) -> Self:
        """Parse bytes from 1 kB to 1 MB: 16000, "16000", "16kB", "1MB"."""
        if isinstance(raw, str) and (match := _SIZE.fullmatch(raw)):
            raw = int(match["number"]) * _SIZES[match["unit"]]
        if isinstance(raw, int) and not isinstance(raw, bool) and 1_000 <= raw <= 1_000_000:
            return cls(raw)
        raise ValueError('a size from "1kB" to "1MB", e.g. "16kB"')

    def __str__(self) -> str:
        for unit, bytes_of in (("MB", 1_000_000), ("kB", 1_000)):
            if self >= bytes_of and self % bytes_of == 0:
                return f"{self // bytes_of}{unit}"
        return f"{int(self)}B"


def nearest(name: str, options: Iterable[str], above: str = "") -> str:
    """Suggest the option that is most like `name`, else all. `above` is written before each."""
    near = difflib.get_close_matches(name, options, 1)
    return f"did you mean {above}{near[0]}?" if near else f"known are {', '.join(above + one for one in options)}"


HIDDEN = "***"
"""What stands in place of a secret."""


def shown(raw: object, *, is_url: bool = False) -> str:
    """Return a written value for a message: truncated, and of URLs only what `shown_url` shows.

    `is_url`: the value should be a URL, so whatever else it is may hold a secret.
    """
    text = json.dumps(_without_secrets(raw, is_url=is_url), ensure_ascii=False, default=str)
    return text if len(text) <= 100 else text[:100] + "…"


def _without_secrets(raw: object, *, is_url: bool) -> object:
    match raw:
        case str():
            return shown_url(raw) if is_url or "://" in raw or "@" in raw else raw
        case list():
            return [_without_secrets(one, is_url=is_url) for one in raw]
        case dict():
            return dict.fromkeys(raw, HIDDEN)
        case _:
            return HIDDEN if is_url else raw


def shown_url(text: str) -> str:
    """Return scheme, host and port of a written URL, or of several with commas between, and `***` for all else.

    The host is hidden if it is not certain which part it is, and the scheme if there is none.
    """
    return ",".join(map(_shown_url, _several(text)))


def _shown_url(text: str) -> str:
    if match := _URL.fullmatch(text.strip()):
        user = f"{HIDDEN}@" if match["user"] else ""
        rest = f"/{HIDDEN}" if (match["rest"] or "/") != "/" else ""
        return f"{match['scheme']}{user}{match['host']}{match['port'] or ''}{rest}"
    scheme = re.match(_SCHEME, text.strip())
    return f"{scheme[0] if scheme else ''}{HIDDEN}"


def without_path(parts: SplitResult) -> str:
    """Return scheme, host and port of a URL that `split_url` has returned, and `***` for its path and query."""
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{bracketed(parts.hostname or '')}{port}/{HIDDEN}"


def hidden_in_url(text: str) -> Iterator[str]:
    """Yield what may be a secret in what `shown_url` hides, also decoded: not the account and name of a database."""
    for one in map(str.strip, _several(text)):
        rest = re.sub(f"^{_SCHEME}", "", one)
        user = rest.rpartition("@")[0]
        if match := _URL.fullmatch(one):
            user, rest = match["user"] or "", match["rest"] or ""
        path, *queries = re.split("[?#]", rest)
        account, *words = user.rstrip("@").split(":")
        of_database = match is not None and one.startswith(("mysql:", "mariadb:"))
        if not (of_database and re.fullmatch(r"[\w.-]*/[\w.-]*", f"{account}/{path.removeprefix('/')}")):
            words += [account, user.partition(":")[2], path, rest]
        words += [pair.rpartition("=")[2] for query in queries for pair in re.split("[&;]", query)]
        for word in (*words, *queries):
            if found := word.strip("/@ \t"):
                yield from (found, unquote(found))


def _several(text: str) -> list[str]:
    return re.split(rf",(?=\s*{_SCHEME})", text)


# -- parsers


NO_QUERY = r"[^!-~]|[?#\\]"
"""What no URL of a server holds: a query, a fragment, and what is not printable ASCII."""


def text_of(raw: object, expected: str) -> str:
    """Return a written text. Raises: ValueError with `expected` if it is none."""
    if not isinstance(raw, str):
        raise ValueError(expected)
    return raw


def split_url(
    raw: object, schemes: tuple[str, ...], expected: str, *, user: bool = False, forbidden: str = r"[\s\0?#]"
) -> SplitResult:
    """Split a URL with a host and a valid or absent port. Raises: ValueError with `expected`.

    A password is an error, also after a user: `loading` has moved that of the database to a key of its own.
    """
    text = text_of(raw, expected)
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:  # The port is not a number, or brackets do not match.
        raise ValueError(expected) from None
    if parts.scheme not in schemes or port == 0 or re.search(forbidden, text):
        raise ValueError(expected)
    if not re.fullmatch(_HOST, bracketed(parts.hostname or "")):
        raise ValueError(expected)
    if parts.password or ("@" in parts.netloc and not user):
        raise ValueError(expected)
    return parts


def page_url(raw: object) -> str:
    """Parse the URL of the page, without a slash at its end."""
    expected = "http://host or https://host/path, without user, @, query and #"
    # A password with a slash, in front of the host, would be taken for the host and a path, and published.
    return split_url(raw, ("http", "https"), expected, forbidden=f"{NO_QUERY}|@").geturl().rstrip("/")


def seconds(raw: object) -> float:
    """Parse a duration: "500ms", "90s", "10m", "24h", "7d". Only 0 needs no unit: 24 may be meant in any."""
    match = _DURATION.fullmatch(str(raw)) if isinstance(raw, str | int | float) else None
    number = float(match["number"]) if match else _FOREVER
    if match is None or number * _UNITS.get(match["unit"], 1.0) >= _FOREVER:
        raise ValueError("a duration with its unit")
    if number and not match["unit"]:
        units = ", ".join(f'"{match["number"]}{unit}"' for unit in ("s", "m", "h"))
        raise ValueError(f"a duration with its unit ({units})")
    return number * _UNITS.get(match["unit"], 1.0)


def duration(value: float) -> str:
    """Return seconds as written in TOML: `0`, `"20ms"`, `"10m"`, `"24h"`."""
    millis = round(value * 1000, 6)
    for unit, one in (("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if millis >= one and millis % one == 0:
            return f'"{millis / one:.0f}{unit}"'
    return f'"{millis:.15g}ms"' if value else "0"


def instant(raw: object) -> datetime:
    """Parse a date and time with its zone: one of TOML, or a text in RFC 3339."""
    expected = "a date and time with its zone, e.g. 2026-12-31T00:00:00Z"
    try:
        found = datetime.fromisoformat(raw) if isinstance(raw, str) else raw
    except ValueError:
        raise ValueError(expected) from None
    if not isinstance(found, datetime) or found.tzinfo is None:
        raise ValueError(expected)
    return found


def path(raw: object) -> Path:
    """Parse a path and expand `~`."""
    text = text_of(raw, "a path")
    if not text or "\0" in text:
        raise ValueError("a path")
    try:
        os.fsencode(text)
        return Path(text).expanduser()
    except UnicodeEncodeError:
        raise ValueError("a path that a file system can hold") from None
    except RuntimeError:
        raise ValueError("a path without ~ (there is no home directory here)") from None


def directory(raw: object) -> Path:
    """Parse a path and make it absolute. `Path()` for an empty text: the default."""
    return Path() if raw == "" else path(raw).absolute()


def database_url(raw: object) -> DatabaseUrl:
    text = text_of(raw, _MYSQL)
    if text.startswith("sqlite://"):
        name = unquote(text.removeprefix("sqlite://"))
        if not name.startswith("/") or name.endswith("/") or "\0" in name:
            raise ValueError("sqlite:///path/to/file.db, with three slashes and the whole path")
        return SqliteUrl(path=Path("/" + name.lstrip("/")))
    parts = split_url(text, ("mysql", "mariadb"), _MYSQL, user=True)
    database = unquote(parts.path.removeprefix("/"))
    if not parts.username or not database or "/" in parts.path[1:]:
        raise ValueError(_MYSQL)
    return MysqlUrl(user=unquote(parts.username), host=parts.hostname or "", port=parts.port or 3306, database=database)


def zone(raw: object) -> str:
    """Parse the name of an IANA time zone, or auto."""
    names = available_timezones()
    if isinstance(raw, str) and (raw == "auto" or raw in names):
        return raw
    near = difflib.get_close_matches(str(raw), names, 1) or ["Europe/Berlin"]
    raise ValueError(f'"auto" or the name of an IANA time zone, e.g. "{near[0]}"')


def text_like(pattern: str, expected: str) -> Callable[[object], str]:
    """Return a parser of texts that a pattern matches."""

    def parse(raw: object) -> str:
        if not isinstance(raw, str) or not re.fullmatch(pattern, raw):
            raise ValueError(expected)
        return raw

    return parse


def texts_like(pattern: str, expected: str) -> Callable[[object], tuple[str, ...]]:
    """Return a parser of lists of texts that a pattern matches."""
    one, expected = text_like(pattern, f"a list of {expected}"), f"a list of {expected}"

    def parse(raw: object) -> tuple[str, ...]:
        if not isinstance(raw, list):
            raise ValueError(expected)
        return tuple(map(one, raw))

    return parse


topic = text_like(
    r"(?!\$)[^+#\0/]+(/[^+#\0/]+)*",  # MQTT 5, 4.7: topics that begin with $ are reserved
    "levels of an MQTT topic, e.g. correlator/v1: no + # NUL, no / at either end, no $ in front",
)
topic_level = text_like(r"[^+#/\0]*", "one level of an MQTT topic: no / + # NUL")
origins = texts_like(  # RFC 6454, 6.2; they are compared as text
    r"https?://([^\s/?#@*A-Z:%\[\]]+|\[[0-9a-f:.]+\])(:\d{1,5})?",
    'origins as the browser sends them, e.g. ["https://gui.example:8443"]',
)
hosts = texts_like(r"[^\s/?#@*]+", 'host names, e.g. ["correlator.example"]')
_networks = texts_like(r".+", _NETWORKS)


def networks(raw: object) -> tuple[str, ...]:
    """Parse addresses and networks, as text."""
    found = _networks(raw)
    try:
        return tuple(str(ipaddress.ip_network(network)) for network in found)
    except ValueError:  # also for a network with bits of a host
        raise ValueError(f"a list of {_NETWORKS}") from None


MAX_LABELS = 1000
MAX_TITLE = 200
"""Characters."""


_LABELS = (
    f'a list of at most {MAX_LABELS} names with their titles, e.g. ["final-sync = Final synchronisation"], each name'
    f" once and each title of 1 to {MAX_TITLE} characters in one line"
)


def labels(raw: object) -> tuple[str, ...]:
    """Parse labels of the form `name = title`."""
    if not isinstance(raw, list) or len(raw) > MAX_LABELS or not all(isinstance(line, str) for line in raw):
        raise ValueError(_LABELS)
    found = titles(raw)
    right = (name and 0 < len(title) <= MAX_TITLE and title.isprintable() for name, title in found.items())
    if len(found) < len(raw) or not all(right):
        raise ValueError(_LABELS)
    return tuple(raw)


def titles(lines: Iterable[str]) -> dict[str, str]:
    """Return the titles by their names."""
    parts = (line.partition("=") for line in lines)
    return {name.strip(): title.strip() for name, _, title in parts}


def is_loopback(host: str) -> bool:
    """True if only this host can connect to `host`. A name other than localhost counts as reachable: it may change."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def bracketed(host: str) -> str:
    """Return a host as a URL has it."""
    return f"[{host}]" if ":" in host else host


PARSERS: dict[type, Callable[[object], object]] = {float: seconds, Path: path}
"""The parsers of types that are not defined here; the others have a method `parse`."""


# -- files that hold a secret


def read_secret(file: Path, label: str) -> str:
    """Return the text of `file` without its last line end. Raises: `ConfigError`."""
    try:
        text = file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError([f"{label}: {shown_path(file)} cannot be read: {why}"]) from None
    if not text:
        raise ConfigError([f"{label}: {shown_path(file)} is empty"])
    return text


def credential(environ: Mapping[str, str], name: str) -> Path | None:
    """Return the file of a systemd credential (systemd.exec(5), LoadCredential=); None if absent or blank.

    A blank one is the default that the unit's SetCredential= sets for a missing secret.
    """
    directory = environ.get("CREDENTIALS_DIRECTORY")
    file = Path(directory, name) if directory else None
    try:
        return file if file and file.read_bytes().strip() else None
    except (FileNotFoundError, ValueError):  # no such path, or a name that no path can have
        return None
    except OSError:
        return file  # Reading it later reports the reason.


def shown_path(path: Path) -> str:
    """Return the path for a message; a relative one is hidden, as it may be the secret itself by mistake."""
    return str(path) if path.is_absolute() else "that file (a relative path)"


# -- texts of TOML


def toml(value: Any) -> str:  # noqa: PLR0911 - a list of types
    """Return a value as it is written in TOML; an empty string for an unset value, and `"***"` for a secret."""
    match value:
        case None:
            return '""'
        case Path():
            return _quoted("" if value == Path() else str(value))
        case bool() | int() if not isinstance(value, Size):
            return json.dumps(value)
        case float():
            return duration(value)
        case datetime():
            return value.isoformat()
        case tuple() | list():
            return f"[{', '.join(map(toml, value))}]"
        case _:
            return _quoted(str(value))


def _quoted(text: str) -> str:
    # TOML knows the escapes of JSON, but neither surrogates nor a bare DEL.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
