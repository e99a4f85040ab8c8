"""Checks of this host: the source of the configuration, permissions of secrets, disk space, versions."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import stat
import tomllib
from importlib import metadata
from pathlib import Path
from shlex import quote

from correlator import __version__
from correlator.config import loading as config
from correlator.config.schema import Config
from correlator.doctor import service
from correlator.doctor.check import Check, failure, ok, some, warning
from correlator.doctor.service import Setting

CONFIGURATION, SECRETS, DIRECTORY, VERSIONS = "configuration", "secrets", "state.directory", "versions"

LITTLE, TOO_LITTLE = 500 * 1024 * 1024, 64 * 1024 * 1024
"""Free bytes. The checkpoint of 20,000 jobs needs some 50 MB, and its write-ahead log as much again."""

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
        "database.password_file": held.database.password_file,
        "mqtt.password_file": held.mqtt.password_file,
        "http.tokens_file": held.http.tokens_file,
        "http.tls_key": held.http.tls_key,
        "database.tls.key": held.database.tls.key if held.database.tls is not None else None,
        "otlp.headers_file": held.otlp.headers_file,
        "otlp.tls.key": held.otlp.tls.key if held.otlp.tls is not None else None,
        "mqtt.tls.key": held.mqtt.tls.key if held.mqtt.tls is not None else None,
        "cluster.credentials_file": held.cluster.credentials_file,
        "cluster.tls.key": held.cluster.tls.key if held.cluster.tls is not None else None,
    }
    names = [*service.SECRETS]
    for webhook in held.webhooks:
        for key in ("url", "secret", "authorization"):
            names.append(f"webhook-{webhook.name}-{key}")
            files[f"{key}_file of the webhook {webhook.name}"] = getattr(webhook, f"{key}_file")
    folders = {setting.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent")}
    if setting.file == config.DEFAULT_FILE:
        folders.add(str(config.DEFAULT_FILE.parent))
    files |= {f"{name} in {folder}": Path(folder, name) for folder in sorted(folders) for name in names}
    for file in setting.files:
        if _holds_password(file):
            files[f"the configuration {file.name}, which holds a password"] = file
    there = {file: label for label, file in files.items() if file is not None and _holds_something(file)}
    wide = {label: file for file, label in there.items() if file.stat().st_mode & stat.S_IROTH}
    if wide:
        return failure(
            SECRETS,
            "every user of this host can read a secret",
            [f"{label}: {file}" for label, file in wide.items()],
            [f"chmod o-rwx {quote(str(file))}" for file in dict.fromkeys(wide.values())],
        )
    if old := service.outdated(setting):
        files_of = some([str(config.DEFAULT_FILE.parent / name) for name in old])
        words = f"{files_of} changed after the start of the service, which still uses the old secret"
        return warning(
            SECRETS,
            words,
            ["systemd passes secrets to a service only at its start."],
            ["systemctl restart correlator"],
        )
    count = "1 file with a secret" if len(there) == 1 else f"{len(there)} files with secrets"
    return ok(SECRETS, f"{count}, not readable by every user" if there else "no secret is in a file")


def _holds_something(file: Path) -> bool:
    """Whether a file exists and is not blank: the unit passes a blank file for a secret that does not exist."""
    try:
        return file.is_file() and bool(file.read_bytes().strip())
    except OSError:
        return file.is_file()  # it exists, but we may not read it


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
    return isinstance(url, str) and bool(re.match(r"[A-Za-z]+://[^:@/]*:[^@]+@", url))


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
