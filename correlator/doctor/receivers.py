"""The checks of what takes events and traces by HTTP: whether it can be reached, and what the daemon reports of it.

A receiver of webhooks gets a connection, under the same rule for addresses as the daemon's, and no request. The
receiver of traces is sent a request without spans, which it accepts and does not store.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from shlex import quote
from typing import Any
from urllib.parse import urlsplit

from correlator.config.schema import Config, Tls, TracesUrl
from correlator.config.webhooks import Webhook
from correlator.doctor.report import Check, failure, ok, some, warning
from correlator.errors import ConfigError, CorrelatorError
from correlator.sinks.otlp.receiver import Encoding, TraceAnswer, receiver
from correlator.sinks.receiver import Verdict, open_session, refusal, tls_context

WEBHOOKS, RECEIVER = "webhooks", "otlp.receiver"

REACH_WITHIN = 5.0
"""Seconds to connect to one receiver."""


async def inspect_webhooks(webhooks: Sequence[Webhook], ready: Mapping[str, Any] | None) -> Check:
    """Run the check. `ready`: the daemon's answer to /health/ready, None if it does not run."""
    if not webhooks:
        return ok(WEBHOOKS, "there is no [[webhooks]]: no event is sent by HTTP")
    reached = await asyncio.gather(*(reach(webhook) for webhook in webhooks))
    part = ((ready or {}).get("parts") or {}).get("webhooks") or {}
    return judge_webhooks(webhooks, reached, part.get("receivers") or {})


def judge_webhooks(webhooks: Sequence[Webhook], reached: Sequence[str | None], reported: Mapping[str, Any]) -> Check:
    """Judge the connections, None for one that succeeded, and what the daemon reports of each webhook by its name."""
    names = [webhook.name for webhook in webhooks]
    away = [
        f"{webhook.name}: {webhook.url}: {why}"
        for webhook, why in zip(webhooks, reached, strict=True)
        if why is not None
    ]
    states = {name: state for name in names if isinstance(state := reported.get(name), Mapping)}
    failed = [
        f"{name}: {state['error']}; {state.get('pending', 0)} events are pending"
        for name, state in states.items()
        if state.get("error")
    ]
    logs = "journalctl -u correlator --grep webhook -n 50"
    if away:
        return failure(WEBHOOKS, f"{len(away)} of {len(names)} receivers cannot be reached", [*away, *failed], [logs])
    if any(state.get("disabled") for state in states.values()):
        words = "a receiver wants no more events (HTTP 410)"
        return warning(WEBHOOKS, words, failed, [logs, "systemctl reload correlator"])
    if failed:
        return warning(WEBHOOKS, f"{len(failed)} of {len(names)} receivers do not accept events", failed, [logs])
    return ok(WEBHOOKS, f"connected to {len(names)} of {len(names)} receivers: {some(names)}")


async def reach(webhook: Webhook) -> str | None:
    """Connect to a receiver and disconnect. Returns why that is not possible, or None."""
    url = webhook.url
    assert url is not None
    try:
        context = tls_context(Tls(ca=webhook.ca), f"{webhook.ca}") if url.scheme == "https" else None
        async with asyncio.timeout(REACH_WITHIN):
            found = await asyncio.get_running_loop().getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
            reasons: list[str] = []
            for address in dict.fromkeys(str(target[0]) for *_, target in found):
                if why := refusal(address, allow_private=webhook.allow_private):
                    reasons.append(why)
                    continue
                try:
                    await _connect(address, url.port, url.host, context)
                except OSError as error:
                    reasons.append(f"{address}: {error.strerror or error}")
                else:
                    return None
            return "; ".join(reasons) or "its name has no address"
    except TimeoutError:
        return f"no connection within {REACH_WITHIN:g} s"
    except (ConfigError, OSError, UnicodeError) as error:
        return str(error)


async def _connect(address: str, port: int, name: str, context: ssl.SSLContext | None) -> None:
    server_name = name if context is not None else None
    _, writer = await asyncio.open_connection(address, port, ssl=context, server_hostname=server_name)
    writer.transport.abort()


_EMPTY = b'{"resourceSpans":[]}'

_UNAUTHORIZED = (401, 403)


async def inspect_traces(config: Config) -> Check:
    """Send a request without spans to the receiver, within `otlp.timeout`."""
    url = config.otlp.url
    if url is None:
        return ok(RECEIVER, "otlp.url is empty: no traces are sent")
    try:
        target = receiver(config.otlp)
    except CorrelatorError as error:
        return failure(RECEIVER, str(error))
    began = time.monotonic()
    async with open_session() as session:
        answer = await target.export(session, _EMPTY)
    return judge_traces(config, url, target.encoding, answer, time.monotonic() - began)


def judge_traces(config: Config, url: TracesUrl, encoding: Encoding, answer: TraceAnswer, took: float) -> Check:
    """Judge the answer to a request without spans. `took`: seconds."""
    other = f'otlp.encoding = "{encoding.other}"'
    match answer.verdict:
        case Verdict.ACCEPTED:
            detail = [f"The receiver has a note: {answer.words}"] if answer.words else []
            return ok(RECEIVER, f"{url} takes traces as {encoding.name}, in {took * 1000:.0f} ms", detail)
        case Verdict.GONE:
            lines = ["Ended jobs wait until it accepts them, for as long as they are in memory (jobs.retention)."]
            if answer.response.status in _UNAUTHORIZED:
                file = quote(str(config.otlp.headers_file or "/etc/correlator/otlp-headers"))
                fix = [
                    "read -rsp 'Token for the receiver of traces: ' TOKEN",
                    f"printf 'Authorization: Bearer %s\\n' \"$TOKEN\" | install --mode=600 /dev/stdin {file}",
                    "systemctl restart correlator",
                ]
                return failure(RECEIVER, f"{url}: {answer.words}", lines, fix)
            fix = [other if answer.response.status == 415 else 'otlp.url = "http://127.0.0.1:4318"']
            return failure(RECEIVER, f"{url}: {answer.words}", lines, fix)
        case Verdict.REFUSED:
            lines = ["The traces of all jobs would be dropped. One that does not take this encoding answers like this."]
            return failure(RECEIVER, f"{url} refuses a request without spans: {answer.words}", lines, [other])
        case Verdict.AWAY:
            parts = urlsplit(url.reveal())
            port = parts.port or (443 if parts.scheme == "https" else 80)
            return failure(RECEIVER, f"{url}: {answer.words}", fix=[f"nc -vz {quote(parts.hostname or '')} {port}"])
