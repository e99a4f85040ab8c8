"""What the alive key says of the collector of an instance, for gateways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from correlator import __version__
from correlator.jobs import job_document
from correlator.jobs.model.rows import Micros
from correlator.pipeline.hub import Hub


def report(hub: Hub, started_at: Micros, id_keys: Sequence[str], settings: Mapping[str, str]) -> dict[str, Any]:
    """Return the members of the alive key's value besides those of the lease.

    `id_keys`: the members of metadata that hold external IDs; `settings`: those that a standby has to have too.
    """
    database = hub.status.describe_database()
    return {
        "version": __version__,
        "database": database["state"],
        "error": database["error"],
        "lag_seconds": database["lag_seconds"],
        "jobs": len(hub.published),
        "complete_since": job_document.rfc3339(hub.published.complete_since(hub.clock())),
        "started_at": job_document.rfc3339(started_at),
        "id_keys": list(id_keys),
        "settings": settings,
    }
