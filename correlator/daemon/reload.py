"""Reload of the configuration in two phases: either every reloadable key is applied, or none.

First each part prepares its new settings, which may fail; then each part applies them, which must not fail. Keys that
need a restart keep their values and are named in the log. Token and certificate files are read again even if no key
has changed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from correlator.config.schema import Config, leaves, value_of
from correlator.config.values import Section
from correlator.errors import CorrelatorError
from correlator.ops import metrics

log = logging.getLogger(__name__)

T = TypeVar("T", bound=Section)

LIVE = frozenset({"webhooks", *(dotted for dotted, key in leaves() if key.live)})
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

    async def run(self) -> Config | None:
        """Read and apply the configuration. Returns it.

        A problem is logged, sets the metric to 0, and changes nothing: then None is returned.
        """
        try:
            config = await asyncio.to_thread(self._load)
            prepared = [prepare(config) for prepare in self._parts]
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
        if waiting := needs_restart(self._started, config):
            log.warning("changed, but applied only by a restart: %s", ", ".join(waiting))
        return config


def needs_restart(started: Config, new: Config) -> list[str]:
    """Return the keys that differ and that a reload cannot apply."""
    return [
        dotted
        for dotted, _ in leaves()
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
