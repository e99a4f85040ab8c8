"""The receiver of traces: how requests by OTLP/HTTP are encoded for it, and what its responses mean.

The codes 429, 502, 503 and 504 ask to send the same request again later, as the specification of OTLP says. The codes
in `_GONE` are about the receiver's address or about credentials, whatever the request contains: an operator has to
change something, and until then nothing is dropped. Any other error means that the receiver does not want this
request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

import aiohttp
import orjson
from msgspec import Struct
from yarl import URL

from correlator.config.schema import Otlp, read_headers
from correlator.errors import ConfigError
from correlator.ops.logs import escape
from correlator.sinks.receiver import MAX_REASON, Receiver, Response, Verdict, tls_context

_ADDRESS = "nothing takes traces at this address; set otlp.url to that of an OTLP/HTTP receiver"
_CREDENTIALS = "the receiver refuses the credentials; set otlp.headers_file"
_GONE = {
    **dict.fromkeys(range(200), _ADDRESS),
    401: _CREDENTIALS,
    403: _CREDENTIALS,
    404: _ADDRESS,
    405: _ADDRESS,
    407: "a proxy between asks for credentials",
    415: "the receiver does not take {encoding}; set otlp.encoding to {other}",
    **dict.fromkeys((301, 302, 303, 307, 308), "the receiver is at another address; set otlp.url to it"),
}
_VERDICTS = dict.fromkeys((429, 502, 503, 504), Verdict.AWAY) | dict.fromkeys(_GONE, Verdict.GONE)


class TraceAnswer(Struct, frozen=True):
    """`words`: the problem and what to do, or a note of the receiver. `rejected`: spans that it did not take."""

    response: Response
    verdict: Verdict
    words: str = ""
    public: str = ""
    """`words` for readiness, which needs no token."""
    rejected: int = 0


class Encoding(NamedTuple):
    """One of the two of OTLP. `encode`: from a request in JSON; None: it is. `decode`: a response as JSON has it."""

    name: str
    other: str
    content_type: str
    encode: Callable[[bytes], bytes] | None
    decode: Callable[[bytes], dict[str, Any]]


class TraceReceiver(Struct, frozen=True):
    """The receiver of `otlp.url`. Its URL and headers may hold secrets; `name` is the URL without them."""

    name: str
    http: Receiver
    encoding: Encoding

    async def export(self, session: aiohttp.ClientSession, request: bytes) -> TraceAnswer:
        """Send a request (`spans.request`) and judge its response."""
        if self.encoding.encode is not None:  # in a thread, as 500 spans take some 20 ms
            request = await asyncio.to_thread(self.encoding.encode, request)
        return judge(await self.http.post(session, request), self.encoding)


def receiver(settings: Otlp) -> TraceReceiver:
    """Return the receiver of these settings. Raises: `ConfigError` if a file or a package cannot be used."""
    assert settings.url is not None
    encoding = JSON if settings.encoding == "json" else _protobuf()
    context = tls_context(settings.tls, "otlp.tls") if str(settings.url).startswith("https:") else None
    headers = {"Content-Type": encoding.content_type, **read_headers(settings.headers, settings.headers_file)}
    http = Receiver(URL(settings.url.reveal()), headers, context, settings.timeout)
    return TraceReceiver(str(settings.url), http, encoding)


def _protobuf() -> Encoding:
    try:
        from correlator.sinks.otlp import protobuf  # noqa: PLC0415 - JSON needs no library
    except Exception as error:  # noqa: BLE001 - a library of another version raises its own
        text = f"otlp.encoding: protobuf needs the Python package opentelemetry-proto (the extra otlp): {error}"
        raise ConfigError([text]) from None
    return Encoding("protobuf", "json", "application/x-protobuf", protobuf.encode, protobuf.decode)


def judge(response: Response, encoding: Encoding) -> TraceAnswer:
    """Judge the response of a receiver."""
    verdict = response.verdict(_VERDICTS, Verdict.REFUSED)
    content = encoding.decode(response.body) or _object(response.body)
    if verdict is Verdict.ACCEPTED:
        partial = content.get("partialSuccess")
        partial = partial if isinstance(partial, dict) else {}
        note, rejected = _text(partial.get("errorMessage")), _count(partial.get("rejectedSpans"))
        return TraceAnswer(response, verdict, note, note, rejected)
    advice = _GONE.get(response.status, "") if response.status is not None else ""
    advice = advice.format(encoding=encoding.name, other=encoding.other)
    more = "".join(f": {text}" for text in (advice, _text(content.get("message"))) if text)
    return TraceAnswer(response, verdict, response.error + more, response.public + more)


def _object(body: bytes) -> dict[str, Any]:
    try:
        content = orjson.loads(body)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


JSON = Encoding("JSON", "protobuf", "application/json", None, _object)


def _text(value: object) -> str:
    return escape(value)[:MAX_REASON] if isinstance(value, str) else ""


def _count(value: object) -> int:
    """Return a 64-bit integer, which is a text in JSON and a number with some receivers; 0 if it is neither."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20:
        value = int(value)
    return value if isinstance(value, int) and value > 0 else 0
