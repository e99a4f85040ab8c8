"""Notifications to the service manager: sd_notify(3) and its watchdog, without libsystemd.

Nothing here raises: outside systemd, or if the socket is missing, the daemon runs unsupervised.
"""

import os
import socket
import time
from collections.abc import Mapping

# Seconds. Without it, a full socket would block the event loop for as long as the service manager is stuck.
_SEND_TIMEOUT = 1.0


def notify(state: str, environ: Mapping[str, str]) -> bool:
    """Send `state`, e.g. "READY=1" or "STATUS=…", one per line. Returns False if it could not be sent."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):  # Linux's abstract namespace: @ stands for the leading NUL
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(_SEND_TIMEOUT)
            sender.sendto(state.encode(errors="replace"), address)
    except OSError:
        return False
    return True


def reloading(environ: Mapping[str, str]) -> bool:
    """Send that a reload begins, as Type=notify-reload requires. "READY=1" ends it."""
    return notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}", environ)


def watchdog_interval(environ: Mapping[str, str]) -> float | None:
    """Return the seconds between two "WATCHDOG=1", half the timeout (sd_watchdog_enabled(3)). None: no watchdog."""
    try:
        allowed = int(environ.get("WATCHDOG_USEC", ""))
        watched = int(environ.get("WATCHDOG_PID", os.getpid()))
    except ValueError:
        return None
    if allowed <= 0 or watched != os.getpid():
        return None
    return allowed / 1_000_000 / 2
