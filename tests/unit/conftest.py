"""What several unit tests can ask for."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from correlator.config.loading import load
from correlator.config.schema import Config
from correlator.errors import ConfigError
from tests.support.virtual_time import VirtualTimeLoop


@pytest.fixture
def loop() -> Iterator[VirtualTimeLoop]:
    """A loop of virtual time, without tasks afterwards."""
    with contextlib.closing(VirtualTimeLoop()) as loop:
        yield loop
        loop.cancel_all()


@pytest.fixture
def log_as_before() -> Iterator[None]:
    """Logging is afterwards as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Config]:
    """Write a configuration file and load it."""

    def write(toml: str, environ: dict[str, str] | None = None) -> Config:
        file = tmp_path / "correlator.toml"
        file.write_text(toml, encoding="utf-8")
        return load(file, {"HOME": "/home/me", **(environ or {})})

    return write


@pytest.fixture
def problems(write: Callable[..., Config]) -> Callable[..., tuple[str, ...]]:
    """Write a configuration that is wrong; the problems, without their places."""

    def problems(toml: str, environ: dict[str, str] | None = None) -> tuple[str, ...]:
        with pytest.raises(ConfigError) as caught:
            write(toml, environ)
        return tuple(re.sub(r"^/\S+\.toml:\d+: ", "", line) for line in caught.value.problems)

    return problems


@pytest.fixture
def in_india(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Local times are of a zone that is not UTC, and half an hour beside the others."""
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()
