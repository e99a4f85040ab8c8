"""The container image as a file for `docker load` and `podman load`, built without a daemon and without a registry.

mmdebstrap makes the base of Debian's packages, and buildah runs deploy/Dockerfile on it, with the locked wheels that
the Debian package has too. All times are that of the commit: the same commit makes the same bytes as long as Debian's
archive has the same packages, and zlib and buildah are the same. It needs root, and is for this machine's architecture.

`python -m deploy.image` prints the path of the image. `make image` says it with what it needs installed.
"""

import contextlib
import gzip
import hashlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
from functools import partial
from pathlib import Path
from typing import IO, Any

from hatchling.build import build_wheel

from deploy.debian.build import download
from deploy.locked import REPOSITORY
from deploy.version import commit, epoch, version

BASE = ("mmdebstrap", "--quiet", "--variant=minbase", "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-include=/usr/share/doc/*/copyright", "--dpkgopt=path-exclude=/usr/share/locale/*",
        "--dpkgopt=path-exclude=/usr/share/man/*", "trixie")  # fmt: skip
"""As the slim images of Debian 13: without documents and translations."""


def build(folder: Path, wheel: Path | None = None) -> Path:
    """Write the image to `folder`. `wheel`: that of the program; by default a new one.

    ValueError: this is not root, or no Debian. CalledProcessError: a program failed.
    """
    if os.geteuid() != 0 or shutil.which("mmdebstrap") is None:
        raise ValueError(
            "The image is built of Debian's packages by mmdebstrap and buildah: it needs root, and Debian."
        )
    built, machine = version(), architecture()
    (REPOSITORY / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="image-", dir=REPOSITORY / "build") as name:
        scratch = Path(name)
        run = partial(
            subprocess.run,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            umask=0o022,
            env=os.environ | {"SOURCE_DATE_EPOCH": str(epoch()), "TMPDIR": str(scratch)},
        )
        context = _context(scratch / "context", download(machine), wheel)

        def buildah(*arguments: str | Path) -> str:
            storage = ("--root", scratch / "images", "--runroot", scratch / "run", "--storage-driver", "vfs")
            return run(["buildah", *storage, *arguments]).stdout.strip()

        run([*BASE, scratch / "base.tar"])
        base = buildah("from", "scratch")
        buildah("add", "--quiet", base, scratch / "base.tar", "/")
        at = ("--timestamp", str(epoch()))
        buildah("commit", "--quiet", "--rm", *at, base, "localhost/base")
        # In a chroot, which needs no more rights than root has in a container. buildah would raise these limits.
        limits = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
        hard = {name: resource.getrlimit(limit)[1] for name, limit in limits.items()}
        arguments = {"BASE": "localhost/base", "PIP_NO_INDEX": "1", "VERSION": built}
        buildah(
            *("build", "--quiet", "--isolation", "chroot", "--format", "docker", "--pull=never", *at),
            *(f"--ulimit={name}={most}:{most}" for name, most in hard.items() if most != resource.RLIM_INFINITY),
            *(f"--build-arg={name}={value}" for name, value in {**arguments, "COMMIT": commit()}.items()),
            *("--file", REPOSITORY / "deploy/Dockerfile", "--tag", "localhost/correlator", context),
        )
        buildah("push", "--quiet", "localhost/correlator", f"docker-archive:{scratch}/image.tar:{_tag(built)}")
        folder.mkdir(parents=True, exist_ok=True)
        image = folder / f"correlator-{built}-{machine}.image.tar.gz"
        _pack(scratch / "image.tar", image)
    return image


def _pack(archive: Path, image: Path) -> None:
    """Write an archive of `docker save` to `image` without the random names of the containers that built it."""
    with (
        tarfile.open(archive) as found,
        image.open("wb") as file,
        gzip.GzipFile("", "wb", 6, file, mtime=0) as zipped,
        tarfile.open(mode="w", fileobj=zipped, format=tarfile.USTAR_FORMAT) as written,
    ):

        def add(name: str, size: int, content: IO[bytes]) -> None:
            member = tarfile.TarInfo(name)
            member.size = size
            written.addfile(member, content)

        def read(name: str) -> Any:
            content = found.extractfile(name)
            assert content is not None
            return json.load(content)

        (manifest,) = read("manifest.json")
        config = read(manifest["Config"])
        config.pop("container", None)
        for part in ("config", "container_config"):
            config.get(part, {}).pop("Hostname", None)
        text = json.dumps(config).encode()
        manifest["Config"] = f"{hashlib.sha256(text).hexdigest()}.json"
        for layer in manifest["Layers"]:
            content = found.extractfile(layer)
            assert content is not None
            add(layer, found.getmember(layer).size, content)
        for name, body in ((manifest["Config"], text), ("manifest.json", json.dumps([manifest]).encode())):
            add(name, len(body), io.BytesIO(body))


def architecture() -> str:
    """Debian's name of this machine's architecture."""
    command = ["dpkg", "--print-architecture"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()


def _context(folder: Path, locked: Path, wheel: Path | None) -> Path:
    """Write what the Dockerfile copies to `folder`, and return it."""
    wheels = shutil.copytree(locked, folder / "build/wheel")
    if wheel is None:
        with contextlib.chdir(REPOSITORY):
            build_wheel(str(wheels))
    else:
        shutil.copy(wheel, wheels)
    shutil.copytree(REPOSITORY / "requirements", folder / "requirements")
    (folder / "deploy").mkdir()
    for name in ("pyproject.toml", "deploy/locked.py"):
        shutil.copy(REPOSITORY / name, folder / name)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def _tag(built: str) -> str:
    """The name of the image once it is loaded; `+` may not be in it."""
    return f"correlator:{built.replace('+', '-')}"


def main() -> None:
    try:
        print(build(REPOSITORY / "build"))
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
