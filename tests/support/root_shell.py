"""A shell of root at a made-up host: what is pasted there reaches private servers, and no service of this host."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from correlator.config import loading
from tests.support.eventually import PATIENCE
from tests.support.mariadb import MariaDB


def write_program(folder: Path, default_file: Path) -> None:
    """Write the program `correlator` into the folder; `default_file` is its /etc/correlator/correlator.toml."""
    (folder / "correlator").write_text(
        f"#!{sys.executable}\n"
        "from pathlib import Path\n"
        "from correlator.config import loading\n"
        f"loading.DEFAULT_FILE = Path({str(default_file)!r})\n"
        "from correlator.cli import main\n"
        "main(prog_name='correlator')\n"
    )
    (folder / "correlator").chmod(0o755)


async def paste(
    folder: Path, commands: Sequence[str], *, mariadb: MariaDB, here: Mapping[str, str] | None = None
) -> str:
    """Run `commands` in one shell, as they are but for the paths in `here`; what `systemctl` was asked for.

    Raises AssertionError where a command fails.
    """
    home = folder / "shell"
    home.mkdir(exist_ok=True)
    write_program(home, loading.DEFAULT_FILE)
    (home / ".my.cnf").write_text(f"[client]\nsocket={mariadb.socket}\nuser=root\n")
    asked = home / "asked"
    asked.write_text("")
    (home / "systemctl").write_text(f'#!/bin/sh\necho "$@" >>{asked}\n')
    (home / "systemctl").chmod(0o755)
    text = "\n".join(commands)
    for written, place in (here or {}).items():
        text = text.replace(written, place)
    process = await asyncio.create_subprocess_exec(
        "bash", "-e", "-o", "pipefail", "-c", text,
        env={"HOME": str(home), "PATH": f"{home}:{os.environ['PATH']}"},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    async with asyncio.timeout(PATIENCE):
        out, _ = await process.communicate()
    assert process.returncode == 0, f"{text}\n{out.decode()}"
    return asked.read_text()
