"""The keys that the stream may not have: when they are clean, in which order they are written, what is forgotten."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from correlator.jobs.index import Index
from correlator.sinks.cluster import documents
from correlator.sinks.cluster.documents import DirtyKeys, StoredValue, StreamComparison
from tests.support.mqtt_harness import NOW, gone, reading


def keys(clock=lambda: 0.0, **more):
    return DirtyKeys(clock, **more)


def popped(dirty, most=10):
    found: list[str] = []
    while len(found) < most and (key := dirty.pop_next()) is not None:
        found.append(key)
    return found


def test_keys_without_an_acknowledgement_are_written_first_and_keep_their_age():
    now = 0.0
    dirty = keys(lambda: now)
    dirty.mark("a")
    dirty.mark("b")
    popped(dirty)
    now = 5.0
    dirty.mark("b")
    dirty.mark("c")
    assert len(dirty) == 3
    dirty.unacknowledged()
    assert dirty.oldest() == 0.0
    assert popped(dirty) == ["a", "b", "c"]


def test_changes_and_differences_take_turns():
    dirty = keys()
    dirty.add(["old 1", "old 2", "old 3"])
    dirty.mark("new 1")
    dirty.mark("new 2")
    assert popped(dirty) == ["new 1", "old 1", "new 2", "old 2", "old 3"]


def test_a_difference_that_changes_is_written_once():
    dirty = keys()
    dirty.add(["a"])
    dirty.mark("a")
    dirty.add(["a"])
    assert popped(dirty) == ["a"]


def test_the_reason_of_a_removal_is_known_until_it_is_acknowledged():
    dirty = keys()
    dirty.mark_removed("a", "retention")
    popped(dirty)
    dirty.unacknowledged()
    popped(dirty)
    assert dirty.removal("a") == "retention"
    dirty.acknowledged()
    assert dirty.removal("a") == "gone"


def test_a_job_that_is_removed_again_in_flight_keeps_its_new_reason():
    dirty = keys()
    dirty.mark_removed("a", "retention")
    popped(dirty)
    dirty.mark_removed("a", "merged")
    dirty.acknowledged()
    assert popped(dirty) == ["a"]
    assert dirty.removal("a") == "merged"


def test_removed_jobs_are_bounded_and_a_comparison_finds_those_that_were_dropped():
    dirty = keys(max_removed=2)
    for n in range(3):
        dirty.mark_removed(str(n), "retention")
    assert dirty.incomplete
    assert popped(dirty) == ["1", "2"]


def test_a_comparison_leaves_out_what_is_dirty_in_flight_or_marked_meanwhile():
    dirty = keys()
    dirty.mark("in flight")
    dirty.pop_next()
    dirty.mark("dirty")
    dirty.add(["differing"])
    touched = dirty.begin_comparison()
    assert touched == {"in flight", "dirty", "differing"}
    dirty.mark("marked")
    dirty.mark_removed("removed", "gone")
    assert touched == {"in flight", "dirty", "differing", "marked", "removed"}
    dirty.end_comparison()
    dirty.mark("later")
    assert "later" not in touched


# -- The comparison of memory with the stream finds each difference once, and nothing that is written anyway


def index(*job_ids):
    index = Index()
    index.loading = False
    index.apply([reading(job_id) for job_id in job_ids], NOW)
    return index


def stored(index, job_id):
    return StoredValue(job_id, documents.encode(index.published.get(job_id)))


def missing(comparison):
    return [job_id for part in comparison.to_write(()) for job_id in part]


def test_equal_documents_and_markers_of_removed_jobs_are_no_difference():
    held = index("a", "b")
    comparison = StreamComparison(held.published, set())
    assert comparison.differing([stored(held, "a"), stored(held, "b"), StoredValue("removed", None)]) == []
    assert missing(comparison) == []
    assert comparison.compared == 2


def test_another_document_a_stray_one_a_marker_and_a_missing_one_are_differences():
    held = index("other", "removed", "missing")
    comparison = StreamComparison(held.published, set())
    slice_ = [StoredValue("other", b"{}"), StoredValue("stray", b"{}"), StoredValue("removed", None)]
    assert comparison.differing(slice_) == ["other", "stray", "removed"]
    assert missing(comparison) == ["missing"]


def test_jobs_that_are_touched_meanwhile_are_not_compared():
    held = index("a", "b", "c")
    touched: set[str] = set()
    comparison = StreamComparison(held.published, touched)
    touched |= {"a", "stray"}
    assert comparison.differing([StoredValue("a", b"{}"), StoredValue("stray", b"{}"), stored(held, "b")]) == []
    touched.add("c")
    assert missing(comparison) == []


def test_a_job_that_leaves_memory_before_its_turn_is_not_missing():
    held = index("a")
    comparison = StreamComparison(held.published, set())
    parts = comparison.to_write(())
    held.apply([gone("a")], NOW)
    assert [job_id for part in parts for job_id in part] == []


def test_jobs_that_run_are_written_first_and_of_both_kinds_the_newest():
    held = index()
    for n, job_id in enumerate("abcdefgh"):
        ended = {"status": "completed"} if job_id in "aceg" else {}
        held.apply([reading(job_id, started=n - 20, **ended)], NOW)
    comparison = StreamComparison(held.published, set())
    different = comparison.differing(
        [stored(held, "h"), StoredValue("c", b"{}"), StoredValue("left", b"{}"), StoredValue("b", b"")]
    )
    assert [job_id for part in comparison.to_write(different) for job_id in part] == [*"fdb", *"geca", "left"]


# -- The writer of a collector against a model of the stream, over all interleavings of a small world


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
