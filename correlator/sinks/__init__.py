"""Sinks publish what the hub announces. A sink runs at its own pace and never delays the pipeline."""

from __future__ import annotations

from typing import Protocol

from correlator.pipeline.hub import Hub


class Sink(Protocol):
    """A consumer of the hub. `run` ends when it is cancelled; an unreachable peer is a state and not an error."""

    async def run(self, hub: Hub) -> None: ...
