"""The published jobs of a gateway: what a stream of documents says, and what has changed since a position in it.

A position is a sequence of the stream, and the `rev` of a job is the sequence of its last message. So the jobs, in the
order of their revisions, are the changes since any position; only removals have to be remembered. The stream forgets a
removal after some time, and a gateway that starts reads only those that it still has. To give the same answer at every
gateway, a position counts only if a message at or before it is younger than that.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from operator import itemgetter
from sys import getsizeof

from msgspec import Struct
from msgspec.structs import astuple

from correlator.jobs.directory import JobDirectory, Names, Order, OwnIds, names_differ
from correlator.model.facts import Status
from correlator.model.published import Change, PublishedJob, Reason
from correlator.model.rows import Micros

REMEMBERED: Micros = 23 * 3_600_000_000
"""Microseconds for which removals are remembered: an hour less than the stream does, as clocks differ."""

MARK_EVERY: Micros = 60_000_000
"""Microseconds between two messages whose time is remembered."""

MAX_REMOVED = 200_000
"""Most removals that are remembered. Positions before one that was forgotten get a snapshot."""


JOB, NAME = 2_000, 300
"""Bytes that a job takes in memory besides its texts, and each of its external IDs and children, as measured."""


class Removed(Struct, frozen=True, gc=False):
    """A job that left memory, and when."""

    seq: int
    reason: Reason


class Marks:
    """Positions of the stream, and when their messages were stored: `MARK_EVERY` apart, none older than `remembered`.

    All hubs of a gateway share them, as they read one stream.
    """

    def __init__(self, remembered: Micros = REMEMBERED) -> None:
        self._remembered = remembered
        self._marks: deque[tuple[int, Micros]] = deque()
        """The oldest first. Their times never decrease: marks later than a server whose clock went back are dropped."""

    def note(self, seq: int, at: Micros) -> None:
        """Note a message that has been read, and when it was stored."""
        marks = self._marks
        if marks and 0 <= at - marks[-1][1] < MARK_EVERY:
            return
        while marks and marks[-1][1] > at:
            marks.pop()
        marks.append((seq, at))

    def first(self, now: Micros) -> int | None:
        """The first position that counts; None if none does."""
        marks = self._marks
        while marks and marks[0][1] < now - self._remembered:
            marks.popleft()
        return marks[0][0] if marks else None

    def clear(self) -> None:
        """Begin again with another stream."""
        self._marks.clear()


class RemoteJobs(JobDirectory):
    """The jobs of one appliance, or of all, by the order of their revisions. Only its owner changes it.

    `marks`: those of the stream. `complete_from`: all jobs that started at or after this time are in memory, as far as
    is known. `counts`, `stalled`: the number of jobs by status, and of those that are stalled. `max_bytes`: what jobs
    may take in memory, about; beyond it, those whose documents changed longest ago are removed. None: no bound.
    """

    def __init__(self, marks: Marks, max_removed: int = MAX_REMOVED, *, max_bytes: int | None = None) -> None:
        super().__init__()
        self._max_bytes = max_bytes
        self.bytes = 0
        """What the jobs take, if that has a bound."""
        self.crowded_to: Micros | None = None
        """The newest start of a job that was removed to make room; None: none was. One in the future does not count."""
        self._marks = marks
        self.complete_from: Micros | None = None
        self.counts: dict[Status, int] = dict.fromkeys(Status, 0)
        self.stalled = 0
        self._max_removed = max_removed
        self._removed: OrderedDict[str, Removed] = OrderedDict()
        self._forgotten = 0
        """The sequence of the newest removal that was forgotten because there were too many."""

    def complete_since(self, now: Micros) -> Micros:
        return now if self.complete_from is None else self.complete_from

    # -- called by the owner, in the order of the stream

    def put(self, shown: PublishedJob) -> list[Change]:
        """Set a job to a newer revision. Returns the changes; none if it is not newer."""
        job_id = shown.view.job_id
        old, removed = self._jobs.get(job_id), self._removed.get(job_id)
        if (old is not None and old.rev >= shown.rev) or (removed is not None and removed.seq >= shown.rev):
            return []
        if removed is not None:
            del self._removed[job_id]
        if old is not None:
            del self._jobs[job_id]  # It comes to the end: the order is that of the revisions.
        self._count(old, shown)
        self.set_job(shown, old)
        self.seq = max(self.seq, shown.rev)
        changes = [Change(job_id, shown.rev, old, shown, goes_on=old is not None and old.body == shown.body)]
        if old is None or names_differ(old.view, shown.view):
            _, owners = self.move_names(job_id, old.view if old is not None else None, shown.view)
            if owners:
                changes += self._moved(owners - {job_id}, shown.rev)
        return changes + self._make_room(shown.rev)

    def remove(self, job_id: str, seq: int, reason: Reason) -> list[Change]:
        """Remove a job. Returns the changes; none if the job was not there, or is newer."""
        old = self._jobs.get(job_id)
        if old is not None and old.rev >= seq:
            return []
        self.seq = max(self.seq, seq)
        self._removed.pop(job_id, None)
        self._removed[job_id] = Removed(seq, reason)
        while len(self._removed) > self._max_removed:
            self._forgotten = self._removed.popitem(last=False)[1].seq
        if old is None:
            return []
        self.drop_job(job_id)
        self._count(old, None)
        _, owners = self.move_names(job_id, old.view, None)
        return [Change(job_id, seq, old, None, reason), *self._moved(owners - {job_id}, seq)]

    def advance(self, seq: int, at: Micros) -> None:
        """Note that the stream, and its marks, have been read to `seq`, a message that was stored at `at`."""
        self.seq = max(self.seq, seq)
        self._forget(at)

    def forget_changes(self) -> None:
        """Note that what changed up to now is not known: positions before get a snapshot."""
        self._forgotten = self.seq

    def clear(self) -> None:
        """Begin again with another stream."""
        self.seq, self._forgotten, self.complete_from = 0, 0, None
        self.bytes, self.crowded_to = 0, None
        self._jobs.clear()
        self._own_ids, self._order = OwnIds(self._jobs), Order()
        self._external, self._contexts = Names(self._age_key), Names(self._age_key)
        self.counts, self.stalled = dict.fromkeys(Status, 0), 0
        self._removed.clear()

    # -- resuming

    def reaches(self, seq: int, now: Micros) -> bool:
        """True if all changes after position `seq` are remembered. False for a position ahead of the stream."""
        if seq >= self.seq:
            return seq == self.seq
        first = self._forget(now)
        return first is not None and seq >= max(first, self._forgotten)

    def changed(self) -> Iterator[tuple[str, int]]:
        """Yield the jobs, and those whose removal is remembered, with the sequence of their last message, newest first.

        What a job was at an earlier position is not known.
        """
        removed = ((job_id, removed.seq) for job_id, removed in reversed(self._removed.items()))
        present = ((shown.job_id, shown.rev) for shown in reversed(self._jobs.values()))
        return heapq.merge(removed, present, key=itemgetter(1), reverse=True)

    def reason(self, job_id: str) -> Reason | None:
        """Return why a job left memory; None if it is there, or its removal is not remembered."""
        removed = self._removed.get(job_id)
        return removed.reason if removed is not None else None

    # -- internal

    def _make_room(self, seq: int) -> list[Change]:
        """Remove the jobs that changed longest ago, except the last one, until the others fit."""
        changes: list[Change] = []
        while self._max_bytes is not None and self.bytes > self._max_bytes and len(self._jobs) > 1:
            oldest = next(iter(self._jobs.values()))
            if (started_at := oldest.view.started_at or 0) <= next(reversed(self._jobs.values())).updated_at:
                self.crowded_to = max(self.crowded_to or 0, started_at)
            changes += self.remove(oldest.job_id, seq, "retention")
        return changes

    def _count(self, old: PublishedJob | None, new: PublishedJob | None) -> None:
        if self._max_bytes is not None:
            self.bytes += size_of(new) - size_of(old)
        if old is not None:
            self.counts[old.view.status] -= 1
            self.stalled -= old.stalled
        if new is not None:
            self.counts[new.view.status] += 1
            self.stalled += new.stalled

    def _moved(self, owners: Iterable[str], seq: int) -> list[Change]:
        """A change of each job that an ID started or stopped resolving to. Their documents stay as they are."""
        jobs = [shown for job_id in sorted(owners) if (shown := self._jobs.get(job_id)) is not None]
        return [Change(shown.job_id, seq, shown, shown, moved=True) for shown in jobs]

    def _forget(self, now: Micros) -> int | None:
        """Forget the removals before the first position that counts. Returns that position."""
        first = self._marks.first(now)
        until = first if first is not None else self.seq
        while self._removed and next(iter(self._removed.values())).seq <= until:
            self._removed.popitem(last=False)
        return first


def size_of(shown: PublishedJob | None) -> int:
    """About the bytes that a received job takes in memory. What other appliances send changes nothing."""
    if shown is None:
        return 0
    names = (*shown.view.external_ids, *shown.children)
    texts = (value for value in astuple(shown.view) if type(value) is str)
    body, last = shown.body, shown.view.last
    long = (body.text if body is not None else b"", last.text if last is not None else "")
    return JOB + NAME * len(names) + sum(map(getsizeof, (*names, *texts, *long)))
