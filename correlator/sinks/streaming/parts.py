"""The messages of a snapshot, or of what a client missed. Clients at one place share them: each is built only once.

Problem: a hundred pages that reconnect after a restart get 20,000 jobs each. Their documents are encoded once
(`jobs/encoded.py`), but to join them into messages for each page again took more CPU time than to write them. The same
holds for a thousand pages that were cut at the same position and resume.

Invariant: a kept part is what would be built now. Nothing but a change of a job makes another part of the same place,
and each change takes the next `seq`, which discards all kept parts.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import NamedTuple

from correlator.jobs import job_document
from correlator.jobs.model.views import PublishedJob
from correlator.pipeline.hub import Hub
from correlator.sinks.streaming.groups import Group, Groups, Sub
from correlator.sinks.streaming.limits import Limits
from correlator.sinks.streaming.messages import Framing, Message
from correlator.sinks.streaming.snapshots import Place

PART = 500
"""Approximate bytes of a kept part besides its frame."""


class Part(NamedTuple):
    """One message of a snapshot, or several of what was missed, framed.

    `frame`: empty if no job concerns the client. `jobs`: their number. `end`: the place after it. `more`: more follow.
    """

    frame: bytes
    jobs: int
    end: Place
    more: bool


class _Key(NamedTuple):
    place: Place
    after: int | None
    group: Group
    sub: int
    framing: Framing


class Parts:
    """The parts that were built last, up to `Limits.kept_parts` bytes. Call it from the event loop's thread only."""

    def __init__(self, hub: Hub, groups: Groups, limits: Limits) -> None:
        self._hub = hub
        self._groups = groups
        self._limits = limits
        self._kept: OrderedDict[_Key, Part] = OrderedDict()
        self._seq = 0
        """The position at which the kept parts were built."""
        self.size = 0
        """Bytes of the kept parts."""

    def pop_next(self, sub: Sub, framing: Framing, late: deque[PublishedJob]) -> Part:
        """Remove the next jobs from the subscription's `todo`, then from `late`, and return their message."""
        if self._seq != self._hub.seq:
            self.clear()
        # A filter that names IDs has an order of its own, which no other page follows.
        if late or sub.group.filter.jobs is not None:
            return self._build(sub, framing, late)
        key = _Key(sub.todo.place, sub.after, sub.group, sub.id, framing)
        part = self._kept.get(key)
        if part is not None:
            sub.todo.skip_to(part.end)
            return part
        part = self._kept[key] = self._build(sub, framing, late)
        self.size += len(part.frame) + PART
        while self.size > self._limits.kept_parts:
            self.size -= len(self._kept.popitem(last=False)[1].frame) + PART
        return part

    def clear(self) -> None:
        self._kept.clear()
        self.size, self._seq = 0, self._hub.seq

    def _build(self, sub: Sub, framing: Framing, late: deque[PublishedJob]) -> Part:
        return self._snapshot(sub, framing, late) if sub.after is None else self._missed(sub, framing, sub.after)

    def _snapshot(self, sub: Sub, framing: Framing, late: deque[PublishedJob]) -> Part:
        get, has, encoded = self._hub.published.get, sub.group.has, self._hub.documents.encoded
        limits, todo, full = self._limits, sub.todo, self._limits.snapshot_part
        jobs: list[bytes] = []
        size = visited = 0
        while size < full and len(jobs) < limits.max_snapshot_part and visited < limits.max_visited:
            job_id = todo.pop_next()
            if job_id is None:
                break
            visited += 1
            # The state now: changes of a job that is still in `todo` were not sent.
            shown = get(job_id)
            if shown is not None and has(job_id, shown):
                jobs.append(encoded(shown, all_jobs=True))
                size += len(jobs[-1])
        while late and not todo and size < full:
            jobs.append(encoded(late.popleft(), all_jobs=True))
            size += len(jobs[-1])
        more = bool(todo) or bool(late)
        body = job_document.snapshot(sub.id, self._hub.seq, jobs, more=more)
        return Part(framing([Message(body)]), len(jobs), todo.place, more)

    def _missed(self, sub: Sub, framing: Framing, after: int) -> Part:
        """The newest state of jobs that changed, and a `delete` of each that left the filter."""
        get, group, seq = self._hub.published.get, sub.group, self._hub.seq
        limits, todo, full = self._limits, sub.todo, self._limits.snapshot_part
        messages: list[Message] = []
        jobs = size = visited = 0
        while size < full and jobs < limits.max_snapshot_part and visited < limits.max_visited:
            job_id = todo.pop_next()
            if job_id is None:
                break
            visited += 1
            shown = get(job_id)
            matches = shown is not None and group.has(job_id, shown)
            left = None if matches else self._groups.left(group, job_id, after)
            found: list[bytes] = []
            if shown is not None and (matches or left == "filter"):
                found.append(job_document.put([sub.id], seq, shown, self._hub.documents.encoded(shown)))
            if left is not None:
                reason = "filter" if left == "maybe" else left
                found.append(job_document.delete([sub.id], seq, job_id, reason))
            messages += map(Message, found)
            size += sum(map(len, found))
            jobs += bool(found)
        return Part(framing(messages) if messages else b"", jobs, todo.place, bool(todo))
