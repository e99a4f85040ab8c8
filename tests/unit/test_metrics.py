"""Metrics: few label values, the delay of rows, and the age of what is pending for the broker."""

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from correlator.errors import SourceUnavailable
from correlator.ops import metrics
from correlator.sinks.mqtt.outbox import DirtyTopics
from correlator.sinks.mqtt.topics import TopicKey
from correlator.sources.gaps import Probe
from correlator.sources.tail import Tail
from tests.support.pipeline_harness import NOW, SECOND, PipelineHarness, row, samples


def test_delays_that_are_observed_together_are_in_the_buckets_that_each_belongs_to():
    delays = metrics.Delays("test_delays", "Seconds.", (0.1, 1.0))
    try:
        for some in ([5.0, 0.1, 0.05], [], [0.11, 1.0], [0.01]):
            delays.observe_all(some)
        (family,) = delays.collect()
        found = {sample.labels.get("le", sample.name): sample.value for sample in family.samples}
    finally:
        metrics.REGISTRY.unregister(delays)
    assert found == {
        "0.1": 3,
        "1.0": 5,
        "+Inf": 6,
        "test_delays_count": 6,
        "test_delays_sum": pytest.approx(6.27),
    }


# -- labels


def test_labels_from_the_database_are_few_and_short_and_print():
    world = PipelineHarness()
    for n in range(300):
        world.read(f"j{n}", "completed", job_type=f"type {n}", operation="x" * 5000)
    world.read("odd", "completed", job_type="\ud800\n\0\"'\\", operation="")
    mine = [k for k in samples() if k[0] == "correlator_jobs_ended_total" and k not in world.before]
    kinds = {(dict(k[1])["job_type"], dict(k[1])["operation"]) for k in mine}
    assert len(kinds) <= 51
    assert ("other", "other") in kinds
    assert max(len(v) for kind in kinds for v in kind) == metrics.MAX_LABEL
    assert world.ended(job_type="other") == 301 - 50
    world.read("7d8a2c9e-0001-4000-8000-000000000001", "completed", external_job_id="gui-7d8a2c9e")
    assert "7d8a2c9e" not in generate_latest(metrics.REGISTRY).decode(), "a job ID is in no label"


def test_a_label_is_never_empty_and_holds_nothing_that_breaks_a_line():
    assert metrics.label(None) == metrics.label("") == "unknown"
    assert metrics.label("\ud800\n\0é") == "???é"
    world = PipelineHarness()
    world.read(status="completed", job_type='\ud800\n\0"\\', operation="\u2028")
    families = text_string_to_metric_families(generate_latest(metrics.REGISTRY).decode())
    ended = {s.labels["job_type"]: s.value for f in families for s in f.samples if s.labels.get("operation") == "?"}
    assert '???"\\' in ended
    assert world.ended(job_type='???"\\', operation="?") == 1


# -- how late


def test_live_rows_are_measured_by_their_delay():
    world = PipelineHarness()
    world.now += SECOND // 4
    world.rows(row(1))
    assert world.gained("correlator_end_to_end_seconds_count") == 1
    assert world.gained("correlator_end_to_end_seconds_sum") == 0.25
    world.rows(row(2, NOW + 3600 * SECOND))  # by a clock that is ahead: nothing is earlier than its row
    assert world.gained("correlator_end_to_end_seconds_count") == 2
    assert world.gained("correlator_end_to_end_seconds_sum") == 0.25


def test_rows_of_the_past_and_of_a_catch_up_are_not_measured():
    world = PipelineHarness(loaded=False)
    world.pipeline.status.schema(tracking=True)
    world.rows(row(1, NOW - 3600 * SECOND))
    world.pipeline.status.progress(0, 0)
    for rows in ([row(2, NOW - 1800 * SECOND)], [row(3, NOW - 10 * SECOND)]):
        world.pipeline.status.schema(tracking=True)  # the database was away
        world.rows(*rows)
        world.pipeline.status.progress(0, 0)
    assert world.gained("correlator_end_to_end_seconds_count") == 0
    world.rows(row(4))
    assert world.gained("correlator_end_to_end_seconds_count") == 1


