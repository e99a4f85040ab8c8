"""The grants of tokens, without a configuration."""

from __future__ import annotations

from correlator.sinks.http.grants import Grant


def granted(*tokens: str) -> tuple[Grant, ...]:
    """Tokens without a name, each with all rights."""
    return tuple(Grant(secret=token.encode()) for token in tokens)
