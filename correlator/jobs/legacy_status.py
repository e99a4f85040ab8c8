"""The statuses of `failover_jobs`: what each means for a job, and the percentage that the appliance reports for it."""

from __future__ import annotations

from correlator.model.facts import Status

_MEANINGS = {
    "pending": (Status.PENDING, 0.0),
    "validating": (Status.RUNNING, 10.0),
    "snapshotting": (Status.RUNNING, 25.0),
    "creating_vm": (Status.RUNNING, 50.0),
    "switching_volume": (Status.RUNNING, 75.0),
    "powering_on": (Status.RUNNING, 90.0),
    "reverting": (Status.RUNNING, 50.0),
    "completed": (Status.COMPLETED, 100.0),
    "cleanup": (Status.COMPLETED, 100.0),
    "failed": (Status.FAILED, 0.0),
}

ACTIVE = tuple(text for text, (status, _) in _MEANINGS.items() if not status.ended)
ENDED = tuple(text for text, (status, _) in _MEANINGS.items() if status.ended)


def meaning(text: str) -> tuple[Status, float]:
    """The job's status and its percentage. Unknown statuses are running, at 50 percent, as in the appliance's API."""
    return _MEANINGS.get(text, (Status.RUNNING, 50.0))
