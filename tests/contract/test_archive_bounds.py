"""What one request may cost the database, at sizes where the whole table would be too much."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest

from correlator.errors import Away, SourceUnavailable
from correlator.pipeline.queries import JobQuery, LineQuery, LogLines
from correlator.sources.archive import lines
from correlator.sources.db.mariadb import MariaDBSession
from correlator.sources.search import MAX_FOUND
from tests.support.archive_queries import archive_of, at, found, listed, logical_time, names, of, unix
from tests.support.eventually import eventually


@pytest.fixture
async def in_mariadb(one_mariadb):
    async with archive_of(one_mariadb) as archive:
        yield archive, one_mariadb


@pytest.fixture
def asked(monkeypatch) -> list[tuple[str, int]]:
    """Every query of the sessions of MariaDB, with the bytes of its answer."""
    seen: list[tuple[str, int]] = []
    query = MariaDBSession.query

    async def counted(self: Any, sql: str, args: Any = ()) -> Any:
        rows = await query(self, sql, args)
        seen.append((sql, sum(len(str(value)) for row in rows for value in row)))
        return rows

    monkeypatch.setattr(MariaDBSession, "query", counted)
    return seen


async def many_jobs(appliance, count: int) -> None:
    """Old jobs with the metadata that JobLog's callers write."""
    await appliance.run(
        "INSERT INTO job_tracking (id, operation, status, started_at, metadata) SELECT CONCAT('job-', seq), 'op',"
        ' \'completed\', UTC_TIMESTAMP() - INTERVAL seq MINUTE, CONCAT(\'{"vm_name": "machine", "failover_type":'
        f' "live", "gui_job_id": null, "note": "\', REPEAT(\'x\', 200), \'"}}\') FROM seq_1_to_{count}'
    )


