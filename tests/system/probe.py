"""What a process may do that is locked up like the daemon: run by a unit with the same sandbox, it writes JSON."""

import ctypes
import errno
import json
import mmap
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

# What the daemon needs of compiled code has to come up, too.
import asyncmy  # noqa: F401
import orjson  # noqa: F401
import uvloop

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWUSER = 0x10000000
PTRACE_ATTACH = 16


REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EAFNOSUPPORT)
"""Which of them it is depends on the versions of kernel and systemd."""


def says(attempt: Callable[[], object]) -> str:
    """What became of it: "works", "refused", or the name of another error."""
    try:
        attempt()
    except OSError as error:
        return "refused" if error.errno in REFUSALS else errno.errorcode[error.errno or 0]
    return "works"


def call(name: str, *arguments: object) -> str:
    """The same of a function of the C library that returns a negative number where it fails."""

    def attempt() -> None:
        if getattr(LIBC, name)(*arguments) < 0:
            raise OSError(ctypes.get_errno(), name)

    return says(attempt)


def opened(family: int, kind: int) -> str:
    return says(lambda: socket.socket(family, kind).close())


def status(prefix: str) -> list[str]:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return [line.split()[1] for line in lines if line.startswith(prefix)]


def main() -> None:
    uvloop.new_event_loop().close()
    found = {
        "inet": opened(socket.AF_INET, socket.SOCK_STREAM),
        "inet6": opened(socket.AF_INET6, socket.SOCK_STREAM),
        "unix": opened(socket.AF_UNIX, socket.SOCK_DGRAM),
        "netlink": opened(socket.AF_NETLINK, socket.SOCK_RAW),
        "packet": opened(socket.AF_PACKET, socket.SOCK_RAW),
        "executable memory": says(lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC).close()),
        "namespace": call("unshare", CLONE_NEWUSER),
        "mount": call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
        "trace": call("ptrace", PTRACE_ATTACH, 1, 0, 0),
        "time": says(lambda: time.clock_settime(time.CLOCK_REALTIME, time.time())),
        "host name": call("sethostname", b"x", 1),
        "homes": says(lambda: list(Path("/home").iterdir())),
        "state": says(lambda: Path(os.environ["STATE_DIRECTORY"], "probe").touch()),
        "configuration": says(lambda: Path("/etc/correlator/correlator.toml").open("a", encoding="utf-8").close()),
        "secret file": says(Path("/etc/correlator/db-password").read_bytes),
        "secret": Path(os.environ["CREDENTIALS_DIRECTORY"], "db-password").read_text(encoding="utf-8").strip() != "",
        "other processes": [path.name for path in Path("/proc").glob("[0-9]*") if path.name != str(os.getpid())],
        "capabilities": sorted(set(status("Cap"))),
        "no new privileges": status("NoNewPrivs"),
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
