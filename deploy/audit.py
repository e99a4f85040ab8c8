"""Known vulnerabilities of what is locked: requirements/dev.txt against an advisory database (OSV), by pip-audit.

`python -m deploy.audit` ends with 0 if there are none, with 1 if there are, and with 2 if nothing could be checked. Its
arguments are those of pip-audit, such as `--osv-url URL` for a mirror of the database.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy.locked import REPOSITORY

WITHIN = 900.0
"""Seconds for all packages, each of which is one request."""

UNCHECKED = """\
The advisory database cannot be reached or does not answer as it should, so nothing was checked. Behind a proxy set
https_proxy; for a mirror say: make audit ARGS='--osv-url URL'"""


def audit(lock: Path, more: Sequence[str] = ()) -> tuple[int, str]:
    """Return the exit code and what to print. `more`: arguments of pip-audit."""
    with tempfile.TemporaryDirectory(prefix="audit-") as scratch:
        found = Path(scratch) / "found.json"
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(lock), "--require-hashes", "--disable-pip"]
        command += ["--vulnerability-service", "osv", "--progress-spinner", "off", "--cache-dir", scratch, *more]
        command += ["--format", "json", "--output", str(found)]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN, check=False)
            dependencies: list[dict[str, Any]] = json.loads(found.read_text())["dependencies"]
        except (OSError, ValueError, KeyError, subprocess.TimeoutExpired):
            return 2, UNCHECKED
        if ended.returncode not in (0, 1) or not dependencies:
            return 2, UNCHECKED
    lines = [
        f"{one['name']} {one['version']}: {vulnerability['id']}"
        + (
            f", fixed in {', '.join(vulnerability['fix_versions'])}"
            if vulnerability["fix_versions"]
            else ", no fix yet"
        )
        for one in dependencies
        for vulnerability in one.get("vulns", ())
    ]
    if skipped := [str(one["name"]) for one in dependencies if "skip_reason" in one]:
        return 2, "\n".join([*lines, f"not checked: {', '.join(skipped)}"])
    if lines:
        return 1, "\n".join([*lines, "Lock newer versions: make lock ARGS='--upgrade-package NAME'"])
    return 0, f"{len(dependencies)} locked packages have no known vulnerability"


def main() -> None:
    code, words = audit(REPOSITORY / "requirements/dev.txt", sys.argv[1:])
    print(words, file=sys.stderr if code else sys.stdout)
    sys.exit(code)


if __name__ == "__main__":
    main()
