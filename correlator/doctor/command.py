"""The two commands: run the checks, print the result, and return the exit code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TextIO

from correlator.doctor import bundle, printed, service
from correlator.doctor.examination import examine, examine_gateway


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
    run = examine_gateway if gateway else examine
    examined = await run(service.load(file, environ, gateway=gateway), url, environ.get("CORRELATOR_TOKEN", ""))
    if output == "json":
        stdout.write(json.dumps(examined.report.document(), indent=2) + "\n")
    else:
        printed.show(examined.report, stdout, environ)
    stdout.flush()
    return 0 if examined.report.ok else 1


async def support_bundle(
    file: Path | None, target: Path | None, stdout: TextIO, environ: Mapping[str, str], *, gateway: bool = False
) -> int:
    """Write a support bundle, also of a wrong configuration, and return 0. Raises Unwritten if it cannot be written."""
    setting = service.load_usable(file, environ, gateway=gateway)
    run = examine_gateway if gateway else examine
    examined = await run(setting, token=environ.get("CORRELATOR_TOKEN", ""))
    made = bundle.write(target or Path(bundle.name()), await bundle.gather(setting, examined, gateway=gateway))
    if setting.problems:
        check = "correlator check-config --gateway" if gateway else "correlator check-config"
        stdout.write(f"The configuration is wrong; {check} lists its errors. So does doctor.json.\n")
    stdout.write(f"{made}: only you can read it. Check its contents before you send it.\n")
    return 0
