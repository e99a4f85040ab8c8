"""Events of streaming clients: a job that becomes late or overdue, without a log row of its own."""

from __future__ import annotations

from typing import Any

import pytest

from correlator.model.facts import Kind, Reading
from correlator.model.rows import JobRecord
from correlator.pipeline.queries import JobQuery
from correlator.sinks.streaming.limits import Limits
from correlator.sinks.streaming.subscriptions import Filter
from tests.support.streams_harness import NOW, StreamClient, StreamsHarness, settle

LIMITS = Limits()


def reading(harness: StreamsHarness, status: str = "running", **more: Any) -> Reading:
    return Reading("j", harness.world.index.advance_clock(), JobRecord("j", status=status, started_at=NOW, **more), ())


async def test_an_event_is_sent_once_to_the_subscriptions_that_have_its_job():
    harness = StreamsHarness()
    await harness.subscribe(1)
    await harness.subscribe(2, Filter(JobQuery(status=frozenset({"failed"}))))
    await harness.subscribe(3, Filter(jobs=frozenset({"e", "j"})))
    await harness.subscribe(4, Filter(jobs=frozenset({"k"})))
    harness.job(external_job_id="e")
    harness.job("k")
    harness.flush()
    harness.event(Kind.JOB_LATE)
    harness.event(Kind.JOB_OVERDUE, job_id="k")
    harness.event(Kind.JOB_LATE, job_id="nobody")
    late, overdue = harness.flush()
    seq = harness.world.hub.seq
    assert (late["type"], late["kind"], late["job_id"], late["sub"], late["seq"]) == (
        "event", "job.late", "j", [1, 3], seq,
    )  # fmt: skip
    assert [late[name] for name in ("event_id", "step_id", "step_name", "error")] == [None] * 4
    assert (overdue["kind"], overdue["sub"]) == ("job.overdue", [1, 4])


@pytest.mark.parametrize("kind", sorted(set(Kind) - {Kind.JOB_LATE, Kind.JOB_OVERDUE}))
async def test_no_other_kind_of_event_is_sent(kind):
    harness = StreamsHarness()
    await harness.subscribe()
    harness.job()
    harness.flush()
    harness.event(kind)
    assert harness.flush() == []


async def test_an_event_follows_the_changes_of_its_batch():
    harness = StreamsHarness()
    await harness.subscribe(1, Filter(JobQuery(status=frozenset({"running"}))))
    harness.event(Kind.JOB_LATE, reading(harness))
    put, late = harness.flush()[-2:]
    assert (put["type"], late["type"], late["seq"]) == ("put", "event", put["seq"])
    assert harness.client.fold.position == (harness.world.hub.epoch, late["seq"])
    harness.event(Kind.JOB_LATE, reading(harness, "completed"))
    assert [m["type"] for m in harness.flush()] == ["put", "delete"]


async def test_a_client_that_lags_gets_the_document_without_the_event():
    harness = StreamsHarness()
    await harness.subscribe()
    harness.job()
    harness.client.frozen = True
    harness.job(error_message="x" * (LIMITS.lagging_over + 1))
    harness.flush()
    for n in range(100):
        harness.event(Kind.JOB_LATE, reading(harness, error_message=str(n)))
    assert harness.world.streams.fanout.lags(harness.client)
    harness.client.thaw()
    await settle(harness.world, [harness.client])
    assert harness.client.fold.events == []
    assert harness.client.fold.jobs[1]["j"]["error"] == "99"
    harness.event(Kind.JOB_OVERDUE)
    assert [m["kind"] for m in harness.flush() if m["type"] == "event"] == ["job.overdue"]


async def test_an_event_is_not_sent_to_a_snapshot_that_has_still_to_send_its_job():
    harness = StreamsHarness(limits=Limits(max_snapshot_part=1))
    harness.job("older")
    newer = JobRecord("newer", status="running", started_at=NOW + 1)
    harness.publish(Reading("newer", harness.world.index.advance_clock(), newer, ()))
    await harness.subscribe()
    for job_id in ("older", "newer"):
        harness.event(Kind.JOB_LATE, job_id=job_id)
    await settle(harness.world, [harness.client])
    assert [m["job_id"] for m in harness.client.fold.events] == ["newer"]
    assert set(harness.client.fold.jobs[1]) == {"older", "newer"}


async def test_clients_with_equal_subscriptions_share_the_bytes_of_an_event(monkeypatch):
    harness = StreamsHarness()
    clients = [StreamClient() for _ in range(3)]
    frames: list[int] = []
    for client in clients:
        harness.world.connect(client)
        await harness.world.subscribe(client, 1, Filter(), None)
    harness.job()
    for client in clients:
        monkeypatch.setattr(client, "write", lambda framed: frames.append(id(framed)))
    harness.event(Kind.JOB_LATE)
    harness.world.streams.fanout.flush()
    assert len(frames) == 3
    assert len(set(frames)) == 1
