"""The browser client as a package for npm: `client.js`, `progress.js` and `react.js` with all that they import.

Nothing is compiled, and nothing is asked over the network; the same sources make the same package, byte by byte.

`python -m deploy.client.build` prints the path of the package. `make client-package` runs it.
"""

import gzip
import io
import json
import posixpath
import re
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

from deploy.locked import REPOSITORY

ENTRIES = ("client.js", "progress.js", "react.js")
_SOURCE = Path(__file__).parent
_WEB = REPOSITORY / "correlator/web"
_IMPORT = re.compile(r'^(?:import|export) (?:[^"]* from )?"(\.[^"]+)";', re.MULTILINE)
_MTIME = 499_162_500
"""Seconds since 1970, as in every package that npm makes."""


def build(folder: Path) -> Path:
    """Write the package to `folder`."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    package = json.loads((_SOURCE / "package.json").read_text())
    about = {"name": package.pop("name"), "version": project["version"], **package}
    files = {
        "package.json": json.dumps(about, indent=2).encode() + b"\n",
        "README.md": (_SOURCE / "README.md").read_bytes(),
        "LICENSE": (REPOSITORY / "LICENSE").read_bytes(),
        **{name: (_WEB / name).read_bytes() for entry in ENTRIES for name in (*modules(entry), _types(entry))},
    }
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{about['name']}-{about['version']}.tgz"
    target.write_bytes(_packed(files))
    return target


def modules(entry: str) -> Iterator[str]:
    """The module and all that it imports, by their paths below correlator/web."""
    found, new = {entry}, [entry]
    while new:
        name = new.pop()
        yield name
        for target in _IMPORT.findall((_WEB / name).read_text()):
            imported = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
            if imported not in found:
                found.add(imported)
                new.append(imported)


def _types(entry: str) -> str:
    return entry.removesuffix(".js") + ".d.ts"


def _packed(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    # No file name and no time in the header of gzip.
    with (
        gzip.GzipFile("", "wb", fileobj=packed, mtime=0) as zipped,
        tarfile.open(mode="w", fileobj=zipped, format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name in sorted(files):
            member = tarfile.TarInfo(f"package/{name}")
            member.size, member.mtime = len(files[name]), _MTIME
            archive.addfile(member, io.BytesIO(files[name]))
    return packed.getvalue()


if __name__ == "__main__":
    print(build(REPOSITORY / "build"))
