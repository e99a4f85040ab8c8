"""One receiver of traces: sends requests by OTLP/HTTP in JSON, and judges the answers.

The codes 429, 502, 503 and 504 ask to send the same request again later, as the specification of OTLP says. The codes
in `_MISPLACED` are about the receiver's address or about credentials, whatever the request contains: an operator has to
change something, and until then nothing is dropped. Any other error means that the receiver does not want this
request.
"""

from __future__ import annotations

import contextlib
import email.utils
import math
import ssl
import time
from collections.abc import Callable, Mapping
from enum import Enum, auto
from http import HTTPStatus
from typing import Any

import aiohttp
import orjson
from aiohttp.http import HttpProcessingError
from msgspec import Struct

from correlator.config.otlp import Otlp, read_headers
from correlator.config.tls import client_context
from correlator.errors import CorrelatorError
from correlator.ops.logs import escape

MAX_ANSWER = 65_536
"""Bytes of an answer that are read."""

MAX_WORDS = 300
"""Characters of a text of the receiver that are logged."""

MAX_RETRY_AFTER = 600.0
"""The longest pause in seconds that a receiver can ask for."""

AGAIN = frozenset({429, 502, 503, 504})

_ADDRESS = "nothing takes traces at this address; set otlp.url to that of an OTLP/HTTP receiver"
_CREDENTIALS = "the receiver refuses the credentials; set otlp.headers_file"
_MISPLACED = {
    401: _CREDENTIALS,
    403: _CREDENTIALS,
    404: _ADDRESS,
    405: _ADDRESS,
    407: "a proxy between asks for credentials",
    415: "the receiver takes no JSON, only protobuf; set otlp.url to an OpenTelemetry Collector, which takes both and"
    " passes traces on",
    **dict.fromkeys((301, 302, 303, 307, 308), "the receiver is at another address; set otlp.url to it"),
}


class TraceVerdict(Enum):
    """What becomes of a request."""

    ACCEPTED = auto()
    """The receiver has it, perhaps without some spans."""
    AGAIN = auto()
    """Send it again after a pause."""
    MISPLACED = auto()
    """The receiver would refuse every request: send it again once in a while, and after a reload."""
    REFUSED = auto()
    """Do not send it again."""


class TraceAnswer(Struct, frozen=True):
    """`words`: the problem and what to do, or a warning of the receiver. `rejected`: spans that it did not take.

    `retry_after`: seconds that the receiver asks to wait. `status`: that of HTTP; 0 without an answer.
    """

    verdict: TraceVerdict
    words: str = ""
    rejected: int = 0
    retry_after: float | None = None
    status: int = 0
    public: str = ""
    """`words` for readiness, which needs no token, where they contain the URL or what is no HTTP."""


class Receiver(Struct, frozen=True):
    """The receiver of one configuration. `headers` may hold secrets, so that a repr shows the URL alone."""

    url: str
    headers: Mapping[str, str]
    tls: ssl.SSLContext | bool
    timeout: float

    def __repr__(self) -> str:
        return f"Receiver({self.url})"

    async def send(self, session: aiohttp.ClientSession, body: bytes) -> TraceAnswer:
        """Send one request, within `timeout` seconds. Does not raise: an unreachable receiver is an answer."""
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", **self.headers}
        timeout = aiohttp.ClientTimeout(total=self.timeout)
        try:
            async with session.post(
                self.url, data=body, headers=headers, ssl=self.tls, timeout=timeout, allow_redirects=False
            ) as response:
                return judge(response.status, response.headers, await _read(response))
        except TimeoutError:
            return TraceAnswer(
                TraceVerdict.AGAIN,
                f"the receiver at {self.url} does not answer within {self.timeout:g} s",
                public=f"the receiver does not answer within {self.timeout:g} s",
            )
        except (aiohttp.ClientError, OSError, ValueError) as error:
            why = escape(str(error) or type(error).__name__)[:MAX_WORDS]
            public = "the receiver cannot be reached; the daemon's log says more"
            return TraceAnswer(
                TraceVerdict.AGAIN, f"the receiver at {self.url} cannot be reached: {why}", public=public
            )


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """Return the body of a response, as far as it arrives in time: what became of the request is in the status.

    A success whose body is slow or broken is a success: the same request again would be stored twice.
    """
    body = b""
    with contextlib.suppress(TimeoutError, aiohttp.ClientError, HttpProcessingError, OSError):
        async for part in response.content.iter_any():
            body += part
            if len(body) > MAX_ANSWER:
                break
    return body


def receiver(settings: Otlp) -> Receiver:
    """Return the receiver of these settings. Raises: `CorrelatorError` if a file cannot be used."""
    assert settings.url is not None
    try:
        tls = client_context(settings.tls) if settings.url.startswith("https:") else True
    except (OSError, ssl.SSLError) as error:
        raise CorrelatorError(f"otlp.tls: cannot be used: {error.strerror or error}") from error
    headers = read_headers(settings.headers, settings.headers_file)
    return Receiver(settings.url, headers, tls, settings.timeout)


def session() -> aiohttp.ClientSession:
    """Return a session with one connection, which stays open between requests. It stores no cookies."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=1), cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
    )


def judge(
    status: int, headers: Mapping[str, str], body: bytes, wall_clock: Callable[[], float] = time.time
) -> TraceAnswer:
    """Judge the response of a receiver. `wall_clock` returns Unix seconds."""
    content = _object(body)
    if 200 <= status < 300:
        partial = content.get("partialSuccess")
        partial = partial if isinstance(partial, dict) else {}
        return TraceAnswer(
            TraceVerdict.ACCEPTED,
            _text(partial.get("errorMessage")),
            _count(partial.get("rejectedSpans")),
            status=status,
        )
    try:
        name = f"HTTP {status} {HTTPStatus(status).phrase}"
    except ValueError:
        name = f"HTTP {status}"
    reason = _text(content.get("message"))
    advice = _MISPLACED.get(status, _ADDRESS if status < 200 else "")
    words = ": ".join(word for word in (name, advice, reason) if word)
    if status in AGAIN:
        pause = _seconds(headers.get("Retry-After"), wall_clock)
        return TraceAnswer(TraceVerdict.AGAIN, words, retry_after=pause, status=status)
    return TraceAnswer(TraceVerdict.MISPLACED if advice else TraceVerdict.REFUSED, words, status=status)


def _object(body: bytes) -> dict[str, Any]:
    try:
        content = orjson.loads(body)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _text(value: object) -> str:
    return escape(value)[:MAX_WORDS] if isinstance(value, str) else ""


def _count(value: object) -> int:
    """Return a 64-bit integer, which is a text in JSON and a number with some receivers; 0 if it is neither."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20:
        value = int(value)
    return value if isinstance(value, int) and value > 0 else 0


def _seconds(value: str | None, wall_clock: Callable[[], float]) -> float | None:
    """Return the seconds of a Retry-After header: a number, or a date. None if it is absent or malformed."""
    if value is None:
        return None
    try:
        seconds = float(value) if value.strip().isdecimal() else _date(value) - wall_clock()
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER) if math.isfinite(seconds) else None


def _date(value: str) -> float:
    return email.utils.parsedate_to_datetime(value).timestamp()
