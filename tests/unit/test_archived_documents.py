"""Documents of jobs that the database has: one that comes into memory meanwhile is shown as it is published."""

from __future__ import annotations

from typing import Any

import aiohttp
import orjson
import pytest

from correlator.jobs.index import Index
from correlator.model.facts import Entry, Reading
from correlator.model.replies import Resolved
from correlator.model.rows import JobRecord, LegacyRecord
from correlator.pipeline.pipeline import LocalHub
from correlator.pipeline.queries import ArchivePage, Found, JobQuery
from tests.support.documents import document_of
from tests.support.forecasts import BASE, SECOND
from tests.support.http_listener import served
from tests.support.there import there


class Meanwhile:
    """An archive that has read a job just before the tail published it, with a log line that the tables lack."""

    def __init__(self) -> None:
        self.index = Index()
        self.index.loading = False

    def _read(self) -> Reading:
        record = JobRecord("j", status="running", external_job_id="x", started_at=BASE)
        reading = Reading("j", self.index.advance_clock(), record, ())
        line = Entry(1, BASE + SECOND, "WARN", "a line", self.index.advance_clock(), "j", by="attrs")
        self.index.apply([reading, line], BASE + SECOND)
        return reading

    async def page(self, *_: Any) -> ArchivePage:
        return ArchivePage([self._read()], None)

    async def find(self, name: str, _: Any) -> Found | None:
        return Found(Resolved("j", "external_id", ()), reading=self._read())


@pytest.mark.parametrize("path", ["jobs?steps=1", "jobs/x"])
async def test_a_job_that_comes_into_memory_while_the_database_answers_is_shown_as_published(path):
    archive: Any = Meanwhile()
    async with (
        served(LocalHub(archive.index, archive)) as url,
        aiohttp.ClientSession() as session,
        session.get(f"{url}/api/v1/{path}") as response,
    ):
        body = orjson.loads(await response.read())
    (job,) = body.get("jobs", [body])
    assert job == document_of(there(archive.index.published.get("j")))
    assert job["warnings"] == 1


async def test_a_page_has_no_row_of_failover_jobs_whose_id_memory_knows_as_that_of_a_joblog_job():
    index = Index()
    record = JobRecord("j", status="running", started_at=BASE)
    named = Entry(1, BASE, "INFO", "a line", index.advance_clock(), "j", external_ids=("named-by-the-log",), by="attrs")
    index.apply([Reading("j", index.advance_clock(), record, ()), named], BASE)
    rows = [LegacyRecord(n, name, "failed", created_at=BASE) for n, name in enumerate(("named-by-the-log", "legacy"))]

    class Rows:
        async def page(self, *_: Any) -> ArchivePage:
            return ArchivePage((), None, rows)

    archive: Any = Rows()
    found = await LocalHub(index, archive).page(JobQuery(), None, 10, lambda _: False)
    assert [shown.job_id for shown in found.jobs] == ["legacy"]
