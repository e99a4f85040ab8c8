"""What of the lock file runs the program: a requirements file for pip, with hashes, without what only developers need.

It is the part of requirements/dev.txt that leads, by the lock's own "via" lines, to the dependencies that
pyproject.toml gives the program and the extras in `EXTRAS`. `python -m deploy.locked` prints it, and with names of
packages only these.
"""

import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).parent.parent
EXTRAS = ("server", "fast", "cluster", "otlp")

LEFT_OUT = frozenset({"nkeys"})
"""What an extra names and the program can do without: it has no wheel, and client certificates do not need it."""

_ENTRY = re.compile(r"(?P<name>[a-z0-9-]+)==(?P<version>[^\s;]+)(?: *; *(?P<marker>[^\\]+?))? *\\?$", re.MULTILINE)


class Locked(NamedTuple):
    """One release. `marker`: where it is needed (PEP 508), empty for everywhere; `via`: what requires it."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]
    via: frozenset[str]

    def requirement(self, hashes: Sequence[str] | None = None) -> str:
        """The line for pip; with `hashes`, sha256 in hexadecimal, in place of all that the lock allows."""
        where = f" ; {self.marker}" if self.marker else ""
        allowed = self.hashes if hashes is None else hashes
        return " \\\n    ".join([f"{self.name}=={self.version}{where}", *(f"--hash=sha256:{one}" for one in allowed)])


def described(repository: Path = REPOSITORY) -> dict[str, Any]:
    """Return the table [project] of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    return table


def running(repository: Path = REPOSITORY) -> list[Locked]:
    """The releases that the program runs with, by name. ValueError: the lock lacks what pyproject.toml asks for."""
    project = described(repository)
    asked = [*project["dependencies"], *(one for extra in EXTRAS for one in project["optional-dependencies"][extra])]
    needed = {_name(requirement) for requirement in asked}
    releases = parse((repository / "requirements" / "dev.txt").read_text())
    if missing := needed - {release.name for release in releases}:
        raise ValueError(f"requirements/dev.txt lacks {', '.join(sorted(missing))}: say make lock")
    while more := {release.name for release in releases if release.via & needed} - needed - LEFT_OUT:
        needed |= more
    return [release for release in releases if release.name in needed]


def parse(lock: str) -> list[Locked]:
    """The entries of a requirements file as `uv pip compile` writes it."""
    found: list[Locked] = []
    for block in re.split(r"\n(?=[a-z0-9])", lock):
        entry = _ENTRY.match(block)
        if entry is None:
            raise ValueError(f"not an entry of a lock file: {block[:60]!r}")
        _, _, via = block.partition("# via")
        found.append(
            Locked(
                name=entry["name"],
                version=entry["version"],
                marker=entry["marker"] or "",
                hashes=tuple(re.findall(r"--hash=sha256:([0-9a-f]{64})", block)),
                via=frozenset(re.findall(r"^[ #]+([a-z0-9][a-z0-9.-]*)$", via, re.MULTILINE)),
            )
        )
    return found


def _name(requirement: str) -> str:
    """The normalised name (PEP 503) at the start of a requirement."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]).lower()


def named(names: Sequence[str], repository: Path = REPOSITORY) -> list[Locked]:
    """The releases of these packages. ValueError: the lock lacks one."""
    releases = {release.name: release for release in parse((repository / "requirements" / "dev.txt").read_text())}
    if missing := set(names) - releases.keys():
        raise ValueError(f"requirements/dev.txt has no {', '.join(sorted(missing))}")
    return [releases[name] for name in names]


if __name__ == "__main__":
    print("\n".join(release.requirement() for release in (named(sys.argv[1:]) if sys.argv[1:] else running())))
