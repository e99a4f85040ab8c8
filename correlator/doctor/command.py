"""What the two commands do: look, print, and say by the exit code whether anything failed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TextIO

from correlator.doctor import bundle, printed, service
from correlator.doctor.examination import examine


async def doctor(
    file: Path | None, url: str | None, output: Literal["text", "json"], stdout: TextIO, environ: Mapping[str, str]
) -> int:
    """The exit code: 1 where a check failed. Raises `ConfigError`, without which there is nothing to look at."""
    examined = await examine(service.load(file, environ), url, environ.get("CORRELATOR_TOKEN", ""))
    if output == "json":
        stdout.write(json.dumps(examined.report.document(), indent=2) + "\n")
    else:
        printed.show(examined.report, stdout, environ)
    stdout.flush()
    return 0 if examined.report.ok else 1


async def support_bundle(file: Path | None, target: Path | None, stdout: TextIO, environ: Mapping[str, str]) -> int:
    """Write what somebody needs who is to help from afar. Raises `ConfigError`, and `CorrelatorError` for the file."""
    setting = service.load(file, environ)
    examined = await examine(setting, token=environ.get("CORRELATOR_TOKEN", ""))
    made = bundle.write(target or Path(bundle.name()), await bundle.gather(setting, examined))
    stdout.write(f"{made}: read by you alone; look through it before you send it\n")
    return 0
