"""Pages of jobs: while the database does not answer, while many ask for them, while jobs enter and leave memory."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import socket
import time
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from correlator.errors import SourceUnavailable
from correlator.jobs import encoding
from correlator.jobs.index import Index
from correlator.pipeline.pipeline import LocalHub
from correlator.pipeline.queries import ArchivePage, JobQuery, LinesFound
from correlator.sinks.http.audit import Audit
from correlator.sinks.http.rest import JobPages, Rest, encode_cursor
from correlator.sinks.turns import Work
from tests.support import raw_http
from tests.support.answering_collectors import BASE, SECOND, ArchiveInMemory, reading
from tests.support.eventually import PATIENCE, eventually
from tests.support.http_listener import served
from tests.support.pipeline_harness import PipelineHarness
from tests.support.virtual_time import VirtualTimeLoop

NOW = BASE + 1_000 * SECOND


async def _page(pages: JobPages, cursor: str | None, limit: int) -> dict[str, Any]:
    body: Any = (await pages.respond(JobQuery(), cursor, limit, "192.0.2.1")).body
    page: dict[str, Any] = json.loads(body)
    return page


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
    page = await _page(JobPages(LocalHub(Index(), archive), Work()), None, 8)
    assert [job["job_id"] for job in page["jobs"]] == ["u8", "u7", "u6", "u5"]
    assert page["next_cursor"] == encode_cursor(archive.place(archive.jobs[3]))
    assert page["reason"] is None


async def test_a_first_page_without_the_database_has_the_jobs_in_memory_and_the_reason():
    archive = FailsLater([reading("u1", 1)])
    pages = JobPages(LocalHub(Index(), archive), Work())
    page = await _page(pages, None, 8)
    assert (page["jobs"], page["next_cursor"], page["reason"]) == ([], None, "it went away")
    with pytest.raises(SourceUnavailable):
        await _page(pages, "WzEsInUxIl0", 8)


class Slow(ArchiveInMemory):
    """A database that takes 0.1 s for each query, and finds only the jobs that match."""

    def __init__(self, jobs, matching):
        super().__init__(jobs, page_size=1)
        self.matching = matching

    async def page(self, *query):
        await asyncio.sleep(0.1)
        found = await super().page(*query)
        return ArchivePage([r for r in found.readings if r.job_id in self.matching], found.next_before)


@pytest.mark.parametrize(("match", "seconds"), [("u98", 0.2), ("u96", 0.4), ("u5", 0.5)])
def test_a_page_with_a_job_is_returned_at_once_and_an_empty_one_after_half_a_second(match, seconds):
    loop = VirtualTimeLoop()
    pages = JobPages(LocalHub(Index(), Slow([reading(f"u{n}", n) for n in range(100)], {match})), Work())
    read = loop.create_task(_page(pages, None, 50))
    began = loop.time()
    read.add_done_callback(lambda _: loop.stop())
    loop.run(10)
    assert loop.time() - began == pytest.approx(seconds, abs=0.05)
    assert [job["job_id"] for job in read.result()["jobs"]] == ([match] if match != "u5" else [])
    assert read.result()["next_cursor"] is not None
    loop.close()


def _with_jobs(count: int, **columns) -> PipelineHarness:
    harness = PipelineHarness()
    for n in range(count):
        harness.read(f"u{n:03}", **columns)
    return harness


def _listed(response: web.Response) -> list[dict[str, Any]]:
    assert isinstance(response.body, bytes)
    jobs: list[dict[str, Any]] = json.loads(response.body)["jobs"]
    return jobs


async def test_a_document_in_lists_is_encoded_once_for_each_revision(monkeypatch):
    harness = _with_jobs(3)
    rest, made = Rest(harness.hub, Work(), Audit(time.monotonic)), list[str]()
    document = encoding.document

    def counted(shown, *args, **options):
        made.append(shown.job_id)
        return document(shown, *args, **options)

    monkeypatch.setattr(encoding, "document", counted)
    bodies = [(await rest.jobs(make_mocked_request("GET", "/api/v1/jobs"))).body for _ in range(3)]
    assert bodies[0] == bodies[1] == bodies[2]
    assert sorted(made) == ["u000", "u001", "u002"]
    harness.read("u001", status="failed")
    changed = _listed(await rest.jobs(make_mocked_request("GET", "/api/v1/jobs")))
    assert {job["job_id"]: job["status"] for job in changed}["u001"] == "failed"
    assert sorted(made[3:]) == ["u001"]


async def test_lists_that_are_asked_for_at_once_are_made_in_different_rounds_of_the_loop():
    rest = Rest(_with_jobs(120).hub, Work(), Audit(time.monotonic))
    made: list[int] = []
    done = 0

    async def one() -> None:
        nonlocal done
        assert len(_listed(await rest.jobs(make_mocked_request("GET", "/api/v1/jobs?limit=100")))) == 100
        done += 1

    lists = [asyncio.create_task(one()) for _ in range(50)]
    while not all(task.done() for task in lists):
        made.append(done)
        await asyncio.sleep(0)
    await asyncio.gather(*lists)
    assert max(b - a for a, b in itertools.pairwise([*made, done])) == 1


async def test_a_client_that_reads_no_list_uses_up_its_own_share_of_memory_and_nothing_of_others():
    """100 jobs of 80 kB are a page of 8 MB; the kernel's buffers take a part of each."""
    work_of_client = 0
    harness = _with_jobs(100, error_message="x" * 80_000)
    async with served(harness.hub) as url:
        port = int(url.rpartition(":")[2])
        slow = []
        try:
            while work_of_client < 100:
                client = socket.socket()
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.setblocking(False)
                await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
                slow.append(client)
                await asyncio.get_running_loop().sock_sendall(client, raw_http.get("/api/v1/jobs?limit=100"))
                answer = await asyncio.get_running_loop().sock_recv(client, 12)
                if answer == b"HTTP/1.1 429":
                    break
                assert answer == b"HTTP/1.1 200"
                work_of_client += 1
            assert 2 <= work_of_client <= 3
            async with aiohttp.ClientSession(url) as session:
                async with session.get("/health/live") as response:
                    assert response.status == 200
                async with session.get("/api/v1/jobs/u001") as response:
                    assert response.status == 200
                for client in slow:
                    client.close()

                async def is_served() -> bool:
                    async with session.get("/api/v1/jobs?limit=100") as response:
                        return response.status == 200 and len((await response.json())["jobs"]) == 100

                await eventually(is_served)
        finally:
            for client in slow:
                client.close()


