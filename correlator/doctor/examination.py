"""The command `doctor`: runs all checks in their order, passes findings from one to the next, and prints the report.

This host, the daemon and the broker come first; then the database, which is asked about the jobs that the broker
holds, and compared with what the daemon has counted. A check that fails never prevents an independent one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TextIO

from msgspec import Struct
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from correlator import __version__
from correlator.config import rendering
from correlator.config.loading import read_tokens
from correlator.config.schema import Config
from correlator.doctor import cluster, daemon, database, host, mqtt, receivers, service
from correlator.doctor.check import Check, CheckReport, Status, copyable, guarded
from correlator.doctor.service import Setting
from correlator.errors import ConfigError
from correlator.ops.logs import escape


class Examined(Struct, frozen=True):
    """The report, and the findings that a support bundle contains."""

    report: CheckReport
    daemon: daemon.DaemonFindings
    checkpoint: host.CheckpointFigures | None
    broker_version: str


async def doctor(
    file: Path | None,
    url: str | None,
    output: Literal["text", "json"],
    stdout: TextIO,
    environ: Mapping[str, str],
    *,
    gateway: bool = False,
) -> int:
    """Run the checks and print the report. Return 1 if a check failed, else 0. Raises ConfigError."""
    setting = service.load(file, environ, gateway=gateway)
    examined = await examine(setting, url, environ.get("CORRELATOR_TOKEN", ""))
    if output == "json":
        stdout.write(json.dumps(examined.report.document(), indent=2) + "\n")
    else:
        print_report(examined.report, stdout, environ)
    stdout.flush()
    return 0 if examined.report.ok else 1


async def examine(setting: Setting, url: str | None = None, token: str = "") -> Examined:
    """Run all checks. `url` and `token` are those of the running daemon, if they differ from the configuration.

    A gateway has no database, no broker, no receivers and no checkpoint.
    """
    config = setting.config
    # 1. The daemon, as the check of the broker compares the broker with what the daemon reports.
    answer = await guarded(daemon.PORT, daemon.inspect(config, url, token or _own_token(config)))
    of_daemon = daemon.DaemonFindings((answer,)) if isinstance(answer, Check) else answer
    of_secrets = await guarded(host.SECRETS, asyncio.to_thread(host.secrets, setting))
    of_host = [host.configuration(setting), of_secrets, host.versions()]
    if setting.gateway:
        of_unit = await guarded(host.UNIT_CHECK, host.unit_state(service.GATEWAY_UNIT))
        of_cluster = await _examine_cluster(config, of_daemon, gateway=True)
        return _examined(setting, [*of_host, *of_cluster, of_unit, *of_daemon.checks], of_daemon)
    # 2. The broker, the cluster, the receivers of traces and of webhooks, and the systemd unit, concurrently.
    reply, of_cluster, of_receiver, of_webhooks, of_unit = await asyncio.gather(
        guarded(mqtt.LOGIN, mqtt.inspect(config.mqtt, running=of_daemon.publishes)),
        _examine_cluster(config, of_daemon, gateway=False),
        guarded(receivers.RECEIVER, receivers.inspect_traces(config)),
        guarded(receivers.WEBHOOKS, receivers.inspect_webhooks(config.webhooks, of_daemon.ready)),
        guarded(host.UNIT_CHECK, host.unit_state()),
    )
    of_broker = mqtt.BrokerFindings((reply,)) if isinstance(reply, Check) else reply
    # 3. The database, and whether it has the jobs that the broker holds.
    retained_jobs = mqtt.job_ids(config.mqtt, of_broker.retained)
    of_database = await database.inspect(setting, retained_jobs, of_daemon)
    of_retained: list[Check] = []
    if any(check.name == mqtt.ACL for check in of_broker.checks):
        of_retained = [mqtt.judge_retained(config.mqtt, of_broker.retained, of_database.unknown_jobs)]
    # 4. The files of this host.
    of_directory = await guarded(host.DIRECTORY, asyncio.to_thread(host.directory, config))
    read = await guarded(host.CHECKPOINT, asyncio.to_thread(host.checkpoint, config))
    of_checkpoint, figures = (read, None) if isinstance(read, Check) else read
    checks = [
        *of_host,
        *of_database.checks,
        *of_broker.checks,
        *of_retained,
        *of_cluster,
        of_receiver,
        of_webhooks,
        of_unit,
        *of_daemon.checks,
        of_directory,
        of_checkpoint,
    ]
    return _examined(setting, checks, of_daemon, figures, of_broker.version)


def _examined(
    setting: Setting,
    checks: Sequence[Check],
    of_daemon: daemon.DaemonFindings,
    figures: host.CheckpointFigures | None = None,
    broker_version: str = "",
) -> Examined:
    report = CheckReport(__version__, service.stamp(), tuple(copyable(setting, check) for check in checks))
    return Examined(report, of_daemon, figures, broker_version)


def _own_token(config: Config) -> str:
    """Return a token that the daemon accepts; "" if it needs none, or its file cannot be used."""
    try:
        return min(read_tokens(config), default="")
    except ConfigError:  # one of `Setting.problems`
        return ""


async def _examine_cluster(config: Config, of_daemon: daemon.DaemonFindings, *, gateway: bool) -> list[Check]:
    ours = rendering.of_instance(config)
    inspecting = cluster.inspect(config.cluster, gateway=gateway, metrics=of_daemon.metrics, ours=ours)
    found = await guarded(cluster.SERVER, inspecting)
    return [found] if isinstance(found, Check) else found


# The report as text: aligned, with a symbol for each status, and failures at the end.

_PRINTED_ORDER: tuple[Status, ...] = ("ok", "warning", "failure")
_STYLE: dict[Status, str] = {"ok": "green", "warning": "yellow", "failure": "bold red"}
_SYMBOLS: dict[Status, str] = {"ok": "✓", "warning": "!", "failure": "✗"}
_ASCII_SYMBOLS: dict[Status, str] = {"ok": "+", "warning": "!", "failure": "x"}
_WIDE = 100_000
"""Columns if the output is not a terminal: nothing is wrapped."""


def print_report(report: CheckReport, stream: TextIO, environ: Mapping[str, str]) -> None:
    """Print `report`. On a terminal sentences are wrapped; commands are never wrapped, so that they can be copied."""
    terminal = stream.isatty()
    console = Console(
        file=stream, markup=False, emoji=False, highlight=False, width=None if terminal else _WIDE, soft_wrap=False
    )
    unicode = _encodes(stream) and environ.get("LC_ALL", "") not in ("C", "POSIX")
    names = max((len(check.name) for check in report.checks), default=0)
    for status in _PRINTED_ORDER:
        for check in report.checks:
            if check.status == status:
                _print_check(console, check, names, _SYMBOLS if unicode else _ASCII_SYMBOLS)
    console.print(_counts(report), soft_wrap=True)


def _print_check(console: Console, check: Check, names: int, symbols: Mapping[Status, str]) -> None:
    style = _STYLE[check.status]
    room = names + 6
    head = f"  {symbols[check.status]} {check.name.ljust(names)}  "
    lines = Text(escape(check.summary)).wrap(console, max(20, console.width - room))
    for number, line in enumerate(lines):
        line.rstrip()
        before = Text(head, style=style) if number == 0 else Text(" " * room)
        console.print(Text.assemble(before, line), soft_wrap=True)
    for words in check.detail:
        console.print(Padding(Text(escape(words), style="dim"), (0, 0, 0, room), expand=False))
    for command in check.fix:
        console.print(Text.assemble(" " * room, ("> ", style), escape(command)), soft_wrap=True)
    for command in check.see:
        console.print(Text.assemble(" " * room, ("$ ", "dim"), escape(command)), soft_wrap=True)


def _counts(report: CheckReport) -> Text:
    counts = {status: sum(check.status == status for check in report.checks) for status in _PRINTED_ORDER}
    words = [
        (f"{counts['ok']} ok", ""),
        (_many(counts["warning"], "warning"), _STYLE["warning"] if counts["warning"] else ""),
        (_many(counts["failure"], "failure"), _STYLE["failure"] if counts["failure"] else ""),
    ]
    text = Text(f"correlator {report.version}: ")
    for number, (word, style) in enumerate(words):
        text.append(", " if number else "").append(word, style)
    if any(check.fix for check in report.checks if check.status != "ok"):
        text.append(". Run the commands marked > to fix it.")
    if any(check.see for check in report.checks if check.status != "ok"):
        text.append(". Those marked $ change nothing and show more of the cause.")
    return text


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _encodes(stream: TextIO) -> bool:
    try:
        "✓✗".encode(getattr(stream, "encoding", None) or "ascii")
    except UnicodeError:
        return False
    return True
