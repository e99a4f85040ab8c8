"""What several unit tests can ask for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from correlator.config.loading import load
from correlator.config.schema import Config
from correlator.errors import ConfigError


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
    """Write a configuration that is wrong; the problems."""

    def problems(toml: str, environ: dict[str, str] | None = None) -> tuple[str, ...]:
        with pytest.raises(ConfigError) as caught:
            write(toml, environ)
        return caught.value.problems

    return problems
