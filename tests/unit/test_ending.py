"""Tasks end even if a library drops a cancellation."""

from __future__ import annotations

import asyncio

from correlator.daemon.ending import end


async def test_a_task_that_drops_two_cancellations_ends_with_the_third():
    dropped = 0

    async def stubborn() -> None:
        nonlocal dropped
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                dropped += 1
                if dropped == 3:
                    raise

    task, other = asyncio.create_task(stubborn()), asyncio.create_task(asyncio.sleep(3600))
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        await end({task, other}, again=0.01)
    assert (dropped, task.cancelled(), other.cancelled()) == (3, True, True)
