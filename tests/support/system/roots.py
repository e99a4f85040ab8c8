"""Root file systems of whole Debian systems, made once by mmdebstrap, and copies of them that cost nothing.

A cached root in build/systems is only ever the lower layer of an overlay; what is written to a `Root` stays in a folder
of its own. Every mount happens in a mount namespace of the process that needs it, and is gone with that process: a test
that dies leaves nothing mounted. Needs root, and Debian.

`python -m tests.support.system.roots` makes all that are missing; `... trixie` just that one.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.paths import REPOSITORY

CACHE = REPOSITORY / "build" / "systems"

RELEASES = {"bookworm": "3.11", "noble": "3.12", "trixie": "3.13"}
"""Debian 12, Ubuntu 24.04, Debian 13, with the version of their Python: what the package is for."""

ASKED = tuple(os.environ.get("TEST_RELEASES", "trixie bookworm").split())
"""Those that are tested. Ubuntu has an archive of its own, which must be reachable."""

PACKAGES = (
    *(
        "ca-certificates",
        "curl",
        "dbus",
        "iproute2",
        "make",
        "python3",
        "python3-venv",
        "systemd",
        "systemd-sysv",
        "tzdata",
    ),
    *("mariadb-server", "mosquitto", "mosquitto-clients"),
)

EMULATED = "trixie-arm64"
"""Debian 13 for another processor, which runs under qemu: bare, with what the package depends on."""

_BARE = ("ca-certificates", "iproute2", "procps", "python3", "python3-pip-whl")
_BINFMT = "/proc/sys/fs/binfmt_misc"
_EMULATE = (
    f"{{ [ -e {_BINFMT}/register ] || mount -t binfmt_misc binfmt_misc {_BINFMT}; }} && "
    f"{{ [ -e {_BINFMT}/qemu-aarch64 ] || cat /usr/lib/binfmt.d/qemu-aarch64.conf >{_BINFMT}/register; }}"
)
"""The line of shell by which the kernel runs programs for arm64 by qemu, as long as the mount is there."""

_UBUNTU = {"noble": ("--components=main,universe", "--keyring=/usr/share/keyrings/ubuntu-archive-keyring.gpg")}
_CREATE_SECONDS = 3600.0


def cached(release: str) -> Path:
    """The root of `release`, made where it is missing; never to be written to. CalledProcessError: cannot be made."""
    emulated = release == EMULATED
    packages = ",".join(_BARE if emulated else PACKAGES)
    root = CACHE / f"{release}-{hashlib.sha256(packages.encode()).hexdigest()[:8]}"
    if root.exists():
        return root
    CACHE.mkdir(parents=True, exist_ok=True)
    unfinished = CACHE / f"{release}.{os.getpid()}"
    options = ["--quiet", "--variant=minbase", f"--include={packages}"]
    options += _UBUNTU.get(release, ())
    if emulated:
        options += ["--architectures=arm64", "--skip=check/qemu"]  # which would ask for one more program
    command = ["mmdebstrap", *options, release.partition("-")[0], str(unfinished)]
    if emulated:
        command = ["unshare", "--mount", "sh", "-c", f"{_EMULATE} && exec {shlex.join(command)}"]
    try:
        subprocess.run(command, check=True, timeout=_CREATE_SECONDS)
        unfinished.rename(root)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return root


class Root:
    """A system to change and to throw away: what was written is in `folder`, and stays from run to run.

    `path` is where its whole file system is seen, but only by a process that has said `mount`.
    """

    def __init__(self, release: str, folder: Path, *below: Path) -> None:
        """`below`: folders with what others wrote to this release, the upper first."""
        self.release = release
        self.path = folder / "root"
        self._written = folder / "written"
        self._work = folder / "work"
        self._below = (*below, cached(release))
        for made in (self.path, self._written, self._work):
            made.mkdir(parents=True, exist_ok=True)

    @property
    def mount(self) -> str:
        """The line of shell that mounts it at `path`, for a process in a mount namespace of its own."""
        below = ":".join(str(layer) for layer in self._below)
        layers = f"lowerdir={below},upperdir={self._written},workdir={self._work}"
        mount = f"mount -t overlay overlay -o {shlex.quote(layers)} {shlex.quote(str(self.path))}"
        return f"{_EMULATE} && {mount}" if self.release == EMULATED else mount

    def copy(self, folder: Path) -> Root:
        """Another, which has all that was written to this one so far; from then on this one must not be written to."""
        return Root(self.release, folder, self._written, *self._below[:-1])

    def put(self, name: str, content: bytes | Path, mode: int = 0o644) -> None:
        """Write the file /`name`; only while nothing runs in it."""
        target = self._written / name.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copy(content, target)
        else:
            target.write_bytes(content)
        target.chmod(mode)

    def run(self, script: str, *, within: float = 300.0, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a script in it as root, with `set -e`, in sh: without any network but a loopback of its own.

        When the script ends, so does all that it started. TimeoutExpired after `within` seconds.
        """
        # Inside: /proc for the new process namespace; then lo, as nothing else makes it up.
        inside = f"set -e\nmount -t proc proc /proc\nmount -t tmpfs tmpfs /run\nip link set lo up\n{script}"
        path = shlex.quote(str(self.path))
        outside = (
            f"{self.mount} && mount --rbind /dev {path}/dev && exec chroot {path} /bin/sh -c {shlex.quote(inside)}"
        )
        environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8", "TERM": "dumb"}
        environ["DEBIAN_FRONTEND"] = "noninteractive"
        ended = subprocess.run(
            ["unshare", "--mount", "--net", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "sh", "-c", outside],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=within,
            check=False,
        )
        assert not check or ended.returncode == 0, f"{self.release}: {script}\n{ended.stdout}"
        return ended


def main(*releases: str) -> None:
    """Make those that are missing."""
    for release in releases or ASKED:
        cached(release)


if __name__ == "__main__":
    main(*sys.argv[1:])
