"""The messages of a snapshot. Pages that open at once share them: each is built once for all that are at its place.

Problem: a hundred pages that reconnect after a restart get 20,000 jobs each. Their documents are encoded once
(`jobs/encoded.py`), but to join them into messages for each page again took more CPU time than to write them.

Invariant: a kept part is what would be built now. Nothing but a change of a job makes another part of the same place,
and each change takes the next `seq`, which discards all kept parts.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import NamedTuple

from correlator.jobs import job_document
from correlator.jobs.model.views import PublishedJob
from correlator.pipeline.hub import Hub
from correlator.sinks.streaming.groups import Group, Sub
from correlator.sinks.streaming.limits import Limits
from correlator.sinks.streaming.messages import Framing, Message
from correlator.sinks.streaming.snapshots import Order


class Part(NamedTuple):
    """One message of a snapshot, framed. `jobs`: their number; `end`: the place after it; `more`: others follow."""

    frame: bytes
    jobs: int
    end: int
    more: bool


class _Key(NamedTuple):
    order: Order
    place: int
    group: Group
    sub: int
    framing: Framing


class Parts:
    """The parts that were built last, up to `Limits.kept_parts` bytes. Call it from the event loop's thread only."""

    def __init__(self, hub: Hub, limits: Limits) -> None:
        self._hub = hub
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
        place = sub.todo.place if sub.group.filter.jobs is None else None
        if place is None or late:
            return self._build(sub, framing, late)
        key = _Key(*place, sub.group, sub.id, framing)
        part = self._kept.get(key)
        if part is not None:
            sub.todo.skip_to(part.end)
            return part
        part = self._kept[key] = self._build(sub, framing, late)
        self.size += len(part.frame)
        while self.size > self._limits.kept_parts:
            self.size -= len(self._kept.popitem(last=False)[1].frame)
        return part

    def clear(self) -> None:
        self._kept.clear()
        self.size, self._seq = 0, self._hub.seq

    def _build(self, sub: Sub, framing: Framing, late: deque[PublishedJob]) -> Part:
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
        return Part(framing([Message(body)]), len(jobs), todo.at, more)
