"""The comparison of memory with the stream: which keys of the stream must be written again or removed.

Memory follows the database, so it is right where the two differ. The stream is read in slices while both sides change:
a job that is marked while the comparison runs is written anyway, and is not compared (`DirtyKeys.begin_comparison`).
The class does no I/O; `correlator.sinks.cluster.repair` reads the stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from correlator.jobs.directory import JobDirectory, place_of
from correlator.sinks.cluster import values

AT_ONCE = 100
"""Documents that are made and compared in one step: a few milliseconds."""


class Stored(NamedTuple):
    """The newest message of a key. `value` None: a marker of a removed job."""

    job_id: str
    value: bytes | None


class Comparison:
    """One comparison, without the jobs in `touched`, which grows while it runs. `limit`: bytes of a document."""

    def __init__(self, published: JobDirectory, touched: set[str], limit: int = values.MAX_VALUE) -> None:
        self._published = published
        self._touched = touched
        self._limit = limit
        self._seen: set[str] = set()
        self.compared = 0
        """The number of jobs that were compared."""

    def differing(self, stored: Sequence[Stored]) -> list[str]:
        """Return those keys of a slice of the stream that differ from memory. At most `AT_ONCE` per call."""
        found = []
        for job_id, value in stored:
            if job_id in self._touched:
                continue
            shown = self._published.get(job_id)
            if shown is None:
                if value is not None:
                    found.append(job_id)
                continue
            self._seen.add(job_id)
            self.compared += 1
            if value is None or value != values.encode(shown, self._limit):
                found.append(job_id)
        return found

    def to_write(self, differing: Iterable[str]) -> Iterator[list[str]]:
        """Yield, in steps, these keys and those of which the stream has nothing, in the order to write them.

        Jobs that have not ended come first, then the others, each the newest first. Call it after the last slice.
        """
        rest, ended = dict.fromkeys(differing), list[str]()
        page = self._published.newest(None, 5 * AT_ONCE)
        while page:
            found: list[str] = []
            for shown in page:
                job_id = shown.job_id
                if job_id in rest or (job_id not in self._seen and job_id not in self._touched):
                    rest.pop(job_id, None)
                    (ended if shown.view.terminal else found).append(job_id)
            before = place_of(page[-1])
            yield found
            page = self._published.newest(before, 5 * AT_ONCE)
        yield [*ended, *rest]  # The rest has left memory.
