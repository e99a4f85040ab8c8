"""A whole Debian system, booted by its own systemd in a container: systemd-nspawn, without a systemd on this host.

The container has a mount namespace of its own, with a pure cgroup2 in it, and a network of its own, in which there is
nothing but its loopback. It ends with the process that started it, and leaves nothing mounted. Needs root.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.eventually import PATIENCE
from tests.support.system.roots import Root

_CLONE_NEWNET = 0x40000000
_ENVIRON = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8", "TERM": "dumb"}


class Machine:
    """`root` is what it boots from and writes to; `console` gets the output of its boot."""

    def __init__(self, root: Root, console: Path) -> None:
        self._root = root
        self._console = console
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def boot(self) -> None:
        """Returns when the target that was booted for is reached; AssertionError with the console otherwise."""
        options = ["--quiet", "--boot", "--register=no", "--keep-unit", "--private-network", "--link-journal=no"]
        options += ["--machine=appliance", "--console=pipe", f"--directory={self._root.path}"]
        steps = (
            self._root.mount,
            "mount -t cgroup2 cgroup2 /sys/fs/cgroup",
            f"exec systemd-nspawn {shlex.join(options)}",
        )
        script = " && ".join(steps)
        with self._console.open("wb") as console:
            self._nspawn = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        deadline = time.monotonic() + PATIENCE
        while not self._booted():
            assert self._nspawn.poll() is None, self._console.read_text(errors="replace")
            assert time.monotonic() < deadline, self._console.read_text(errors="replace")
            time.sleep(0.05)

    def _booted(self) -> bool:
        self._leader = self._leader or self._find_leader()
        return bool(self._leader) and self.run("systemctl is-active multi-user.target", check=False).strip() == "active"

    def _find_leader(self) -> int:
        """The process that is number 1 inside; 0: there is none yet."""
        assert self._nspawn is not None
        pid = self._nspawn.pid
        with contextlib.suppress(OSError):
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                status = Path(f"/proc/{child}/status").read_text()
                numbers = next(line.split() for line in status.splitlines() if line.startswith("NSpid:"))
                if len(numbers) == 3 and numbers[-1] == "1":
                    return int(child)
        return 0

    def outside(self, pid: int) -> int:
        """The id that a process inside has on the host. Raises LookupError if there is no such process."""
        namespace = Path(f"/proc/{self._leader}/ns/pid").readlink()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, StopIteration):
                if (folder / "ns/pid").readlink() == namespace:
                    status = (folder / "status").read_text().splitlines()
                    if next(int(x.split()[-1]) for x in status if x.startswith("NSpid:")) == pid:
                        return int(folder.name)
        raise LookupError(f"no process {pid} inside")

    def get(self, path: str, port: int = 8686) -> str:
        """What a listener inside answers, asked again until it has read what it needs."""
        again = "--retry 40 --retry-delay 1 --retry-all-errors --retry-max-time 60"
        return self.run(f"curl --silent --fail {again} http://127.0.0.1:{port}{path}", within=120.0)

    def readiness(self, curl: str = "curl --silent http://127.0.0.1:8686") -> dict[str, object]:
        """Return what `/health/ready` answers once no part is missing, or after `PATIENCE` as it is.

        A daemon that has just started serves before its broker has answered. `curl`: how it is asked, up to the path.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            found: dict[str, object] = json.loads(self.run(f"{curl}/health/ready", check=False) or "{}")
            if (found.get("ready"), found.get("degraded")) == (True, False) or time.monotonic() > deadline:
                return found
            time.sleep(0.2)

    def run(self, script: str, *, check: bool = True, within: float = 60.0, given: str = "") -> str:
        """What a line of shell wrote, run inside as root; AssertionError where it fails."""
        ended = subprocess.run(
            ["nsenter", "--target", str(self._leader), "--all", "--", "/bin/sh", "-c", f"cd /root; {script}"],
            env=_ENVIRON,
            input=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=within,
            check=False,
        )
        assert not check or ended.returncode == 0, f"{script}\n{ended.stdout}"
        return ended.stdout

    def write(self, name: str, text: str, mode: int = 0o644) -> None:
        """Write the file `name` inside."""
        target = shlex.quote(name)
        self.run(f"mkdir -p $(dirname {target}) && umask 077 && cat >{target} && chmod {mode:o} {target}", given=text)

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """Within this block the calling thread, and those that it starts, have the network of the inside."""
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            inside = os.open(f"/proc/{self._leader}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                _join_network(inside)
            finally:
                os.close(inside)
            try:
                yield
            finally:
                _join_network(own)
        finally:
            os.close(own)

    def connect(self, port: str, other: Machine) -> None:
        """Make a cable from `port` of this machine to `lan` of another, or of this one."""
        cable = f"ip link add {port} type veth peer name lan netns {other._leader}"
        subprocess.run(["nsenter", "--target", str(self._leader), "--net", *shlex.split(f"{cable}")], check=True)

    def stop(self) -> None:
        """End everything in it at once."""
        if self._nspawn is None:
            return
        if self._leader:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._leader, signal.SIGKILL)  # and with number 1 all that is in there
        try:
            self._nspawn.wait(5 if self._leader else 0)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
            self._nspawn.wait(PATIENCE)
        self._nspawn, self._leader = None, 0

    def __enter__(self) -> Self:
        try:
            self.boot()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def bridged(machines: Mapping[str, Machine]) -> None:
    """Connect running machines by a network of their own, which ends with the last of them. Each gets its address."""
    switch = list(machines.values())[-1]
    switch.run("ip link add switch type bridge; ip link set switch up")
    for number, (address, machine) in enumerate(machines.items()):
        switch.connect(f"port{number}", machine)
        switch.run(f"ip link set port{number} master switch up")
        machine.run(f"ip address add {address}/24 dev lan; ip link set lan up")


@contextlib.contextmanager
def lost(machines: Mapping[str, Machine], address: str) -> Iterator[None]:
    """Within this block the network of `bridged` drops, without a word, what the machine sends and what is sent to it.

    It is not the last machine, which has the switch. All know the others' hardware addresses, as a router would.
    """
    links = {own: machine.run("cat /sys/class/net/lan/address").strip() for own, machine in machines.items()}
    for own, machine in machines.items():
        for other in links.keys() - {own}:
            machine.run(f"ip neighbour replace {other} lladdr {links[other]} dev lan nud permanent")
    number, switch = list(machines).index(address), list(machines.values())[-1]
    switch.run(f"ip link set port{number} nomaster")
    try:
        yield
    finally:
        switch.run(f"ip link set port{number} master switch")


def _join_network(namespace: int) -> None:
    """setns(2), which Python has from 3.12 on."""
    if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
