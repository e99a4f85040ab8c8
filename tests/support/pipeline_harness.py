"""A hub that a test fills, a pipeline whose clock the test sets, and the difference of metrics before and after."""

import contextlib
import itertools
from typing import Any

from correlator.jobs.index import Index
from correlator.model.facts import Kind, Reading
from correlator.model.published import Event, Outcome
from correlator.model.rows import JobRecord, LogRow
from correlator.ops import metrics
from correlator.pipeline.pipeline import LocalHub, Pipeline
from tests.support.background import in_background

NOW = 1_758_553_933_000_000
SECOND = 1_000_000


class HubHarness:
    """A hub that has loaded the past, what a test publishes there, and the sink that follows it."""

    sink: Any

    def __init__(self, index: Index | None = None, **hub: Any) -> None:
        self.index = index or Index()
        self.index.loading = False
        self.hub = LocalHub(self.index, **hub)
        self.hub.status.loading = False
        self.times = itertools.count(10)

    def learn(self, *readings):
        self.hub.publish(self.index.apply(readings, NOW))

    def happen(self, *numbers, job_id="a", kind=Kind.STEP_STARTED, at=NOW):
        """Events with these numbers."""
        self.hub.publish(Outcome(events=[Event(kind, job_id, at, event_id=n) for n in numbers]))

    @contextlib.asynccontextmanager
    async def running(self):
        """The sink follows the hub, until the block ends."""
        async with in_background(self.sink.run(self.hub)) as task:
            yield task
            assert not task.done(), task


class PipelineHarness:
    """A pipeline whose clock is `now`. `gained` is the difference of a metric since it was made."""

    def __init__(self, *, loaded=True, **settings):
        self.now = NOW
        self.index = Index(**settings)
        self.hub = LocalHub(self.index, clock=lambda: self.now)
        self.pipeline = Pipeline(self.hub)
        self.before = samples()
        if loaded:
            self.pipeline.status.schema(tracking=True)
            self.pipeline.status.progress(0, 0)

    def read(self, job_id="j", status="running", *, ended=None, started=NOW, **columns):
        completed = ended if ended is not None else (self.now if status in ("completed", "failed") else None)
        columns = {"job_type": "failover", "operation": "live", **columns}
        record = JobRecord(job_id, status=status, started_at=started, completed_at=completed, **columns)
        self.pipeline.readings([Reading(job_id, self.index.advance_clock(), record, ())])

    def rows(self, *rows):
        return self.pipeline.rows(rows)

    def gained(self, name, **labels):
        """The increase of the samples of that name and those labels, to six decimals: the sums are floats."""
        now = samples()
        chosen = [k for k in now if k[0] == name and labels.items() <= dict(k[1]).items()]
        return round(sum(now[k] - self.before.get(k, 0.0) for k in chosen), 6)

    def ended(self, **labels):
        return self.gained("correlator_jobs_ended_total", **labels)


def samples(*only):
    """The value of every sample by name and labels; those of `only` some metrics, if they are named."""
    families = [f for m in only or (metrics.REGISTRY,) for f in m.collect()]
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in families for s in f.samples}


def row(number, ts=NOW, message="text", **more):
    return LogRow(number, message, ts, **more)
