"""Synchronous calls that hold the event loop: counted from 20 ms on, and named."""

import asyncio
import contextlib
import gc
import logging
import time

import pytest

from correlator.model.persisted import PersistedJob
from correlator.ops import event_loop, metrics
from tests.support.pipeline_harness import PipelineHarness, row, samples
from tests.support.saved_index import changes, filled


def counted(call):
    return samples(metrics.LOOP_STALLS).get(("correlator_loop_stall_seconds_count", (("call", call),)), 0.0)


def longest(call, clock):
    return samples(metrics.LOOP_LONGEST).get(
        ("correlator_loop_longest_call_seconds", (("call", call), ("clock", clock))), 0.0
    )


def run(call, *, wall, cpu, raises=None):
    began, ended = 4.0, 4.0 + wall
    with event_loop.timed(call, iter((began, ended)).__next__, {began: 2.0, ended: 2.0 + cpu}.__getitem__):
        if raises is not None:
            raise raises


def test_a_call_of_20_ms_is_counted_and_named_in_the_debug_log_also_one_that_raises(caplog):
    caplog.set_level(logging.DEBUG, "correlator.ops.event_loop")
    with contextlib.suppress(ValueError):
        run("counted", wall=0.07, cpu=0.03, raises=ValueError())
    assert counted("counted") == 1
    assert caplog.messages == ["counted blocked the event loop for 70 ms, 30 ms of CPU"]


def test_a_shorter_call_is_not_counted_but_the_longest_is_known(caplog):
    caplog.set_level(logging.DEBUG, "correlator.ops.event_loop")
    for wall, cpu in ((0.001, 0.001), (0.015, 0.012), (0.002, 0.002)):
        run("short", wall=wall, cpu=cpu)
    assert counted("short") == 0
    assert not caplog.messages
    assert (longest("short", "wall"), longest("short", "cpu")) == pytest.approx((0.015, 0.012))


def test_the_cpu_time_of_a_call_is_right_within_a_millisecond():
    before = time.thread_time()
    with event_loop.timed("busy"):
        while (used := time.thread_time() - before) < 0.02:
            pass
    all_of_it = time.thread_time() - before
    assert used - event_loop.CPU_WITHIN <= longest("busy", "cpu") <= all_of_it + 2 * event_loop.CPU_WITHIN


async def test_a_loop_that_wakes_late_is_counted_without_a_name():
    before = counted("loop")
    beating = asyncio.create_task(event_loop.heartbeat())
    try:
        await asyncio.sleep(0)
        ended = asyncio.get_running_loop().time() + event_loop.BEAT + 2 * event_loop.STALL
        while asyncio.get_running_loop().time() < ended:
            pass
        async with asyncio.timeout(60):
            while counted("loop") == before:  # noqa: ASYNC110 - a metric has no event
                await asyncio.sleep(0.001)
    finally:
        beating.cancel()


def test_a_loop_that_is_busy_is_checked_ten_times_a_second_and_a_quiet_one_twice():
    assert (event_loop.pause_after(0.003, 0.1), event_loop.pause_after(0.015, 0.5)) == (0.1, 0.1)
    assert event_loop.pause_after(event_loop.BUSY * 0.1, 0.1) == 0.1
    assert (event_loop.pause_after(0.001, 0.1), event_loop.pause_after(0.005, 0.5)) == (0.5, 0.5)


def test_what_the_writer_does_has_names():
    world = PipelineHarness()
    world.read()
    world.rows(row(1, job_id="j"))
    for call in ("rows", "readings", "publish"):
        assert longest(call, "wall") > 0


def test_garbage_collections_spare_what_was_loaded_and_nothing_later():
    world = PipelineHarness()
    gc.unfreeze()
    world.read()
    assert gc.get_freeze_count() > 0
    world.pipeline.status.loading = False
    gc.unfreeze()
    world.read(status="completed")
    assert gc.get_freeze_count() == 0


async def test_garbage_collections_spare_what_a_restart_restores():
    kept = changes(filled(300))
    harness = PipelineHarness(loaded=False)
    gc.unfreeze()
    await harness.pipeline.restore(
        [job for job in kept.jobs.values() if isinstance(job, PersistedJob)], [], kept.memory, 1.0
    )
    assert len(harness.hub.published) == 300
    assert gc.get_freeze_count() > 300


async def test_what_thousands_of_new_clients_need_causes_no_full_garbage_collection():
    before = gc.get_threshold()
    beating = asyncio.create_task(event_loop.heartbeat())
    try:
        await asyncio.sleep(0)
        collections = gc.get_stats()[2]["collections"]
        kept = [[n] for n in range(600_000)]
        assert gc.get_stats()[2]["collections"] == collections
        assert len(kept) == 600_000
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
    assert gc.get_threshold() == before
