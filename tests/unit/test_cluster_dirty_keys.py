"""The keys that the stream may not have: when they are clean, in which order they are written, what is forgotten."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from msgspec.structs import replace

from correlator.jobs import joblog
from correlator.jobs.index import Index
from correlator.model.rows import LogRow
from correlator.sinks.cluster import documents
from correlator.sinks.cluster.documents import DirtyKeys, StoredValue, StreamComparison, Urgency, urgency
from tests.support.mqtt_harness import gone, reading
from tests.support.pipeline_harness import NOW


def popped(dirty, most=10):
    found: list[str] = []
    while len(found) < most and (key := dirty.pop_next()) is not None:
        found.append(key)
    return found


def test_keys_without_an_acknowledgement_are_written_first_and_keep_their_age():
    now = 0.0
    dirty = DirtyKeys(lambda: now)
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


def test_changes_are_written_before_the_past_which_has_every_fourth_turn():
    dirty = DirtyKeys(lambda: 0.0)
    dirty.add(["differs"])
    for n in range(3):
        dirty.mark(f"past {n}", "past")
    for n in range(5):
        dirty.mark(f"new {n}")
    assert popped(dirty) == [
        *("new 0", "new 1", "new 2", "differs"),
        *("new 3", "new 4", "past 0", "past 1", "past 2"),
    ]


def test_a_job_that_only_goes_on_is_written_once_a_second_and_at_once_when_more_changes():
    now = 0.0
    dirty = DirtyKeys(lambda: now, spacing=1.0)
    dirty.mark("a", "goes on")
    assert popped(dirty) == ["a"], "the first one waits for nothing"
    dirty.acknowledged()
    for now in (0.1, 0.5, 0.9):  # noqa: B007 - the clock reads it
        dirty.mark("a", "goes on")
        assert popped(dirty) == []
    assert (dirty.oldest(), len(dirty)) == (None, 1), "it waits because it should: it is not late"
    assert dirty.due_in() == pytest.approx(0.1)
    now = 1.0
    assert (dirty.due_in(), popped(dirty)) == (0.0, ["a"])
    dirty.mark("a", "goes on")
    dirty.mark("a", "now")
    assert popped(dirty) == ["a"]
    dirty.mark("a", "goes on")
    dirty.hurry()
    assert popped(dirty) == ["a"], "a process that stops waits for nothing"


def test_the_urgency_of_a_change_is_that_of_what_people_see():
    index = Index()
    index.loading = False
    appears = index.apply([reading("a")], NOW).changes
    rows = [LogRow(n, "a line", NOW + n, level, "a") for n, level in enumerate(("INFO", "WARN"), 1)]
    (goes_on,), (warns,) = (index.apply([joblog.read(row, row.id)[0]], row.ts).changes for row in rows)
    (ends,) = index.apply([reading("a", observed_at=3, status="completed")], NOW + 3).changes
    changes = (*appears, goes_on, warns, ends, replace(ends, old=ends.new))
    assert [urgency(change) for change in changes] == ["now", "goes on", "now", "now", "past"]


def test_removed_jobs_are_bounded_and_a_comparison_finds_those_that_were_dropped():
    dirty = DirtyKeys(lambda: 0.0, max_removed=2)
    for n in range(3):
        dirty.mark_removed(str(n), "retention")
    assert dirty.incomplete
    assert popped(dirty) == ["1", "2"]


# -- What memory has, what the stream has, and the keys between them


JOBS = "abcd"


class Writer(RuleBasedStateMachine):
    """A collector that writes what is dirty, and compares. Versions stand for documents; a job without one has left."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.dirty = DirtyKeys(lambda: self.now, max_removed=3)
        self.dirty.add(JOBS)  # the first comparison, with an empty stream
        self.memory: dict[str, int] = dict.fromkeys(JOBS, 0)
        self.stream: dict[str, int | None] = {}
        self.flight: dict[str, int | None] = {}
        self.reasons: dict[str, str] = {}
        self.compared: tuple[set[str], dict[str, int | None]] | None = None
        self.found: list[str] | None = None
        self.version = 0
        self.marked_meanwhile: set[str] = set()
        self.marked_since: set[str] = set()
        """The jobs that changed or left since the batch in flight was made, and since the comparison began."""
        self.dropped = False
        """True once the reason of a removal may have been forgotten."""

    @rule(seconds=st.sampled_from([0.3, 1.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(job_id=st.sampled_from(JOBS), urgency=st.sampled_from(["now", "goes on", "past"]))
    def a_job_changes(self, job_id: str, urgency: Urgency = "now") -> None:
        self.version += 1
        self.memory[job_id] = self.version
        self.reasons.pop(job_id, None)
        self.marked_meanwhile.add(job_id)
        self.marked_since.add(job_id)
        self.dirty.mark(job_id, urgency)

    @rule(job_id=st.sampled_from(JOBS), reason=st.sampled_from(["retention", "merged"]))
    def a_job_leaves(self, job_id: str, reason: str) -> None:
        self.memory.pop(job_id, None)
        self.reasons[job_id] = reason
        self.marked_meanwhile.add(job_id)
        self.marked_since.add(job_id)
        self.dirty.mark_removed(job_id, reason)  # type: ignore[arg-type]
        self.dropped = self.dropped or self.dirty.incomplete

    @precondition(lambda self: not self.flight)
    @rule(most=st.integers(1, 5))
    def a_batch_is_made(self, most: int) -> None:
        for job_id in popped(self.dirty, most):
            assert job_id not in self.flight, "a key is twice in one batch"
            self.flight[job_id] = self.memory.get(job_id)
        self.marked_meanwhile.clear()

    @precondition(lambda self: self.flight)
    @rule(end=st.sampled_from(["acknowledged", "acknowledged", "stored without an answer", "lost"]))
    def a_batch_ends(self, end: str) -> None:
        if end != "lost":
            self.stream |= self.flight
        if end == "acknowledged":
            self.dirty.acknowledged()
            for job_id in self.flight.keys() - self.marked_meanwhile:
                self.reasons.pop(job_id, None)
        else:
            self.dirty.unacknowledged()
        self.flight = {}

    @precondition(lambda self: self.compared is None)
    @rule()
    def a_comparison_begins(self) -> None:
        self.dirty.incomplete = False
        self.compared = self.dirty.begin_comparison(), dict(self.stream)
        self.marked_since = {*self.flight}

    @precondition(lambda self: self.compared is not None)
    @rule()
    def a_comparison_finds_differences(self) -> None:
        """It has read the stream some time ago, and compares with the memory of now."""
        assert self.compared is not None
        touched, read = self.compared
        assert self.marked_since <= touched, "what is written anyway is not compared"
        self.found = [i for i in JOBS if i not in touched and read.get(i) != self.memory.get(i)]
        assert all(self.stream.get(i) != self.memory.get(i) for i in self.found)

    @precondition(lambda self: self.found is not None)
    @rule()
    def a_comparison_ends(self) -> None:
        assert self.found is not None
        self.dirty.add(self.found)
        self.dirty.end_comparison()
        self.compared = self.found = None

    @invariant()
    def a_clean_key_is_equal_in_the_stream(self) -> None:
        different = [i for i in JOBS if self.stream.get(i) != self.memory.get(i)]
        if not self.dirty.incomplete and self.compared is None:
            assert len(different) <= len(self.dirty)
        assert len(self.dirty) > 0 or self.dirty.oldest() is None
        assert (self.dirty.due_in() is None) == (len(self.dirty) == 0) or self.flight

    @invariant()
    def the_reason_of_a_removal_is_known_until_it_is_acknowledged(self) -> None:
        assert self.dropped or [self.dirty.removal(i) for i in JOBS] == [self.reasons.get(i, "gone") for i in JOBS]

    def teardown(self) -> None:
        """Everything goes well from here, and the stream ends equal to memory."""
        self.dirty.hurry()
        for _ in range(2):
            if self.compared is not None:
                self.a_comparison_finds_differences()
                self.a_comparison_ends()
            for end in ("stored without an answer", "acknowledged"):
                if self.flight:
                    self.a_batch_ends(end)
                self.a_batch_is_made(10)
            if self.flight:
                self.a_batch_ends("acknowledged")
            assert len(self.dirty) == 0
            if self.dirty.incomplete:
                self.a_comparison_begins()
        assert {i: self.stream.get(i) for i in JOBS} == {i: self.memory.get(i) for i in JOBS}


def test_whatever_changes_is_lost_or_compared_the_stream_ends_as_memory():
    run_state_machine_as_test(Writer, settings=settings(max_examples=60, stateful_step_count=40))


# -- The comparison of memory with the stream finds each difference once, and nothing that is written anyway


def index(*job_ids):
    index = Index()
    index.loading = False
    index.apply([reading(job_id) for job_id in job_ids], NOW)
    return index


def written(comparison, differing=()):
    return [job_id for part in comparison.to_write(differing) for job_id in part]


@settings(max_examples=40)
@given(
    st.sets(st.sampled_from(JOBS)),
    st.dictionaries(st.sampled_from(JOBS), st.sampled_from(["equal", "other", "marker"])),
    st.sets(st.sampled_from(JOBS)),
    st.sets(st.sampled_from(JOBS)),
)
def test_a_comparison_finds_each_difference_once_and_no_job_that_is_touched(memory, stored, touched, meanwhile):
    held, read = index(*memory), []
    comparison = StreamComparison(held.published, touched)
    for job_id, value in stored.items():
        equal = value == "equal" and job_id in memory
        document = documents.encode(held.published.get(job_id)) if equal else b"{}"
        read.append(StoredValue(job_id, None if value == "marker" else document))
    different = {i for i in memory if stored.get(i) != "equal"}
    different |= {i for i in stored.keys() - memory if stored[i] != "marker"}
    due = different & {one.job_id for one in read[:2]} - touched
    found = comparison.differing(read[:2])
    touched |= meanwhile
    due |= different - {one.job_id for one in read[:2]} - touched
    found += comparison.differing(read[2:])
    assert sorted(written(comparison, found)) == sorted(due)


def test_a_job_that_leaves_memory_before_its_turn_is_not_missing():
    held = index("a")
    parts = StreamComparison(held.published, set()).to_write(())
    held.apply([gone("a")], NOW)
    assert [job_id for part in parts for job_id in part] == []


def test_jobs_that_run_are_written_first_and_of_both_kinds_the_newest():
    held = index()
    for n, job_id in enumerate("abcdefgh"):
        ended = {"status": "completed"} if job_id in "aceg" else {}
        held.apply([reading(job_id, started=n - 20, **ended)], NOW)
    comparison = StreamComparison(held.published, set())
    stored = StoredValue("h", documents.encode(held.published.get("h")))
    different = comparison.differing(
        [stored, StoredValue("c", b"{}"), StoredValue("left", b"{}"), StoredValue("b", b"")]
    )
    assert written(comparison, different) == [*"fdb", *"geca", "left"]
