"""Jobs that `max_jobs` removed although they are newer than the retention: the database is asked for them."""

from __future__ import annotations

import json
import time

from aiohttp.test_utils import make_mocked_request

from correlator.jobs.index import Index
from correlator.jobs.model.facts import Reading
from correlator.jobs.model.rows import JobRecord
from correlator.jobs.model.views import Resolved
from correlator.pipeline.local_hub import LocalHub
from correlator.pipeline.queries import Found, JobsPage
from correlator.sinks.http.rest import Rest
from correlator.sinks.turns import Work

NOW = time.time_ns() // 1_000
SECOND = 1_000_000


class Tables:
    """An archive of jobs."""

    def __init__(self, *readings: Reading) -> None:
        self.readings = {reading.job_id: reading for reading in readings}

    async def find(self, name, advance_clock):
        return Found(Resolved(self.newest.job_id, "external_id"), self.newest)

    async def is_context(self, name):
        return False

    async def page(self, query, before, limit, advance_clock, known):
        return JobsPage([reading for job_id, reading in self.readings.items() if not known(job_id)], None)

    async def lines(self, names, after, limit, query):
        raise NotImplementedError

    async def lines_before(self, names, before, limit, query):
        raise NotImplementedError

    @property
    def newest(self):
        return max(self.readings.values(), key=lambda reading: reading.record.started_at or 0 if reading.record else 0)


def job(job_id, status, started, ended=None, ext=None):
    times = {"started_at": NOW - started * SECOND, "completed_at": None if ended is None else NOW - ended * SECOND}
    return Reading(job_id, 1, JobRecord(job_id, status=status, external_job_id=ext, **times), ())


def hub_with(*readings, max_jobs):
    index = Index(max_jobs=max_jobs)
    index.loading = False
    index.apply(readings, NOW)
    index.expire(NOW)
    hub = LocalHub(index, Tables(*readings))
    hub.apply_found_with(lambda readings: None)
    return hub


async def test_an_id_resolves_to_the_newest_job_though_memory_had_no_room_for_it():
    readings = (
        job("old-running", "running", 3600, ext="gui"),
        job("newer", "completed", 1800, 1700, ext="gui"),
        job("x", "completed", 100, 90),
    )
    hub = hub_with(*readings, max_jobs=2)
    assert hub.find_now("gui")[0].job_id == "old-running"
    hub.archive.readings.pop("x")
    assert (await hub.find("gui"))[0].job_id == "newer"


async def test_a_page_of_jobs_has_those_for_which_memory_had_no_room():
    hub = hub_with(
        job("old-running-1", "running", 3600),
        job("old-running-2", "running", 3500),
        job("removed", "completed", 1800, 1700),
        job("x", "completed", 100, 90),
        max_jobs=3,
    )
    response = await Rest(hub, Work()).jobs(make_mocked_request("GET", "/api/v1/jobs?limit=2"))
    assert isinstance(response.body, bytes)
    assert [one["job_id"] for one in json.loads(response.body)["jobs"]] == ["x", "removed"]
