"""How many jobs there are and how they end: each end once, and as many jobs as the index has."""

import random
from collections import Counter

from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from correlator.forecast.points import EndedRun
from correlator.jobs.directory import JobDirectory
from correlator.model.document import ForecastState
from correlator.model.facts import Entry, Kind, Reading
from correlator.model.persisted import PersistedJob
from correlator.model.published import Change
from correlator.model.rows import LegacyRecord
from correlator.ops import metrics
from correlator.pipeline.job_metrics import JobMetrics
from correlator.sinks.http.endpoints import of_process
from correlator.sinks.streaming.fanout import Fanout
from correlator.sinks.streaming.sessions import Streams
from tests.support.pipeline_harness import NOW, SECOND, PipelineHarness, samples

# -- ends


def test_an_end_counts_once_by_its_status_type_and_operation():
    world = PipelineHarness()
    world.read()
    world.now += 90 * SECOND
    world.read(status="failed")
    world.read(status="failed")
    assert world.ended(status="failed", job_type="failover", operation="live") == world.ended() == 1
    assert world.gained("correlator_job_duration_seconds_count") == 1
    assert world.gained("correlator_job_duration_seconds_sum", job_type="failover", operation="live") == 90


def test_a_job_that_ends_twice_or_runs_again_ended_once():
    world = PipelineHarness()
    world.read()
    world.read(status="completed")
    world.read(status="failed")
    world.read(status="running")
    world.read(status="completed")
    assert world.ended() == world.ended(status="completed") == 1


def test_a_failure_counts_once_by_whether_it_is_known():
    world = PipelineHarness()
    for job_id, error in (("a", "disk is full"), ("b", "disk is full"), ("c", None)):
        world.read(job_id)
        world.read(job_id, "failed", error_message=error)
        world.read(job_id, "failed", error_message=error, owner="somebody")
        if job_id == "a":
            assert world.gained("correlator_failures_total") == 1
    states = ("new", "known", "unknown")
    assert [world.gained("correlator_failures_total", state=state) for state in states] == [0, 1, 2]
    world.index.failures.has_read(None, all_of_it=True)
    world.read("d")
    world.read("d", "failed", error_message="out of memory")
    assert world.gained("correlator_failures_total", state="new") == 1


def test_a_job_that_is_seen_first_when_it_has_ended_counts_unless_that_was_long_ago():
    world = PipelineHarness()
    world.read("past", "completed", ended=NOW - 3600 * SECOND)
    assert world.ended() == 0
    world.read(status="completed")
    assert world.ended() == 1


def test_a_job_that_leaves_memory_and_is_found_again_ended_once():
    world = PipelineHarness(max_jobs=1)
    for job_id in ("a", "b"):
        world.read(job_id, "completed")
    world.hub.publish(world.index.expire(world.now))
    assert world.index.published.get("a") is None
    world.read("a", "completed")
    assert world.ended() == 2


def test_what_a_first_start_reads_does_not_count():
    world = PipelineHarness(loaded=False)
    world.pipeline.status.schema(tracking=True)
    world.read(status="running")
    world.read(status="completed")
    world.pipeline.status.progress(0, 0)
    world.read(status="failed")
    assert world.ended() == 0


async def test_of_what_a_checkpoint_brings_only_what_ended_since_then_counts():
    first = PipelineHarness()
    first.read("ended", "completed")
    first.read("running")
    second = PipelineHarness(loaded=False)
    second.now += 60 * SECOND
    jobs = first.index
    kept = [k for i in jobs.all_ids() if isinstance(k := jobs.persisted(i), PersistedJob)]
    await second.pipeline.restore(kept, (), first.index.state(), 60.0)
    assert second.ended() == 0
    second.read("ended", "completed", ended=NOW)
    second.read("running", "completed")
    second.read("meanwhile", "completed", ended=NOW + 30 * SECOND)
    second.read("before", "completed", ended=NOW - 30 * SECOND)
    assert second.ended() == 2


def test_a_legacy_job_that_turns_out_to_be_one_of_the_log_ended_once():
    world = PipelineHarness()
    for status, ended in (("validating", None), ("completed", NOW)):
        record = LegacyRecord(1, "gui-1", status, "live", created_at=NOW, completed_at=ended, apart=True)
        world.pipeline.legacy([record], ())
    assert world.ended() == 1
    world.read("u", "completed", external_job_id="gui-1")
    assert world.ended() == 1


def test_the_ends_of_the_newest_jobs_are_remembered_and_counted_once():
    world = PipelineHarness()
    counters, changes = JobMetrics(world.index.forecasts, max_ended=3), list[Change]()
    world.hub.subscribe(lambda batch: changes.extend(batch.changes))
    for n in range(10):
        world.read(f"j{n}", "completed")
    before = world.ended()
    counters.count(changes, NOW)
    assert world.ended() - before == 10
    for change in (*changes[7:], *changes[:7]):
        counters.count([change], NOW)
    assert world.ended() - before == 17, "three were remembered"


# -- how many there are


