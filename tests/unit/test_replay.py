"""A recording is read, shifted, rolled back and folded as its README says; SQLite ends as it promises."""

from datetime import UTC, datetime

import pytest

from tests.support.mariadb import ROLLED_BACK
from tests.support.replay import Insert, Row, SQLiteReplayer, Transaction, Update, expected, rolled_back, shift

STEP: Row = {
    "id": 1,
    "job_id": "a",
    "status": "running",
    "started_at": "2026-01-31 23:59:59.000000",
    "completed_at": None,
}
LOG: Row = {"id": 7, "message": "2026-01-31 23:59:58", "ts": "2026-01-31 23:59:58.250000", "external_job_id": "x-1"}
ENDED: Row = {"status": "completed", "completed_at": "2026-01-31 23:59:59.900000"}
TINY = [
    Transaction(0, (Insert("job_steps", STEP), Insert("log_events", LOG))),
    Transaction(1, (Update("job_steps", 1, ENDED),)),
]


def test_the_recording_is_whole(recording):
    tables = expected(recording)
    assert {table: len(rows) for table, rows in tables.items()} == {
        "job_tracking": 66,
        "job_steps": 328,
        "log_events": 2741,
        "failover_jobs": 18,
    }
    assert [transaction.at for transaction in recording] == sorted(transaction.at for transaction in recording)


def test_shift_moves_every_time_by_the_same_whole_seconds():
    tables = expected(shift(TINY, ends_at=datetime(2026, 2, 1, 0, 0, 9, 950000, tzinfo=UTC)))
    assert tables["job_steps"][1] == {
        **STEP,
        "status": "completed",
        "started_at": "2026-02-01 00:00:09.000000",
        "completed_at": "2026-02-01 00:00:09.900000",
    }
    assert tables["log_events"][7] == {**LOG, "ts": "2026-02-01 00:00:08.250000"}


def test_rolled_back_rows_lack_the_columns_and_nothing_else(recording):
    kept = expected(rolled_back(recording))
    for table, rows in expected(recording).items():
        absent = ROLLED_BACK.get(table, ())
        assert kept[table] == {
            key: {column: value for column, value in row.items() if column not in absent} for key, row in rows.items()
        }


async def test_a_replay_into_sqlite_ends_as_expected_and_a_transaction_that_fails_leaves_nothing(mixed, tmp_path):
    async with SQLiteReplayer.connect(tmp_path / "joblog.db") as replayer:
        first = mixed[0]
        with pytest.raises(Exception, match="UNIQUE"):
            await replayer.apply(Transaction(0, (*first.operations, *first.operations)))
        assert not any((await replayer.tables()).values())
        await replayer.replay(mixed)
        assert await replayer.tables() == expected(mixed)
