"""What daemon and gateway share as processes: their signals, their liveness, and the reload of their configuration.

The service manager gets watchdog pings, and one status line for `systemctl status`, without libsystemd. A watchdog ping
is sent only while no task is stuck. An unreachable database or broker does not make a task stuck: a task that waits for
one has a deadline, and beats after it. No notification raises: outside systemd, or if the socket is missing, the daemon
runs unsupervised.

A reload has two phases, so that either every reloadable key is applied, or none. First each part prepares its new
settings, which may fail; then each part applies them, which must not fail. Keys that need a restart keep their values
and are named in the log. Token and certificate files are read again even if no key has changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from correlator import __version__
from correlator.config.schema import Config, leaves, repeated_tables, value_of
from correlator.config.values import Section
from correlator.errors import CorrelatorError
from correlator.ops import event_loop, metrics
from correlator.pipeline.hub import Hub
from correlator.tasks import set_by_signals, until_next

log = logging.getLogger(__name__)

DRAIN_WITHIN = 10.0
"""Seconds that the sinks have to close their connections after a stop."""

EVERY = 1.0
"""Seconds between two checks, if the watchdog does not require shorter ones."""

STOPPED_FOR = 10.0
"""Seconds by which a check is late from which on the process was stopped, and missing heartbeats prove nothing."""

LONGEST = 500
"""Characters of a status line: the service manager accepts 4,096 bytes, and a database error may be longer."""


# Seconds. Without it, a full socket would block the event loop for as long as the service manager is stuck.
_SEND_TIMEOUT = 1.0


@dataclass(slots=True)
class Process:
    """What the process was started with, and its signals. `config` has what a reload has applied since.

    `load`: reads the configuration again; called on SIGHUP. None: SIGHUP ends the process, as a closed terminal should.
    `on_ready`: called once with the base URL, when everything is loaded. `beat`: called once a second while it serves
    and every task makes progress.
    """

    config: Config
    load: Callable[[], Config] | None
    on_ready: Callable[[str], None] | None
    stop: asyncio.Event
    reload_requested: asyncio.Event
    beat: Callable[[], None] = lambda: None


@contextlib.contextmanager
def process_of(
    config: Config,
    load: Callable[[], Config] | None,
    on_ready: Callable[[str], None] | None,
    beat: Callable[[], None],
) -> Iterator[Process]:
    """Yield this process, which SIGTERM and SIGINT stop. See `Process` for the arguments."""
    reload_signals = (signal.SIGHUP,) if load is not None else ()
    with set_by_signals(signal.SIGTERM, signal.SIGINT) as stop, set_by_signals(*reload_signals) as reload_requested:
        yield Process(config, load, on_ready, stop, reload_requested, beat)


def report_build(driver: str) -> None:
    """Set the labels of the metric correlator_build_info. `driver`: the library that reads the database."""
    loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
    labels = {"version": __version__, "python": platform.python_version(), "loop": loop, "driver": driver}
    metrics.BUILD.info(labels)


class Supervisor:
    """Checks the heartbeats and notifies the service manager. `served`: set once the listener listens, at `url`."""

    def __init__(self, hub: Hub, environ: Mapping[str, str] = os.environ) -> None:
        self._hub = hub
        self._environ = environ
        self._every = min(EVERY, watchdog_interval(environ) or EVERY)
        self._stuck: dict[str, float] = {}
        self._sent_status = ""
        self.served = asyncio.Event()
        self.url = ""

    async def run(self, beat: Callable[[], None]) -> None:
        """Check once a second, until cancelled. For `beat` see `Process`."""
        while True:
            now = time.monotonic()
            pause = until_next(self._every, now)
            await asyncio.sleep(pause)
            late = max(0.0, time.monotonic() - now - pause)
            metrics.LOOP_LAG.observe(late)
            if self.check(late) and self.served.is_set():
                beat()

    def check(self, late: float = 0.0) -> bool:
        """Check every heartbeat and notify the service manager. Returns True if every task makes progress.

        `late`: seconds by which this check is late.
        """
        if late > STOPPED_FOR:
            log.warning(
                "nothing ran for %.0f s: the process or its machine was stopped, or the event loop was blocked", late
            )
            self._hub.live.excuse(late)
        stuck = self._hub.live.stuck()
        for name in stuck.keys() - self._stuck.keys():
            log.critical("%s has made no progress for %.0f s: watchdog ping withheld", name, stuck[name])
        for name in self._stuck.keys() - stuck.keys():
            log.warning("%s makes progress again", name)
        self._stuck = stuck
        lines = []
        if stuck:
            metrics.WATCHDOG_WITHHELD.inc()
        else:
            lines.append("WATCHDOG=1")
        if (status := self.status()) != self._sent_status:
            self._sent_status = status
            lines.append(f"STATUS={status}")
        if lines:
            notify("\n".join(lines), self._environ)
        return not stuck

    def serves(self, url: str) -> None:
        """Notify the service manager that the listener accepts connections, which ends the start of the unit.

        Readiness and the status line say what is still loaded: a database that is away must not keep the unit, and the
        shell that started it, waiting.
        """
        self.url = url
        self.served.set()
        self._sent_status = self.status()
        notify(f"READY=1\nSTATUS={self._sent_status}", self._environ)

    def stops(self) -> None:
        """Notify the service manager that the daemon stops."""
        self._sent_status = "stopping"
        notify("STOPPING=1\nSTATUS=stopping", self._environ)

    def reloads(self) -> Callable[[], None]:
        """Notify the service manager that a reload begins. Call the returned function when it has ended, or failed."""
        if not self.served.is_set():
            return lambda: None  # READY=1 would report the start as complete
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        notify(f"RELOADING=1\nMONOTONIC_USEC={now}", self._environ)

        def ended() -> None:
            notify("READY=1", self._environ)

        return ended

    def status(self) -> str:
        """Return the line for `systemctl status`: problems first, then the number of jobs and connections."""
        hub, parts = self._hub, {name: describe() for name, describe in self._hub.readiness.items()}
        texts = [f"{name} is stuck" for name in self._stuck]
        if parts.get("cluster", {}).get("role") == "standby":
            return _line([*texts, str(parts["cluster"]["error"])])
        if hub.status.loading:
            if hub.status.error:
                texts.append(hub.status.problem)
            elif hub.status.reading is not None:
                done, total = hub.status.reading
                texts.append(f"reading the log: {100 * done // max(1, total)} %")
            else:
                texts.append("reading the tables")
            return _line(texts)
        if hub.status.database != "live" and hub.status.error != parts.get("tables", {}).get("error"):
            texts.append(hub.status.problem)
        texts += [
            f"{name}: {part['error']}"
            for name, part in parts.items()
            if name != "database" and not part.get("ok", True) and part.get("error")
        ]
        texts.append(f"{_count(hub.running, 'job')} running of {len(hub.published)}, {_count(hub.clients, 'client')}")
        return _line(texts)


async def announce(process: Process, supervisor: Supervisor, loaded: asyncio.Event) -> None:
    """Call `on_ready` once everything is loaded and the listener listens."""
    await loaded.wait()
    event_loop.spare_loaded()
    await supervisor.served.wait()
    if process.on_ready is not None:
        process.on_ready(supervisor.url)


def _line(texts: list[str]) -> str:
    return "; ".join(texts).replace("\n", " ")[:LONGEST]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


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


# -- reload


T = TypeVar("T", bound=Section)

LIVE = frozenset(dotted for dotted, key in (*repeated_tables(), *leaves()) if key.live)
"""The keys and repeated tables that a reload applies. A new password is used from the next connection on."""

RENEWED = frozenset({"http.tls_cert", "http.tls_key", "otlp.url"})
"""The keys of `LIVE` that a reload only replaces: it cannot switch a listener between http and https, nor traces on."""

Prepare = Callable[[Config], Callable[[], None]]
"""Prepares a configuration and returns what applies it, which must not fail. Raises `CorrelatorError` on a problem."""


async def reload_on_request(process: Process, supervisor: Supervisor, parts: Sequence[Prepare]) -> None:
    """Reload the configuration each time that is requested, until cancelled."""
    if process.load is None:
        return
    started = process.config
    while True:
        await process.reload_requested.wait()
        process.reload_requested.clear()
        ended = supervisor.reloads()
        try:
            new = await reload(started, process.load, parts)
        except asyncio.CancelledError:
            process.reload_requested.set()  # The standby has become active: its next task of this kind reloads.
            raise
        if new is not None:
            process.config = reloaded(process.config, new)  # What is built later has the new values too.
        ended()


async def reload(started: Config, load: Callable[[], Config], parts: Sequence[Prepare]) -> Config | None:
    """Read the configuration again, and have `parts` apply it. Returns it.

    A problem is logged, sets the metric to 0, and changes nothing: then None is returned. `started`: the configuration
    at the start. `load` raises `ConfigError`.
    """
    try:
        config = await asyncio.to_thread(load)
        prepared = [prepare(config) for prepare in parts]
    except CorrelatorError as error:
        for line in str(error).splitlines():
            log.error("%s", line)  # noqa: TRY400 - a problem that an operator can fix needs no traceback
        log.error("the configuration was not changed")  # noqa: TRY400
        metrics.RELOADED.set(0)
        return None
    except Exception:
        log.exception("the configuration was not changed")
        metrics.RELOADED.set(0)
        return None
    for apply in prepared:
        apply()
    metrics.RELOADED.set(1)
    metrics.RELOADED_AT.set_to_current_time()
    log.info("the configuration was reloaded")
    if waiting := needs_restart(started, config):
        log.warning("changed, but applied only by a restart: %s", ", ".join(waiting))
    return config


def needs_restart(started: Config, new: Config) -> list[str]:
    """Return the keys that differ and that a reload cannot apply."""
    return [
        dotted
        for dotted, _ in (*repeated_tables(), *leaves())
        if (value := value_of(new, dotted)) != (old := value_of(started, dotted))
        and (dotted not in LIVE or (dotted in RENEWED and None in (value, old)))
    ]


def reloaded(started: Config, new: Config) -> Config:
    """Return `started` with those values of `new` that a reload applies, for parts that are built after it."""
    effective = started
    for dotted in sorted(LIVE):
        if dotted not in RENEWED or None not in (value_of(started, dotted), value_of(new, dotted)):
            effective = _with(effective, new, dotted.split("."))
    return effective


def _with(section: T, new: T, names: Sequence[str]) -> T:
    """Return `section` with the key of `new` that `names` lead to; a table that one of them lacks is replaced."""
    name, *rest = names
    mine, theirs = getattr(section, name), getattr(new, name)
    if rest and mine is not None and theirs is not None:
        theirs = _with(mine, theirs, rest)
    return replace(section, **{name: theirs})
