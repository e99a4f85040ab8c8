"""Snapshots of many jobs for many subscribers: what they cost, and that none holds the loop for long."""

from __future__ import annotations

import tracemalloc
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import pytest

from correlator.gateway.fleet import RemoteHub
from correlator.model.published import PublishedJob
from correlator.pipeline.queries import JobQuery
from correlator.sinks.streaming.limits import DEFAULT, Limits
from correlator.sinks.streaming.messages import Resume
from correlator.sinks.streaming.sessions import SnapshotParts
from correlator.sinks.streaming.subscriptions import Filter, Orders
from tests.support.eventually import eventually
from tests.support.held import held
from tests.support.streams_harness import ALL, NOW, DaemonStreams, GatewayStreams, StreamClient, frame

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


async def resumed(world: DaemonStreams, position: Resume, which: Filter = ALL, *, client: Any = None) -> Any:
    """A client that resumes at a position."""
    client = client or StreamClient()
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


class Visits(JobQuery, frozen=True):
    """A filter that notes the jobs that it is asked about in `of`, whose last item is the step of now."""

    of: list[set[str]] = []  # noqa: RUF012 - a field of a struct

    def __hash__(self) -> int:
        return id(self.of)

    def matcher(self) -> Callable[[PublishedJob], bool]:
        matches = JobQuery(self.status).matcher()

        def visit(shown: PublishedJob) -> bool:
            self.of[-1].add(shown.job_id)
            return matches(shown)

        return visit


class Stepping(StreamClient):
    """A client that is asked before each step of its snapshot how much it has not read yet."""

    def __init__(self, steps: list[set[str]]) -> None:
        super().__init__()
        self.steps = steps

    def waiting(self) -> int:
        self.steps.append(set())
        return super().waiting()


class Noting(StreamClient):
    """A client that keeps the frames, which are one object for all clients that share them."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[bytes] = []

    def write(self, framed: bytes) -> None:
        self.frames.append(framed)
        super().write(framed)

    def shares(self, other: Noting, kind: bytes) -> list[bool]:
        """Whether each of its frames with messages of a kind is a frame of the other one."""
        identities = {*map(id, other.frames)}
        return [id(frame) in identities for frame in self.frames if b'"type":"%b"' % kind in frame]


async def test_pages_that_open_at_once_share_the_messages_of_their_snapshots():
    world, pages = filled(1000, Limits(snapshot_part=16_000)), [Noting() for _ in range(20)]
    for page in pages:
        await world.subscribe(client=page)
    await synced(*pages)
    assert all(len(listed(page)) == 1000 for page in pages)
    shared = [page.shares(pages[0], b"snapshot") for page in pages]
    assert min(map(len, shared)) > 10
    assert all(map(all, shared))


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


def test_messages_that_are_kept_for_other_pages_are_bounded_in_bytes():
    limits = Limits(snapshot_part=1000, kept_parts=5000)
    world = filled(300, limits)
    fanout = world.streams.fanout
    fanout.add(world.client)
    parts = SnapshotParts(world.hub, fanout.groups, limits)

    def kept(which: Filter) -> int:
        sub = fanout.subscribe(world.client, 1, which, None, None, [])
        while parts.pop_next(sub, frame, deque()).more:
            assert parts.size <= 5000
        return parts.size

    assert (most := kept(ALL)) > 3000
    assert kept(Filter(jobs=frozenset({"job1"}))) == most, "nobody else has the order of named jobs"


@pytest.mark.parametrize(("later", "shared"), [(0.1, True), (10.0, False)])
def test_messages_are_kept_for_other_pages_for_less_than_ten_seconds(loop, later, shared):
    world = DaemonStreams(clock=loop.time, runs=True)
    loop.create_task(world.streams.run())
    loop.run()
    for n in range(10):
        change(world, f"job{n}", n)
    pages = [Noting(), Noting()]
    for page in pages:
        loop.create_task(world.subscribe(client=page))
        loop.run(later)
    assert [any(page.shares(pages[0], b"snapshot")) for page in pages] == [True, shared]


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
    for n in range(10_000):
        orders.add(str(n))
    assert held(orders) < 10_000
    found = orders.todo(filled(3).hub.published.all(), 3)
    assert [found.pop_next() for _ in range(4)] == ["job0", "job1", "job2", None]


async def test_a_step_of_a_snapshot_visits_a_bounded_number_of_jobs_though_few_match():
    world, visited = filled(1000, Limits(max_visited=100)), [set[str]()]
    change(world, "rare", 5000, "failed")
    page = Stepping(visited)
    await world.subscribe(which=Filter(Visits(frozenset({"failed"}), of=visited)), client=page)
    await synced(page)
    assert listed(page) == ["rare"]
    assert sum(map(len, visited)) >= 1000
    assert max(map(len, visited)) <= 100
    assert [m["more"] for m in page.messages if m["type"] == "snapshot"] == [True, False]


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


async def test_pages_that_resume_at_one_position_share_the_messages_of_what_they_missed():
    world = filled(300)
    position = moved_on(world, 300, 2)
    pages = [await resumed(world, position, client=Noting()) for _ in range(10)]
    await synced(*pages)
    for page in pages:
        assert puts(page) == [f"job{n}" for n in range(300)]
        shared = page.shares(pages[0], b"put")
        assert shared
        assert all(shared)


async def test_a_step_of_a_resume_visits_a_bounded_number_of_jobs_though_none_match():
    world, visited = filled(1000, Limits(max_visited=100)), [set[str]()]
    position = moved_on(world, 1000, 2)
    none = Filter(Visits(frozenset({"failed"}), of=visited))
    page = await resumed(world, position, none, client=Stepping(visited))
    await synced(page)
    assert [m["type"] for m in page.messages[1:]] == ["synced", "status"]
    assert sum(map(len, visited)) >= 1000
    assert max(map(len, visited)) <= 100


async def test_a_client_that_missed_more_than_a_snapshot_costs_gets_a_snapshot():
    world = filled(30, Limits(max_missed=10))
    near, far = [await resumed(world, Resume(world.hub.epoch, world.hub.seq - missed)) for missed in (10, 11)]
    await synced(near, far)
    assert (len(puts(near)), listed(near), near.fold.resyncs) == (10, [], [])
    assert (len(listed(far)), far.fold.resyncs) == (30, ["gap"])