def test_jobs_are_counted_as_the_index_has_them_whatever_happens_to_them():
    chance, world = random.Random(7), PipelineHarness(max_jobs=12, stalled_after=lambda: 20)
    for step in range(250):
        world.now += chance.randrange(5) * SECOND
        job_id = f"j{chance.randrange(20)}"
        match chance.randrange(6):
            case 0:
                world.pipeline.readings([Reading(job_id, world.index.advance_clock())])  # its row is gone
            case 1:
                world.hub.publish(world.index.expire(world.now))
            case 2:
                entry = Entry(step, world.now, "INFO", "x", world.index.advance_clock(), job_id, kind=Kind.JOB_FAILED)
                world.hub.publish(world.index.apply([entry], world.now))
            case 3:
                status = chance.choice(["validating", "completed", "failed"])
                world.pipeline.legacy([LegacyRecord(1, "gui", status, created_at=world.now, apart=True)], ())
            case _:
                status = chance.choice(["pending", "running", "completed", "failed", "cancelled"])
                external = chance.choice([None, "gui"])
                world.read(job_id, status, started=world.now, external_job_id=external)
        counted = samples(metrics.JOBS, metrics.JOBS_STALLED)
        expected = Counter(s.view.status.value for s in world.index.published.all())
        for status in ("pending", "running", "completed", "failed", "cancelled"):
            assert counted["correlator_jobs", (("status", status),)] == expected[status], step
        assert counted["correlator_jobs_stalled", ()] == sum(s.stalled for s in world.index.published.all()), step


async def test_a_scrape_iterates_over_no_job_and_gets_current_values(monkeypatch):
    world = PipelineHarness()
    world.read()
    monkeypatch.delattr(JobDirectory, "all")
    monkeypatch.setattr(Fanout, "lagging", 3)
    streams = Streams(world.hub)
    for loading, ready in ((True, 0), (False, 1)):
        world.hub.status.loading = loading
        response = await of_process(world.hub, lambda: [streams])[0].handler(make_mocked_request("GET", "/metrics"))
        assert isinstance(response, web.Response)
        lines = (response.text or "").splitlines()
        assert 'correlator_jobs{status="running"} 1.0' in lines
        assert "correlator_readers_lagging 3.0" in lines
        assert f"correlator_ready {ready}.0" in lines


# -- forecasts


def with_history(**settings) -> PipelineHarness:
    """A pipeline that knows 40 earlier runs of 60 to 99 seconds, and two of another operation."""
    world = PipelineHarness(**settings)
    began = NOW - 86_400 * SECOND
    world.pipeline.history_begins(NOW)
    for operation, count in (("live", 40), ("test", 2)):
        ends = (began + (60 + n) * SECOND for n in range(count))
        world.pipeline.history([EndedRun(("failover", operation), "", began, end, True) for end in ends])
    world.pipeline.history_read()
    return world


def renew(world: PipelineHarness, seconds: int) -> None:
    """Let time pass. The log is read up to the present."""
    world.now += seconds * SECOND
    world.pipeline.status.caught_up()
    while world.pipeline.renew_forecasts():
        pass


def test_late_and_overdue_jobs_are_counted_as_their_documents_say():
    world, seen = with_history(stalled_after=lambda: 10_000), set()
    for n in range(5):
        world.read(f"j{n}", started=NOW + n * 20 * SECOND)
    for step in range(40):
        renew(world, 7)
        if step == 20:
            world.read("j0", "completed")
        if step == 30:
            world.pipeline.readings([Reading("j1", world.index.advance_clock())])  # its row is gone
        states = Counter(
            job.forecast.forecast.state
            for job in world.index.published.all()
            if job.forecast is not None and job.forecast.forecast is not None
        )
        counted = samples(metrics.JOBS_LATE, metrics.JOBS_OVERDUE)
        assert counted["correlator_jobs_late", ()] == states[ForecastState.LATE], step
        assert counted["correlator_jobs_overdue", ()] == states[ForecastState.OVERDUE], step
        seen |= {state for state in (ForecastState.LATE, ForecastState.OVERDUE) if states[state]}
    assert seen == {ForecastState.LATE, ForecastState.OVERDUE}
    assert samples()["correlator_jobs_overdue", ()] == 3


def test_how_good_forecasts_were_has_no_series_until_a_job_with_a_forecast_has_completed():
    names = "correlator_forecast_p90_coverage", "correlator_forecast_median_relative_error"
    world = with_history()
    world.read(status="completed")
    renew(world, 5)
    assert not any((name, ()) in samples() for name in names)
    world.read("k", started=world.now)
    world.read("l", started=world.now)
    renew(world, 80)
    world.read("k", "completed", started=world.now - 80 * SECOND)
    renew(world, 400)
    world.read("l", "completed", started=world.now - 480 * SECOND)
    renew(world, 5)
    coverage, error = (samples()[name, ()] for name in names)
    assert coverage == 0.5  # k ended before its p90, l after it
    assert 0.3 < error < 0.5  # the mean of nearly 0 and of some 5/6


def test_operations_are_counted_by_whether_their_jobs_have_a_forecast():
    PipelineHarness()
    basis = [("correlator_forecast_operations", (("basis", answer),)) for answer in ("yes", "no")]
    assert [samples()[name] for name in basis] == [0, 0]
    assert samples()["correlator_forecast_history_read", ()] == 0
    world = with_history()
    assert [samples()[name] for name in basis] == [1, 1]
    assert samples()["correlator_forecast_history_read", ()] == 1
    world.read(status="completed", operation="test", ended=NOW + SECOND)
    renew(world, 5)
    assert [samples()[name] for name in basis] == [2, 0]
