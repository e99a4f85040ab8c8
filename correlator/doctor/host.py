"""Checks of this host: the source of the configuration, permissions of secrets, disk space, versions, the checkpoint.

The checkpoint is that of an earlier run. It is read from a copy, without changing it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import platform
import shutil
import sqlite3
import stat
import struct
import tempfile
import tomllib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from shlex import quote
from typing import BinaryIO

from msgspec import Struct

from correlator import __version__
from correlator.config import loading
from correlator.config.schema import Config, settings
from correlator.config.values import is_loopback
from correlator.doctor import service
from correlator.doctor.report import Check, failure, ok, some, warning
from correlator.doctor.service import Setting
from correlator.state.checkpoint_file import Checkpoint

CONFIGURATION, SECRETS, VERSIONS, UNIT_CHECK = "configuration", "secrets", "versions", "unit"
LISTENER = "http.listen"
DIRECTORY, CHECKPOINT = "state.directory", "state.checkpoint"

LITTLE, TOO_LITTLE = 500 * 1024 * 1024, 64 * 1024 * 1024
"""Free bytes. The checkpoint of 20,000 jobs needs some 50 MB, and its write-ahead log as much again."""

RUNNING_SYSTEMD = Path("/run/systemd/system")
"""It exists if systemd is running: sd_booted(3)."""

_FREE_IT = "Free space on the file system of this directory; what fills it is not the correlator's to delete."

LIBRARIES = (
    "aiohttp",
    "aiomqtt",
    "aiomysql",
    "asyncmy",
    "click",
    "msgspec",
    "nats-py",
    "orjson",
    "paho-mqtt",
    "prometheus-client",
    "rich",
    "tzdata",
    "uvloop",
)
"""The libraries whose versions are reported; some are optional."""


def configuration(setting: Setting) -> Check:
    where = str(setting.file) if setting.file is not None else "no file"
    names = setting.variables
    detail = [f"from the environment: {', '.join(names)}"] if names else []
    given = [name for name in ("CREDENTIALS_DIRECTORY", "STATE_DIRECTORY") if name in setting.environ]
    detail += [f"{name} = {setting.environ[name]}" for name in given]
    drop_ins = [file for file in setting.files if file != setting.file]
    if drop_ins:
        detail.insert(0, f"drop-ins: {some([str(file) for file in drop_ins])}")
    if setting.problems:
        words = f"{where} is wrong: the service does not start with it. The checks below use defaults in its place"
        return failure(CONFIGURATION, words, [*setting.problems, *detail], ["correlator check-config"])
    if private := [file for file in setting.files if service.unit_of(setting.file) and _is_private(file)]:
        words = f"the service, which has an account of its own, cannot read {some([str(file) for file in private])}"
        return failure(CONFIGURATION, words, detail, [f"chmod o+r {quote(str(file))}" for file in private])
    if setting.twice:
        return warning(CONFIGURATION, f"{where}, valid; a key is set in two files", [*setting.twice[:10], *detail])
    return ok(CONFIGURATION, f"{where}, valid", detail)


def secrets(setting: Setting) -> Check:
    """Check for secrets that every user can read, and for secrets that changed after the start of the service."""
    held = setting.config
    files = {
        dotted: value
        for dotted, key, value in settings(held)
        if isinstance(value, Path) and (key.credential or dotted.endswith(("_key", ".key")))
    }
    of_webhooks = (f"webhook-{one.name}-{key}" for one in held.webhooks for key in ("url", "secret", "authorization"))
    names = [*service.SECRETS, *of_webhooks, *(f"api-token-{one.name}" for one in held.http.tokens)]
    folders = {setting.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent")}
    if setting.file == loading.DEFAULT_FILE:
        folders.add(str(loading.DEFAULT_FILE.parent))
    files |= {f"{name} in {folder}": Path(folder, name) for folder in sorted(folders) for name in names}
    for file in setting.files:
        if _holds_password(file):
            files[f"the configuration {file.name}, which holds a password"] = file
    there = {file: label for label, file in files.items() if service.holds_something(file)}
    wide = {label: file for file, label in there.items() if file.stat().st_mode & stat.S_IROTH}
    if wide:
        return failure(
            SECRETS,
            "every user of this host can read a secret",
            [f"{label}: {file}" for label, file in wide.items()],
            [f"chmod o-rwx {quote(str(file))}" for file in dict.fromkeys(wide.values())],
        )
    if old := service.outdated(setting):
        files_of = some([str(loading.DEFAULT_FILE.parent / name) for name in old])
        words = f"{files_of} changed after the start of the service, which still uses the old secret"
        return warning(
            SECRETS,
            words,
            ["systemd passes secrets to a service only at its start."],
            ["systemctl restart correlator"],
        )
    count = "1 file with a secret" if len(there) == 1 else f"{len(there)} files with secrets"
    return ok(SECRETS, f"{count}, not readable by every user" if there else "no secret is in a file")


def listener(config: Config) -> Check:
    """Judge who can connect to the daemon, and who can read the traffic."""
    http = config.http
    if is_loopback(http.listen.host):
        return ok(LISTENER, f"{http.listen}: only programs of this host can connect")
    if http.tls_cert is not None:
        return ok(LISTENER, f"{http.listen}, with TLS")
    read = "tokens and jobs" if config.http.read_tokens() else "jobs, and so can everybody else: no token is needed"
    lines = [
        "Give it a certificate (http.tls_cert, docs/install.md), or let it listen on loopback, behind a proxy with TLS."
    ]
    fix = [f'http.listen = "127.0.0.1:{http.listen.port}"']
    return warning(LISTENER, f"{http.listen}, without TLS: who sees the traffic can read {read}", lines, fix)


def _is_private(file: Path) -> bool:
    """Whether a file that holds no password can be read by us, root, and not by the account of the service."""
    try:
        found = file.stat()
    except OSError:
        return False
    return (
        found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IROTH | stat.S_IRGRP) and not _holds_password(file)
    )


def _holds_password(file: Path) -> bool:
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    repeated = raw.get("webhooks")
    webhooks = [one for one in repeated if isinstance(one, dict)] if isinstance(repeated, list) else []
    if any(one.get("secret") or one.get("authorization") for one in webhooks):
        return True
    tables = [raw.get(name) for name in ("database", "mqtt")]
    if any(isinstance(table, dict) and table.get("password") for table in tables):
        return True
    url = tables[0].get("url") if isinstance(tables[0], dict) else None
    return isinstance(url, str) and loading.holds_password(url)


def directory(config: Config) -> Check:
    place = config.state.directory
    there = next((p for p in (place, *place.parents) if p.exists()), Path("/"))
    if place.exists() and not place.is_dir():
        return failure(
            DIRECTORY, f"{place} is not a directory", fix=[f"mv {quote(str(place))} {quote(f'{place}.aside')}"]
        )
    free = shutil.disk_usage(there).free
    words = f"{place}, {free / 1e9:.1f} GB free"
    shown = [f"df -h {quote(str(there))}"]
    if not os.access(there, os.W_OK | os.X_OK):
        lines = ["The unit creates its state directory when it starts."]
        fix = [f"ls -ld {quote(str(there))}", "systemctl restart correlator"]
        return failure(DIRECTORY, f"{there} cannot be written by user {os.geteuid()}", lines, fix)
    if free < TOO_LITTLE:
        lines = ["The checkpoint cannot be written. A restart would continue from the last one that was written."]
        lines.append(_FREE_IT)
        return failure(DIRECTORY, words, lines, shown)
    if free < LITTLE:
        return warning(DIRECTORY, words, [_FREE_IT], shown)
    return ok(DIRECTORY, words if there == place else f"{words}; the first start creates it")


def versions() -> Check:
    found = libraries()
    words = f"correlator {__version__}, Python {platform.python_version()}, {platform.system()} {platform.release()}"
    return ok(VERSIONS, words, [", ".join(f"{name} {version}" for name, version in found.items())])


def libraries() -> dict[str, str]:
    """Return the versions of the installed `LIBRARIES`."""
    found: dict[str, str] = {}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


async def unit_state(name: str = service.UNIT, *, running: Path = RUNNING_SYSTEMD) -> Check:
    """Check the state of a systemd unit. `running`: the folder that exists if systemd is running."""
    wanted = "LoadState,ActiveState,SubState,Result,NRestarts,ExecMainStatus,StatusText,NeedDaemonReload"
    try:
        code, out = await service.run("systemctl", "show", name, f"--property={wanted}")
    except FileNotFoundError:
        return ok(UNIT_CHECK, "systemd is not installed")
    except (OSError, TimeoutError) as error:
        return warning(UNIT_CHECK, f"systemctl does not answer: {str(error) or type(error).__name__}")
    if code and not await asyncio.to_thread(running.exists):
        return ok(UNIT_CHECK, "systemd is not running on this host, so it supervises no correlator")
    if code:
        return warning(UNIT_CHECK, f"systemctl show {name} failed with exit code {code}", out.splitlines()[:1])
    return judge_unit(dict(line.partition("=")[::2] for line in out.splitlines()), name)


def judge_unit(properties: Mapping[str, str], name: str = service.UNIT) -> Check:
    """Judge the unit. `properties`: properties as `systemctl show` prints them."""
    active, result = properties.get("ActiveState", ""), properties.get("Result", "")
    words = f"{active} ({properties.get('SubState', '')})"
    detail = [properties["StatusText"]] if properties.get("StatusText") else []
    if properties.get("LoadState") in ("not-found", "", None):
        return ok(UNIT_CHECK, f"{name} is not installed")
    if properties.get("LoadState") == "masked":
        return warning(UNIT_CHECK, f"{name} is masked: nothing can start it", fix=[f"systemctl unmask {name}"])
    if active == "failed":
        fix = [f"journalctl -u {name.removesuffix('.service')} -n 50", f"systemctl restart {name}"]
        if properties.get("ExecMainStatus") == "78":
            detail.append("exit code 78: the configuration is wrong")
            fix.insert(0, "correlator check-config" if name == service.UNIT else "correlator check-config --gateway")
        return failure(UNIT_CHECK, f"{name} has failed: {result}", detail, fix)
    if properties.get("NeedDaemonReload") == "yes":
        fix = ["systemctl daemon-reload", f"systemctl restart {name}"]
        return warning(UNIT_CHECK, f"{words}; its files changed after systemd read them", detail, fix)
    restarts = properties.get("NRestarts", "0")
    if restarts not in ("0", ""):
        detail.append(f"restarted by systemd {restarts} times")
    if active != "active":
        stopped = active == "inactive"
        command = f"systemctl enable --now {name}" if stopped else f"systemctl status {name}"
        return warning(UNIT_CHECK, f"{name} is not running" if stopped else words, () if stopped else detail, [command])
    return ok(UNIT_CHECK, words, detail)


_ANEW = ("The next start sets it aside and reads everything from the tables. Events since then are not published.",)


class CheckpointFigures(Struct, frozen=True):
    """Size and contents of a checkpoint, in numbers. Those of the contents are None if it could not be read.

    ``bytes``: the size of the file. ``version``: SQLite's `user_version`. ``at``: when it was written, in Unix seconds.
    ``head``: the highest row ID of the log that had been read. ``jobs``: those of JobLog and legacy jobs together.
    ``events``: those that were still pending.
    """

    bytes: int
    version: int
    at: float | None = None
    head: int | None = None
    jobs: int | None = None
    events: int | None = None


def checkpoint(config: Config) -> tuple[Check, CheckpointFigures | None]:
    """Read a copy of the checkpoint. If a running daemon has it open, return its size only."""
    file = config.state.directory / "checkpoint.sqlite"
    try:
        with file.open("rb") as opened:
            holder = _lock_holder(opened)
            head = opened.read(64)
        version = int.from_bytes(head[60:], "big")  # SQLite's header has the user_version there.
        figures = CheckpointFigures(file.stat().st_size, version)
    except FileNotFoundError:
        return ok(CHECKPOINT, "none yet: the first start reads the tables, and the log of jobs.history"), None
    except OSError as error:
        return failure(CHECKPOINT, f"{file} cannot be read: {error.strerror}", fix=[f"ls -l {quote(str(file))}"]), None
    if holder is not None:
        return ok(
            CHECKPOINT, f"{figures.bytes / 1e6:.1f} MB, kept by the daemon that runs as process {holder}"
        ), figures
    return _judge_at_rest(config, file, figures)


def _lock_holder(opened: BinaryIO) -> int | None:
    """Return the process that holds SQLite's lock, which covers bytes from 2³⁰ on. None if no process does."""
    layout = "hhqqi"  # struct flock: type, whence, start, length, pid
    asked = struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, 1 << 30, 512, 0)
    kind, _, _, _, pid = struct.unpack(layout, fcntl.fcntl(opened, fcntl.F_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else int(pid)


def _judge_at_rest(config: Config, file: Path, figures: CheckpointFigures) -> tuple[Check, CheckpointFigures | None]:
    """Read a copy, as the next start of the daemon will read the file."""
    with tempfile.TemporaryDirectory(prefix="correlator-doctor-") as folder:
        copy = Path(folder, file.name)
        store = Checkpoint(copy, str(config.database.url))
        try:
            for suffix in ("", "-wal"):
                if (part := file.with_name(file.name + suffix)).exists():
                    shutil.copyfile(part, copy.with_name(copy.name + suffix))
            saved = store.read()
        except (sqlite3.Error, OSError, LookupError, TypeError, ValueError) as error:
            return warning(CHECKPOINT, f"{file} cannot be used: {error}", _ANEW), figures
        finally:
            store.close()
    if saved is None:
        return ok(CHECKPOINT, "nothing has been written to it yet"), figures
    url = str(config.database.url)
    moved = () if saved.source == url else (f"It was written at {saved.source}: the next start compares the jobs.",)
    jobs, events, head = len(saved.jobs) + len(saved.legacy), len(saved.events), saved.cursor.head
    figures = CheckpointFigures(figures.bytes, figures.version, saved.at, head, jobs, events)
    words = f"{jobs} jobs and {events} events, up to row {head} of the log"
    return ok(CHECKPOINT, words, moved), figures
