"""This host: where the configuration is from, who else may read its secrets, the disk, the versions."""

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
from correlator.doctor.check import Check, failure, ok, warning
from correlator.doctor.service import Setting
from correlator.settings import Config

CONFIGURATION, SECRETS, DIRECTORY, VERSIONS = "configuration", "secrets", "state.directory", "versions"

LITTLE, TOO_LITTLE = 500 * 1024 * 1024, 64 * 1024 * 1024
"""Bytes free: the checkpoint of 20,000 jobs takes some 50 MB, and its log as much again."""

LIBRARIES = (
    "aiohttp",
    "aiomqtt",
    "aiomysql",
    "asyncmy",
    "click",
    "msgspec",
    "orjson",
    "paho-mqtt",
    "prometheus-client",
    "rich",
    "tzdata",
    "uvloop",
)
"""What this program is made of; some of it need not be there."""


def configuration(setting: Setting) -> Check:
    where = str(setting.file) if setting.file is not None else "no file"
    names = setting.variables
    detail = [f"from the environment: {', '.join(names)}"] if names else []
    given = [name for name in ("CREDENTIALS_DIRECTORY", "STATE_DIRECTORY") if name in setting.environ]
    detail += [f"{name} = {setting.environ[name]}" for name in given]
    return ok(CONFIGURATION, f"{where}, read without a complaint", detail)


def secrets(setting: Setting) -> Check:
    """Files with secrets that anybody on this host can read."""
    config = setting.config
    files = {
        "database.password_file": config.database.password_file,
        "mqtt.password_file": config.mqtt.password_file,
        "http.tokens_file": config.http.tokens_file,
        "http.tls_key": config.http.tls_key,
        "database.tls.key": config.database.tls.key if config.database.tls is not None else None,
        "mqtt.tls.key": config.mqtt.tls.key if config.mqtt.tls is not None else None,
    }
    held = Path(setting.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent"))
    files |= {f"credential {name}": held / name for name in ("db-password", "mqtt-password", "api-token")}
    if setting.file is not None and _holds_password(setting.file):
        files["the configuration, which holds a password"] = setting.file
    there = {label: file for label, file in files.items() if file is not None and file.is_file()}
    wide = {label: file for label, file in there.items() if file.stat().st_mode & stat.S_IROTH}
    if wide:
        return failure(
            SECRETS,
            "everybody on this host can read a secret",
            [f"{label}: {file}" for label, file in wide.items()],
            [f"chmod o-rwx {quote(str(file))}" for file in dict.fromkeys(wide.values())],
        )
    return ok(SECRETS, f"{len(there)} files with secrets, which not everybody can read" if there else "none in a file")


def _holds_password(file: Path) -> bool:
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
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
            DIRECTORY, f"{place} is no directory", mend=[f"mv {quote(str(place))} {quote(f'{place}.aside')}"]
        )
    free = shutil.disk_usage(there).free
    words = f"{place}, {free / 1e9:.1f} GB free"
    if not os.access(there, os.W_OK | os.X_OK):
        mend = [f"ls -ld {quote(str(there))}", "systemctl restart correlator   (the unit makes its StateDirectory)"]
        return failure(DIRECTORY, f"{there} cannot be written by user {os.geteuid()}", mend=mend)
    if free < TOO_LITTLE:
        lines = ["the checkpoint cannot be written: a restart would begin where the last one that was written ended"]
        return failure(DIRECTORY, words, lines, [f"df -h {quote(str(there))}", "journalctl --vacuum-size=200M"])
    if free < LITTLE:
        return warning(DIRECTORY, words, mend=[f"df -h {quote(str(there))}", "journalctl --vacuum-size=200M"])
    return ok(DIRECTORY, words if there == place else f"{words}; it will be made at the first start")


def versions() -> Check:
    found = libraries()
    words = f"correlator {__version__}, Python {platform.python_version()}, {platform.system()} {platform.release()}"
    return ok(VERSIONS, words, [", ".join(f"{name} {version}" for name, version in found.items())])


def libraries() -> dict[str, str]:
    """The versions of those of `LIBRARIES` that are installed."""
    found: dict[str, str] = {}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
