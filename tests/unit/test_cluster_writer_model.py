"""The writer of a collector against a model of the stream, over all interleavings of a small world.

The world: two jobs, each of which may change or leave; a stream that stores batches, and an owner key. A batch may be
stored and acknowledged, stored while its acknowledgement is lost, lost, or delayed and stored later, after batches that
were sent after it. The rules of `DirtyKeys` and `OwnedStream` decide what is written. From every state that can be
reached the writer ends with a stream that equals the jobs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from correlator.sinks.cluster.documents import DirtyKeys

JOBS = ("a", "b")
CHANGES = 2
FAULTS = 2


@dataclass
class World:
    """`jobs`: versions in memory, None: left. `fence`: what the writer asserts; `owner`: what the stream has."""

    jobs: dict[str, int | None] = field(default_factory=lambda: {"a": 1, "b": 1})
    stream: dict[str, int | None] = field(default_factory=dict)
    dirty: DirtyKeys = field(default_factory=lambda: DirtyKeys(lambda: 0.0, max_removed=1))
    owner: int = 1
    fence: int = 1
    lost_batch: bool = False
    rewrites: bool = True
    """False: a writer that does not write the owner key again, to show that the model finds what it is for."""
    late: list[tuple[int, dict[str, int | None]]] = field(default_factory=list)
    """Batches that were sent and may be stored later, with the fence that they assert."""
    changes: int = CHANGES
    faults: int = FAULTS
    version: int = 1

    # -- what may happen

    def events(self) -> list[tuple[str, Any]]:
        found: list[tuple[str, Any]] = []
        if self.changes:
            found += [("change", job_id) for job_id in JOBS]
            found += [("leave", job_id) for job_id in JOBS if self.jobs[job_id] is not None]
        if len(self.dirty):
            found.append(("write", "acknowledged"))
            if self.faults:
                found += [("write", "stored without an answer"), ("write", "lost"), ("write", "late")]
        found += [("arrives", n) for n in range(len(self.late))]
        return found

    def apply(self, event: tuple[str, Any]) -> None:
        match event:
            case "change", job_id:
                self.changes -= 1
                self.version += 1
                self.jobs[job_id] = self.version
                self.dirty.mark(job_id)
            case "leave", job_id:
                self.changes -= 1
                self.jobs[job_id] = None
                self.dirty.mark_removed(job_id, "gone")
            case "write", outcome:
                self.write(outcome)
            case "arrives", n:
                self.store(*self.late.pop(n))

    def write(self, outcome: str) -> None:
        """One batch of all that is dirty, as `OwnedStream.write` and `ClusterSink` do it."""
        if self.lost_batch and self.rewrites:
            self.owner += 1
            self.fence = self.owner
        self.lost_batch = False
        batch: dict[str, int | None] = {}
        while (job_id := self.dirty.pop_next()) is not None:
            batch[job_id] = self.jobs[job_id]
        if outcome == "acknowledged":
            self.store(self.fence, batch)
            self.dirty.acknowledged()
            return
        self.faults -= 1
        self.lost_batch = True
        if outcome == "stored without an answer":
            self.store(self.fence, batch)
        elif outcome == "late":
            self.late.append((self.fence, batch))
        self.dirty.unacknowledged()

    def store(self, fence: int, batch: dict[str, int | None]) -> None:
        if fence == self.owner:
            self.stream |= batch

    # -- what is to hold

    def key(self) -> tuple[Any, ...]:
        dirty = (tuple(self.dirty._changed), tuple(self.dirty._differing), tuple(self.dirty._removed))
        late = tuple((fence, tuple(sorted(batch.items()))) for fence, batch in self.late)
        order = (self.dirty._serve_changed, self.dirty.incomplete, self.owner, self.fence, self.lost_batch)
        return (*self.jobs.items(), *sorted(self.stream.items()), dirty, late, order, self.changes, self.faults)

    def settle(self) -> None:
        """Everything goes well from here: write all, then let every late batch arrive, and compare if it is due."""
        while len(self.dirty):
            self.write("acknowledged")
        while self.late:
            self.store(*self.late.pop())
        if self.dirty.incomplete:
            self.dirty.incomplete = False
            self.dirty.add(i for i in {*self.jobs, *self.stream} if self.jobs[i] != self.stream.get(i))
            while len(self.dirty):
                self.write("acknowledged")

    def equal(self) -> bool:
        return all(self.stream.get(job_id) == version for job_id, version in self.jobs.items())


def reached(rewrites: bool = True) -> list[World]:
    """All states that can be reached, each once. A state is made again from the events that lead to it."""
    seen, found = set(), list[World]()
    waiting: list[tuple[tuple[str, Any], ...]] = [()]
    while waiting:
        path = waiting.pop()
        world = started(rewrites)
        for event in path:
            world.apply(event)
        if world.key() not in seen:
            seen.add(world.key())
            waiting += [(*path, event) for event in world.events()]
            found.append(world)
    return found


def started(rewrites: bool) -> World:
    world = World(rewrites=rewrites)
    world.dirty.add(JOBS)  # The first comparison with an empty stream.
    return world


def test_from_every_state_the_writer_ends_with_a_stream_that_equals_memory():
    worlds = reached()
    assert len(worlds) > 1_000
    for world in worlds:
        world.settle()
        assert world.equal(), world


def test_a_clean_key_is_equal_in_the_stream_unless_a_removed_job_was_dropped():
    for world in reached():
        dirty = {*world.dirty._changed, *world.dirty._differing}
        if not world.dirty.incomplete:
            assert all(world.stream.get(i) == world.jobs[i] for i in JOBS if i not in dirty), world


def test_without_a_new_fence_a_late_batch_brings_back_an_old_document():
    def ends_wrong(world: World) -> bool:
        world.settle()
        return not world.equal()

    assert any(ends_wrong(world) for world in reached(rewrites=False))
