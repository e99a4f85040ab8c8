"""The documents that a replica requests, because a delta does not apply to the revision that it has. No I/O."""

from __future__ import annotations

MAX_TRIES = 5
"""Requests for one document before the replica gives up resuming."""

REQUESTS_AT_ONCE = 50


class DocumentRequests:
    """Job IDs whose document is missing, in the order of the requests. False while there are none."""

    def __init__(self) -> None:
        self._pending: dict[str, None] = {}
        self._retry_later: dict[str, None] = {}
        """Job IDs to request again with the next bookmark, because the daemon could not answer."""
        self._tries: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._pending or self._retry_later)

    def add(self, job_id: str) -> bool:
        """False if the document is requested already."""
        if job_id in self._pending or job_id in self._retry_later:
            return False
        self._pending[job_id] = None
        return True

    def failed(self, code: str, job_id: str | None) -> bool:
        """Note that a request failed; True if it was the last of `MAX_TRIES`, so that the document stays missing.

        A daemon that omits the job's ID answers in the order of the requests.
        """
        if job_id is None:
            job_id = next(iter(self._pending), None)
        if job_id is None or job_id not in self._pending:
            return False
        tries = self._tries.get(job_id, 0) + 1
        self.discard(job_id)
        if code == "not_found":
            return False
        if tries == MAX_TRIES:
            return True
        self._tries[job_id] = tries
        self._retry_later[job_id] = None
        return False

    def retry(self) -> list[str]:
        """Return the job IDs to request again now, at most `REQUESTS_AT_ONCE`."""
        job_ids = list(self._retry_later)[:REQUESTS_AT_ONCE]
        for job_id in job_ids:
            del self._retry_later[job_id]
            self._pending[job_id] = None
        return job_ids

    def discard(self, job_id: str) -> None:
        self._pending.pop(job_id, None)
        self._retry_later.pop(job_id, None)
        self._tries.pop(job_id, None)

    def clear(self) -> None:
        self._pending.clear()
        self._retry_later.clear()
        self._tries.clear()
