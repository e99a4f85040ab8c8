"""What a search costs the server: rows that it reads, however many jobs the table has."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from correlator.config.loading import load
from correlator.pipeline.queries import FindLines, JobQuery, LineQuery
from correlator.sources.archive.archive import DatabaseArchive
from correlator.sources.databases import database_of
from correlator.sources.db.mariadb import MariaDBSession
from tests.support.archive_queries import logical_time, of
from tests.support.bulk_rows import counters, vm, year_of_jobs
from tests.support.mariadb import Database

JOBS, SLICE = 8_000, 500
OF_LAST_MONTH = JOBS * 35 // 365
ROWS_OF_A_JOB = 8
"""Most reads for each job of a slice: it is counted, read, and each of its steps is found by the index and read."""


async def reads(database: Database, query: Callable[[], Awaitable[object]]) -> dict[str, int]:
    before = await counters(database)
    await query()
    after = await counters(database)
    return {name: after[name] - before[name] for name in after}


async def test_a_search_reads_a_slice_of_the_jobs_by_the_index_of_their_starts(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    await year_of_jobs(database, JOBS, 100, OF_LAST_MONTH)
    asked: list[tuple[str, Sequence[object]]] = []
    query = MariaDBSession.query

    async def noted(self: MariaDBSession, sql: str, args: Sequence[object] = ()) -> object:
        asked.append((sql, args))
        return await query(self, sql, args)

    words = frozenset({vm(OF_LAST_MONTH), "copy"})
    source = database_of(load(None, {"CORRELATOR_DATABASE__URL": database.url, "HOME": str(tmp_path)}))
    archive = DatabaseArchive(source, jobs_within=0.0, slices=of(SLICE))
    try:
        await archive.page(JobQuery(), None, 1, logical_time)  # the session is open, the schema is read
        monkeypatch.setattr(MariaDBSession, "query", noted)
        cost = await reads(database, lambda: archive.page(JobQuery(words=words), None, 100, logical_time))
        assert sum(n for name, n in cost.items() if name.startswith("Handler")) < ROWS_OF_A_JOB * SLICE + 1_000

        # A period begins there: the first slice has the job, whatever is newer.
        end = int((datetime.now(UTC) - timedelta(days=34)).timestamp()) * 1_000_000
        page = await archive.page(JobQuery(words=words, until=end), None, 100, logical_time)
        assert len(page.readings) == 1
    finally:
        await archive.close()

    searches = [(sql, args) for sql, args in asked if "REGEXP" in sql or "OFFSET" in sql]
    assert len(searches) == 4
    async with database.connect() as connection, connection.cursor() as cursor:
        for sql, args in searches:
            await cursor.execute(f"EXPLAIN {sql}", list(args))
            keys = {row[2]: row[5] for row in await cursor.fetchall()}
            assert keys.pop("job_tracking") == "idx_started_at"
            assert keys in ({}, {"job_steps": "uk_job_steps_job_seq"})


@pytest.mark.parametrize(("text", "most"), [("nowhere", 1.1), ("block", 4)])
async def test_a_search_of_the_log_reads_rows_forward_and_few_of_them_twice(
    database: Database, tmp_path: Path, text: str, most: float
):
    """Backwards costs a fourth more. `most`: reads for each row, of which a text that each has reads some again."""
    rows = 10_000
    async with database.connect() as connection, connection.cursor() as cursor:
        await cursor.execute(
            "INSERT INTO log_events (level, message) SELECT 'INFO', CONCAT('block ', seq) FROM seq_1_to_%s", (rows,)
        )
    source = database_of(load(None, {"CORRELATOR_DATABASE__URL": database.url, "HOME": str(tmp_path)}))
    archive = DatabaseArchive(source, page_within=0.0)
    found, places = list[int](), dict[str, int]()

    async def search() -> None:
        nonlocal places
        while not found or places:
            page = await archive.find_lines(FindLines(500, LineQuery(words=frozenset({text})), places=places))
            found.extend([line.event_id for line in page.lines] or [0])
            places = dict(page.places)

    try:
        cost = await reads(database, search)
    finally:
        await archive.close()
    assert found == ([*range(rows, 0, -1)] if text == "block" else [0] * len(found))
    assert cost["Handler_read_next"] < most * rows + 500
    assert cost["Handler_read_prev"] < 100
