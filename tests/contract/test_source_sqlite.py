"""A session on SQLite: it reads and no more, and every call on it ends in time."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import pytest

from correlator.errors import SourceUnavailable
from correlator.sources.db.sqlite import SQLiteDatabase
from tests.support.eventually import PATIENCE
from tests.support.source_databases import SQLiteOriginal, opened

FOR_EVER = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) FROM n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "appliance.db"
    SQLiteOriginal(path, rolled_back=False).close()
    return path


async def test_a_query_that_exceeds_its_timeout_ends_and_so_does_its_thread(file):
    session = await opened(SQLiteDatabase(file, timeout=0.2))
    with pytest.raises(SourceUnavailable, match=r"no answer within 0\.2 s"):
        await session.query(FOR_EVER)
    await session.close()


async def test_a_cancelled_question_ends_at_once_and_leaves_nothing_running(file):
    session = await SQLiteDatabase(file, timeout=10 * PATIENCE).open()
    asked = asyncio.create_task(session.query(FOR_EVER))
    done, _ = await asyncio.wait({asked}, timeout=0.1)
    assert not done
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    await asyncio.wait_for(session.close(), PATIENCE)


async def test_a_session_cannot_write(file):
    session = await SQLiteDatabase(file).open()
    with pytest.raises(SourceUnavailable, match="readonly"):
        await session.query("INSERT INTO log_events (level, message, ts) VALUES ('INFO', 'x', 'x')")
    await session.close()


@pytest.mark.parametrize("what", ["missing", "folder", "text"])
async def test_what_is_no_database_is_said(tmp_path, what):
    path = tmp_path / "x.db"
    if what == "folder":
        path.mkdir()
    elif what == "text":
        path.write_text("this is no database\n" * 100)
    with pytest.raises(
        SourceUnavailable, match=r"SQLite: .*x\.db: (unable to open|disk I/O error|file is not a database)"
    ):
        await SQLiteDatabase(path).open()
    assert what != "missing" or not path.exists()


async def test_a_file_that_is_locked_fails_in_time_and_is_read_when_it_is_free(file: Path):
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as writer:
        writer.execute("PRAGMA journal_mode = DELETE").close()
        session = await opened(SQLiteDatabase(file, timeout=0.3))
        writer.execute("BEGIN EXCLUSIVE")
        with pytest.raises(SourceUnavailable):
            await session.query("SELECT COUNT(*) FROM log_events")
        writer.execute("COMMIT")
        await session.close()
        session = await SQLiteDatabase(file).open()
        assert await session.query("SELECT COUNT(*) FROM log_events") == [(0,)]
        await session.close()
