"""The connection with which the doctor examines a cluster."""

from __future__ import annotations

from correlator.cluster.connection import Connection
from correlator.cluster.library import text_of
from correlator.config.cluster import Cluster


class Prober(Connection):
    """A connection that collects what the server refuses to it."""

    def __init__(self, settings: Cluster, role: str) -> None:
        super().__init__(settings, role)
        self.refusals: list[str] = []

    async def _on_error(self, error: Exception) -> None:
        if self.connected:
            self.refusals.append(text_of(error))
        else:
            await super()._on_error(error)