WITHOUT_BODY = ("HEAD /client.js", "HEAD /api/v1/jobs", "HEAD /nothing", "GET /client.js", "OPTIONS /client.js")
"""Requests whose answers need no token, and have no body: the fourth has the file, the last one asks as a browser."""


@pytest.mark.parametrize("request_line", [*WITHOUT_BODY, "GET /health/live", "HEAD /api/v1/jobs/u000/log"])
async def test_a_client_that_reads_no_answer_is_disconnected_whatever_it_asks_for(request_line: str):
    harness, loop = _with_jobs(1), asyncio.get_running_loop()
    tokens = () if request_line.endswith("/log") else ("a-secret",)
    async with served(harness.hub, tokens=tokens, accepted_within=0.3) as url:
        async with aiohttp.ClientSession(url) as session, session.get("/client.js") as file:
            etag = file.headers["ETag"].replace("-gzip", "")
        lines = f"Host: 127.0.0.1\r\nOrigin: {url}\r\nIf-None-Match: {etag}\r\n\r\n"
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 100)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", int(url.rpartition(":")[2])))
            with pytest.raises(ConnectionError):
                await _repeat(client, f"{request_line} HTTP/1.1\r\n{lines}".encode() * 20)


async def _repeat(client: socket.socket, requests: bytes) -> None:
    """Send these until the connection ends."""
    async with asyncio.timeout(PATIENCE):
        while True:
            await asyncio.get_running_loop().sock_sendall(client, requests)
            await asyncio.sleep(0.02)


