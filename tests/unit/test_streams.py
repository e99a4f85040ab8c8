"""Streaming clients, one rule at a time: which messages they get, in which order, and when one is given up."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest

from correlator.errors import SourceUnavailable
from correlator.model.facts import Reading, Status
from correlator.model.published import JobView, PublishedJob
from correlator.model.replies import Resolved
from correlator.model.rows import JobRecord
from correlator.pipeline.queries import JobQuery
from correlator.pipeline.resume_ring import ResumeRing
from correlator.sinks.streaming.limits import Limits
from correlator.sinks.streaming.messages import Resume
from correlator.sinks.streaming.subscriptions import Filter
from tests.support.eventually import eventually
from tests.support.pipeline_harness import samples
from tests.support.streams_harness import RandomIndex, StreamClient, StreamsHarness, settle

NOW = 1_758_550_000_000_000
LIMITS = Limits()


async def test_a_job_is_sent_as_a_put_and_then_as_deltas():
    harness = StreamsHarness()
    await harness.subscribe()
    harness.job(job_type="failover")
    harness.job(job_type="cleanup")
    put, delta = harness.flush()[-2:]
    assert (put["type"], put["job"]["job_type"]) == ("put", "failover")
    assert (delta["type"], delta["base"], delta["rev"]) == ("delta", put["rev"], delta["seq"])
    assert delta["set"]["job_type"] == "cleanup"
    assert "owner" not in delta["set"]


async def test_two_subscriptions_share_one_message_and_one_that_gains_the_job_gets_a_put():
    harness = StreamsHarness()
    await harness.subscribe(1)
    await harness.subscribe(2, Filter(JobQuery(status=frozenset({"failed"}))))
    harness.job()
    harness.job(error_message="x")
    harness.job(status="failed", error_message="x")
    put, delta, whole = [m for m in harness.flush() if m["type"] in ("put", "delta")]
    assert (put["sub"], delta["sub"], sorted(whole["sub"])) == ([1], [1], [1, 2])
    assert (put["type"], delta["type"], whole["type"]) == ("put", "delta", "put")


async def test_a_job_that_leaves_a_filter_is_put_once_more_and_deleted():
    harness = StreamsHarness()
    await harness.subscribe(1, Filter(JobQuery(status=frozenset({"running"}))))
    harness.job()
    harness.job(status="completed")
    assert [(m["type"], m.get("reason")) for m in harness.flush()[-3:]] == [
        ("put", None),
        ("put", None),
        ("delete", "filter"),
    ]
    assert harness.client.fold.jobs[1] == {}


async def test_each_log_line_is_sent_once_to_the_subscriptions_of_its_level():
    harness = StreamsHarness()
    await harness.subscribe(1, level="WARN")
    await harness.subscribe(2, level="DEBUG")
    await harness.subscribe(3)
    harness.job()
    harness.publish(harness.row(1, "INFO"), harness.row(2, "ERROR"))
    lines = [m for m in harness.flush() if m["type"] == "log"]
    assert [(line["event_id"], line["sub"]) for line in lines] == [(1, [2]), (2, [1, 2])]


async def test_the_first_lines_of_a_job_are_sent_when_its_tables_have_been_read():
    harness = StreamsHarness()
    await harness.subscribe(1, level="DEBUG")
    harness.publish(harness.row(1))
    assert [m for m in harness.flush() if m["type"] == "log"] == []
    harness.job()
    harness.publish(harness.row(2))
    messages = harness.flush()
    assert [m["event_id"] for m in messages if m["type"] == "log"] == [1, 2]
    assert messages[0]["type"] == "put"


async def test_the_line_by_which_a_job_leaves_the_filter_is_sent():
    harness = StreamsHarness()
    await harness.subscribe(1, Filter(JobQuery(status=frozenset({"running"}))), level="INFO")
    harness.job()
    record = JobRecord("j", status="completed", started_at=NOW)
    harness.publish(harness.row(1), Reading("j", harness.world.index.advance_clock(), record, ()))
    assert [m["event_id"] for m in harness.flush() if m["type"] == "log"] == [1]


async def test_a_frozen_client_gets_the_newest_state_bounded_lines_and_the_number_dropped():
    harness = StreamsHarness()
    counted = samples()["correlator_readers_dropped_lines_total", ()]
    await harness.subscribe(1, level="INFO")
    harness.job()
    harness.flush()
    harness.client.frozen = True
    rows = 3000
    for n in range(rows):
        harness.publish(harness.row(n, message=f"{n} " + "x" * 1000))
        if n % 100 == 0:
            harness.job(error_message=str(n))
            harness.world.sweep()
    held = harness.client.waiting()
    assert held < LIMITS.lagging_over + 300_000
    behind = harness.world.streams.fanout._backlogs[harness.client]
    assert behind.lines.size <= LIMITS.line_buffer
    harness.client.thaw()
    await settle(harness.world, [harness.client])
    assert harness.client.fold.jobs[1]["j"]["error"] == "2900"
    assert harness.client.fold.dropped > 0
    assert samples()["correlator_readers_dropped_lines_total", ()] - counted == harness.client.fold.dropped
    assert len(harness.client.fold.lines) + harness.client.fold.dropped == rows
    assert max(harness.client.fold.lines) == rows - 1
    types = [m["type"] for m in harness.client.messages]
    assert types.index("put", 5) < len(types) - 1


@pytest.mark.parametrize(
    ("size", "after"),
    [(LIMITS.lagging_over, LIMITS.too_slow_after), (LIMITS.large_buffer, LIMITS.too_slow_with_large_buffer_after)],
)
async def test_a_client_that_reads_nothing_is_given_up_after_the_deadline(size, after):
    harness = StreamsHarness()
    clock = [0.0]
    harness.world.streams.fanout._clock = lambda: clock[0]
    await harness.subscribe()
    harness.client.frozen = True
    harness.job(error_message="x" * (size + 1))
    given_up = []
    for at in (0.1, after, after + 0.2):
        clock[0] = at
        harness.world.sweep()
        given_up.append(harness.client.given_up)
    assert given_up == [False, False, True]
    harness.job(error_message="y")
    await harness.world.streams.subscribe(harness.client, 2, Filter(), None)
    assert not harness.world.streams.fanout.has(harness.client)


async def test_a_lagging_client_gets_no_position_that_it_has_not_reached():
    harness = StreamsHarness()
    await harness.subscribe()
    harness.job("a", error_message="x" * (LIMITS.lagging_over + 1))
    harness.flush()
    harness.client.frozen = True
    harness.job("b", error_message="x" * (LIMITS.lagging_over + 1))
    harness.world.streams.fanout.flush()
    before = harness.world.hub.seq
    harness.job("c")
    harness.job("b", error_message="y")
    assert harness.world.streams.fanout.position(harness.client) == before
    harness.client.frozen = False
    harness.world.streams._bookmark()
    assert "bookmark" not in [m["type"] for m in harness.client.messages]
    harness.client.read()
    messages = harness.flush()
    assert [(m["job_id"], m["seq"]) for m in messages if m["type"] == "put"][-2:] == [
        ("c", before + 1),
        ("b", before + 2),
    ]


async def test_log_lines_are_buffered_for_a_bounded_number_of_clients_and_counted_for_others():
    harness = StreamsHarness(limits=Limits(max_line_buffers=1))
    other = StreamClient()
    harness.world.connect(other)
    harness.job()
    await harness.subscribe(level="INFO")
    await harness.world.subscribe(other, 1, Filter(), "INFO")
    clients = [harness.client, other]
    for client in clients:
        client.frozen = True
    harness.publish(harness.row(1, message="x" * (LIMITS.lagging_over + 1)))
    for n in range(2, 12):
        harness.publish(harness.row(n))
    for client in clients:
        client.thaw()
    await settle(harness.world, clients)
    assert [len(client.fold.lines) for client in clients] == [11, 1]
    assert [client.fold.dropped for client in clients] == [0, 10]


async def test_a_client_with_more_pending_states_than_its_share_is_given_up():
    harness = StreamsHarness(limits=Limits(max_waiting_states_of_all=10))
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
    assert not harness.world.streams.fanout.has(harness.client)


async def test_the_ids_of_all_filters_together_are_bounded_and_released_with_the_filter():
    harness = StreamsHarness(limits=Limits(max_ids=3))
    of = harness.world.streams.fanout.groups
    two, other = (Filter(jobs=frozenset(names)) for names in ("ab", "cd"))
    await harness.subscribe(1, two)
    assert [of.has_room(f) for f in (two, other, Filter())] == [True, False, True]
    harness.world.streams.unsubscribe(harness.client, 1)
    assert of.has_room(other)


async def test_a_large_batch_makes_no_client_a_slow_one():
    harness = StreamsHarness()
    await harness.subscribe(1, level="DEBUG")
    harness.job()
    harness.flush()
    harness.client.frozen = True
    harness.publish(*(harness.row(n, message="x" * 60_000) for n in range(120)))
    harness.world.sweep()
    assert harness.client.waiting() < LIMITS.lagging_over + 61_000
    assert harness.world.streams.fanout._backlogs[harness.client].lines.size <= LIMITS.line_buffer
    harness.client.thaw()
    await settle(harness.world, [harness.client])
    assert len(harness.client.fold.lines) + harness.client.fold.dropped == 120


async def test_clients_with_equal_messages_share_one_frame(monkeypatch):
    world = RandomIndex(0)
    clients = [StreamClient() for _ in range(3)]
    frames: list[int] = []
    for client in clients:
        world.connect(client)
        await world.subscribe(client, 1, Filter(), None)
        monkeypatch.setattr(client, "write", lambda framed: frames.append(id(framed)))
    world.change()
    world.change()
    world.streams.fanout.flush()
    assert len(frames) in (3, 6)
    assert len(set(frames[-3:])) == 1


async def test_messages_that_come_while_writing_is_slow_are_written_together(monkeypatch):
    harness = StreamsHarness()
    await harness.subscribe()
    clock = [0.0]
    written: list[bytes] = []

    def slowly(framed: bytes) -> None:
        written.append(framed)
        clock[0] += 0.005

    monkeypatch.setattr(harness.world.streams.fanout._outboxes, "_clock", lambda: clock[0])
    monkeypatch.setattr(harness.client, "write", slowly)
    harness.job()
    for n in range(5):
        harness.job(error_message=str(n))
    assert len(written) == 1
    await eventually(lambda: len(written) > 1)
    assert [m["rev"] for m in json.loads(written[1])] == [2, 3, 4, 5, 6]


async def test_messages_that_come_while_writing_is_fast_are_written_at_once(monkeypatch):
    harness = StreamsHarness()
    await harness.subscribe()
    written: list[bytes] = []
    monkeypatch.setattr(harness.world.streams.fanout._outboxes, "_clock", lambda: 0.0)
    monkeypatch.setattr(harness.client, "write", written.append)
    for n in range(3):
        harness.job(error_message=str(n))
        assert len(written) == n + 1


async def test_a_position_before_the_resume_ring_or_after_the_stream_is_a_gap():
    harness = StreamsHarness(ResumeRing(3))
    for n in range(10):
        harness.job(error_message=str(n))
    hub = harness.world.hub
    assert [hub.reaches(seq) for seq in (6, 7, 10, 11)] == [False, True, True, False]
    assert list(hub.changed()) == [("j", 10)]
    await harness.world.subscribe(harness.client, 1, Filter(), None, Resume(hub.epoch, 6))
    assert [(m["type"], m.get("reason")) for m in harness.flush()[1:2]] == [("resync", "gap")]


async def test_no_client_gets_a_position_before_its_snapshot_is_complete(monkeypatch):
    harness = StreamsHarness(limits=Limits(snapshot_part=10))
    for n in range(5):
        harness.job(f"j{n}")
    calls: list[str] = []
    monkeypatch.setattr(harness.client, "synced", lambda: calls.append("synced"))
    await harness.subscribe()
    harness.job("j0", error_message="meanwhile")
    harness.job("new")
    harness.flush()
    assert calls == []
    await settle(harness.world, [harness.client])
    assert calls == ["synced"]


async def test_a_step_of_a_sweep_sends_no_more_than_one_client_may_get_at_once():
    harness = StreamsHarness()
    clients = [harness.client, *(StreamClient() for _ in range(9))]
    for client in clients:
        if client is not harness.client:
            harness.world.connect(client)
        await harness.world.subscribe(client, 1, Filter(), None)
        client.frozen = True
    for n in range(200):
        harness.job(job_id=f"j{n}", error_message="x" * 7000)
    assert harness.world.streams.fanout.lagging == 10
    for client in clients:
        client.thaw()
        client.messages.clear()
    got: list[list[int]] = []
    for _ in harness.world.streams.fanout.sweep():
        got.append([len(json.dumps(client.messages)) if client.messages else 0 for client in clients])
        for client in clients:
            client.messages.clear()
        if len(got) == 3:
            harness.world.streams.remove(clients[-1])  # while the sweep waits
    assert [[n > 0 for n in step].index(True) for step in got[:9]] == list(range(9))
    assert [sum(map(bool, step)) for step in got] == [*[1] * 9, 0]
    most = LIMITS.backlog_parts_at_once * LIMITS.backlog_part
    assert [sum(step) for step in got[:9]] == pytest.approx([most] * 9, rel=0.5)


async def test_a_client_that_was_removed_is_not_given_up_again():
    harness = StreamsHarness()
    await harness.subscribe()
    harness.client.frozen = True
    harness.job(error_message="x" * (LIMITS.large_buffer + 1))
    harness.world.streams.remove(harness.client)
    harness.client.write(b"x" * (LIMITS.large_buffer + 1))
    harness.world.streams.fanout.check(harness.client)
    assert harness.world.streams.fanout.lagging == 0


async def test_ids_that_the_database_did_not_answer_in_time_are_queried_again(monkeypatch):
    harness = StreamsHarness(limits=Limits(find_within=0.05))
    old = PublishedJob(JobView("old", Status.FAILED, external_ids=("e-old",)), 0, NOW)
    away = [True]

    async def find(name: str) -> tuple[PublishedJob, Resolved] | None:
        if away.pop() if away else False:
            raise SourceUnavailable("away")
        await asyncio.sleep(0.04)
        return (old, Resolved("old", "external_id", ())) if name == "e-old" else None

    monkeypatch.setattr(harness.world.hub, "find", find)
    names = frozenset({"a", "b", "e-old"})
    await harness.subscribe(1, Filter(jobs=names))
    assert [m["unknown"] for m in harness.flush() if m["type"] == "synced"] == [["a", "b", "e-old"]]
    await eventually(lambda: [m["job_id"] for m in harness.client.messages if m["type"] == "put"] == ["old"])


async def test_a_client_of_another_epoch_gets_a_resync():
    harness = StreamsHarness()
    harness.job()
    await harness.world.subscribe(harness.client, 1, Filter(), None, Resume("other", 1))
    assert [(m["type"], m.get("reason")) for m in harness.flush()[1:]] == [
        ("resync", "epoch"),
        ("snapshot", None),
        ("synced", None),
        ("status", None),
    ]


async def test_clients_that_subscribe_at_once_are_served_one_in_each_round_of_the_loop(monkeypatch):
    world = RandomIndex(0)
    for _ in range(50):
        world.change()
    clients = [StreamClient() for _ in range(30)]
    rounds, served = 0, Counter[int]()

    async def count() -> None:
        nonlocal rounds
        while True:
            rounds += 1
            await asyncio.sleep(0)

    for client in clients:
        world.connect(client)
        monkeypatch.setattr(client, "write", lambda framed: served.update([rounds] if b"synced" in framed else []))
    counting = asyncio.create_task(count())
    await asyncio.gather(*(world.subscribe(client, 1, world.filter(), None) for client in clients))
    counting.cancel()
    assert served.total() == 30
    assert max(served.values()) == 1
