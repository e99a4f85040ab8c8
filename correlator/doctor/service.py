"""What the service has and a person's shell has not: its credentials and its state directory.

Who logs in to look at an installation starts the doctor from a shell. With the configuration of /etc/correlator the
service is meant, so that its credentials and its directory are taken where the shell names none of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from correlator import config
from correlator.doctor.check import Check, failure, ok, warning
from correlator.settings import Config

UNIT = "correlator.service"
CREDENTIALS = Path("/run/credentials") / UNIT
STATE = Path("/var/lib/correlator")
UNIT_FILES = tuple(Path(folder, UNIT) for folder in ("/etc/systemd/system", "/usr/lib/systemd/system"))

UNIT_CHECK = "unit"
WITHIN = 5.0


class Setting(Struct, frozen=True):
    """A configuration, and where it is from. `environ`: what was taken for the environment."""

    config: Config
    file: Path | None
    environ: Mapping[str, str]

    @property
    def variables(self) -> list[str]:
        """The names, not the values, of the variables that say something."""
        return sorted(name for name in self.environ if name.startswith("CORRELATOR_") and "__" in name)


def load(file: Path | None, environ: Mapping[str, str]) -> Setting:
    """Raises `ConfigError`, as the daemon would."""
    chosen = file or config.default_file()
    around = as_service(environ) if chosen == config.DEFAULT_FILE else environ
    return Setting(config.load(chosen, around), chosen, around)


def as_service(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ`, and what the service manager would add: the files that the unit takes its credentials from."""
    added: dict[str, str] = {}
    with contextlib.suppress(OSError):
        held = CREDENTIALS if os.access(CREDENTIALS, os.X_OK) and CREDENTIALS.is_dir() else config.DEFAULT_FILE.parent
        added["CREDENTIALS_DIRECTORY"] = str(held)
        if STATE.is_dir() or any(place.is_file() for place in UNIT_FILES):
            added["STATE_DIRECTORY"] = str(STATE)
    return {**added, **environ}


async def run(*command: str, within: float = WITHIN) -> tuple[int, str]:
    """(exit code, output) of a program. Raises OSError where there is none, TimeoutError where it does not end."""
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(f"{command[0]} is not installed")
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(within):
            out, _ = await process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    return process.returncode or 0, out.decode("utf-8", "replace")


async def unit() -> Check:
    """The state of the systemd unit."""
    wanted = "LoadState,ActiveState,SubState,Result,NRestarts,ExecMainStatus,StatusText,NeedDaemonReload"
    try:
        code, out = await run("systemctl", "show", UNIT, f"--property={wanted}")
    except FileNotFoundError:
        return ok(UNIT_CHECK, "no systemd here")
    except (OSError, TimeoutError) as error:
        return warning(UNIT_CHECK, f"systemctl does not answer: {str(error) or type(error).__name__}")
    if code:
        return ok(UNIT_CHECK, "no systemd runs here", out.splitlines()[:1])
    return judge_unit(dict(line.partition("=")[::2] for line in out.splitlines()))


def judge_unit(said: Mapping[str, str]) -> Check:
    """`said`: properties as `systemctl show` prints them."""
    active, result = said.get("ActiveState", ""), said.get("Result", "")
    words = f"{active} ({said.get('SubState', '')})"
    detail = [said["StatusText"]] if said.get("StatusText") else []
    if said.get("LoadState") in ("not-found", "", None):
        return ok(UNIT_CHECK, f"{UNIT} is not installed")
    if said.get("LoadState") == "masked":
        return warning(UNIT_CHECK, f"{UNIT} is masked: nothing can start it", mend=[f"systemctl unmask {UNIT}"])
    if active == "failed":
        mend = ["journalctl -u correlator -n 50", f"systemctl restart {UNIT}"]
        if said.get("ExecMainStatus") == "78":
            detail.append("exit code 78: the configuration is wrong")
            mend.insert(0, "correlator check-config")
        return failure(UNIT_CHECK, f"{UNIT} has failed: {result}", detail, mend)
    if said.get("NeedDaemonReload") == "yes":
        mend = ["systemctl daemon-reload", f"systemctl restart {UNIT}"]
        return warning(UNIT_CHECK, f"{words}; its files were changed since it was read", detail, mend)
    restarts = said.get("NRestarts", "0")
    if restarts not in ("0", ""):
        detail.append(f"restarted by systemd {restarts} times")
    if active != "active":
        stopped = active == "inactive"
        command = f"systemctl enable --now {UNIT}" if stopped else f"systemctl status {UNIT}"
        return warning(UNIT_CHECK, f"{UNIT} does not run" if stopped else words, () if stopped else detail, [command])
    return ok(UNIT_CHECK, words, detail)


def stamp() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
