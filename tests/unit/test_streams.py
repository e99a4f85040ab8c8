"""Streaming clients, one rule at a time: which messages they get, in which order, and when one is given up."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from correlator.errors import SourceUnavailable
from correlator.gateway.fleet import RemoteHub
from correlator.jobs.index import Index
from correlator.model.facts import Kind
from correlator.model.rows import LegacyRecord
from correlator.ops.event_loop import STUCK_AFTER, Heartbeats
from correlator.pipeline.hub import wall_clock
from correlator.pipeline.pipeline import LocalHub
from correlator.pipeline.queries import Found, JobQuery
from correlator.sinks.http.access import Access
from correlator.sinks.http.websocket import Websockets
from correlator.sinks.streaming.limits import Limits
from correlator.sinks.streaming.messages import Message
from correlator.sinks.streaming.sessions import LAGGING_SWEEP_EVERY, SWEEP_EVERY, Streams
from correlator.sinks.streaming.subscriptions import Filter
from tests.support.answering_collectors import ArchiveInMemory, reading
from tests.support.eventually import eventually
from tests.support.pipeline_harness import samples
from tests.support.streams_harness import NOW, DaemonStreams, GatewayStreams, StreamClient, frame, settle

LIMITS = Limits()
RUNNING, FAILED = (Filter(JobQuery(status=frozenset({status}))) for status in ("running", "failed"))


async def test_a_job_that_leaves_a_filter_is_put_once_more_with_its_line_and_deleted():
    harness = DaemonStreams()
    await harness.subscribe(1, RUNNING, level="INFO")
    harness.job()
    harness.publish(harness.row(1), harness.read(status="completed"))
    found = [(m["type"], m.get("reason")) for m in harness.flush() if m["type"] != "log"][-3:]
    assert found == [("put", None), ("put", None), ("delete", "filter")]
    assert harness.client.fold.jobs[1] == {}
    assert [*harness.client.fold.lines] == [1]


async def test_a_change_is_one_message_a_put_for_clients_without_the_job_and_a_patch_for_others():
    harness = DaemonStreams()
    await harness.subscribe(1)
    await harness.subscribe(2, FAILED)
    harness.job(job_type="failover")
    harness.job(error_message="x")
    harness.job(status="failed", error_message="x")
    put, delta, whole = [m for m in harness.flush() if m["type"] in ("put", "delta")]
    assert (put["sub"], delta["sub"], sorted(whole["sub"])) == ([1], [1], [1, 2])
    assert (put["type"], delta["type"], whole["type"]) == ("put", "delta", "put")
    assert (delta["base"], delta["rev"], delta["set"]["error"]) == (put["rev"], delta["seq"], "x")
    assert "owner" not in delta["set"]


async def test_each_log_line_goes_once_to_the_subscriptions_of_its_level_after_its_job():
    harness = DaemonStreams()
    await harness.subscribe(1, level="WARN")
    await harness.subscribe(2, level="DEBUG")
    await harness.subscribe(3)
    harness.publish(harness.row(1, "INFO"))
    assert [m for m in harness.flush() if m["type"] == "log"] == [], "its tables have not been read"
    harness.job()
    harness.publish(harness.row(2, "ERROR"))
    put, *lines = harness.flush()
    assert put["type"] == "put"
    assert [(line["event_id"], line["sub"]) for line in lines if line["type"] == "log"] == [(1, [2]), (2, [1, 2])]


@pytest.mark.parametrize(("batches", "rows", "size"), [(3000, 1, 1000), (1, 120, 60_000)], ids=["time", "one batch"])
async def test_a_frozen_client_gets_the_newest_state_bounded_lines_and_the_number_dropped(batches, rows, size):
    harness = DaemonStreams()
    counted = samples()["correlator_readers_dropped_lines_total", ()]
    await harness.subscribe(1, level="INFO")
    harness.job()
    harness.client.frozen = True
    for n in range(batches):
        harness.publish(*(harness.row(n * rows + i, message="x" * size) for i in range(rows)))
        if n % 100 == 0:
            harness.job(error_message=str(n))
            harness.sweep()
    assert harness.client.waiting() < LIMITS.lagging_over + 300_000
    harness.client.thaw()
    await settle(harness)
    fold = harness.client.fold
    assert fold.jobs[1]["j"]["error"] == str((batches - 1) // 100 * 100)
    assert samples()["correlator_readers_dropped_lines_total", ()] - counted == fold.dropped > 0
    assert len(fold.lines) + fold.dropped == batches * rows
    assert len(fold.lines) * size < LIMITS.lagging_over + LIMITS.line_buffer + 300_000, "what it may have waiting"
    assert max(fold.lines) == batches * rows - 1
    types = [m["type"] for m in harness.client.messages]
    assert types.index("put", types.index("synced") + 2) < len(types) - 1, "states do not wait for all lines"


@pytest.mark.parametrize(
    ("size", "after"),
    [(LIMITS.lagging_over, LIMITS.too_slow_after), (LIMITS.large_buffer, LIMITS.too_slow_with_large_buffer_after)],
)
async def test_a_client_that_reads_nothing_is_given_up_after_the_deadline(size, after):
    clock = [0.0]
    harness = DaemonStreams(clock=lambda: clock[0])
    await harness.subscribe()
    harness.client.frozen = True
    harness.job(error_message="x" * (size + 1))
    given_up = []
    for at in (0.1, after, after + 0.2):
        clock[0] = at
        harness.sweep()
        given_up.append(harness.client.given_up)
    assert given_up == [False, False, True]
    harness.job(error_message="y")
    await harness.streams.subscribe(harness.client, 2, Filter(), None)
    assert not harness.streams.fanout.has(harness.client)


async def test_a_lagging_client_gets_no_position_that_it_has_not_reached():
    harness = DaemonStreams()
    await harness.subscribe()
    harness.job("a", error_message="x" * (LIMITS.lagging_over + 1))
    harness.flush()
    harness.client.frozen = True
    harness.job("b", error_message="x" * (LIMITS.lagging_over + 1))
    harness.streams.fanout.flush()
    before = harness.hub.seq
    harness.job("c")
    harness.job("b", error_message="y")
    assert harness.streams.fanout.position(harness.client) == before
    harness.client.thaw()
    messages = harness.flush()
    assert [(m["job_id"], m["seq"]) for m in messages if m["type"] == "put"][-2:] == [
        ("c", before + 1),
        ("b", before + 2),
    ]


async def test_a_document_that_is_asked_for_has_the_position_of_its_client():
    """One beyond it would lose a change at the next resume."""
    harness = DaemonStreams()
    await harness.subscribe()
    for error in ("x", "y"):
        harness.job(error_message=error)
        harness.flush()
        assert await harness.streams.put(harness.client, "j", within=60.0)
        assert [(m["type"], m["seq"]) for m in harness.flush()] == [("put", harness.hub.seq)]


async def test_log_lines_are_buffered_for_a_bounded_number_of_clients_and_counted_for_others():
    harness = DaemonStreams(limits=Limits(max_line_buffers=1))
    other = StreamClient()
    harness.job()
    await harness.subscribe(level="INFO")
    await harness.subscribe(level="INFO", client=other)
    clients = [harness.client, other]
    for client in clients:
        client.frozen = True
    harness.publish(harness.row(1, message="x" * (LIMITS.lagging_over + 1)))
    for n in range(2, 12):
        harness.publish(harness.row(n))
    for client in clients:
        client.thaw()
    await settle(harness, clients)
    assert [len(client.fold.lines) for client in clients] == [11, 1]
    assert [client.fold.dropped for client in clients] == [0, 10]


@pytest.mark.parametrize("lags", [False, True])
async def test_lines_that_were_lost_on_their_way_count_for_subscriptions_to_their_appliance(lags):
    harness = GatewayStreams()
    harness.job()
    for sub, instances in enumerate((set(), {"dc1"}, {"dc1", "dc2"}, {"dc2"}), 1):
        await harness.subscribe(sub, Filter(JobQuery(instance=frozenset(instances))), "INFO")
    await harness.subscribe(5, Filter(JobQuery(instance=frozenset({"dc1"}))))
    await settle(harness)
    harness.flush()
    if lags:
        harness.client.frozen = True
        harness.publish(harness.row(1, message="x" * (LIMITS.lagging_over + 1)))
        harness.publish(harness.row(2))
    assert isinstance(harness.hub, RemoteHub)
    harness.hub.publish(dropped=7, dropped_by="dc2")
    harness.client.thaw()
    await settle(harness)
    assert [m["sub"] for m in harness.flush() if m.get("dropped") == 7] == [[1, 3, 4]]


async def test_a_client_with_more_pending_states_than_its_share_is_given_up():
    harness = DaemonStreams(limits=Limits(max_waiting_states_of_all=10))
    await harness.subscribe()
    harness.client.frozen = True
    harness.job("large", error_message="x" * (LIMITS.lagging_over + 1))
    for n in range(10):
        harness.job(f"j{n}")
    harness.flush()
    enough = harness.client.given_up
    harness.job("one more")
    harness.flush()
    assert (enough, harness.client.given_up) == (False, True)
    assert not harness.streams.fanout.has(harness.client)


async def test_the_ids_of_all_filters_together_are_bounded_and_released_with_the_filter():
    harness = DaemonStreams(limits=Limits(max_ids=3))
    of = harness.streams.fanout.groups
    two, other = (Filter(jobs=frozenset(names)) for names in ("ab", "cd"))
    await harness.subscribe(1, two)
    assert [of.has_room(f) for f in (two, other, Filter())] == [True, False, True]
    harness.streams.fanout.unsubscribe(harness.client, 1)
    assert of.has_room(other)


async def test_clients_with_equal_subscriptions_share_the_frames_of_changes_and_events():
    frames: list[bytes] = []

    class Noting(StreamClient):
        def write(self, framed: bytes) -> None:
            frames.append(framed)

    world, clients = DaemonStreams(), [Noting() for _ in range(4)]

    def other(messages: Sequence[Message], /) -> bytes:
        return frame(messages) + b"\n"

    for n, client in enumerate(clients):
        client.framing = (frame, other)[n % 2]
        await world.subscribe(client=client)
    for shared in (world.job, lambda: world.publish(events=[(Kind.JOB_LATE, "j")])):
        frames.clear()
        shared()
        world.streams.fanout.flush()
        assert (len(frames), len({*map(id, frames)})) == (4, 2)


@pytest.mark.parametrize(("takes", "revisions"), [(0.0, [[1], [2], [3], [4]]), (0.005, [[1], [2, 3, 4]])])
async def test_messages_that_come_while_writing_is_slow_are_written_together(takes, revisions):
    clock, written = [0.0], list[list[int]]()

    class Slow(StreamClient):
        def write(self, framed: bytes) -> None:
            written.append([m["rev"] for m in json.loads(framed) if "rev" in m])
            clock[0] += takes

    harness = DaemonStreams(clock=lambda: clock[0])
    await harness.subscribe(client=Slow())
    written.clear()
    clock[0] += 1.0
    for n in range(4):
        harness.job(error_message=str(n))
    assert written == (revisions if not takes else revisions[:1]), "at once, or after a rest"
    await eventually(lambda: written == revisions)


async def test_a_step_of_a_sweep_sends_no_more_than_one_client_may_get_at_once():
    harness = DaemonStreams()
    clients = [harness.client, *(StreamClient() for _ in range(9))]
    for client in clients:
        await harness.subscribe(client=client)
        client.frozen = True
    for n in range(200):
        harness.job(job_id=f"j{n}", error_message="x" * 7000)
    assert harness.streams.fanout.lagging == 10
    for client in clients:
        client.thaw()
        client.messages.clear()
    got: list[list[int]] = []
    for _ in harness.streams.fanout.sweep():
        got.append([len(json.dumps(client.messages)) if client.messages else 0 for client in clients])
        for client in clients:
            client.messages.clear()
        if len(got) == 3:
            harness.streams.remove(clients[-1])  # while the sweep waits
    assert [[n > 0 for n in step].index(True) for step in got[:9]] == list(range(9))
    assert [sum(map(bool, step)) for step in got] == [*[1] * 9, 0]
    most = LIMITS.backlog_parts_at_once * LIMITS.backlog_part
    assert [sum(step) for step in got[:9]] == pytest.approx([most] * 9, rel=0.5)


async def test_a_client_that_was_removed_is_not_given_up_again():
    harness = DaemonStreams()
    await harness.subscribe()
    harness.client.frozen = True
    harness.job(error_message="x" * (LIMITS.large_buffer + 1))
    harness.streams.remove(harness.client)
    harness.client.write(b"x" * (LIMITS.large_buffer + 1))
    harness.streams.fanout.check(harness.client)
    assert harness.streams.fanout.lagging == 0


async def test_ids_that_the_database_did_not_answer_in_time_are_queried_again():
    class Slow(ArchiveInMemory):
        async def find(self, name: str, at: Any) -> Found | None:
            if (away := self.error) is not None:
                self.error = None
                raise away
            await asyncio.sleep(0.04)
            return await super().find(name, at)

    archive = Slow([reading("old", 0, external_job_id="e-old")])
    archive.error = SourceUnavailable("away")
    harness = DaemonStreams(limits=Limits(find_within=0.05), archive=archive)
    names = frozenset({"a", "b", "e-old"})
    await harness.subscribe(1, Filter(jobs=names))
    assert [m["unknown"] for m in harness.flush() if m["type"] == "synced"] == [["a", "b", "e-old"]]
    await eventually(lambda: [m["job_id"] for m in harness.client.messages if m["type"] == "put"] == ["old"])


async def test_a_new_legacy_row_that_only_the_database_has_waits_until_memory_knows_whose_it_is():
    archive = ArchiveInMemory()
    archive.legacy["e1"] = LegacyRecord(1, "e1", status="running", started_at=wall_clock())
    archive.legacy["e2"] = LegacyRecord(2, "e2", status="failed", started_at=1)
    harness = DaemonStreams(archive=archive)
    await harness.subscribe(1, Filter(jobs=frozenset({"e1", "e2"})))
    assert [m["unknown"] for m in harness.flush() if m["type"] == "synced"] == [["e1"]]
    harness.job("j", external_job_id="e1")
    harness.flush()
    assert harness.client.fold.jobs[1].keys() == {"j", "e2"}


async def test_clients_that_subscribe_at_once_are_served_one_in_each_round_of_the_loop():
    rounds, served = 0, Counter[int]()

    class Noting(StreamClient):
        def write(self, framed: bytes) -> None:
            served.update([rounds] if b"synced" in framed else [])

    world = DaemonStreams()
    for _ in range(50):
        world.change()
    clients = [Noting() for _ in range(30)]

    async def count() -> None:
        nonlocal rounds
        while True:
            rounds += 1
            await asyncio.sleep(0)

    for client in clients:
        world.connect(client)
    counting = asyncio.create_task(count())
    await asyncio.gather(*(world.subscribe(1, world.filter(), client=client) for client in clients))
    counting.cancel()
    assert served.total() == 30
    assert max(served.values()) == 1


async def test_an_event_is_sent_once_to_the_subscriptions_that_have_its_job_and_no_other_kind_is():
    harness = DaemonStreams()
    await harness.subscribe(1)
    await harness.subscribe(2, FAILED)
    await harness.subscribe(3, Filter(jobs=frozenset({"e", "j"})))
    await harness.subscribe(4, Filter(jobs=frozenset({"k"})))
    harness.job(external_job_id="e")
    harness.job("k")
    harness.flush()
    for kind, job_id in ((Kind.JOB_LATE, "j"), (Kind.JOB_OVERDUE, "k"), (Kind.JOB_LATE, "nobody")):
        harness.publish(events=[(kind, job_id)])
    harness.publish(events=[(kind, "j") for kind in sorted(set(Kind) - {Kind.JOB_LATE, Kind.JOB_OVERDUE})])
    found = [(m["type"], m["kind"], m["job_id"], m["sub"]) for m in harness.flush()]
    assert found == [("event", "job.late", "j", [1, 3]), ("event", "job.overdue", "k", [1, 4])]


async def test_an_event_follows_the_changes_of_its_batch():
    harness = DaemonStreams()
    await harness.subscribe(1, RUNNING)
    harness.publish(harness.read(), events=[(Kind.JOB_LATE, "j")])
    put, late = harness.flush()[-2:]
    assert (put["type"], late["type"], late["seq"]) == ("put", "event", put["seq"])
    assert harness.client.fold.position == (harness.hub.epoch, late["seq"])
    harness.publish(harness.read(status="completed"), events=[(Kind.JOB_LATE, "j")])
    assert [m["type"] for m in harness.flush()] == ["put", "delete"]


async def test_a_client_that_lags_gets_the_document_without_the_event():
    harness = DaemonStreams()
    await harness.subscribe()
    harness.job()
    harness.client.frozen = True
    harness.job(error_message="x" * (LIMITS.lagging_over + 1))
    harness.flush()
    for n in range(100):
        harness.publish(harness.read(error_message=str(n)), events=[(Kind.JOB_LATE, "j")])
    assert harness.streams.fanout.lags(harness.client)
    harness.client.thaw()
    await settle(harness)
    assert harness.client.fold.events == []
    assert harness.client.fold.jobs[1]["j"]["error"] == "99"
    harness.publish(events=[(Kind.JOB_OVERDUE, "j")])
    assert [m["kind"] for m in harness.flush() if m["type"] == "event"] == ["job.overdue"]


async def test_an_event_is_not_sent_to_a_snapshot_that_has_still_to_send_its_job():
    harness = DaemonStreams(limits=Limits(max_snapshot_part=1))
    harness.job("older")
    harness.job("newer", started_at=NOW + 1)
    await harness.subscribe()
    for job_id in ("older", "newer"):
        harness.publish(events=[(Kind.JOB_LATE, job_id)])
    await settle(harness)
    assert [m["job_id"] for m in harness.client.fold.events] == ["newer"]
    assert set(harness.client.fold.jobs[1]) == {"older", "newer"}


# -- A listener without clients rests: an appliance that somebody once asked a gateway for costs nothing for ever


def test_streams_without_clients_rest_and_wake_at_once_for_the_first_and_often_while_it_lags(loop):
    streams = Streams(LocalHub(Index()), clock=loop.time)
    running = loop.create_task(streams.run())

    def wakes(seconds: float) -> int:
        before = loop.wakes
        loop.run(seconds)
        return int(loop.wakes - before)

    assert wakes(100.0) <= 13
    client = StreamClient()
    streams.add(client)
    assert wakes(SWEEP_EVERY) == 1
    assert 7 <= wakes(2.0) <= 9
    client.frozen = True
    client.write(b"x" * (LIMITS.lagging_over + 1))
    loop.run(SWEEP_EVERY)
    assert wakes(2.0) >= 2.0 / LAGGING_SWEEP_EVERY - 2
    streams.remove(client)
    loop.run(1.0)
    assert wakes(100.0) <= 13
    assert not running.done()


def test_every_step_of_a_long_sweep_is_a_sign_of_life(loop):
    clock, stuck = [0.0], list[dict[str, float]]()

    class Beating(LocalHub):
        def __init__(self) -> None:
            super().__init__(Index())
            self.live = Heartbeats(lambda: clock[0])

    class Slow(StreamClient):
        def waiting(self) -> int:
            clock[0] += 1.0
            stuck.append(hub.live.stuck())
            return 0

    hub = Beating()
    streams = Streams(hub, Limits(swept_at_once=1), clock=loop.time)
    loop.create_task(streams.run())
    for _ in range(2 * int(STUCK_AFTER)):
        streams.add(Slow())
    loop.run(SWEEP_EVERY)
    assert clock[0] >= 2 * STUCK_AFTER
    assert [one for one in stuck if one] == []


@pytest.fixture
def running(loop):
    """Streams that run in virtual time, with one subscription of all jobs."""
    world = DaemonStreams(clock=loop.time, runs=True)
    loop.create_task(world.streams.run())
    loop.run()
    loop.create_task(world.subscribe())
    loop.run(0.1)
    return world


def test_an_idle_client_gets_few_bookmarks_and_none_later_than_ten_seconds_after_the_last(loop, running):
    gaps, before, began = list[float](), 0, loop.time()
    for _ in range(1000):
        loop.run(0.1)
        found = [m["type"] for m in running.client.messages].count("bookmark")
        if found > before:
            gaps.append(loop.time() - began)
            before, began = found, loop.time()
    assert min(gaps) > 5.0
    assert max(gaps) <= 10.0


def test_a_lagging_client_gets_no_bookmark_before_the_changes_that_it_covers(loop, running):
    running.client.frozen = True
    for job_id in "ab":
        running.job(job_id, error_message="x" * (LIMITS.lagging_over + 1))
    loop.run(30.0)
    running.job("c")
    running.client.thaw()
    assert "bookmark" not in [m["type"] for m in running.client.messages]
    loop.run(10.0)
    assert running.client.fold.jobs[1].keys() == {*"abc"}
    assert [m["seq"] for m in running.client.messages if m["type"] == "bookmark"] == [running.hub.seq]


def test_websockets_without_connections_wake_every_five_seconds(loop):
    hub = LocalHub(Index())

    async def serve() -> None:
        await Websockets(hub, Access(listen_host="127.0.0.1", clock=loop.time), Streams(hub)).run()

    loop.create_task(serve())
    loop.run(100.0)
    assert 19 <= loop.wakes <= 21