async def test_an_id_or_a_text_that_is_in_every_row_finds_no_job_and_brings_no_rows(in_mariadb, asked):
    archive, appliance = in_mariadb
    await many_jobs(appliance, 5000)
    await appliance.job("vm_name-job", started_at=at(-90_000_000 // 1000))
    for name in ("null", "e", "1", "vm_name", "live", "machine", "x"):
        asked.clear()
        assert await found(archive, name) is None, name
        assert sum(size for _, size in asked) < 50_000, name
    asked.clear()
    assert await listed(archive, JobQuery(text="vm_name")) == ["vm_name-job"]
    assert sum(size for _, size in asked) < 50_000


async def test_pages_that_stop_after_one_slice_miss_and_repeat_no_job(original):
    appliance = original
    async with archive_of(appliance, jobs_within=0.0, slices=of(3)) as archive:
        due = [f"job-{n:02}" for n in range(20)]
        for number, job_id in enumerate(due):
            await appliance.job(job_id, started_at=at(number // 3), metadata=json.dumps({"vm_name": f"m-{number % 5}"}))
        assert await listed(archive, JobQuery()) == due[::-1]
        assert await listed(archive, JobQuery(text="M-3"), 1) == ["job-18", "job-13", "job-08", "job-03"]
        assert not (await archive.page(JobQuery(text="m-0"), None, 5, logical_time)).readings[1:]


async def test_a_page_of_large_jobs_ends_after_some_megabytes(current):
    archive, appliance = current
    for number in range(8):
        await appliance.job(f"job-{number}", started_at=at(number), metadata=json.dumps({"blob": "x" * 1_000_000}))
    page = await archive.page(JobQuery(), None, 100, logical_time)
    assert len(page.readings) < 8
    assert await listed(archive, JobQuery()) == [f"job-{n}" for n in reversed(range(8))]


async def test_a_search_that_is_not_over_says_so_and_the_next_one_continues_it(original):
    appliance = original
    async with archive_of(appliance, search_within=0.0, slices=of(3)) as archive:
        for number in range(10):
            await appliance.job(
                f"job-{number}", started_at=at(number), metadata=json.dumps({"gui_job_id": f"g-{number}"})
            )
        for _ in range(3):
            with pytest.raises(SourceUnavailable) as unfinished:
                await archive.find("g-0", logical_time)
            assert unfinished.value.reason is Away.UNFINISHED
        assert await found(archive, "g-0") == ("job-0", "external_id", ())


async def test_a_repeated_id_leads_to_the_newest_job_however_far_it_is_from_the_id_s_second(current):
    archive, appliance = current
    name = f"live-vm-{unix(0)}"
    await appliance.job("near", started_at=at(1), metadata=json.dumps({"gui_job_id": name}))
    await appliance.job("newer", started_at=at(3 * 86_400), metadata=json.dumps({"gui_job_id": name}))
    await appliance.job("in-its-column", started_at=at(2 * 86_400), external_job_id=name)
    assert await found(archive, name) == ("newer", "external_id", ("in-its-column", "near"))
    for of_no_time in ("live-1000000000", "live-9999999999"):
        await appliance.job(of_no_time[::-1], metadata=json.dumps({"gui_job_id": of_no_time}), started_at=at(2))
        assert await found(archive, of_no_time) == (of_no_time[::-1], "external_id", ())


async def test_of_more_jobs_with_an_id_than_are_read_the_newest_are_found(archive, either_original):
    appliance = either_original
    for number in range(MAX_FOUND + 1):  # the job IDs descend as the times ascend
        await appliance.job(f"job-{900 - number}", external_job_id="ext", started_at=at(number))
    newest = [f"job-{900 - number}" for number in reversed(range(1, MAX_FOUND + 1))]
    assert await found(archive, "ext") == (newest[0], "external_id", tuple(newest[1:]))
    await appliance.job("job-in-metadata", metadata=json.dumps({"gui_job_id": "ext"}), started_at=at(MAX_FOUND + 1))
    async with archive_of(appliance) as afresh:
        assert await found(afresh, "ext") == ("job-in-metadata", "external_id", tuple(newest[:-1]))


async def test_a_newer_job_is_found_by_its_log_though_many_have_the_id_in_their_rows(current):
    archive, appliance = current
    for number in range(MAX_FOUND):
        await appliance.job(f"job-{number}", external_job_id="ext", started_at=at(number))
    await appliance.job("in-the-log", started_at=at(MAX_FOUND))
    await appliance.log("x", job_id="in-the-log", external_job_id="ext")
    job_id, _, also = await found(archive, "ext")
    assert (job_id, len(also)) == ("in-the-log", MAX_FOUND - 1)


async def test_the_same_id_asked_for_by_many_at_once_is_searched_once(in_mariadb, asked):
    archive, appliance = in_mariadb
    await many_jobs(appliance, 50)
    assert await asyncio.gather(*(archive.find("nobody", logical_time) for _ in range(20))) == [None] * 20
    assert sum("INSTR(metadata" in sql for sql, _ in asked) <= 2
    asking = [asyncio.create_task(archive.find("nobody-else", logical_time)) for _ in range(2)]
    await asyncio.sleep(0)
    asking[0].cancel()
    assert await asking[1] is None  # whoever leaves takes the search from nobody


async def test_a_page_of_lines_reads_no_more_than_some_slices_of_the_log(one_mariadb):
    appliance = one_mariadb
    async with archive_of(appliance, page_within=0.0, slices=of(500)) as archive:
        await appliance.job("u1", started_at=at(0))
        await appliance.run(
            "INSERT INTO log_events (level, message, attrs, ts) SELECT 'INFO', 'm',"
            f" IF(seq MOD 1000 = 0, '{{\"job_id\":\"u1\"}}', '{{\"a\":1}}'), '{at(1)}' FROM seq_1_to_5000"
        )
        counts, after = list[int](), None
        while (page := await archive.lines(LogLines(names(), after, 100, LineQuery()))).more:
            counts.append(len(page.lines))
            after = page.next_after
        assert sum(counts) + len(page.lines) == 5
        assert len(counts) >= 9
        assert 0 in counts, "a page may be empty before the end"


async def test_lines_of_a_megabyte_each_come_some_at_a_time(current):
    archive, appliance = current
    await appliance.job("u1", started_at=at(0))
    large = json.dumps({"job_id": "u1", "blob": "x" * 1_000_000})
    due = [await appliance.log("m", ts=at(1, micros=n), attrs=large) for n in range(10)]
    counts, returned, after = list[int](), list[int](), None
    while True:
        page = await archive.lines(LogLines(names(), after, 1000, LineQuery()))
        counts.append(len(page.lines))
        returned += [line.event_id for line in page.lines]
        after = page.next_after
        if not page.more:
            break
    assert returned == due
    assert max(counts) * 1_000_000 <= lines.MAX_BYTES


async def test_lines_that_are_committed_late_are_returned_once_in_pages_of_any_size(current):
    archive, appliance = current
    await appliance.job("u1", started_at=at(0))
    async with appliance.transaction() as slow:
        due = [await slow.log(f"late {n}", ts=at(3590, micros=n), attrs='{"job_id":"u1"}') for n in range(7)]
        due.append(await appliance.log("early", ts=at(3591, micros=0), attrs='{"job_id":"u1"}'))
        page = await archive.lines(LogLines(names(), None, 3, LineQuery()))
        returned = [line.event_id for line in page.lines]
        await slow.commit()
    while len(returned) < len(due) and page.next_after is not None:
        page = await archive.lines(LogLines(names(), page.next_after, 3, LineQuery()))
        assert len(page.lines) <= 3
        returned += [line.event_id for line in page.lines]
    assert sorted(returned) == sorted(due)
    assert (await archive.lines(LogLines(names(), page.next_after, 3, LineQuery()))).lines == []


async def test_a_request_that_is_given_up_ends_its_query_in_the_server(mariadb_original):
    await many_jobs(mariadb_original, 300)
    database = mariadb_original.source(query_timeout=60.0)
    sessions = [await database.open() for _ in range(3)]
    endless = "SELECT COUNT(*) FROM job_tracking a, job_tracking b, job_tracking c, job_tracking d WHERE a.id > d.owner"
    running = [asyncio.create_task(s.query(endless)) for s in sessions]

    async def scans() -> int:
        rows = await mariadb_original.run(
            "SELECT COUNT(*) FROM information_schema.processlist"
            " WHERE command = 'Query' AND info LIKE 'SELECT COUNT(*) FROM job_tracking a, %'"
        )
        return int(rows[0][0])

    async def all_run() -> bool:
        return await scans() == 3

    async def none_runs() -> bool:
        return await scans() == 0

    await eventually(all_run)
    for task in running:
        task.cancel()
    for task in running:
        with contextlib.suppress(asyncio.CancelledError):
            await task
    await eventually(none_runs)
