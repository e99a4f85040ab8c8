"""What the service manager is told, and what it asks for: sd_notify(3) and its watchdog, without libsystemd.

Nothing here raises: outside systemd, or with a socket that is gone, the daemon runs on unsupervised.
"""

import os
import socket
import time
from collections.abc import Mapping

# A datagram to a full socket would otherwise hold the event loop for as long as the service manager is stuck.
_SEND_TIMEOUT = 1.0


def notify(state: str, environ: Mapping[str, str]) -> bool:
    """Send `state`, e.g. "READY=1" or "STATUS=…" (several: a line each); False where nobody listens."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):  # Linux's abstract namespace, written with @ for the leading NUL
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(_SEND_TIMEOUT)
            sender.sendto(state.encode(errors="replace"), address)
    except OSError:
        return False
    return True


def reloading(environ: Mapping[str, str]) -> bool:
    """Say that a reload begins, as a unit of Type=notify-reload wants it; what ends it is "READY=1"."""
    return notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}", environ)


def watchdog_interval(environ: Mapping[str, str]) -> float | None:
    """Seconds between two "WATCHDOG=1": half of what is allowed, as sd_watchdog_enabled(3) advises; None: none."""
    try:
        allowed = int(environ.get("WATCHDOG_USEC", ""))
        watched = int(environ.get("WATCHDOG_PID", os.getpid()))
    except ValueError:
        return None
    if allowed <= 0 or watched != os.getpid():
        return None
    return allowed / 1_000_000 / 2
