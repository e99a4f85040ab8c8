"""Growth in the stream instead of documents: every gateway has what memory has, whatever was lost in between.

Operations in any order: rows, readings, batches of which NATS stores all, some or nothing with or without an answer,
other writers, other streams, gateways that read at once, later, or begin again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from fnmatch import fnmatchcase
from types import SimpleNamespace
from typing import Any

from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from msgspec.structs import replace

from correlator.cluster import keys, received
from correlator.cluster.growth import MAX_PAGE, PAGE_JOBS, PAGES
from correlator.gateway.fleet import Fleet
from correlator.gateway.stream import StoredMessage
from correlator.jobs import encoding
from correlator.jobs.encoding import MAX_MICROS, MIN_MICROS
from correlator.model.facts import Entry, Line, Reading, Status
from correlator.model.published import Change, JobView, PublishedJob
from correlator.model.rows import LEVELS, JobRecord, StepRecord
from correlator.sinks.cluster import documents
from correlator.sinks.cluster.documents import ClusterTimings, DirtyKeys, next_batch, repair
from correlator.sinks.cluster.growing import GrowingJobs
from tests.support.documents import document_of
from tests.support.streams_harness import NOW, DaemonStreams

INSTANCE = "dc1"
JOBS = [f"job{n}" for n in range(3)]
LOSSES = ["refused", "lost", "stored, no answer", "some stored"]
BATCHES = st.tuples(
    st.sets(st.sampled_from(JOBS)),
    st.sampled_from([0.3, 1.0, 1.0, 1.0]),
    st.sampled_from([*["stored"] * 12, *LOSSES]),
)

SERVER: Any = SimpleNamespace(client=SimpleNamespace(max_payload=1 << 20), window=SimpleNamespace(share=1 << 20))


AT_ONCE = ClusterTimings(slice_pause=0.0, behind_within=0.0)

GROWN = {"rev", "updated_at", "last_event_at", "last_message", "duration_seconds", "steps"}
"""The members of a document that differ where a job has only grown. Of its steps, it is the duration."""


class StoredMessages:
    """The connection to a server that has these messages, the newest of each subject, and answers direct gets."""

    client: Any = SimpleNamespace(max_payload=1 << 20, new_inbox=lambda: "_INBOX.test")
    api_subject = "$JS.API"

    def __init__(self, stream):
        self._stream = stream

    @contextlib.asynccontextmanager
    async def subscribed(self, subject, callback, pending):
        self._callback = callback
        yield

    async def publish(self, subject, payload, reply):
        asked = json.loads(payload)
        for found in sorted(self._stream.values(), key=lambda m: m.seq):
            if found.seq >= asked["seq"] and fnmatchcase(found.subject, asked["next_by_subj"].replace(">", "*")):
                await self._callback(self._message(found, reply))
        await self._callback(SimpleNamespace(subject=reply, data=b"", headers={"Status": "204"}))

    async def last(self, stream, subject, *, within):
        return None if (found := self._stream.get(subject)) is None else self._message(found, subject)

    def _message(self, found, subject):
        headers = {**(found.headers or {}), "Nats-Subject": found.subject, "Nats-Sequence": str(found.seq)}
        return SimpleNamespace(subject=subject, data=found.payload, headers=headers)


class Writer:
    """What a cluster sink has of the jobs of a collector: keys to write, and the jobs that grow."""

    def __init__(self, world, clock):
        self.published = world.hub.published
        self.dirty = DirtyKeys(clock)
        self.growing = GrowingJobs(clock, whole_every=6.0, rests_after=3.0)
        self.end = world.hub.subscribe(self._on_batch)

    def _on_batch(self, batch):
        for change in batch.changes:
            self.dirty.note(change)

    def batch(self):
        return asyncio.run(next_batch(SERVER, INSTANCE, self.published, self.dirty, self.growing))

    def settle(self, acknowledged):
        for one in (self.dirty, self.growing):
            (one.acknowledged if acknowledged else one.unacknowledged)()

    def compare(self, stream, *, periodic):
        """Returns the number of documents that differ from the jobs in memory."""
        server: Any = StoredMessages(stream)
        comparison = repair(
            server, INSTANCE, self.published, self.dirty, self.growing, AT_ONCE, periodic=periodic, beat=lambda: None
        )
        found = asyncio.run(comparison)
        self.growing.enable()
        return found


class Gateway:
    """A fleet that reads the newest message of each subject, in the order of the stream."""

    def __init__(self):
        self.fleet = Fleet(lambda _: None)
        self.fleet.reset("e")
        self.fleet.hub.subscribe(lambda batch: self._changes.extend(batch.changes))
        self._changes: list[Change] = []
        self.seq = 0

    def read(self, stream):
        messages = sorted((m for m in stream.values() if m.seq > self.seq), key=lambda m: m.seq)
        for message in messages:
            self.fleet.read([message])
            self.seq = message.seq
            self._check(is_page=keys.growth_of(message.subject) is not None)
        self.fleet.synced()
        return self

    def _check(self, *, is_page):
        """A page says of no job more than that it goes on, and no change says so of which that is not all."""
        changes, self._changes = self._changes, []
        for change in changes:
            assert change.goes_on or not is_page, change
            if change.goes_on and change.old is not None and change.new is not None:
                old, new = document_of(change.old), document_of(change.new)
                assert {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)} <= GROWN
                assert without_durations(old) == without_durations(new)

    def documents(self):
        return {shown.job_id: document_of(shown) for shown in self.fleet.hub.published.all()}


class Growth(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.time, self.seq, self.logged = 0.0, 0, 0
        self.world = DaemonStreams(runs=True)
        self.stream: dict[str, StoredMessage] = {}
        self.gateways = [Gateway(), Gateway()]
        self.writer = Writer(self.world, lambda: self.time)
        self.writer.growing.enable()
        for n in range(3):
            self.begin(n)

    def begin(self, n):
        """A job runs, in its second step."""
        self.world.now += 1
        start = self.world.now - 60_000_000
        steps = tuple(
            StepRecord(10 * n + k, f"step {k}", k, status, start + k * 1_000_001, None)
            for k, status in enumerate(("completed", "running"))
        )
        clock = self.world.index.advance_clock()
        record = JobRecord(f"job{n}", status="running", started_at=start, job_type="failover")
        self.world.publish(Reading(f"job{n}", clock, record, steps))

    def log(self, job_id, text="m", level="INFO"):
        self.logged = n = self.logged + 1
        self.world.publish(Entry(n, self.world.now + n, level, f"{text}{n}", self.world.index.advance_clock(), job_id))

    def write(self, how="stored"):
        batch = self.writer.batch()
        stored = {"refused": 0, "lost": 0, "some stored": (len(batch) + 1) // 2}.get(how, len(batch))
        for message in batch[:stored]:
            self.store(message.subject, message.payload, message.headers or None)
        self.writer.settle(how == "stored")

    def store(self, subject, payload, headers=None):
        self.seq += 1
        at = int(self.time * 1_000_000) + 1
        self.stream[subject] = StoredMessage(subject, self.seq, at, payload, headers)

    @rule(batches=st.lists(BATCHES, min_size=1, max_size=6))
    def rows(self, batches):
        """Log rows, a moment, and a batch, again and again: what happens nearly always."""
        for jobs, waits, how in batches:
            for job_id in sorted(jobs):
                self.log(job_id)
            self.time += waits
            self.write(how)
            self.gateways[0].read(self.stream)

    @rule(
        job=st.sampled_from(JOBS),
        text=st.sampled_from(["x" * 999, "\ud800", "ü" * 400]),
        level=st.sampled_from(["INFO", "DEBUG", "WARN", "ERROR"]),
    )
    def another_row(self, job, text, level):
        self.log(job, text, level)

    @rule(seed=st.integers(0, 1 << 20), n=st.integers(0, 2))
    def change(self, seed, n):
        """Readings that begin, change, end and remove jobs, then one that runs."""
        self.world.random.seed(seed)
        self.world.change()
        self.begin(n)

    @rule(seconds=st.sampled_from([3.0, 7.0]), how=st.sampled_from(["stored", *LOSSES]))
    def wait(self, seconds, how):
        self.time += seconds
        self.write(how)

    @rule(
        what=st.sampled_from(["compare", "compare", "another writer", "another stream"]),
        ahead=st.sets(st.sampled_from(JOBS)),
        before=st.lists(st.sets(st.sampled_from(JOBS)), max_size=3),
    )
    def disturb(self, what, ahead, before):
        """A comparison: of a writer's own documents, or of those of another one.

        `ahead`: jobs for which the last writer wrote rows that its successor does not know: its checkpoint is older.
        `before`: jobs with rows, one batch after the other, that the successor writes before it has compared anything.
        """
        if what == "another stream":
            self.stream.clear()
            self.writer.growing.clear()
            for gateway in self.gateways:
                gateway.fleet.reset("e")
        elif what == "another writer":
            self.write_ahead(ahead)
            self.writer.end()
            self.writer = Writer(self.world, lambda: self.time)
            for jobs in before:
                for job_id in sorted(jobs):
                    self.log(job_id)
                self.time += 1.0
                self.write()
        self.compare(periodic=what == "compare")

    def write_ahead(self, ahead):
        """The writer reads another row of some jobs, and writes nothing else but their growth."""
        growing, published = self.writer.growing, self.writer.published
        pages: set[int] = set()
        for job_id in sorted(ahead):
            if (shown := published.get(job_id)) is not None and shown.view.last is not None:
                last = replace(shown.view.last, at=shown.updated_at, text="ahead")
                later = replace(shown, view=replace(shown.view, last=last), rev=shown.rev + 1)
                if (page := growing.grow(replace(later, updated_at=shown.updated_at + 1))) is not None:
                    pages.add(page)
        for page in sorted(pages):
            self.store(keys.growth(INSTANCE, page), growing.payload(page))

    def compare(self, *, periodic):
        dirty, grew = len(self.writer.dirty), set(self.writer.growing)
        found = self.writer.compare(self.stream, periodic=periodic)
        assert not (periodic and dirty == 0 and found), f"a growing job counts as damaged: {grew}"

    @rule(which=st.integers(0, 1), again=st.booleans())
    def read(self, which, again):
        if again:
            self.gateways[which] = Gateway()
        self.gateways[which].read(self.stream)

    @invariant()
    def a_gateway_that_starts_has_what_another_one_has_that_read_each_message(self):
        live = self.gateways[0].read(self.stream)
        assert live.documents() == Gateway().read(self.stream).documents()

    @invariant()
    def what_has_no_dirty_key_is_at_the_gateways_as_it_is_in_memory(self):
        if not len(self.writer.dirty):
            due = {shown.job_id: document_of(shown) for shown in self.world.hub.published.all()}
            for gateway in self.gateways:
                found = gateway.read(self.stream).documents()
                assert {i: _without_place(d) for i, d in found.items()} == {
                    i: _without_place(d) for i, d in due.items()
                }

    @rule()
    def nothing_happens(self):
        """Jobs that rest become documents again, and leave their pages."""
        for _ in range(5):
            self.time += 1.0
            self.write()
        pages = {message.payload for subject, message in self.stream.items() if keys.growth_of(subject) is not None}
        assert pages <= {b"[]"}


def without_durations(document):
    return {step: {**one, "duration_seconds": None} for step, one in document.get("steps", {}).items()}


def _without_place(document):
    return {name: value for name, value in document.items() if name not in ("rev", "instance")}


def test_whatever_is_lost_gateways_have_what_memory_has_and_all_gateways_the_same():
    run_state_machine_as_test(
        Growth,
        settings=settings(
            max_examples=60, stateful_step_count=40, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate]
        ),
    )


def grown(*jobs):
    """A writer whose documents of these jobs have a row, and which then grow by another one."""
    world = Growth()
    for job_id in JOBS:
        world.log(job_id)
    world.write()
    for _ in range(2):
        world.rows([(set(jobs), 1.5, "stored")])
    assert set(world.writer.growing) == set(jobs)
    return world


def check(world):
    world.a_gateway_that_starts_has_what_another_one_has_that_read_each_message()
    world.what_has_no_dirty_key_is_at_the_gateways_as_it_is_in_memory()


def test_a_successor_empties_no_page_before_what_it_says_is_in_documents():
    world = Growth()
    world.wait(seconds=7.0, how="stored")
    world.rows(batches=[({"job2"}, 1.0, "stored")])
    world.disturb(what="another writer", ahead={"job1"}, before=[set(), {"job0", "job1"}, {"job1"}])
    world.rows(batches=[({"job1"}, 0.3, "lost"), ({"job0", "job1", "job2"}, 0.3, "stored")])
    check(world)
    world.nothing_happens()
    check(world)


def test_a_successor_overwrites_no_page_before_it_has_compared_what_the_page_says():
    world = grown("job0", "job1")
    check(world)
    world.writer.end()
    world.writer = Writer(world.world, lambda: world.time)
    for _ in range(3):
        world.rows([({"job0"}, 1.5, "stored")])
        check(world)


def test_a_successor_writes_what_had_grown_beyond_its_checkpoint_and_empties_the_pages():
    world = grown()
    world.disturb("another writer", {"job0"}, [])
    check(world)
    for _ in range(4):
        world.time += 1.5
        world.write()
    assert not len(world.writer.dirty)
    check(world)
    world.nothing_happens()


def test_a_comparison_counts_no_job_as_damaged_that_has_grown():
    world = grown("job0", "job1")
    assert not len(world.writer.dirty)
    world.compare(periodic=True)


IN_RANGE = [0, NOW - 60_000_000, NOW - 1, NOW, NOW + 1_500_000]
TIMES = st.sampled_from([*IN_RANGE, MIN_MICROS - 1, MAX_MICROS + 1, 1 << 62, -(1 << 62)])


@given(TIMES, TIMES, TIMES, TIMES, st.integers(1, 1 << 50), st.text(max_size=20), st.sampled_from(LEVELS))
def test_growth_on_a_document_is_the_document_of_the_job_as_it_is_now(start, step, before, now, rev, text, level):
    steps = (StepRecord(1, "a", 1, "completed", step, step), StepRecord(2, "b", 2, "running", step, None))
    view = JobView("j", Status.RUNNING, started_at=start, steps=steps, last=Line(before, 1, "INFO", "m"))
    was = PublishedJob(view, rev, before)
    shown = PublishedJob(replace(view, last=Line(now, 2, level, text)), rev + 1, now)
    growing = GrowingJobs(lambda: 0.0)
    growing.enable()
    growing.replace("j", was, stored := documents.encode(was))
    growing.acknowledged()
    if (page := growing.grow(shown)) is None:
        times = (start, step, now)
        assert min(times) < MIN_MICROS or max(times) > MAX_MICROS or not text.isprintable() or was == shown
        return
    (found,) = received.page(growing.payload(page))
    at_gateway = received.document(stored, rev, "dc1", "j")
    line = Line(found.at, 0, found.level, found.text)
    grown = encoding.grown(at_gateway, shown.rev, found.updated_at, line)
    due = document_of(shown) | {"instance": "dc1"}
    assert document_of(grown) == due
    revision = encoding.Revision(at_gateway, encoding.document(at_gateway))
    assert encoding.document(grown, revision) == encoding.document(grown)
    other = encoding.Revision(was, encoding.document(was))
    assert encoding.document(grown, other) == encoding.document(grown), "the base is of another document"


def test_a_batch_of_full_pages_has_a_bound_in_bytes():
    """Each job of another page grows: its page is written whole, with what its other jobs have."""
    jobs = {f"job{n}": PublishedJob(JobView(f"job{n}", Status.RUNNING), 1, NOW) for n in range(PAGES * PAGE_JOBS)}
    dirty, growing = DirtyKeys(lambda: 0.0), GrowingJobs(lambda: 0.0)
    growing.enable()

    def rows(*job_ids: str) -> None:
        for job_id in job_ids:
            was = jobs[job_id]
            line = Line(NOW + was.rev, was.rev, "INFO", f"{was.rev:0700}")
            jobs[job_id] = replace(was, view=replace(was.view, last=line), rev=was.rev + 1)
            dirty.mark(job_id)

    def written() -> int:
        """Write one batch. Returns its bytes."""
        published: Any = jobs
        batch = asyncio.run(next_batch(SERVER, INSTANCE, published, dirty, growing))
        for one in (dirty, growing):
            one.acknowledged()
        return sum(len(message.payload) for message in batch)

    for _ in range(2):
        rows(*jobs)
        while len(dirty):
            written()
    assert len(list(growing)) > 1_000
    rows(*list(growing)[::PAGE_JOBS])
    assert 0 < written() <= documents.FULL_AT + MAX_PAGE
