"""A memory limit for one process: a group of the kernel's memory controller, version 1 or 2, whichever the host has.

`MemoryMax=` of a unit is the same thing; this is for processes that systemd does not start, and for hosts whose
systemd has no memory controller to use.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")


class LimitedGroup:
    """`limit` in bytes. The kernel kills a member that needs more, as it does for `MemoryMax=`."""

    def __init__(self, limit: int) -> None:
        parent, self._v2 = _parent()
        self._path = parent / f"correlator-{os.getpid()}-{time.monotonic_ns()}"
        self._path.mkdir()
        try:
            (self._path / ("memory.max" if self._v2 else "memory.limit_in_bytes")).write_text(str(limit))
        except BaseException:
            self._path.rmdir()
            raise

    def add(self, pid: int) -> None:
        """Put a process, and what it allocates from now on, under the limit."""
        (self._path / "cgroup.procs").write_text(str(pid))

    @property
    def kills(self) -> int:
        """How many members the kernel killed because of the limit."""
        name = "memory.events" if self._v2 else "memory.oom_control"
        lines = (self._path / name).read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))

    def close(self) -> None:
        """Remove the group. Its members must have ended, or they are moved back to the group of this process."""
        for pid in (self._path / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (self._path.parent / "cgroup.procs").write_text(pid)
        with contextlib.suppress(OSError):
            self._path.rmdir()


@contextlib.contextmanager
def memory_limit(limit: int) -> Iterator[LimitedGroup]:
    """A group for the block. Raises OSError where this process may not make one: without root, in most containers."""
    group = LimitedGroup(limit)
    try:
        yield group
    finally:
        group.close()


def _parent() -> tuple[Path, bool]:
    """The folder of the group in which this process can make a memory group, and whether it is of version 2.

    Version 1: its own. Version 2: the nearest one above that lends its groups the controller; a group with processes
    of its own, such as the session of a login, lends none.
    """
    own = {line.split(":")[1]: line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines()}
    for line in _MOUNTS.read_text().splitlines():
        fields = line.split()
        mounted, kind, options = Path(fields[4]), fields[fields.index("-") + 1], fields[-1].split(",")
        if kind == "cgroup" and "memory" in options and "memory" in own:
            return _below(mounted, own["memory"]), False
        if kind == "cgroup2":
            below = _below(mounted, own.get("", "/"))
            for folder in (below, *below.parents):
                if (
                    folder.is_relative_to(mounted)
                    and "memory" in (folder / "cgroup.subtree_control").read_text().split()
                ):
                    return folder, True
    raise OSError("the kernel offers no memory controller here")


def _below(mounted: Path, group: str) -> Path:
    """Where a group of /proc/self/cgroup is seen; the root of the mount where it is seen as another."""
    path = mounted / group.lstrip("/")
    return path if path.is_dir() else mounted
