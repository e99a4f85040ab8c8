"""Ends this process when it makes no progress, where no service manager does: in a container, say.

Problem. systemd ends a service whose watchdog pings stop. A container engine only marks it as unhealthy, and restarts
what has ended. What hangs may hold the interpreter's lock: then no thread runs any Python. And as the first process of
a container it ignores every signal that it has no handler for, even SIGKILL of another process there.

Model. Each beat sets a timer of the kernel. If it expires, the kernel calls functions of the C library, which need
nothing of Python. Its signal's handler is `alarm`: called with the number of the signal, it sends SIGALRM so many
seconds later. These are for a process that was stopped (SIGSTOP, a paused container, a host that was suspended): it
finds its timer expired when it goes on, beats at once, and that takes the alarm back. On SIGALRM `faulthandler` writes
the stack of each thread to standard error, and calls the handler before its own: `_exit`, again with the number of the
signal.

Invariants. A process that beats is never ended, however long it was stopped. One that does not is, within the given
time and `GRACE`, unless it sleeps in the kernel where no signal reaches it.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import signal
import time
from collections.abc import Callable, Mapping
from typing import Final

from correlator.errors import CorrelatorError

log = logging.getLogger(__name__)

LIMIT = 30.0
"""Seconds without a beat, the same as `WatchdogSec=` of the units."""

EXPIRED: Final = signal.SIGUSR1
GRACE: Final = float(EXPIRED)
"""The signal of the timer; and seconds between it and the end, its number."""

EXIT_CODE: Final = int(signal.SIGALRM)
"""With which the process ends."""

_SIGEV_SIGNAL = 0
"""From <signal.h>."""


class _SigEvent(ctypes.Structure):
    """`struct sigevent`, which has 64 bytes."""

    _fields_ = [
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("unused", ctypes.c_char * 48),
    ]


class _TimerSpec(ctypes.Structure):
    """`struct itimerspec`."""

    _fields_ = [
        ("interval_seconds", ctypes.c_long),
        ("interval_nanoseconds", ctypes.c_long),
        ("seconds", ctypes.c_long),
        ("nanoseconds", ctypes.c_long),
    ]


def start(limit: float) -> Callable[[], None]:
    """Return a function that beats. The process ends `limit` seconds and `GRACE` after its last call, if there was one.

    So a stop that hangs is ended too. Main thread only, once in a process.

    Raises: `CorrelatorError` if this system has no such timer.
    """
    library, timer = ctypes.CDLL(None, use_errno=True), ctypes.c_void_p()
    event = _SigEvent(signo=EXPIRED, notify=_SIGEV_SIGNAL)
    try:
        failed = library.timer_create(time.CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer))
    except AttributeError:  # a C library that has it in another one
        failed = True
    if failed:
        raise CorrelatorError("this system has no timer for a process that makes no progress: it is not ended")
    library.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    for number, handler in ((EXPIRED, library.alarm), (signal.SIGALRM, library["_exit"])):
        library.signal(number, ctypes.cast(handler, ctypes.c_void_p))
    faulthandler.register(signal.SIGALRM, all_threads=True, chain=True)
    due = ctypes.byref(_TimerSpec(0, 0, int(limit), int(limit % 1 * 1e9)))

    def beat() -> None:
        library.timer_settime(timer, 0, due, None)
        signal.setitimer(signal.ITIMER_REAL, 0)  # which `alarm` set

    return beat


def of_process(environ: Mapping[str, str]) -> Callable[[], None]:
    """Return the function that beats, for this process: it does nothing where a service manager watches it.

    A `WATCHDOG_USEC` without a service manager is the limit, in microseconds; 0: there is none.
    """
    given = environ.get("WATCHDOG_USEC", "")
    limit = int(given) / 1_000_000 if given.isdecimal() else LIMIT
    if limit == 0 or (given and "NOTIFY_SOCKET" in environ):
        return lambda: None
    try:
        return start(limit)
    except CorrelatorError as error:
        log.warning("%s", error)
        return lambda: None
