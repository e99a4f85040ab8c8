"""How many jobs there are and how they end: each end once, and as many jobs as the index has."""

import random
from collections import Counter

from aiohttp.test_utils import make_mocked_request

from correlator import metrics
from correlator.census import MAX_ENDED, Census
from correlator.jobs.index import Index
from correlator.jobs.model import Entry, Kept, Kind, LegacyRecord, Reading
from correlator.sinks.fanout import Fanout
from correlator.sinks.http import HttpSink, Listener
from correlator.sinks.stream import Streams
from tests.counted import NOW, SECOND, World, samples

# -- ends


def test_an_end_counts_once_by_its_status_type_and_operation():
    world = World()
    world.read()
    world.now += 90 * SECOND
    world.read(status="failed")
    world.read(status="failed")
    assert world.ended(status="failed", job_type="failover", operation="live") == world.ended() == 1
    assert world.gained("correlator_job_duration_seconds_count") == 1
    assert world.gained("correlator_job_duration_seconds_sum", job_type="failover", operation="live") == 90


def test_a_job_that_ends_twice_or_runs_again_ended_once():
    world = World()
    world.read()
    world.read(status="completed")
    world.read(status="failed")
    world.read(status="running")
    world.read(status="completed")
    assert world.ended() == world.ended(status="completed") == 1


def test_a_job_that_is_there_for_the_first_time_when_it_has_ended_counts():
    world = World()
    world.read(status="completed")
    assert world.ended() == 1


def test_a_job_of_the_past_that_somebody_looks_up_does_not_count():
    world = World()
    world.read(status="completed", ended=NOW - 3600 * SECOND)
    assert world.ended() == 0


def test_a_job_that_leaves_memory_and_is_found_again_ended_once():
    world = World(max_jobs=1)
    for job_id in ("a", "b"):
        world.read(job_id, "completed")
    world.pipeline._publish(world.index.tick(world.now))
    assert world.index.get("a") is None
    world.read("a", "completed")
    assert world.ended() == 2


def test_what_a_first_start_reads_does_not_count():
    world = World(loaded=False)
    world.pipeline.schema(tracking=True)
    world.read(status="running")
    world.read(status="completed")
    world.pipeline.loading(0, 0)
    world.read(status="failed")
    assert world.ended() == 0


def test_of_what_a_checkpoint_brings_only_what_ended_since_then_counts():
    first = World()
    first.read("ended", "completed")
    first.read("running")
    second = World(loaded=False)
    second.now += 60 * SECOND
    kept = [k for i in first.index.everything() if isinstance(k := first.index.kept(i), Kept)]
    second.pipeline.restore(kept, (), first.index.memory(), 60.0)
    assert second.ended() == 0
    second.read("ended", "completed", ended=NOW)
    second.read("running", "completed")
    second.read("meanwhile", "completed", ended=NOW + 30 * SECOND)
    second.read("before", "completed", ended=NOW - 30 * SECOND)
    assert second.ended() == 2


def test_a_legacy_job_that_turns_out_to_be_one_of_the_log_ended_once():
    world = World()
    for status, ended in (("validating", None), ("completed", NOW)):
        record = LegacyRecord(1, "gui-1", status, "live", created_at=NOW, completed_at=ended)
        world.pipeline.legacy([record], ())
    assert world.ended() == 1
    world.read("u", "completed", external_job_id="gui-1")
    assert world.ended() == 1


def test_the_first_failure_is_an_increase():
    world = World()
    world.read(job_type="new", operation="kind")
    assert (
        "correlator_jobs_ended_total",
        (("job_type", "new"), ("operation", "kind"), ("status", "failed")),
    ) in samples()


def test_what_is_remembered_of_ends_is_bounded(monkeypatch):
    monkeypatch.setattr("correlator.census.MAX_ENDED", 3)
    world = World()
    for n in range(10):
        world.read(f"j{n}", "completed")
    assert len(world.pipeline._census._counted) == 3 < MAX_ENDED
    assert world.ended() == 10


# -- how many there are


def test_jobs_are_counted_as_the_index_has_them_whatever_happens_to_them():
    chance, world = random.Random(7), World(max_jobs=12, stalled_after=20)
    for step in range(250):
        world.now += chance.randrange(5) * SECOND
        job_id = f"j{chance.randrange(20)}"
        match chance.randrange(6):
            case 0:
                world.pipeline.readings([Reading(job_id, world.index.look())])  # its row is gone
            case 1:
                world.pipeline._publish(world.index.tick(world.now))
            case 2:
                entry = Entry(step, world.now, "INFO", "x", world.index.look(), job_id, kind=Kind.JOB_FAILED)
                world.pipeline._publish(world.index.apply([entry], world.now))
            case 3:
                status = chance.choice(["validating", "completed", "failed"])
                world.pipeline.legacy([LegacyRecord(1, "gui", status, created_at=world.now)], ())
            case _:
                status = chance.choice(["pending", "running", "completed", "failed", "cancelled"])
                external = chance.choice([None, "gui"])
                world.read(job_id, status, started=world.now, external_job_id=external)
        counted = samples(metrics.JOBS, metrics.JOBS_STALLED)
        expected = Counter(s.view.status.value for s in world.index.shown())
        for status in ("pending", "running", "completed", "failed", "cancelled"):
            assert counted["correlator_jobs", (("status", status),)] == expected[status], step
        assert counted["correlator_jobs_stalled", ()] == sum(s.stalled for s in world.index.shown()), step


async def test_who_asks_walks_over_no_job_and_hears_how_things_are_now(monkeypatch):
    world = World()
    world.read()
    monkeypatch.delattr(Index, "shown")
    monkeypatch.setattr(Fanout, "lagging", 3)
    sink = HttpSink(Listener("127.0.0.1", 0), None, retention=1.0)  # type: ignore[arg-type]
    for loading, ready in (((0, 9), 0), (None, 1)):
        world.hub.loading = loading
        response = await sink._metrics(world.hub, Streams(world.hub), make_mocked_request("GET", "/metrics"))
        told = (response.text or "").splitlines()
        assert 'correlator_jobs{status="running"} 1.0' in told
        assert "correlator_readers_lagging 3.0" in told
        assert f"correlator_ready {ready}.0" in told


def test_a_census_begins_empty():
    Census()
    assert all(v == 0 for k, v in samples().items() if k[0] in ("correlator_jobs", "correlator_jobs_stalled"))
