"""The value of the alive key: how the collector of an instance is, for gateways."""

from __future__ import annotations

from correlator import __version__
from correlator.jobs import job_document
from correlator.pipeline.hub import Hub


def value(hub: Hub, holder: str, started_at: int, id_keys: tuple[str, ...]) -> bytes:
    """Return the value. `holder`: the name of this process; `started_at`: microseconds since the epoch.

    `id_keys`: the members of metadata that hold external IDs.
    """
    database = hub.status.describe_database()
    return job_document.encode(
        {
            "holder": holder,
            "version": __version__,
            "database": database["state"],
            "error": database["error"],
            "lag_seconds": database["lag_seconds"],
            "jobs": len(hub.published),
            "started_at": job_document.rfc3339(started_at),
            "id_keys": list(id_keys),
        }
    )
