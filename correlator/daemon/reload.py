"""Reload of the configuration in two phases: either every reloadable key is applied, or none.

First each part prepares its new settings, which may fail; then each part applies them, which must not fail. Keys that
need a restart keep their values and are named in the log. Token and certificate files are read again even if no key
has changed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from correlator.config.schema import Config, leaves, value_of
from correlator.errors import CorrelatorError
from correlator.ops import metrics

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
        "otlp.delay",
        "otlp.headers",
        "otlp.headers_file",
        "otlp.timeout",
        "otlp.tls.ca",
        "otlp.tls.cert",
        "otlp.tls.key",
        "otlp.tls.verify",
        "otlp.url",
        "webhooks",
    }
)
"""The keys that a reload applies, and the repeated tables. A new password is used from the next connection on."""

RENEWED = frozenset({"http.tls_cert", "http.tls_key", "otlp.url"})
"""The keys of `LIVE` that a reload only replaces: it cannot switch a listener between http and https, nor traces on."""

Prepare = Callable[[Config], Callable[[], None]]
"""Prepares a configuration and returns what applies it, which must not fail. Raises `CorrelatorError` on a problem."""


class Reload:
    """`started`: the configuration at the start. `load` reads it again, and raises `ConfigError`. `parts` apply it."""

    def __init__(self, started: Config, load: Callable[[], Config], parts: Sequence[Prepare]) -> None:
        self._started = started
        self._load = load
        self._parts = parts

    async def run(self) -> None:
        """Read and apply the configuration. A problem is logged, sets the metric to 0, and changes nothing."""
        try:
            config = await asyncio.to_thread(self._load)
            prepared = [prepare(config) for prepare in self._parts]
        except CorrelatorError as error:
            for line in str(error).splitlines():
                log.error("%s", line)  # noqa: TRY400 - a problem that an operator can fix needs no traceback
            log.error("the configuration was not changed")  # noqa: TRY400
            metrics.RELOADED.set(0)
            return
        except Exception:
            log.exception("the configuration was not changed")
            metrics.RELOADED.set(0)
            return
        for apply in prepared:
            apply()
        metrics.RELOADED.set(1)
        metrics.RELOADED_AT.set_to_current_time()
        log.info("the configuration was reloaded")
        if waiting := self.needs_restart(config):
            log.warning("changed, but applied only by a restart: %s", ", ".join(waiting))

    def needs_restart(self, config: Config) -> list[str]:
        """Return the keys that differ from the configuration at the start and that a reload cannot apply."""
        return [
            dotted
            for dotted, _ in leaves()
            if (new := value_of(config, dotted)) != (old := value_of(self._started, dotted))
            and (dotted not in LIVE or (dotted in RENEWED and None in (new, old)))
        ]
