"""The filter by appliance: which jobs match, and that a daemon's database is not searched for what it cannot have."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from correlator.jobs.index import Index
from correlator.model.facts import Reading
from correlator.model.rows import JobRecord
from correlator.pipeline.pipeline import LocalHub
from correlator.pipeline.queries import ArchivePage
from tests.support.http_listener import served

NOW = 1_758_550_000_000_000


class Searched:
    """An archive that has no job. `pages`: how often it was asked for a page."""

    def __init__(self) -> None:
        self.pages = 0

    async def page(self, *_: Any) -> ArchivePage:
        self.pages += 1
        return ArchivePage((), None)


@pytest.fixture
def archive() -> Searched:
    return Searched()


@pytest.fixture
def hub(archive: Any) -> LocalHub:
    """A daemon with one job."""
    index = Index()
    index.loading = False
    index.apply([Reading("j", 1, JobRecord("j", status="running", started_at=NOW), ())], NOW)
    return LocalHub(index, archive)


async def test_a_page_of_a_daemon_has_no_job_of_an_appliance_and_asks_no_database(
    hub: LocalHub, archive: Searched
) -> None:
    async with served(hub) as url, aiohttp.ClientSession() as session:
        async with session.get(f"{url}/api/v1/jobs?instance=dc1&instance=dc2") as response:
            body = await response.json()
        assert (response.status, body["jobs"], body["next_cursor"], body["complete"]) == (200, [], None, True)
        assert archive.pages == 0
        async with session.get(f"{url}/api/v1/jobs") as response:
            assert [job["job_id"] for job in (await response.json())["jobs"]] == ["j"]
        assert archive.pages == 1
