"""Hypothesis strategies for published jobs: all members that a document shows, with the values that tables may have."""

from __future__ import annotations

import orjson
from hypothesis import strategies as st
from msgspec.structs import replace

from correlator.model.document import Comparison, Failure, ForecastState, StepAhead
from correlator.model.facts import Line, Status
from correlator.model.published import Forecast, JobForecast, JobView, PublishedJob, Titles
from correlator.model.rows import LEVELS, StepRecord

texts = st.text(max_size=6)
some_text = st.none() | st.text(min_size=1, max_size=6)
times = st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999)
some_time = st.none() | times
counts = st.integers(0, 5)
sizes = st.none() | st.integers(1, 1 << 40)
shares = st.floats(0, 1)
durations = st.floats(0, 1e6)

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
metadata = st.none() | st.sampled_from(["", "{", "[1]", "null", "{}", '{"a":' * 80 + "1" + "}" * 80]) | st.dictionaries(
    texts, values, max_size=3
).map(lambda value: orjson.dumps(value).decode())  # fmt: skip

steps = st.dictionaries(
    st.integers(1, 1 << 60),
    st.builds(
        StepRecord, id=st.none(), name=texts, seq=st.integers(0, 3),
        status=st.sampled_from(["running", "completed", "failed", "skipped", "odd"]), started_at=some_time,
        completed_at=some_time, error_message=some_text, error_cut=sizes,
    ),
    max_size=4,
).map(lambda found: tuple(replace(step, id=step_id) for step_id, step in found.items()))  # fmt: skip

forecasts = st.builds(
    Forecast, as_of=times, p50=times, p90=times, percent=st.floats(0, 99), runs=counts,
    state=st.sampled_from(ForecastState), typical_seconds=durations, failure_rate=shares,
    steps_ahead=st.lists(st.builds(StepAhead, texts, shares, durations), max_size=3).map(tuple),
)  # fmt: skip
percents = st.floats(0, 100).map(lambda percent: round(percent, 1))
bases = st.sampled_from(["reported", "history"])
compared = st.none() | st.builds(Comparison, durations, counts, st.floats(0, 100))
job_forecasts = st.none() | st.builds(JobForecast, percents, bases, st.none() | forecasts, compared) | st.builds(
    JobForecast, st.none(), st.none(), st.none() | forecasts, compared
)  # fmt: skip

failures = st.none() | st.builds(
    Failure, some_text, some_text, st.sampled_from(["stated", "inferred", "apart", "none"]), texts,
    st.sampled_from(["new", "known", "unknown"]),
)  # fmt: skip

views = st.builds(
    JobView, job_id=st.text(min_size=1, max_size=6), status=st.sampled_from([s for s in Status if s != Status.SKIPPED]),
    source=st.sampled_from(["joblog", "legacy"]), external_ids=st.lists(texts, max_size=3).map(tuple),
    context_id=some_text, parent_job_id=some_text, job_type=some_text, operation=some_text, category=some_text,
    owner=some_text, error=some_text, started_at=some_time, ended_at=some_time, percent=percents,
    basis=st.sampled_from(["reported", "steps", "legacy"]), steps=steps,
    last=st.none() | st.builds(Line, times, st.integers(1, 9), st.sampled_from(LEVELS), texts), warnings=counts,
    errors=counts, metadata=metadata, error_cut=sizes, external_ids_cut=sizes,
    steps_complete=st.booleans(),
)  # fmt: skip


all_titles = st.builds(Titles, *2 * [st.dictionaries(texts, texts, max_size=3)])
"""Of names that are short, as those of the jobs, so that some are the same."""


@st.composite
def published_jobs(draw):
    children = draw(st.lists(texts, max_size=3).map(tuple))
    return PublishedJob(
        draw(views), draw(st.integers(0, 1 << 53)), draw(times), children, len(children) + draw(counts),
        draw(st.booleans()), draw(times), draw(st.booleans()), draw(job_forecasts), draw(st.sampled_from(["", "dc1"])),
        draw(sizes), draw(all_titles), failure=draw(failures),
    )  # fmt: skip
