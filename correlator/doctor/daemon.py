"""The daemon that should be running: whether our port is free or ours, and what the daemon says of itself."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import ssl
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import aiohttp
from msgspec import Struct
from prometheus_client.parser import text_string_to_metric_families

from correlator import __version__
from correlator.doctor.check import Check, failure, ok, some, warning
from correlator.settings import Config

PORT, READY = "http.port", "daemon"

_RELOADED = "correlator_config_last_reload_successful"
_NOTED = {
    "correlator_jobs_stalled": "{} jobs are stalled: running, and silent",
    "correlator_malformed_rows_total": "{} rows of the log could not be understood in full",
    "correlator_log_resets_total": "the ids of the log began anew {} times",
    "correlator_mqtt_refused_total": "the broker refused {} messages",
    "correlator_mqtt_events_dropped_total": "{} events were given up while the broker was away",
    "correlator_checkpoint_failures_total": "the checkpoint could not be written {} times",
}
"""What an operator should know of, since the start of the daemon."""

ANSWER_WITHIN = 5.0
MAX_BODY = 32 * 1024 * 1024


class Found(Struct, frozen=True):
    """`ready` and `metrics` are None where no daemon of ours answered."""

    checks: tuple[Check, ...]
    live: dict[str, Any] | None = None
    ready: dict[str, Any] | None = None
    metrics: str | None = None
    epoch: str = ""

    @property
    def publishes(self) -> bool:
        """Whether it says that it is connected to the broker."""
        part = (self.ready or {}).get("parts", {}).get("mqtt")
        return isinstance(part, dict) and part.get("connected") is True

    @property
    def corrections(self) -> dict[str, float] | None:
        """What it has counted of what the log lacked, by kind."""
        if self.metrics is None:
            return None
        return {
            labels.get("kind", ""): value
            for labels, value in samples(self.metrics, "correlator_reconcile_corrections_total")
        }


def samples(text: str, name: str) -> list[tuple[Mapping[str, str], float]]:
    """(labels, value) of one metric in the text of /metrics; none where that is not what it should be."""
    try:
        return [
            (sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name
        ]
    except ValueError:
        return []


def _told(metrics: str, name: str, words: str) -> str:
    """`words` with the sum of a metric over its labels; "" where that is nothing."""
    total = sum(value for _, value in samples(metrics, name))
    return words.format(f"{total:.0f}") if total else ""


def url_of(config: Config) -> str:
    """Where this host reaches the daemon of `config`."""
    host, port = config.http.listen.host, config.http.listen.port
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - a place to listen, taken back
    return f"{'https' if config.http.tls_cert else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


async def look(config: Config, url: str | None, token: str) -> Found:
    """`url`: where it is, if that is not what the configuration says. `token`: shown where one is asked for.

    Elsewhere than where the configuration has our daemon listen, a token of the configuration is shown to nobody.
    """
    token = token if url is None or token == os.environ.get("CORRELATOR_TOKEN") else ""
    where = (url if "://" in url else f"http://{url}").rstrip("/") if url else url_of(config)
    if url is None and config.http.listen.port == 0:
        return Found((ok(PORT, "any free one is taken (http.listen has port 0)"),))
    connector = aiohttp.TCPConnector(ssl=_context(config, own=url is None) if where.startswith("https") else True)
    timeout = aiohttp.ClientTimeout(total=ANSWER_WITHIN)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        began = time.monotonic()
        try:
            status, ready = await _json(session, f"{where}/health/ready")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Found((await _silent(config, where, error, asked=url is not None),))
        if ready is None or not isinstance(ready.get("ready"), bool):
            return Found((stranger(config, where, f"HTTP {status}"),))
        took = (time.monotonic() - began) * 1000
        try:
            _, live = await _json(session, f"{where}/health/live")
            status, text = await _text(session, f"{where}/metrics", token)
            epoch = await _epoch(session, where, token)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            words = f"a correlator answers at {where}, but not to everything: {_words(error)}"
            return Found((failure(PORT, words, mend=["systemctl restart correlator"]),), ready=ready)
    metrics = text if status == HTTPStatus.OK else None
    port = ok(PORT, f"our daemon answers at {where} in {took:.0f} ms" + (f", epoch {epoch}" if epoch else ""))
    if metrics is None:
        lines = ["it knows none of the tokens of this configuration: it may run with another one, or with older tokens"]
        mend = ["systemctl reload correlator"]
        if url is not None:
            lines = ["with --url it is shown $CORRELATOR_TOKEN, and no token of this configuration"]
            mend = ["read -rs CORRELATOR_TOKEN && export CORRELATOR_TOKEN"]
        port = warning(PORT, f"{port.summary}, and refuses /metrics (HTTP {status})", lines, mend)
    return Found((port, judge(ready, live or {}, metrics)), live, ready, metrics, epoch)


def judge(ready: Mapping[str, Any], live: Mapping[str, Any], metrics: str | None) -> Check:
    """What it says of itself. `metrics`: its /metrics, where they could be had."""
    build = [labels for labels, _ in samples(metrics or "", "correlator_build_info")]
    version = build[0].get("version", "") if build else ""
    parts: Mapping[str, Any] = ready.get("parts") or {}
    sick = [f"{name}: {part.get('error') or 'not ok'}" for name, part in parts.items() if not part.get("ok", True)]
    lines = [f"version {version}"] if version else []
    lines += list(filter(None, (_told(metrics or "", name, words) for name, words in _NOTED.items())))
    if live.get("live") is False:
        stuck = live.get("stuck")
        silent = [f"{name} for {seconds} s" for name, seconds in stuck.items()] if isinstance(stuck, dict) else []
        words = f"it makes no progress: {some(silent) or 'see /health/live'}"
        return failure(READY, words, lines, ["journalctl -u correlator -n 100", "systemctl restart correlator"])
    if version and version != __version__:
        words = f"it runs version {version}, and installed is {__version__}"
        return warning(READY, words, sick, ["systemctl restart correlator"])
    if not ready["ready"]:
        return warning(
            READY, "it is not ready: loading, or about to stop", [*sick, *lines], ["systemctl status correlator"]
        )
    if any(value == 0 for _, value in samples(metrics or "", _RELOADED)):
        words = "its last reload failed: it goes on with the configuration that it had"
        return warning(READY, words, [*sick, *lines], ["correlator check-config", "systemctl reload correlator"])
    if sick:
        return warning(READY, f"it serves what it knows, but: {some(sick)}", lines, ["journalctl -u correlator -n 50"])
    return ok(READY, f"ready, and well: {', '.join(sorted(parts)) or 'no parts'}", lines)


def stranger(config: Config, where: str, what: str) -> Check:
    port = config.http.listen.port
    mend = [f"ss -ltnp 'sport = :{port}'", 'listen = "127.0.0.1:another port" under [http] in the configuration']
    return failure(PORT, f"another program answers at {where} ({what})", mend=mend)


async def _silent(config: Config, where: str, error: BaseException, *, asked: bool) -> Check:
    """Nothing that makes sense came from there. `asked`: somebody said that the daemon is there."""
    cause = getattr(error, "os_error", error)
    look = f"ss -ltnp 'sport = :{config.http.listen.port}'"
    if isinstance(error, TimeoutError):
        words = f"somebody listens at {where} and does not answer within {ANSWER_WITHIN:g} s"
        return failure(PORT, words, mend=[look, "systemctl restart correlator"])
    if asked:
        mend = ["systemctl status correlator", "systemctl start correlator"]
        return failure(PORT, f"{where}: {_words(error)}", mend=mend)
    if getattr(cause, "errno", None) == errno.ECONNREFUSED:
        return await asyncio.to_thread(bindable, config.http.listen.host, config.http.listen.port)
    return stranger(config, where, _words(error))


def bindable(host: str, port: int) -> Check:
    """Whether a daemon could listen there, now that nobody does."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        mend = ["ip -brief address"] if error.errno == errno.EADDRNOTAVAIL else [f"ss -ltnp 'sport = :{port}'"]
        if error.errno == errno.EACCES:
            mend = ["listen on a port above 1023, or AmbientCapabilities=CAP_NET_BIND_SERVICE in the unit"]
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        return failure(PORT, f"{host}:{port} cannot be listened on: {why}", mend=mend)
    return ok(PORT, f"{host}:{port} is free: no daemon runs")


