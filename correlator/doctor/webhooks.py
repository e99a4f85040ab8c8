"""The check of the webhooks: whether each receiver can be reached, and what the running daemon reports of it.

It opens a connection to each receiver, under the same rule for addresses as the daemon, and sends no request.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping, Sequence
from typing import Any

from correlator.config.webhooks import Webhook
from correlator.doctor.check import Check, failure, ok, some, warning
from correlator.errors import ConfigError
from correlator.sinks.webhooks.addresses import refusal
from correlator.sinks.webhooks.sender import tls_context

WEBHOOKS = "webhooks"

REACH_WITHIN = 5.0
"""Seconds to connect to one receiver."""


async def inspect(webhooks: Sequence[Webhook], ready: Mapping[str, Any] | None) -> Check:
    """Run the check. `ready`: the daemon's answer to /health/ready, None if it does not run."""
    if not webhooks:
        return ok(WEBHOOKS, "there is no [[webhooks]]: no event is sent by HTTP")
    reached = await asyncio.gather(*(reach(webhook) for webhook in webhooks))
    part = ((ready or {}).get("parts") or {}).get("webhooks") or {}
    return judge(webhooks, reached, part.get("receivers") or {})


def judge(webhooks: Sequence[Webhook], reached: Sequence[str | None], reported: Mapping[str, Any]) -> Check:
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
        context = tls_context(webhook) if url.scheme == "https" else None
        async with asyncio.timeout(REACH_WITHIN):
            found = await asyncio.get_running_loop().getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
            why = "its name has no address"
            for address in dict.fromkeys(str(target[0]) for *_, target in found):
                try:
                    why = refusal(address, allow_private=webhook.allow_private) or ""
                    if not why:
                        await _connect(address, url.port, url.host, context)
                        return None
                except OSError as error:
                    why = f"{address}: {error.strerror or error}"
            return why
    except TimeoutError:
        return f"no connection within {REACH_WITHIN:g} s"
    except (ConfigError, OSError, UnicodeError) as error:
        return str(error)


async def _connect(address: str, port: int, name: str, context: ssl.SSLContext | None) -> None:
    server_name = name if context is not None else None
    _, writer = await asyncio.open_connection(address, port, ssl=context, server_hostname=server_name)
    writer.transport.abort()
