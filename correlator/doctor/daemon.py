"""Checks of the running daemon: which program uses its port, and what its health endpoints and metrics report."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
from msgspec import Struct
from prometheus_client.parser import text_string_to_metric_families

from correlator import __version__
from correlator.client.connector import TokenConnector
from correlator.config.schema import Config
from correlator.doctor import service
from correlator.doctor.report import Check, failure, listeners, ok, some, warning
from correlator.errors import ForeignListener
from correlator.forecast.forecaster import OperationKey
from correlator.model.replies import OperationsList

PORT, READY = "http.port", "daemon"

_RELOADED = "correlator_config_last_reload_successful"
_NOTED = {
    "correlator_jobs_stalled": "stalled jobs, which run without any sign of progress: {}",
    "correlator_malformed_rows_total": "rows of the log that could not be parsed completely: {}",
    "correlator_log_resets_total": "resets of the log's ids: {}",
    "correlator_mqtt_refused_total": "messages that the broker refused: {}",
    "correlator_mqtt_events_dropped_total": "events that were dropped while the broker was unavailable or too slow: {}",
    "correlator_otlp_dropped_total": "jobs that left memory before they were exported as traces: {}",
    "correlator_webhook_events_dropped_total": "events for webhooks that were dropped: {}",
    "correlator_checkpoint_failures_total": "failed attempts to write the checkpoint: {}",
}
"""Counters since the start of the daemon that an operator should know, with their texts."""

ANSWER_WITHIN = 5.0
MAX_BODY = 32 * 1024 * 1024


class DaemonFindings(Struct, frozen=True):
    """The checks and the daemon's answers. An answer is None if the daemon did not give it."""

    checks: tuple[Check, ...]
    live: dict[str, Any] | None = None
    ready: dict[str, Any] | None = None
    metrics: str | None = None
    epoch: str = ""
    operations: Mapping[OperationKey, int] | None = None
    """The number of completed runs that its forecasts rest on, by operation."""

    @property
    def publishes(self) -> bool:
        """Whether the daemon reports that it is connected to the broker."""
        part = (self.ready or {}).get("parts", {}).get("mqtt")
        return isinstance(part, dict) and part.get("connected") is True

    @property
    def corrections(self) -> dict[str, float] | None:
        """The lifecycle rows that were missing in the log, as the daemon has counted them, by kind."""
        if self.metrics is None:
            return None
        return {
            labels.get("kind", ""): value
            for labels, value in samples(self.metrics, "correlator_reconcile_corrections_total")
        }


