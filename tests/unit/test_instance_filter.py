"""The filter by appliance: which jobs match, and that a daemon's database is not searched for what it cannot have."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from correlator.client.client import Client
from correlator.gateway.fleet import RemoteHub, RemoteStatus
from correlator.jobs.index import Index
from correlator.jobs.remote import Marks, RemoteJobs
from correlator.model.facts import Reading
from correlator.model.facts import Status as StatusOfJob
from correlator.model.published import JobView, PublishedJob
from correlator.model.rows import JobRecord
from correlator.pipeline.pipeline import LocalHub
from correlator.pipeline.queries import ArchivePage
from tests.support.eventually import eventually
from tests.support.http_listener import served
from tests.support.stream_clients import CheckedWebsocket, closing
from tests.support.subscriptions import Wanted

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


def live() -> RemoteStatus:
    """The status of appliances that are all live."""
    status = RemoteStatus(list, lambda: None)
    status.loading = False
    status.judge()
    return status


def of(job_id: str, instance: str, rev: int) -> PublishedJob:
    return PublishedJob(JobView(job_id, StatusOfJob.RUNNING, started_at=NOW), rev, 0, instance=instance)


async def test_at_a_gateway_a_client_gets_the_jobs_of_its_appliances_until_they_are_elsewhere() -> None:
    jobs = RemoteJobs(Marks())
    hub = RemoteHub(jobs, live(), epoch="e")
    for rev, (job_id, instance) in enumerate([("a", "dc1"), ("b", "dc2"), ("c", "dc3")], 1):
        jobs.put(of(job_id, instance, rev))
    async with (
        served(hub) as url,
        Client(url) as client,
        closing([reader := CheckedWebsocket(url, Wanted(instance=("dc1", "dc2")))]),
    ):
        listed = await client.jobs({"instance": ("dc1", "dc2")}, 10)
        assert {job["job_id"]: job["instance"] for job in listed.found} == {"a": "dc1", "b": "dc2"}
        await reader.connect()
        await eventually(lambda: reader.jobs.keys() == {"a", "b"})
        hub.publish(jobs.put(of("a", "dc3", 4)) + jobs.put(of("d", "dc2", 5)))
        await eventually(lambda: reader.jobs.keys() == {"b", "d"})
        assert [(m["job_id"], m["reason"]) for m in reader.messages if m["type"] == "delete"] == [("a", "filter")]
