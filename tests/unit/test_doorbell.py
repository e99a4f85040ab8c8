"""What is read of a binary log, and what is said of a doorbell that is away. Nothing here has a server."""

from __future__ import annotations

import contextlib
import logging
import struct
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from correlator.errors import SourceUnavailable
from correlator.sources import binlog
from correlator.sources.binlog import ChangedTables, Ended
from correlator.sources.db.mariadb import Address
from correlator.sources.db.session import TABLES
from correlator.sources.doorbell import WARN_EVERY, Doorbell
from correlator.tasks import Backoff
from tests.support.background import in_background
from tests.support.eventually import eventually
from tests.support.held import held

GTID, XID, HEARTBEAT, ROWS = 162, 16, 27, 23

MAPPED = bytes.fromhex("120000000000 0100 0e") + b"migratekit_oma\0\x0alog_events\0\x08\x08\x0f\x08\xfe\xfc\xfc\x12\x0f"
"""The body of a TABLE_MAP event as MariaDB 11.8 sent it."""

TABLE_MAP = bytes.fromhex("0a000000 00 00000000 13 01000000 ff")
"""A packet that ends within its header."""

STATEMENT = bytes.fromhex(
    "0900000000000000 0e 0000 2600 000000000101000020540000000006037374640400090009000905062b30303a30308026880a"
) + (b"migratekit_oma\0INSERT INTO log_events (message) VALUES ('y')")
"""The body of a QUERY event as it sent it."""


def packet(payload: bytes) -> bytes:
    return struct.pack("<I", len(payload)) + payload


def event(kind: int, body: bytes = b"") -> bytes:
    return packet(b"\0" + struct.pack("<IBIIIH", 0, kind, 1, 19 + len(body), 0, 0) + body)


def mapped(schema: bytes, table: bytes) -> bytes:
    names = bytes([len(schema)]) + schema + b"\0" + bytes([len(table)]) + table + b"\0"
    return event(binlog.TABLE_MAP, bytes(8) + names + b"\x01\x08")


def changes() -> ChangedTables:
    return ChangedTables("migratekit_oma", TABLES)


def transaction(*events: bytes) -> bytes:
    return event(GTID, bytes(19)) + b"".join(events) + event(XID, bytes(8))


@pytest.mark.parametrize(
    ("schema", "table", "found"),
    [
        (b"MigrateKit_OMA", b"Log_Events", {"log_events": 1}),
        (b"migratekit_oma", b"vms", {}),
        (b"other", b"log_events", {}),
        (b"migratekit_oma", b"log_events2", {}),
        (b"", b"", {}),
    ],
)
def test_rows_of_the_followed_tables_alone_are_counted_in_any_case_of_their_names(schema, table, found):
    assert changes().feed(transaction(mapped(schema, table), event(ROWS, b"log_events"))) == found


def test_a_statement_counts_once_for_each_table_that_it_names_and_a_packed_one_for_all():
    assert changes().feed(event(binlog.QUERY, STATEMENT)) == {"log_events": 1}
    copied = STATEMENT + b", (SELECT name FROM `JOB_STEPS` JOIN job_steps b)"
    assert changes().feed(event(binlog.QUERY, copied)) == {"log_events": 1, "job_steps": 1}
    assert changes().feed(event(binlog.QUERY, b"x" * 40 + b"UPDATE my_log_events SET a = 1")) == {}
    assert changes().feed(event(binlog.QUERY_COMPRESSED, b"\x81\x40zzz")) == dict.fromkeys(TABLES, 1)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60))
def test_it_does_not_matter_how_the_stream_is_cut(cuts):
    stream = (
        transaction(event(binlog.TABLE_MAP, MAPPED), event(ROWS, bytes(300)))
        + event(HEARTBEAT, b"bin.000001")
        + transaction(event(binlog.QUERY, STATEMENT))
        + transaction(mapped(b"other", b"log_events"), event(ROWS, bytes(60)))
        + transaction(mapped(b"migratekit_oma", b"job_tracking"), event(ROWS, bytes(50)))
    )
    reader, found = changes(), Counter[str]()
    at = 0
    for length in [*cuts, len(stream)]:
        found.update(reader.feed(stream[at : at + length]))
        at += length
    assert found == {"log_events": 2, "job_tracking": 1}


