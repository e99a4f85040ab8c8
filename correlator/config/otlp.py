"""The `[otlp]` table: its keys, and the syntax of its values: the receiver's URL and the headers of requests."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from correlator.config.tls import Tls
from correlator.config.values import NO_QUERY, Section, read_secret, shown_path, split_url
from correlator.config.values import key as _key
from correlator.errors import ConfigError

PATH = "/v1/traces"


_URL = f'"http://host:4318" or "https://host/path", to which {PATH} is added; headers instead of a user or ?query'
_HEADER = re.compile(r"(?P<name>[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}):[ \t]*(?P<value>[!-~](?:[ -~\t]{0,4094}[!-~])?)")
SECRET_HEADER = re.compile(r"[\w-]*(?:auth|cookie|key|secret|token)[\w-]*\s*:", re.IGNORECASE)
_OURS = frozenset({"connection", "content-encoding", "content-length", "content-type", "host", "transfer-encoding"})
"""Headers that follow from the request itself."""


class Header(str):
    """A header. It prints without its value, which may be a secret whatever the header is called."""

    __slots__ = ()

    def __str__(self) -> str:
        return f"{self.partition(':')[0]}: ***"


def traces_url(raw: object) -> str:
    """Parse the URL of a receiver, and return that of its traces."""
    parts = split_url(raw, ("http", "https"), _URL, forbidden=NO_QUERY)
    url = parts.geturl()
    return url if parts.path.endswith(PATH) else url.rstrip("/") + PATH


def request_headers(raw: object) -> tuple[str, ...]:
    """Parse headers of the form `Name: value`."""
    expected = 'a list of headers, e.g. ["X-Scope-OrgID: tenant-1"]; one that holds a secret belongs in headers_file'
    if not isinstance(raw, list) or not all(isinstance(line, str) for line in raw):
        raise ValueError(expected)
    try:
        given = _parsed(raw)
    except ValueError:
        raise ValueError(expected) from None
    if any(name.lower() == "authorization" for name in given):
        raise ValueError(expected)
    return tuple(map(Header, raw))


def read_headers(given: Iterable[str], file: Path | None) -> dict[str, str]:
    """Return the headers of a request by name: those `given`, and those in `file`, one a line.

    Raises: `ConfigError` if the file cannot be used.
    """
    lines = read_secret(file, "otlp.headers_file").splitlines() if file is not None else []
    lines = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    try:
        found = _parsed([*given, *lines])
    except ValueError:
        found = {}
    if file is not None and (not lines or not found):
        text = f"otlp.headers_file: expected a header a line in {shown_path(file)}, e.g. Authorization: Bearer TOKEN"
        raise ConfigError([text])
    return found


def _parsed(lines: Iterable[str]) -> dict[str, str]:
    """Raises: ValueError if a line is no header, or one that the request sets itself."""
    found: dict[str, str] = {}
    for line in lines:
        match = _HEADER.fullmatch(line)
        if match is None or match["name"].lower() in _OURS:
            raise ValueError(line)
        found[match["name"]] = match["value"]
    return found


@dataclass(frozen=True, kw_only=True)
class Otlp(Section):
    url: str | None = _key(
        None,
        'An OpenTelemetry receiver that takes JSON over HTTP, e.g. "http://127.0.0.1:4318"; empty: off. Requests go'
        f" to {PATH} below it.",
        traces_url,
        live=True,
    )
    headers: tuple[str, ...] = _key(
        (),
        'Headers of each request, e.g. "X-Scope-OrgID: tenant-1". Secrets: headers_file.',
        request_headers,
        live=True,
    )
    headers_file: Path | None = _key(
        None,
        'File of more headers, one a line, e.g. "Authorization: Bearer TOKEN"; # comments. Also as the credential'
        " otlp-headers.",
        live=True,
        credential="otlp-headers",
    )
    tls: Tls | None = _key(
        None,
        "TLS for an https:// receiver. Without this table its certificate is checked with the system's CAs.",
        live=True,
    )
    timeout: float = _key(10.0, "Time for each request.", live=True, gt=0)
    delay: float = _key(
        10.0,
        "From the end of a job to its export: what arrives meanwhile is part of the trace, later corrections are not.",
        live=True,
        ge=0,
    )
