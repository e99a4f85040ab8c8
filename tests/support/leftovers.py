"""What a run of the tests leaves behind, which fails the run: temporary files, shared memory, processes.

Each run has a temporary folder of its own, which all that it starts finds in TMPDIR. As root it has a /dev/shm of its
own as well, in a mount namespace. So what is found there at the end is of this run, however many others are on the
machine at the same time. The folders of failed tests stay; a run without failures removes everything.

In that namespace the temporary folder is in memory, if there is plenty: servers wait for each commit until it is on
disk, and to make an appliance's empty tables takes twenty times as long there.

The hooks are in tests/conftest.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.support import fork_server

_SHARED_MEMORY = Path("/dev/shm")
_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS, _MS_REC, _MS_SLAVE, _MNT_DETACH = 0x20000, 0x4000, 0x80000, 2

MUCH = 4 << 30
"""Bytes of available memory from which on the temporary folder is there. A run takes 0.7 GiB of them."""

END_WITHIN = 20.0
"""Seconds that processes have to end which were killed at the end of a run."""


class Run:
    """One run: made before it, in the process that starts all others."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="correlator-"))
        self.tests = self.folder / "t"
        """For the folders of the tests: short, as the path of a socket is at most 107 bytes."""
        os.environ["TMPDIR"] = tempfile.tempdir = str(self.folder)
        self._has_shared_memory = _make_own_namespace() and _mount_memory(_SHARED_MEMORY)
        self._in_memory = self._has_shared_memory and _available() >= MUCH and _mount_memory(self.folder)

    def left(self) -> list[str]:
        """Return what is left, each with its name. Processes are waited for."""
        deadline = time.monotonic() + END_WITHIN
        while (processes := [*self._processes()]) and time.monotonic() < deadline:
            time.sleep(0.05)
        files = [path for path in self.folder.iterdir() if path != self.tests]
        segments = [*_SHARED_MEMORY.iterdir()] if self._has_shared_memory else []
        return [*processes, *(_described(path) for path in (*sorted(files), *sorted(segments)))]

    def remove(self) -> None:
        """Remove the folder with everything in it."""
        if self._in_memory:
            _LIBC.umount2(bytes(self.folder), _MNT_DETACH)
        shutil.rmtree(self.folder, ignore_errors=True)

    def keep(self) -> None:
        """Have the folders of the tests where they are seen after the run."""
        if self._in_memory and self.tests.is_dir():  # else no test had a folder
            kept = tempfile.mkdtemp(prefix="correlator-", dir=self.folder.parent)
            shutil.copytree(self.tests, f"{kept}/{self.tests.name}", symlinks=True, ignore=_special)
            self.remove()
            Path(kept).rename(self.folder)

    def _processes(self) -> Iterator[str]:
        """All other processes whose TMPDIR is the folder of this run or lies in it."""
        mark = f"\0TMPDIR={self.folder}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                if int(folder.name) != os.getpid() and mark in b"\0" + (folder / "environ").read_bytes():
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    if command:  # else it has just ended
                        yield f"process {folder.name}: {command[:200]}"


RUN = pytest.StashKey[Run]()
"""Of the process that starts all others."""


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput") and not config.option.collectonly:
        run = config.stash[RUN] = Run()
        config.option.basetemp = config.option.basetemp or run.tests


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, None, None]:
    fork_server.end()
    yield  # xdist ends its workers
    if (run := session.config.stash.get(RUN, None)) is None:
        return
    say = session.config.get_terminal_writer().line
    if left := run.left():
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
        say("\n".join(["", "The run has left behind:", *left]))
    if session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        run.remove()
    else:
        run.keep()
        say(f"\nThe folders of the tests that failed are in {run.tests}")


def _described(path: Path) -> str:
    """The path, with the first files that are below it."""
    found = sorted(str(file.relative_to(path)) for file in path.rglob("*"))[:5] if path.is_dir() else []
    return f"{path}: {', '.join(found)}" if found else str(path)


def _special(folder: str, names: list[str]) -> list[str]:
    """The sockets, pipes and devices among `names`, which cannot be copied."""
    paths = {name: Path(folder, name) for name in names}
    return [name for name, path in paths.items() if not (path.is_symlink() or path.is_dir() or path.is_file())]


def _available() -> int:
    """Bytes of memory that programs may take."""
    found = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
    return int(found[1]) * 1024 if found else 0


def _make_own_namespace() -> bool:
    """Give this process, and those that it starts, a mount namespace. False where that is not allowed."""
    return (
        os.geteuid() == 0
        and not _LIBC.unshare(_CLONE_NEWNS)
        and not _LIBC.mount(b"none", b"/", None, _MS_REC | _MS_SLAVE, None)
    )


def _mount_memory(folder: Path) -> bool:
    """Mount an empty file system in memory. False where that is not allowed."""
    return folder.is_dir() and not _LIBC.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, b"mode=1777")
