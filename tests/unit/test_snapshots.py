"""Snapshots of many jobs for many subscribers: what they cost, and that none holds the loop for long."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from correlator.gateway.hub import RemoteHub
from correlator.gateway.status import RemoteStatus
from correlator.jobs import job_document
from correlator.jobs.index import Index
from correlator.jobs.remote import Marks, RemoteJobs
from correlator.model.document import JobDocument
from correlator.model.facts import Reading, Status
from correlator.model.published import JobView, PublishedJob
from correlator.model.rows import JobRecord
from correlator.pipeline import queries
from correlator.pipeline.hub import Hub
from correlator.pipeline.local_hub import LocalHub
from correlator.pipeline.queries import JobQuery
from correlator.sinks.streaming.limits import DEFAULT, Limits
from correlator.sinks.streaming.messages import Framing, Message, Resume
from correlator.sinks.streaming.sessions import Streams
from correlator.sinks.streaming.snapshots import Orders
from correlator.sinks.streaming.subscriptions import Filter

NOW = 1_758_550_000_000_000


def framed(messages: Sequence[Message], /) -> bytes:
    return job_document.frame(m.body for m in messages)


class Page:
    """A reader that takes nothing while it is `full`."""

    transport: ClassVar[str] = "websocket"
    address: ClassVar[str] = "127.0.0.1"

    def __init__(self, *, full: bool = False) -> None:
        self.framing: Framing = framed
        self.full = full
        self.messages: list[dict[str, Any]] = []
        self.done = asyncio.Event()

    def write(self, framed: bytes) -> None:
        said = json.loads(framed)
        self.messages += said if isinstance(said, list) else [said]

    def waiting(self) -> int:
        return DEFAULT.lagging_over + 1 if self.full else 0

    def synced(self) -> None:
        self.done.set()

    def give_up(self) -> None: ...

    @property
    def jobs(self) -> list[str]:
        return [j["job_id"] for m in self.messages if m["type"] == "snapshot" for j in m["jobs"]]


class World:
    def __init__(self, jobs: int, limits: Limits = DEFAULT) -> None:
        self.hub = self._hub()
        self.streams = Streams(self.hub, limits)
        self.hub.subscribe(self.streams.fanout.on_batch)
        for n in range(jobs):
            self.job(f"job{n}", n)

    def _hub(self) -> Hub:
        self.index = Index()
        self.index.loading = False
        return LocalHub(self.index)

    def job(self, job_id: str, age: int = 0, status: str = "running") -> None:
        assert isinstance(self.hub, LocalHub)
        record = JobRecord(job_id, status=status, job_type="t", started_at=NOW - age * 1_000_000)
        self.hub.publish(self.index.apply([Reading(job_id, self.index.advance_clock(), record, ())], NOW))

    async def subscribe(self, page: Page, wanted: Filter | None = None, sub: int = 1) -> None:
        if not self.streams.fanout.has(page):
            self.streams.add(page)
        await self.streams.subscribe(page, sub, wanted or Filter(), None)

    async def synced(self, *pages: Page) -> None:
        async with asyncio.timeout(60):
            for page in pages:
                await page.done.wait()


class Gateway(World):
    """The same jobs as messages of a stream. All that come before it is synced are of the past."""

    def __init__(self, jobs: int) -> None:
        super().__init__(jobs)
        self.remote.synced()

    def _hub(self) -> Hub:
        self.marks = Marks()
        self.remote = RemoteHub(RemoteJobs(self.marks), RemoteStatus(list, lambda: None), epoch="e")
        return self.remote

    def job(self, job_id: str, age: int = 0, status: str = "running") -> None:
        view = JobView(job_id, Status(status), started_at=NOW - age * 1_000_000)
        self.remote.publish(self.remote.published.put(PublishedJob(view, self.hub.seq + 1, NOW)))
        self.marks.note(self.hub.seq, self.hub.clock())


async def test_a_document_is_encoded_once_however_many_pages_open(monkeypatch):
    made: Counter[str] = Counter()
    document = job_document.document

    def counted(shown: PublishedJob, *args: Any, **options: Any) -> JobDocument:
        made[shown.job_id] += 1
        return document(shown, *args, **options)

    monkeypatch.setattr(job_document, "document", counted)
    world, pages = World(300), [Page() for _ in range(20)]
    for page in pages:
        await world.subscribe(page)
    await world.synced(*pages)
    assert all(len(page.jobs) == 300 for page in pages)
    assert set(made.values()) == {1}


async def test_pages_that_open_at_once_share_the_messages_of_their_snapshots(monkeypatch):
    built = 0
    snapshot = job_document.snapshot

    def counted(*arguments: Any, **more: Any) -> bytes:
        nonlocal built
        built += 1
        return snapshot(*arguments, **more)

    monkeypatch.setattr(job_document, "snapshot", counted)
    world, pages = World(3000), [Page() for _ in range(20)]
    for page in pages:
        await world.subscribe(page)
    await world.synced(*pages)
    messages = len([m for m in pages[0].messages if m["type"] == "snapshot"])
    assert messages > 10
    assert all(len(page.jobs) == 3000 for page in pages)
    assert built == messages


async def test_a_shared_message_has_the_newest_state_of_its_jobs_and_the_subscription_of_each_page():
    world, first, second = World(3), Page(), Page()
    await world.subscribe(first)
    world.job("job1", 1, status="completed")
    await world.subscribe(second)
    await world.subscribe(second, sub=7)
    await world.synced(first, second)
    snapshots = [m for m in first.messages + second.messages if m["type"] == "snapshot"]
    assert [m["sub"] for m in snapshots] == [1, 1, 7]
    assert [m["jobs"][1]["status"] for m in snapshots] == ["running", "completed", "completed"]
    assert [m["seq"] for m in snapshots] == [3, 4, 4]


async def test_messages_that_are_kept_for_other_pages_are_bounded_in_bytes_and_in_time():
    limits = Limits(snapshot_part=1000, kept_parts=5000)
    world, page = World(300, limits), Page()
    await world.subscribe(page)
    await world.synced(page)
    assert 3000 < (kept := world.streams._parts.size) <= 5000
    await world.subscribe(Page(), Filter(JobQuery(), frozenset({"job1"})))
    assert world.streams._parts.size == kept, "nobody else has the order of named jobs"
    world.streams._bookmark()
    assert world.streams._parts.size == 0


async def test_jobs_of_a_snapshot_come_newest_first_those_that_are_new_since_the_last_one_too():
    world, first, second = World(50), Page(), Page()
    await world.subscribe(first)
    world.job("new", -10)
    world.job("newer", -20)
    await world.subscribe(second)
    await world.synced(first, second)
    assert first.jobs == [f"job{n}" for n in range(50)]
    assert second.jobs == ["newer", "new", *first.jobs]


async def test_a_page_that_waits_for_its_snapshot_holds_no_list_of_all_jobs():
    world = World(3000)

    async def held(count: int) -> int:
        pages = [Page(full=True) for _ in range(count)]
        before = tracemalloc.get_traced_memory()[0]
        for page in pages:
            await world.subscribe(page)
        grown = tracemalloc.get_traced_memory()[0] - before
        for page in pages:
            world.streams.remove(page)
        return grown

    tracemalloc.start()
    try:
        await held(1)
        each = await held(50) / 50
    finally:
        tracemalloc.stop()
    assert each < 3000 * 8, "less than a pointer a job"


async def test_a_step_of_a_snapshot_visits_a_bounded_number_of_jobs_though_few_match(monkeypatch):
    world, page = World(1000, Limits(max_visited=100)), Page()
    world.job("rare", 5000, status="failed")
    steps: list[int] = []
    get, visited = world.index.published.get, 0

    def counted(job_id: str) -> Any:
        nonlocal visited
        visited += 1
        return get(job_id)

    ended = world.streams._advance

    def step(*arguments: Any) -> bool:
        nonlocal visited
        visited = 0
        try:
            return ended(*arguments)
        finally:
            steps.append(visited)

    monkeypatch.setattr(world.index.published, "get", counted)
    monkeypatch.setattr(world.streams, "_advance", step)
    await world.subscribe(page, Filter(JobQuery(status=frozenset({"failed"}))))
    await world.synced(page)
    assert page.jobs == ["rare"]
    assert max(steps) <= 100
    assert [m["more"] for m in page.messages if m["type"] == "snapshot"] == [True, False]


async def test_what_happens_ahead_of_a_snapshot_is_in_it_as_it_is_when_its_turn_comes():
    running = Filter(JobQuery(status=frozenset({"running"})))
    world, page = World(6, Limits(snapshot_part=1)), Page()
    world.job("job5", 5, status="failed")
    await world.subscribe(page, running)
    assert page.jobs == ["job0"]
    world.job("job4", 4, status="failed")  # leaves the filter before it is sent
    world.job("job5", 5)  # comes into it
    world.job("job0", 0, status="completed")  # was sent
    world.job("new", -1)  # did not exist when it was opened
    await world.synced(page)
    world.streams.fanout.flush()
    assert page.jobs == ["job0", "job1", "job2", "job3", "job5"]
    changes = [(m["type"], m["job_id"]) for m in page.messages if m["type"] in ("put", "delta", "delete")]
    assert changes == [("put", "job0"), ("delete", "job0"), ("put", "new")]


def test_an_unused_snapshot_order_is_discarded_when_many_jobs_are_new():
    orders = Orders(max_added=10)
    orders.todo([], 0)
    for n in range(1000):
        orders.add(str(n))
    assert len(orders._added) <= 11
    world = World(3)
    found = orders.todo(world.index.published.all(), 3)
    assert [found.pop_next() for _ in range(4)] == ["job0", "job1", "job2", None]
    assert not found


def moved_on(world: World, jobs: int, turns: int) -> Resume:
    """Change `jobs` jobs `turns` times. Returns the position before."""
    position = Resume(world.hub.epoch, world.hub.seq)
    for turn in range(turns):
        for n in range(jobs):
            world.job(f"job{n}", n, status=("pending", "running")[turn % 2])
    return position


async def resume(world: World, page: Page, position: Resume, wanted: Filter | None = None, sub: int = 1) -> None:
    world.streams.add(page)
    await world.streams.subscribe(page, sub, wanted or Filter(), None, resume=position, resuming=True)


@pytest.mark.parametrize("world_of", [World, Gateway], ids=["daemon", "gateway"])
async def test_a_resume_costs_the_jobs_that_a_client_follows_and_not_all_that_changed(monkeypatch, world_of):
    world = world_of(200)
    position = moved_on(world, 200, 20)
    pages = {f"job{n}": Page() for n in range(200)}
    asked = Counter[str]()
    for owner, name in ((world.hub.published, "get"), (world.hub, "before")):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name), asked))
    for job_id, page in pages.items():
        await resume(world, page, position, Filter(JobQuery(), frozenset({job_id})))
    await world.synced(*pages.values())
    for job_id, page in pages.items():
        assert [m["job_id"] for m in page.messages if m["type"] == "put"] == [job_id]
        assert page.messages[-2]["count"] == 1
    assert sum(asked.values()) < 10 * len(pages), "a few questions a client"


def test_a_gateway_knows_what_jobs_were_from_where_it_had_read_the_stream():
    world = Gateway(3)
    position = moved_on(world, 3, 2)
    for known, seq in ((True, position.seq), (False, position.seq - 1)):
        assert world.hub.reaches(seq)
        assert world.hub.changed_with(["job1"], seq, 10) == (["job1"] if known else None)
        assert (world.hub.before("job1", seq) is not None) == known


def counted(function: Any, calls: Counter[str]) -> Any:
    def call(*arguments: Any) -> Any:
        calls[function.__name__] += 1
        return function(*arguments)

    return call


async def test_pages_that_resume_at_one_position_share_the_messages_of_what_they_missed(monkeypatch):
    world = World(300)
    position = moved_on(world, 300, 2)
    calls, pages = Counter[str](), [Page() for _ in range(20)]
    monkeypatch.setattr(job_document, "put", counted(job_document.put, calls))
    for page in pages:
        await resume(world, page, position)
    await world.synced(*pages)
    for page in pages:
        assert [m["job_id"] for m in page.messages if m["type"] == "put"] == [f"job{n}" for n in range(300)]
    assert calls["put"] == 300


async def test_a_client_whose_position_is_newer_shares_the_order_and_gets_less(monkeypatch):
    world = World(300)
    old, asked = moved_on(world, 300, 1), 0
    new = moved_on(world, 40, 2)
    changed = world.hub.changed

    def count() -> Any:
        nonlocal asked
        for found in changed():
            asked += 1
            yield found

    pages = [Page() for _ in range(10)]
    monkeypatch.setattr(world.streams.fanout.groups._missed, "_changed", count)
    for n, page in enumerate(pages):
        await resume(world, page, (old, new)[n % 2])
        world.job("job299", status="failed")  # a change between two clients
    await world.synced(*pages)
    assert [len({m["job_id"] for m in p.messages if m["type"] == "put"}) for p in pages[:3]] == [300, 41, 300]
    assert asked < 2 * 300 + 10 * 20, "one order for all, and the last few changes for each"


async def test_a_step_of_a_resume_visits_a_bounded_number_of_jobs_though_none_match(monkeypatch):
    world, page = World(1000, Limits(max_visited=100)), Page()
    position = moved_on(world, 1000, 2)
    asked, steps = Counter[str](), list[int]()
    monkeypatch.setattr(world.index.published, "get", counted(world.index.published.get, asked))
    ended = world.streams._advance

    def step(*arguments: Any) -> bool:
        before = asked["get"]
        try:
            return ended(*arguments)
        finally:
            steps.append(asked["get"] - before)

    monkeypatch.setattr(world.streams, "_advance", step)
    await resume(world, page, position, Filter(JobQuery(status=frozenset({"failed"}))))
    await world.synced(page)
    assert [m["type"] for m in page.messages] == ["synced", "status"]
    assert len(steps) >= 10
    assert max(steps) <= 2 * 100


async def test_a_client_that_missed_more_than_a_snapshot_costs_gets_a_snapshot():
    world, page = World(30, Limits(max_missed=10)), Page()
    near = Resume(world.hub.epoch, world.hub.seq - 10)
    far = Resume(world.hub.epoch, world.hub.seq - 11)
    await resume(world, page, far)
    await world.synced(page)
    assert page.messages[0] == {"type": "resync", "reason": "gap"}
    assert len(page.jobs) == 30
    await resume(world, other := Page(), near)
    await world.synced(other)
    assert [m["type"] for m in other.messages][:10] == ["put"] * 10


async def test_filters_are_prepared_once_however_many_differ(monkeypatch):
    world, prepared = World(200), Counter[str]()
    monkeypatch.setattr(queries, "_tests", counted(queries._tests, prepared))
    pages = [Page() for _ in range(300)]
    for n, page in enumerate(pages):
        await world.subscribe(page, Filter(JobQuery(job_type=frozenset({f"type{n}"}))))
    await world.synced(*pages)
    world.job("job1", 1, status="failed")
    assert prepared["_tests"] <= 300
