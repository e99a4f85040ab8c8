"""A new configuration under a running daemon: all that can be changed is, or nothing if anything is wrong with it.

Each part first prepares what it will take over, which may fail, and then takes it, which may not. Keys that need a
restart are named, and keep their values. Tokens and certificates are read again although no key has changed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from correlator import metrics
from correlator.errors import CorrelatorError
from correlator.settings import Config, leaves, value_of

log = logging.getLogger(__name__)

LIVE = frozenset(
    {
        "database.password",
        "database.password_file",
        "http.allowed_hosts",
        "http.allowed_origins",
        "http.max_readers",
        "http.max_readers_per_address",
        "http.tls_cert",
        "http.tls_key",
        "http.tokens_file",
        "jobs.stalled_after",
        "log.format",
        "log.level",
        "mqtt.password",
        "mqtt.password_file",
        "mqtt.username",
    }
)
"""The keys that a running daemon takes over. Passwords hold from the next connection on."""

RENEWED = frozenset({"http.tls_cert", "http.tls_key"})
"""Of these, those that are taken over only in place of another: http does not become https, nor the other way."""

Prepare = Callable[[Config], Callable[[], None]]
"""Raises `CorrelatorError` where a part cannot take the configuration; what is returned takes it, and never fails."""


class Reload:
    """`load` reads the configuration, and raises `ConfigError`; `parts` are who takes it over."""

    def __init__(self, started: Config, load: Callable[[], Config], parts: Sequence[Prepare]) -> None:
        self._started = started
        self._load = load
        self._parts = parts

    async def run(self) -> None:
        """Read and take over; what is wrong is told in log and metric, and changes nothing."""
        try:
            config = await asyncio.to_thread(self._load)
            taken = [prepare(config) for prepare in self._parts]
        except CorrelatorError as error:
            for line in str(error).splitlines():
                log.error("%s", line)  # noqa: TRY400 - what an operator can mend needs no traceback
            log.error("the configuration stays as it was")  # noqa: TRY400
            metrics.RELOADED.set(0)
            return
        except Exception:
            log.exception("the configuration stays as it was")
            metrics.RELOADED.set(0)
            return
        for take in taken:
            take()
        metrics.RELOADED.set(1)
        metrics.RELOADED_AT.set_to_current_time()
        log.info("the configuration has been read again")
        if waiting := self.needs_restart(config):
            log.warning("changed, but only a restart makes it so: %s", ", ".join(waiting))

    def needs_restart(self, config: Config) -> list[str]:
        """The keys that differ from those that the daemon was started with, and that it cannot take over."""
        return [
            dotted
            for dotted, _ in leaves()
            if (new := value_of(config, dotted)) != (old := value_of(self._started, dotted))
            and (dotted not in LIVE or (dotted in RENEWED and None in (new, old)))
        ]