def test_of_a_huge_event_next_to_nothing_is_kept_and_what_its_later_packets_hold_is_no_event():
    huge = b"\0" + struct.pack("<IBIIIH", 0, ROWS, 1, 0, 0, 0)
    decoy = mapped(b"migratekit_oma", b"log_events")[4:]
    stream = (
        packet(huge.ljust(binlog.WHOLE, b"\xff"))
        + packet(decoy.ljust(binlog.WHOLE, b"\xff"))
        + packet(b"")
        + mapped(b"migratekit_oma", b"job_steps")
    )
    reader, found, sizes = changes(), Counter[str](), list[int]()
    for at in range(0, len(stream), 100_000):
        found.update(reader.feed(stream[at : at + 100_000]))
        sizes.append(held(reader))
    assert found == {"job_steps": 1}
    assert max(sizes) - min(sizes) < 1_000 + binlog.NEEDED


@pytest.mark.parametrize(
    ("last", "words", "code"),
    [
        (b"\xff" + struct.pack("<H", 1227) + b"#42000Access denied; more", "Access denied; more$", 1227),
        (b"\xfe\0\0\0\0", "", 0),
    ],
)
def test_an_error_of_the_server_and_its_goodbye_end_the_stream(last, words, code):
    reader = changes()
    before = reader.began
    reader.feed(event(HEARTBEAT, b"bin.000001"))
    assert (before, reader.began) == (False, True)
    with pytest.raises(Ended, match=rf"^{words}") as ended:
        reader.feed(packet(last))
    assert ended.value.code == code


class Away:
    """A database that cannot be reached."""

    address = Address()

    def __init__(self) -> None:
        self.asked = 0

    async def open_with_aiomysql(self) -> None:
        self.asked += 1
        raise SourceUnavailable(f"no route, for the {self.asked}. time")


@given(st.lists(st.one_of(st.binary(max_size=40).map(packet), st.binary(max_size=40), st.just(TABLE_MAP)), max_size=5))
def test_whatever_a_server_sends_is_read_or_ends_the_stream(parts):
    """An error of the parser would be a traceback in the log for each packet."""
    with contextlib.suppress(Ended):
        changes().feed(b"".join(parts))


async def test_a_doorbell_that_stays_away_is_warned_of_once_in_ten_minutes_and_shown_meanwhile(caplog):
    caplog.set_level(logging.INFO)
    database, now = Away(), 1000.0
    bell = Doorbell(database, backoff=Backoff(0.001, 1, 0.001), clock=lambda: now)  # type: ignore[arg-type]
    async with in_background(bell.run(lambda changed: None)):
        await eventually(lambda: database.asked > 20)
        assert [r.levelname for r in caplog.records] == ["WARNING"]
        described = bell.describe()
        assert (described["ok"], described["up"]) == (True, False)
        assert "no route" in described["error"]
        now += WARN_EVERY
        await eventually(lambda: len(caplog.records) > 1)
        asked = database.asked
        await eventually(lambda: database.asked > asked + 20)
        assert [r.levelname for r in caplog.records] == ["WARNING", "WARNING"]


class Answering(Away):
    """A database whose session has this row for the position, and nothing else."""

    def __init__(self, position: str) -> None:
        super().__init__()
        self.position = position

    async def open_with_aiomysql(self) -> Any:
        self.asked += 1
        return self

    async def query(self, sql: str, args: Sequence[object] = ()) -> Sequence[tuple[object, ...]]:
        return [("Binlog_snapshot_file", "bin.000001"), ("Binlog_snapshot_position", self.position)]

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("position", ["-1", "4294967296", "1e400", "inf", "nan", "", "four"])
async def test_a_position_that_cannot_be_requested_is_a_doorbell_that_is_away(position):
    database = Answering(position)
    bell = Doorbell(database, backoff=Backoff(0.001, 1, 0.001))  # type: ignore[arg-type]
    async with in_background(bell.run(lambda changed: None)):
        await eventually(lambda: database.asked > 2)
        assert bell.describe()["ok"]