def samples(text: str, name: str) -> list[tuple[Mapping[str, str], float]]:
    """Return (labels, value) of one metric in the text of /metrics; empty if the text is malformed."""
    try:
        return [
            (sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name
        ]
    except ValueError:
        return []


def _noted(metrics: str, name: str, words: str) -> str:
    """Return `words` with the sum of a metric over its labels, or "" if that sum is 0."""
    total = sum(value for _, value in samples(metrics, name))
    return words.format(f"{total:.0f}") if total else ""


async def inspect(config: Config, url: str | None, token: str, *, within: float = ANSWER_WITHIN) -> DaemonFindings:
    """Run the checks of the daemon. `url`: its address, if not the configured one; `token`: for requests that need one.

    A token of the configuration is sent only to the address in the configuration, never to `url`. `within`: seconds for
    an answer.
    """
    token = token if url is None or token == os.environ.get("CORRELATOR_TOKEN") else ""
    where = (url if "://" in url else f"http://{url}").rstrip("/") if url else service.url_of(config)
    if url is None and config.http.listen.port == 0:
        return DaemonFindings((ok(PORT, "the daemon uses any free port (http.listen has port 0)"),))
    connect = TokenConnector if token else aiohttp.TCPConnector
    connector = connect(ssl=_context(config, own=url is None) if where.startswith("https") else True)
    timeout = aiohttp.ClientTimeout(total=within)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        began = time.monotonic()
        try:
            status, ready = await _json(session, f"{where}/health/ready")
        except ForeignListener as error:
            return DaemonFindings((failure(PORT, str(error), fix=[listeners(urlsplit(where).port or 443)]),))
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return DaemonFindings((await _silent(config, where, error, within, asked=url is not None),))
        if ready is None or not isinstance(ready.get("ready"), bool):
            return DaemonFindings((stranger(config, where, f"HTTP {status}"),))
        took = (time.monotonic() - began) * 1000
        try:
            _, live = await _json(session, f"{where}/health/live")
            status, text = await _text(session, f"{where}/metrics", token)
            epoch = await _epoch(session, where, token, within)
            _, operations = await _json(session, f"{where}/api/v1/operations", token)
            _, named = await _json(session, f"{where}/health/ready", token)  # with the errors, which need a token
            ready = named if named and isinstance(named.get("ready"), bool) else ready
        except (aiohttp.ClientError, OSError, ValueError) as error:
            words = f"the daemon at {where} answers only some of the requests: {_words(error)}"
            return DaemonFindings((failure(PORT, words, fix=["systemctl restart correlator"]),), ready=ready)
    metrics = text if status == HTTPStatus.OK else None
    port = ok(PORT, f"the daemon answers at {where} in {took:.0f} ms" + (f", epoch {epoch}" if epoch else ""))
    if metrics is None:
        lines = ["It accepts no token of this configuration. It may run with another one, or with older tokens."]
        fix = ["systemctl restart correlator"]
        if url is not None:
            lines = ["With --url only $CORRELATOR_TOKEN is sent, and no token of this configuration."]
            fix = ["read -rs CORRELATOR_TOKEN && export CORRELATOR_TOKEN"]
        port = warning(PORT, f"{port.summary}, and refuses /metrics (HTTP {status})", lines, fix)
    return DaemonFindings((port, judge(ready, live or {}, metrics)), live, ready, metrics, epoch, _runs(operations))


def judge(ready: Mapping[str, Any], live: Mapping[str, Any], metrics: str | None) -> Check:
    """Judge its health reports. `metrics`: the text of /metrics, or None if it was refused."""
    build = [labels for labels, _ in samples(metrics or "", "correlator_build_info")]
    version = build[0].get("version", "") if build else ""
    parts: Mapping[str, Any] = ready.get("parts") or {}
    errors = {name: part.get("error") or "not ok" for name, part in parts.items() if not part.get("ok", True)}
    if errors.get("tables") == errors.get("database"):
        errors.pop("tables", None)  # it is why the database is stale
    # Of the cluster, the subject of the last message concerned is a member of its own: a gateway shows it to some only.
    last = {name: f"; the last one on {part['subject']}" for name, part in parts.items() if part.get("subject")}
    sick = [f"{name}: {error}{last.get(name, '')}" for name, error in errors.items()]
    lines = [f"version {version}"] if version else []
    lines += list(filter(None, (_noted(metrics or "", name, words) for name, words in _NOTED.items())))
    if live.get("live") is False:
        stuck = live.get("stuck")
        silent = [f"{name} for {seconds} s" for name, seconds in stuck.items()] if isinstance(stuck, dict) else []
        words = f"it makes no progress: {some(silent) or 'see /health/live'}"
        return failure(READY, words, lines, ["journalctl -u correlator -n 100", "systemctl restart correlator"])
    if version and version != __version__:
        words = f"it runs version {version}, but version {__version__} is installed"
        return warning(READY, words, sick, ["systemctl restart correlator"])
    if not ready["ready"]:
        return _unready(parts, lines, sick, live=bool(live.get("live")))
    if any(value == 0 for _, value in samples(metrics or "", _RELOADED)):
        words = "its last reload failed: it continues with the previous configuration"
        return warning(READY, words, [*sick, *lines], ["correlator check-config", "systemctl reload correlator"])
    if sick:
        return warning(READY, f"it is ready, but degraded: {some(sick)}", lines, ["journalctl -u correlator -n 50"])
    return ok(READY, f"ready, all parts ok: {', '.join(sorted(parts)) or 'none'}", lines)


def _unready(parts: Mapping[str, Any], lines: Sequence[str], sick: Sequence[str], *, live: bool) -> Check:
    cluster = parts.get("cluster")
    if isinstance(cluster, dict) and cluster.get("other_database"):
        return failure(READY, f"it never takes over: {cluster.get('error')}", lines, ['cluster.instance = "NAME"'])
    if isinstance(cluster, dict) and cluster.get("role") == "standby" and cluster.get("connected") and live:
        active = f"; {cluster['active']} is active" if cluster.get("active") else ""
        return ok(READY, f"the standby of {cluster.get('instance')}, as it should be{active}", lines)
    return warning(
        READY, "it is not ready: it is loading or stopping", [*sick, *lines], ["systemctl status correlator"]
    )


def stranger(config: Config, where: str, what: str) -> Check:
    port = config.http.listen.port
    fix = [listeners(port), _listen(config.http.listen.host, port + 1)]
    return failure(PORT, f"another program answers at {where} ({what})", fix=fix)


async def _silent(config: Config, where: str, error: BaseException, within: float, *, asked: bool) -> Check:
    """Judge an address that gave no valid answer within `within` seconds. `asked`: it was given with --url."""
    cause = getattr(error, "os_error", error)
    if isinstance(error, TimeoutError):
        words = f"a program listens at {where} and does not answer within {within:g} s"
        return failure(PORT, words, fix=[listeners(config.http.listen.port), "systemctl restart correlator"])
    if asked:
        fix = ["systemctl status correlator", "systemctl start correlator"]
        return failure(PORT, f"{where}: {_words(error)}", fix=fix)
    if getattr(cause, "errno", None) == errno.ECONNREFUSED:
        return await asyncio.to_thread(bindable, config.http.listen.host, config.http.listen.port)
    return stranger(config, where, _words(error))


def _listen(host: str, port: int) -> str:
    return f'http.listen = "{f"[{host}]" if ":" in host else host}:{port}"'


def bindable(host: str, port: int) -> Check:
    """Check whether a daemon could listen at this address, which no program uses now."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        fix = ["ip -brief address"] if error.errno == errno.EADDRNOTAVAIL else [listeners(port)]
        if error.errno == errno.EACCES:
            fix = [_listen(host, 8686)]
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        return failure(PORT, f"cannot listen on {host}:{port}: {why}", fix=fix)
    return ok(PORT, f"{host}:{port} is free: no daemon runs")


def _context(config: Config, *, own: bool) -> ssl.SSLContext:
    context = service.own_context(config)
    context.check_hostname = config.http.tls_cert is None or not own
    return context


async def _text(session: aiohttp.ClientSession, url: str, token: str = "") -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with session.get(url, headers=headers, allow_redirects=False) as response:
        body = b""
        async for part in response.content.iter_any():
            body += part
            if len(body) > MAX_BODY:
                raise ValueError(f"the answer is larger than {MAX_BODY} bytes")
        return response.status, body.decode("utf-8", "replace")


async def _json(session: aiohttp.ClientSession, url: str, token: str = "") -> tuple[int, dict[str, Any] | None]:
    status, text = await _text(session, url, token)
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = None
    return status, body if isinstance(body, dict) else None


def _runs(body: Mapping[str, Any] | None) -> dict[OperationKey, int] | None:
    """Return the completed runs by operation of a reply of /api/v1/operations, None if it is of another form."""
    try:
        found = msgspec.convert(body, OperationsList)["operations"]
    except msgspec.ValidationError:
        return None
    return {(one.job_type or "", one.operation): one.runs for one in found}


async def _epoch(session: aiohttp.ClientSession, where: str, token: str, within: float) -> str:
    """Return the epoch of its `welcome`, or "" if it refuses the connection or is stopping."""
    hello = {"type": "hello", "version": 1} | ({"token": token} if token else {})
    try:
        async with asyncio.timeout(within), session.ws_connect(f"{where}/ws") as ws:
            await ws.send_json(hello)
            said = json.loads(await ws.receive_str())
    except (aiohttp.ClientError, TypeError, ValueError, aiohttp.WSMessageTypeError):
        return ""
    first = said[0] if isinstance(said, list) and said else said
    return str(first.get("epoch") or "") if isinstance(first, dict) else ""


def _words(error: BaseException) -> str:
    cause = getattr(error, "os_error", error)
    return str(cause) or type(error).__name__
