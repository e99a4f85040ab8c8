"""Pages of jobs while the database, or that of one appliance, does not answer."""

from __future__ import annotations

import asyncio

import pytest

from correlator.errors import SourceUnavailable
from correlator.jobs.index import Index
from correlator.pipeline.local_hub import LocalHub
from correlator.pipeline.queries import JobQuery, JobsPage
from correlator.sinks.http.job_pages import JobPages
from tests.support.answering_collectors import ArchiveInMemory, reading
from tests.support.virtual_time import VirtualTimeLoop


class FailsLater(ArchiveInMemory):
    """A database that answers so many queries, and then none."""

    answers = 0

    async def page(self, *query):
        if len(self.asked) == self.answers:
            self.error = SourceUnavailable("it went away")
        return await super().page(*query)


async def test_what_was_read_before_the_database_went_away_is_a_page_and_the_next_one_fails():
    archive = FailsLater([reading(f"u{n}", n) for n in range(9)], page_size=2)
    archive.answers = 2
    pages = JobPages(LocalHub(Index(), archive))
    page = await pages.read(JobQuery(), None, 8)
    assert [job.job_id for job in page.jobs] == ["u8", "u7", "u6", "u5"]
    assert page.following == (archive.place(archive.jobs[3]))
    assert page.reason is None


async def test_a_first_page_without_the_database_has_the_jobs_in_memory_and_the_reason():
    archive = FailsLater([reading("u1", 1)])
    pages = JobPages(LocalHub(Index(), archive))
    page = await pages.read(JobQuery(), None, 8)
    assert (page.jobs, page.following, page.reason) == ([], None, "it went away")
    with pytest.raises(SourceUnavailable):
        await pages.read(JobQuery(), "WzEsInUxIl0", 8)


class Slow(ArchiveInMemory):
    """A database that takes 0.1 s for each query, and finds only the jobs that match."""

    def __init__(self, jobs, matching):
        super().__init__(jobs, page_size=1)
        self.matching = matching

    async def page(self, *query):
        await asyncio.sleep(0.1)
        found = await super().page(*query)
        return JobsPage([r for r in found.readings if r.job_id in self.matching], found.next_before)


@pytest.mark.parametrize(("match", "seconds"), [("u98", 0.2), ("u96", 0.4), ("u5", 0.5)])
def test_a_page_with_a_job_is_returned_at_once_and_an_empty_one_after_half_a_second(match, seconds):
    loop = VirtualTimeLoop()
    pages = JobPages(LocalHub(Index(), Slow([reading(f"u{n}", n) for n in range(100)], {match})))
    read = loop.create_task(pages.read(JobQuery(), None, 50))
    began = loop.time()
    read.add_done_callback(lambda _: loop.stop())
    loop.run(10)
    assert loop.time() - began == pytest.approx(seconds, abs=0.05)
    assert [job.job_id for job in read.result().jobs] == ([match] if match != "u5" else [])
    assert read.result().following is not None
    loop.close()
