"""Snapshots of many jobs for many subscribers: what they cost, and that none holds the loop for long."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from typing import Any

import pytest

from correlator.gateway.fleet import RemoteHub
from correlator.jobs import encoding
from correlator.model.document import JobDocument
from correlator.model.published import PublishedJob
from correlator.pipeline.queries import JobQuery
from correlator.sinks.streaming.limits import DEFAULT, Limits
from correlator.sinks.streaming.messages import Resume
from correlator.sinks.streaming.subscriptions import Filter, Orders
from tests.support.eventually import eventually
from tests.support.streams_harness import ALL, NOW, DaemonStreams, GatewayStreams, StreamClient

FAILED = Filter(JobQuery(status=frozenset({"failed"})))


class FullClient(StreamClient):
    """One that takes nothing."""

    def waiting(self) -> int:
        return DEFAULT.lagging_over + 1


def filled(jobs: int, limits: Limits = DEFAULT, of: type[DaemonStreams] = DaemonStreams) -> DaemonStreams:
    """The streams of `jobs` jobs, each a second older than the one before."""
    world = of(limits=limits)
    for n in range(jobs):
        change(world, f"job{n}", n)
    return world


def change(world: DaemonStreams, job_id: str, age: int = 0, status: str = "running") -> None:
    world.job(job_id, status, started_at=NOW - age * 1_000_000)


async def opened(world: DaemonStreams, count: int = 1, which: Filter = ALL) -> list[StreamClient]:
    """Clients that subscribed, and may wait for their snapshots."""
    clients = [StreamClient() for _ in range(count)]
    for client in clients:
        await world.subscribe(which=which, client=client)
    return clients


async def resumed(world: DaemonStreams, position: Resume, which: Filter = ALL) -> StreamClient:
    """A client that resumes at a position."""
    client = StreamClient()
    client.fold.jobs[1] = world.wanted(which)
    await world.subscribe(which=which, client=client, resume=position)
    return client


async def synced(*clients: StreamClient) -> None:
    await eventually(lambda: all(client.fold.synced for client in clients), every=0.0)


def listed(client: StreamClient) -> list[str]:
    """The jobs of its snapshots, in their order."""
    return [j["job_id"] for m in client.messages if m["type"] == "snapshot" for j in m["jobs"]]


def puts(client: StreamClient) -> list[str]:
    return [m["job_id"] for m in client.messages if m["type"] == "put"]


def counted(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, calls: Counter[str]) -> None:
    """Count the calls of a function, by the ID of the job where it gets one."""
    function = getattr(owner, name)

    def call(*arguments: Any, **more: Any) -> Any:
        calls[name] += 1
        return function(*arguments, **more)

    monkeypatch.setattr(owner, name, call)


def steps(monkeypatch: pytest.MonkeyPatch, world: DaemonStreams) -> list[int]:
    """How many jobs each step of a snapshot reads, from now on."""
    calls, found = Counter[str](), list[int]()
    counted(monkeypatch, world.hub.published, "get", calls)
    advance = world.streams._advance

    def step(*arguments: Any) -> bool:
        before = calls["get"]
        try:
            return advance(*arguments)
        finally:
            found.append(calls["get"] - before)

    monkeypatch.setattr(world.streams, "_advance", step)
    return found


async def test_pages_that_open_at_once_share_documents_and_the_messages_of_their_snapshots(monkeypatch):
    made, calls = Counter[str](), Counter[str]()
    document = encoding.document

    def encoded(shown: PublishedJob, *args: Any, **options: Any) -> JobDocument:
        made[shown.job_id] += 1
        return document(shown, *args, **options)

    monkeypatch.setattr(encoding, "document", encoded)
    counted(monkeypatch, encoding, "snapshot", calls)
    world = filled(1000, Limits(snapshot_part=16_000))
    await synced(*(pages := await opened(world, 20)))
    assert all(len(listed(page)) == 1000 for page in pages)
    assert set(made.values()) == {1}
    assert calls["snapshot"] == len([m for m in pages[0].messages if m["type"] == "snapshot"]) > 10


async def test_a_shared_message_has_the_newest_state_of_its_jobs_and_the_subscription_of_each_page():
    world = filled(3)
    (first,) = await opened(world)
    change(world, "job1", 1, "completed")
    (second,) = await opened(world)
    await world.subscribe(7, client=second)
    await synced(first, second)
    snapshots = [m for m in first.messages + second.messages if m["type"] == "snapshot"]
    assert [m["sub"] for m in snapshots] == [1, 1, 7]
    assert [m["jobs"][1]["status"] for m in snapshots] == ["running", "completed", "completed"]
    assert [m["seq"] for m in snapshots] == [3, 4, 4]


async def test_messages_that_are_kept_for_other_pages_are_bounded_in_bytes_and_in_time():
    world = filled(300, Limits(snapshot_part=1000, kept_parts=5000))
    await synced(*await opened(world))
    assert 3000 < (kept := world.streams._parts.size) <= 5000
    await opened(world, which=Filter(jobs=frozenset({"job1"})))
    assert world.streams._parts.size == kept, "nobody else has the order of named jobs"
    world.streams._bookmark()
    assert world.streams._parts.size == 0


async def test_jobs_of_a_snapshot_come_newest_first_those_that_are_new_since_the_last_one_too():
    world = filled(50)
    (first,) = await opened(world)
    change(world, "new", -10)
    change(world, "newer", -20)
    (second,) = await opened(world)
    await synced(first, second)
    assert listed(first) == [f"job{n}" for n in range(50)]
    assert listed(second) == ["newer", "new", *listed(first)]


async def test_a_page_that_waits_for_its_snapshot_holds_no_list_of_all_jobs():
    world = filled(2000)
    await world.subscribe(client=FullClient())
    tracemalloc.start()
    try:
        for _ in range(20):
            await world.subscribe(client=FullClient())
        grown = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert grown / 20 < 2000 * 8, "less than a pointer a job"


def test_an_unused_snapshot_order_is_discarded_when_many_jobs_are_new():
    orders = Orders(max_added=10)
    orders.todo([], 0)
    for n in range(100):
        orders.add(str(n))
    assert len(orders._added) <= 11
    found = orders.todo(filled(3).hub.published.all(), 3)
    assert [found.pop_next() for _ in range(4)] == ["job0", "job1", "job2", None]


async def test_a_step_of_a_snapshot_visits_a_bounded_number_of_jobs_though_few_match(monkeypatch):
    world = filled(1000, Limits(max_visited=100))
    change(world, "rare", 5000, "failed")
    visited = steps(monkeypatch, world)
    await synced(*(pages := await opened(world, which=FAILED)))
    assert listed(pages[0]) == ["rare"]
    assert max(visited) <= 100
    assert [m["more"] for m in pages[0].messages if m["type"] == "snapshot"] == [True, False]


async def test_what_happens_ahead_of_a_snapshot_is_in_it_as_it_is_when_its_turn_comes():
    world = filled(6, Limits(snapshot_part=1))
    change(world, "job5", 5, "failed")
    (page,) = await opened(world, which=Filter(JobQuery(status=frozenset({"running"}))))
    assert listed(page) == ["job0"]
    change(world, "job4", 4, "failed")  # leaves the filter before it is sent
    change(world, "job5", 5)  # comes into it
    change(world, "job0", 0, "completed")  # was sent
    change(world, "new", -1)  # did not exist when it was opened
    await synced(page)
    world.streams.fanout.flush()
    assert listed(page) == ["job0", "job1", "job2", "job3", "job5"]
    changes = [(m["type"], m["job_id"]) for m in page.messages if m["type"] in ("put", "delta", "delete")]
    assert changes == [("put", "job0"), ("delete", "job0"), ("put", "new")]


def moved_on(world: DaemonStreams, jobs: int, turns: int) -> Resume:
    """Change `jobs` jobs `turns` times. Returns the position before."""
    position = Resume(world.hub.epoch, world.hub.seq)
    for turn in range(turns):
        for n in range(jobs):
            change(world, f"job{n}", n, ("pending", "running")[turn % 2])
    return position


@pytest.mark.parametrize("world_of", [DaemonStreams, GatewayStreams], ids=["daemon", "gateway"])
async def test_a_resume_costs_the_jobs_that_a_client_follows_and_not_all_that_changed(monkeypatch, world_of):
    world, asked = filled(100, of=world_of), Counter[str]()
    position = moved_on(world, 100, 10)
    counted(monkeypatch, world.hub.published, "get", asked)
    counted(monkeypatch, world.hub, "before", asked)
    pages = {f"job{n}": await resumed(world, position, Filter(jobs=frozenset({f"job{n}"}))) for n in range(100)}
    await synced(*pages.values())
    for job_id, page in pages.items():
        assert puts(page) == [job_id]
        assert [m["count"] for m in page.messages if m["type"] == "synced"] == [1]
    assert asked.total() < 10 * len(pages), "a few questions a client"


def test_a_gateway_knows_what_jobs_were_from_where_it_had_read_the_stream():
    world = filled(3, of=GatewayStreams)
    assert isinstance(world.hub, RemoteHub)
    world.hub.status.loading = True
    world.hub.synced()  # All that came before is of the past.
    position = moved_on(world, 3, 2)
    for known, seq in ((True, position.seq), (False, position.seq - 1)):
        assert world.hub.reaches(seq)
        assert world.hub.changed_with(["job1"], seq, 10) == (["job1"] if known else None)
        assert (world.hub.before("job1", seq) is not None) == known


async def test_pages_that_resume_at_one_position_share_the_messages_of_what_they_missed(monkeypatch):
    world, calls = filled(300), Counter[str]()
    position = moved_on(world, 300, 2)
    counted(monkeypatch, encoding, "put", calls)
    pages = [await resumed(world, position) for _ in range(10)]
    await synced(*pages)
    for page in pages:
        assert puts(page) == [f"job{n}" for n in range(300)]
    assert calls["put"] == 300


async def test_a_step_of_a_resume_visits_a_bounded_number_of_jobs_though_none_match(monkeypatch):
    world = filled(1000, Limits(max_visited=100))
    position = moved_on(world, 1000, 2)
    visited = steps(monkeypatch, world)
    page = await resumed(world, position, FAILED)
    await synced(page)
    assert [m["type"] for m in page.messages[1:]] == ["synced", "status"]
    assert len(visited) >= 10
    assert max(visited) <= 2 * 100


async def test_a_client_that_missed_more_than_a_snapshot_costs_gets_a_snapshot():
    world = filled(30, Limits(max_missed=10))
    near, far = [await resumed(world, Resume(world.hub.epoch, world.hub.seq - missed)) for missed in (10, 11)]
    await synced(near, far)
    assert (len(puts(near)), listed(near), near.fold.resyncs) == (10, [], [])
    assert (len(listed(far)), far.fold.resyncs) == (30, ["gap"])
