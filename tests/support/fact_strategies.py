"""Hypothesis strategies for facts: log rows and table readings of one to three jobs."""

from hypothesis import strategies as st

from correlator.model.facts import STATUS_OF, Entry, Reading
from correlator.model.rows import JobRecord, StepRecord

BASE = 1_758_553_933_000_000
SECOND = 1_000_000
JOB_KINDS = [k for k in STATUS_OF if not k.of_step]
STEP_KINDS = [k for k in STATUS_OF if k.of_step]
JOBS = ("a", "b", "c")
STEPS = {"a": (1, 2), "b": (3,), "c": (4, 5)}

times = st.integers(0, 5).map(lambda s: BASE + s * SECOND)
ends = st.none() | times
texts = st.sampled_from(["", "x", "y"])
statuses = st.sampled_from(["pending", "running", "completed", "failed", "cancelled", None, "odd"])
metadata = st.sampled_from(
    [None, "{", '{"failover_job_id":"ext-1"}', '{"gui_job_id":"ext-2","external_job_id":"ext-3"}']
)


@st.composite
def entries(draw, job_id, event_id, observed_at):
    step_id = draw(st.sampled_from(STEPS[job_id]))
    kind = draw(st.none() | st.sampled_from(JOB_KINDS) | st.sampled_from(STEP_KINDS))
    return Entry(
        event_id=event_id,
        at=draw(times),
        level=draw(st.sampled_from(["DEBUG", "INFO", "WARN", "ERROR"])),
        message=draw(texts),
        observed_at=observed_at,
        job_id=job_id,
        step_id=step_id if kind is None or kind.of_step else None,
        external_ids=draw(st.sampled_from([(), ("ext-1",), ("ext-2", "ext-4")])),
        kind=kind,
        error=draw(st.sampled_from([None, "boom"])),
        step_name=draw(texts),
        sequence=draw(st.integers(0, 3)),
        job_type=draw(texts),
        operation=draw(texts),
        owner=draw(texts),
        parent_job_id=draw(texts),
        percent=draw(st.none() | st.integers(0, 100)) if kind is None else None,
    )


@st.composite
def readings(draw, job_id, observed_at, *, lasting=False):
    """One reading of the tables. `lasting`: the row and all of its steps exist, as for a job that nobody deletes."""
    record = JobRecord(
        job_id,
        status=draw(statuses),
        external_job_id=draw(st.sampled_from([None, "ext-1", "ext-5"])),
        metadata=draw(metadata),
        error_message=draw(st.sampled_from([None, "read"])),
        started_at=draw(times),
        completed_at=draw(ends),
        percent_complete=draw(st.none() | st.integers(0, 255)),
        context_id=draw(st.sampled_from([None, "ctx"])),
    )
    steps = tuple(
        StepRecord(
            i, "s", i, draw(st.sampled_from(["running", "completed", "failed", "skipped"])), draw(times), draw(ends)
        )
        for i in STEPS[job_id]
    )
    if lasting:
        return Reading(job_id, observed_at, record, steps)
    there = draw(st.sampled_from([steps, steps[:1], (), None]))
    return Reading(job_id, observed_at, draw(st.none() | st.just(record)), there)


@st.composite
def facts(draw, *, lasting=False):
    """Facts about one to three jobs. Event ids and times are unique. `lasting`: every job is read at least once."""
    jobs = JOBS[: draw(st.integers(1, 3))]
    kinds = draw(st.lists(st.tuples(st.sampled_from(jobs), st.booleans()), max_size=12))
    kinds += [(j, True) for j in jobs] if lasting else []
    times_observed = draw(st.permutations(range(1, len(kinds) + 1)))
    ids = draw(st.permutations(range(1, len(kinds) + 1)))
    return [
        draw(readings(job_id, observed_at, lasting=lasting) if is_reading else entries(job_id, event_id, observed_at))
        for (job_id, is_reading), observed_at, event_id in zip(kinds, times_observed, ids, strict=True)
    ]


@st.composite
def shuffled_with_repeats(draw, made):
    """Some facts, and the same in another order with some of them repeated."""
    once = draw(made)
    again = draw(st.lists(st.sampled_from(once), max_size=6)) if once else []
    return once, draw(st.permutations(once + again))
