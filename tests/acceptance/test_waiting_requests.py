"""A GUI asks for its ID before the job's row exists: the answer comes with the row, without asking again."""

from __future__ import annotations

import asyncio
import statistics
import time
from urllib.parse import quote

from tests.support.appliance import Appliance
from tests.support.daemon import Daemon

GUI_ID = "unified-live-failover-SVR 2019/Prod-{}"


async def test_wait_returns_soon_after_the_commit_although_the_log_is_silent(daemon: Daemon, appliance: Appliance):
    took, yardstick = [], []
    for number in range(7):
        name = GUI_ID.format(1758553930 + number)
        request = asyncio.create_task(daemon.get(f"/api/v1/jobs/{quote(name, safe='')}?wait=30"))
        await asyncio.sleep(0.3 + number * 0.017)  # so that the request is held, at different moments of a cycle
        assert not request.done()
        await appliance.job(metadata=f'{{"failover_job_id": "{name}", "vm_name": "SVR 2019/Prod"}}')
        committed = time.monotonic()
        status, job = await request
        took.append(time.monotonic() - committed)
        assert status == 200
        assert name in job["external_ids"]
        began = time.monotonic()
        await appliance.job()
        await daemon.get(f"/api/v1/jobs/{quote(name, safe='')}")
        yardstick.append(time.monotonic() - began)
    # A cycle of 50 ms, and what a commit and an answer take here; without the waiting it would be 0.5 s in the middle.
    assert statistics.median(took) < 0.1 + 10 * statistics.median(yardstick), (took, yardstick)
