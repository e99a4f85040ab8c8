"""The order of jobs by age: daemon, Python client and browser client apply the same rule."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from correlator.client import documents
from correlator.jobs.index import Index
from correlator.model.facts import Reading, Status
from correlator.model.published import JobView, PublishedJob
from correlator.model.rows import JobRecord, StepRecord
from tests.support.documents import document_of

BASE = 1_758_553_933_000_000
CLIENT = Path(str(resources.files("correlator.web").joinpath("client.js")))


def made(job_id, status, started, steps):
    return JobView(job_id, Status(status), started_at=started, steps=tuple(StepRecord(i, seq=i) for i in steps))


views = st.builds(
    made,
    st.text("abc-", min_size=1, max_size=4),
    st.sampled_from(["pending", "running", "completed", "failed", "cancelled"]),
    st.none() | st.integers(0, 2).map(lambda s: BASE + s * 1_000_000),
    st.sets(st.integers(1, 50) | st.integers(1, (1 << 53) - 1), max_size=3),
)
several = st.lists(views, min_size=1, max_size=6, unique_by=lambda view: view.job_id)


def document(view):
    return document_of(PublishedJob(view, 1, BASE))


@given(several)
def test_an_id_of_several_jobs_resolves_to_the_same_one_in_index_and_client(found):
    index = Index(retention=2e9)
    index.loading = False
    for view in found:
        record = JobRecord(view.job_id, status=view.status.value, started_at=view.started_at, external_job_id="ext")
        index.apply([Reading(view.job_id, 1, record, view.steps)], BASE)
    resolved = index.published.resolve("ext")
    found_documents = {s.job_id: document_of(s) for s in index.published.all()}
    at_client = documents.named(found_documents, "ext")
    assert resolved is not None
    assert at_client is not None
    assert resolved.job_id == at_client["job_id"]


def test_the_browser_client_finds_the_same_newest_job():
    chance = random.Random(7)
    statuses = ["pending", "running", "completed", "failed", "cancelled"]
    groups = [
        [
            made(
                f"{chance.choice('abc')}-{n}",
                chance.choice(statuses),
                chance.choice([None, BASE, BASE + 1]),
                chance.sample([1, 2, 3, 20, 100, 1 << 40], chance.randint(0, 3)),
            )
            for n in range(chance.randint(1, 5))
        ]
        for _ in range(2_000)
    ]
    node = shutil.which("node") or pytest.fail("node is not installed (Debian: apt-get install nodejs)")
    script = f"""
        const {{ newest }} = await import({json.dumps(CLIENT.as_uri())});
        const chunks = [];
        for await (const chunk of process.stdin) chunks.push(chunk);
        const groups = JSON.parse(Buffer.concat(chunks).toString());
        console.log(JSON.stringify(groups.map((jobs) => newest(jobs).job_id)));
    """
    done = subprocess.run(
        [node, "--input-type=module", "--eval", script],
        input=json.dumps([[document(v) for v in group] for group in groups]),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(done.stdout) == [max(group, key=lambda v: v.age_key).job_id for group in groups]