async def test_clients_without_a_token_that_read_no_file_take_nothing_from_lists():
    """Files are the same bytes for all clients: what counts is what waits in the transport of each."""
    harness, loop = _with_jobs(100, error_message="x" * 1_000), asyncio.get_running_loop()
    async with served(harness.hub, tokens=("a-secret",)) as url, contextlib.AsyncExitStack() as opened:
        port = int(url.rpartition(":")[2])
        answer = b""
        for _ in range(700):
            client = opened.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", port))
            await loop.sock_sendall(client, b"GET /client.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
            answer = await loop.sock_recv(client, 12)
            if answer != b"HTTP/1.1 200":
                break
        wants = raw_http.get("/api/v1/jobs?limit=100", "Authorization: Bearer a-secret")
        assert (await raw_http.exchange(port, wants)).status == 200
        assert (await raw_http.exchange(port, raw_http.get("/health/live"))).status == 200
        assert answer == b"HTTP/1.1 429"


async def test_clients_that_leave_before_they_have_their_lists_leave_no_traceback_in_the_log(monkeypatch, caplog):
    """All leave while the second list is made: the third is written in the round that has seen its client's end."""
    hub, loop = _with_jobs(120).hub, asyncio.get_running_loop()
    newest, made = hub.published.newest, 0
    clients: list[socket.socket] = []

    def all_leave_at_the_second(*place: Any) -> Any:
        nonlocal made
        made += 1
        if made == 2:
            for client in clients:
                client.close()
        return newest(*place)

    async with served(hub) as url, aiohttp.ClientSession(url) as session:
        for _ in range(5):
            clients.append(socket.socket())
            clients[-1].setblocking(False)
            await loop.sock_connect(clients[-1], ("127.0.0.1", int(url.rpartition(":")[2])))
            await loop.sock_sendall(clients[-1], raw_http.get("/health/live", "Connection: keep-alive"))
            await loop.sock_recv(clients[-1], 4096)
        monkeypatch.setattr(hub.published, "newest", all_leave_at_the_second)
        for client in clients:
            client.send(raw_http.get("/api/v1/jobs", "Connection: keep-alive"))
        await eventually(lambda: made >= 2)
        async with session.get("/health/live"):  # Once it is answered, the listener has seen the ends.
            pass
    assert caplog.messages == []


class Churn(ArchiveInMemory):
    """A database; before each of its answers some of its jobs enter memory, and others leave it."""

    def __init__(self, seed):
        self.chance = random.Random(seed)
        ends = self.chance.sample(range(200), 200)
        super().__init__([reading(f"u{n:03}", n, completed_at=NOW - ends[n]) for n in range(200)], page_size=7)
        self.index = Index(max_jobs=20, retention=500)  # The jobs are older, so memory alone is never a whole page.
        self.unread = list(self.jobs)
        self.chance.shuffle(self.unread)

    def change(self):
        self.index.apply([self.unread.pop() for _ in range(min(5, len(self.unread)))], NOW)
        if self.chance.random() < 0.5:
            self.index.expire(NOW)

    async def page(self, *query):
        self.change()
        found = await super().page(*query)
        self.change()
        return found


@pytest.mark.parametrize("seed", range(8))
async def test_a_whole_listing_has_each_job_once_while_jobs_enter_and_leave_memory(seed):
    archive = Churn(seed)
    for _ in range(5):
        archive.change()
    pages, listed, cursor = JobPages(LocalHub(archive.index, archive, clock=lambda: NOW), Work()), [], None
    while True:
        page = await _page(pages, cursor, 9)
        listed += [job["job_id"] for job in page["jobs"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert listed == [one.job_id for one in archive.jobs]


async def test_the_share_of_the_logs_that_is_searched_never_falls_from_page_to_page():
    class Away(ArchiveInMemory):
        async def find_lines(self, asked):
            place = asked.places.get("", 9)
            return LinesFound(places={"": place - 1}, searched=(0.4, 0.2, 0.6)[9 - place])

    cursor, shares = "", list[float]()
    async with served(LocalHub(Index(), Away())) as url, aiohttp.ClientSession() as session:
        for _ in range(3):
            async with session.get(f"{url}/api/v1/events?text=abc{cursor}") as response:
                page = await response.json()
            cursor = f"&cursor={page['next_cursor']}"
            shares.append(page["searched"])
    assert shares == [0.4, 0.4, 0.6]
