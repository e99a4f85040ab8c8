"""Where changes go. A sink follows the hub at its own pace, and nothing it meets ever slows the pipeline down."""

from __future__ import annotations

from typing import Protocol

from correlator.hub import Hub


class Sink(Protocol):
    """Runs until cancelled, then has a moment to say goodbye. A peer that is away is a state, not an error."""

    async def run(self, hub: Hub) -> None: ...
