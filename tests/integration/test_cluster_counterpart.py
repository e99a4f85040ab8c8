"""What a standby finds out of the active collector: whether both follow the same database."""

from __future__ import annotations

import contextlib

import msgspec
import pytest

from correlator.cluster import keys, streams
from correlator.cluster.lease import Lease
from correlator.counterpart import Counterpart
from correlator.model.persisted import Cursor
from correlator.sources.db.sqlite import SQLiteDatabase
from correlator.state.checkpoint import MOMENT, SavedMoment
from tests.support.cluster import connected, settings
from tests.support.source_databases import SQLiteOriginal

OURS = ("job-1", "job-2")


def moment(cursor):
    return msgspec.msgpack.encode(SavedMoment(5.0, cursor, 0, None, None))


@pytest.mark.parametrize(
    ("stored", "rows", "barred"),
    [
        (None, OURS, False),
        (moment(Cursor(5)), OURS, False),
        (moment(Cursor(5, sample=OURS)), OURS, False),
        (moment(Cursor(5, sample=("deleted", "job-2"))), OURS, False),
        (moment(Cursor(5, sample=("another",))), OURS, True),
        (moment(Cursor(5, sample=("another",))), (), True),
        (moment(Cursor(5, sample=("another",))), None, False),
        (b"\xc1\xff", OURS, False),
    ],
    ids=["no checkpoint", "without a sample", "the same", "a backup", "another", "empty", "away", "not readable"],
)
async def test_a_standby_with_another_database_than_the_checkpoint_is_barred_from_the_lease(
    nats, tmp_path, stored, rows, barred
):
    database = SQLiteDatabase(tmp_path / "appliance.db")
    if rows is not None:
        with contextlib.closing(SQLiteOriginal(tmp_path / "appliance.db", rolled_back=False)) as original:
            for job_id in rows:
                await original.job(job_id)
    async with connected(nats.url) as connection:
        await streams.create(connection, 1)
        if stored is not None:
            await connection.request(keys.checkpoint("dc1", *MOMENT), stored)
        counterpart = Counterpart(Lease(connection, connection, settings(nats.url)), database, {})
        assert await counterpart.is_barred() is barred
        assert ("other_database" in counterpart.describe()) is barred
        assert ("error" in counterpart.describe()) is barred
