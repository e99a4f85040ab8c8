"""Lines of all logs over REST, found by a text that no index has: page by page, while rows are written."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.support.appliance import Appliance, connected, now
from tests.support.daemon import Daemon
from tests.support.mariadb import Database
from tests.support.yardstick import processor_seconds

ROWS = 30_000
SCAN = "SELECT COUNT(*) FROM log_events WHERE BINARY message REGEXP '(?i)nowhere' OR BINARY attrs REGEXP '(?i)nowhere'"


async def search(daemon: Daemon, **query: Any) -> dict[str, Any]:
    status, body = await daemon.get(f"/api/v1/events?{urlencode(query)}")
    assert status == 200, body
    return dict(body)


async def test_the_oldest_of_many_lines_is_found_for_little_more_than_one_scan(database: Database, tmp_path: Path):
    server = database.server.pid
    daemon = Daemon(tmp_path, database__url=database.url)
    async with connected(database) as connection:
        appliance = Appliance(connection)
        job_id = await appliance.job("gui-1", started_at=now(), metadata='{"vm_name": "web-1"}')
        at = "UTC_TIMESTAMP(6) - INTERVAL 30 DAY"
        await appliance.run(
            f"INSERT INTO log_events (job_id, level, message, ts) VALUES ('{job_id}', 'ERROR', 'got HTTP 503', {at})"
        )
        await appliance.run(
            "INSERT INTO log_events (level, message, attrs, ts) SELECT 'INFO', CONCAT('block ', seq, ' ', MD5(seq)),"
            f""" CONCAT('{{"path": "/var/', MD5(-seq), '", "vm": ', seq, '}}'), {at} FROM seq_1_to_{ROWS}"""
        )
        began = processor_seconds(server)
        await appliance.run(SCAN)
        scan = processor_seconds(server) - began
        try:
            await daemon.start()
            began = processor_seconds(server)
            pages = [await search(daemon, text="503 http")]
            while pages[-1]["next_cursor"] is not None:
                live = await appliance.log(f"live {len(pages)}", job_id=job_id)
                pages.append(await search(daemon, text="503 http", cursor=pages[-1]["next_cursor"]))
                assert (await daemon.get(f"/api/v1/jobs/gui-1/events?from={live}"))[1]["events"]
            assert processor_seconds(server) - began < 2.0 * scan + 1.0
            assert all(one["searched"] < other["searched"] for one, other in pairwise(pages))
            (line,) = [event for page in pages for event in page["events"]]
            names = {"job_id": job_id, "vm_name": "web-1", "operation": "unified-live-failover"}
            assert line.items() >= {"event_id": 1, "message": "got HTTP 503", "level": "ERROR", **names}.items()
            assert (pages[-1]["searched"], pages[-1]["complete"]) == (1.0, True)

            assert (await search(daemon, text="503", instance="dc1"))["events"] == []
        finally:
            await daemon.close()
