"""The cost of one log row, with so many jobs in memory: from the row as read to the call of the hub's subscribers."""

from __future__ import annotations

import gc
import json
import random
import sys
import time

from benchmarks.facts import job_id, now, readings
from correlator.jobs.index import Index
from correlator.model.rows import LogRow
from correlator.pipeline.pipeline import LocalHub, Pipeline

RUNNING = 500
"""Of the jobs, however many there are: the others have ended and are kept."""


def main(jobs: int, rows: int) -> dict[str, float]:
    index = Index(max_jobs=2 * jobs)
    hub = LocalHub(index)
    pipeline = Pipeline(hub)
    pipeline.readings(readings(index, jobs, running=RUNNING))
    pipeline.status.loaded()
    received: list[int] = []
    hub.subscribe(lambda batch: received.append(batch.seq))
    rnd = random.Random(1)
    found = [
        LogRow(
            n + 1,
            "working on final-sync",
            now(),
            attrs=f'{{"job_id":"{job_id(rnd.choice(range(jobs - RUNNING, jobs)))}"}}',
        )
        for n in range(rows)
    ]
    for row in found[: rows // 5]:
        pipeline.rows([row])
    gc.collect()
    began = time.process_time()
    for row in found[rows // 5 :]:
        pipeline.rows([row])
    seconds = time.process_time() - began
    return {"microseconds": seconds / (rows - rows // 5) * 1e6, "received": len(received), "jobs": len(index.published)}


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
