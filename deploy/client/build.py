"""The browser client as a package for npm: `client.js`, `progress.js` and `react.js` as the daemon serves them, and
`token.js` for the backend of a GUI.

Nothing is asked over the network; the same sources make the same package, byte by byte.

`python -m deploy.client.build` prints the path of the package. `make client-package` runs it.
"""

import gzip
import io
import json
import tarfile
from pathlib import Path

from correlator.web import CLIENT, files
from deploy.locked import REPOSITORY
from deploy.version import version

_SOURCE = Path(__file__).parent
_MTIME = 499_162_500
"""Seconds since 1970, as in every package that npm makes."""


def build(folder: Path) -> Path:
    """Write the package to `folder`."""
    package = json.loads((_SOURCE / "package.json").read_text())
    about = {"name": package.pop("name"), "version": version(), **package}
    served = files()
    packed = {
        "package.json": json.dumps(about, indent=2).encode() + b"\n",
        **{name: (_SOURCE / name).read_bytes() for name in ("README.md", "token.js", "token.d.ts")},
        "LICENSE": (REPOSITORY / "LICENSE").read_bytes(),
        **{name: served[f"/{name}"].body for script in CLIENT for name in (script, script.replace(".js", ".d.ts"))},
    }
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{about['name']}-{about['version']}.tgz"
    target.write_bytes(_packed(packed))
    return target


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