@pytest.mark.parametrize("why", ["the job is new", "a catch-up", "an outage"])
def test_a_row_that_waited_for_its_job_is_measured_unless_an_outage_made_it_wait(why):
    world = PipelineHarness()
    if why == "a catch-up":
        world.pipeline.status.schema(tracking=True)
    world.rows(row(1, NOW - (3600 * SECOND if why == "a catch-up" else 0), job_id="new"))
    if why == "a catch-up":
        world.pipeline.status.progress(0, 0)
    if why == "an outage":
        world.pipeline.status.schema(tracking=True)
    assert world.gained("correlator_end_to_end_seconds_count") == 0
    world.now += SECOND
    world.read("new")
    assert world.gained("correlator_end_to_end_seconds_count") == (why == "the job is new")
    assert world.gained("correlator_end_to_end_seconds_sum") == (why == "the job is new")


def test_after_a_log_reset_new_rows_are_measured():
    world = PipelineHarness()
    world.pipeline.status.schema(tracking=True)
    world.rows(row(500))
    world.pipeline.status.progress(0, 0)
    world.pipeline.status.schema(tracking=True)
    world.rows(row(1))
    world.pipeline.status.progress(0, 0)
    world.rows(row(2))
    assert world.gained("correlator_end_to_end_seconds_count") == 1


def test_the_lag_is_how_far_back_a_catch_up_is_and_nothing_once_it_is_over():
    world = PipelineHarness(loaded=False)
    world.pipeline.status.schema(tracking=True)
    world.pipeline.status.answered()
    world.rows(row(1, NOW - 600 * SECOND))
    assert samples()["correlator_source_lag_seconds", ()] == 600
    world.rows(row(2, NOW - 60 * SECOND))
    assert samples()["correlator_source_lag_seconds", ()] == 60
    world.pipeline.status.progress(0, 0)
    assert samples()["correlator_source_lag_seconds", ()] == 0


def test_answers_and_failures_of_the_database_are_counted():
    world = PipelineHarness()
    assert samples()["correlator_source_last_success_timestamp_seconds", ()] == 0
    world.pipeline.status.answered()
    world.now += SECOND
    for _ in range(3):
        world.pipeline.status.failed(SourceUnavailable("away"))
    assert samples()["correlator_source_last_success_timestamp_seconds", ()] == NOW / SECOND
    assert world.gained("correlator_source_failures_total") == 3


async def test_only_rows_that_come_after_their_window_was_given_up_count_as_late():
    tail, pipeline, before = Tail(), PipelineHarness().pipeline, samples()["correlator_late_rows_total", ()]

    class Committed:
        async def ids_in(self, session, ranges):
            return [first for first, _ in ranges]

        async def rows_in(self, session, ids):
            return [row(i) for i in ids]

        light_rows_in = rows_in

    for head, settled in ((2, 1.0), (4, 0.0)):
        tail.gaps.advance([head], 0.0)
        (window,) = tail.gaps.open
        window.settled = settled
        probe = Probe(window.ranges(), [window], 0.0)
        await tail._probe(probe, Committed(), None, None, pipeline, lambda _: None)  # type: ignore[arg-type]
        assert samples()["correlator_late_rows_total", ()] - before == 1


# -- readers and broker


def test_a_topic_is_pending_from_its_first_change_until_the_last_is_acknowledged():
    now = 0.0
    a, b = TopicKey("state", "a"), TopicKey("state", "b")
    box = DirtyTopics(lambda: now)
    for now, key in ((1.0, a), (2.0, b), (3.0, a)):  # noqa: B007 - the clock reads it
        box.mark(key)
    assert (box.oldest(), box.pop_next(3.0)) == (1, a)
    now = 4.0
    box.mark(a)
    now = 9.0
    box.acknowledged(a)
    assert (box.oldest(), box.pop_next(9.0)) == (2, b)
    box.acknowledged(b)
    assert (box.oldest(), box.pop_next(10.0)) == (4, a), "since its change at 4"
    box.acknowledged(a)
    assert box.oldest() is None
    now = 11.0
    box.restart()
    box.add([b])
    assert box.oldest() == 11
