"""The correlator without sinks: seconds until a database's whole past is in the index and the hub."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from typing import Any

import uvloop

from correlator.jobs.index import Index
from correlator.pipeline.pipeline import LocalHub, Pipeline
from correlator.sources.db import zones
from correlator.sources.db.mariadb import Address, MariaDBDatabase
from correlator.sources.follow import Follower
from correlator.sources.tables.reconcile import Reconcile
from correlator.sources.tail import Tail


async def follow(port: int, name: str, driver: Any) -> dict[str, float]:
    database = MariaDBDatabase(Address(port=port, database=name), zone=zones.named("UTC"), driver=driver)
    index = Index(max_jobs=20_000)
    pipeline = Pipeline(LocalHub(index))
    rows = 0

    def counting(take: Any) -> Any:
        def counted(found: Any) -> Any:
            nonlocal rows
            rows += len(found)
            return take(found)

        return counted

    pipeline.rows = counting(pipeline.rows)  # type: ignore[method-assign]
    pipeline.past = counting(pipeline.past)  # type: ignore[method-assign]
    source = Follower(database, Tail(), Reconcile())
    began = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        following = [tasks.create_task(source.run(pipeline)), tasks.create_task(pipeline.run())]
        await pipeline.ready.wait()
        ready = time.perf_counter() - began
        await pipeline.status.complete.wait()
        seconds = time.perf_counter() - began
        for task in following:
            task.cancel()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return {"seconds": seconds, "ready": ready, "rows": rows, "jobs": len(index.published), "peak_mb": peak}


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(follow(**json.loads(sys.argv[1])))))