def _context(config: Config, *, own: bool) -> ssl.SSLContext:
    """At our own address nobody but the holder of our certificate will do, whatever name that is for."""
    context = ssl.create_default_context()
    if config.http.tls_cert is not None:
        context.load_verify_locations(config.http.tls_cert)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.check_hostname = not own
    return context


async def _text(session: aiohttp.ClientSession, url: str, token: str = "") -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with session.get(url, headers=headers, allow_redirects=False) as response:
        body = b""
        async for part in response.content.iter_any():
            body += part
            if len(body) > MAX_BODY:
                raise ValueError(f"an answer of over {MAX_BODY} bytes")
        return response.status, body.decode("utf-8", "replace")


async def _json(session: aiohttp.ClientSession, url: str) -> tuple[int, dict[str, Any] | None]:
    status, text = await _text(session, url)
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = None
    return status, body if isinstance(body, dict) else None


async def _epoch(session: aiohttp.ClientSession, where: str, token: str) -> str:
    """As it says in its welcome; "" where it does not let us in, or is about to stop."""
    hello = {"type": "hello", "version": 1} | ({"token": token} if token else {})
    try:
        async with asyncio.timeout(ANSWER_WITHIN), session.ws_connect(f"{where}/ws") as ws:
            await ws.send_json(hello)
            said = json.loads(await ws.receive_str())
    except (aiohttp.ClientError, TypeError, ValueError, aiohttp.WSMessageTypeError):
        return ""
    first = said[0] if isinstance(said, list) and said else said
    return str(first.get("epoch") or "") if isinstance(first, dict) else ""


def _words(error: BaseException) -> str:
    cause = getattr(error, "os_error", error)
    return str(cause) or type(error).__name__
