"""The check of the receiver of traces. It is sent a request without spans, which it accepts and does not store."""

from __future__ import annotations

import time
from shlex import quote
from urllib.parse import urlsplit

from correlator.config.schema import Config
from correlator.doctor.check import Check, failure, ok
from correlator.errors import CorrelatorError
from correlator.sinks.otlp.receiver import Answer, Verdict, receiver, session

RECEIVER = "otlp.receiver"

_EMPTY = b'{"resourceSpans":[]}'

_UNAUTHORIZED = (401, 403)


async def inspect(config: Config) -> Check:
    """Send a request without spans to the receiver, within `otlp.timeout`."""
    url = config.otlp.url
    if url is None:
        return ok(RECEIVER, "otlp.url is empty: no traces are sent")
    try:
        target = receiver(config.otlp)
    except CorrelatorError as error:
        return failure(RECEIVER, str(error))
    began = time.monotonic()
    async with session() as http:
        answer = await target.send(http, _EMPTY)
    return judge(config, url, answer, time.monotonic() - began)


def judge(config: Config, url: str, answer: Answer, took: float) -> Check:
    """Judge the answer to a request without spans. `took`: seconds."""
    match answer.verdict:
        case Verdict.ACCEPTED:
            detail = [f"The receiver has a note: {answer.words}"] if answer.words else []
            return ok(RECEIVER, f"{url} takes traces as JSON, in {took * 1000:.0f} ms", detail)
        case Verdict.MISPLACED:
            lines = ["Ended jobs wait until it accepts them, for as long as they are in memory (jobs.retention)."]
            if answer.status in _UNAUTHORIZED:
                file = quote(str(config.otlp.headers_file or "/etc/correlator/otlp-headers"))
                fix = [
                    "read -rsp 'Token for the receiver of traces: ' TOKEN",
                    f"printf 'Authorization: Bearer %s\\n' \"$TOKEN\" | install --mode=600 /dev/stdin {file}",
                    "systemctl restart correlator",
                ]
                return failure(RECEIVER, f"{url}: {answer.words}", lines, fix)
            return failure(RECEIVER, f"{url}: {answer.words}", lines, ['otlp.url = "http://127.0.0.1:4318"'])
        case Verdict.REFUSED:
            lines = [
                (
                    "The traces of all jobs would be dropped. A receiver that takes only protobuf answers like this:"
                    " set otlp.url to an OpenTelemetry Collector, which takes JSON and passes traces on."
                )
            ]
            fix = ['otlp.url = "http://127.0.0.1:4318"']
            return failure(RECEIVER, f"{url} refuses a request without spans: {answer.words}", lines, fix)
        case Verdict.AGAIN:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
            return failure(RECEIVER, answer.words, fix=[f"nc -vz {quote(parts.hostname or '')} {port}"])
